import math

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.noise.schedule import (
    EDM,
    SCHEDULES,
    VE,
    Cosine,
    Discrete,
    Flow,
    Linear,
    Normalised,
    SubVP,
    from_json,
    to_json,
    variance_preserving,
)
from tests.conftest import DDPM_BETAS, make_schedule, randn

EXACT = {"rtol": 1e-12, "atol": 1e-14}
TIMES = torch.linspace(0.001, 0.999, 401, dtype=torch.float64)


def test_signal_falls_against_noise(schedule):
    assert (schedule.half_logsnr(TIMES).diff() < 0).all()


def test_time_inverts_half_logsnr(schedule):
    torch.testing.assert_close(schedule.time(schedule.half_logsnr(TIMES)), TIMES, rtol=0, atol=1e-9)


def test_variance_is_preserved_unless_it_explodes(schedule):
    total = schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2
    if isinstance(schedule, VE | EDM):
        assert (total > 1).all()
    elif isinstance(schedule, SubVP | Flow):
        assert ((total < 1) | (TIMES == 0)).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


def test_angle_is_that_of_alpha_and_sigma(schedule):
    phi, size = schedule.angle(TIMES), torch.hypot(schedule.alpha(TIMES), schedule.sigma(TIMES))
    torch.testing.assert_close(size * phi.cos(), schedule.alpha(TIMES), rtol=0, atol=1e-13)
    torch.testing.assert_close(size * phi.sin(), schedule.sigma(TIMES), rtol=1e-14, atol=1e-14)


def test_json_round_trip(schedule):
    assert from_json(to_json(schedule)) == schedule


def test_level_is_lifted_in_the_samples_dtype(schedule):
    level = schedule.level(TIMES[:3], randn(3, 2, 5, 5).float())
    assert level.alpha.shape == (3, 1, 1, 1)
    assert level.sigma.dtype == torch.float32


def test_cosine_by_hand():
    ends = Cosine().level(torch.tensor([0.0, 0.5, 1.0]), randn(3, 1))
    half = math.sqrt(0.5)
    torch.testing.assert_close(
        ends.alpha.flatten(), torch.tensor([1, half, 0.0], dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert ends.alpha[2] == 0  # exactly: students start from pure noise
    assert ends.sigma[0] == 0


def test_discrete_is_ddpm_at_its_steps():
    alpha_bar = torch.cumprod(1 - torch.tensor(DDPM_BETAS, dtype=torch.float64), 0)
    n = torch.tensor([1, 10, 500, 1000])
    torch.testing.assert_close(Discrete(DDPM_BETAS).alpha(n / 1000), alpha_bar[n - 1].sqrt(), rtol=1e-9, atol=0)


def test_discrete_takes_a_zero_terminal_snr():
    zero = Discrete((0.1, 0.5, 1.0))
    assert abs(float(zero.alpha(torch.ones(1)))) < 1e-16
    assert torch.isfinite(zero.angle(torch.linspace(0, 1, 50))).all()


def test_linear_by_hand():
    # beta(t) = 0.1 + 19.9 t integrates to 10.05 at t = 1
    assert float(Linear().alpha(torch.ones(1))) == pytest.approx(math.exp(-10.05 / 2), rel=1e-12)


def test_flow_by_hand():
    """A straight line; a shift of 3 takes the middle to 3/4, and every log-SNR down by 2 log 3."""
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(Flow().alpha(t), 1 - t, rtol=0, atol=0)
    torch.testing.assert_close(Flow().sigma(t), t, rtol=0, atol=0)
    torch.testing.assert_close(Flow(3.0).sigma(t), torch.tensor([0, 0.5, 0.75, 1]).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(Flow(3.0).alpha(TIMES) + Flow(3.0).sigma(TIMES), torch.ones_like(TIMES), **EXACT)
    down = Flow().half_logsnr(TIMES) - Flow(3.0).half_logsnr(TIMES)
    torch.testing.assert_close(down, torch.full_like(down, math.log(3)), **EXACT)


def test_a_shifted_flow_is_the_flow_at_shifted_times():
    u = 3 * TIMES / (1 + 2 * TIMES)
    for name in ("alpha", "sigma"):
        torch.testing.assert_close(getattr(Flow(3.0), name)(TIMES), getattr(Flow(), name)(u), **EXACT)
    torch.testing.assert_close(Flow(3.0).time(Flow().half_logsnr(u)), TIMES, **EXACT)


def test_even_times_of_edm_are_its_levels():
    """Karras et al. 2022, eq. 5: of N levels the i-th is (max^(1/7) + i/(N - 1) (min^(1/7) - max^(1/7)))^7."""
    i, low, high = torch.arange(18).double(), 0.002 ** (1 / 7), 80 ** (1 / 7)
    torch.testing.assert_close(EDM().sigma(1 - i / 17), (high + i / 17 * (low - high)) ** 7, **EXACT)
    assert (EDM().alpha(TIMES) == 1).all()


def test_ve_by_hand():
    torch.testing.assert_close(VE(0.01, 50.0).sigma(torch.tensor([0.0, 1.0])), torch.tensor([0.01, 50.0]).double())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(0.0, 1.0),
        lambda: VE(2.0, 1.0),
        lambda: Discrete(()),
        lambda: Discrete((0.0, 0.1)),
        lambda: Flow(0.0),
        lambda: Flow(math.inf),
        lambda: EDM(0.0),
        lambda: EDM(2.0, 1.0),
        lambda: EDM(rho=0.0),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(ValueError, match="schedule"):
        make()


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError, match="known: " + ", ".join(SCHEDULES)):
        from_json({"name": "cosin"})


def test_the_batch_law(schedule):
    x = randn(5, 5, 5, 5)
    t = torch.linspace(0.1, 0.9, 5)
    whole = schedule.level(t, x).sigma * x
    parts = [schedule.level(t[i : i + 1], x[i : i + 1]).sigma * x[i : i + 1] for i in range(5)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=0)


def test_the_discrete_schedules_table_is_copied_to_a_device_once():
    schedule, t = Discrete(DDPM_BETAS), torch.zeros(3, device="meta")
    assert schedule.alpha(t).device.type == "meta"
    assert schedule._table.beside(t) is schedule._table.beside(t)


def test_a_table_first_asked_for_in_inference_mode_takes_gradients_later():
    schedule, t = Discrete(DDPM_BETAS), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        schedule.alpha(torch.zeros(1)), schedule._table.beside(torch.zeros(1, device="meta"))
    assert float(torch.autograd.grad(schedule.alpha(t).sum(), t)[0]) < 0
    assert not schedule._table.beside(torch.zeros(1, device="meta")).is_inference()


def test_make_schedule_knows_every_name():
    assert {type(make_schedule(name)) for name in SCHEDULES} == set(SCHEDULES.values())


def test_times_in_single_precision_are_computed_with_in_double(schedule):
    """What a network was trained in says nothing about how far apart two levels are."""
    t = torch.tensor([0.1, 0.5, 0.9])
    lam = schedule.half_logsnr(t.double()).float()
    for asked, given in ((schedule.alpha, t), (schedule.sigma, t), (schedule.angle, t), (schedule.time, lam)):
        found = asked(given)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, asked(given.double()), rtol=1e-15, atol=0)


def test_a_beta_above_1_is_refused_and_one_of_1_is_not():
    for wrong in ((0.1, 1.5), (1 + 1e-9,), (0.1, -0.1), (0.1, 0.0, 0.2), (0.1, math.nan)):
        with pytest.raises(ValueError, match="discrete schedule: betas"):
            Discrete(wrong)
    assert Discrete((0.1, 1.0)).betas == (0.1, 1.0)


@pytest.mark.parametrize(
    "known", [*(make_schedule(name) for name in SCHEDULES), Discrete((0.1, 0.2, 0.3))], ids=[*SCHEDULES, "short"]
)
def test_noise_a_rounding_beyond_an_end_has_a_time_a_rounding_beyond_it(known):
    """Where trajectories and adaptive solvers ask for the very end."""
    ends = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    lam = known.half_logsnr(ends).clamp(min=-30)
    found = known.time(lam + torch.tensor([-1e-9, 1e-9], dtype=torch.float64))
    torch.testing.assert_close(found, ends, rtol=0, atol=1e-6)
    assert found[1] <= 1e-3
    assert found[0] >= 1 or known in (Cosine(), Flow())  # whose ends are nowhere near


def test_what_networks_are_trained_on_preserves_variance_at_the_noise_of_the_schedule(schedule):
    """Angles, log-SNR and times stay; a card brings back the very same; who preserves variance is left as it is."""
    found = variance_preserving(schedule)
    assert isinstance(found, Normalised) == isinstance(schedule, SubVP | VE | Flow | EDM)
    total = found.alpha(TIMES) ** 2 + found.sigma(TIMES) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)
    lam = schedule.half_logsnr(TIMES)
    torch.testing.assert_close(found.half_logsnr(TIMES), lam, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.angle(TIMES), schedule.angle(TIMES), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.time(lam), TIMES, rtol=0, atol=1e-9)
    assert from_json(to_json(found)) == found
    assert variance_preserving(found) is found

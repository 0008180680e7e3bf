"""Noisy solvers as laws of chance.

On Gaussian data a solver is affine in its start and in each of its draws, so one batch in which every row is moved by one of
them alone gives the mean and the variance of its results exactly.
"""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.node import node
from diffcore.noise.schedule import SCHEDULES, VE, Cosine, Linear, Schedule, SubVP
from diffcore.noise.trajectory import Trajectory, karras, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solver import Solver, Stepwise
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.ancestral import DDIM
from diffcore.sampling.solvers.dpm_solver import DPMpp2MSDE
from diffcore.sampling.solvers.edm import EDM, Heun
from diffcore.sampling.solvers.langevin import PREDICTORS, Langevin, PredictorCorrector
from diffcore.sampling.solvers.sde import EulerMaruyama, ReverseDiffusion
from tests.conftest import gaussian, make_schedule, make_solver, randn

pytestmark = pytest.mark.usefixtures("without_shape_checks")

SHAPE = (2, 3)
AFFINE = [
    name for name in SOLVERS if make_solver(name).stochastic and name != "predictor_corrector"
]  # which takes norms
# but for consistency models, whose jumps are not a denoiser's
SMOOTH = [name for name in AFFINE if name != "multistep_consistency"]

OPTIONS: dict[str, Solver] = {
    "ddim eta=0.5": DDIM(0.5),
    "ddim eta=1": DDIM(1.0),
    "edm noise=1": EDM(noise=1.0),
    "dpmpp_2m_sde heun": DPMpp2MSDE(solver_type="heun"),
    "langevin inner=2 rate=0.5": Langevin(inner=2, rate=0.5),
}
WEAK_ORDER = {"dpmpp_2m_sde": 2, "dpmpp_2m_sde heun": 2, "edm noise=1": 2}
"""How fast the moments' errors fall, where it is not 1. EDM's own noise = 1.003 leaves a little that never falls."""


def solver_of(case: str, denoiser: GaussianDenoiser) -> Solver:
    return OPTIONS.get(case) or make_solver(case, denoiser)


@dataclass
class Law:
    """x = mean + gain (start - its mean) + draws[0] z_0 + draws[1] z_1 + ..., each [*x]; draws [n, *x]."""

    offset: Tensor
    gain: Tensor
    draws: Tensor

    def mean(self, start: Tensor) -> Tensor:
        return self.offset + self.gain * start

    def variance(self, start: Tensor) -> Tensor:
        return self.gain**2 * start + self.draws.square().sum(0)


@torch.inference_mode()
def law(sampler: Sampler, shape: tuple[int, ...] = SHAPE) -> Law:
    def solve(start, noise):
        numbers = itertools.count()
        return sampler.solver.solve(sampler.denoiser, start, sampler.trajectory, lambda: noise(next(numbers)))

    asked, nothing = [], torch.zeros(1, *shape, dtype=torch.float64)
    solve(nothing, lambda k: asked.append(k) or nothing)
    units = torch.eye(len(asked) + 2, dtype=torch.float64).reshape(*[len(asked) + 2] * 2, *[1] * len(shape))
    found = solve(units[1].expand(-1, *shape), lambda k: units[2 + k].expand(-1, *shape))
    return Law(found[0], found[1] - found[0], found[2:] - found[0])


def marginal(denoiser: GaussianDenoiser, t: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t."""
    at = node(denoiser.schedule, t)
    return at.alpha * denoiser.mean, at.alpha**2 * denoiser.variance + at.sigma**2


def moments(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Of the results, from the exact marginal at the first time."""
    found, (mean, variance) = law(sampler), marginal(sampler.denoiser, sampler.trajectory.times[0])
    return found.mean(mean), found.variance(variance)


def drawn(count: int, *shape: int):
    return lambda k: randn(count, *shape, seed=100 + k)


@pytest.mark.slow
@pytest.mark.parametrize("word", SCHEDULES)
@pytest.mark.parametrize("case", [*AFFINE, *OPTIONS])
def test_the_law_is_what_many_samples_show(case, word):
    schedule, count = make_schedule(word), 5_000
    denoiser = gaussian(schedule)
    sampler = Sampler(denoiser, solver_of(case, denoiser), karras(5, schedule))
    first = marginal(denoiser, sampler.trajectory.times[0])
    x = sampler.sample(first[0] + first[1].sqrt() * randn(count, *SHAPE, seed=1), drawn(count, *SHAPE))
    mean, variance = moments(sampler)
    assert ((x.mean(0) - mean).abs() < 4 * (variance / count).sqrt()).all()
    assert ((x.var(0) - variance).abs() < 4 * variance * math.sqrt(2 / count)).all()


@pytest.mark.parametrize("case", [*AFFINE, *OPTIONS])
def test_a_sample_is_its_laws_sum(case):
    """No chance in it: the result from one start and its draws, put together from the unit ones."""
    denoiser = gaussian(Linear())
    sampler = Sampler(denoiser, solver_of(case, denoiser), karras(5, Linear()))
    found, start, noise = law(sampler), randn(4, *SHAPE), drawn(4, *SHAPE)
    expected = found.mean(start) + sum(each * noise(k) for k, each in enumerate(found.draws))
    torch.testing.assert_close(sampler.sample(start, noise), expected, rtol=1e-11, atol=1e-11)


def errors(case: str, schedule: Schedule, steps: int) -> tuple[float, float]:
    """The largest error of a mean, in standard deviations, and of a variance, as a share of it."""
    denoiser = gaussian(schedule)
    path = karras(steps, schedule)
    mean, variance = moments(Sampler(denoiser, solver_of(case, denoiser), path))
    # langevin ends with the mean of x_0, at VE's sigma_min too
    aim = (denoiser.mean, denoiser.variance) if case.startswith("langevin") else marginal(denoiser, 0.0)
    return float(((mean - aim[0]).abs() / aim[1].sqrt()).max()), float((variance / aim[1] - 1).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [SubVP(), VE()])
@pytest.mark.parametrize("case", [*SMOOTH, *OPTIONS])
def test_mean_and_variance_become_the_datas(case, schedule):
    (mean, variance), (mean2, variance2) = (errors(case, schedule, steps) for steps in (60, 120))
    order = WEAK_ORDER.get(case, 1)
    # euler_maruyama has two errors of opposite signs where the variance explodes
    assert math.log2(variance / variance2) > order - 0.2 or variance2 < 0.005, (variance, variance2)
    assert variance2 < (0.4 if case.startswith("langevin") else 0.12 / order**2)
    # beliefs mixed with weights that sum to one leave the mean where it is; the two that follow the SDE do not
    assert mean2 < 1e-12 or (case in ("euler_maruyama", "reverse_diffusion") and math.log2(mean / mean2) > 0.8)


@pytest.mark.parametrize("case", [*SMOOTH, *OPTIONS])
def test_on_every_schedule_the_law_comes_near_the_data(case, schedule):
    """Roughly, for the steps are few: what is not moved at all has a variance many times as large."""
    mean, variance = errors(case, schedule, 20)
    assert variance < (20 if case.startswith("langevin") else 1), variance
    assert mean < (0.1 if case in ("euler_maruyama", "reverse_diffusion") else 1e-12), mean


@pytest.mark.parametrize("case", [*AFFINE, *OPTIONS])
def test_on_ddpms_betas_at_their_own_times_a_law_is_that_of_the_process_they_stand_for(case):
    """The thousand betas are the linear schedule in steps of 1/1000; uniform times of 25 steps are among their times."""
    (mean, variance), (mean2, variance2) = (
        moments(Sampler(denoiser, solver_of(case, denoiser), uniform(25)))
        for denoiser in (gaussian(make_schedule(word)) for word in ("discrete", "linear"))
    )
    torch.testing.assert_close(mean, mean2, rtol=0, atol=1e-3)
    torch.testing.assert_close(variance, variance2, rtol=0.02, atol=0)


# one step, by hand


def one_step(solver, schedule: Schedule, t: float, s: float) -> tuple[Law, GaussianDenoiser]:
    denoiser = gaussian(schedule)
    return law(Sampler(denoiser, solver, Trajectory((t, s)))), denoiser


@pytest.mark.parametrize(("t", "s"), [(0.8, 0.6), (0.3, 0.0)])
def test_euler_maruyama_by_hand(t, s):
    """On the linear schedule f = -beta/2 and g^2 = beta."""
    found, denoiser = one_step(EulerMaruyama(), Linear(), t, s)
    beta, h, (mean, variance) = 0.1 + 19.9 * t, t - s, marginal(denoiser, t)
    torch.testing.assert_close(found.gain, 1 + h * (beta / 2 - beta / variance))
    torch.testing.assert_close(found.mean(mean), mean * (1 + h * beta / 2))
    torch.testing.assert_close(found.draws[0], torch.full(SHAPE, (beta * h) ** 0.5 if s else 0.0).double())


@pytest.mark.parametrize("s", [0.6, 0.0])
def test_euler_maruyama_where_the_variance_explodes(s):
    found, denoiser = one_step(EulerMaruyama(), VE(0.01, 50.0), 0.7, s)
    g2 = 2 * math.log(5000) * (0.01 * 5000**0.7) ** 2
    torch.testing.assert_close(found.gain, 1 - (0.7 - s) * g2 / marginal(denoiser, 0.7)[1])
    torch.testing.assert_close(found.draws[0], torch.full(SHAPE, (g2 * (0.7 - s)) ** 0.5 if s else 0.0).double())


@pytest.mark.parametrize("n", [1, 2, 500, 1000])
def test_reverse_diffusion_by_hand(n):
    """Step n of DDPM's thousand: (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    schedule = make_schedule("discrete")
    found, denoiser = one_step(ReverseDiffusion(), schedule, n / 1000, (n - 1) / 1000)
    beta, (mean, variance) = schedule.betas[n - 1], marginal(denoiser, n / 1000)
    torch.testing.assert_close(found.gain, 2 - (1 - beta) ** 0.5 - beta / variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.mean(mean), (2 - (1 - beta) ** 0.5) * mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        found.draws[0], torch.full(SHAPE, beta**0.5 if n > 1 else 0.0).double(), rtol=1e-7, atol=0
    )


def test_reverse_diffusion_where_the_variance_explodes():
    """x + (sigma_t^2 - sigma_s^2) score, and as much noise."""
    found, denoiser = one_step(ReverseDiffusion(), VE(0.01, 50.0), 0.7, 0.6)
    spread = 1e-4 * (5000**1.4 - 5000**1.2)
    torch.testing.assert_close(found.gain, 1 - spread / marginal(denoiser, 0.7)[1])
    torch.testing.assert_close(found.draws[0], torch.full(SHAPE, spread**0.5).double())


def test_the_first_step_of_dpmpp_2m_sde_by_hand():
    """sigma_s/sigma_t exp(-h) x + alpha_s (1 - exp(-2 h)) x_0 + sigma_s sqrt(1 - exp(-2 h)) z."""
    found, denoiser = one_step(DPMpp2MSDE(), Cosine(), 0.7, 0.4)
    (a, b), (to_a, to_b) = ((math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)) for t in (0.7, 0.4))
    decay = (b * to_a / (a * to_b)) ** -2  # exp(-2 h)
    belief = a * denoiser.variance / marginal(denoiser, 0.7)[1]
    torch.testing.assert_close(found.gain, to_b / b * decay**0.5 + to_a * (1 - decay) * belief)
    torch.testing.assert_close(found.draws[0], torch.full(SHAPE, to_b * (1 - decay) ** 0.5).double())


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_its_second_step_by_hand(kind):
    """The first draw alone changes what is believed, which counts for r_0 = h_0/h; the mean of a belief stays as it is."""
    denoiser, times = gaussian(), (0.9, 0.6, 0.5)
    first, middle, last = (node(denoiser.schedule, t) for t in times)
    h, r0 = last.lam - middle.lam, (middle.lam - first.lam) / (last.lam - middle.lam)
    fresh = 1 - math.exp(-2 * h)
    weight = fresh / 2 if kind == "midpoint" else 1 - fresh / (2 * h)
    drawn_first = one_step(DPMpp2MSDE(), Cosine(), *times[:2])[0].draws[0]
    changed = middle.alpha * denoiser.variance / marginal(denoiser, middle.t)[1] * drawn_first
    found = law(Sampler(denoiser, DPMpp2MSDE(solver_type=kind, lower_order_final=False), Trajectory(times)))
    kept = last.sigma / middle.sigma * math.exp(-h) * drawn_first
    torch.testing.assert_close(found.draws[0], kept + last.alpha * (fresh + weight / r0) * changed)
    torch.testing.assert_close(found.draws[1], torch.full(SHAPE, last.sigma * fresh**0.5).double())


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_by_hand(eta):
    """Noise of eta times the posterior's deviation, taken from what the believed noise brings (2010.02502, eq. 12 and 16)."""
    found, denoiser = one_step(DDIM(eta), Cosine(), 0.7, 0.4)
    (a, b), (to_a, to_b) = ((math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)) for t in (0.7, 0.4))
    noise = eta * to_b / b * (1 - (a / to_a) ** 2) ** 0.5
    total = marginal(denoiser, 0.7)[1]
    expected = to_a * a * denoiser.variance / total + (to_b**2 - noise**2) ** 0.5 * b / total
    torch.testing.assert_close(found.gain, expected)
    torch.testing.assert_close(found.draws[0], torch.full(SHAPE, noise).double())


def test_multistep_consistency_by_hand():
    """Each jump keeps of x the believed x_0, and adds sigma_s of noise."""
    denoiser = gaussian()
    path = Trajectory((0.9, 0.6, 0.3, 0.0))
    _, expected = marginal(denoiser, 0.9)
    for t, s in path.pairs:
        at, to = node(denoiser.schedule, t), node(denoiser.schedule, s)
        believed = (at.alpha * denoiser.variance / marginal(denoiser, t)[1]) ** 2 * expected
        expected = to.alpha**2 * believed + to.sigma**2
    mean, variance = moments(Sampler(denoiser, SOLVERS["multistep_consistency"](), path))
    torch.testing.assert_close(mean, denoiser.mean)
    torch.testing.assert_close(variance, expected)


# EDM


@pytest.mark.parametrize("solver", [EDM(churn=0.0), EDM(s_min=90.0, s_max=100.0), EDM(s_min=0.0, s_max=1e-3)])
def test_edm_without_churn_is_heun(solver):
    denoiser, x = gaussian(), randn(4, *SHAPE)
    path = karras(6, Cosine())
    found = Sampler(denoiser, solver, path).sample(x, drawn(4, *SHAPE))
    torch.testing.assert_close(found, Sampler(denoiser, Heun(), path).sample(x), rtol=0, atol=0)


def test_churn_by_hand():
    """One step: x/alpha gets sqrt(k^2 (1 + gamma)^2 - k^2) S_noise z, then Heun's step from the raised level."""
    t, s, share = 0.6, 0.5, 0.3
    found, _ = one_step(EDM(churn=share, noise=1.5), Cosine(), t, s)
    k = math.tan(math.pi / 2 * t)
    raised = math.atan(k * (1 + share)) * 2 / math.pi
    heun, _ = one_step(Heun(), Cosine(), raised, s)
    alpha, high = math.cos(math.pi / 2 * t), math.cos(math.pi / 2 * raised)
    torch.testing.assert_close(found.gain, heun.gain * high / alpha)
    torch.testing.assert_close(found.draws[0], heun.gain * high * 1.5 * k * ((1 + share) ** 2 - 1) ** 0.5)


def test_churn_is_shared_among_the_steps_and_has_a_most():
    def added(churn, steps):
        path = Trajectory(tuple(Cosine().time(torch.linspace(-1, 1, steps + 1, dtype=torch.float64)).tolist()))
        return law(Sampler(gaussian(), EDM(churn=churn, noise=1.0), path)).draws

    torch.testing.assert_close(added(0.5, 4)[0], added(0.5, 4)[0])
    torch.testing.assert_close(added(4 * (math.sqrt(2) - 1), 4), added(1000.0, 4))
    assert (added(0.4, 4).abs() < added(0.8, 4).abs()).all()


def test_churn_stays_within_the_schedule():
    """No level above that of t = 1 is asked for, and nothing is added at t = 1 itself."""
    found = law(Sampler(gaussian(VE()), EDM(s_max=100.0), Trajectory((1.0, 0.98, 0.0))))
    assert (found.draws[0] == 0).all()
    assert (found.draws[1] != 0).all()


# Langevin


@pytest.mark.parametrize("schedule", [Cosine(), VE()])
def test_langevin_at_one_level_is_a_geometric_series(schedule):
    """In x/alpha a step is 1 - size/(2 T) of x and sqrt(size) of noise, T = c^2 + k^2; at last the mean of x_0."""
    inner, rate, t = 7, 0.3, 0.4
    found, denoiser = one_step(Langevin(inner, rate), schedule, t, 0.0)
    at = node(schedule, t)
    size = rate * (at.sigma / at.alpha) ** 2
    total = denoiser.variance + (at.sigma / at.alpha) ** 2
    kept, shrink = 1 - size / (2 * total), denoiser.variance / total
    torch.testing.assert_close(found.gain, shrink * kept**inner / at.alpha)
    torch.testing.assert_close(found.mean(at.alpha * denoiser.mean), denoiser.mean)
    for k in range(inner):
        torch.testing.assert_close(found.draws[k], shrink * size**0.5 * kept ** (inner - 1 - k))


def test_langevin_ends_at_the_data():
    with pytest.raises(UserError, match="end at 0"):
        Sampler(gaussian(), Langevin(), Trajectory((0.9, 0.1))).sample(randn(1, *SHAPE), drawn(1, *SHAPE))


# the predictor-corrector, whose steps depend on norms: in high dimension these are their means


def test_one_correction_by_hand():
    """size = 2 alpha (snr |z| / |score|)^2 with each sample's own norms; x + size score + sqrt(2 size) z (algorithm 5)."""
    x, score, noise = (randn(3, 2, 2, seed=seed) for seed in range(3))
    alpha = torch.tensor([1.0, 0.9, 0.2]).double()[:, None, None]
    found = PredictorCorrector(snr=0.3)._corrected(score, x, noise, alpha)
    for i in range(3):
        size = 2 * float(alpha[i]) * 0.3**2 * float(noise[i].square().sum() / score[i].square().sum())
        torch.testing.assert_close(found[i], x[i] + size * score[i] + math.sqrt(2 * size) * noise[i])


class Silent(Stepwise):
    """A predictor that leaves x where it is."""

    def step(self, denoiser, x_t, t, s, noise):
        return x_t


@pytest.mark.parametrize("n", [1, 2, 500, 1000])
def test_a_corrections_alpha_is_that_of_ddpms_step(n, monkeypatch):
    """1 - beta_n, by which the authors' code makes the corrections of variance-preserving processes smaller."""
    monkeypatch.setitem(PREDICTORS, "ddpm", Silent)
    denoiser, x = gaussian(make_schedule("discrete")), randn(3, *SHAPE)
    path, noise = Trajectory((n / 1000, (n - 1) / 1000)), drawn(3, *SHAPE)
    found = Sampler(denoiser, PredictorCorrector("ddpm", snr=0.3), path).sample(x, noise)
    score, kept = denoiser(x, per_sample(n / 1000, x)).score, 1 - denoiser.schedule.betas[n - 1]
    sizes = 2 * kept * 0.09 * noise(0).flatten(1).square().sum(1) / score.flatten(1).square().sum(1)
    sizes = sizes[:, None, None]
    torch.testing.assert_close(found, x + sizes * score + (2 * sizes).sqrt() * noise(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize(("snr", "corrections"), [(0.16, 1), (0.4, 2)])
def test_predictor_corrector_in_high_dimension(predictor, snr, corrections, schedule):
    """|z|^2 = d and |score|^2 = d v/T^2 but for 1/sqrt(d): a correction takes v to v - 4 a T + 4 (a + a^2) T^2/v with
    a = alpha r^2."""
    d, count, c2 = 300, 100, 0.3
    denoiser = GaussianDenoiser(torch.full((d,), 0.4).double(), torch.full((d,), c2).double(), schedule)
    path = Trajectory((0.9, 0.7, 0.5, 0.3, 0.1, 0.0))  # of DDPM's betas their own times
    mean, variance = (part[0] for part in marginal(denoiser, path.times[0]))
    x = mean + variance.sqrt() * randn(count, d, seed=1)
    x = Sampler(denoiser, PredictorCorrector(predictor, snr, corrections), path).sample(x, drawn(count, d))
    small = GaussianDenoiser(denoiser.mean[:1], denoiser.variance[:1], schedule)
    for t, s in path.pairs:
        total, a = marginal(small, t)[1][0], snr**2 * (node(schedule, t).alpha / node(schedule, s).alpha) ** 2
        for _ in range(corrections):
            variance = variance - 4 * a * total + 4 * (a + a**2) * total**2 / variance
        step = law(Sampler(small, PREDICTORS[predictor](), Trajectory((t, s))), (1,))
        variance = step.variance(variance)[0]
    # a sample's coordinates share its norms, so that only samples are independent
    found = x.var(1)
    assert abs(float(found.mean() / variance) - 1) < 4 * float(found.std() / variance) / math.sqrt(count) + 8 / d


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_predictor_corrector_nears_the_data(predictor, schedule):
    d, count, off = 64, 100, []
    denoiser = GaussianDenoiser(randn(d), randn(d, seed=1).abs() + 0.2, schedule)
    for steps in (8, 32):
        path = Trajectory(tuple(0.96 * t for t in uniform(steps).times))
        mean, variance = marginal(denoiser, path.times[0])
        x = mean + variance.sqrt() * randn(count, d, seed=2)
        x = Sampler(denoiser, PredictorCorrector(predictor, snr=0.05), path).sample(x, drawn(count, d))
        # over all coordinates together: each alone is known to 4 sqrt(2/count) only
        away = (x - denoiser.mean) / denoiser.variance.sqrt()
        off.append((abs(float(away.square().mean()) - 1), abs(float(away.mean()))))
    assert off[1][0] < max(0.6 * off[0][0], 4 * math.sqrt(2 / (count * d)))
    assert off[1][0] < (0.4 if schedule == SCHEDULES["edm"]() else 0.3)  # the widest range of noise
    assert off[1][1] < 0.04 + 4 / math.sqrt(count * d)


@pytest.mark.parametrize("name", ["euler_maruyama", "edm", "langevin", "predictor_corrector"])
def test_pure_noise_is_refused_where_x_over_alpha_is_needed(name):
    with pytest.raises(UserError, match=f"{name} cannot begin at t = 1.*karras"):
        Sampler(gaussian(), make_solver(name), uniform(3)).sample(randn(1, *SHAPE), drawn(1, *SHAPE))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EDM(churn=-1.0),
        lambda: EDM(s_min=2.0, s_max=1.0),
        lambda: EDM(noise=0.0),
        lambda: Langevin(inner=0),
        lambda: Langevin(rate=2.0),
        lambda: PredictorCorrector(snr=0.0),
        lambda: PredictorCorrector(corrections=0),
        lambda: DDIM(1.5),
    ],
)
def test_impossible_options_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_per_sample_times_reach_the_rates():
    """A batch at one time per sample: what each would get alone."""
    denoiser, x, noise = gaussian(VE()), randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    t, s = torch.tensor([0.9, 0.5]).double(), torch.tensor([0.7, 0.0]).double()
    for solver in (EulerMaruyama(), ReverseDiffusion()):
        whole = solver.step(denoiser, x, t, s, noise)
        for i in range(2):
            row = x[i : i + 1]
            alone = solver.step(
                denoiser, row, per_sample(float(t[i]), row), per_sample(float(s[i]), row), noise[i : i + 1]
            )
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-13)

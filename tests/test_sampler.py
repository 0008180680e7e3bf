import itertools

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.core.rng import draw, noises
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import VE, Cosine
from diffcore.noise.trajectory import Trajectory, karras, uniform
from diffcore.sampling.sampler import Sampler, rehearse
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.adaptive import Adaptive
from tests.conftest import ToyNet, gaussian, make_schedule, make_solver, toy_denoiser

ELSEWHERE = {
    "dpm_solver_2",
    "dpm_solver_3",
    "dpm_solver_12",
    "dpm_solver_23",
    "dpmpp_2s",
    "dpmpp_3s",
    "rk45",
    "edm",
}
"""Solvers that look between the times of a trajectory."""


def sampler(name: str = "ddpm", steps: int = 3, **about) -> Sampler:
    return Sampler(toy_denoiser(**about), make_solver(name), karras(steps, Cosine()))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_sample_i_depends_on_the_seed_and_i_alone(name):
    one = sampler(name).draw((1, 4, 4), 10, seed=3, batch=10)
    other = sampler(name).draw((1, 4, 4), 7, seed=3, batch=2)
    # two nearly equal steps tell an adaptive one how far to go, so that their rounding moves it
    share = 1e-5 if issubclass(SOLVERS[name], Adaptive) else 2e-6
    torch.testing.assert_close(one[:7], other, rtol=0, atol=share * float(one.abs().max()))
    assert not torch.equal(one, sampler(name).draw((1, 4, 4), 10, seed=4))


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_of_an_exact_denoiser_are_drawn_from_float32_noise(name):
    found = Sampler(gaussian(), make_solver(name), karras(5, Cosine())).draw((2, 3), 4, seed=0)
    assert found.shape == (4, 2, 3)
    assert found.isfinite().all()


def test_all_samplers_begin_with_the_same_noise():
    def start(name):
        seen = []
        denoiser = toy_denoiser()
        denoiser.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        Sampler(denoiser, make_solver(name), karras(2, Cosine())).draw((1, 4, 4), 5, seed=0)
        return seen[0]

    for name in SOLVERS:
        torch.testing.assert_close(start(name), start("ddim"), rtol=1e-6, atol=1e-6)


def test_a_student_is_refused_on_anothers_trajectory():
    student = NetDenoiser(ToyNet(), Cosine(), grid=uniform(4))
    Sampler(student, SOLVERS["ddim"](), uniform(4))
    with pytest.raises(UserError, match=r"valid only on its own 4 steps at t = 1, 0\.75, 0\.5, 0\.25, 0"):
        Sampler(student, SOLVERS["ddim"](), uniform(2))
    with pytest.raises(UserError, match="own 4 steps"):
        Sampler(student, SOLVERS["ddim"](), Trajectory((1.0, 0.8, 0.5, 0.25, 0.0)))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_student_of_steps_is_sampled_by_those_who_look_nowhere_else(name):
    """The others are told which solver to take, whether they look between the steps or where the data say."""
    student, path = NetDenoiser(ToyNet(), Cosine(), grid=karras(4, Cosine())), karras(4, Cosine())
    solver = make_solver(name)
    within = not solver.adaptive and set(rehearse(solver, path, Cosine())) <= set(path.times)
    assert within == (name not in ELSEWHERE)
    if within:
        assert Sampler(student, solver, path).nfe >= 4
        return
    with pytest.raises(UserError, match=f"{name} evaluates between them; sample it with ddim"):
        Sampler(student, solver, path)


def test_a_long_trajectory_is_told_by_its_ends():
    student = NetDenoiser(ToyNet(), Cosine(), grid=uniform(8))
    with pytest.raises(UserError) as caught:
        Sampler(student, SOLVERS["ddim"](), uniform(5))
    assert "own 8 steps at t = 1, 0.875, 0.75, ..., 0.125, 0, not on 5 steps at t = 1, 0.8, 0.6, 0.4, 0.2, 0;" in str(
        caught.value
    )


def test_a_solver_that_needs_more_steps_says_how_many():
    class Two(SOLVERS["ddim"]):
        min_steps = 2

    Sampler(toy_denoiser(), Two(), uniform(2))
    with pytest.raises(UserError, match="Two needs at least 2 steps, got 1"):
        Sampler(toy_denoiser(), Two(), uniform(1))


def test_a_noisy_solver_asks_for_noise():
    with pytest.raises(UserError, match="needs noise"):
        sampler("ddpm").sample(torch.zeros(1, 1, 4, 4))


def test_a_variance_exploding_start_has_its_scale():
    """DDIM from t = 1 to t just below it must leave the start almost as it is, on the scale sigma_max."""
    denoiser = gaussian(VE(0.01, 50.0))
    x = Sampler(denoiser, SOLVERS["ddim"](), Trajectory((1.0, 1 - 1e-9))).draw((2, 3), 2000, seed=0)
    assert float(x.std()) == pytest.approx(50, rel=0.05)


def alike(one: torch.Tensor, two: torch.Tensor) -> float:
    return abs(float((one * two).mean()))


@pytest.mark.parametrize("name", [name for name in SOLVERS if make_solver(name).stochastic])
def test_every_draw_of_a_noisy_solver_is_new(name, monkeypatch):
    """Neither the start's noise nor that of another step: their correlations are those of chance."""
    from diffcore.sampling import sampler as module

    seen = []
    monkeypatch.setattr(module, "noises", lambda *given: seen.append(noises(*given)) or seen[-1])
    sampler(name, steps=4).draw((1, 4, 4), 100, seed=0)
    assert len(seen) >= 5
    for one, two in itertools.combinations(seen, 2):
        assert alike(one, two) < 5 / 1600**0.5


def test_noises_of_other_roles_seeds_and_places_are_independent():
    drawn = [noises((40, 40), *given) for given in ((0, range(1), "a"), (0, range(1), "b"), (1, range(1), "a"))]
    drawn.append(noises((40, 40), 0, range(1, 2), "a"))
    for one, two in itertools.combinations(drawn, 2):
        assert alike(one, two) < 5 / 1600**0.5


@pytest.mark.parametrize("rows", [slice(0, 200), slice(50, 150)])
def test_other_dice_have_noise_and_times_of_their_own(rows):
    start = draw(torch.zeros(200, 16), 0, "train", 3)[rows]
    made = [start, start.fork("a"), start.fork("b"), start.fork("a").fork("b")]
    for one, two in itertools.combinations(made, 2):
        assert alike(one.noise, two.noise) < 5 / one.noise.numel() ** 0.5
        assert alike(12**0.5 * (one.u - 0.5), 12**0.5 * (two.u - 0.5)) < 5 / len(one.u) ** 0.5


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("known", [None, of_classes(torch.arange(5), torch.ones(5).double(), torch.arange(5))])
def test_all_that_a_network_is_asked_lies_where_its_weights_do(name, known):
    """The samples, their times, the noise, what is known of them; in rehearsal too. They end on the CPU."""
    seen = []

    class Elsewhere(Denoiser):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), device="meta"))
            self.schedule, self.grid = Cosine(), None

        def with_condition(self, condition):
            seen.extend([*condition.inputs.values(), condition.guidance, *condition.negative.values()])
            return self

        def forward(self, x_t, t):
            seen.extend([x_t, t])
            return Prediction(x_t, x_t, self.schedule.level(t, x_t))

    for ask in (
        lambda made: made.draw((2, 3), 5, seed=0, batch=3, condition=known),
        lambda made: made.warm_up((2, 3), 4, known),
    ):
        seen.clear()
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # torch's own, at the very end
            ask(Sampler(Elsewhere(), make_solver(name), uniform(2)))
        assert len(seen) >= (5 if known else 2)
        assert {part.device.type for part in seen} == {"meta"}


@pytest.mark.slow
@pytest.mark.parametrize("word", ["linear", "discrete"])
@pytest.mark.parametrize("name", [name for name, kind in SOLVERS.items() if not kind.adaptive])
def test_every_solver_computes_where_the_samples_lie(name, word):
    """On the device of no memory a part of a step that were left on the CPU would be an error."""
    schedule = make_schedule(word)
    denoiser = gaussian(schedule)
    solver = make_solver(name, denoiser)
    denoiser.mean, denoiser.variance = denoiser.mean.to("meta"), denoiser.variance.to("meta")
    start = torch.zeros(3, 2, 3, device="meta")
    found = Sampler(denoiser, solver, karras(4, schedule)).sample(start, lambda k: start)
    assert (found.shape, found.device.type) == (start.shape, "meta")

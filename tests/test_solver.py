import dataclasses
import itertools
import math
import sys

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.prediction import PARAMETERIZATIONS
from diffcore.noise.schedule import SCHEDULES, Cosine, Linear
from diffcore.noise.trajectory import Trajectory, karras, uniform
from diffcore.sampling import solvers
from diffcore.sampling.sampler import Sampler, name
from diffcore.sampling.solver import Stepwise
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.ancestral import DDIM, MultistepConsistency
from diffcore.sampling.solvers.langevin import PREDICTORS, Langevin, PredictorCorrector
from tests.conftest import exact_gamma, gaussian, make_schedule, make_solver, mixture, randn

pytestmark = pytest.mark.usefixtures("without_shape_checks")

DETERMINISTIC = [name for name, kind in SOLVERS.items() if kind().order is not None and not kind().adaptive]
STEPWISE = [name for name, kind in SOLVERS.items() if issubclass(kind, Stepwise)]


class Spy(Denoiser):
    """Counts the calls of a denoiser."""

    def __init__(self, inner: Denoiser):
        super().__init__()
        self.inner, self.schedule, self.grid, self.calls = inner, inner.schedule, inner.grid, 0

    def forward(self, x_t, t):
        self.calls += 1
        return self.inner(x_t, t)


def numbered(*shape):
    """The k-th draw of noise."""
    return lambda k: randn(*shape, seed=100 + k)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [5, 6, 7])
def test_nfe_is_what_a_spy_counts(name, steps):
    spy, meter = Spy(gaussian()), Meter()
    sampler = Sampler(Metered(spy, meter), make_solver(name), karras(steps, Cosine()))
    sampler.sample(randn(2, 2, 3), numbered(2, 2, 3))
    if sampler.solver.adaptive:
        assert 0 < meter.settle() <= 2 * spy.calls
        with pytest.raises(UserError, match="depends on the data"):
            sampler.nfe  # noqa: B018
    else:
        assert spy.calls == sampler.nfe == meter.settle() / 2


@pytest.mark.parametrize("name", SOLVERS)
def test_the_batch_law(name):
    """b = c = h = w, so that a number per sample that meets the wrong axis is seen; and sample i is the same alone."""
    denoiser = GaussianDenoiser(randn(3, 3, 3), randn(3, 3, 3, seed=1).square() + 0.1, Cosine())
    x, noise = randn(3, 3, 3, 3, seed=2), numbered(3, 3, 3, 3)
    sampler = Sampler(denoiser, make_solver(name, denoiser), karras(6, Cosine()))
    parts = [sampler.sample(x[i : i + 1], lambda k, i=i: noise(k)[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(sampler.sample(x, noise), torch.cat(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", STEPWISE)
def test_the_batch_law_where_every_sample_has_a_time_of_its_own(name):
    denoiser = GaussianDenoiser(randn(3, 3, 3), randn(3, 3, 3, seed=1).square() + 0.1, Cosine())
    x, noise = randn(3, 3, 3, 3, seed=2), randn(3, 3, 3, 3, seed=3)
    t, s = torch.tensor([0.95, 0.6, 0.3]).double(), torch.tensor([0.7, 0.2, 0.0]).double()
    step = make_solver(name, denoiser).step
    parts = [step(denoiser, x[i : i + 1], t[i : i + 1], s[i : i + 1], noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(step(denoiser, x, t, s, noise), torch.cat(parts), rtol=0, atol=1e-14)


def interior(schedule, steps: int) -> Trajectory:
    """Even steps in log(alpha/sigma) between two noise levels of no extreme."""
    lam = torch.linspace(-2.5, 3.0, steps + 1, dtype=torch.float64)
    return Trajectory(tuple(schedule.time(lam).tolist()))


SLOWLY = ("subvp", "discrete")
"""Schedules whose times of a log-SNR take long to find."""


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=[pytest.mark.slow] * (words in SLOWLY)) for words in SCHEDULES]
)
def test_order_is_the_declared_one(name, words):
    """The error against the exact Gaussian flow falls as h^order. More than it promises is no fault."""
    schedule, solver = make_schedule(words), make_solver(name)
    denoiser, start, errors = gaussian(schedule), randn(4, 2, 3), []
    for steps in (40, 80, 160):
        path = interior(schedule, steps)
        exact = denoiser.flow(start, *(per_sample(path.times[k], start) for k in (0, -1)))
        errors.append(float((Sampler(denoiser, solver, path).sample(start) - exact).square().mean().sqrt()))
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates[-1] > solver.order - 0.2, rates


@pytest.mark.parametrize(("steps", "few"), [(14, True), (15, False)])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpm_solver_2m", "dpm_solver_3m"])
def test_fewer_than_fifteen_steps_end_in_lower_order(name, steps, few):
    """As diffusers counts; from there on the option changes nothing."""
    ends = [
        Sampler(gaussian(), SOLVERS[name](lower_order_final=lower), interior(Cosine(), steps)).sample(randn(2, 2, 3))
        for lower in (True, False)
    ]
    assert torch.equal(*ends) is not few


def test_ddim_multiplier_by_hand():
    """On N(0, c^2) one step multiplies by (cos cos' c^2 + sin sin') / (cos^2 c^2 + sin^2)."""
    c2, t, s = 0.25, 0.7, 0.4
    denoiser = GaussianDenoiser(torch.zeros(1).double(), torch.tensor([c2]).double(), Cosine())
    a, b, to_a, to_b = (f(math.pi / 2 * u) for u in (t, s) for f in (math.cos, math.sin))
    x = randn(3, 1)
    stepped = DDIM().step(denoiser, x, per_sample(t, x), per_sample(s, x), None)
    torch.testing.assert_close(stepped, (a * to_a * c2 + b * to_b) / (a * a * c2 + b * b) * x, rtol=0, atol=1e-14)


def moments_after(name: str, count: int = 200_000, t: float = 0.8, s: float = 0.5):
    """Mean and variance of x_s after one stochastic step from the exact marginal at t, with N(mu, c^2) data."""
    denoiser = GaussianDenoiser(torch.tensor([0.4]).double(), torch.tensor([0.3]).double(), Linear())
    x0 = denoiser.mean + denoiser.variance.sqrt() * randn(count, 1, seed=1)
    level = Linear().level(per_sample(t, x0), x0)
    x_t = level.alpha * x0 + level.sigma * randn(count, 1, seed=2)
    x_s = SOLVERS[name]().step(denoiser, x_t, per_sample(t, x_t), per_sample(s, x_t), randn(count, 1, seed=3))
    return Linear().level(per_sample(s, x0[:1]), x0[:1]), level, x_s


@pytest.mark.parametrize("name", ["ddpm", "ddpm_large"])
def test_ancestral_variance_in_closed_form(name):
    """x_s is linear in x_t with added noise, so its variance follows by hand."""
    to, at, x_s = moments_after(name)
    c2, (a, b), (a_s, b_s) = 0.3, (at.alpha[0], at.sigma[0]), (to.alpha, to.sigma)
    total = a**2 * c2 + b**2
    forward = b**2 - (a / a_s) ** 2 * b_s**2
    small = forward * b_s**2 / b**2
    gain = (a_s * a * c2 + (b_s**2 - small).sqrt() * b) / total
    added = small if name == "ddpm" else forward
    expected = float(gain**2 * total + added)
    assert float(x_s.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / len(x_s)))
    assert float(x_s.mean()) == pytest.approx(float(a_s) * 0.4, abs=5e-3)


def test_multistep_consistency_forgets_where_it_came_from():
    """Consistency sampling keeps only the believed x_0: the rest of x_s is fresh noise."""
    denoiser, x = gaussian(), randn(3, 2, 3)
    t, s, noise = per_sample(0.9, x), per_sample(0.3, x), randn(3, 2, 3, seed=5)
    x_s, to = MultistepConsistency().step(denoiser, x, t, s, noise), Cosine().level(s, x)
    torch.testing.assert_close(x_s, to.alpha * denoiser(x, t).x0 + to.sigma * noise, rtol=0, atol=0)


@pytest.mark.parametrize("name", STEPWISE)
def test_the_last_step_adds_no_noise(name):
    denoiser, x = gaussian(), randn(3, 2, 3)
    t, s = per_sample(0.2, x), per_sample(0.0, x)
    results = [make_solver(name).step(denoiser, x, t, s, randn(3, 2, 3, seed=seed)) for seed in (1, 2)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_from_pure_noise_a_solver_is_finite_or_says_what_it_needs(name, steps):
    """alpha(1) = 0 on the cosine schedule and sigma(0) = 0: nothing may divide by them."""
    solver, x = make_solver(name), randn(3, 2, 3)
    try:
        found = Sampler(gaussian(), solver, uniform(steps)).sample(x, numbered(3, 2, 3))
    except UserError as error:
        told = str(error)
    else:
        told = "finite" if torch.isfinite(found).all() else "not finite"
    assert any(word in told for word in ("needs at least", "karras")) or told == "finite"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",  # not multistep_consistency, whose jumps are a consistency model's, not a denoiser's
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "langevin" else [])  # seconds
        for name in sorted(set(SOLVERS) - {"multistep_consistency"})
    ],
)
def test_many_steps_end_near_the_data(name):
    """Whatever a solver aims at, the exact denoiser and many steps give about the data's mean and variance."""
    denoiser = gaussian()
    patient = {"langevin": Langevin(inner=40), "predictor_corrector": PredictorCorrector(snr=0.02)}
    solver, count = patient.get(name) or make_solver(name), 4000
    x = Sampler(denoiser, solver, karras(100, Cosine())).sample(randn(count, 2, 3), numbered(count, 2, 3))
    torch.testing.assert_close(x.mean(0), denoiser.mean, rtol=0, atol=0.12)
    torch.testing.assert_close(x.var(0), denoiser.variance, rtol=0.25, atol=0.01)


# ------------------------------------------------------------------------------------------- options

SINGLESTEP = [({}, {"solver_type": "heun"}), ({}, {"spacing": "time"})]
MULTISTEP = [({}, {"lower_order_final": False}), ({}, {"solver_type": "heun"})]
ADAPTIVE = [
    ({}, {"predicts": "x0"}),
    ({"atol": 1e-9}, {"rtol": 0.01}),
    ({"rtol": 1e-9}, {"atol": 0.1}),
]
CHANGES: dict[str, list[tuple[dict, dict]]] = {
    "analytic": [({}, {"eta": 0.5}), ({}, {"estimator": "norm"}), ({}, {"last": 0.1})],
    "ddim": [({}, {"eta": 0.5}), ({"eta": 1.0}, {"eta": 0.5})],
    **dict.fromkeys(("dpm_solver_12", "dpm_solver_23"), ADAPTIVE),
    **dict.fromkeys(("dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_3s"), SINGLESTEP),
    **dict.fromkeys(("dpm_solver_2m", "dpmpp_2m", "dpmpp_2m_sde"), MULTISTEP),
    **{name: [*MULTISTEP, ({}, {"corrected": True})] for name in ("dpm_solver_3m", "dpmpp_3m")},
    "dpm_solver_fast": [({}, {"predicts": "x0"}), ({}, {"uses": 2}), ({}, {"solver_type": "heun"})],
    "edm": [({}, change) for change in ({"churn": 2.0}, {"s_min": 0.5}, {"s_max": 5.0}, {"noise": 1.2})],
    "langevin": [({}, {"inner": 3}), ({}, {"rate": 0.4})],
    "predictor_corrector": [
        *(({}, {"predictor": word}) for word in ("euler_maruyama", "ddpm")),
        ({"predictor": "euler_maruyama"}, {"predictor": "ddpm"}),
        *(({}, change) for change in ({"snr": 0.4}, {"corrections": 2})),
    ],
    "rk45": [({"atol": 1e-12}, {"rtol": 1e-6}), ({"rtol": 1e-12}, {"atol": 1e-6})],
    "unipc": [
        *(({}, change) for change in ({"uses": 3}, {"variant": "bh1"}, {"variant": "vary_coeff"}, {"predicts": "eps"})),
        *(({"uses": uses}, {"lower_order_final": False}) for uses in (2, 3)),
    ],
}
"""Of each solver with options: what is said of them, and what is said instead of one."""


def test_no_option_of_a_solver_is_left_out():
    changed = {name: {option for _, change in pairs for option in change} for name, pairs in CHANGES.items()}
    options = {name: {f.name for f in dataclasses.fields(kind)} for name, kind in SOLVERS.items()}
    assert changed == {name: found for name, found in options.items() if found}


@pytest.mark.parametrize(
    ("name", "base", "change"), [(name, *pair) for name, pairs in CHANGES.items() for pair in pairs], ids=str
)
def test_every_option_changes_the_samples(name, base, change):
    path, ends = Trajectory((*interior(Linear(), 8).times, 0.0)), []
    path = path if name in ("analytic", "langevin") else Trajectory(path.times[:-1])
    for line in (base, base | change):
        solver = SOLVERS[name](**line)
        if name == "analytic":
            known = exact_gamma(gaussian(Linear()))
            unlike = known.moments.total * torch.tensor([[0.8], [1.0], [1.0]])  # exact estimates would be alike
            known = dataclasses.replace(known, moments=dataclasses.replace(known.moments, total=unlike))
            solver = solver.with_gamma(known)
        ends.append(Sampler(mixture(Linear()), solver, path).sample(randn(4, 2), numbered(4, 2)))
    assert float((ends[0] - ends[1]).abs().max()) > 1e-7
    assert all(end.isfinite().all() for end in ends)


def test_every_word_is_the_name_of_what_it_stands_for():
    """An exchange of two would be somebody's comparison of the wrong ones."""
    assert {word.replace("_solver", "").replace("_", ""): word for word in SOLVERS} == {
        kind.__name__.lower(): word for word, kind in SOLVERS.items()
    }
    assert {word: word for word in SCHEDULES} == {kind.__name__.lower(): word for word, kind in SCHEDULES.items()}
    assert all(reading.__name__ == f"from_{word}" for word, reading in PARAMETERIZATIONS.items())
    assert all(kind is SOLVERS[word] for word, kind in PREDICTORS.items())


NEW = '''
from dataclasses import dataclass

from diffcore.sampling.solvers.ancestral import DDIM


@dataclass(frozen=True)
class Mine(DDIM):
    """DDIM under another name."""

    word = "mine"
'''


def test_a_solver_is_one_file(tmp_path, monkeypatch):
    """A class with a word of its own in a file of the package; those without are what others are made of."""
    (tmp_path / "mine.py").write_text(NEW + "\n\nclass Part(DDIM):\n    pass\n")
    monkeypatch.setattr(solvers, "__path__", [*solvers.__path__, str(tmp_path)])
    found = {kind.word: kind for kind in solvers._solver_classes()}
    assert set(found) - set(SOLVERS) == {"mine"}
    assert name(found["mine"]()) == "mine"
    assert name(type("Unnamed", (found["mine"],), {})()) == "Unnamed"
    monkeypatch.delitem(sys.modules, "diffcore.sampling.solvers.mine")


def test_every_word_is_one_solver_s():
    kinds = list(solvers._solver_classes())
    assert len({kind.word for kind in kinds}) == len(kinds) == len(SOLVERS) >= 25
    assert all(name(kind()) == word for word, kind in SOLVERS.items())

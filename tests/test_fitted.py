import itertools

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers.ancestral import DDIM
from diffcore.sampling.solvers.rk45 import RK45
from diffcore.search import fitted
from tests.conftest import gaussian, make_schedule, mixture
from tests.test_condition import TwoBlobs

CONFIG = fitted.Config(points=12, images=40, batch=40, seed=3)


def weighed(hop_errors: np.ndarray, path: list[int], late: float) -> float:
    """path: falling nodes from N to 0."""
    return sum(late**m * hop_errors[i, j] for m, (i, j) in enumerate(itertools.pairwise(path)))


def at_random(points: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((points + 1, points + 1))
    return np.where(np.tril(np.ones_like(values), -1) > 0, values, np.inf)


def assert_least(hop_errors: np.ndarray, late: float) -> None:
    points, found = len(hop_errors) - 1, fitted.fit(hop_errors, late)
    assert list(found) == list(range(1, points + 1))
    for steps, path in found.items():
        every = [[points, *inner, 0] for inner in itertools.combinations(range(points - 1, 0, -1), steps - 1)]
        best = min(every, key=lambda nodes: weighed(hop_errors, nodes, late))
        assert path == Trajectory(tuple(n / points for n in best))


@pytest.mark.parametrize("late", [0.7, 1.0, 1.15, 3.0])
@pytest.mark.parametrize("points", [2, 3, 8])
def test_the_hops_are_the_best_of_all_subsets(points, late):
    for seed in range(3):
        assert_least(at_random(points, seed), late)


@pytest.mark.parametrize("late", [1.0, 1.15])
def test_the_hops_of_a_denoiser_are_the_best_of_all_subsets(late):
    denoiser = gaussian(make_schedule("linear"))
    assert_least(fitted.hop_errors(denoiser, denoiser, fitted.Config(9, 20, 20, 0), (2, 3)), late)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("word", ["cosine", "linear"])
def test_a_stray_by_hand(word, own):
    """From the teacher's x at i/N one DDIM step of the denoiser, against the teacher's own x at j/N."""
    teacher = gaussian(make_schedule(word))
    denoiser = teacher if own else GaussianDenoiser(teacher.mean + 0.1, 1.3 * teacher.variance, teacher.schedule)
    found = fitted.hop_errors(denoiser, teacher, CONFIG, (2, 3))
    x, path = noises((2, 3), CONFIG.seed, range(40), "hops"), {}
    path[12] = x
    for k in range(12, 0, -1):
        path[k - 1] = DDIM().step(teacher, path[k], per_sample(k / 12, x), per_sample((k - 1) / 12, x), None)
    for i, j in ((12, 11), (12, 0), (7, 3), (1, 0)):
        landed = DDIM().step(denoiser, path[i], per_sample(i / 12, x), per_sample(j / 12, x), None)
        away = float((landed - path[j]).square().mean().sqrt())
        assert found[i, j] == pytest.approx(away, rel=1e-5, abs=1e-6)
    assert np.isinf(found[np.triu_indices(13)]).all()
    assert np.isfinite(found[np.tril_indices(13, -1)]).all()


def test_where_one_hop_is_exact_nothing_strays():
    """Data that are one point: every belief is right, so all paths are straight arcs."""
    point = GaussianDenoiser(torch.full((2, 3), 0.4).double(), torch.zeros(2, 3).double(), make_schedule("cosine"))
    found = fitted.hop_errors(point, point, CONFIG, (2, 3))
    assert found[np.tril_indices(13, -1)].max() < 1e-6  # float32's
    bent = gaussian()
    assert fitted.hop_errors(bent, bent, CONFIG, (2, 3))[12, 0] > 0.1


@pytest.mark.parametrize("own", [True, False])
def test_denoisers_of_classes_are_told_them(own):
    """The hop errors of a batch of both classes are the mean squares over those of each class's own Gaussian."""
    blobs = TwoBlobs()
    other = blobs if own else TwoBlobs()
    labels = torch.tensor([0, 1, 1, 0, 1] * 8)
    found = fitted.hop_errors(other, blobs, fitted.Config(6, 40, 16, 3), (2,), condition=of_classes(labels))
    squares = torch.zeros(7, 7).double()
    for kind in (0, 1):
        single = GaussianDenoiser(blobs.means[kind], blobs.variances[kind], blobs.schedule)
        start = noises((2,), 3, range(40), "hops")[labels == kind]
        squares += fitted._squares(single, single, 6, start) / 40
    below = np.tril_indices(7, -1)
    np.testing.assert_allclose(found[below], squares.sqrt().numpy()[below], rtol=1e-4, atol=1e-6)


def test_the_teachers_own_hops_do_not_stray_but_a_students_do():
    teacher = gaussian()
    near = np.arange(1, 13), np.arange(12)
    assert fitted.hop_errors(teacher, teacher, CONFIG, (2, 3))[near].max() < 1e-6
    student = GaussianDenoiser(teacher.mean, 2 * teacher.variance, teacher.schedule)
    found = fitted.hop_errors(student, teacher, CONFIG, (2, 3))[near]
    assert found[:-1].min() > 1e-2
    assert found[-1] < 1e-6  # in pure noise both see nothing but the mean, which they share


def test_the_split_into_batches_changes_nothing():
    denoiser = mixture()
    one, other = (fitted.hop_errors(denoiser, denoiser, fitted.Config(8, 30, batch, 1), (2,)) for batch in (30, 7))
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_seed_gives_the_noise():
    denoiser = mixture()
    one, again, other = (
        fitted.hop_errors(denoiser, denoiser, fitted.Config(6, 10, 10, seed), (2,)) for seed in (1, 1, 2)
    )
    assert (one == again).all()
    assert (one != other).any()


def test_as_many_hops_as_points_are_the_grid():
    denoiser = mixture()
    for points in (2, 7, 20):
        found = fitted.fit(fitted.hop_errors(denoiser, denoiser, fitted.Config(points, 10, 10, 0), (2,)), 1.15)
        assert found[points] == uniform(points)
        assert found[1] == uniform(1)


def test_late_hops_that_count_more_become_shorter():
    denoiser = mixture()
    hop_errors = fitted.hop_errors(denoiser, denoiser, fitted.Config(40, 64, 64, 0), (2,))
    ends = [fitted.fit(hop_errors, late)[4].times[-2] for late in (1.0, 1.15, 1.5)]
    assert ends[0] > ends[1] > ends[2]


@pytest.mark.parametrize(("word", "steps", "factor"), [("linear", 4, 0.65), ("cosine", 2, 0.95), ("cosine", 3, 0.97)])
def test_fitted_times_end_nearer_the_flow_than_even_ones(word, steps, factor):
    """On other noise than they were fitted to. Even times suit the cosine schedule, whose angle is linear in t: at 4 steps
    both are alike there (0.152 and 0.153 when this was written)."""
    denoiser, config = mixture(make_schedule(word)), fitted.Config(60, 64, 64, 0)
    times = fitted.fit(fitted.hop_errors(denoiser, denoiser, config, (2,)), config.late)[steps]
    x = noises((2,), 7, range(300), "test").double()
    truth = Sampler(denoiser, RK45(rtol=1e-4, atol=1e-4), uniform(1)).sample(x)
    found, plain = (
        float((Sampler(denoiser, DDIM(), path).sample(x) - truth).square().mean().sqrt())
        for path in (times, uniform(steps))
    )
    assert found < factor * plain


def test_progress_counts_images():
    heard, denoiser = [], gaussian()
    config = fitted.Config(3, 10, 4, 0)
    fitted.hop_errors(denoiser, denoiser, config, (2, 3), lambda done, total: heard.append((done, total)))
    assert heard == [(4, 10), (8, 10), (10, 10)]


class Counting(GaussianDenoiser):
    calls = 0

    def forward(self, x_t, t):
        self.calls += len(x_t)
        return super().forward(x_t, t)


@pytest.mark.parametrize("own", [True, False])
def test_all_hops_cost_a_call_for_each_point(own):
    exact = gaussian()
    teacher, student = (Counting(exact.mean, exact.variance, exact.schedule) for _ in range(2))
    fitted.hop_errors(teacher if own else student, teacher, fitted.Config(9, 10, 4, 0), (2, 3))
    assert (teacher.calls, student.calls) == (90, 0 if own else 90)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_denoiser_with_steps_of_its_own_is_refused(role):
    free, bound = gaussian(), gaussian()
    bound.grid = uniform(4)
    pair = (bound, free) if role == "student" else (free, bound)
    with pytest.raises(UserError, match="valid at any time"):
        fitted.hop_errors(*pair, CONFIG, (2, 3))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"points": 1}, "points"), ({"images": 0}, "images"), ({"batch": 0}, "batch"), ({"late": 0.0}, "late")],
)
def test_impossible_numbers_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        fitted.Config(**{"points": 5, "images": 5, "batch": 5, "seed": 0, **wrong})

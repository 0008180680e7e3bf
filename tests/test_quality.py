"""The quality measures against closed forms, brute force and their own spread over independent sets."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.metrics import measures, mmd
from diffcore.metrics.bootstrap import RESAMPLES, resamples
from diffcore.metrics.estimate import Estimate, Variance, columns
from diffcore.metrics.features import Card, Config, Features, extract, train
from diffcore.metrics.frechet import Moments, Sway, frechet, sway
from diffcore.metrics.halvings import floor
from diffcore.metrics.measures import METRICS
from diffcore.metrics.measures.accuracy import accuracy
from diffcore.metrics.measures.rmse_teacher import rmse
from diffcore.metrics.metric import Subject
from diffcore.metrics.mmd import kernel, kid
from diffcore.metrics.reference import Part, Reference, Seen, look, pooled
from tests.conftest import randn, seeded

DISTANCES = ("fd", "kid", "fd_pixels")

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def f64(*values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moments(mean: Tensor, covariance: Tensor) -> Moments:
    return Moments(11, mean.double(), covariance.double() * 10)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


# --- moments


def test_moments_are_mean_and_covariance():
    x = randn(50, 4)
    torch.testing.assert_close(Moments.of(x).mean, x.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(Moments.of(x).covariance, x.T.cov(), rtol=0, atol=1e-14)


def test_merged_parts_are_the_whole_in_any_grouping():
    x = randn(60, 3) + torch.tensor([1e6, 0.0, -3.0])  # raw second moments would keep 4 digits of the first variance
    parts = [Moments.of(part) for part in x.split([1, 22, 0, 37])]
    whole = Moments.of(x)
    a, b, c, d = parts
    for merged in [((a + b) + c) + d, a + (b + (c + d)), (d + b) + (a + c), sum(parts, Moments.empty(3))]:
        assert merged.count == 60
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-15, atol=1e-14)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-7)


def test_nothing_and_nothing_is_nothing():
    assert (Moments.empty(2) + Moments.empty(2)).count == 0
    with pytest.raises(ValueError, match="at least 2 rows"):
        _ = Moments.of(randn(1, 2)).covariance


def test_repeats_are_repeated_rows():
    x, repeats = randn(6, 3), torch.tensor([0, 2, 1, 0, 4, 1])
    found, want = Moments.of(x, repeats.double()), Moments.of(x.repeat_interleave(repeats, 0))
    assert found.count == want.count == 8
    torch.testing.assert_close(found.mean, want.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.scatter, want.scatter, rtol=0, atol=1e-13)


# --- Frechet distance


def test_frechet_in_one_dimension():
    a, b = moments(f64(0.3), f64([4.0])), moments(f64(-0.5), f64([0.25]))
    assert frechet(a, b) == pytest.approx(0.8**2 + (2 - 0.5) ** 2, abs=1e-14)


def test_frechet_of_commuting_covariances():
    va, vb = f64(1.0, 4.0, 0.09), f64(2.0, 0.25, 1.0)
    gap = randn(3)
    want = (gap.square().sum() + (va.sqrt() - vb.sqrt()).square().sum()).item()
    for q in (torch.eye(3).double(), rotation(3)):
        a, b = moments(gap, q * va @ q.T), moments(torch.zeros(3), q * vb @ q.T)
        assert frechet(a, b) == pytest.approx(want, abs=1e-13)


def test_frechet_of_covariances_that_do_not_commute():
    # in two dimensions tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det A det B))
    a = f64([2.0, 0.7], [0.7, 1.0])
    b = f64([0.5, -0.3], [-0.3, 3.0])
    assert (a @ b - b @ a).abs().max() > 0.5
    trace = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    zero = torch.zeros(2)
    want = (a.trace() + b.trace() - 2 * trace).item()
    assert frechet(moments(zero, a), moments(zero, b)) == pytest.approx(want, abs=1e-14)


def test_frechet_is_that_of_the_matrix_formula_and_symmetric():
    scipy = pytest.importorskip("scipy.linalg")
    a, b = (
        Moments.of(randn(200, 6) @ randn(6, 6, seed=1)),
        Moments.of(randn(200, 6, seed=2) @ randn(6, 6, seed=3) + 0.5),
    )
    cross = scipy.sqrtm((a.covariance @ b.covariance).numpy()).real.trace()
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    assert frechet(a, b) == pytest.approx(float(apart - 2 * cross), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(100, 8), (5, 40)])
def test_equal_moments_are_at_distance_zero(n, d):
    x = randn(n, d) * torch.logspace(-6, 2, d).double()
    x[:, ::3] = 0.5  # as the corners of digits: no variance at all
    assert frechet(Moments.of(x), Moments.of(x)) < 1e-13 * Moments.of(x).covariance.trace().item()


@pytest.mark.parametrize("variance", [1e-3, 1e-6, 1e-10])
def test_frechet_keeps_its_digits_where_covariances_are_singular(variance):
    # the roots of A B's eigenvalues would be wrong by 1e-8 here, more than the last distance
    q = rotation(6)
    flat = f64(1.0, 0.5, 2.0, 0.0, 0.0, 0.0)
    more = f64(1.0, 0.5, 2.0, 0.0, 0.0, variance)
    a, b = moments(torch.zeros(6), q * flat @ q.T), moments(torch.zeros(6), q * more @ q.T)
    for one, other in ((a, b), (b, a)):
        assert frechet(one, other) == pytest.approx(variance, abs=2e-14)


def test_rotating_the_features_changes_nothing():
    x, y, q = randn(80, 5), randn(70, 5, seed=1) * 1.5 + 0.3, rotation(5, seed=2)
    assert frechet(Moments.of(x @ q), Moments.of(y @ q)) == pytest.approx(
        frechet(Moments.of(x), Moments.of(y)), rel=1e-12
    )
    assert kid(x @ q, y @ q) == pytest.approx(kid(x, y), rel=1e-11)


def test_frechet_of_few_samples_is_too_large_by_what_the_page_says():
    d, n = 32, 1000
    exact = moments(torch.zeros(d), torch.eye(d))
    found = sum(frechet(Moments.of(randn(n, d, seed=seed)), exact) for seed in range(20)) / 20
    assert found == pytest.approx(d**2 / (4 * n) + d / n, rel=0.1)


# --- kernel distance


def brute_kid(x: Tensor, y: Tensor) -> float:
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    xx = [k(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2)]
    yy = [k(y[i], y[j]) for i, j in itertools.permutations(range(len(y)), 2)]
    xy = [k(a, b) for a in x for b in y]
    return sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)


@pytest.mark.parametrize("rows", [4, 2048])
def test_kid_is_the_double_loop(monkeypatch, rows):
    monkeypatch.setattr(mmd, "ROWS", rows)  # several blocks, the last one short; or all in one
    x, y = randn(7, 3), randn(9, 3, seed=1) + 0.5
    assert kid(x, y) == pytest.approx(brute_kid(x, y), abs=1e-13)


def test_kid_is_unbiased():
    # in one dimension the squared MMD of the cubic kernel is |dm3|^2 + 3 |dm2|^2 + 3 |dm1|^2 of the raw moments m
    gap, scale = 0.4, 1.3
    m1, m2, m3 = gap, gap**2 + scale**2 - 1, gap**3 + 3 * gap * scale**2
    for want, shift, factor in [(0.0, 0.0, 1.0), (m3**2 + 3 * m2**2 + 3 * m1**2, gap, scale)]:
        x, y = randn(4000, 12, 1), randn(4000, 12, 1, seed=1) * factor + shift
        found = torch.tensor([kid(a, b) for a, b in zip(x, y)], dtype=torch.float64)
        error = found.std().item() / math.sqrt(len(found))
        assert abs(found.mean().item() - want) < 3 * error
        assert error < 0.3 * diagonal_bias()  # so that a forgotten diagonal would show


def diagonal_bias() -> float:
    # what 12 pairs (x, x) on the diagonals would add: (E k(x, x) - E k(x, x')) / 12 on either side, x standard normal
    return 2 * ((15 + 9 + 3 + 1) - 4) / 12


def test_kid_of_many_splits_of_one_set_is_zero():
    x = randn(400, 6) ** 3  # far from Gaussian
    found = torch.empty(200).double()
    for k in range(200):
        order = torch.randperm(400, generator=seeded(k))
        found[k] = kid(x[order[:200]], x[order[200:]])
    # halves of one finite set are a little anticorrelated, which widens the spread but cannot move the mean far
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(200)


# --- standard errors


def test_resamples_are_draws_with_replacement():
    repeats = resamples(500, seed=3)
    assert repeats.shape == (RESAMPLES, 500)
    assert (repeats.sum(1) == 500).all()
    assert repeats.var().item() == pytest.approx(1 - 1 / 500, rel=0.03)  # multinomial counts
    assert torch.equal(repeats, resamples(500, seed=3))
    assert not torch.equal(repeats, resamples(500, seed=4))


def exact(d: int) -> Moments:
    """Those of the normal distribution itself."""
    return Moments(1_000_001, torch.zeros(d).double(), 1e6 * torch.eye(d).double())


def orders(d: int, n: int, shift: float) -> tuple[float, float]:
    """V1 and V2 of the distance of n rows N(shift, 1)^d from `exact`: |mean|^2 + |A - I|^2 / 4 to second order, where the
    variance of |mean|^2 is 4 mu' S mu / n + 2 tr S^2 / n^2 and that of the other (d^2 + d) / 4 n^2."""
    return 4 * d * shift**2 / n, (2 * d + (d * d + d) / 4) / n**2


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
def test_the_error_of_frechet_counts_the_noise_of_pairs_once(monkeypatch, shift):
    """The slope says V1 + 2 V2 in the mean, and what weights bend V2: of which the error is the root of V1 + V2."""
    monkeypatch.setattr("diffcore.metrics.bootstrap.RESAMPLES", 30)
    d, n, sets = 4, 400, 60
    first, second = orders(d, n, shift)
    swayed = [sway(randn(n, d, seed=k) + shift, exact(d), resamples(n, k)).variance for k in range(sets)]
    slope, bend, total = (sum(getattr(each, key) for each in swayed) / sets for key in ("slope", "second", "total"))
    assert slope == pytest.approx(first + 2 * second, rel=0.15)
    assert bend == pytest.approx(second, rel=0.15)
    assert 0.9 < total / (first + second) < 1.45


def test_of_a_slope_and_a_bend_by_hand():
    assert Variance(5.0, 0.0).total == 5.0
    assert Variance(12.0, 1.0).total == pytest.approx(11.0, rel=0.01)  # V1 = 10
    assert Variance(2.0, 1.0).total == pytest.approx(4 / 3)
    assert Variance(2.0, 9.0).total == pytest.approx(4 / 3)  # more than half of the slope is no noise of pairs
    assert Variance(12.0, 1.0).with_pairs(4.0) == pytest.approx(math.sqrt(Variance(12.0, 1.0).total + 3))
    assert Variance(12.0, 1.0).with_pairs(1.0) == Variance(12.0, 1.0).se
    assert Variance(0.0, 0.0).se == Variance(0.0, 1.0).se == 0.0


@pytest.mark.parametrize(("n", "d", "corners"), [(60, 8, False), (12, 40, False), (60, 12, True)])
def test_bends_are_what_weights_add_to_the_slope_by_exact_distances(n, d, corners):
    """By singular values: of full rank, of fewer samples than features, of some without variance."""
    x, y = randn(n, d) * torch.logspace(-2, 1, d).double() + 0.1, randn(90, d, seed=1)
    if corners:
        x[:, ::3], y[:, ::3] = 0.5, 0.5
    against, repeats = Moments.of(y), resamples(n, 0)[:20]
    moved = sway(x, against, repeats)
    weights = 1 + (repeats - 1) / 2
    again = torch.tensor([frechet(Moments.of(x, row), against) for row in weights], dtype=torch.float64)
    want = 4 * (again - (weights - 1) @ moved.slopes / n)
    assert moved.bends.std().item() == pytest.approx(want.std().item(), rel=1e-6)
    # a twentieth of the change bends a hundredth as much: nothing of the slope is left in it
    near = 1 + (repeats - 1) / 40
    few = torch.tensor([frechet(Moments.of(x, row), against) for row in near], dtype=torch.float64)
    rest = (few - (near - 1) @ moved.slopes / n).std().item()
    assert 0.5 < 1600 * rest / want.std().item() < 2


def test_the_sway_of_a_difference_is_that_of_one_statistic():
    x, y, repeats = randn(50, 3), Moments.of(randn(80, 3, seed=1)), resamples(50, 0)[:30]
    one, other = (sway(each, y, repeats) for each in (x + 0.3, 1.2 * x))
    apart = other - one
    assert apart.variance.slope == pytest.approx((other.slopes - one.slopes).var().item() / 50)
    assert apart.variance.second == pytest.approx((other.bends - one.bends).var().item())
    assert (one - one).se == 0
    again = Sway.from_json(json.loads(json.dumps(one.to_json())))
    assert torch.equal(again.slopes, one.slopes)
    assert torch.equal(again.bends, one.bends)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("kind", ["normal", "equal rows", "constant features", "none apart"])
def test_errors_of_few_or_degenerate_rows_are_numbers(n, kind):
    y = randn(40, 6, seed=1)
    x = {"equal rows": torch.ones(n, 6).double(), "none apart": y[:n]}.get(kind, randn(n, 6))
    if kind == "constant features":
        x, y = (torch.cat([each[:, :3], torch.ones(len(each), 3).double()], 1) for each in (x, y))
    own = sway(x, Moments.of(y), resamples(n, 0)).se
    errors = own, mmd.estimate(x, y, mmd.mean_of_pairs(y)).se
    assert all(math.isfinite(each) and each >= 0 for each in errors)
    assert all(each > 0 for each in errors) or kind == "equal rows"


def test_kid_and_its_spread_hold_a_tile_of_the_kernel_at_a_time(monkeypatch):
    """Never more than ROWS x ROWS of its elements, whatever n and m; the values are those of the whole matrices."""
    x, y = randn(61, 3), randn(83, 3, seed=1) + 0.2
    within, across = kernel(x, x).fill_diagonal_(0), kernel(x, y)
    plain = within.sum() / (61 * 60) + pair_mean(y) - 2 * across.mean()
    slopes = 2 * (within.sum(1) / 60 - across.mean(1))
    held = []
    monkeypatch.setattr(mmd, "ROWS", 16)
    monkeypatch.setattr(mmd, "kernel", lambda a, b: held.append(len(a) * len(b)) or kernel(a, b))
    own = mmd.estimate(x, y, mmd.mean_of_pairs(y))
    assert own.value == pytest.approx(plain.item(), rel=1e-11)
    assert own.se == pytest.approx(slopes.std().item() / math.sqrt(61), rel=1e-11)
    assert max(held) == 16 * 16
    assert sum(held) >= 61 * 60 / 2 + 61 * 83


def test_the_slopes_of_kid_are_its_derivatives():
    """Of the pairs of distinct rows and the affinity, each row weighted, by the weight of a row."""
    x, y, step = randn(8, 3), randn(9, 3, seed=1), 1e-5
    within, across = kernel(x, x).fill_diagonal_(0), kernel(x, y).mean(1)

    def weighted(k: int, more: float) -> float:
        share = torch.full((8,), 1 / 8).double()
        share[k] += more
        share /= share.sum()
        return ((share @ within @ share) / (1 - share.square().sum()) - 2 * share @ across).item()

    want = torch.tensor([(weighted(k, step) - weighted(k, -step)) / (2 * step) for k in range(8)])
    slopes = mmd.scored(x, y, 0.0)[1]
    torch.testing.assert_close(slopes - slopes.mean(), (want - want.mean()).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shift", "factor", "low", "high"),
    [
        (0.5, 1.0, 0.8, 1.25),
        pytest.param(0.0, 1.4, 0.8, 1.4, marks=pytest.mark.slow),
        (0.0, 1.0, 0.85, 1.6),
    ],  # the last: real samples, where kid's counts the noise of pairs twice
)
def test_standard_errors_are_the_spread_over_independent_sets(monkeypatch, shift, factor, low, high):
    monkeypatch.setattr("diffcore.metrics.bootstrap.RESAMPLES", 100)
    real, sets = randn(1000, 4, seed=99), 60  # a spread of 60 sets is itself known to 9 %
    against = Moments.of(real)
    fd, fd_se, kd, kd_se = torch.empty(4, sets).double()
    for k in range(sets):
        x = randn(250, 4, seed=k) * factor + shift
        repeats = resamples(250, k)
        fd[k], fd_se[k] = frechet(Moments.of(x), against), sway(x, against, repeats).se
        kd[k], kd_se[k] = kid(x, real), mmd.estimate(x, real, 0.0).se
    assert low < (fd_se.mean() / fd.std()).item() < high
    assert low < (kd_se.mean() / kd.std()).item() < high


# --- pixels and fidelity


def test_pixels_of_small_images_are_taken_as_they_are():
    x = randn(3, 2, 8, 8)
    assert torch.equal(pooled(x), x.flatten(1))
    assert pooled(randn(3, 1, 5, 12)).shape == (3, 5 * 8)


def test_pixels_of_large_images_are_averaged():
    x = randn(3, 3, 32, 32)
    want = x.reshape(3, 3, 8, 4, 8, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(pooled(x), want, rtol=0, atol=1e-14)


def test_fidelity_by_hand():
    x = randn(6, 1, 4, 4).float()
    assert rmse(x, x) == Estimate(0.0, 0.0)
    found = rmse(x + 0.25, x)
    assert found.value == pytest.approx(0.25, abs=1e-6)
    assert found.se == pytest.approx(0, abs=1e-7)
    uneven = x.clone()
    uneven[0] += 1.2
    assert rmse(uneven, x).value == pytest.approx(math.sqrt(1.2**2 / 6), rel=1e-5)
    # the mean square of 4 normal numbers has variance 2 / 4
    normal = randn(5000, 1, 2, 2)
    assert rmse(normal, torch.zeros_like(normal)).se == pytest.approx(math.sqrt(2 / 4 / 5000) / 2, rel=0.1)


def test_standard_error_of_fidelity_is_the_spread_over_independent_noises():
    found = [rmse(randn(100, 6, seed=k).cumsum(1), torch.zeros(100, 6).double()) for k in range(300)]
    spread = torch.tensor([one.value for one in found], dtype=torch.float64).std().item()
    assert sum(one.se for one in found) / 300 == pytest.approx(spread, rel=0.15)


def test_fidelity_wants_pairs():
    with pytest.raises(ValueError, match="two equal shapes"):
        rmse(randn(1, 3), randn(1, 3))
    with pytest.raises(ValueError, match="two equal shapes"):
        rmse(randn(4, 3), randn(4, 2))


# --- the whole


def blobs(count: int, seed: int = 0) -> Tensor:
    """Grey 8x8 pictures of one soft spot each, uint8: somewhere, of some brightness."""
    place = torch.rand(count, 2, 1, 1, generator=seeded(seed)) * 4 + 2
    bright = torch.rand(count, 1, 1, generator=seeded(seed + 1000)) * 100 + 155
    axis = torch.arange(8.0)
    spot = bright * torch.exp(-((axis[:, None] - place[:, 0]) ** 2 + (axis - place[:, 1]) ** 2) / 3)
    return spot.round().to(torch.uint8)[:, None]


def pictures(pixels: Tensor) -> Images:
    return Images(pixels, None, None)


def measure(x: Tensor, reference: Reference, features: Features, seed: int) -> dict[str, Estimate]:
    """What every distance says of samples."""
    return measures.measure(Subject(x, reference, features, seed))


def compared(seen: Seen, reference: Reference, seed: int) -> dict[str, Estimate]:
    """What every distance says of images that have been looked at."""
    return {name: METRICS[name].compare(seen, reference, resamples(len(seen), seed)) for name in DISTANCES}


def in_blocks(monkeypatch, size: int) -> None:
    """Images, and rows and columns of the kernel, so many at a time."""
    monkeypatch.setattr("diffcore.metrics.reference.BLOCK", size)
    monkeypatch.setattr(mmd, "ROWS", size)


@pytest.fixture(scope="module")
def network() -> Features:
    torch.set_num_threads(1)
    images = blobs(400)
    return train(pictures(images), Config(channels=8, dimension=8, iterations=60, batch=32, lr=4e-3, seed=0))


@pytest.fixture(scope="module")
def reference(network) -> Reference:
    return Reference.of(pictures(blobs(400)), network)


def test_real_images_are_at_distance_zero_of_themselves(network, reference):
    found = measure(to_float(blobs(400)), reference, network, 0)
    assert reference.count == 400
    assert found["fd"].value < 1e-9
    assert found["fd_pixels"].value < 1e-9


def test_measure_is_made_of_its_parts(network, reference):
    x, real = to_float(blobs(100, seed=5)), to_float(blobs(400))
    found, seen, against = measure(x, reference, network, 0), extract(network, x), extract(network, real)
    assert found["fd"].value == pytest.approx(frechet(Moments.of(seen), Moments.of(against)), rel=1e-6)
    assert found["kid"].value == pytest.approx(kid(seen, against), rel=1e-5, abs=1e-8)
    pixels = frechet(Moments.of(x.flatten(1)), Moments.of(real.flatten(1)))
    assert found["fd_pixels"].value == pytest.approx(pixels, rel=1e-9)
    repeats = resamples(100, 0)
    assert found["fd"].se == pytest.approx(sway(seen, Moments.of(against), repeats).se, rel=1e-5)
    assert found["kid"].se == pytest.approx(mmd.estimate(seen, against, 0.0).se, rel=1e-5)
    against = Moments.of(real.flatten(1))
    assert found["fd_pixels"].se == pytest.approx(sway(x.flatten(1), against, repeats).se, rel=1e-5)


def test_every_distance_grows_with_noise(network, reference):
    x, noise = to_float(blobs(300, seed=5)), randn(300, 1, 8, 8).float()
    found = [measure(x + level * noise, reference, network, 0) for level in (0.0, 0.1, 0.2, 0.4, 0.8)]
    for name in ("fd", "kid", "fd_pixels"):
        values = [one[name].value for one in found]
        assert values == sorted(values), name
        assert values[-1] - values[0] > 10 * found[0][name].se, name


def test_same_numbers_for_any_batch(monkeypatch, network, reference):
    x = to_float(blobs(50, seed=5))
    whole = columns(measure(x, reference, network, 0))
    monkeypatch.setattr("diffcore.metrics.reference.extract", lambda features, x: extract(features, x, batch=7))
    in_blocks(monkeypatch, 64)
    parts = columns(measure(x, Reference.of(pictures(blobs(400)), network), network, 0))
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_the_bootstrap_has_its_seed(network, reference):
    x = to_float(blobs(50, seed=5))
    first, again, other = (measure(x, reference, network, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["fd"].value == other["fd"].value
    bends = [Subject(x, reference, network, seed).sway.bends for seed in (0, 1)]
    assert not torch.equal(*bends)


def test_samples_are_measured_as_8_bit_images(network, reference):
    x = to_float(blobs(50, seed=5))
    dusty = x + 0.9 / 255 * (2 * torch.rand(x.shape, generator=seeded()) - 1)  # less than half a level either way
    beyond = torch.where(x > 0.5, x + 5, x)
    assert measure(dusty, reference, network, 0) == measure(x, reference, network, 0)
    assert measure(beyond, reference, network, 0) == measure(beyond.clamp(max=1), reference, network, 0)


def normal_images(count: int, seed: int = 0) -> Tensor:
    """Noise on grey as uint8 [n, 1, 4, 4]: pixels of full rank, alike in distribution for every seed."""
    return (torch.randn(count, 1, 4, 4, generator=seeded(seed)) * 30 + 128).round().clamp(0, 255).to(torch.uint8)


class Flat(Features):
    """Stands in for a feature network: the pixels themselves."""

    digest = "flat"

    def __init__(self):
        config = Config(channels=8, dimension=16, iterations=1, batch=1, lr=1e-3, seed=0)
        super().__init__(Card(config, (1, 4, 4), "rotations", 4, 10, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x.flatten(1)


class Bright(Flat):
    """Sees class 0 in a dark picture and class 1 in a bright one."""

    def __init__(self):
        super().__init__()
        self.card = dataclasses.replace(self.card, task="classes", outputs=2)

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)


def test_accuracy_counts_the_classes_that_occur_and_has_the_error_of_a_mean():
    """Of four pictures three are what was asked for; the network's classes 0 and 1 are the data's 3 and 7."""
    samples = torch.tensor([-0.5, 0.5, 0.5, -0.5])[:, None, None, None].expand(4, 1, 4, 4)
    found = accuracy(samples, torch.tensor([3, 7, 7, 7]), torch.tensor([7, 3, 7]), Bright())
    assert found.value == 0.75
    assert found.se == pytest.approx((0.25 / 4) ** 0.5, rel=1e-12)  # variance 0.1875 x 4 / 3


class Faint(Bright):
    """Sees class 1 in whatever has a pixel that no image file can hold."""

    def logits(self, x: Tensor) -> Tensor:
        level = (x + 1) * 127.5
        odd = ((level - level.round()).abs() > 1e-3).flatten(1).any(1) | (x.abs() > 1).flatten(1).any(1)
        return F.one_hot(odd.long(), 2).float()


def test_the_accuracy_is_of_the_images_that_are_kept():
    samples = 1.5 * randn(20, 1, 4, 4).float()
    asked, real = torch.zeros(20, dtype=torch.int64), torch.tensor([0, 1])
    assert accuracy(samples, asked, real, Faint()).value == 1.0
    assert accuracy(samples.clamp(-1, 1), asked, real, Faint()).value == 1.0


@pytest.mark.parametrize("most", [1, 7, 30, 99, 100, 1000])
@pytest.mark.parametrize("rows", [7, 64, 2048])
def test_of_many_images_the_same_ones_are_looked_at_whatever_the_blocks(monkeypatch, rows, most):
    """The first so many of one order of them all."""
    images = normal_images(100)
    whole = Seen.of(to_float(images), Flat())
    in_blocks(monkeypatch, rows)
    found = look(pictures(images), Flat(), most)
    order = torch.randperm(100, generator=generator("real images", 100))
    chosen = order < most
    assert int(chosen.sum()) == min(most, 100)
    assert torch.equal(found.features, whole.features[chosen])
    assert torch.equal(found.pixels, whole.pixels[chosen])


@pytest.mark.parametrize(("count", "real"), [(300, 400), (60, 400), (1000, 101)])
def test_the_floor_is_what_a_perfect_sampler_scores_at_the_counts_of_the_table(monkeypatch, count, real):
    """Samples that are new images of the data's own distribution, against as many real images: on average the floor."""
    monkeypatch.setattr("diffcore.metrics.reference.GROUPS", 40)
    monkeypatch.setattr("diffcore.metrics.halvings.SPLITS", 6)
    scores, floors = [], []
    for seed in range(24):
        reference = Reference.of(pictures(normal_images(real, seed)), Flat())
        fresh = Seen.of(to_float(normal_images(count, 1000 + seed)), Flat())
        seen = Part.of(fresh)
        own = frechet(seen.features, reference.whole.features), kid(fresh.features, reference.rows)
        scores.append((*own, frechet(seen.pixels, reference.whole.pixels)))
        found = floor(reference, count, 0)
        floors.append([found.metrics[name].value for name in DISTANCES])
        assert found.n == (count, real)
        assert found.compared == (real // 2, real - real // 2)
    scores, floors = torch.tensor(scores).double(), torch.tensor(floors).double()
    error = (scores.var(0) + floors.var(0)).div(24).sqrt()
    assert ((scores.mean(0) - floors.mean(0)).abs() < 4 * error).all()
    unscaled = (scores / floors).mean(0)[0] * (1 / count + 1 / real) / (4 / real)
    assert abs(unscaled - 1) > 0.2  # what a floor at the halves' own counts would be off by


def test_the_floors_error_is_its_spread_over_data_sets(monkeypatch):
    monkeypatch.setattr("diffcore.metrics.reference.GROUPS", 40)
    monkeypatch.setattr("diffcore.metrics.halvings.SPLITS", 10)
    found = [floor(Reference.of(pictures(normal_images(400, seed)), Flat()), 300, 0) for seed in range(20)]
    for key in ("fd", "fd_pixels"):
        spread = torch.tensor([one.metrics[key].value for one in found]).std().item()
        assert 0.5 < sum(one.metrics[key].se for one in found) / 20 / spread < 1.7
    kids = torch.tensor([one.metrics["kid"].value for one in found])
    assert abs(kids.mean()) < 4 * kids.std() / 20**0.5
    assert 0.3 < sum((one.metrics["kid"].value / one.metrics["kid"].se) ** 2 for one in found) / 20 < 3


def test_the_halves_of_the_floor_are_disjoint_and_together_all(monkeypatch):
    monkeypatch.setattr("diffcore.metrics.reference.GROUPS", 32)
    monkeypatch.setattr("diffcore.metrics.halvings.SPLITS", 16)
    reference, halves = Reference.of(pictures(normal_images(101)), Flat()), []
    monkeypatch.setattr("diffcore.metrics.measures.fd.frechet", lambda a, b: halves.append((a, b)) or frechet(a, b))
    found = floor(reference, 50, 0)
    assert len(halves) == 2 * 16
    for a, b in halves[::2]:
        assert (a.count + b.count, abs(a.count - b.count) <= 16) == (101, True)
        torch.testing.assert_close((a + b).scatter, reference.whole.features.scatter, rtol=1e-9, atol=1e-9)
    assert len({round(a.mean[0].item(), 9) for a, _ in halves[::2]}) == 16
    assert found == floor(reference, 50, 0) != floor(reference, 50, 1)


@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_held_out_images_are_the_floor_with_what_sets_them_apart(monkeypatch, apart):
    """The floor of held-out images at the counts of the table: their true distance and the bias of N against M."""
    monkeypatch.setattr("diffcore.metrics.reference.GROUPS", 40)
    monkeypatch.setattr("diffcore.metrics.halvings.SPLITS", 6)
    monkeypatch.setattr("diffcore.metrics.bootstrap.RESAMPLES", 4)
    found, want = [], []
    for seed in range(24):
        reference = Reference.of(pictures(normal_images(400, seed)), Flat())
        held, fresh = (
            Seen.of(to_float(normal_images(n, first + seed)) + apart / 4, Flat())
            for n, first in ((60, 100), (300, 500))
        )
        one = floor(reference, 300, 0, held)
        found.append((one.fd, one.metrics["fd_pixels"].value))
        seen = Part.of(fresh)
        want.append((frechet(seen.features, reference.whole.features), frechet(seen.pixels, reference.whole.pixels)))
        assert (one.n, one.compared, one.real) == ((300, 400), (60, 400), "held-out")
    found, want = torch.tensor(found).double(), torch.tensor(want).double()
    error = (found.var(0) + want.var(0)).div(24).sqrt()
    assert ((found.mean(0) - want.mean(0)).abs() < 4 * error).all()


def test_the_floor_of_held_out_images_by_hand(monkeypatch):
    """Their own score, moved by what N samples have more of the halves' floor than they; errors in quadrature."""
    monkeypatch.setattr("diffcore.metrics.halvings.SPLITS", 5)
    monkeypatch.setattr("diffcore.metrics.bootstrap.RESAMPLES", 4)
    reference = Reference.of(pictures(normal_images(80)), Flat())
    held = Seen.of(to_float(normal_images(30, 7)), Flat())
    for count in (12, 30, 200):
        halves, score = floor(reference, count, 3), compared(held, reference, 3)
        share = (1 / count - 1 / 30) / (1 / count + 1 / 80)
        assert share == 0 if count == 30 else abs(share) > 0.1
        found = floor(reference, count, 3, held)
        for key in ("fd", "fd_pixels"):
            one, other = score[key], halves.metrics[key]
            assert found.metrics[key].value == pytest.approx(one.value + share * other.value, rel=1e-9)
            error = math.hypot(one.se, share * other.se)
            assert found.metrics[key].se == pytest.approx(error, rel=1e-9)
        assert found.metrics["kid"] == score["kid"]
        assert (found.n, found.compared, found.real) == ((count, 80), (30, 80), "held-out")
        assert (halves.n, halves.compared, halves.real) == ((count, 80), (40, 40), "halves")


def test_progress_counts_real_images_and_all_of_them_are_looked_at(monkeypatch):
    in_blocks(monkeypatch, 7)
    heard = []
    Reference.of(pictures(normal_images(24)), Flat(), lambda done, total: heard.append((done, total)))
    assert heard == [(7, 24), (14, 24), (21, 24), (24, 24)]


def test_the_fewest_images_that_can_be_compared():
    found = floor(Reference.of(pictures(normal_images(4)), Flat()), 10, 0)
    assert found.compared == (2, 2)
    assert len(look(pictures(normal_images(2)), Flat())) == 2
    with pytest.raises(UserError, match="must be at least 2, there are 1"):
        look(pictures(normal_images(1)), Flat())


def test_real_images_in_any_blocks_are_the_same_reference(monkeypatch, network):
    """Blocks of another size, as from a data set that is streamed: the same parts, rows, digest and measures."""
    whole = Reference.of(pictures(blobs(100)), network)
    in_blocks(monkeypatch, 7)
    parts = Reference.of(pictures(blobs(100)), network)
    assert parts.digest == whole.digest
    assert torch.equal(parts.sizes, whole.sizes)
    torch.testing.assert_close(parts.rows, whole.rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.kernels, whole.kernels, rtol=1e-4, atol=1e-4)
    for one, other in zip(parts.parts, whole.parts):
        torch.testing.assert_close(one.features.scatter, other.features.scatter, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.pixels.scatter, other.pixels.scatter, rtol=1e-9, atol=1e-9)
    assert whole.pairs == pytest.approx(pair_mean(whole.rows), rel=1e-9)


def pair_mean(x: Tensor) -> float:
    every = kernel(x, x).fill_diagonal_(0)
    return (every.sum() / (len(x) * (len(x) - 1))).item()


@pytest.mark.parametrize("rows", [7, 2048])
def test_kid_of_groups_is_kid_of_their_rows(monkeypatch, rows):
    monkeypatch.setattr(mmd, "ROWS", rows)
    x = randn(40, 3)
    group = torch.randint(4, (40,), generator=seeded(1))
    kernels = mmd.sums_of_groups(x, group, 4)
    found = mmd.kid_of_groups(kernels, group.bincount().double(), torch.tensor([1.0, 0.0, 0.0, 1.0]).double())
    chosen = (group == 0) | (group == 3)
    assert found == pytest.approx(kid(x[chosen], x[~chosen]), rel=1e-11)
    for one, other in itertools.product(range(4), repeat=2):
        pairs = kernel(x[group == one], x[group == other])
        want = (pairs if one != other else pairs.fill_diagonal_(0)).sum()
        torch.testing.assert_close(kernels[one, other], want, rtol=1e-11, atol=1e-11)


def test_more_real_images_than_kid_takes_are_drawn_for_it(monkeypatch, network):
    monkeypatch.setattr("diffcore.metrics.reference.KERNEL_ROWS", 30)
    found = Reference.of(pictures(blobs(100)), network)
    every = extract(network, to_float(blobs(100)))
    assert len(found.rows) == found.sizes.sum() == 30
    assert found.count == 100
    at = [int((every - row).abs().amax(1).argmin()) for row in found.rows]
    assert len(set(at)) == 30
    assert max(at) > 60 > 40 > min(at)
    held = look(pictures(blobs(100)), network, 30)
    assert sorted(map(tuple, held.features.tolist())) == sorted(map(tuple, found.rows.tolist()))


def test_the_digest_of_a_reference_covers_images_and_network(network, reference):
    assert Reference.of(pictures(blobs(400)), network).digest == reference.digest
    assert Reference.of(pictures(blobs(400).flip(0)), network).digest != reference.digest
    assert Reference.of(pictures(blobs(400).reshape(400, 1, 4, 16)), network).digest != reference.digest
    other = train(pictures(blobs(40)), dataclasses.replace(network.card.config, iterations=1))
    assert Reference.of(pictures(blobs(400)), other).digest != reference.digest
    with pytest.raises(ValueError, match="another feature network"):
        measure(to_float(blobs(10)), reference, other, 0)


def test_mistakes(network, reference):
    x = to_float(blobs(10))
    x[3, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="1 of 10 samples are not finite"):
        measure(x, reference, network, 0)
    with pytest.raises(UserError, match=r"shape \[1, 8, 8\]"):
        measure(torch.zeros(10, 1, 9, 9), reference, network, 0)
    with pytest.raises(UserError, match="at least 2 samples"):
        measure(x[:1], reference, network, 0)
    with pytest.raises(UserError, match="at least 4 real images"):
        Reference.of(pictures(blobs(3)), network)

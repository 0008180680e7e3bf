"""Precision, recall, density, coverage, copies, extrapolated and sliced distances: by hand, closed forms, their spread."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcore.metrics import copies, infinity, mmd, neighbours, proportion, sliced
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, frechet, sway
from diffcore.metrics.measures import METRICS
from diffcore.metrics.neighbours import NARROW, WIDE, Holders, Neighbours, Reach, nearest, squared_distances
from tests.conftest import randn, seeded

pytestmark = pytest.mark.usefixtures("without_shape_checks")


class Looked:
    """Stands in for a Subject: features as they are."""

    def __init__(self, x: Tensor, y: Tensor, own: Tensor | None = None):
        self.reach = Reach.of(x, Neighbours.of(x, most=WIDE), y, nearest(y) if own is None else own)


def prdc(x: Tensor, y: Tensor) -> dict[str, Estimate]:
    subject = Looked(x, y)
    return {name: METRICS[name].measure(subject) for name in ("improved_precision", "recall", "density", "coverage")}


def by_hand(x: Tensor, y: Tensor, k: int) -> dict[str, float]:
    """The four definitions by whole matrices of exact distances, each with k neighbours (arXiv 2002.09797, section 2)."""
    across = (y[:, None] - x[None]).norm(dim=2)
    reach_y, reach_x = ((rows[:, None] - rows[None]).norm(dim=2).sort(1).values[:, k] for rows in (y, x))
    inside = across < reach_y[:, None]
    return {
        "improved_precision": inside.any(0).double().mean().item(),
        "recall": (across < reach_x).any(1).double().mean().item(),
        "density": inside.sum(0).double().mean().item() / k,
        "coverage": (across.min(1).values < reach_y).double().mean().item(),
    }


# --- precision, recall, density, coverage


@pytest.mark.parametrize("rows", [7, 64, 2048])
@pytest.mark.parametrize(("n", "m", "shift"), [(60, 90, 0.0), (90, 60, 1.0), (50, 50, 3.0)])
def test_they_are_their_definitions(monkeypatch, n, m, shift, rows):
    monkeypatch.setattr(neighbours, "ROWS", rows)  # several tiles, the last one short; or all in one
    x, y = randn(n, 4) * 0.8 + shift, randn(m, 4, seed=1)
    narrow, wide, values = by_hand(x, y, NARROW), by_hand(x, y, WIDE), prdc(x, y)
    want = {name: (wide if name in ("density", "coverage") else narrow)[name] for name in values}
    assert {name: each.value for name, each in values.items()} == pytest.approx(want, abs=1e-12)


def test_they_hold_a_tile_of_the_distances_at_a_time(monkeypatch):
    held = []
    monkeypatch.setattr(neighbours, "ROWS", 16)
    plain = squared_distances
    monkeypatch.setattr(neighbours, "squared_distances", lambda a, b: held.append(len(a) * len(b)) or plain(a, b))
    prdc(randn(61, 3), randn(83, 3, seed=1))
    assert max(held) == 16 * 16
    assert sum(held) == 61 * 61 + 83 * 83 + 61 * 83


@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize("rows", [5, 2048])
def test_nearest_are_the_first_of_all(monkeypatch, rows, most):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    x, y = randn(23, 3), randn(17, 3, seed=1)
    across, within = ((x[:, None] - other[None]).square().sum(2).sort(1).values for other in (y, x))
    torch.testing.assert_close(nearest(x, y, most), across[:, :most], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nearest(x, most=most), within[:, 1 : most + 1], rtol=1e-12, atol=1e-12)
    assert nearest(x[:4]).shape == (4, 3)
    assert nearest(x, y[:2]).shape == (23, 2)


def test_equal_rows_are_at_distance_zero_and_within_no_reach_of_zero():
    x = randn(30, 8) * 1e3
    assert (squared_distances(x, x.clone()).diagonal() == 0).all()
    same = x[:1].expand(20, 8)
    assert prdc(same, same)["coverage"].value == 0  # as prdc: nearer than, not as near as


def test_equal_sets_and_sets_far_apart():
    x = randn(200, 4)
    whole, apart = prdc(x, x), prdc(x + 100, x)
    assert [whole[name].value for name in ("improved_precision", "recall", "coverage")] == [1.0, 1.0, 1.0]
    assert {each.value for each in apart.values()} == {0.0}
    assert all(each.se > 0 for each in (*whole.values(), *apart.values()))  # n that agree do not say that all do


def test_new_real_images_have_the_values_that_their_papers_expect():
    """Density 1, and all but those whose WIDE nearest of n + m - 1 are real (arXiv 2002.09797, section 4.3)."""
    n, m, sets = 120, 200, 40
    values = [prdc(randn(n, 3, seed=k), randn(m, 3, seed=1000 + k)) for k in range(sets)]
    missed = math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(WIDE))
    for name, want in {"density": 1.0, "coverage": 1 - missed}.items():
        found = torch.tensor([one[name].value for one in values])
        assert abs(found.mean() - want) < 3.5 * found.std() / math.sqrt(sets), name


def test_a_mode_that_is_left_out_is_seen_by_recall_and_coverage_alone():
    modes = torch.tensor([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0], [40.0, 40.0]]).double()
    real = randn(800, 2) + modes[torch.arange(800) % 4]
    few = prdc(randn(400, 2, seed=1) + modes[torch.arange(400) % 3], real)
    assert few["improved_precision"].value > 0.95
    assert few["density"].value == pytest.approx(1.0, abs=0.15)
    assert 0.6 < few["recall"].value < 0.751
    assert 0.6 < few["coverage"].value < 0.751


# --- standard errors


def spread(values: list[Estimate]) -> float:
    """The mean stated error beside the spread of the values."""
    found, stated = (torch.tensor([getattr(each, key) for each in values]).double() for key in ("value", "se"))
    return (stated.mean() / found.std()).item()


@pytest.mark.parametrize(
    ("shift", "scale", "bounds"),
    [
        (
            0.0,
            1.0,
            {"improved_precision": (0.8, 1.25), "density": (0.8, 1.25), "recall": (0.8, 1.5), "coverage": (0.8, 1.3)},
        ),
        (
            0.7,
            0.7,
            {"improved_precision": (0.8, 1.25), "density": (0.8, 1.25), "recall": (0.8, 1.5), "coverage": (0.8, 1.3)},
        ),
    ],
    ids=["new real images", "others"],
)
def test_the_stated_errors_are_the_spread_over_fresh_samples(shift, scale, bounds):
    y, sets = randn(250, 4, seed=99), 80  # a spread of 80 sets is itself known to 8 %
    own = nearest(y)
    subjects = [Looked(randn(200, 4, seed=k) * scale + shift, y, own) for k in range(sets)]
    for name, (low, high) in bounds.items():
        assert low < spread([METRICS[name].measure(each) for each in subjects]) < high, name


def test_the_error_of_a_share_by_hand():
    one = proportion.of_samples(torch.arange(400) < 100)
    assert one.value == 0.25
    assert one.se == pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.01)
    assert proportion.of_samples(torch.ones(400) > 0).se == pytest.approx(math.sqrt(2) / 400, rel=0.02)
    assert proportion.of_samples(torch.arange(400) < 3).se == pytest.approx(math.sqrt(5) / 400, rel=0.02)


@pytest.mark.parametrize("events", [2.9, 4.0, 6.0, 10.0, 17.0, 40.0])
def test_the_interval_of_a_few_events_covers_as_many_as_it_says(events):
    """About the plain share, of 2000 samples; the probability of each count is exact."""
    n, share = 2000, events / 2000
    chances = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(120)]
    estimates = [proportion.of_samples(torch.arange(n) < k) for k in range(120)]
    inside = [chance for chance, each in zip(chances, estimates) if abs(each.value - share) <= 1.96 * each.se]
    assert 0.925 < sum(inside) < 0.985


@pytest.mark.parametrize(("n", "cells", "clump"), [(200, 200, 1), (200, 100, 3), (60, 120, 5), (240, 80, 2)])
def test_the_error_of_what_is_held_in_clumps_is_the_closed_form(n, cells, clump):
    """Each of n samples holds the `clump` real images of one of many cells: the variance of how many cells are empty."""
    empty, two = (1 - 1 / cells) ** n, (1 - 2 / cells) ** n
    true = math.sqrt(cells * empty + cells * (cells - 1) * two - (cells * empty) ** 2) / cells
    errors = []
    for k in range(60):
        own = torch.randint(cells, (n,), generator=seeded(k))
        holders = Holders.none(cells * clump, n)
        holders.add((torch.arange(cells * clump) // clump) == own[:, None], slice(0, n), slice(0, cells * clump))
        errors.append(proportion.of_real(holders).se ** 2)
    assert 0.95 < math.sqrt(sum(errors) / 60) / true < 1.35


def test_samples_and_pairs_that_alone_hold_an_image_are_counted_in_any_tiles(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 8)
    x, y = randn(20, 2) * 0.5, randn(90, 2, seed=1)
    holders = Reach.of(x, Neighbours.of(x, most=WIDE), y, nearest(y)).covering
    held = (squared_distances(x, y) < nearest(y)[:, WIDE - 1]).T.tolist()
    alone, pairs = [0] * 20, {}
    for row in held:
        who = tuple(k for k, each in enumerate(row) if each)
        if len(who) == 1:
            alone[who[0]] += 1
        if len(who) == 2:
            pairs[who] = pairs.get(who, 0) + 1
    assert holders.alone.tolist() == alone
    assert sorted(holders.together.tolist()) == sorted(pairs.values())
    assert len(pairs) > 3


def test_the_jackknife_leaves_each_sample_out(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 8)
    x, y = randn(20, 2) * 0.5, randn(300, 2, seed=1)
    reals = nearest(y)
    whole = Reach.of(x, Neighbours.of(x, most=WIDE), y, reals).covering
    rest = [torch.arange(20) != k for k in range(20)]
    without = [Reach.of(x[row], Neighbours.of(x[row], most=WIDE), y, reals).covering.share for row in rest]
    torch.testing.assert_close(
        whole.share - whole.alone / 300, torch.tensor(without, dtype=torch.float64), rtol=0, atol=1e-12
    )
    away = torch.tensor(without, dtype=torch.float64)
    jackknife = (away - away.mean()).square().sum().item()
    ratio = (whole.together.square().sum() / whole.alone.square().sum()).item()
    want = math.sqrt(jackknife * (1 + 2 / (whole.alone > 0).sum().item()) / (1 + ratio))
    assert proportion.of_real(whole).se == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("rows", [8, 2048])
def test_where_reaches_move_the_jackknife_moves_them(monkeypatch, rows):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    x, y = randn(30, 2) * 0.7, randn(200, 2, seed=1)
    reach = Reach.of(x, Neighbours.of(x, most=WIDE), y, nearest(y))
    rest = [torch.arange(30) != k for k in range(30)]
    without = torch.tensor([by_hand(x[row], y, NARROW)["recall"] for row in rest], dtype=torch.float64)
    whole = reach.reaching
    assert (reach.regained > 0).sum() > 5
    torch.testing.assert_close(whole.share - (whole.alone - reach.regained) / 200, without, rtol=0, atol=1e-12)
    fixed, moving = ((each - each.mean()).square().sum().item() for each in (whole.alone / 200, without))
    assert moving > fixed
    se, plain = (proportion.of_real(whole, each).se for each in (reach.regained, None))
    assert (se / plain) ** 2 == pytest.approx(1 + proportion.MOVED * (moving / fixed - 1), rel=1e-9)


# --- copies


def judged(x: Tensor, y: Tensor, limit: float) -> float:
    return (copies.closeness(nearest(x, y)) < limit).double().mean().item()


@pytest.mark.parametrize("d", [3, 12])
def test_new_images_score_the_nominal_share_and_copies_one(d):
    y, held = randn(1500, d, seed=9), randn(1500, d, seed=8)
    fresh = randn(4000, d, seed=7)
    for limit in (copies.limit(nearest(y)), copies.limit(nearest(held, y))):
        # a quantile of 1500 is itself known to a quarter
        assert judged(fresh, y, limit) == pytest.approx(copies.NOMINAL, rel=0.7)
        assert judged(y[:500], y, limit) == 1.0
        assert judged(y[:500] + 0.005 * randn(500, d), y, limit) > 0.9
        half = torch.cat([y[:300], fresh[:300]])
        assert judged(half, y, limit) == pytest.approx(0.5, abs=0.02)


def test_samples_in_the_middle_of_the_data_are_no_copies():
    """Nearer to training images than new ones are, for they crowd; but no nearer to one than to the next."""
    y = randn(2000, 6, seed=9)
    middle = 0.4 * randn(2000, 6, seed=7)
    fresh = randn(2000, 6, seed=6)
    assert nearest(middle, y)[:, 0].median() < 0.5 * nearest(fresh, y)[:, 0].median()
    assert judged(middle, y, copies.limit(nearest(y))) < 3 * copies.NOMINAL


def test_copies_are_seen_where_training_images_are_there_twice():
    y = randn(400, 6).repeat(2, 1)
    limit = copies.limit(nearest(y))
    assert limit == copies.EXACT
    assert judged(y[:100], y, limit) == 1.0
    assert judged(randn(500, 6, seed=3), y, limit) == 0.0


def test_too_few_real_images_say_nothing_of_copies():
    assert copies.limit(nearest(randn(copies.ENOUGH - 1, 3))) is None
    assert copies.limit(nearest(randn(copies.ENOUGH, 3))) is not None


# --- infinitely many samples


def test_the_bias_of_few_samples_is_gone():
    """Against exact moments: 0 between equal Gaussians, the closed form between others."""
    d, n, sets = 16, 400, 30
    exact = Moments(1_000_001, torch.zeros(d).double(), 1e6 * torch.eye(d).double())
    for scale, want in ((1.0, 0.0), (1.3, d * 0.3**2)):
        plain, better = [], []
        for k in range(sets):
            x = scale * randn(n, d, seed=k)
            plain.append(frechet(Moments.of(x), exact))
            better.append(infinity.extrapolated(x, exact, k))
        plain, better = torch.tensor(plain), torch.tensor(better)
        error = better.std().item() / math.sqrt(sets)
        assert plain.mean() - want > 0.1
        assert abs(better.mean() - want) < 3 * error + 0.02 * (plain.mean() - want)
        assert error < 0.03


def test_of_many_samples_it_is_the_distance():
    x, y = randn(60_000, 3) * 1.2 + 0.3, Moments.of(randn(500, 3, seed=1))
    assert infinity.extrapolated(x, y, 0) == pytest.approx(frechet(Moments.of(x), y), abs=2e-4)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.5, 0.75, 1.3), (0.0, 0.8, 1.4)])
def test_its_error_is_the_spread_over_fresh_samples(monkeypatch, shift, low, high):
    monkeypatch.setattr("diffcore.metrics.bootstrap.RESAMPLES", 60)
    y, values = Moments.of(randn(1000, 4, seed=99)), []
    for k in range(60):
        x = randn(250, 4, seed=k) + shift
        error = sway(x, y, resamples(250, k)).variance.with_pairs(infinity.PAIRS)
        values.append(Estimate(infinity.extrapolated(x, y, k), error))
    assert low < spread(values) < high


def test_how_often_a_pair_counts_in_it():
    """With the weights of a line through K = 1, 2, 3 at 0; a pair counts in the parts that hold both, K times as much."""
    places = torch.tensor([[1.0, k] for k in infinity.PARTS], dtype=torch.float64)
    line = torch.linalg.lstsq(places, torch.eye(3).double())
    weights, rows = line.solution[0], torch.arange(600)
    parts = [
        torch.cat([torch.full((len(part),), k) for k, part in enumerate(rows.tensor_split(count))])
        for count in infinity.PARTS
    ]
    counts = sum(
        weight * count * (part[:, None] == part) for weight, count, part in zip(weights, infinity.PARTS, parts)
    )
    assert counts.mean().item() == pytest.approx(1.0, abs=0.01)
    assert counts.square().mean().item() == pytest.approx(infinity.PAIRS, rel=0.01)


# --- sliced


def sliced_by_hand(x: Tensor, y: Tensor) -> float:
    """Equal masses matched in rising order, of every row as often as makes the sets equally large."""
    n, m = len(x), len(y)
    along = (
        sliced.projected(x.repeat_interleave(m, 0)).sort(1).values
        - sliced.projected(y.repeat_interleave(n, 0)).sort(1).values
    )
    return along.square().mean().item()


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 18), (35, 8), (7, 5)])
def test_sliced_distances_of_any_counts_are_those_of_repeated_rows(n, m):
    x, y = randn(n, 3), randn(m, 3, seed=1) + 0.4
    value = sliced.squared(sliced.projected(x), sliced.projected(y).sort(1).values)
    assert value == pytest.approx(sliced_by_hand(x, y), rel=1e-12)


def test_sliced_distances_of_gaussians():
    """A shift counts by its part along each direction, a scale by (s - 1)^2."""
    x, shift = randn(20_000, 5), torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0]).double()
    against = sliced.projected(x).sort(1).values
    moved = sliced.squared(sliced.projected(x + shift), against)
    assert moved == pytest.approx((sliced.directions(5) @ shift).square().mean().item(), rel=1e-9)
    assert moved == pytest.approx((shift.square().sum() / 5).item(), rel=0.35)
    wider = sliced.squared(sliced.projected(1.5 * randn(20_000, 5, seed=1)), against)
    assert wider == pytest.approx(0.25, rel=0.05)
    torch.testing.assert_close(sliced.directions(5).norm(dim=1), torch.ones(sliced.DIRECTIONS).double())


def test_the_influence_is_the_slope_of_the_weights():
    """A row that counts twice moves the distance by its influence, to first order."""
    x, y = randn(400, 2) + 0.8, randn(300, 2, seed=1)
    along, real = sliced.projected(x), sliced.projected(y).sort(1).values
    slope = sliced.influence(along, real)
    base = sliced.squared(along, real)
    for k in (0, 7, 150):
        twice = sliced.squared(torch.cat([along, along[:, k : k + 1]], 1), real)
        assert (twice - base) * 401 == pytest.approx((slope[k] - slope.mean()).item(), abs=0.05)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.5, 0.8, 1.25), (0.0, 0.8, 2.0)])
def test_the_sliced_error_is_the_spread_over_fresh_samples(shift, low, high):
    real = sliced.projected(randn(1000, 4, seed=99)).sort(1).values
    values = []
    for k in range(80):
        along = sliced.projected(randn(250, 4, seed=k) + shift)
        error = sliced.influence(along, real).std().item() / math.sqrt(250)
        values.append(Estimate(sliced.squared(along, real), error))
    assert low < spread(values) < high


# --- as others write them


@pytest.mark.parametrize(("n", "m", "d"), [(300, 400, 24), (400, 250, 64)])
def test_fd_and_kid_are_torch_fidelity_s_formulas(n, m, d):
    """torch-fidelity 0.4.0: metric_fid.py by eigenvalues of the product, metric_kid.py of one subset with its defaults."""
    x, y = (randn(n, d) * 1.2 + 0.1).numpy(), randn(m, d, seed=1).numpy()
    moments = [(each.mean(axis=0), np.cov(each, rowvar=False)) for each in (x, y)]
    (mu1, sigma1), (mu2, sigma2) = moments
    roots = np.sqrt(np.linalg.eigvals(sigma1.dot(sigma2)).astype("complex128")).real
    want = (mu1 - mu2).dot(mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * roots.sum()
    assert frechet(*(Moments.of(torch.from_numpy(each)) for each in (x, y))) == pytest.approx(want, rel=1e-6)
    size = min(n, m)
    x, y = x[:size], y[:size]
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (size * (size - 1))
    want = within - 2 * xy.sum() / (size * size)
    assert mmd.kid(*map(torch.from_numpy, (x, y))) == pytest.approx(want, rel=1e-6)

import itertools
import math

import numpy as np
import pytest
import torch

from diffcore import quality
from diffcore.features import Card, Config, _build
from diffcore.mistake import Mistake
from diffcore.quality import (
    Moments,
    Reference,
    fidelity,
    floor,
    frechet,
    frechet_spread,
    kernel,
    kid,
    kid_spread,
    measure,
)
from tests.conftest import dice, randn


def sets(n: int = 200, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(n, d, seed=1) @ randn(d, d, seed=2), 0.5 + randn(n, d, seed=3) @ randn(d, d, seed=4)


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    return Moments(1001, mean, covariance * 1000)


def test_frechet_in_one_dimension_by_hand():
    a, b = (gaussian(torch.tensor([m]).double(), torch.tensor([[s * s]]).double()) for m, s in ((1.0, 2.0), (4.0, 0.5)))
    assert frechet(a, b) == pytest.approx(9 + 2.25, rel=1e-12)


def test_frechet_of_diagonal_gaussians_by_hand():
    s, r = randn(5, seed=1).square() + 0.1, randn(5, seed=2).square() + 0.1
    a, b = gaussian(torch.zeros(5).double(), s.diag()), gaussian(torch.ones(5).double(), r.diag())
    assert frechet(a, b) == pytest.approx(float(5 + (s.sqrt() - r.sqrt()).square().sum()), rel=1e-12)


def test_frechet_is_that_of_the_matrix_formula():
    scipy = pytest.importorskip("scipy.linalg")
    a, b = (Moments.of(x) for x in sets())
    cross = scipy.sqrtm((a.covariance @ b.covariance).numpy()).real
    by_formula = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(cross)
    assert frechet(a, b) == pytest.approx(float(by_formula), rel=1e-9)


def test_frechet_is_symmetric_zero_on_equal_sets_and_blind_to_rotation():
    x, y = sets()
    turn = torch.linalg.qr(randn(6, 6, seed=9)).Q
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(frechet(Moments.of(y), Moments.of(x)), rel=1e-9)
    assert frechet(Moments.of(x), Moments.of(x)) < 1e-9
    turned = frechet(Moments.of(x @ turn), Moments.of(y @ turn))
    assert turned == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-9)


def test_near_singular_covariances_keep_their_digits():
    x = torch.cat([randn(100, 2), torch.zeros(100, 30).double()], 1)
    assert frechet(Moments.of(x), Moments.of(x)) < 1e-10


def test_moments_merge_in_any_grouping():
    x = 1e4 + randn(90, 3)
    a, b, c = (Moments.of(part) for part in x.split(30))
    whole = Moments.of(x)
    for merged in ((a + b) + c, a + (b + c), c + a + b, Moments.empty(3) + whole):
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.covariance, torch.from_numpy(np.cov(x.numpy().T)), rtol=1e-9, atol=0)


def test_kid_is_the_double_loop():
    x, y = (z[:12] for z in sets())

    def k(a, b):
        return (float(a @ b) / 6 + 1) ** 3

    within = sum(k(a, b) for z in (x, y) for a, b in itertools.permutations(z, 2)) / (12 * 11)
    across = sum(k(a, b) for a in x for b in y) / 144
    assert kid(x, y) == pytest.approx(within - 2 * across, rel=1e-10)
    assert kernel(x, y).shape == (12, 12)


def test_kid_is_unbiased():
    """Two sets of one distribution score 0 on average, however small they are."""
    scores = [kid(randn(30, 4, seed=2 * i), randn(50, 4, seed=2 * i + 1)) for i in range(400)]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 20


def test_bootstrap_errors_are_those_of_fresh_sets():
    reference = randn(2000, 4, seed=10**6)
    moments = Moments.of(reference)
    fresh = [randn(300, 4, seed=i) * 1.2 + 0.2 for i in range(150)]
    repeats = quality.resamples(300, 0)
    spread = np.std([frechet(Moments.of(x), moments) for x in fresh])
    claimed = np.mean([frechet_spread(x, moments, repeats) for x in fresh[:10]])
    assert claimed == pytest.approx(spread, rel=0.3)
    spread = np.std([kid(x, reference) for x in fresh])
    claimed = np.mean([kid_spread(x, reference, repeats) for x in fresh[:10]])
    assert claimed == pytest.approx(spread, rel=0.3)


# ------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def network():
    """An untrained feature network: the measures do not care how good it is."""
    config = Config(channels=8, dimension=8, iterations=1, batch=8, lr=1e-3, seed=0)
    return _build(Card(config, (1, 8, 8), "classes", 10, 100, 10, 0.5)).eval().requires_grad_(False)


def pixels(n: int = 200, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=dice(seed)).to(torch.uint8)


def floats(n: int = 200, seed: int = 0) -> torch.Tensor:
    return pixels(n, seed).float() / 127.5 - 1


@pytest.fixture(scope="module")
def reference(network):
    return Reference.of(pixels(400, 5), network)


def test_the_real_images_score_nothing_against_themselves(network, reference):
    found = measure(floats(400, 5), reference, network, 0)
    assert found.fd < 1e-6
    assert found.fd_pixels < 1e-6
    assert found.n == 400


def test_more_noise_is_further_away(network, reference):
    scores = [measure((1 - a) * floats(300, 6), reference, network, 0) for a in (0.0, 0.3, 0.6)]
    for name in ("fd", "kid", "fd_pixels"):
        values = [getattr(score, name) for score in scores]
        assert values == sorted(values)


def test_numbers_come_with_the_errors_of_their_seed(network, reference):
    one, same, other = (measure(floats(100, 7), reference, network, seed) for seed in (0, 0, 1))
    assert one == same
    assert one.fd == other.fd
    assert one.fd_se != other.fd_se
    assert one.fd_se == pytest.approx(other.fd_se, rel=0.4)


def test_samples_are_measured_as_8_bit_images(network, reference):
    soft = floats(100, 7) + 0.4 / 255
    assert measure(soft, reference, network, 0).fd == measure(floats(100, 7), reference, network, 0).fd


def test_the_floor_compares_disjoint_real_images(reference):
    assert floor(reference, 100, 0).n == (100, 300)
    assert floor(reference, 1000, 0).n == (200, 200)
    assert floor(reference, 100, 0).fd > 0
    assert abs(floor(reference, 100, 0).kid) < 5 * floor(reference, 100, 0).kid_se


def test_fidelity_by_hand():
    a = randn(50, 1, 4, 4)
    found = fidelity(a, a + 0.1)
    assert found.rmse == pytest.approx(0.1)
    assert found.se == pytest.approx(0, abs=1e-12)
    assert fidelity(a, a).rmse == 0
    b = randn(5000, 1, 2, 2, seed=3)
    assert fidelity(b, torch.zeros_like(b)).rmse == pytest.approx(1, abs=5 * fidelity(b, torch.zeros_like(b)).se)
    assert fidelity(b, torch.zeros_like(b)).se == pytest.approx(math.sqrt(2 / 4 / 5000) / 2, rel=0.1)


def test_large_images_are_averaged_down():
    x = randn(2, 3, 32, 32)
    assert quality.pooled(x).shape == (2, 3 * 64)
    torch.testing.assert_close(quality.pooled(x)[0, 0], x[0, 0, :4, :4].mean())


def test_what_cannot_be_measured_is_a_mistake(network, reference):
    broken = floats(20, 1)
    broken[3, 0, 2, 2] = float("nan")
    with pytest.raises(Mistake, match="1 of 20 samples are not finite"):
        measure(broken, reference, network, 0)
    with pytest.raises(Mistake, match=r"of shape \[1, 8, 8\]"):
        measure(torch.zeros(5, 3, 8, 8), reference, network, 0)
    with pytest.raises(Mistake, match="at least 4 real images"):
        Reference.of(pixels(3), network)

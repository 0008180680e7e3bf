"""Two samplings from the same noises: the paired difference, its error, and the verdict."""

import math

import pytest
import torch

from diffcore.metrics import comparison
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.comparison import Comparison, Paired
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, frechet
from diffcore.metrics.mmd import kid

DIMENSION, COUNT = 3, 300


def noise(seed: int, count: int = COUNT) -> torch.Tensor:
    return torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(seed)).double()


def standard(scale: float = 1.0, mean: float = 0.0) -> Moments:
    """Of a Gaussian itself, in the place of a sample's."""
    count = 1_000_000
    return Moments(
        count, torch.full((DIMENSION,), mean).double(), scale**2 * (count - 1) * torch.eye(DIMENSION).double()
    )


FIRST, SECOND = (1.1, 0.3), (0.85, 0.1)
"""Scale and mean of two samplings of the same Gaussian noise."""


def sampled(z: torch.Tensor, how: tuple[float, float]) -> torch.Tensor:
    return how[0] * z + how[1]


def share_covered(outcomes: list[Paired], truth: float) -> float:
    inside = [abs(each.difference.value - truth) <= 1.96 * each.difference.se for each in outcomes]
    return sum(inside) / len(inside)


@pytest.mark.slow
def test_the_interval_of_a_difference_covers_the_true_one_in_95_of_100_trials():
    truth = frechet(standard(*SECOND), standard()) - frechet(standard(*FIRST), standard())
    outcomes = []
    for seed in range(200):
        z = noise(seed)
        repeats = resamples(COUNT, seed)[:40]
        outcomes.append(comparison.fd(sampled(z, FIRST), sampled(z, SECOND), standard(), repeats))
    assert 0.90 <= share_covered(outcomes, truth) <= 0.985  # the standard error of 0.95 over 200 trials is 0.015


def kernel_within(scale: float, mean: float) -> float:
    """E (x.y / d + 1)^3 of two independent draws from N(mean, scale^2)^d: given y it is that of a Gaussian's third moment."""
    a, var = 1 + mean**2, scale**2
    cubes = a**3 + 3 * a * mean**2 * var / DIMENSION
    return cubes + 3 * var / DIMENSION**2 * (a * DIMENSION * (mean**2 + var) + 2 * mean**2 * var)


def kernel_across(scale: float, mean: float, real: torch.Tensor) -> float:
    centre = 1 + mean * real.mean(1)
    spread = scale**2 * real.square().sum(1) / DIMENSION**2
    return (centre**3 + 3 * centre * spread).mean().item()


def test_so_does_that_of_the_kernel_distance():
    real = noise(10**6, 400)
    expected = {how: kernel_within(*how) - 2 * kernel_across(*how, real) for how in (FIRST, SECOND)}
    outcomes = []
    for seed in range(200):
        z = noise(seed)
        outcomes.append(comparison.kid(sampled(z, FIRST), sampled(z, SECOND), real))
    # of a cubic kernel, whose third powers have long tails, a little less than of fd
    assert 0.88 <= share_covered(outcomes, expected[SECOND] - expected[FIRST]) <= 0.985


def test_both_are_resampled_alike_so_that_what_they_share_cancels():
    """Of two samplings that nearly agree the difference is known far better than either distance."""
    z, repeats = noise(1), resamples(COUNT, 1)
    outcome = comparison.fd(sampled(z, FIRST), sampled(z, (1.1, 0.31)), standard(), repeats)
    assert outcome.difference.se < 0.1 * math.hypot(outcome.first.se, outcome.second.se)
    assert outcome.better == 0
    assert outcome.errors > 5


def test_the_difference_is_the_second_less_the_first():
    z, real = noise(2), noise(3, 500)
    a, b = sampled(z, FIRST), sampled(z, SECOND)
    outcome = comparison.kid(a, b, real)
    assert outcome.first.value == kid(a, real)
    assert outcome.difference.value == kid(b, real) - kid(a, real)
    assert outcome.better == 1
    other = comparison.kid(b, a, real)
    assert other.difference.value == -outcome.difference.value
    assert other.difference.se == pytest.approx(outcome.difference.se, rel=1e-12)


def paired(value: float, se: float) -> Paired:
    return Paired(Estimate(1.0, 0.2), Estimate(1.0 + value, 0.2), Estimate(value, se))


@pytest.mark.parametrize(
    ("fd", "kid", "verdict"),
    [
        ((-0.31, 0.05), (-0.1, 0.02), "b is better: fd lower by 0.310 +- 0.050 (6.2 errors)"),
        ((0.31, 0.05), (0.0, 0.02), "a is better: fd lower by 0.310 +- 0.050 (6.2 errors)"),
        ((0.05, 0.05), (0.01, 0.02), "no difference beyond error: fd differs by 0.050 +- 0.050 (1 errors)"),
        (
            (0.31, 0.05),
            (-0.6, 0.05),
            "a is better: fd lower by 0.310 +- 0.050 (6.2 errors); but kid is lower for b by 0.600 +- 0.050 (12 errors)",
        ),
        (
            (0.05, 0.05),
            (-0.6, 0.05),
            "no difference beyond error: fd differs by 0.050 +- 0.050 (1 errors); but kid is lower for b by "
            "0.600 +- 0.050 (12 errors)",
        ),
    ],
)
def test_the_verdict_names_the_better_one_or_says_that_none_is(fd, kid, verdict):
    outcome = Comparison(("a", "b"), {"fd": paired(*fd), "kid": paired(*kid)}, Estimate(0.1, 0.01))
    assert outcome.verdict() == verdict
    assert outcome.to_json()["verdict"] == verdict


def test_the_same_images_differ_by_nothing():
    z, repeats = noise(4), resamples(COUNT, 4)
    outcome = comparison.fd(z, z, standard(), repeats)
    assert (outcome.difference, outcome.errors, outcome.better) == (Estimate(0.0, 0.0), 0.0, None)
    same = Comparison(("a", "b"), {"fd": outcome}, Estimate(0.0, 0.0))
    assert same.verdict() == "no difference: a and b make the same images"


def test_what_differs_without_any_error_is_a_difference():
    assert paired(0.1, 0.0).errors == math.inf
    assert paired(-0.1, 0.0).better == 1
    assert (
        Comparison(("a", "b"), {"fd": paired(0.1, 0.0)}, Estimate(0.1, 0.0)).to_json()["distances"]["fd"]["errors"]
        is None
    )

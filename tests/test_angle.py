import math

import pytest
import torch

from diffcore.denoisers.prediction import from_v
from diffcore.noise.angle import between, compose, diffuse, hop, truncated_snr, velocity
from diffcore.noise.schedule import Cosine
from tests.conftest import randn

COSINE = Cosine()


def close(a, b, atol=1e-14):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.fixture
def toss():
    """z, two velocities and falling angles phi_t > phi_m > phi_s, some of them at the ends."""
    angles = torch.rand(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * math.pi / 2
    angles = angles.sort(1, descending=True).values
    angles[0], angles[1] = torch.tensor([math.pi / 2, 1.0, 0.0]), torch.tensor([math.pi / 2, math.pi / 4, 0.0])
    return randn(40, 3, seed=2), randn(40, 3, seed=3), randn(40, 3, seed=4), *angles.T


def test_hop_is_ddim(toss):
    z, v, _, phi_t, phi_s, _ = toss
    t, s = phi_t * 2 / math.pi, phi_s * 2 / math.pi
    belief, to = from_v(z, COSINE.level(t, z), v), COSINE.level(s, z)
    close(hop(z, v, phi_t - phi_s), to.alpha * belief.x0 + to.sigma * belief.eps)


def test_compose_lands_where_two_hops_land(toss):
    z, va, vb, phi_t, phi_m, phi_s = toss
    twice = hop(hop(z, va, phi_t - phi_m), vb, phi_m - phi_s)
    v = compose(z, va, vb, phi_t - phi_m, phi_m - phi_s)
    close(hop(z, v, phi_t - phi_s), twice, 1e-13)


def test_compose_is_associative():
    z, a, b, c = (randn(20, 3, seed=seed) for seed in range(4))
    d = torch.full((20,), 0.3, dtype=torch.float64)
    left = compose(z, compose(z, a, b, d, d), c, 2 * d, d)
    # the inner pair of the right-hand grouping starts where the first hop lands
    right = compose(z, a, compose(hop(z, a, d), b, c, d, d), d, 2 * d)
    close(left, right, 1e-13)


def test_a_second_hop_of_no_length_changes_nothing():
    z, va, vb = (randn(7, 3, seed=seed) for seed in range(3))
    close(compose(z, va, vb, torch.full((7,), 0.4), torch.zeros(7)), va, 1e-15)


def test_compose_is_the_published_x0_target(toss):
    """x0 = (z_s - (sigma_s/sigma_t) z_t) / (alpha_s - (sigma_s/sigma_t) alpha_t), arXiv 2202.00512, appendix G."""
    z, va, vb, phi_t, phi_m, phi_s = (part[2:] for part in toss)
    z_s = hop(hop(z, va, phi_t - phi_m), vb, phi_m - phi_s)
    ratio = (phi_s.sin() / phi_t.sin())[:, None]
    published = (z_s - ratio * z) / (phi_s.cos()[:, None] - ratio * phi_t.cos()[:, None])
    v = compose(z, va, vb, phi_t - phi_m, phi_m - phi_s)
    ours = phi_t.cos()[:, None] * z - phi_t.sin()[:, None] * v
    close(ours, published, 1e-10)


def test_float32_targets_keep_their_digits_at_8192_steps():
    n = 8192
    phi = torch.tensor([1, 2, 100, 4096, 8191, 8192], dtype=torch.float64) / n * math.pi / 2
    d = torch.full((6,), math.pi / 4 / n, dtype=torch.float64)
    z, va, vb = (randn(6, 50, seed=seed) for seed in range(3))
    exact = compose(z, va, vb, d, d)
    assert (compose(z.float(), va.float(), vb.float(), d, d).double() - exact).abs().max() < 1e-6
    assert phi[0] > 2 * d[0] - 1e-12


def test_between_inverts_hop(toss):
    z, v, _, phi_t, phi_s, _ = toss
    close(between(z, hop(z, v, phi_t - phi_s), phi_t - phi_s), v, 1e-10)


def test_velocity_is_the_derivative_of_the_arc():
    x0, eps, phi, h = randn(5, 3, seed=1), randn(5, 3, seed=2), torch.linspace(0.1, 1.4, 5).double(), 1e-6
    slope = (diffuse(x0, eps, phi + h) - diffuse(x0, eps, phi - h)) / (2 * h)
    close(velocity(x0, eps, phi), slope, 1e-9)


def test_truncated_snr_is_the_papers_weight():
    phi = torch.linspace(0.05, 1.5, 9, dtype=torch.float64)
    snr = phi.cos() ** 2 / phi.sin() ** 2
    # |x0 error| = sin(phi) |v error|, so max(SNR, 1) on its square is this on the square of v
    close(truncated_snr(phi), torch.clamp(snr, min=1) * phi.sin() ** 2)


@pytest.mark.parametrize("law", [lambda z, v, d: hop(z, v, d), lambda z, v, d: compose(z, v, z + v, d, d)])
def test_the_batch_law(law):
    z, v, d = randn(3, 3, 3, 3), randn(3, 3, 3, 3, seed=1), torch.tensor([0.1, 0.4, 0.7]).double()
    parts = [law(z[i : i + 1], v[i : i + 1], d[i : i + 1]) for i in range(3)]
    close(law(z, v, d), torch.cat(parts), 0)

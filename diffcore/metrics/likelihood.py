"""How likely a sampler makes real images, in bits per dimension; less is better.

Images are x_0 = k / 127.5 - 1 for k = 0..255, so a bin is 2/255 wide, unless another range is given. Two numbers, both of the
very model that is sampled: for ancestral samplers the variational bound on their steps (Ho et al. 2020, arXiv 2006.11239,
eq. 5, with its discretised decoder), for the probability flow the exact density of uniformly dequantised images by the change
of variables (Song et al. 2021, arXiv 2011.13456, section 4.3), whose divergence Hutchinson's probes estimate.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core import processes
from diffcore.core.errors import UserError
from diffcore.core.rng import generator, noises
from diffcore.core.shapes import PerSample, Sample, batches
from diffcore.denoisers.clipping import Clipped
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.noise.schedule import Level
from diffcore.sampling.ode import integrate
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solver import forward_variance, mean
from diffcore.sampling.solvers.ancestral import Posterior
from diffcore.sampling.solvers.rk45 import RK45, Clock, angles, size_at
from diffcore.search.gamma import RANGE, bin_of

BIN = bin_of(RANGE)


@dataclass(frozen=True)
class Bits:
    """values: bits per dimension of each image, [m] float64."""

    values: Tensor

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def se(self) -> float:
        """The standard error of the mean over images."""
        return float(self.values.std() / math.sqrt(len(self.values)))


@dataclass(frozen=True)
class Model:
    """A sampling as a model of real images; the fields are the arguments of `estimate`."""

    sampler: Sampler
    images: Sample
    seed: int
    probes: int
    batch: int
    condition: Condition | None


def estimate(
    sampler: Sampler,
    x0: Sample,
    seed: int,
    probes: int = 1,
    batch: int = 250,
    condition: Condition | None = None,
    within: tuple[float, float] = RANGE,
) -> Bits | None:
    """Of the images x0 [m, *x] under a sampler that has a likelihood, None for one that has not.

    The flow of a clipped belief ends on the faces of a box and has no density; steps around a clipped mean have their bound.

    The noise of image i depends on (seed, i) alone; the batches are dealt to all processes. probes: Hutchinson's, for the
    probability flow. condition: the images' classes and guidance weights, for a denoiser that takes such. within: (low,
    high), the values of black and white.
    """
    exactly = isinstance(sampler.solver, RK45)
    if exactly and isinstance(sampler.denoiser, Clipped):
        return None
    if not exactly and not (isinstance(sampler.solver, Posterior) and sampler.solver.stochastic):
        return None
    device = next((p.device for p in sampler.denoiser.parameters()), x0.device)

    def part(rows: range) -> PerSample:
        span = slice(rows.start, rows.stop)
        images = x0[span].to(device)
        denoiser = sampler.denoiser.with_condition(condition[span].to(device)) if condition else sampler.denoiser
        here = Sampler(denoiser, sampler.solver, sampler.trajectory)
        if exactly:
            nats = exact(here, dequantised(images, seed, rows, within), seed, rows, probes) - math.log(bin_of(within))
        else:
            nats = bound(here, images, seed, rows, within).total
        return nats.cpu() / math.log(2)

    return Bits(torch.cat(list(processes.dealt(batches(range(len(x0)), batch), part))))


@dataclass(frozen=True)
class Bound:
    """The bound's parts, nats per dimension, [b] each. jumps: [K - 1, b], the L_t, the first step's first."""

    prior: PerSample
    jumps: Tensor
    decoder: PerSample

    @property
    def total(self) -> PerSample:
        return self.prior + self.jumps.sum(0) + self.decoder


@torch.inference_mode()
def bound(sampler: Sampler, x0: Sample, seed: int, rows: range, within: tuple[float, float] = RANGE) -> Bound:
    """The variational bound on -log P(x_0); one network call for each step and image.

    The last step is the decoder, a normal around the believed x_0. Where a sampler's own variance is 0 there (DDPM's small
    one), it has that of the step before, as in Ho et al.'s code, or of the forward process if there is none.
    """
    schedule, solver, kls = sampler.denoiser.schedule, sampler.solver, []
    at, size = _level(sampler, sampler.trajectory.times[0], x0), size_at(schedule, sampler.trajectory.times[0])
    prior = _kl(at.alpha * x0 / size, (at.sigma / size) ** 2, torch.ones_like(at.sigma))
    for k, (t, s) in enumerate(sampler.trajectory.pairs):
        at, to = _level(sampler, t, x0), _level(sampler, s, x0)
        eps = noises(tuple(x0.shape[1:]), seed, rows, f"bound {k}").to(x0.device)
        belief = sampler.denoiser((at.alpha * x0 + at.sigma * eps).to(x0.dtype), per_sample(t, x0))
        lam2, variance = (part.double() for part in solver.variances(at, to, per_sample(t, x0)))
        if k + 1 < sampler.trajectory.steps:
            # mean(...) is linear in x_0 at fixed x_t, so this is its difference for the true and the believed one
            factor = to.alpha - (to.sigma**2 - lam2).clamp(min=0).sqrt() * at.alpha / at.sigma
            kls.append(_kl(factor * (x0 - belief.x0), lam2, variance))
            before = variance
        else:
            if not (variance > 0).all():
                variance = before if kls else forward_variance(at, to).double()
            middle = mean(belief, to, lam2)
    jumps = torch.stack(kls) if kls else prior.new_zeros(0, len(x0))
    return Bound(prior, jumps, -decoder(x0, middle, variance.sqrt(), within).flatten(1).mean(1))


def _level(sampler: Sampler, t: float, like: Sample) -> Level:
    return sampler.denoiser.schedule.level(per_sample(t, like), like.double())


def _kl(away: Sample, variance: Tensor, model: Tensor) -> PerSample:
    """KL(N(m, variance) || N(m - away, model)), the mean over dimensions. [b] float64."""
    square = away.double().flatten(1).square().mean(1)
    ratio = (variance / model).flatten(1).mean(1)
    return 0.5 * (square / model.flatten(1).mean(1) + ratio - 1 - ratio.log())


def decoder(x0: Sample, middle: Sample, std: Tensor, within: tuple[float, float] = RANGE) -> Sample:
    """log P of x_0's bin under N(middle, std^2); the bins at the range's ends reach to infinity. Elementwise, float64."""
    x0, middle, half, (low, high) = x0.double(), middle.double(), bin_of(within) / 2, within
    upper = torch.where(x0 > high - half, torch.inf, (x0 + half - middle) / std)
    lower = torch.where(x0 < low + half, -torch.inf, (x0 - half - middle) / std)
    # on the left of 0, where the difference of two tails keeps its digits
    lower, upper = torch.where(lower > 0, -upper, lower), torch.where(lower > 0, -lower, upper)
    big, small = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return big + (-torch.expm1(small - big)).log()


def dequantised(x0: Sample, seed: int, rows: range, within: tuple[float, float] = RANGE) -> Sample:
    """x_0 with uniform noise as wide as a bin."""
    uniform = [torch.rand(x0.shape[1:], generator=generator(seed, "dequantise", i), dtype=torch.float64) for i in rows]
    return x0 + ((torch.stack(uniform) - 0.5) * bin_of(within)).to(x0)


def exact(sampler: Sampler, x0: Sample, seed: int, rows: range, probes: int | None = 1) -> PerSample:
    """-log p(x_0) in nats per dimension, [b] float64, along the probability flow to the sampler's first time.

    Integrated with the tolerances of its solver, in the angle: log p_0 = log p_1 + the integral of div v. probes: of
    Hutchinson's estimate, which one draw serves for the whole path; None for the exact divergence, one backward pass for
    each dimension.
    """
    denoiser, solver, schedule = sampler.denoiser, sampler.solver, sampler.denoiser.schedule
    if isinstance(denoiser, Clipped):
        raise UserError("the flow of a clipped belief ends on the faces of a box and has no density; leave clip out")
    ends = sampler.trajectory.times[0], sampler.trajectory.times[-1]
    last, first = angles(schedule, ends)
    d, size = x0[0].numel(), size_at(schedule, ends[1])
    rate = _Flow(denoiser, Clock(schedule, ends), x0, _probes(x0, seed, rows, probes))
    start = torch.cat([(x0 / size).flatten(1), x0.new_zeros(len(x0), 1)], 1)
    y = integrate(rate, start, first, last, solver.rtol, solver.atol).double()
    z, grown = y[:, :-1], y[:, -1]
    log_p = -0.5 * (z.square().sum(1) + d * math.log(2 * math.pi)) + grown - d * math.log(size)
    return -log_p / d


def _probes(x0: Sample, seed: int, rows: range, probes: int | None) -> Tensor:
    """[p, b, *x], the sum over p of probe probe^T being 1 in the mean: signs over sqrt(p), or just the unit vectors."""
    if probes is None:
        unit = torch.eye(x0[0].numel(), dtype=x0.dtype, device=x0.device)
        return unit.reshape(-1, 1, *x0.shape[1:]).expand(-1, *x0.shape)
    signs = [torch.rand((probes, *x0.shape[1:]), generator=generator(seed, "hutchinson", i)) < 0.5 for i in rows]
    return (1 - 2 * torch.stack(signs, 1).to(x0.device, x0.dtype)) / math.sqrt(probes)


class _Flow:
    """d(z, log-determinant)/dphi = (v, div v) of flattened samples."""

    def __init__(self, denoiser: Denoiser, clock: Clock, like: Sample, probes: Tensor):
        self.denoiser, self.clock, self.like, self.probes = denoiser, clock, like, probes

    def __call__(self, y: Tensor, phi: Tensor, rows: Tensor) -> Tensor:
        z = y[:, :-1].reshape(-1, *self.like.shape[1:])
        t, probes = self.clock(phi), self.probes[:, rows]
        level = self.denoiser.schedule.level(t, z)
        with torch.inference_mode(False), torch.enable_grad():
            z = z.detach().clone().requires_grad_(True)
            v = self.denoiser.select(rows)(z * torch.hypot(level.alpha, level.sigma), t).v
            pulls = [
                torch.autograd.grad(v, z, probe, retain_graph=number + 1 < len(probes))[0]
                for number, probe in enumerate(probes)
            ]
        divergence = (torch.stack(pulls) * probes).flatten(2).sum(2).sum(0)
        return torch.cat([v.detach().flatten(1).to(y.dtype), divergence[:, None].to(y.dtype)], 1)

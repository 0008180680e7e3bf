"""Consistency distillation: the student jumps from any point of the teacher's trajectory to its end.

Song et al. 2023, arXiv 2303.01469, algorithm 2, on a variance-preserving process with a v network, which satisfies the
boundary condition f(z, 0) = z by construction, as multistep consistency models do (Heek et al. 2024, arXiv 2403.06807).

The perceptual distance asks the teacher's own features, never the network that quality is measured with: a student that is
trained against its judge learns what the judge overlooks, and its measured distance no longer says anything.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser
from diffcore.methods import Method, Roles
from diffcore.methods.parts.distance import pseudo_huber
from diffcore.noise.angle import compose, diffuse, heun, hop, hops

SEEN_AT = 0.05
"""The time at which the teacher looks at two beliefs about x_0: they are nearly clean, and noisy enough for it to know."""


@dataclass(frozen=True)
class Consistency(Method):
    """steps: N, the teacher's grid t = k/N. target_ema: decay of the EMA that the student must agree with, 0 for itself.

    distance: squared error of v; pseudo-Huber sqrt(|.|^2 + c^2) - c with c = huber sqrt(d) (Song & Dhariwal 2023,
    arXiv 2310.14189, whose huber is 0.00054); or perceptual, of the two beliefs about x_0 in the teacher's features, plus
    `floor` times the squared error of v, without which small times, and what features overlook, would go unlearned.
    hop: what the teacher does from k/N to (k-1)/N: a step of DDIM or of Heun, or `substeps` DDIM steps.
    steps_end: null for N as it is, or what N has grown to, log-linearly, after the first `anneal` share of the training
    (arXiv 2403.06807: 64 to 1280).
    """

    steps: int
    target_ema: float
    distance: Literal["squared", "pseudo_huber", "perceptual"] = "pseudo_huber"
    huber: float = 0.00054
    floor: float = 0.1
    hop: Literal["ddim", "heun", "substeps"] = "ddim"
    substeps: int = 4
    steps_end: int | None = None
    anneal: float = 0.5

    sampler = "multistep_consistency"
    off_the_data = True

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")
        if not 0 <= self.target_ema < 1:
            raise ValueError(f"target_ema must be in [0, 1), got {self.target_ema}")
        if self.huber <= 0:
            raise ValueError(f"huber must be positive, got {self.huber}")
        if self.floor <= 0:
            raise ValueError(f"floor must be positive, got {self.floor}")
        if self.substeps < 2:
            raise ValueError(f"substeps must be at least 2, got {self.substeps}; one is hop: ddim")
        if self.steps_end is not None and self.steps_end < 2:
            raise ValueError(f"steps_end must be at least 2, got {self.steps_end}")
        if not 0 < self.anneal <= 1:
            raise ValueError(f"anneal must be in (0, 1], got {self.anneal}")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """The distance of v at t = k/N, k ~ U{1..N}, from the velocity that lands where the teacher, then the target land."""
        schedule, n = roles.student.schedule, self.intervals(progress)
        k = (draw.u * n).floor() + 1
        t, u = k / n, (k - 1) / n
        phi_t, phi_u = schedule.angle(t), schedule.angle(u)
        z = diffuse(x0, draw.noise, phi_t)
        with torch.no_grad():
            va = self.taught(roles.teacher, z, k, n)
            vb = roles.target(hop(z, va, phi_t - phi_u), u).v
            vb = torch.where(lift(u, vb) > 0, vb, 0)  # a hop of no length; an x0 network has no v at the data
            aim = compose(z, va, vb, phi_t - phi_u, phi_u)
        v = roles.student(z, t).v
        if self.distance == "pseudo_huber":
            return pseudo_huber(v - aim, self.huber)
        squared = (v - aim).flatten(1).square().mean(1)
        if self.distance == "squared":
            return squared
        return seen_apart(roles.teacher, hop(z, v, phi_t), hop(z, aim, phi_t), draw) + self.floor * squared

    def taught(self, teacher: Denoiser, z: Sample, k: PerSample, n: int) -> Sample:
        """The velocity at z whose one hop from k/N to (k-1)/N lands where the teacher lands. k: [b], whole numbers."""

        def v(z: Sample, t: PerSample) -> Sample:
            return teacher(z, t).v

        if self.hop == "heun":
            return heun(v, z, k / n, (k - 1) / n, teacher.schedule)
        parts = self.substeps if self.hop == "substeps" else 1
        return hops(v, z, [(parts * k - j) / (parts * n) for j in range(parts + 1)], teacher.schedule)

    def intervals(self, progress: float) -> int:
        """N at this share of the training."""
        if self.steps_end is None:
            return self.steps
        first, last = math.log(self.steps), math.log(self.steps_end)
        return round(math.exp(first + min(progress / self.anneal, 1) * (last - first)))

    @property
    def network_calls(self) -> float:
        """The perceptual distance shows the teacher two images more, about half a network each; the trainer's meter counts
        them as calls."""
        return 4.0 + {"ddim": 1, "heun": 2, "substeps": self.substeps}[self.hop]

    @property
    def target_decay(self) -> float:
        return self.target_ema

    @property
    def one_graph(self) -> bool:
        return self.steps_end is None and self.distance != "perceptual"


def seen_apart(teacher: Denoiser, image: Sample, target: Sample, draw: Draw) -> PerSample:
    """The distance of two images in the teacher's features: of each pixel's channels, scaled to length 1, and over all levels
    the mean of its square (Zhang et al. 2018, arXiv 1801.03924, unweighted). [b].

    Both get the same little noise. No gradient goes to the target.
    """
    noise, t = draw.fork("features").noise, torch.full_like(draw.u, SEEN_AT)
    phi = teacher.schedule.angle(t)
    ours = teacher.features(diffuse(image, noise, phi), t)
    with torch.no_grad():
        theirs = teacher.features(diffuse(target, noise, phi), t)
    levels = [(_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(levels).mean(0)


def _unit(features: Sample) -> Sample:
    wide = torch.promote_types(features.dtype, torch.float32)  # the difference of two such is small
    return torch.nn.functional.normalize(features.to(wide), dim=1, eps=1e-6)

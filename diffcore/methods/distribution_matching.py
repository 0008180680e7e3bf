"""Distribution matching: a student's samples are pushed to where the data are likelier than such samples are.

DMD (Yin et al. 2023, arXiv 2311.18828) as improved in DMD2 (arXiv 2405.14867). The gradient of KL(student || data) at a
noised sample is the difference of two beliefs about x_0: of the critic, a denoiser that learns the student's own samples as
they change, and of the teacher. It is taken through the sample alone. No pairs of noise and image are needed; the critic
learns `critic_updates` times for each update of the student (DMD2, section 4.2), and a student of several steps is trained on
its own inputs (section 4.4). It is best started from a student that jumps already: name that as the line's `teacher`. With
`adversarial` above 0 heads on the teacher's features also tell real images from the student's, by which a student may pass
its teacher (section 4.3).
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import CriticTraining, Roles, WithCritic
from diffcore.methods.parts import discriminator
from diffcore.methods.parts.discriminator import Discriminator, fooling, hinge
from diffcore.noise.angle import diffuse, velocity
from diffcore.noise.trajectory import Trajectory, uniform

LEVELS = 0.02, 0.98
"""The t at which beliefs are compared, uniform: the paper's."""

DISCRIMINATOR_HEADS = 4


class FakeScore(nn.Module):
    """What the student's samples look like: a denoiser of them, which starts as a copy of another, and maybe heads."""

    def __init__(self, start: NetDenoiser, heads: Discriminator | None):
        super().__init__()
        self.denoiser = start.with_network(copy.deepcopy(start.net).requires_grad_(True))
        self.denoiser.grid, self.heads = None, heads


@dataclass(frozen=True)
class DistributionMatching(WithCritic):
    """steps: of the student. critic_updates, critic_lr: how often for each of the student's, and how fast the critic learns.

    adversarial: weight of the heads' part, 0 for none.
    """

    steps: int = 1
    critic_updates: int = 5
    critic_lr: float = 1e-3
    adversarial: float = 0.0

    sampler = "multistep_consistency"
    any_time_teacher = True

    def __post_init__(self):
        if self.steps < 1 or self.critic_updates < 1:
            raise ValueError(f"steps and critic_updates must be at least 1, got {self.steps} and {self.critic_updates}")
        if self.critic_lr <= 0 or self.adversarial < 0:
            raise ValueError(
                f"critic_lr must be positive and adversarial not negative, got {self.critic_lr} and {self.adversarial}"
            )

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Half the squared difference of beliefs over their size; its gradient is the one meant (arXiv 2311.18828, eq. 7 and
        8)."""
        sample = self.generate(roles, draw)
        t, noisy = _noised(roles, sample, draw)
        with torch.no_grad():
            real, fake = roles.teacher(noisy, t).x0, _fake(roles)(noisy, t).x0
            size = (sample - real).flatten(1).abs().mean(1).clamp(min=1e-6)
            aim = sample - (fake - real) / lift(size, real)
        matching = 0.5 * (sample - aim).flatten(1).square().mean(1)
        if not self.adversarial:
            return matching
        return matching + self.adversarial * fooling(roles.critic.heads(roles.teacher.features(noisy, t)))

    def generate(self, roles: Roles, draw: Draw) -> Sample:
        """What the student makes of noise in step k ~ U{1..K}, its earlier steps without gradient."""
        schedule, times = roles.student.schedule, uniform(self.steps).times
        k = (draw.u * self.steps).floor()
        z, t = draw.noise, per_sample(times[0], draw.noise)
        for j, s in enumerate(times[1:-1]):
            with torch.no_grad():
                level = schedule.level(per_sample(s, z), z)
                later = level.alpha * roles.student(z, per_sample(times[j], z)).x0
                later = later + level.sigma * draw.fork(f"step {j}").noise
            z, t = torch.where(lift(k, z) > j, later, z), torch.where(k > j, s, t)
        return roles.student(z, t).x0

    def critic(self, roles: Roles, seed: int) -> FakeScore:
        """Its denoiser starts as the teacher, which knows of images at every time already."""
        heads = (
            Discriminator(discriminator.widths(roles.teacher), DISCRIMINATOR_HEADS, seed) if self.adversarial else None
        )
        teacher = roles.teacher.inner if isinstance(roles.teacher, Guided) else roles.teacher
        return FakeScore(teacher if isinstance(teacher, NetDenoiser) else roles.student, heads)

    def critic_loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Denoising of the student's samples, in v, and the heads' hinge."""
        with torch.no_grad():
            sample = self.generate(roles, draw)
        t, noisy = _noised(roles, sample, draw)
        level = draw.fork("level")
        error = _fake(roles)(noisy, t).v - velocity(sample, level.noise, roles.student.schedule.angle(t))
        denoising = error.flatten(1).square().mean(1)
        if not self.adversarial:
            return denoising
        with torch.no_grad():
            seen = [roles.teacher.features(image, t) for image in (_noised(roles, x0, draw)[1], noisy)]
        return denoising + hinge(*(roles.critic.heads(maps) for maps in seen))

    @property
    def critic_training(self) -> CriticTraining:
        return CriticTraining(updates=self.critic_updates, lr=self.critic_lr, betas=(0.0, 0.99))

    @property
    def grid(self) -> Trajectory | None:
        return uniform(self.steps)

    @property
    def needs_images(self) -> bool:
        """Only for the heads to tell from the student's."""
        return self.adversarial > 0

    @property
    def network_calls(self) -> float:
        """Of the student's update; those of the critic's the trainer counts as they are made."""
        return self.steps + 3.0 + (self.adversarial > 0)


def _noised(roles: Roles, sample: Sample, draw: Draw) -> tuple[PerSample, Sample]:
    """(t, the sample noised to t), by one draw alike for real and fake."""
    level, (low, high) = draw.fork("level"), LEVELS
    t = low + (high - low) * level.u
    return t, diffuse(sample, level.noise, roles.student.schedule.angle(t))


def _fake(roles: Roles) -> Denoiser:
    fake = roles.critic.denoiser
    return fake if roles.condition is None else fake.with_condition(roles.condition)

"""Phased consistency: the student jumps from any point of a phase to the phase's end, and M jumps make an image.

Wang et al. 2024 (PCM, arXiv 2405.18407), also multistep consistency models (Heek et al. 2024, arXiv 2403.06807). The N times
k/N are cut into M phases with edges m/M. As in consistency, the target lands where a teacher's hop, then the target itself
lands, but at the phase's lower edge instead of the data; so no step adds noise, and one phase is consistency.

With `adversarial` above 0 a critic compares landings by the teacher's features (diffcore.methods.parts.discriminator), noised
a little further, where the two overlap.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.methods import CriticTraining, Roles, WithCritic
from diffcore.methods.parts import discriminator
from diffcore.methods.parts.discriminator import Discriminator, fooling, hinge
from diffcore.methods.parts.distance import pseudo_huber
from diffcore.noise.angle import compose, diffuse, hop
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory, uniform

DISCRIMINATOR_HEADS = 4
"""Of the critic, for each feature map: the paper's."""


@dataclass(frozen=True)
class Times:
    """[b] each: a time t = k/N, the end u = (k-1)/N of the teacher's hop, the lower edge s of the phase; s <= u < t."""

    t: PerSample
    u: PerSample
    s: PerSample

    def angles(self, schedule: Schedule) -> tuple[PerSample, PerSample, PerSample]:
        """phi of each, float64."""
        return schedule.angle(self.t), schedule.angle(self.u), schedule.angle(self.s)


@dataclass(frozen=True)
class Phased(WithCritic):
    """steps: N, the teacher's grid t = k/N. phases: M, the student's steps; it must divide N.

    target_ema: decay of the EMA that the student must agree with, 0 for itself. distance: squared error of v, or pseudo-Huber
    sqrt(|.|^2 + c^2) - c with c = huber sqrt(d). weight: the distance is of v, or of the landings at the edge, which differ
    by sin(phi_t - phi_s) times as much. adversarial: weight of the critic's part, 0 for no critic (the paper's is 0.1, beside
    a distance averaged over pixels). critic_lr: how fast the critic learns.
    """

    steps: int = 64
    phases: int = 4
    target_ema: float = 0.0
    distance: Literal["squared", "pseudo_huber"] = "pseudo_huber"
    huber: float = 0.00054
    weight: Literal["one", "endpoint"] = "one"
    adversarial: float = 0.0
    critic_lr: float = 1e-3

    sampler = "ddim"
    off_the_data = True

    def __post_init__(self):
        for name in ("steps", "phases"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps % self.phases:
            nearest = self.phases * max(1, (2 * self.steps + self.phases) // (2 * self.phases))
            raise ValueError(
                f"phases must divide steps, but {self.phases} does not divide {self.steps}; the nearest steps is {nearest}"
            )
        if not 0 <= self.target_ema < 1:
            raise ValueError(f"target_ema must be in [0, 1), got {self.target_ema}")
        if self.adversarial < 0:
            raise ValueError(f"adversarial must not be negative, got {self.adversarial}")
        if self.huber <= 0 or self.critic_lr <= 0:
            raise ValueError(f"huber and critic_lr must be positive, got {self.huber} and {self.critic_lr}")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """The distance at t = k/N, k ~ U{1..N}, from the velocity that lands on the edge where teacher and target land."""
        at = self.times(draw.u)
        phi_t, _, phi_s = at.angles(roles.student.schedule)
        z = diffuse(x0, draw.noise, phi_t)
        v, goal = roles.student(z, at.t).v, aim(roles, z, at)
        error = v - goal
        if self.weight == "endpoint":
            error = lift((phi_t - phi_s).sin(), error) * error
        distance = self._distance(error)
        if not self.adversarial:
            return distance
        return distance + self.adversarial * fooling(self._logits(roles, hop(z, v, phi_t - phi_s), draw, at.s))

    def times(self, u: PerSample) -> Times:
        """For each uniform number. An edge, as the point where a jump begins, belongs to the phase below it."""
        n, per_phase = self.steps, self.steps // self.phases
        k = (u * n).floor() + 1
        return Times(k / n, (k - 1) / n, torch.div(k - 1, per_phase, rounding_mode="floor") / self.phases)

    def critic(self, roles: Roles, seed: int) -> Discriminator | None:
        """None without an adversarial part."""
        if not self.adversarial:
            return None
        return Discriminator(discriminator.widths(roles.teacher), DISCRIMINATOR_HEADS, seed)

    def critic_loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Hinge: real is where the target lands on the edge, fake where the student does, both noised alike."""
        at = self.times(draw.u)
        phi_t, _, phi_s = at.angles(roles.student.schedule)
        z = diffuse(x0, draw.noise, phi_t)
        with torch.no_grad():
            landings = [hop(z, v, phi_t - phi_s) for v in (aim(roles, z, at), roles.student(z, at.t).v)]
        return hinge(*(self._logits(roles, landing, draw, at.s) for landing in landings))

    @property
    def critic_training(self) -> CriticTraining:
        return CriticTraining(updates=1, lr=self.critic_lr, betas=(0.0, 0.999))

    @property
    def teacher_grid(self) -> Trajectory | None:
        """Its hops are those of the grid of N steps; a critic is shown images between them."""
        return None if self.adversarial else uniform(self.steps)

    def advice(self, teacher: Trajectory) -> str:
        return ("set adversarial to 0 or " if self.adversarial else "") + super().advice(teacher)

    @property
    def grid(self) -> Trajectory | None:
        return uniform(self.phases)

    @property
    def network_calls(self) -> float:
        """Of the loss; the critic's part adds calls of half a network, its features, which the trainer's meter counts."""
        return 5.0

    @property
    def target_decay(self) -> float:
        return self.target_ema

    @property
    def one_graph(self) -> bool:
        return not self.adversarial

    def _logits(self, roles: Roles, landing: Sample, draw: Draw, s: PerSample) -> list[torch.Tensor]:
        """What the critic says of a landing on s once it is noised up to a time in (s, s + 1/M), in the teacher's features.

        Landings of one draw get one noise, so that they differ in nothing else.
        """
        fork, schedule = draw.fork("adversary"), roles.student.schedule
        t = s + fork.u / self.phases
        noisy = renoise(landing, fork.noise, schedule.angle(s), schedule.angle(t))
        return roles.critic(roles.teacher.features(noisy, t))

    def _distance(self, error: Sample) -> PerSample:
        if self.distance == "squared":
            return error.flatten(1).square().mean(1)
        return pseudo_huber(error, self.huber)


@torch.no_grad()
def aim(roles: Roles, z: Sample, at: Times) -> Sample:
    """The velocity at z whose one hop to s lands where the teacher's hop to u, then the target's to s land."""
    phi_t, phi_u, phi_s = at.angles(roles.student.schedule)
    va = roles.teacher(z, at.t).v
    vb = roles.target(hop(z, va, phi_t - phi_u), at.u).v
    vb = torch.where(lift(at.u - at.s, vb) > 0, vb, 0)  # a hop of no length; an x0 network has no v at the data
    return compose(z, va, vb, phi_t - phi_u, phi_u - phi_s)


def renoise(z: Sample, eps: Sample, phi_s: PerSample, phi: PerSample) -> Sample:
    """From angle phi_s up to phi by the process itself: alpha is cos(phi)/cos(phi_s) times what it was.

    The noise's variance is sin^2(phi) - (cos(phi)/cos(phi_s))^2 sin^2(phi_s), here as a product, which cancels nowhere.
    """
    std = ((phi - phi_s).sin() * (phi + phi_s).sin()).sqrt() / phi_s.cos()
    return lift(phi.cos() / phi_s.cos(), z) * z + lift(std, z) * eps

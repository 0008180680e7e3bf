"""The times at which a sampler looks."""

import itertools
from dataclasses import dataclass

from diffcore.mistake import Mistake


@dataclass(frozen=True)
class Trajectory:
    """K + 1 falling times from the first look to the result: K steps. Usually from 1 to 0."""

    times: tuple[float, ...]

    def __post_init__(self):
        falling = all(t > s for t, s in itertools.pairwise(self.times))
        if len(self.times) < 2 or not falling or self.times[0] > 1 or self.times[-1] < 0:
            raise Mistake(
                f"a trajectory needs at least two times that fall from at most 1 to at least 0, got {self.times}"
            )

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(t, s) of each step."""
        return tuple(itertools.pairwise(self.times))

    def halved(self) -> "Trajectory":
        """Every second time; the number of steps must be even."""
        if self.steps % 2:
            raise Mistake(f"a trajectory of {self.steps} steps cannot be halved")
        return Trajectory(self.times[::2])


def even(steps: int) -> Trajectory:
    """t = k/K: equal angles on the cosine schedule, diffusers' "trailing" spacing."""
    _check(steps)
    return Trajectory(tuple(k / steps for k in range(steps, -1, -1)))


def quadratic(steps: int) -> Trajectory:
    """t = (k/K)^2: small steps near the data (DDIM's, arXiv 2010.02502, appendix D.2)."""
    _check(steps)
    return Trajectory(tuple((k / steps) ** 2 for k in range(steps, -1, -1)))


def nodes(places: list[int], total: int) -> Trajectory:
    """The trajectory through t = n/N for the given rising n in 1..N, ending at 0: K nodes are K network calls."""
    if not places or any(a >= b for a, b in itertools.pairwise(places)) or places[0] < 1 or places[-1] > total:
        raise Mistake(f"nodes must rise within 1..{total}, got {places}")
    return Trajectory((*(n / total for n in reversed(places)), 0.0))


def _check(steps: int) -> None:
    if steps < 1:
        raise Mistake(f"a trajectory needs at least 1 step, got {steps}")

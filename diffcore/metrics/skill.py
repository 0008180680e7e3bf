"""What a feature network is good for."""

from dataclasses import dataclass
from typing import Literal

NEAR_CHANCE = 0.2
"""Of the way from chance to always right: a network below that has learned next to nothing of its task."""


@dataclass(frozen=True)
class Skill:
    """How well a feature network tells apart what it was trained to, on images held out of its training: see `Card`."""

    task: Literal["classes", "rotations"]
    outputs: int
    accuracy: float
    chance: float

    @property
    def is_near_chance(self) -> bool:
        return self.accuracy - self.chance < NEAR_CHANCE * (1 - self.chance)

    @property
    def warning(self) -> str | None:
        """What to say of distances in such features, None where they can be trusted."""
        if not self.is_near_chance:
            return None
        return (
            f"the feature network tells its {self.outputs} {self.task} apart hardly better than chance (accuracy "
            f"{self.accuracy:.3f}, chance {self.chance:.3f}), so fd and kid mean little; raise features.iterations"
        )

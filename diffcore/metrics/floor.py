"""What a perfect sampler is to expect of each distance, and of captions."""

from dataclasses import dataclass
from typing import Any, Literal

from diffcore.metrics.estimate import Estimate, Scored


@dataclass(frozen=True)
class Floor(Scored):
    """What a perfect sampler, whose samples are new real images, is to expect of `n` = (N samples, M real images).

    metrics: of each Distance, from real images alone, and `caption_accuracy` of real images and their own captions. real:
    "halves", the mean over halvings of them, or "held-out", real images that no training saw against the others. compared:
    how many against how many that was. A Frechet distance of
    equal distributions is proportional to 1/n + 1/m (to 3 % where halves have as many images as features, measured on
    Gaussians), so it is brought to N and M by that; kid is 0 in the mean at any counts. The standard errors are those of
    these estimates: over halvings, right for a thousand images and up to twice too small below two hundred; over held-out
    images that of a point. What one set of N perfect samples scores lies about its own standard error around the floor, as
    often below as above.
    """

    metrics: dict[str, Estimate]
    n: tuple[int, int]
    compared: tuple[int, int]
    real: Literal["halves", "held-out"]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        counts = {"n": list(self.n), "compared": list(self.compared), "real": self.real}
        return {"metrics": {name: vars(each) for name, each in self.metrics.items()}, **counts}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Floor":
        """The inverse of `to_json`."""
        metrics = {name: Estimate(**each) for name, each in value["metrics"].items()}
        return cls(**{**value, "metrics": metrics, "n": tuple(value["n"]), "compared": tuple(value["compared"])})

"""What is trained on, and what is held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data.tars import printable


@dataclass(frozen=True)
class Split:
    """Which images are trained on, and which are held out: written apart, and never trained on.

    train: names of folders (train/, ...) at the top of a folder source; None for all that are not held out.
    holdout: such names, or the share of the images to hold out. A share is drawn by the images' names, so that one that is
    held out stays so when others are added.
    """

    train: list[str] | None = None
    holdout: list[str] | float | None = None

    def __post_init__(self):
        if self.train is None and self.holdout is None:
            raise ValueError("say train, holdout or both; leave split null to train on all")
        if self.train == [] or self.holdout == []:
            raise ValueError("train and holdout must name at least one folder of a split; leave the key out for none")
        if isinstance(self.holdout, float | int) and not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be names of split folders or a share between 0 and 1, not {self.holdout}")
        both = sorted({name.lower() for name in self.train or ()} & {name.lower() for name in self.names})
        if both:
            raise ValueError(f"the split {both[0]} is both trained on and held out; name it once")

    @property
    def names(self) -> list[str]:
        """Of the folders that are held out."""
        return self.holdout if isinstance(self.holdout, list) else []

    @property
    def share(self) -> float:
        """Of the images that are held out, 0 where folders are named."""
        return 0.0 if self.holdout is None or isinstance(self.holdout, list) else self.holdout


def divide(entries: Sequence[Any], split: Split | None, place: str) -> tuple[list[Any], list[Any], list[str]]:
    """Which entries (each with `split` and `images`) are trained on, which are held out, and what a user should hear of it.

    Raises UserError if `split` names one that there is not.
    """
    sizes = {
        name: sum(entry.images for entry in entries if entry.split == name)
        for name in sorted({entry.split for entry in entries if entry.split is not None})
    }
    trained, held = _chosen(sizes, split, place) if split else (list(sizes), [])
    kept = [entry for entry in entries if entry.split in (*trained, None)]
    out = [entry for entry in entries if entry.split in held]
    return kept, out, _notes(sizes, split, trained, held)


def _chosen(sizes: dict[str, int], split: Split, place: str) -> tuple[list[str], list[str]]:
    # the folders to train on and to hold out, by the names that they have
    by_name = {name.lower(): name for name in sizes}
    for name in (*(split.train or ()), *split.names):
        if name.lower() not in by_name:
            splits = f"has {', '.join(map(printable, sizes))}" if sizes else "is not divided into train/, test/, ..."
            raise UserError(f"data.split: there is no split {name!r}; {printable(place)} {splits}")
    held = [by_name[name.lower()] for name in split.names]
    if split.train is not None:
        return [by_name[name.lower()] for name in split.train], held
    return [name for name in sizes if name not in held], held


def _notes(sizes: dict[str, int], split: Split | None, trained: list[str], held: list[str]) -> list[str]:
    descriptions = {name: f"{printable(name)}/ ({count} images)" for name, count in sizes.items()}
    if split is None and len(sizes) > 1:
        example = next((name for name in sizes if not name.lower().startswith("train")), min(sizes))
        remedy = f"data.split: {{holdout: [{printable(example)}]}} holds one out"
        return [f"trains on all splits, {' and '.join(descriptions.values())}; {remedy}"]
    left = [descriptions[name] for name in sizes if name not in (*trained, *held)]
    return [f"{' and '.join(left)}: neither trained on nor held out, as data.split says"] if left else []

"""What was read of a source, what of it could not be, and what a user hears of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffcore.core.errors import UserError
from diffcore.data import fitting, folders
from diffcore.data.tars import few, printable

MOST_BAD = 100  # unreadable images that are looked for beyond the tolerance, so that all can be named at once
MOST_AFTER = 10_000  # images that are looked through for them


class Sample(NamedTuple):
    """An image that could be read.

    content: as the member of a tar wants it. enlarged: whether it was smaller. peak: as in `Fitted`. blank: of one colour
    throughout.
    """

    content: Any
    label: int | None
    enlarged: bool
    peak: int | None
    blank: bool
    caption: str | None = None


@dataclass
class Tally:
    """What was read so far; `entry` and `taken` say up to where: `taken` images of that entry of the source. captioned:
    whether images have captions."""

    found: int
    tolerance: float
    images: int = 0
    bad: int = 0
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    refused_at: int | None = None
    labelled: bool | None = None
    counts: list[int] = field(default_factory=list)
    enlarged: int = 0
    blank: list[str] = field(default_factory=list)
    deep: int = 0
    peak: int = 0
    dim: list[str] = field(default_factory=list)
    entry: int = 0
    taken: int = 0
    captioned: bool = False

    def lose(self, name: str, images: int, reason: str) -> None:
        self.quarantined.append({"name": name, "images": images, "reason": reason})
        self.bad += images
        if self.bad > self.tolerance * self.found and self.refused_at is None:
            self.refused_at = self.images + self.bad

    def count(self, name: str, sample: Sample) -> None:
        self.images += 1
        self.taken += 1
        self.enlarged += sample.enlarged
        self.blank += [name] * sample.blank
        if sample.peak is not None:
            self.deep += 1
            self.peak = max(self.peak, sample.peak)
            self.dim += [name] * (sample.peak < fitting.FULL // 16)
        self._label(name, sample.label)
        if self.captioned and not sample.caption:
            raise UserError(f"data.captions: {name} has no caption: give it one, or set data.captions to null")

    def _label(self, name: str, label: int | None) -> None:
        if self.labelled is None:
            self.labelled = label is not None
        if self.labelled != (label is not None):
            has, first = ("no", "has one") if label is None else ("a", "has none")
            raise UserError(f"{name} has {has} label and the first image {first}: label all images or none")
        if label is not None:
            self.counts += [0] * (label + 1 - len(self.counts))
            self.counts[label] += 1

    def next_entry(self) -> None:
        self.entry, self.taken = self.entry + 1, 0
        if self.refused_at is not None:
            after = self.images + self.bad - self.refused_at
            if self.bad >= MOST_BAD or after >= MOST_AFTER:
                raise self._refusal()

    def judge(self, bits: int | None) -> None:
        """Raises UserError if what was read cannot be trained on."""
        if self.refused_at is not None:
            raise self._refusal()
        if bits is None and self.deep and self.peak <= fitting.FULL // 2:
            fault = f"the brightest of {self.deep} images with 16 bits is at {self.peak} of {fitting.FULL}"
            likely = max(self.peak.bit_length(), 9)
            raise UserError(
                f"{fault}, so they would come out dark: set data.bits to {likely}, or to 16 if they are that dark"
            )

    def report(self, classes: tuple[str, ...] | None, splits: dict[str, int] | None, size: int | None) -> list[str]:
        """What a user should hear of it, a line each.

        classes: names by label, None without labels. splits: images in each of a folder's. size: the side asked for.
        """
        lines = [f"{self.images} of {self.found} images read" + _dealt_out(splits)]
        if self.bad:
            lines.append(f"{self.bad} images cannot be read and are left out ({_quarantine(self.quarantined)})")
        if self.enlarged:
            lines.append(f"{self.enlarged} images were smaller than {size} and are enlarged")
        if self.blank:
            lines.append(f"{len(self.blank)} images are of one colour throughout ({few(self.blank)})")
        if self.dim:
            lines.append(f"{len(self.dim)} of {self.deep} images with 16 bits are nearly black ({few(self.dim)})")
        return lines + (_class_lines(classes, self.counts) if classes else ["no labels"])

    def _refusal(self) -> UserError:
        seen, share = self.images + self.bad, math.ceil(1000 * self.bad / self.found) / 1000
        of = f"{self.bad} of {self.found}" if seen == self.found else f"{self.bad} of the first {seen} of {self.found}"
        fault = f"{of} images cannot be read ({_quarantine(self.quarantined)})"
        return UserError(f"{fault}: mend or remove them" + (f", or set data.tolerance to {share}" if share < 1 else ""))


def _quarantine(quarantined: Sequence[dict[str, Any]], most: int = 8) -> str:
    reasons = "; ".join(f"{each['name']}: {each['reason']}" for each in quarantined[:most])
    return reasons + (f"; and {len(quarantined) - most} more" if len(quarantined) > most else "")


def _dealt_out(splits: dict[str, int] | None) -> str:
    return " (" + ", ".join(f"{count} in {printable(name)}" for name, count in splits.items()) + ")" if splits else ""


def _class_lines(classes: tuple[str, ...], counts: list[int]) -> list[str]:
    counts = counts + [0] * (len(classes) - len(counts))
    sizes = [f"{name} {count}" for name, count in zip(classes, counts)]
    lines = [f"{len(classes)} classes: {_shortened(sizes)}"]
    empty = [name for name, count in zip(classes, counts) if not count]
    if empty:
        lines.append(f"warning: {len(empty)} of {len(classes)} classes have no images: {_shortened(empty)}")
    if len(classes) == 1:
        lines.append(f"warning: all images are of one class, {classes[0]}; data.labels: none reads them without")
    splits = [name for name in classes if name.lower() in folders.SPLITS]
    if splits:
        lines.append(
            f"warning: {', '.join(splits)} was read as a class and not as a split, as other folders lie beside it"
        )
    return lines


def _shortened(items: Sequence[str], most: int = 12) -> str:
    if len(items) <= most:
        return ", ".join(items)
    return ", ".join([*items[: most - 4], f"... ({len(items) - most} more)", *items[-4:]])

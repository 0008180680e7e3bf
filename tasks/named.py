"""What a word on the command line names: a point of the frontier, a checkpoint of this project, or a folder that is one."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from diffcore.checkpoints import Card, read_card
from diffcore.core.errors import UserError
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from tasks import paths
from tasks.report import checkpoint_of

MOST = 6
"""Names that a refusal lists."""


@dataclass(frozen=True)
class Named:
    """word: as it was typed. folder: the checkpoint's. point: None where a checkpoint was named and no point of it."""

    word: str
    folder: Path
    point: Point | None = None

    @property
    def card(self) -> Card:
        """The checkpoint's, sealed; its files are not looked at."""
        return read_card(self.folder)


def find(word: str) -> Named:
    """A UserError for a word that names nothing, with the nearest name, and for a point whose checkpoint is another now."""
    by_name = points()
    if word in by_name:
        return Named(word, checkpoint_of(by_name[word]), by_name[word])
    checkpoints = sorted(path.parent.name for path in paths.CHECKPOINTS.glob("*/card.json"))
    if word in checkpoints:
        return Named(word, paths.CHECKPOINTS / word)
    folder = Path(word)
    if (folder / "card.json").is_file():
        return Named(word, folder)
    if folder.is_dir():
        raise UserError(f"{word} is not a checkpoint: it has no card.json; name a folder that `distill` has written")
    raise UserError(f"there is no point, checkpoint or folder {word!r}{_near(word, [*checkpoints, *by_name])}")


def points() -> dict[str, Point]:
    """Those of the frontier by name; none where there is no frontier yet."""
    if not paths.FRONTIER.exists():
        return {}
    return {point.name: point for point in Frontier.read(paths.FRONTIER, paths.again("frontier")).points}


def _near(word: str, names: list[str]) -> str:
    if not names:
        return ", and nothing is trained in this folder yet; run the pipeline first: distill run"
    if near := difflib.get_close_matches(word, names, n=1):
        return f", did you mean {near[0]}?"
    more = ", ..." if len(names) > MOST else ""
    return f"; there are {', '.join(names[:MOST])}{more} (`distill report` lists the points)"

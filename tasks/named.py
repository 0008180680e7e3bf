"""What a word on the command line names: a point of the frontier, a checkpoint of this project, a folder that is one, or an
alias of the model that is registered in MLflow."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from diffcore.checkpoints import Card, read_card
from diffcore.core.errors import UserError
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from tasks import params, paths
from tasks.report import checkpoint_of
from tasks.tracking import registered
from tasks.tracking.models import identity_of
from tasks.tracking.registered import ALIAS, Registered

MOST = 6
"""Names that a refusal lists."""


@dataclass(frozen=True)
class Sampling:
    """How a checkpoint is sampled. recipe: as JSON. gamma: the file for a sampling by the analytic solver. bf16: whether the
    network is called in bfloat16."""

    recipe: str
    times: tuple[float, ...]
    gamma: Path | None
    bf16: bool = False


@dataclass(frozen=True)
class Named:
    """word: as it was typed. folder: the checkpoint's. point: None where a checkpoint was named, and for an alias whose point
    is not of this folder's frontier. registered: what an alias stands for. sampling: None where a checkpoint was named."""

    word: str
    folder: Path
    point: Point | None = None
    registered: Registered | None = None
    sampling: Sampling | None = None

    @property
    def card(self) -> Card:
        """The checkpoint's, sealed; its files are not looked at."""
        return read_card(self.folder)

    @property
    def title(self) -> str:
        """The word, and of an alias what it stands for."""
        return f"{self.word} ({self.registered})" if self.registered else self.word


def find(word: str) -> Named:
    """What lies in this folder comes before an alias of the same name; `@NAME` is the alias alone.

    A UserError for a word that names nothing, with the nearest name, and for a point whose checkpoint is another now.
    """
    if word.startswith(ALIAS):
        return _alias(word, word.removeprefix(ALIAS))
    by_name = points()
    if word in by_name:
        return _of_point(word, by_name[word])
    if (folder := checkpoint(word)) is not None:
        return Named(word, folder)
    fault = f"there is no point, checkpoint or folder {word!r}"
    if Path(word).is_dir():
        fault = f"{word} is not a checkpoint: it has no card.json; name a folder that `distill` has written"
    else:
        fault += _near(word, [*_checkpoints(), *by_name])
    if registered.is_there():
        return _alias(word, word, fault)
    raise UserError(fault)


def checkpoint(word: str) -> Path | None:
    """The folder of the checkpoint of this project, or of the one at this path, that a word names; None for none."""
    folders = [paths.CHECKPOINTS / word] if word in _checkpoints() else [Path(word)]
    return next((folder for folder in folders if (folder / "card.json").is_file()), None)


def _checkpoints() -> list[str]:
    return sorted(path.parent.name for path in paths.CHECKPOINTS.glob("*/card.json"))


def points() -> dict[str, Point]:
    """Those of the frontier by name; none where there is no frontier yet."""
    if not paths.FRONTIER.exists():
        return {}
    return {point.name: point for point in Frontier.read(paths.FRONTIER, paths.again("frontier")).points}


def _of_point(word: str, point: Point) -> Named:
    sampling = Sampling(point.recipe, point.times, paths.GAMMA, point.precision == "bf16")
    return Named(word, checkpoint_of(point), point, sampling=sampling)


def _alias(word: str, alias: str, fault: str = "") -> Named:
    """What an alias stands for. fault: what is wrong with the word where it is none."""
    model = params.read().publish.model
    try:
        aliases = registered.aliases(model)
    except UserError as error:
        raise UserError(f"{fault}; aliases are not there either: {error}" if fault else str(error)) from error
    if alias not in aliases:
        listing = registered.listing(model, aliases)
        raise UserError(f"{fault}; {listing}" if fault else f"no version holds the alias {alias!r}; {listing}")
    version = registered.fetch(model, aliases[alias])
    identity = {key: version.tags.get(key) for key in ("digest", "recipe", "trajectory", "nfe")}
    alike = (p for p in points().values() if p.times == version.times and identity_of(p) == identity)
    sampling = Sampling(version.recipe, version.times, version.gamma)
    return Named(word, version.folder, next(alike, None), version, sampling)


def _near(word: str, names: list[str]) -> str:
    if not names:
        return ", and nothing is trained in this folder yet; run the pipeline first: distill run"
    if near := difflib.get_close_matches(word, names, n=1):
        return f", did you mean {near[0]}?"
    more = ", ..." if len(names) > MOST else ""
    return f"; there are {', '.join(names[:MOST])}{more} (`distill report` lists the points)"

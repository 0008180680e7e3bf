"""`distill promote`: the alias `production` of the registered model, which a person moves and no stage does.

Who held it before keeps the alias `previous_production`, so that going back is `distill promote @previous_production`. A note
stands as the tag `production_note` of the version.
"""

import difflib
import os
from typing import Any

from diffcore.core.errors import UserError
from diffcore.metrics.point import Point
from tasks.progress import log
from tasks.tracking.client import LOCAL, alone, ask, every, explained, open_store, signed_in
from tasks.tracking.models import identity_of
from tasks.tracking.registered import ALIAS, IDENTITY, aliases_of, listing, refuse_unfit

PRODUCTION, PREVIOUS = "production", "previous_production"
NOTE = "production_note"
LONGEST = 500
"""Characters of a note: of a tag's value that all of MLflow's stores take."""


def promote(model: str, word: str, point: Point | None, note: str | None = None, here: bool = False) -> list[str]:
    """Moves `production` of the registered model to the version that a word names; what has changed, a line each.

    word: a point, or an alias of the model; `@NAME` is the alias alone. point: as the frontier of this folder has it, None
    where it has no point of this name: then the newest version that was registered under the name counts, and where there is
    none the version of the alias of this name. here: whether a checkpoint of this folder has the name, which comes before an
    alias (`tasks/named.py`). A UserError, with nothing changed, for what is not registered, and for an alias whose version is
    production already: such a word moves nothing, which its author does not see.
    """
    if note is not None and not 0 < len(note.strip()) <= LONGEST:
        raise UserError(f"--note must have 1 to {LONGEST} characters, got {len(note)}")
    aloud: list[str] = []
    try:
        with signed_in(os.environ.get("MLFLOW_TRACKING_URI") or LOCAL) as address:
            ask(address)
            with alone(address), explained(address):
                client = open_store(address, aloud)
                return _moved(client, model, _version_of(client, model, word, point, here), note)
    finally:
        for line in aloud:
            log(f"promote: {line}")


def _moved(client: Any, model: str, version: Any, note: str | None) -> list[str]:
    name, number = version.tags["point"], str(version.version)
    before = aliases_of(client, model).get(PRODUCTION)
    lines = [f"{name} is {PRODUCTION} of {model!r} already (version {number})"]
    if before != number:
        lines = [f"{PRODUCTION} of {model!r} is version {number} now, {name}"]
        if before is not None:  # first, so that a kill between the two loses nobody
            client.set_registered_model_alias(model, PREVIOUS, before)
            lines.append(f"{PREVIOUS} is version {before}, {_way_back(client.get_model_version(model, before))}")
        client.set_registered_model_alias(model, PRODUCTION, number)
    if note is not None:
        client.set_model_version_tag(model, number, NOTE, note.strip())
        lines.append(f"note: {note.strip()}")
    return lines


def _way_back(version: Any) -> str:
    if not version.tags.keys() >= IDENTITY:
        return "which `distill publish` did not register; going back is to set the alias in MLflow"
    return f"{version.tags['point']}; `distill promote {ALIAS}{PREVIOUS}` goes back"


def _version_of(client: Any, model: str, word: str, point: Point | None, here: bool) -> Any:
    if word.startswith(ALIAS):
        return _of_alias(client, model, word.removeprefix(ALIAS))
    versions = list(every(lambda token: client.search_model_versions(f"name = '{model}'", page_token=token)))
    alike = [version for version in versions if version.tags.get("point") == word]
    if alike:
        return _of_point(model, word, point, alike)
    aliases = aliases_of(client, model)
    if word in aliases and point is None and not here:
        return _of_alias(client, model, word)
    raise UserError(_unregistered(model, word, {v.tags["point"] for v in versions if "point" in v.tags}, aliases))


def _of_alias(client: Any, model: str, alias: str) -> Any:
    """The version that an alias stands for; a UserError where nobody holds it, where it is not fit to be served, and where it
    is production."""
    aliases = aliases_of(client, model)
    if alias not in aliases:
        raise UserError(f"no version holds the alias {alias!r}; {listing(model, aliases)}")
    version = client.get_model_version(model, aliases[alias])
    described = refuse_unfit(model, version)
    if aliases.get(PRODUCTION) == aliases[alias]:
        name = version.tags["point"]
        raise UserError(
            f"{alias} is {described}, {name}, which is {PRODUCTION} already; "
            f"a note alone: `distill promote {name} --note TEXT`"
        )
    return version


def _of_point(model: str, name: str, point: Point | None, alike: list[Any]) -> Any:
    """The newest sound version of those that were registered under a point's name; a UserError where there is none."""
    if point is not None:
        wanted = identity_of(point)
        alike = [v for v in alike if all(v.tags.get(key) == value for key, value in wanted.items())]
        if not alike:
            raise UserError(
                f"{name} is registered as {model!r} with the weights of an earlier run, not with those of this frontier; "
                "run `distill publish`, which registers it where it is recommended"
            )
    sound = [version for version in alike if "damaged" not in version.tags]
    if not sound:
        raise UserError(f"version {alike[0].version} of {model!r}, {name}, is damaged in MLflow; run `distill publish`")
    return max(sound, key=lambda version: int(version.version))


def _unregistered(model: str, word: str, points: set[str], aliases: dict[str, str]) -> str:
    words = [*sorted(points), *(f"{ALIAS}{alias}" for alias in sorted(aliases))]
    near = difflib.get_close_matches(word, words, n=1)
    hint = f", did you mean {near[0]}?" if near else f"; registered: {', '.join(words) or 'nothing yet'};"
    return (
        f"{word} is not registered as {model!r}{hint} `distill publish` registers the points that are recommended, "
        "best and fastest (publish.tolerance decides which)"
    )

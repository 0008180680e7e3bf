"""`distill promote`: the alias `production` of the registered model, which a person moves and no stage does.

Who held it before keeps the alias `previous_production`, so that going back is `distill promote` of that point. A note stands
as the tag `production_note` of the version.
"""

import difflib
import os
from typing import Any

from diffcore.core.errors import UserError
from diffcore.metrics.point import Point
from tasks.progress import log
from tasks.tracking.client import LOCAL, alone, ask, every, explained, open_store, signed_in
from tasks.tracking.models import identity_of

PRODUCTION, PREVIOUS = "production", "previous_production"
NOTE = "production_note"
LONGEST = 500
"""Characters of a note: of a tag's value that all of MLflow's stores take."""


def promote(model: str, name: str, point: Point | None, note: str | None = None) -> list[str]:
    """Moves `production` of the registered model to the version of the point `name`; what has changed, a line each.

    point: as the frontier of this folder has it, None where it has no point of this name: then the newest version that was
    registered under the name counts. A UserError, with nothing changed, for a point that is not registered.
    """
    if note is not None and not 0 < len(note.strip()) <= LONGEST:
        raise UserError(f"--note must have 1 to {LONGEST} characters, got {len(note)}")
    aloud: list[str] = []
    try:
        with signed_in(os.environ.get("MLFLOW_TRACKING_URI") or LOCAL) as address:
            ask(address)
            with alone(address), explained(address):
                return _moved(open_store(address, aloud), model, name, point, note)
    finally:
        for line in aloud:
            log(f"promote: {line}")


def _moved(client: Any, model: str, name: str, point: Point | None, note: str | None) -> list[str]:
    version = _version_of(client, model, name, point)
    aliases = {key: str(value) for key, value in client.get_registered_model(model).aliases.items()}
    before, number = aliases.get(PRODUCTION), str(version.version)
    lines = [f"{name} is {PRODUCTION} of {model!r} already (version {number})"]
    if before != number:
        lines = [f"{PRODUCTION} of {model!r} is version {number} now, {name}"]
        if before is not None:  # first, so that a kill between the two loses nobody
            client.set_registered_model_alias(model, PREVIOUS, before)
            holder = client.get_model_version(model, before).tags.get("point", "a version without a point")
            lines.append(f"{PREVIOUS} is version {before}, {holder}; `distill promote {holder}` goes back")
        client.set_registered_model_alias(model, PRODUCTION, number)
    if note is not None:
        client.set_model_version_tag(model, number, NOTE, note.strip())
        lines.append(f"note: {note.strip()}")
    return lines


def _version_of(client: Any, model: str, name: str, point: Point | None) -> Any:
    """The newest sound version of the point; a UserError where there is none."""
    versions = list(every(lambda token: client.search_model_versions(f"name = '{model}'", page_token=token)))
    alike = [version for version in versions if version.tags.get("point") == name]
    if not alike:
        raise UserError(_unregistered(model, name, sorted({v.tags["point"] for v in versions if "point" in v.tags})))
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


def _unregistered(model: str, name: str, registered: list[str]) -> str:
    near = difflib.get_close_matches(name, registered, n=1)
    hint = f", did you mean {near[0]}?" if near else f"; registered: {', '.join(registered) or 'nothing yet'};"
    return (
        f"{name} is not registered as {model!r}{hint} `distill publish` registers the points that are recommended, "
        "best and fastest (publish.tolerance decides which)"
    )

"""A workspace: a folder of its own with the code, the graph and the parameters of one more pipeline.

For a preset, a second data set, or a trial that must not touch the first pipeline's artifacts. It is made again (code and
parameters, not artifacts) each time it is asked for, so it never runs old code. What this command did not put there it never
touches: see tasks.inventory.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError
from tasks import dvc_environment, inventory, params, paths
from tasks.inventory import File
from tasks.lines import is_another_family
from tasks.strict_yaml import load_yaml, parse_yaml, yaml_text

CODE = ("diffcore", "tasks")
FILES = ("dvc.yaml", ".dvcignore", "stage")
DVC_CONFIG = ".dvc/config"
ENVIRONMENT = ".venv"
PRESETS = Path("presets")
OPTIONAL = ("teachers", "distill", "evaluate")
SPACES = ".workspaces"
"""Where the flows make theirs."""

OWN = (*CODE, "console", "flows", "tests", "bench", "docs", "presets", "artifacts", "mlruns")
"""Folders of the repository in which no workspace may lie; those whose names begin with a dot are such folders too."""


def make(target: Path, preset: str | None, changes: list[str]) -> None:
    """Fills `target`. changes: `a.b=value` with the value in YAML, over the preset, over params.yaml.

    A UserError, with nothing written, for parameters that params.read would refuse and for a place that is not ours to fill.
    """
    raw = merged(preset, changes)
    params.parse(raw, f"the parameters of {target}")
    wanted = {**_code(), "params.yaml": File(yaml_text(json.loads(json.dumps(raw))).encode())}
    wanted[ENVIRONMENT] = File(link=str(Path(sys.prefix).resolve()))
    place = _place(target)
    with inventory.alone(place):
        old = inventory.check(place, wanted, free=[ENVIRONMENT])
        inventory.put(place, wanted, old, last="stage")
        (place / "artifacts").mkdir(exist_ok=True)
        if not os.path.lexists(place / ".dvc"):
            _start_dvc(place)


def merged(preset: str | None, changes: list[str]) -> dict[str, Any]:
    """params.yaml, with the preset and the changes laid over it."""
    raw = load_yaml(paths.PARAMS)
    if preset is not None:
        _merge(raw, _preset(preset), f"preset {preset}")
    for change in changes:
        _merge(raw, _change(change), change)
    return raw


def _code() -> dict[str, File]:
    """What every workspace holds a copy of."""
    missing = [name for name in (*CODE, *FILES, DVC_CONFIG) if not Path(name).exists()]
    if missing:
        raise UserError(f"{missing[0]} is missing; run from the folder that holds it")
    inside = [path for name in CODE for path in sorted(Path(name).rglob("*")) if "__pycache__" not in path.parts]
    files = [path for path in (*inside, *map(Path, FILES)) if path.is_file()]
    return {str(path): File(path.read_bytes(), bool(path.stat().st_mode & 0o100)) for path in files}


def _place(target: Path) -> Path:
    """Where links lead to. A UserError for the repository, what it lies in, and its own folders."""
    root = Path.cwd().resolve()
    try:
        place = target.resolve()
    except RuntimeError:  # links in a circle
        raise UserError(f"{target} is a link that leads to itself; name another folder") from None
    if root.is_relative_to(place):
        raise UserError(f"{target} holds the code that the workspace is copied from; name another folder")
    if place.is_relative_to(root):
        first, *more = place.relative_to(root).parts
        if first in OWN or (first.startswith(".") and (first != SPACES or not more)):
            raise UserError(f"{target} lies in {first}, which belongs to the repository; name another folder")
    if above := [folder for folder in (place, *place.parents) if folder.exists() and not folder.is_dir()]:
        raise UserError(f"{above[0]} is no folder; name another one")
    return place


def _start_dvc(place: Path) -> None:
    """Makes `.dvc` beside its place and renames it there, so that none is half made."""
    with inventory.scratch(place) as scratch:
        surroundings = {**os.environ, **dvc_environment.of(place)}
        _dvc(scratch, surroundings, "init", "--no-scm", "--quiet")
        shutil.copy(DVC_CONFIG, scratch / DVC_CONFIG)
        _dvc(scratch, surroundings, "config", "core.no_scm", "true")
        (scratch / ".dvc").rename(place / ".dvc")


def _dvc(folder: Path, surroundings: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError(f"dvc {arguments[0]} failed in {folder}: {said[-1]}")


def _preset(name: str) -> dict[str, Any]:
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in presets:
        raise UserError(f"no preset {name!r}; known: {', '.join(presets)}")
    return load_yaml(PRESETS / f"{name}.yaml")


def _change(text: str) -> dict[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise UserError(f"--set {text}: write it as section.key=value")
    nested = parse_yaml(value, f"--set {text}")
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return nested


def _merge(into: dict[str, Any], changes: dict[str, Any], whose: str, path: str = "") -> None:
    """Mappings are merged, anything else replaced; `distill` is replaced as a whole unless a line of it is changed.

    A key that params.yaml does not have is a UserError, so that a preset cannot drift from it; but in OPTIONAL sections, of
    which params.parse knows the keys that may be left out.
    """
    for key, value in changes.items():
        where = f"{path}{key}"
        if key not in into and path.partition(".")[0] not in OPTIONAL:
            raise UserError(f"{whose}: params.yaml has no {where}")
        if isinstance(value, dict) and isinstance(into.get(key), dict) and not _replaces(where, value, into[key]):
            _merge(into[key], value, whose, f"{where}.")
        else:
            into[key] = value


def _replaces(where: str, value: dict[str, Any], old: dict[str, Any]) -> bool:
    # a preset lists all its students; a --set changes one line of those there are
    # a folder takes the place of a training's numbers, and another family's keys that of a network's
    if where.startswith("teachers."):
        other = where.endswith(".network") and is_another_family(value, old)
        return other or "from" in value or "from" in old
    one = (not isinstance(line, dict) or len(line) == 1 for line in value.values())
    return where == "distill" and not (value.keys() <= old.keys() and all(one))

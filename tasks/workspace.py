"""A workspace: a folder of its own with the code, the graph and the parameters of one more pipeline.

For a preset, a second data set, or a trial that must not touch the first pipeline's artifacts. It is made again (code and
parameters, not artifacts) each time it is asked for, so it never runs old code.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffcore.mistake import Mistake
from tasks import dvc_environment, params, paths

CODE = ("diffcore", "tasks")
FILES = ("dvc.yaml", ".dvcignore", "stage")
PRESETS = Path("presets")


def make(target: Path, preset: str | None, changes: list[str]) -> None:
    """Fills `target`. changes: `a.b=value` with the value in YAML, over the preset, over params.yaml."""
    merged = params.load_yaml(paths.PARAMS)
    if preset is not None:
        _merge(merged, _preset(preset), f"preset {preset}")
    for change in changes:
        _merge(merged, _change(change), change)
    target.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(name, target / name)
    (target / "artifacts").mkdir(exist_ok=True)
    _link_environment(target)
    params.dump_yaml(json.loads(json.dumps(merged)), target / "params.yaml")
    params.read(target / "params.yaml")
    if not (target / ".dvc").exists():
        surroundings = {**os.environ, **dvc_environment.of(target)}
        dvc = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
        subprocess.run(dvc, cwd=target, env=surroundings, check=True, capture_output=True)
        shutil.copy(".dvc/config", target / ".dvc/config")
        no_scm = [sys.executable, "-m", "dvc", "config", "core.no_scm", "true"]
        subprocess.run(no_scm, cwd=target, env=surroundings, check=True, capture_output=True)


def _link_environment(target: Path) -> None:
    link = target / ".venv"
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(Path(sys.prefix).resolve())


def _preset(name: str) -> dict[str, Any]:
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise Mistake(f"no preset {name!r}; known: {', '.join(known)}")
    return params.load_yaml(PRESETS / f"{name}.yaml")


def _change(text: str) -> dict[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise Mistake(f"--set {text}: write it as section.key=value")
    nested = params.parse_yaml(value, f"--set {text}")
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return nested


def _merge(into: dict[str, Any], changes: dict[str, Any], whose: str, path: str = "") -> None:
    """Mappings are merged, anything else replaced; `distill` is replaced as a whole unless a line of it is changed.

    A key that params.yaml does not have is a Mistake, so that a preset cannot drift from it.
    """
    for key, value in changes.items():
        where = f"{path}{key}"
        if key not in into and path not in ("distill.", "evaluate.students."):
            raise Mistake(f"{whose}: params.yaml has no {where}")
        if isinstance(value, dict) and isinstance(into.get(key), dict) and not _replaces(where, value, into[key]):
            _merge(into[key], value, whose, f"{where}.")
        else:
            into[key] = value


def _replaces(where: str, value: dict[str, Any], old: dict[str, Any]) -> bool:
    # a preset lists all its students; a --set changes one line of those there are
    # a folder takes the place of a training's numbers
    if where == "teacher":
        return "folder" in value
    return where == "distill" and not all(name in old and len(line) == 1 for name, line in value.items())

"""What dvc.yaml says of a stage: the graph is the one place that knows which code a result depends on."""

from pathlib import Path
from typing import Any

from diffcore import disk
from diffcore.mistake import Mistake
from tasks.strict_yaml import load_yaml

GRAPH = Path("dvc.yaml")
REMEDY = "put back the one that belongs to this code"


def check() -> None:
    """A Mistake for a graph that is missing or damaged, before DVC has a word of its own for it."""
    for stage in _stages():
        _body(stage)


def code_digest(stage: str, method: str = "") -> str:
    """Digest of the source files that the stage depends on; another one never resumes this one's state."""
    named = [dep.replace("${item.method}", method) for dep in _body(stage)["deps"]]
    code = [Path(name) for name in named if name.endswith(".py")]
    if missing := [path for path in code if not path.is_file()]:
        raise Mistake(f"{GRAPH}: {stage} depends on {missing[0]}, which is not there; {REMEDY}")
    return disk.digest({str(path): disk.sha256(path) for path in code})


def _stages() -> dict[str, Any]:
    stages = load_yaml(GRAPH).get("stages")
    if not isinstance(stages, dict) or not stages:
        raise Mistake(f"{GRAPH} has no stages; {REMEDY}")
    return stages


def _body(stage: str) -> dict[str, Any]:
    """Its command and dependencies; of a stage for each of several things, those of one."""
    body = _stages().get(stage)
    body = body.get("do", body) if isinstance(body, dict) else None
    deps = body.get("deps", []) if isinstance(body, dict) else None
    if (
        not isinstance(deps, list)
        or not all(isinstance(dep, str) for dep in deps)
        or not isinstance(body.get("cmd"), str)
    ):
        raise Mistake(f"{GRAPH}: the stage {stage} is missing or has no command and list of dependencies; {REMEDY}")
    return {**body, "deps": deps}

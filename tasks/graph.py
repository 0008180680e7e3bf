"""What dvc.yaml says of a stage: the graph is the one place that knows which code a result depends on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.source import syntax
from tasks.paths import (
    ARTIFACTS,
    CHECKPOINTS,
    COST,
    CURVES,
    DATA,
    DRAWN,
    FEATURES,
    FRONTIER,
    GAMMA,
    PARAMS,
    POINTS,
    PROMPTS,
    PUBLISHED,
    QUALITY,
    REFERENCE,
    REPORT,
    SAMPLES,
    TEXT,
    TRAJECTORY,
)
from tasks.strict_yaml import load_yaml

GRAPH = Path("dvc.yaml")
REMEDY = "put back the one that belongs to this code"


KEY = "${key}"
_curve = CURVES / f"{KEY}.csv"
_trained = {str(path) for path in (CHECKPOINTS / KEY, _curve, f"{_curve}.sha256", COST / f"{KEY}.json")}

WRITES = {
    "draw": {str(DRAWN)},
    "shard": {str(DATA)},
    "encode": {str(TEXT), str(PROMPTS)},
    "features": {str(FEATURES)},
    "teachers": _trained,
    "distill": _trained,
    "gamma": {str(GAMMA)},
    "search": {str(TRAJECTORY)},
    "measure_teachers": {str(POINTS / KEY), str(REFERENCE / KEY)},
    "measure": {str(POINTS / KEY)},
    "frontier": {str(SAMPLES), str(ARTIFACTS / "curves.png"), str(QUALITY), str(REPORT)}
    | {str(FRONTIER.with_suffix(x)) for x in (".json", ".csv", ".png")},
    "publish": {str(PUBLISHED)},
}
"""What our own stages write. DVC deletes what a stage is said to write before it starts it, and misses it afterwards."""


COMMANDS = {
    "teachers": f"train {KEY}",
    "distill": f"train {KEY}",
    "measure_teachers": f"measure {KEY}",
    "measure": f"measure {KEY}",
}
"""What stages run that are not called like their verb: DVC joins no two lists, so `teachers` have stages of their own."""


def check() -> None:
    """A UserError for a graph that is missing or damaged, before DVC has a word of its own for it, or deletes the wrong
    thing.

    Our own stages must run and write what they do; what any stage depends on must be there or be made by another; parameters
    must be in params.yaml. What else a user wrote into it is DVC's affair.
    """
    bodies = {stage: _body(stage) for stage in _stages()}
    parameters = load_yaml(PARAMS)
    outputs = {out for stage, body in bodies.items() for out in _outputs(stage, body["outs"], parameters)}
    for stage, body in bodies.items():
        if stage in WRITES:
            _check_own(stage, body)
        for dep in body["deps"]:
            if not ("$" in dep or Path(dep).exists() or any(Path(out).is_relative_to(dep) for out in outputs)):
                raise UserError(f"{GRAPH}: {stage} depends on {dep}, which is not there and no stage makes; {REMEDY}")
        for key in body["params"]:
            if "$" not in key and not _has_key(parameters, key):
                raise UserError(f"{GRAPH}: {stage} depends on {key}, which is not in {PARAMS}; {REMEDY}")


def _outputs(stage: str, outs: list[str], parameters: Any) -> Iterator[str]:
    """What a stage writes; of a stage for each line of a section also what each of those writes."""
    section = re.fullmatch(r"\$\{(\w+)\}", str(_stages()[stage].get("foreach")))
    lines = parameters.get(section[1]) if section and isinstance(parameters, dict) else None
    yield from outs
    yield from (out.replace(KEY, str(line)) for line in (lines if isinstance(lines, dict) else ()) for out in outs)


def _check_own(stage: str, body: dict[str, Any]) -> None:
    command = f"./stage {COMMANDS.get(stage, stage)}"
    if body["cmd"] != command:
        raise UserError(f"{GRAPH}: the command of {stage} is {body['cmd']!r}, not {command!r}; {REMEDY}")
    if wrong := sorted(set(body["outs"]) ^ WRITES[stage]):
        fault = "is not said to write" if wrong[0] in WRITES[stage] else "does not write"
        raise UserError(f"{GRAPH}: {stage} {fault} {wrong[0]}; {REMEDY}")


def _has_key(parameters: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(parameters, dict) or part not in parameters:
            return False
        parameters = parameters[part]
    return True


def code_digest(stage: str, method: str = "") -> str:
    """Digest of the code that the stage depends on; another one never resumes this one's state.

    Of syntax trees, so that neither a comment nor a docstring costs anybody a training that was begun.
    """
    named = [Path(dep.replace("${item.method}", method)) for dep in _body(stage)["deps"]]
    code = [path for path in named if not path.is_relative_to(ARTIFACTS)]
    if missing := [path for path in code if not path.exists()]:
        raise UserError(f"{GRAPH}: {stage} depends on {missing[0]}, which is not there; {REMEDY}")
    files = {
        file for path in code for file in (path.rglob("*.py") if path.is_dir() else [path]) if file.suffix == ".py"
    }
    return disk.digest({str(file): _tree(file) for file in files})


def _tree(file: Path) -> str:
    """A file's syntax tree without what stands there for readers alone."""
    try:
        return syntax(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file} is not Python ({error}); {REMEDY}") from None


def _stages() -> dict[str, Any]:
    stages = load_yaml(GRAPH).get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{GRAPH} has no stages; {REMEDY}")
    return stages


def _body(stage: str) -> dict[str, Any]:
    """Its command, dependencies, parameters and outputs; of a stage for each of several things, those of one."""
    body = _stages().get(stage)
    body = body.get("do", body) if isinstance(body, dict) else None
    deps = body.get("deps", []) if isinstance(body, dict) else None
    if (
        not isinstance(deps, list)
        or not all(isinstance(dep, str) for dep in deps)
        or not isinstance(body.get("cmd"), str)
    ):
        raise UserError(f"{GRAPH}: the stage {stage} is missing or has no command and list of dependencies; {REMEDY}")
    outs = [out for kind in ("outs", "metrics", "plots") for out in _paths(stage, body, kind)]
    return {"cmd": body["cmd"], "deps": deps, "params": _paths(stage, body, "params", files=True), "outs": outs}


def _paths(stage: str, body: dict[str, Any], kind: str, files: bool = False) -> list[str]:
    """The names in a list, each of which may have options. files: those with options are other files' and left out."""
    entries = body.get(kind) or []
    if not isinstance(entries, list) or not all(isinstance(entry, str | dict) for entry in entries):
        raise UserError(f"{GRAPH}: the {kind} of the stage {stage} are no list; {REMEDY}")
    listed = [entry for entry in entries if isinstance(entry, str) or not files]
    return [str(name) for entry in listed for name in ([entry] if isinstance(entry, str) else entry)]

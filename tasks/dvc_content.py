"""What a stage depends on, by content: how one clone tells another which stage it means, and how that one compares.

Code is a digest for each path that dvc.yaml names, parameters are their values, and what other stages have made is their
outputs as dvc.lock has them. Equal content gives equal results, on whichever host.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from diffcore.core import disk

Entry = Mapping[str, Any]
"""What dvc.lock says of one stage: cmd, deps, params, outs."""

Job = dict[str, Any]
"""One stage to run, as JSON: stage, cmd, code, params, and `above`, what it needs of other stages.

Parameters are digests in it: what is sent is kept by Prefect, where no password shall be that a value may hold.
"""


@dataclass(frozen=True)
class Content:
    """One stage of dvc.yaml.

    code: a digest by path. params: values by file and key. needs: by stage above, the paths of its outputs that this one
    reads. cached: whether DVC keeps all that it writes, so that another host can have it.
    """

    name: str
    cmd: str
    code: Mapping[str, str]
    params: Mapping[str, Mapping[str, Any]]
    needs: Mapping[str, tuple[str, ...]]
    cached: bool


def contents(repo: Repo) -> dict[str, Content]:
    """All stages that run a command and stand in dvc.yaml, by name."""
    stages = [stage for stage in repo.index.stages if stage.cmd and stage.path_in_repo == "dvc.yaml"]
    writers = {Path(out.fs_path): (stage.name, out.def_path) for stage in stages for out in stage.outs}
    digests: dict[str, str] = {}
    return {stage.name: _content(stage, writers, digests) for stage in stages}


def _content(stage: Any, writers: Mapping[Path, tuple[str, str]], digests: dict[str, str]) -> Content:
    code: dict[str, str] = {}
    params: dict[str, dict[str, Any]] = {}
    needs: dict[str, list[str]] = {}
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            params[dep.def_path] = dep.read_params()
        elif above := [writer for out, writer in writers.items() if _overlap(out, Path(dep.fs_path))]:
            for name, path in above:
                needs.setdefault(name, []).append(path)
        else:
            if dep.fs_path not in digests:  # many stages name the same package
                digests[dep.fs_path] = _digest(dep)
            code[dep.def_path] = digests[dep.fs_path]
    return Content(
        stage.name,
        stage.cmd if isinstance(stage.cmd, str) else json.dumps(stage.cmd),
        dict(sorted(code.items())),
        json.loads(json.dumps(params, default=str)),  # as it is after a journey: every key a string
        {name: tuple(sorted(set(paths))) for name, paths in sorted(needs.items())},
        all(out.use_cache for out in stage.outs),
    )


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _digest(dep: Any) -> str:
    return str(dep.get_hash().value) if os.path.lexists(dep.fs_path) else "missing"


def job(content: Content, lock: Mapping[str, Entry]) -> Job:
    """The stage for another clone; `lock` holds the stages above."""
    return {
        "stage": content.name,
        "cmd": content.cmd,
        "code": dict(content.code),
        "params": _digests(content),
        "above": {name: _outputs(lock[name], paths) for name, paths in content.needs.items()},
    }


def _digests(content: Content) -> dict[str, dict[str, str]]:
    return {
        file: {name: disk.digest(value) for name, value in values.items()} for file, values in content.params.items()
    }


def _outputs(entry: Entry, paths: tuple[str, ...]) -> dict[str, Any]:
    return {"cmd": entry["cmd"], "outs": [dict(out) for out in entry["outs"] if out["path"] in paths]}


def key(job: Job) -> str:
    """The digest of all that the stage's result depends on."""
    return disk.digest(job)


def differences(content: Content, job: Job) -> list[str]:
    """What of the stage is other here than in the job, in words; nothing if the content is the same."""
    lines = [] if content.cmd == job["cmd"] else [f"its command ({content.cmd!r} here, {job['cmd']!r} there)"]
    lines += [path for path in sorted({*content.code, *job["code"]}) if content.code.get(path) != job["code"].get(path)]
    params = _digests(content)
    for file in sorted({*params, *job["params"]}):
        here, there = params.get(file, {}), job["params"].get(file, {})
        lines += [f"{file} {name}" for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    if set(content.needs) != set(job["above"]):
        lines.append("the stages that it depends on")
    return lines


def strays(job: Job, entry: Entry) -> list[str]:
    """Dependencies with which a stage was not run as the job says: `entry` is its entry in dvc.lock afterwards."""
    wanted = dict(job["code"])
    wanted |= {out["path"]: out.get("md5") for above in job["above"].values() for out in above["outs"]}
    used = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    return sorted(path for path, md5 in used.items() if path in wanted and wanted[path] != md5)

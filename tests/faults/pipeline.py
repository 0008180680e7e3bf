"""A very small pipeline that each trial gets a copy of, and what of it must come out the same whatever happened."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.desk import Desk, remove

ROOT = Path(__file__).resolve().parents[2]
FRONTIER = ["artifacts/frontier.json", "artifacts/frontier.csv", "artifacts/frontier.png", "artifacts/report.html"]
STAGES = {
    "draw": ["artifacts/drawn"],
    "shard": ["artifacts/data"],
    "encode": ["artifacts/text"],
    "features": ["artifacts/features"],
    "train teacher": ["artifacts/checkpoints/teacher", "artifacts/curves/teacher.csv", "artifacts/cost/teacher.json"],
    "train pd2": ["artifacts/checkpoints/pd2", "artifacts/curves/pd2.csv", "artifacts/cost/pd2.json"],
    "train cd": ["artifacts/checkpoints/cd", "artifacts/curves/cd.csv", "artifacts/cost/cd.json"],
    "gamma": ["artifacts/gamma.json"],
    "search": ["artifacts/trajectory.json"],
    "measure teacher": ["artifacts/points/teacher", "artifacts/reference/teacher"],
    "measure pd2": ["artifacts/points/pd2"],
    "measure cd": ["artifacts/points/cd"],
    "frontier": ["artifacts/samples", "artifacts/curves.png", "artifacts/quality.json", *FRONTIER],
    "publish": ["artifacts/published.json", "mlflow.db", "mlruns"],
}  # fmt: skip
"""The stages of the small pipeline in order, by the words that run them, and what each writes."""

LINE = "iterations: 4, batch: 8, lr: 1.0e-3, ema: 0.9"
FROM = "init: teacher, teacher: teacher"
TINY = (
    "data.limit=200",
    "features={channels: 8, dimension: 8, iterations: 3, batch: 16}",
    "teachers.teacher={network: {channels: [8], layers: 1, groups: 4}, iterations: 8, batch: 8, lr: 1.0e-3, ema: 0.9}",
    f"distill={{pd2: {{method: progressive, {FROM}, steps: 2, {LINE}}},"
    f" cd: {{method: consistency, {FROM}, steps: 4, target_ema: 0.5, {LINE}}}}}",
    "gamma={steps: 20, images: 4, batch: 80}",
    "search={most: 4}",
    "evaluate={images: 20, batch: 20, likelihood: {images: 2}, fitted: {points: 6, images: 4, batch: 4},"
    " any_time_students: [{sampler: multistep_consistency, trajectory: uniform, steps: [1]}],"
    " teacher: [{sampler: ddim, trajectory: uniform, steps: [2]}, {sampler: ddim, trajectory: least_cost, steps: [2]},"
    " {sampler: analytic, trajectory: uniform, steps: [2]}]}",
    "compute={threads: 1, save_seconds: 0.001}",
)

MEASURED = ("ms_per_image", "seconds", "started", "ended")
"""What a clock says, and no two runs share."""


def make(folder: Path) -> None:
    """An empty workspace of the small pipeline, by the very command that a person would use."""
    command = [sys.executable, "-m", "tasks", "workspace", str(folder), "--preset", "smoke"]
    words = [word for change in TINY for word in ("--set", change)]
    done = subprocess.run(command + words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the small pipeline cannot be made:\n{done.stdout}{done.stderr}")


def finish(desk: Desk, folder: Path) -> None:
    """Runs it to its end."""
    done = desk.call(folder, "run")
    if done.code:
        raise SystemExit(f"the small pipeline does not run undisturbed (exit {done.code}):\n{done.text}")


def copy(template: Path, folder: Path) -> Path:
    """A copy to break. Its path is as long as the template's, so that MLflow's absolute paths can follow in place."""
    old, new = str(template).encode(), str(folder).encode()
    assert len(old) == len(new), f"{template} and {folder} must be equally long"
    shutil.copytree(template, folder, symlinks=True)
    known = [folder / "mlflow.db", *folder.glob("mlruns/**/MLmodel"), *folder.glob("mlruns/**/meta.yaml")]
    for path in filter(Path.is_file, known):
        content = path.read_bytes()
        if old in content:
            path.write_bytes(content.replace(old, new))
    return folder


def state(folder: Path) -> dict[str, str]:
    """A digest of everything that must be the same again, by path: clock readings and MLflow's own ids left out."""
    found = {}
    for path in sorted((folder / "artifacts").rglob("*")):
        if not path.is_dir() or path.is_symlink():
            found[str(path.relative_to(folder))] = _digest(path)
    for name in ("params.yaml", "dvc.yaml"):
        found[name] = _digest(folder / name)
    return found | {"dvc.lock": _locked(folder), "mlflow.db": _published(folder)}


def litter(folder: Path, template: Path) -> list[str]:
    """What lies there now and not in the template: half-made things that somebody would have to remove."""
    return sorted(_names(folder) - _names(template))


def _names(folder: Path) -> set[str]:
    places = [folder, folder / ".dvc", *(folder / "artifacts").rglob("*"), folder / "artifacts"]
    found = {str(child.relative_to(folder)) for place in places if place.is_dir() for child in place.iterdir()}
    return {name for name in found if not re.search(r"__pycache__|-(wal|shm|journal)$|^\.dvc/(tmp|cache)", name)}


def _digest(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.name in ("frontier.json", "published.json") or path.parent.name == "cost":
            content = json.dumps(_without_clocks(json.loads(content), path.name), sort_keys=True).encode()
        elif path.name == "frontier.csv":
            content = _csv_without_clocks(content.decode())
        elif path.name == "report.html":  # seconds stand between its other numbers
            content = re.sub(rb"[0-9a-f]{64}|\d+(\.\d+)?(e-?\d+)?", b"#", content)
    except (OSError, ValueError) as error:
        return f"unreadable: {type(error).__name__}"
    return hashlib.sha256(content).hexdigest()[:16]


def _without_clocks(value: Any, name: str) -> Any:
    """MLflow's ids are its own too; so are digests over a file that holds clock readings."""
    if name == "published.json":
        return {key: sorted(part) if isinstance(part, dict) else None for key, part in value.items()}
    own = {"digest", "seal", "sha256"} & set(value)
    return _dropped({key: part for key, part in value.items() if key not in own})


def _dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dropped(part) for key, part in value.items() if key not in MEASURED}
    return [_dropped(part) for part in value] if isinstance(value, list) else value


def _csv_without_clocks(text: str) -> bytes:
    rows = [
        {key: cell for key, cell in row.items() if key not in MEASURED} for row in csv.DictReader(io.StringIO(text))
    ]
    return json.dumps(rows).encode()


def _locked(folder: Path) -> str:
    """Which stages dvc.lock knows, and the digests of all that no clock has a part in."""
    from ruamel.yaml import YAML

    try:
        found = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"]
    except Exception as error:
        return f"unreadable: {type(error).__name__}"
    steady = {
        name: [(out["path"], out.get("md5")) for out in stage.get("outs", []) if _steady(out["path"])]
        for name, stage in found.items()
    }
    return hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()[:16]


def _steady(path: str) -> bool:
    return not re.search(r"/cost/|frontier\.(json|csv)$|report\.html|published", path)


def _published(folder: Path) -> str:
    """What MLflow shows: the finished current runs with how much each holds, and whose weights its models carry."""
    path = folder / "mlflow.db"
    if not path.exists():
        return "none"
    try:
        with sqlite3.connect(path) as book:
            runs = book.execute(
                "select r.name, (select count(*) from metrics m where m.run_uuid = r.run_uuid) from runs r join tags t on "
                "t.run_uuid = r.run_uuid where t.key = 'current' and t.value = 'true' and r.status = 'FINISHED'"
            ).fetchall()
        book.close()
    except sqlite3.Error as error:
        return f"unreadable: {error}"
    weights = {_digest(file) for file in folder.glob("mlruns/**/*.safetensors")}
    return json.dumps([sorted(runs), sorted(weights)])


def weights(folder: Path) -> set[str]:
    return {_digest(file) for file in folder.glob("artifacts/checkpoints/*/unet/*.safetensors")}


def differences(folder: Path, expected: dict[str, str], among: list[str] | None = None) -> list[str]:
    """Paths whose content is not the expected one; `among`: only what lies under these."""
    found = state(folder)
    names = [name for name in {**expected, **found} if among is None or _under(name, among)]
    return sorted(name for name in names if found.get(name) != expected.get(name))


def _under(name: str, places: list[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def unfinish(folder: Path, *stages: str) -> None:
    """Takes away what these stages wrote, and what DVC knows of them."""
    for stage in stages:
        for place in STAGES[stage]:
            target = folder / place
            remove(target) if target.is_dir() else target.unlink(missing_ok=True)
    if os.path.exists(folder / "dvc.lock"):
        os.unlink(folder / "dvc.lock")


def runs(folder: Path) -> list[str]:
    """The names of the finished current runs, in order."""
    found = _published(folder)
    return sorted(name for name, _ in json.loads(found)[0]) if found.startswith("[") else []

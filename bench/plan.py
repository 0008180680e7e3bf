"""What `distill plan` expected against what `distill run` took: seconds, network calls, memory and disk of every stage.

    python bench/plan.py [--preset classes] [--set KEY=VALUE ...] [--slots N] [--folder FOLDER]

makes a fresh workspace (in a temporary folder, removed afterwards, unless FOLDER is named), writes VALUE, as YAML, at the
dotted KEY of its params.yaml, shards where `plan` needs it, plans, and runs. Ratios are of the plan over what was seen: bars
are 0.7 to 1.3 for the time of the whole and 0.85 to 1.15 for memory and disk. Memory is the most that the largest process of
a stage had resident. CPU seconds stand beside the seconds: other work on the machine makes the latter longer.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipeline
import yaml

PLACES = ("artifacts", ".dvc/cache", ".resume", "mlruns", "mlflow.db")
"""Where a run leaves what the plan counts as disk."""


def main() -> None:
    parser = pipeline.parser(__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml")
    options = parser.parse_args()
    with pipeline.workspace(options) as (folder, log):
        change(folder / "params.yaml", dict(each.split("=", 1) for each in options.set))
        plan, before = planned(folder), taken(folder)
        total = pipeline.run(folder, log, options.slots)
        stages = {name(line["words"]): line for line in map(json.loads, log.read_text().splitlines())}
        print("\n".join(table(plan, stages, folder, total, taken(folder) - before)))


def change(path: Path, changes: dict[str, str]) -> None:
    """Writes each value at its dotted key."""
    raw = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split(".")
        inner: Any = raw
        for section in sections:
            inner = inner[section]
        inner[last] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


def planned(folder: Path) -> dict[str, Any]:
    """The plan, after sharding where it asks for it."""
    here = [sys.executable, "-m", "tasks"]
    done = subprocess.run([*here, "plan", "--json"], cwd=folder, capture_output=True, text=True)
    if done.returncode and "distill shard" in done.stderr:
        subprocess.run([*here, "shard"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run([*here, "plan", "--json"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def name(words: list[str]) -> str:
    """A stage of the graph by the words of its command, without which of two lists its line is of."""
    return "@".join(words)


def of_graph(stage: str) -> str:
    """The same of a stage of the plan."""
    verb, _, line = stage.partition("@")
    verb = {"teachers": "train", "distill": "train", "measure_teachers": "measure"}.get(verb, verb)
    return f"{verb}@{line}" if line else verb


def taken(folder: Path) -> int:
    """Bytes on the disk, as the file system counts them."""
    files = (file for place in PLACES for file in [folder / place, *(folder / place).rglob("*")] if file.is_file())
    inodes = {file.stat().st_ino: file.stat().st_size for file in files}
    return sum(inodes.values())


def calls(folder: Path, words: list[str]) -> float:
    return sum(pipeline.calls(folder, *words))


def table(
    plan: dict[str, Any], stages: dict[str, dict], folder: Path, total: dict[str, float], disk: int
) -> Iterator[str]:
    yield "| stage | seconds | planned | CPU s | calls | planned | MB | planned | ratio |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for each in plan["stages"]:
        seen = stages[of_graph(each["name"])]
        seconds, megabytes, expected = seen["to"] - seen["from"], seen["megabytes"], each["bytes"] / 2**20
        counted = calls(folder, seen["words"])
        width = f" x {each['width']}" if each["width"] > 1 else ""
        yield (
            f"| {each['name']} | {seconds:.1f} | {each['seconds']:.1f}{width} | {seen['cpu']:.1f} | {counted:.4g} | "
            f"{each['calls']:.4g} | {megabytes:.0f} | {expected:.0f} | {expected / megabytes:.2f} |"
        )
    yield ""
    yield f"whole: {total['wall']:.0f} s, planned {plan['wall']:.0f} s, ratio {plan['wall'] / total['wall']:.2f}"
    cpu = sum(each["cpu"] for each in stages.values())
    threads = yaml.safe_load((folder / "params.yaml").read_text())["compute"]["threads"]
    expected = plan["seconds"] * threads
    yield f"CPU: stages {cpu:.0f} s, planned {expected:.0f} s of {threads} threads, ratio {expected / cpu:.2f}"
    yield f"disk: {disk / 1e6:.1f} MB, planned {plan['disk'] / 1e6:.1f} MB, ratio {plan['disk'] / disk:.2f}"
    yield f"Others used {total['others']:.2f} processors meanwhile."


if __name__ == "__main__":
    main()

"""Whether two runs gave the same: every checkpoint's weights byte for byte, and the same frontier but for times.

    python bench/compare_runs.py BEFORE/artifacts AFTER/artifacts [--within 0]

Points are compared by their names, in any order; numbers of a point may differ by the share --within. Exit code 1, and a line
for each difference, if there are any.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPENT = ("ms_per_image",)
"""What the clock says, which is never twice the same."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--within", type=float, default=0.0, help="share by which a number may differ; 0 unless told")
    asked = parser.parse_args(arguments)
    for folder in (asked.before, asked.after):
        if not (folder / "frontier.json").is_file():
            parser.error(f"{folder} holds no frontier.json; name the folder artifacts of a run that has finished")
    found = [*weights_apart(asked.before, asked.after), *points_apart(asked.before, asked.after, asked.within)]
    print("\n".join(found) if found else summary(asked.before, asked.after))
    return 1 if found else 0


def summary(before: Path, after: Path) -> str:
    return f"the same: {len(digests(after))} files of weights, {len(frontier(before)['points'])} points"


def digests(artifacts: Path) -> dict[str, str]:
    """The sha256 of each file of weights below checkpoints/, by its path there."""
    root = artifacts / "checkpoints"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.safetensors"))
    }


def frontier(artifacts: Path) -> dict[str, Any]:
    return json.loads((artifacts / "frontier.json").read_text())


def weights_apart(before: Path, after: Path) -> Iterator[str]:
    one, other = digests(before), digests(after)
    if not one:
        yield f"{before} holds no weights"
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield f"{name}: {(one.get(name) or 'none')[:12]} before, {(other.get(name) or 'none')[:12]} after"


def points_apart(before: Path, after: Path, within: float = 0.0) -> Iterator[str]:
    one, other = named(before), named(after)
    yield from (f"{name}: in {before} only" for name in one if name not in other)
    yield from (f"{name}: in {after} only" for name in other if name not in one)
    for name in [name for name in one if name in other]:
        old, new = numbers(one[name]), numbers(other[name])
        for key in sorted(old.keys() | new.keys()):
            was, now = old.get(key, math.nan), new.get(key, math.nan)
            if not alike(was, now, within):
                yield f"{name}: {key} {was} before, {now} after"


def named(artifacts: Path) -> dict[str, dict[str, Any]]:
    """The floor and each point by its name."""
    read = frontier(artifacts)
    return {"the floor": read["floor"], **{point["name"]: point for point in read["points"]}}


def numbers(of: dict[str, Any]) -> dict[str, float]:
    """All numbers, metrics as NAME and NAME_se, those in lists each under its place; what was not measured is left out.

    Schema 3 had a metric's two numbers beside the other fields, null where it was not measured.
    """
    found = {}
    for key, value in _columns(of).items():
        parts = value if isinstance(value, list) else [value]
        for place, part in enumerate(parts):
            if key not in SPENT and isinstance(part, int | float) and not isinstance(part, bool):
                found[f"{key}.{place}" if isinstance(value, list) else key] = part
    return found


def _columns(of: dict[str, Any]) -> dict[str, Any]:
    metrics = of.get("metrics", {})
    values = {name: each["value"] for name, each in metrics.items()}
    return of | values | {f"{name}_se": each["se"] for name, each in metrics.items()}


def alike(old: float, new: float, within: float) -> bool:
    if math.isnan(old) or math.isnan(new):
        return False
    return abs(old - new) <= within * max(abs(old), abs(new))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

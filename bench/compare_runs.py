"""Whether two runs gave the same: every checkpoint's weights byte for byte, and the same frontier but for names and times.

    python bench/compare_runs.py BEFORE/artifacts AFTER/artifacts [--within 0]

Numbers of a point may differ by the share --within. Exit code 1, and a line for each difference, if there are any.
"""

import argparse
import hashlib
import itertools
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
    """In the order in which they were measured, which no name changes."""
    one, other = frontier(before), frontier(after)
    pairs = itertools.zip_longest(one["points"], other["points"])
    for place, (old, new) in enumerate([(one["floor"], other["floor"]), *pairs]):
        if old is None or new is None:
            yield f"point {place}: {(old or new)['name']} is on one side only"
            continue
        name = new.get("name", "the floor")
        old, new = numbers(old), numbers(new)
        for key in sorted(old.keys() | new.keys()):
            if not alike(old.get(key), new.get(key), within):
                yield f"{name}: {key} {old.get(key)} before, {new.get(key)} after"


def numbers(of: dict[str, Any]) -> dict[str, float]:
    """All numbers, those in lists each under its place; what was not measured is nan."""
    found = {}
    for key, value in of.items():
        parts = value if isinstance(value, list) else [value]
        for place, part in enumerate(parts):
            if key not in SPENT and (part is None or (isinstance(part, int | float) and not isinstance(part, bool))):
                found[f"{key}.{place}" if isinstance(value, list) else key] = math.nan if part is None else part
    return found


def alike(old: float | None, new: float | None, within: float) -> bool:
    if old is None or new is None:
        return False
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return abs(old - new) <= within * max(abs(old), abs(new))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

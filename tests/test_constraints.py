"""The three lists of versions say the same, and every file has its digest."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIRST = ("pip", "setuptools")
"""What builds the rest."""


def pins(text: str) -> dict[str, str]:
    """The version of each package, by its name as an index writes it."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def listed(name: str) -> dict[str, str]:
    return pins((ROOT / name).read_text())


def test_the_lists_with_digests_are_the_constraints_without_torch():
    constraints = listed("constraints.txt")
    assert len(constraints) > 200
    first = {name: constraints[name] for name in FIRST}
    assert listed("requirements-pip.lock") == first
    rest = {name: version for name, version in constraints.items() if name not in (*FIRST, "torch")}
    assert listed("requirements.lock") == rest


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-pip.lock"])
def test_every_package_has_digests_and_nothing_else_is_said(name):
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+( ;[^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:200]


def test_every_dependency_of_the_project_is_constrained():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = itertools.chain(*project["project"]["optional-dependencies"].values())
    wanted = [*project["project"]["dependencies"], *extras, *project["dependency-groups"]["dev"]]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in wanted}
    assert names <= set(listed("constraints.txt"))


def test_the_makefile_installs_what_is_listed():
    """pip itself in its version, digests required for both lists, and nothing of them resolved anew."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    pip = [line for line in lines if " -m pip install " in line]
    assert all(
        "--constraint constraints.txt" in line or "--require-hashes" in line or "--no-deps" in line for line in pip
    )
    for name in ("requirements.lock", "requirements-pip.lock"):
        (line,) = [line for line in pip if line.endswith(f"--requirement {name}")]
        assert {"--require-hashes", "--no-deps"} <= set(line.split())

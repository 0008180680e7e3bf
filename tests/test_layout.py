"""params.yaml has the layout that DVC's writer keeps: `dvc exp run -S` changes a number and nothing else."""

import difflib
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from tasks import strict_yaml
from tests.test_params import ROOT, SHIPPED

PARAMS = (ROOT / "params.yaml").read_text()


def written(folder: Path, text: str, change: str) -> str:
    """The file after DVC's writer has set one parameter, as `dvc exp run -S` has it do."""
    path = folder / "params.yaml"
    path.write_text(text)
    apply_overrides(str(path), [change])
    return path.read_text()


def values(folder: Path, text: str) -> dict:
    (folder / "read.yaml").write_text(text)
    raw = strict_yaml.load_yaml(folder / "read.yaml")
    return {key: value for key, value in raw.items() if not key.startswith("x-")}


CHANGES = {
    "seed=7": ("seed: 0", "seed: 7"),
    "data.size=16": ("  size:    ", "  size: 16    "),
    "teachers.teacher.iterations=2000": ("    iterations: 1000", "    iterations: 2000"),
    "distill.pd1.lr=0.002": ("    lr: 1.5e-3", "    lr: 0.002"),
    "gamma.images=30": ("images: 20,", "images: 30,"),
    "evaluate.teacher.0.sampler=ddpm": ("  - sampler: ddim", "  - sampler: ddpm"),
    "publish.tolerance=2.5": ("  tolerance: 1.5", "  tolerance: 2.5"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_dvc_changes_a_number_and_leaves_the_form_alone(tmp_path, change):
    """Every other byte stays, comments and empty lines too."""
    lines = difflib.ndiff(PARAMS.splitlines(), written(tmp_path, PARAMS, change).splitlines())
    moved = [line for line in lines if line[0] in "+-"]
    assert [line[0] for line in moved] == ["-", "+"], moved
    before, after = CHANGES[change]
    assert moved[0][2:].startswith(before) or f" {before}" in moved[0]
    assert moved[1][2:].startswith(after.rstrip()) or f" {after}" in moved[1]


def test_the_compact_form_that_tests_edit_has_the_same_values(tmp_path):
    assert values(tmp_path, SHIPPED) == values(tmp_path, PARAMS)


def test_of_a_file_in_another_form_dvc_keeps_the_values(tmp_path):
    """Merged keys, aliases and lists on a line are written out, but mean the same."""
    text = written(tmp_path, SHIPPED, "evaluate.images=2000")
    assert "[64, 8, 4, 2, 1]" in SHIPPED
    assert "[64, 8, 4, 2, 1]" not in text
    want = values(tmp_path, SHIPPED)
    want["evaluate"]["images"] = 2000
    assert values(tmp_path, text) == want

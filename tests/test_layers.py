"""The rooms keep their doors: import contracts, and a diffcore that runs on a bare GPU box."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BARE = """
import sys

HIDDEN = "prefect dvc mlflow diffusers transformers tokenizers webdataset sklearn PIL matplotlib pydantic ruamel".split()
HIDDEN += ["jaxtyping", "beartype"]

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""

EVERYTHING = """
import importlib, pkgutil, diffcore
for module in pkgutil.walk_packages(diffcore.__path__, "diffcore."):
    importlib.import_module(module.name)
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_diffcore_needs_only_torch_accelerate_numpy_and_safetensors():
    done = run(BARE + EVERYTHING)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["mlflow", "jaxtyping", "PIL"])
def test_the_test_above_can_fail(name):
    assert f"No module named '{name}'" in run(BARE + f"import {name}").stderr


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def test_the_contracts_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_no_import_of_our_own_hides_in_a_function():
    """Where one dodges a circle, two rooms are one."""
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "diffcore").rglob("*.py"))
        for outer in ast.walk(ast.parse(path.read_text()))
        if isinstance(outer, ast.FunctionDef)
        for node in ast.walk(outer)
        if isinstance(node, ast.Import | ast.ImportFrom) and "diffcore" in ast.unparse(node)
    ]
    assert hidden == []


PLANTED = {
    "diffcore/noise/angle.py": "from diffcore.denoisers import denoiser",
    "diffcore/training/loop.py": "from diffcore.checkpoints import card",
    "diffcore/metrics/metric.py": "import mlflow",
    "diffcore/sampling/solver.py": "from tasks import params",
    "tasks/shard.py": "import torch",
    "tasks/report.py": "from flows import distill",
    "tasks/verbs.py": "from console import start",
    "flows/services.py": "import typer",
    "diffcore/search/gamma.py": "import accelerate",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", PLANTED)
def test_a_planted_import_breaks_one(tmp_path, file):
    for name in ("diffcore", "tasks", "flows", "console"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / file, "a") as source:
        source.write(f"\n{PLANTED[file]}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout

"""What measures can be started: a bench that nobody runs for a month follows every renaming."""

import importlib.util
from pathlib import Path

import pytest

PARTS = ("browser",)
"""What others are made of."""

BENCHES = sorted((Path(__file__).parent.parent / "bench").glob("*.py"))


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_every_bench_finds_what_it_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # as for `python bench/NAME.py`
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if path.stem in PARTS:
        return
    assert callable(module.main)
    assert f"python bench/{path.name}" in module.__doc__

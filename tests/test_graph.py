"""A dvc.yaml that is not what it was is refused in one line, before anything runs."""

from pathlib import Path

import pytest

from diffcore.mistake import Mistake
from tasks import graph
from tests import bad_params

ROOT = Path(__file__).parent.parent

NO_STAGE = "the stage shard is missing or has no command and list of dependencies"
DAMAGED = {
    "nothing": (b"", "must be a mapping"),
    "no stages": (b"vars: [a]\n", "dvc.yaml has no stages; put back the one that belongs to this code"),
    "stages that are none": (b"stages: [a]\n", "has no stages"),
    "empty stages": (b"stages: {}\n", "has no stages"),
    "a stage that is none": (b"stages: {shard: 3}\n", NO_STAGE),
    "a stage of nothing": (b"stages: {shard: null}\n", NO_STAGE),
    "a stage without a command": (b"stages: {shard: {deps: []}}\n", NO_STAGE),
    "a command that is none": (b"stages: {shard: {cmd: [1], deps: []}}\n", NO_STAGE),
    "dependencies that are none": (b"stages: {shard: {cmd: x, deps: x}}\n", NO_STAGE),
    "numbers for dependencies": (b"stages: {shard: {cmd: x, deps: [1]}}\n", NO_STAGE),
    "several of a stage that is none": (b"stages: {shard: {do: 3}}\n", NO_STAGE),
    "another stage": (b"stages: {other: {cmd: x, deps: []}}\n", NO_STAGE),
    "code that is not there": (
        b"stages: {shard: {cmd: x, deps: [a.py]}}\n",
        "shard depends on a.py, which is not there",
    ),
    "half of it": ((ROOT / "dvc.yaml").read_bytes()[:700], ""),
    **{name: bad_params.FILES[name] for name in ("a picture", "deep braces", "a bomb of aliases", "an open bracket")},
}


def use() -> None:
    graph.check()
    graph.code_digest("shard", "")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_graph_is_one_line(tmp_path, monkeypatch, name):
    content, words = DAMAGED[name]
    (tmp_path / "dvc.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake) as caught:
        use()
    assert words in str(caught.value)
    assert "dvc.yaml" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_missing_graph_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake, match=r"^dvc\.yaml is missing; run from the folder that holds it$"):
        graph.check()


def test_the_shipped_graph_is_in_order_and_a_method_changes_the_digest(monkeypatch):
    monkeypatch.chdir(ROOT)
    graph.check()
    assert graph.code_digest("distill", "consistency") != graph.code_digest("distill", "progressive")
    assert graph.code_digest("shard", "") == graph.code_digest("shard", "consistency")

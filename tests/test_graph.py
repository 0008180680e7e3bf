"""A dvc.yaml that is not what it was is refused in one line, before anything runs."""

import json
from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from tasks import graph
from tests import bad_params

ROOT = Path(__file__).parent.parent

# ruff: noqa: E501

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
        b"stages: {shard: {cmd: ./stage shard, outs: [artifacts/data], deps: [a.py]}}\n",
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
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        use()
    assert words in str(caught.value)
    assert "dvc.yaml" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_missing_graph_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^dvc\.yaml is missing; run from the folder that holds it$"):
        graph.check()


def test_of_every_stage_it_is_known_what_it_writes(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert set(graph.WRITES) == set(graph._stages())


def test_the_shipped_graph_is_in_order_and_a_method_changes_the_digest(monkeypatch):
    monkeypatch.chdir(ROOT)
    graph.check()
    assert graph.code_digest("distill", "consistency") != graph.code_digest("distill", "progressive")
    assert graph.code_digest("shard", "") == graph.code_digest("shard", "consistency")


ODD = {
    "an output that the stage does not write": ("outs: [artifacts/data]", "outs: [arthfacts/data]", "does not write arthfacts/data"),
    "an output too few": ("artifacts/samples, artifacts/frontier.json,\n", "artifacts/frontier.json,\n", "frontier is not said to write"),
    "an output too many": ("outs: [artifacts/features]", "outs: [artifacts/features, .]", "features does not write ."),
    "a student's": ("artifacts/curves/${key}.csv\"", "artifacts/curves/$key.csv\"", "teachers "),
    "another command": ("cmd: ./stage gamma", "cmd: ./stage gammb", "the command of gamma is './stage gammb', not './stage gamma'"),
    "a student for all": ("./stage train ${key}", "./stage train", "the command of teachers"),
    "a dependency that nobody makes": ("deps: [artifacts/gamma.json", "deps: [artifacts/gbmma.json", "depends on artifacts/gbmma.json, which is not there"),
    "code that is gone": ("tasks/gamma.py]", "tasks/gamna.py]", "gamma depends on tasks/gamna.py"),
    "a parameter that is none": ("params: [gamma]", "params: [gamma.stepz]", "gamma depends on gamma.stepz, which is not in params.yaml"),
    "outputs that are none": ("outs: [artifacts/gamma.json]", "outs: artifacts/gamma.json", "the outs of the stage gamma are no list"),
    "a line that is none": ("artifacts/reference/teacher,", "artifacts/reference/taecher,", "measure depends on artifacts/reference/taecher"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_graph_that_is_valid_and_not_ours_is_refused_before_dvc_deletes_anything(tmp_path, monkeypatch, name):
    before, after, words = ODD[name]
    text = (ROOT / "dvc.yaml").read_text()
    assert text.count(before) >= 1
    for path in ROOT.iterdir():
        if path.name in ("diffcore", "tasks", "params.yaml"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "dvc.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    graph.check()
    (tmp_path / "dvc.yaml").write_text(text.replace(before, after, 1))
    with pytest.raises(UserError) as caught:
        graph.check()
    assert words in str(caught.value)
    assert str(caught.value).endswith(graph.REMEDY)


def test_a_stage_of_the_user_s_own_is_left_to_dvc(tmp_path, monkeypatch):
    for path in ("diffcore", "tasks", "params.yaml"):
        (tmp_path / path).symlink_to(ROOT / path)
    own = "\n  mine:\n    cmd: echo\n    deps: [artifacts/frontier.json]\n    params: [seed, other.yaml: [x]]\n    outs: [mine: {cache: false}]\n"
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text() + own)
    monkeypatch.chdir(tmp_path)
    graph.check()


def test_the_code_of_a_stage_is_every_file_of_it_and_of_its_method_and_nothing_else(tmp_path, monkeypatch):
    """What is trained with other code is not gone on with."""
    monkeypatch.chdir(tmp_path)
    deps = ["a.py", "b.py", "p", "m/${item.method}.py", "data.txt", "artifacts/x"]
    stages = {"distill": {"foreach": "x", "do": {"cmd": "x", "deps": deps}}, "shard": {"cmd": "x", "deps": ["c.py"]}}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    for folder in ("m", "p/q"):
        (tmp_path / folder).mkdir(parents=True)
    for number, name in enumerate(
        ("a.py", "b.py", "c.py", "m/one.py", "m/two.py", "p/q/d.py", "p/notes.txt", "data.txt")
    ):
        (tmp_path / name).write_text(f"{number}")
    first = graph.code_digest("distill", "one")
    assert first != graph.code_digest("distill", "two") != graph.code_digest("shard")
    counted, others = ("a.py", "b.py", "m/one.py", "p/q/d.py"), ("m/two.py", "c.py", "p/notes.txt", "data.txt")
    for name, counts in [*((name, True) for name in counted), *((name, False) for name in others)]:
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text("another")
        assert (graph.code_digest("distill", "one") != first) == counts, name
        (tmp_path / name).write_text(before)
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("0")
    assert graph.code_digest("distill", "one") != first  # each under its own name
    (tmp_path / "a.py").write_text("def f(:")
    with pytest.raises(UserError, match=r"^a\.py is not Python \(.*\); put back the one that belongs to this code$"):
        graph.code_digest("distill", "one")
    (tmp_path / "a.py").write_text("0")
    (tmp_path / "m/one.py").unlink()
    with pytest.raises(UserError, match=r"distill depends on m/one\.py, which is not there"):
        graph.code_digest("distill", "one")


PLAIN = "X = 3\n\n\nclass A:\n    y: int\n\n    def f(self):\n        return self.y + X\n"
TOLD = (
    '"""What."""\n\n# why\nX = 3\n"""Of it."""\n\n\nclass A:\n    """Such."""\n\n    y: int\n    """Its."""\n\n'
    '    def f(self):\n        """A sum."""\n        return (self.y  # so\n                + X)\n'
)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (TOLD, True),
        (PLAIN.replace("3", "4"), False),
        (PLAIN.replace("y + X", "y - X"), False),
        (PLAIN.replace("X = 3", 'X = "3"'), False),
        (PLAIN.replace("return", "f'{self}'; return"), False),
    ],
)
def test_what_is_written_for_readers_alone_costs_no_training_that_was_begun(tmp_path, monkeypatch, text, same):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"shard": {"cmd": "x", "deps": ["a.py"]}}}))
    (tmp_path / "a.py").write_text(PLAIN)
    first = graph.code_digest("shard")
    (tmp_path / "a.py").write_text(text)
    assert (graph.code_digest("shard") == first) == same


@pytest.mark.parametrize("kind", ["outs", "metrics", "plots"])
def test_what_a_stage_makes_of_any_kind_another_may_depend_on(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("a: {b: {c: 1}}\n")
    one = {"cmd": "x", "deps": [], kind: [{"made/one": {"cache": False}}, "made/other"]}
    stages = {"one": one, "two": {"cmd": "x", "deps": ["made/one", "made"], "params": ["a.b.c", {"more.yaml": ["z"]}]}}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    graph.check()
    for key, value in (("deps", ["mad"]), ("params", ["a.b.d"]), ("params", ["a.b.c.d"]), ("params", ["b"])):
        changed = {**stages, "two": {**stages["two"], key: value}}
        (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": changed}))
        with pytest.raises(UserError, match=f"two depends on {value[0]}, which is not "):
            graph.check()

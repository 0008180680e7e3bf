"""What the graph says is what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

from diffcore import methods
from diffcore.data.config import Config
from tasks import params, paths, verbs

ROOT = Path(__file__).parent.parent

ENTRIES = {
    "shard": {"tasks.shard"},
    "features": {"tasks.features"},
    "teacher": {"tasks.train", "tasks.adopt", "diffcore.methods.denoising"},
    "distill": {"tasks.train"},
    "gamma": {"tasks.gamma"},
    "search": {"tasks.search"},
    "evaluate": {"tasks.evaluate"},
    "publish": {"tasks.publish", "tasks.sampler_model"},
}

BY_FILE = {"teacher": ["methods"], "distill": ["methods"], "features": ["metrics"]}
"""Packages of which a stage names files: another method must not train anything again, nor another metric the features."""

METHODS = [f"diffcore.methods.{name}" for name in methods.names()]

QUIET = {
    "tasks.params",  # it imports every Config to parse it, and parsing cannot change a result
    "tasks.strict_yaml",
    "tasks.paths",
    "tasks.progress",
    "tasks.lifeline",
    "tasks.graph",
}
"""Modules that a stage may import but that cannot change what it writes."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("tasks", "diffcore")


@pytest.fixture(scope="module")
def stages() -> dict:
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def closure(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """Packages and files that can change what a stage writes: all it imports, not through QUIET modules."""
    found, waiting = set(), set(ENTRIES[stage])
    if stage == "distill":  # which method is loaded is known only at run time: what any of them imports counts
        of_methods = {imported for m in METHODS for imported in graph.find_modules_directly_imported_by(m)}
        waiting |= of_methods - QUIET
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= graph.find_modules_directly_imported_by(module) - found - QUIET
    # a package's __init__ runs on the way to its modules
    by_file = BY_FILE.get(stage, [])
    found |= {f"diffcore.{package}" for package in by_file}
    return {dependency(module, by_file) for module in found}


def dependency(module: str, by_file: list[str]) -> str:
    """How dvc.yaml names it: a package as a whole, unless it is one of those `by_file`."""
    path = Path(*module.split("."))
    if path.parts[:2] == ("tasks", "tracking") or (path.parts[0] == "diffcore" and path.parts[1] not in by_file):
        return str(Path(*path.parts[:2]))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


@pytest.mark.parametrize("stage", ENTRIES)
def test_a_stage_depends_on_the_code_it_runs_and_on_no_other(graph, stages, stage):
    body = stages[stage].get("do", stages[stage])
    named = {dep for dep in body["deps"] if not dep.startswith("artifacts/")}
    wanted = closure(graph, stage)
    if stage == "distill":
        wanted.add("diffcore/methods/${item.method}.py")
    assert named == wanted, f"dvc.yaml, {stage}.deps should be:\n" + "\n".join(
        f"      - {dep}" for dep in sorted(wanted)
    )


def test_every_stage_is_checked(stages):
    assert set(stages) == set(ENTRIES)


def test_a_change_of_the_evaluation_trains_nothing_again(graph):
    training = closure(graph, "teacher") | closure(graph, "distill")
    assert not training & {"diffcore/metrics", "diffcore/sampling", "diffcore/search", "tasks/evaluate.py"}
    assert {"diffcore/training", "diffcore/noise", "diffcore/data", "diffcore/nets"} <= training


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in a library of dvc's
def test_every_line_of_distill_is_a_stage_after_its_teacher(monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    students = params.read().distill
    with Repo(".") as repo:
        graph = repo.index.graph
        after = {stage.addressing: {dep.addressing for dep in graph.successors(stage)} for stage in graph}
    assert {name for name in after if name.startswith("distill@")} == {f"distill@{name}" for name in students}
    for name, student in students.items():
        parent = "teacher" if student.teacher == "teacher" else f"distill@{student.teacher}"
        assert parent in after[f"distill@{name}"]


READS = {
    "shard": {f"data.{each.name}" for each in fields(Config)} - {"data.flip"},  # which training does
    "features": {"features"},
    "teacher": {"seed", "network", "teacher", "data.flip"},
    "distill": {"seed", "distill.${key}", "data.flip"},
    "gamma": {"gamma"},
    "search": {"search", "distill"},
    "evaluate": {"distill", "evaluate", "publish.tolerance"},
    "publish": {"publish"},
}
"""The parameters whose change must run a stage again."""


@pytest.mark.parametrize("stage", READS)
def test_a_stage_depends_on_the_parameters_it_reads(stages, stage):
    body = stages[stage].get("do", stages[stage])
    assert READS[stage] == set(body["params"])
    assert len(body["params"]) == len(READS[stage])


CHECKPOINT = ("artifacts/checkpoints/{}", "artifacts/curves/{}.csv", "artifacts/curves/{}.csv.sha256")
FLOW = {
    "shard": ((), ("artifacts/data",)),
    "features": (("data",), ("artifacts/features",)),
    "teacher": (("data",), tuple(path.format("teacher") for path in CHECKPOINT)),
    "distill": (("data", "checkpoints/${item.teacher}"), tuple(path.format("${key}") for path in CHECKPOINT)),
    "gamma": (("data", "checkpoints/teacher"), ("artifacts/gamma.json",)),
    "search": (("data", "gamma.json", "checkpoints"), ("artifacts/trajectory.json",)),
    "evaluate": (
        ("data", "features", "checkpoints", "curves", "gamma.json", "trajectory.json"),
        tuple(
            f"artifacts/{name}" for name in ("frontier.png", "curves.png", "samples", "frontier.json", "frontier.csv")
        ),
    ),
    "publish": (
        ("checkpoints", "curves", "cost", "samples", "gamma.json", "frontier.json", "frontier.csv", "frontier.png"),
        ("artifacts/published.json",),
    ),
}
"""What each stage takes of the others' results, below artifacts/, and what it makes."""


@pytest.mark.parametrize("stage", FLOW)
def test_a_stage_takes_and_makes_exactly_this_and_nothing_of_it_is_exempt_from_dvc(stages, stage):
    """One dependency too few and a stage is not run again, or runs too soon; a flag on an output, and DVC does not keep it,
    or does not take it away before a run; frozen stages are never run, others always."""
    taken, made = FLOW[stage]
    name = {"teacher": "teacher", "distill": "${key}"}.get(stage)
    body = {
        "cmd": f"./stage {stage}" + " ${key}" * (stage == "distill"),
        "deps": stages[stage].get("do", stages[stage])["deps"],  # whose code another test looks at
        "params": stages[stage].get("do", stages[stage])["params"],
        "outs": [{"artifacts/published.json": {"cache": False}}] if stage == "publish" else list(made),
        **({"metrics": [f"artifacts/cost/{name}.json"]} if name else {}),
    }
    assert stages[stage] == ({"foreach": "${distill}", "do": body} if stage == "distill" else body)
    deps = [dep for dep in body["deps"] if not dep.startswith(("diffcore/", "tasks/"))]
    assert sorted(deps) == sorted(f"artifacts/{dep}" for dep in taken)
    assert len(set(body["deps"])) == len(body["deps"])


def test_stages_name_only_parameters_that_are_there(stages):
    raw = params.load_yaml(ROOT / paths.PARAMS)
    for stage in stages.values():
        for name in stage.get("do", stage)["params"]:
            section, _, key = name.partition(".")
            assert section in raw
            assert not key or key == "${key}" or key in raw[section]


def test_commands_are_stages_of_the_command_line(stages):
    known = {each.callback.__name__: each.callback for each in verbs.app.registered_commands}
    for stage in stages.values():
        word, key = re.fullmatch(r"\./stage (\w+)( \$\{key\})?", stage.get("do", stage)["cmd"]).groups()
        verb = known[word]("pd4") if key else known[word]()
        assert verb.stage == (f"{word}@pd4" if key else word)


def test_the_receipt_of_what_was_published_is_never_restored_from_a_cache(stages):
    """It tells of this machine's MLflow, which an earlier one does not show."""
    assert stages["publish"]["outs"] == [{str(paths.PUBLISHED): {"cache": False}}]

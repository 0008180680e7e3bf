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
    "draw": {"tasks.draw", "tasks.undrawn"},
    "shard": {"tasks.shard"},
    "encode": {"tasks.encode"},
    "features": {"tasks.features"},
    "teachers": {"tasks.train", "tasks.adopt", "diffcore.methods.denoising"},
    "distill": {"tasks.train"},
    "gamma": {"tasks.gamma"},
    "search": {"tasks.search"},
    "measure_teachers": {"tasks.measure"},
    "measure": {"tasks.measure"},
    "frontier": {"tasks.frontier"},
}
WHOLE = {"publish": {"diffcore", "tasks"}}
"""A published model carries the code that samples it, and what is published tells of nearly every room: named as a whole."""

BY_FILE = {"teachers": ["methods", "metrics"], "distill": ["methods", "metrics"], "features": ["metrics"]}
"""Packages of which a stage names files: another method must not train anything again, nor another metric the features."""

LIMITS = {"lines": 160, "code": 119}
"""Of dvc.yaml: its lines, and how often it names code, 12 times for the files of `metrics` that judge a watched training."""

JUDGING = (
    "__init__",
    "bootstrap",
    "copies",
    "estimate",
    "features",
    "frechet",
    "neighbours",
    "proportion",
    "skill",
)
"""Files of `metrics` by which a watched training is judged."""

METHODS = [f"diffcore.methods.{name}" for name in methods.names()]

QUIET = {
    "tasks.params",  # it imports every Config to parse it, and parsing cannot change a result
    "tasks.lines",
    "tasks.sections",
    "tasks.rules",
    "tasks.renamed",
    "tasks.strict_yaml",
    "tasks.paths",
    "tasks.progress",
    "tasks.signals",
    "tasks.graph",
    "tasks.recording",
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
    of_tasks = path.parts[0] == "tasks" and (ROOT / Path(*path.parts[:2])).is_dir()
    if of_tasks or (path.parts[0] == "diffcore" and path.parts[1] not in by_file):
        return str(Path(*path.parts[:2]))
    if path.parts[:3] == ("diffcore", "methods", "parts"):  # what several methods are made of
        return str(Path(*path.parts[:3]))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def code(stages: dict, stage: str) -> list[str]:
    """The dependencies of a stage that are no results of others."""
    return [dep for dep in stages[stage].get("do", stages[stage])["deps"] if not dep.startswith("artifacts/")]


def wanted(graph: grimp.ImportGraph, stage: str) -> set[str]:
    if stage in WHOLE:
        return WHOLE[stage]
    return closure(graph, stage) | ({"diffcore/methods/${item.method}.py"} if stage == "distill" else set())


@pytest.mark.parametrize("stage", [*ENTRIES, *WHOLE])
def test_a_stage_depends_on_the_code_it_runs_and_on_no_other(graph, stages, stage):
    should = wanted(graph, stage)
    assert set(code(stages, stage)) == should, f"dvc.yaml, {stage}.deps should be:\n" + "\n".join(
        f"      - {dep}" for dep in sorted(should)
    )


@pytest.mark.parametrize("stage", [*ENTRIES, *WHOLE])
def test_a_dependency_that_is_missing_is_noticed_whichever_it_is(graph, stages, stage):
    """Each one in turn is taken out of dvc.yaml."""
    named = code(stages, stage)
    for left_out in named:
        assert {dep for dep in named if dep != left_out} != wanted(graph, stage)


def test_every_stage_is_checked(stages):
    assert set(stages) == {*ENTRIES, *WHOLE}


def test_the_graph_can_be_read_in_one_go(stages):
    """It names packages, so that a new solver, wrapper or metric is in it already."""
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= LIMITS["lines"]
    assert sum(len(code(stages, stage)) for stage in stages) <= LIMITS["code"]


def test_a_change_of_the_measuring_trains_nothing_again(graph):
    training = closure(graph, "teachers") | closure(graph, "distill")
    assert not training & {"diffcore/metrics", "diffcore/sampling", "diffcore/search", "tasks/measure.py"}
    judging = {f"diffcore/metrics/{name}.py" for name in JUDGING}
    assert {dep for dep in training if dep.startswith("diffcore/metrics")} == judging
    assert {"diffcore/training", "diffcore/noise", "diffcore/data", "diffcore/nets"} <= training


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in a library of dvc's
def test_every_line_is_a_stage_after_those_it_comes_from_and_is_measured_by_one(monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    found = params.read()
    with Repo(".") as repo:
        graph = repo.index.graph
        after = {stage.addressing: {dep.addressing for dep in graph.successors(stage)} for stage in graph}
    trained = {f"teachers@{name}" for name in found.teachers} | {f"distill@{name}" for name in found.distill}
    assert {name for name in after if name.startswith(("teachers@", "distill@"))} == trained
    for name, student in found.distill.items():
        for above in (student.init, student.teacher):
            assert f"{'teachers' if above in found.teachers else 'distill'}@{above}" in after[f"distill@{name}"]
        assert {f"distill@{name}", "teachers@teacher", "measure_teachers@teacher"} <= after[f"measure@{name}"]
        others = {f"distill@{other}" for other in found.distill if other != name}
        assert not after[f"measure@{name}"] & others  # a new student measures itself alone
    assert after["search"] == {"gamma"}
    assert after["measure_teachers@teacher"] == {"shard", "encode", "features", "teachers@teacher", "gamma", "search"}


READS = {
    "draw": {
        "seed",
        "teachers",
        "text",
        *(f"data.{name}" for name in ("source", "size", "channels", "captions", "draw")),
    },
    "shard": {f"data.{each.name}" for each in fields(Config)}
    - {"data.flip", "data.draw", "data.image_condition", "data.prompts"},  # which others do
    "encode": {"text", "data.prompts", "data.image_condition"},
    "features": {"features"},
    "teachers": {"seed", "teachers.${key}", "data.flip"},
    "distill": {"seed", "distill.${key}", "data.flip"},
    "gamma": {"gamma"},
    "search": {"search"},
    "measure_teachers": {"evaluate", "text", "data.image_condition"},
    "measure": {"distill.${key}", "evaluate", "text", "data.image_condition"},
    "frontier": {"teachers", "distill", "publish.tolerance"},
    "publish": {"publish"},
}
"""The parameters whose change must run a stage again."""


@pytest.mark.parametrize("stage", READS)
def test_a_stage_depends_on_the_parameters_it_reads(stages, stage):
    body = stages[stage].get("do", stages[stage])
    assert READS[stage] == set(body["params"])
    assert len(body["params"]) == len(READS[stage])


CHECKPOINT = tuple(
    f"artifacts/{path}" for path in ("checkpoints/${key}", "curves/${key}.csv", "curves/${key}.csv.sha256")
)
MEASURED = ("data", "text", "features", "checkpoints/${key}", "gamma.json", "trajectory.json")
FLOW = {
    "draw": ((), ("artifacts/drawn",)),
    "shard": (("drawn",), ("artifacts/data",)),
    "encode": (("data",), ("artifacts/text", "artifacts/prompts")),
    "features": (("data",), ("artifacts/features",)),
    "teachers": (("data", "text"), CHECKPOINT),
    "distill": (("data", "text", "prompts", "checkpoints/${item.init}", "checkpoints/${item.teacher}"), CHECKPOINT),
    "gamma": (("data", "text", "checkpoints/teacher"), ("artifacts/gamma.json",)),
    "search": (("gamma.json",), ("artifacts/trajectory.json",)),
    "measure_teachers": (MEASURED, ("artifacts/points/${key}", "artifacts/reference/${key}")),
    "measure": ((*MEASURED, "checkpoints/teacher", "reference/teacher"), ("artifacts/points/${key}",)),
    "frontier": (
        ("points", "curves", "cost"),
        tuple(
            f"artifacts/{name}"
            for name in ("frontier.png", "curves.png", "samples", "frontier.json", "frontier.csv", "report.html")
        ),
    ),
    "publish": (
        (
            *("checkpoints", "curves", "cost", "samples", "gamma.json"),
            *("frontier.json", "frontier.csv", "frontier.png", "report.html"),
        ),
        ("artifacts/published.json",),
    ),
}
LINES = {"teachers": "teachers", "distill": "distill", "measure_teachers": "teachers", "measure": "distill"}
"""Stages of which there is one for each line of a section."""

VERBS = {"teachers": "train", "distill": "train", "measure_teachers": "measure"}
"""What each stage takes of the others' results, below artifacts/, and what it makes."""


@pytest.mark.parametrize("stage", FLOW)
def test_a_stage_takes_and_makes_exactly_this_and_nothing_of_it_is_exempt_from_dvc(stages, stage):
    """One dependency too few and a stage is not run again, or runs too soon; a flag on an output, and DVC does not keep it,
    or does not take it away before a run; frozen stages are never run, others always."""
    taken, made = FLOW[stage]
    body = {
        "cmd": f"./stage {VERBS.get(stage, stage)}" + " ${key}" * (stage in LINES),
        "deps": stages[stage].get("do", stages[stage])["deps"],  # whose code another test looks at
        "params": stages[stage].get("do", stages[stage])["params"],
        "outs": [{"artifacts/published.json": {"cache": False}}] if stage == "publish" else list(made),
        **({"metrics": ["artifacts/cost/${key}.json"]} if stage in ("teachers", "distill") else {}),
        **({"metrics": ["artifacts/quality.json"]} if stage == "frontier" else {}),
    }
    assert stages[stage] == ({"foreach": f"${{{LINES[stage]}}}", "do": body} if stage in LINES else body)
    deps = [dep for dep in body["deps"] if dep.startswith("artifacts/")]
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
    for name, stage in stages.items():
        word, key = re.fullmatch(r"\./stage (\w+)( \$\{key\})?", stage.get("do", stage)["cmd"]).groups()
        verb = known[word]("pd4") if key else known[word]()
        assert (f"{name}@pd4" if key else name) in verb.stages


def test_the_receipt_of_what_was_published_is_never_restored_from_a_cache(stages):
    """It tells of this machine's MLflow, which an earlier one does not show."""
    assert stages["publish"]["outs"] == [{str(paths.PUBLISHED): {"cache": False}}]

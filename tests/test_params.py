import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffcore.core.errors import Mistake
from diffcore.denoisers.clipping import Threshold
from diffcore.noise.trajectory import even
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.skip_tuning import Config as SkipConfig
from tasks import evaluate, params, strict_yaml, workspace

ROOT = Path(__file__).parent.parent
SHIPPED = (ROOT / "params.yaml").read_text()


def read(tmp_path, text: str = SHIPPED):
    (tmp_path / "params.yaml").write_text(text)
    return params.read(tmp_path / "params.yaml")


def faults(tmp_path, *changes: tuple[str, str]) -> list[str]:
    text = SHIPPED
    for old, new in changes:
        assert re.search(old, text), f"{old} is not in params.yaml"
        text = re.sub(old, new, text, count=1)
    with pytest.raises(Mistake) as caught:
        read(tmp_path, text)
    return [line.partition("params.yaml: ")[2] for line in str(caught.value).splitlines()]


def test_the_shipped_file_is_in_order(tmp_path):
    found = read(tmp_path)
    chain = ["pd16", "pd8", "pd4", "pd2", "pd1"]
    assert list(found.distill) == [*chain, "cd", "dm1"]
    assert [found.distill[name].method.steps for name in chain] == [16, 8, 4, 2, 1]
    assert params.grid_of("pd4", found.distill) == even(4)
    assert params.grid_of("cd", found.distill) is None
    assert found.distill["pd4"].fit.iterations > found.distill["pd8"].fit.iterations  # the last rounds are longer


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")))
def test_every_preset_is_in_order(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    merged = params.load_yaml(ROOT / "params.yaml")
    workspace._merge(merged, workspace._preset(preset), preset)
    params.dump_yaml(merged, tmp_path / "params.yaml")
    assert params.read(tmp_path / "params.yaml").distill


# ruff: noqa: E501

WRONG = {
    "an unknown section": (("teacher:", "techer:"), "techer: unknown section; did you mean 'teacher'?"),
    "an unknown key": (("max_phase", "max_fase"), "network.max_fase: unknown key; did you mean 'max_phase'?"),
    "an unknown key of a student": (("target_ema", "target_emma"), "distill.cd.target_emma: unknown key; did you mean 'target_ema'?"),
    "a string for a number": (("teacher: {iterations: 1000", 'teacher: {iterations: "1000"'), "teacher.iterations: Input should be a valid integer"),
    "true for a number": (("groups: 8", "groups: true"), "network.groups: Input should be a valid integer"),
    "a fraction for a count": (("layers: 1", "layers: 1.5"), "network.layers: Input should be a valid integer"),
    "a missing key": ((r"\n  layers: 1", ""), "network.layers: missing"),
    "a missing section": (("search:\n(  .*\n)+", ""), "search: missing section"),
    "a missing key of a student": ((", target_ema: 0.5", ""), "distill.cd.target_ema: missing"),
    "a number out of range": (("ema: 0.995", "ema: 1.0"), "teacher: ema must be in [0, 1), got 1.0: an average with decay 1 never moves"),
    "a dropout of all": (("method: consistency, teacher: teacher", "method: consistency, dropout: 1, teacher: teacher"), "distill.cd.dropout: must be at least 0 and below 1, got 1"),
    "an unknown method": (("method: consistency", "method: consistancy"), "distill.cd.method: 'consistancy' is unknown; did you mean 'consistency'?"),
    "an unknown sampler": (("sampler: renoise", "sampler: renoize"), "sampler 'renoize' is unknown; did you mean 'renoise'?"),
    "an unknown trajectory": (("trajectory: searched", "trajectory: serched"), "'even', 'quadratic', 'logsnr', 'karras', 'searched', 'fitted' or 'own'"),
    "an unknown teacher": (("teacher: pd16", "teacher: pd_16"), "distill.pd8.teacher: no checkpoint 'pd_16'; did you mean 'pd16'?"),
    "a circle": (("teacher: teacher, steps: 16", "teacher: pd1, steps: 16"), "goes round in a circle"),
    "a round that does not halve": (("pd16, steps: 8", "pd16, steps: 5"), "distill.pd8: steps 5 needs a teacher of 10 steps or one valid at any time, but its teacher has 16; set steps to 8"),
    "a teacher that cannot": (("method: consistency, teacher: teacher", "method: consistency, teacher: pd4"), "distill.cd: consistency needs a teacher valid at any time"),
    "no name": ((r"  pd16: \{", "  PD-16: {"), "distill.PD-16: a student's name must be"),
    "no steps": ((r"steps: \[4, 2, 1\]", "steps: []"), "steps must be a list of numbers of at least 1"),
    "a branch that is not there": ((r"\{interval: 4\}", "{interval: 4, branch: 3}"), ".deepcache.branch: 3 is not one of the network's 3 branches, which are counted from 0"),
    "a branch for students": ((r"\n  anytime: .*\n", r"\g<0>    - {sampler: ddim, trajectory: even, steps: [8], deepcache: {interval: 2, branch: 9}}\n"), "evaluate.anytime.0.deepcache.branch: 9 is not one of the network's 3 branches"),
    "a branch for one student": ((r"students: \{\}", "students: {cd: [{sampler: ddim, trajectory: even, steps: [8], deepcache: {interval: 2, branch: 3}}]}"), "evaluate.students.cd.0.deepcache.branch: 3 is not one of the network's 3 branches"),
    "an interval of nothing": ((r"\[\{interval: 2\}, \{interval: 4\}\]", "{interval: 0}"), "interval must be at least 1 and branch at least 0, got 0 and 0"),
    "a pipe": (("source: digits", 'source: "shards:pipe:cat x.tar"'), "data: source names a pipe:"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_fault_is_named_with_its_path_and_the_nearest_word(tmp_path, case):
    change, message = WRONG[case]
    found = faults(tmp_path, change)
    assert any(message in line for line in found), found


def test_the_last_branch_of_a_deeper_network_is_in_order(tmp_path):
    """Three levels of one layer make six skips and five branches, 0 to 4."""
    text = SHIPPED.replace("channels: [16, 32]", "channels: [16, 32, 32]").replace(
        "{interval: 4}", "{interval: 4, branch: 4}"
    )
    assert read(tmp_path, text).evaluate.teacher
    with pytest.raises(Mistake, match=r"deepcache\.branch: 5 is not one of the network's 5 branches"):
        read(tmp_path, text.replace("branch: 4", "branch: 5"))


def test_a_way_is_led_away_from_a_class(tmp_path):
    way = "    - {sampler: ddim, trajectory: searched, steps: [8, 4, 2]}"
    led = way.replace("]}", "], guidance: [2.0, 4.0], negative: an odd/one}")
    told = SHIPPED.replace(way, led).replace("conditional: false", "conditional: true")
    recipes = read(tmp_path, told).evaluate.teacher[1].recipes()
    assert [(each.guidance, each.negative) for each in recipes] == [(2.0, "an odd/one"), (4.0, "an odd/one")]
    assert [evaluate._told(each) for each in recipes] == [["g2", "not-an-odd-one"], ["g4", "not-an-odd-one"]]
    for wrong, words in (
        (led.replace("an odd/one", "3"), "negative: Input should be a valid string, got 3"),
        (led.replace("guidance: [2.0, 4.0], ", ""), "negative is what guidance leads away from; give guidance too"),
    ):
        (fault,) = faults(tmp_path, (re.escape(way), wrong))
        assert fault.startswith("evaluate.teacher.1")
        assert words in fault


GUIDED = ("conditional: false", "conditional: true")
LINE = "  cd: {method: consistency, teacher: teacher,"
BUILT_IN, INPUT = (LINE, f"{LINE} guidance: 2.0,"), (LINE, f"{LINE} guidance: [1.0, 4.0],")
FITTED = r"\{sampler: ddim, trajectory: fitted, steps: \[8, 4, 2\]\}"
WEIGHT = r"\{sampler: ddim, trajectory: even, steps: \[64, 8, 4, 2, 1\]\}"
STUDENTS = r"students: \{\}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [GUIDED, (FITTED, "{sampler: ddim, trajectory: fitted, steps: [8], guidance: 2.0}")],
            "evaluate.teacher.2.trajectory: fitted times follow the teacher's path without guidance, and teacher is "
            "sampled with guidance; name another trajectory",
        ),
        ([GUIDED, (FITTED, "{sampler: ddim, trajectory: [even, fitted], steps: [8], guidance: 0.0}")], "evaluate.teacher.2.trajectory: fitted times"),
        ([GUIDED, BUILT_IN], "evaluate.anytime.1.trajectory: fitted times follow the teacher's path without guidance, and cd"),
        ([(WEIGHT, "{sampler: ddim, trajectory: even, steps: [64], guidance: 2.0}")], "evaluate.teacher.0.guidance: there are no classes"),
        ([(WEIGHT, "{sampler: ddim, trajectory: even, steps: [64], guidance: 0.0}")], "evaluate.teacher.0.guidance: there are no classes"),
        (
            [GUIDED, INPUT, (STUDENTS, "students: {cd: [{sampler: renoise, trajectory: even, steps: [2], guidance: [2.0, 9.0]}]}")],
            "evaluate.students.cd.0.guidance: cd: ",
        ),
        (
            [GUIDED, INPUT, (STUDENTS, "students: {cd: [{sampler: renoise, trajectory: even, steps: [2], guidance: [2.0, 0.5]}]}")],
            "evaluate.students.cd.0.guidance: cd: ",
        ),
        ([GUIDED, INPUT], "evaluate.anytime.0: cd takes the guidance weight as an input; give evaluate.students.cd ways with"),
        (
            [GUIDED, BUILT_IN, (STUDENTS, "students: {cd: [{sampler: renoise, trajectory: even, steps: [2], guidance: 3.0}]}")],
            "evaluate.students.cd.0.guidance: cd: this student was trained for a guidance weight of 2 alone, not for 3",
        ),
        (
            [GUIDED, BUILT_IN, (STUDENTS, "students: {cd: [{sampler: renoise, trajectory: even, steps: [2], guidance: 2.0, negative: a}]}")],
            "evaluate.students.cd.0.negative: cd learned to be led away from no class",
        ),
    ],
)  # fmt: skip
def test_guidance_that_no_sampler_will_have_is_refused_when_it_is_read(tmp_path, changes, message):
    found = faults(tmp_path, *changes)
    assert any(message in line for line in found), found


def test_times_are_fitted_for_classes(tmp_path):
    assert read(tmp_path, SHIPPED.replace(*GUIDED)).network.conditional


def test_the_head_of_the_network(tmp_path):
    for head in ("v", "both"):
        config = read(tmp_path, SHIPPED.replace("head: v ", f"head: {head} ")).network.config((3, 8, 8))
        assert (config.in_channels, config.out_channels) == (3, 6 if head == "both" else 3)
    wrong = {
        "eps": "network: head eps has no image at t = 1.*take v",
        "w": "network.head: .*'both', got \"w\"",
        "x0": "distill.dm1.method: distribution_matching asks for velocities close to the data",
    }
    for head, words in wrong.items():
        (fault,) = faults(tmp_path, ("head: v ", f"head: {head} "))
        assert re.search(words, fault)
    assert read(tmp_path, re.sub("\n  dm1: .*", "", SHIPPED.replace("head: v ", "head: x0 "))).network.head == "x0"


def test_all_faults_come_at_once(tmp_path):
    found = faults(tmp_path, ("groups: 8", "groups: x"), ("most: 64", "most: 0"), ("seed: 0", "sead: 0"))
    assert [line.split(":")[0] for line in found] == ["sead", "network.groups", "search"]  # in the order of the file


def test_a_misspelt_word_and_what_is_missing_for_it_are_one_line(tmp_path):
    assert faults(tmp_path, ("network:", "netwrok:")) == ["netwrok: unknown section; did you mean 'network'?"]
    assert faults(tmp_path, ("max_phase", "max_fase")) == ["network.max_fase: unknown key; did you mean 'max_phase'?"]
    both = faults(tmp_path, ("target_ema", "target_emma"))
    assert both == ["distill.cd.target_emma: unknown key; did you mean 'target_ema'?"]
    assert faults(tmp_path, ("  layers: 1", "  xyz: 1")) == [
        "network.layers: missing",
        "network.xyz: unknown key; known: channels, layers, attention, groups, dropout, max_phase, conditional, head",
    ]


def test_faults_come_in_the_order_of_the_file(tmp_path):
    changes = [
        ("publish:", "publsh:"),
        ("seed: 0", "seed: x"),
        ("groups: 8", "groups: x"),
        ("teacher: pd16", "teacher: 3"),
    ]
    changes += [("sampler: unipc", "sampler: unipk"), ("lr: 3.0e-3", "lr: .nan"), ("most: 64", "most: 0")]
    places = ["seed", "network.groups", "teacher.lr", "distill.pd8.teacher", "search", "evaluate.teacher.4", "publsh"]
    assert [line.split(": ")[0] for line in faults(tmp_path, *changes)] == places


def with_students(tmp_path, conditional: bool, **lines: dict):
    """Reads the shipped file with these students instead of its own, sampled with guidance where they take its weight."""
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["network"]["conditional"] = conditional
    own = [{"sampler": "ddim", "trajectory": "own", "guidance": 2.0}]
    taught = {"cfg", *(name for name, line in lines.items() if line.get("teacher") == "cfg")}
    any_time = [{"sampler": "ddim", "trajectory": "even", "steps": [4], "guidance": [1.0, 3.0]}]
    ways = {name: own if "steps" in lines[name] else any_time for name in sorted(taught & set(lines))}
    raw["evaluate"]["students"] = ways if isinstance(lines.get("cfg", {}).get("guidance"), list) else {}
    short = {"iterations": 1, "batch": 8, "lr": 1e-3, "ema": 0.9}
    raw["distill"] = {name: {"teacher": "teacher", **short, **line} for name, line in lines.items()}
    params.dump_yaml(raw, tmp_path / "params.yaml")
    return params.read(tmp_path / "params.yaml")


def test_what_a_method_needs_of_guidance_is_asked_of_the_file(tmp_path):
    guided, halves = {"method": "guided"}, {"method": "progressive", "teacher": "cfg", "steps": 8}
    missing = "params.yaml: distill.cfg: guided needs weights to learn; say `guidance: [lowest, highest]` in its line"
    for conditional in (False, True):
        with pytest.raises(Mistake) as caught:
            with_students(tmp_path, conditional, cfg=guided, pd8=halves)
        assert str(caught.value).endswith(missing)
        assert len(str(caught.value).splitlines()) == 1
    for weights in ([1, 4], 3.0):
        found = with_students(tmp_path, True, cfg={**guided, "guidance": weights}, pd8=halves).distill
        assert params.guidance_of("pd8", found, True) == params.guidance_of("cfg", found, True) is not None
    assert with_students(tmp_path, True, cfg={**guided, "guidance": [1, 4]}, again={**guided, "teacher": "cfg"}).distill


@pytest.mark.parametrize(
    ("weights", "wrong"),
    [([1, 3], None), ([1, 4], None), ([0.5, 3], "0.5"), ([2, 9], "9"), (0.5, "0.5"), (9.0, "9")],
)
def test_both_ends_of_a_student_s_weights_are_those_that_its_teacher_learned(tmp_path, weights, wrong):
    lines = {"cfg": {"method": "guided", "guidance": [1, 4]}}
    lines["below"] = {"method": "guided", "teacher": "cfg", "guidance": weights}
    if wrong is None:
        assert with_students(tmp_path, True, **lines).distill
    else:
        told = f"distill.below.guidance: its teacher 'cfg': this student was trained for a guidance weight of 1 to 4, not for {wrong}"
        with pytest.raises(Mistake) as caught:
            with_students(tmp_path, True, **lines)
        assert told in str(caught.value)


def test_a_fault_that_students_inherit_is_told_once(tmp_path):
    guided = {"method": "guided", "guidance": [1, 4]}
    with pytest.raises(Mistake) as caught:
        with_students(tmp_path, False, cfg=guided, pd8={"method": "progressive", "teacher": "cfg", "steps": 8})
    (line,) = str(caught.value).splitlines()
    assert line.endswith(
        "distill.cfg.guidance: the teacher knows no classes to guide to; set network.conditional to true"
    )


def test_numbers_read_as_dvc_reads_them(tmp_path):
    assert read(tmp_path, SHIPPED.replace("lr: 3.0e-3", "lr: 3e-3")).teacher.lr == 0.003
    assert strict_yaml.parse_yaml("[1e-4, on, yes]", "x") == [1e-4, "on", "yes"]


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: [1, 2", "- 1"])
def test_what_is_no_mapping_is_one_line(tmp_path, text):
    with pytest.raises(Mistake) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_says_where_to_run_from(tmp_path):
    with pytest.raises(Mistake, match="run from the folder that holds it"):
        params.read(tmp_path / "params.yaml")


def test_the_command_line_exits_with_2_and_no_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text(SHIPPED.replace("groups: 8", "groups: eight"))
    command = [sys.executable, "-m", "tasks", "check"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: network.groups: ")
    assert len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------- workspaces


@pytest.fixture
def merged(monkeypatch):
    monkeypatch.chdir(ROOT)
    return params.load_yaml(ROOT / "params.yaml")


def test_a_change_touches_one_number(merged):
    before = params.load_yaml(ROOT / "params.yaml")
    workspace._merge(merged, workspace._change("distill.pd4.iterations=5"), "x")
    assert merged["distill"]["pd4"].pop("iterations") == 5
    before["distill"]["pd4"].pop("iterations")
    assert merged == before


def test_a_presets_students_take_the_place_of_all(merged):
    workspace._merge(merged, workspace._preset("smoke"), "x")
    assert list(merged["distill"]) == ["pd4", "pd2", "pd1", "cd", "dm1"]


def test_a_change_of_what_is_not_there_is_a_mistake(merged):
    with pytest.raises(Mistake, match=r"params\.yaml has no network\.chanels"):
        workspace._merge(merged, workspace._change("network.chanels=[8]"), "x")
    with pytest.raises(Mistake, match="write it as section"):
        workspace._change("network.channels")
    with pytest.raises(Mistake, match="no preset 'smoky'; known: classes, smoke"):
        workspace._preset("smoky")


def test_trajectories_that_will_not_be_there_are_refused(tmp_path):
    def with_way(old: str, new: str) -> list[str]:
        return faults(tmp_path, (re.escape(old), new))

    searched = "    - {sampler: ddim, trajectory: searched, steps: [8, 4, 2]}"
    assert with_way(searched, searched.replace("8, 4", "65, 4")) == [
        "evaluate.teacher.1.steps: 65 on the trajectory searched; search.most allows 64"
    ]
    fitted = "    - {sampler: ddim, trajectory: fitted, steps: [8, 4, 2]}"
    assert with_way(fitted, fitted.replace("8, 4", "61, 4")) == [
        "evaluate.teacher.2.steps: 61 on the trajectory fitted; search.fitted.points allows 60"
    ]
    first, second = with_way(fitted, "    - {sampler: ddim, trajectory: [even, searched, fitted], steps: [4, 65]}")
    assert first == "evaluate.teacher.2.steps: 65 on the trajectory searched; search.most allows 64"
    assert second == "evaluate.teacher.2.steps: 65 on the trajectory fitted; search.fitted.points allows 60"
    own = "    - {sampler: ddim, trajectory: own}"
    words = "own is for a student with steps of its own; name another"
    assert with_way(fitted, own) == [f"evaluate.teacher.2.trajectory: {words}"]
    anytime = "    - {sampler: renoise, trajectory: even, steps: [4, 2, 1]}"
    assert with_way(anytime, own) == [f"evaluate.anytime.0.trajectory: {words}"]
    assert with_way("students: {}", "students: {cd: [{sampler: ddim, trajectory: own}]}") == [
        f"evaluate.students.cd.0.trajectory: {words}"
    ]
    wrong = "students: {pd4: [{sampler: ddim, trajectory: even, steps: [3]}], pd5: []}"
    assert with_way("students: {}", wrong) == [
        "evaluate.students.pd4.0.trajectory: pd4 is valid only on its own 4 steps; say `trajectory: own`",
        "evaluate.students.pd5: no student is called so; did you mean 'pd8'?",
    ]
    between = "students: {pd4: [{sampler: dpm_solver_2, trajectory: own}]}"
    (fault,) = with_way("students: {}", between)
    assert fault.startswith("evaluate.students.pd4.0.sampler: this student is valid only at its own times")
    eta = "    - {sampler: analytic, trajectory: even, steps: [8], options: {eta: 1.5}}"
    (fault,) = with_way(fitted, eta)
    assert fault.startswith("evaluate.teacher.2: ")
    assert "eta must be in 0..1, got 1.5" in fault
    for kinds in ("even", "[searched, even]"):
        (fault,) = with_way(fitted, f"    - {{sampler: langevin, trajectory: {kinds}, steps: [8]}}")
        assert fault.startswith("evaluate.teacher.2: langevin cannot begin at t = 1")
    assert with_way("gamma: {steps: 1000", "gamma: {steps: 50") == [
        "search.most: 64 is more than gamma.steps, 50; lower it"
    ]


def test_who_teaches_whom(tmp_path):
    """A student that jumps to images teaches nobody; what needs every time goes further up."""
    lines = """distill:
  pd4: {method: progressive, teacher: teacher, steps: 4, iterations: 1, batch: 8, lr: 1.0e-3, ema: 0.9}
  cd: {method: consistency, teacher: teacher, steps: 16, target_ema: 0.5, iterations: 1, batch: 8, lr: 1.0e-3, ema: 0.9}
  again: {method: consistency, teacher: cd, steps: 16, target_ema: 0.5, iterations: 1, batch: 8, lr: 1.0e-3, ema: 0.9}
  pd2: {method: progressive, teacher: pd4, steps: 2, iterations: 1, batch: 8, lr: 1.0e-3, ema: 0.9}
  dm: {method: distribution_matching, teacher: pd2, iterations: 1, batch: 8, lr: 1.0e-3, ema: 0.9}
gamma:"""
    text = re.sub(r"distill:(.|\n)*?\ngamma:", lines, (ROOT / "params.yaml").read_text())
    found = read(tmp_path, text).distill
    taught = {name: params.mentor_of(name, found) for name in found}
    assert taught == {"pd4": "teacher", "cd": "teacher", "again": "teacher", "pd2": "pd4", "dm": "teacher"}


def test_every_package_is_installed():
    import tomllib

    from setuptools import find_packages

    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    listed = find_packages(str(ROOT), include=found["include"])
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("diffcore", "tasks", "flows", "console")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == there


# ------------------------------------------------------------------------------- each refusal by itself

WAY = {"sampler": "ddim", "trajectory": "even", "steps": [8]}
LOOKS = {"images": 10, "seed": 0, "batch": 1, "likelihood": None, "teacher": [None], "anytime": [], "students": {}}
NAMES = {"experiment": "e", "model": "m", "tolerance": 1.0}
SEARCH = {"estimator": "norm", "most": 1, "repair": True, "decoder": True, "fitted": None}

REFUSED = {
    "own steps and others": (params.Way, {**WAY, "trajectory": "own"}, "has steps of its own"),
    "own times and others": (params.Way, {"sampler": "ddim", "trajectory": ["own", "even"]}, "has steps of its own"),
    "no step": (params.Way, {**WAY, "steps": [8, 0]}, "at least 1"),
    "a cache of an adaptive sampler": (params.Way, {**WAY, "sampler": "rk45", "deepcache": CacheConfig(2)}, "deepcache"),
    "a class without a name": (params.Way, {**WAY, "guidance": 1.0, "negative": ""}, "negative must be"),
    "a class of 65 letters": (params.Way, {**WAY, "guidance": 1.0, "negative": "n" * 65}, "negative must be"),
    "two limits": (params.Way, {**WAY, "clip": 1.0, "threshold": Threshold()}, "give one of them"),
    "a limit of nothing": (params.Way, {**WAY, "clip": 0.0}, "clip must be"),
    "less than no images": (params.Likelihood, {"images": -1, "probes": 1, "seed": 0}, "images must not"),
    "no probe": (params.Likelihood, {"images": 0, "probes": 0, "seed": 0}, "probes at least 1"),
    "nine images": (params.Evaluate, {**LOOKS, "images": 9}, "images must be at least 10"),
    "an empty batch": (params.Evaluate, {**LOOKS, "batch": 0}, "batch at least 1"),
    "nothing to compare with": (params.Evaluate, {**LOOKS, "teacher": []}, "at least one way"),
    "better than the best": (params.Publish, {**NAMES, "tolerance": 0.99}, "tolerance must be at least 1"),
    "a model with a blank before it": (params.Publish, {**NAMES, "model": " m"}, "model must be a name"),
    "an experiment with one after it": (params.Publish, {**NAMES, "experiment": "e "}, "experiment must be a name"),
    "a model of 201 letters": (params.Publish, {**NAMES, "model": "m" * 201}, "model must be a name"),
    "a model that is a dot": (params.Publish, {**NAMES, "model": "."}, "without / and :"),
    "no folder": (params.Adopt, {"folder": " "}, "folder must be"),
    "no search": (params.Search, {**SEARCH, "most": 0}, "most must be at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_each_part_refuses_what_it_cannot_be(case):
    kind, given, words = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        kind(**given)


def test_what_is_just_within_its_limits_is_taken():
    params.Way(**{**WAY, "steps": [1], "guidance": 0.0, "negative": "n" * 64, "clip": False})
    params.Way("ddim", "own")
    params.Way(**{**WAY, "sampler": "rk45", "steps": [1]})
    params.Likelihood(0, 1, 0)
    params.Evaluate(**LOOKS)
    params.Publish(**{**NAMES, "experiment": "e/ f" * 50, "model": "m" * 200})
    params.Search(**SEARCH)


def test_a_sampler_that_needs_more_steps_refuses_fewer(monkeypatch):
    monkeypatch.setattr(params.SOLVERS["heun"], "least", 3)
    params.Way(**{**WAY, "sampler": "heun", "steps": [4, 3]})
    with pytest.raises(ValueError, match="heun needs at least 3 steps, got 2"):
        params.Way(**{**WAY, "sampler": "heun", "steps": [4, 2]})


def test_a_way_is_tried_in_all_combinations_of_its_lists_each_with_all_that_it_says():
    caches, skips, threshold = [CacheConfig(2), CacheConfig(3)], [None, SkipConfig(0.8)], Threshold(0.9, 2.0)
    way = params.Way("ddpm", ["even", "karras"], [8], {}, caches, skips, [1.0, 2.0], "a", threshold=threshold)
    assert way.trajectories == ["even", "karras"]
    solver = params.SOLVERS["ddpm"]()
    assert way.recipes() == [
        Recipe(solver, cache, skip, weight, "a", None, threshold)
        for cache in caches
        for skip in skips
        for weight in (1.0, 2.0)
    ]
    assert params.Way("analytic", "even", [8], {"eta": 0.5}, clip=0.5).recipes() == [
        Recipe(params.SOLVERS["analytic"](eta=0.5), clip=0.5)
    ]


SHORT = {"iterations": 1, "batch": 8, "lr": 1e-3, "ema": 0.9}


def student(**line) -> tuple:
    """(the student of a line, its faults)."""
    faults: list[str] = []
    found = params._student("s", {"method": "progressive", "teacher": "t", "steps": 8, **SHORT, **line}, "s", faults)
    return found, faults


def test_all_that_a_line_says_is_its_students():
    found, _ = student(guidance=[1, 4], head="v", dropout=0.25, warmup=3, weight_decay=0.5)
    fitting = params.fit.Config(**SHORT, warmup=3, weight_decay=0.5)
    method = params.methods.load("progressive")(steps=8)
    assert found == params.Distill("s", "t", method, fitting, (1.0, 4.0), "v", 0.25)
    assert student()[0] == params.Distill("s", "t", method, params.fit.Config(**SHORT), None, None, 0.0)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [(None, None), (0, (0.0, 0.0)), (2.5, (2.5, 2.5)), ([0, 3], (0.0, 3.0)), ([1.5, 2], (1.5, 2.0))],
)
def test_one_weight_of_guidance_or_a_range_of_them(weights, wanted):
    found, faults = student(guidance=weights)
    assert (found.guidance, faults) == (wanted, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [("guidance", value) for value in (-1, True, "2", [], [1], [2, 2], [3, 1], [-1, 1], [1, 2, 3], [1, True], {})]
    + [("dropout", value) for value in (-0.1, 1, 1.5, True, "0.1", None)]
    + [("head", value) for value in ("x0", "both", "eps", 1, True)],
)
def test_a_line_s_own_numbers_are_within_their_limits(key, value):
    found, faults = student(**{key: value})
    assert found is None
    (fault,) = faults
    assert fault.startswith(f"s.{key}: must be ")


@pytest.mark.parametrize("name", ["teacher", "real", "Pd", "1pd", "_pd", "p-d", "p" * 65, "p.d", ""])
def test_a_name_that_files_and_tables_cannot_have_is_no_student(name):
    faults: list[str] = []
    assert params._distill({name: {"method": "progressive"}}, faults) == {}
    (fault,) = faults
    assert fault.startswith(f"distill.{name}: a student's name must be")


def test_a_name_of_letters_and_digits_is_one():
    line = {"method": "progressive", "teacher": "t", "steps": 8, **SHORT}
    names = ["p", "p" * 64, "really", "teachers", "p_2"]
    assert list(params._distill(dict.fromkeys(names, line), [])) == names


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"folder": "x", "iterations": 3, "lr": 0.1}, "teacher: give folder or the numbers of a training, not both; leave out iterations, lr"),
        ({"foldr": "x"}, "teacher.folder: missing"),
        ({"folder": ""}, "teacher: folder must be"),
        ({}, "teacher.iterations: missing"),
        (None, "teacher: "),
        ("x", "teacher: "),
    ],
)  # fmt: skip
def test_a_teacher_is_a_training_or_a_folder(given, words):
    faults: list[str] = []
    assert params._teacher(given, faults) is None
    assert any(fault.startswith(words) for fault in faults), faults
    assert params._teacher({"folder": "x"}, []) == params.Adopt("x")
    assert params._teacher(SHORT, []) == params.fit.Config(**SHORT)


def test_a_section_of_anchors_is_no_section_and_holds_what_a_file_may(tmp_path):
    assert read(tmp_path, SHIPPED + "\nx-more: {anything: [1, {b: c}]}\n").distill
    for odd, words in ((".nan", "must be a finite number"), ("1e30", "is beyond all use"), ("{1: 2}", "is no word")):
        (fault,) = faults(tmp_path, (r"x-grids:", f"x-more: {{b: {odd}}}\nx-grids:"))
        assert fault.startswith("x-more")
        assert words in fault


def line_of(method: str, teacher: str, **more) -> dict:
    own = {"steps": more.pop("steps")} if "steps" in more else {}
    needed = {"consistency": {"target_ema": 0.5, "steps": 16}}.get(method, {})
    return {"method": method, "teacher": teacher, **SHORT, **needed, **own, **more}


def students(**lines: dict) -> dict:
    faults: list[str] = []
    found = params._distill(lines, faults)
    assert faults == []
    return found


def test_how_each_checkpoint_is_sampled():
    """The teacher in all its ways; who jumps to images `anytime`; who knows velocities as the teacher's first way; who has
    steps of its own on these; and who is named as is said there."""
    found = students(
        jumps=line_of("consistency", "teacher"),
        knows=line_of("denoising", "teacher"),
        halves=line_of("progressive", "teacher", steps=8),
        leaps=line_of("distribution_matching", "teacher", steps=2),
        named=line_of("consistency", "teacher"),
    )
    ways = [params.Way("ddim", "even", [steps]) for steps in (1, 2, 3, 4, 5)]
    evaluate = params.Evaluate(10, 0, 1, None, ways[:2], ways[2:4], {"named": ways[4:]})
    assert {name: params.ways_of(name, evaluate, found) for name in ("teacher", *found)} == {
        "teacher": [("evaluate.teacher.0", ways[0]), ("evaluate.teacher.1", ways[1])],
        "jumps": [("evaluate.anytime.0", ways[2]), ("evaluate.anytime.1", ways[3])],
        "knows": [("evaluate.teacher.0", ways[0])],
        "halves": [("distill.halves", params.Way("ddim", "own"))],
        "leaps": [("distill.leaps", params.Way("renoise", "own"))],
        "named": [("evaluate.students.named.0", ways[4])],
    }
    assert list(params._ways(evaluate)) == [
        ("evaluate.teacher.0", "teacher", ways[0]),
        ("evaluate.teacher.1", "teacher", ways[1]),
        ("evaluate.anytime.0", "", ways[2]),
        ("evaluate.anytime.1", "", ways[3]),
        ("evaluate.students.named.0", "named", ways[4]),
    ]


def test_a_method_asks_about_who_teaches_and_not_about_where_its_network_starts():
    lines = {
        "pd16": line_of("progressive", "teacher", steps=16),
        "jumps": line_of("consistency_training", "pd16"),
        "pd8": line_of("progressive", "jumps", steps=8),
    }
    told: list[str] = []
    params._chains(students(**lines), told)
    assert told == []
    params._chains(students(**{**lines, "pd8": line_of("progressive", "jumps", steps=5)}), told)
    assert [fault.partition("; set")[0] for fault in told] == [
        "distill.pd8: steps 5 needs a teacher of 10 steps or one valid at any time, but its teacher has 16"
    ]


def test_the_head_of_a_network_is_its_line_s_or_that_of_the_one_it_starts_from():
    found = students(
        first=line_of("denoising", "teacher", head="v"),
        child=line_of("progressive", "first", steps=8),
        own=line_of("progressive", "teacher", steps=8),
    )
    heads = {name: params.head_of(name, found, "x0") for name in ("teacher", *found)}
    assert heads == {"teacher": "x0", "first": "v", "child": "v", "own": "x0"}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ({"first": line_of("denoising", "teacher", head="v")}, []),
        ({"first": line_of("denoising", "teacher")}, ["first"]),
        ({"halves": line_of("progressive", "teacher", steps=8), "jumps": line_of("consistency", "teacher")}, []),
        ({"leaps": line_of("distribution_matching", "teacher", head="v")}, ["leaps"]),  # whose teacher says x0
        (
            {"first": line_of("denoising", "teacher", head="v"), "leaps": line_of("distribution_matching", "first")},
            [],
        ),
    ],
)
def test_who_asks_for_velocities_close_to_the_data_has_a_network_and_a_teacher_that_know_them(lines, told):
    faults: list[str] = []
    params._heads(students(**lines), "x0", faults)
    assert [fault.partition(".method: ")[0] for fault in faults] == [f"distill.{name}" for name in told]
    params._heads(students(**lines), "both", faults)
    assert len(faults) == len(told)


def test_as_many_steps_as_there_will_be_are_taken_and_one_more_is_not(tmp_path):
    line = "gamma: {steps: 1000"
    assert read(tmp_path, SHIPPED.replace(line, "gamma: {steps: 64")).search.most == 64
    assert faults(tmp_path, (line, "gamma: {steps: 63")) == ["search.most: 64 is more than gamma.steps, 63; lower it"]
    way = "    - {sampler: ddim, trajectory: searched, steps: [8, 4, 2]}"
    assert read(tmp_path, SHIPPED.replace(way, way.replace("8, 4", "64, 4")))

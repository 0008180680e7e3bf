import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffcore.mistake import Mistake
from diffcore.trajectory import even
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
    assert [found.distill[name].config.steps for name in chain] == [16, 8, 4, 2, 1]
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
        ([GUIDED, BUILT_IN], "evaluate.anytime.1.trajectory: fitted times follow the teacher's path without guidance, and cd"),
        ([(WEIGHT, "{sampler: ddim, trajectory: even, steps: [64], guidance: 2.0}")], "evaluate.teacher.0.guidance: there are no classes"),
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
    own = "    - {sampler: ddim, trajectory: own}"
    assert with_way(fitted, own) == [
        "evaluate.teacher.2.trajectory: own is for a student with steps of its own; name another"
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
    noisy = "    - {sampler: langevin, trajectory: even, steps: [8]}"
    (fault,) = with_way(fitted, noisy)
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

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("diffcore", "tasks", "flows")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == there

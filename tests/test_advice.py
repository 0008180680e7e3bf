"""`distill advise`: over all questions the file is valid and ends where it was wanted, and every reason stands in a table."""

import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from diffcore.checkpoints.card import Card
from diffcore.core.errors import UserError
from diffcore.noise.trajectory import uniform
from tasks import calibration, command, params, paths, plan, strict_yaml, workspace
from tasks.advice import advise, question, rules, text
from tasks.advice.advise import Answer
from tasks.advice.budget import LEAST
from tasks.advice.question import CALLS, Budget, Question
from tasks.calibration import Networks
from tasks.planned_data import planned_data
from tests.test_pipeline import call, make

ROOT = Path(__file__).parent.parent
SHIPPED = params.read(ROOT / "params.yaml")
TARGETS = [each for count in range(1, 5) for each in itertools.combinations(CALLS, count)]
GUIDANCE = [None, (1.0, 4.0), (2.0, 2.0)]
QUICK = {"channels": [8, 8], "groups": 4}
TEACHERS = {
    "own": {},
    "own that is told classes": {"conditional": True},
    "own that says x0": {"says": "x0"},
    **{
        f"adopted that says {says}{' and is told classes' * known}": {
            "folder": "/t", "says": says, "conditional": known, "levels": 1000, "weights": 10 ** (5 + 2 * known),
        }
        for says in ("v", "eps", "x0")
        for known in (False, True)
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def with_teacher(about: dict) -> params.Params:
    """The shipped parameters, whose own teacher is such a network."""
    raw = json.loads(json.dumps(SHIPPED.raw))
    raw["teachers"]["teacher"]["network"]["parameterization"] = about.get("says", "v") if "folder" not in about else "v"
    raw["teachers"]["teacher"]["network"]["conditional"] = "folder" not in about and about.get("conditional", False)
    raw["teachers"]["teacher"]["weight"] = "min_snr"  # without which an x0 network is refused
    raw["distill"] = {"pd16": raw["distill"]["pd16"]}
    return params.parse(raw, "test")


def questions(about: dict):
    for targets, guidance in itertools.product(TARGETS, GUIDANCE):
        if guidance is None or "folder" not in about or about["conditional"]:
            yield Question(targets, "digits", guidance=guidance, **about)


def students_of(parsed: params.Params, steps: int) -> list[str]:
    return [name for name in parsed.distill if parsed.lines.grid(name) == uniform(steps)]


# ------------------------------------------------------------------------------- what is written


@pytest.mark.slow
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_file_is_valid_says_what_it_means_and_ends_in_a_student_for_each_target(teacher):
    about = TEACHERS[teacher]
    own = with_teacher(about)
    for each in questions(about):
        answer = Answer(own, each, None)
        parsed = params.parse(answer.raw, "advised")
        if "folder" in about:
            params.check_adopted(parsed, "teacher", 4, each.says, True)
        for target in each.calls:
            (name,) = students_of(parsed, target)
            assert parsed.lines.root_name(name) == "teacher"
            assert parsed.lines.guidance(name) == (each.guidance and parsed.lines.guidance("guided"))
        needed = {above for line in parsed.distill.values() for above in (line.init, line.teacher)}
        ends = set(parsed.distill) - needed
        assert ends == {students_of(parsed, target)[0] for target in ends_of(each)}
        if len(each.calls) == 4:  # each line is in one of these
            content = text.written(answer.raw, answer.about, answer.advised)
            assert strict_yaml.parse_yaml(content, "advised") == answer.raw


def ends_of(each: Question) -> set[int]:
    """Of one chain the last target is an end, and without guidance a student of one call is an end of its own."""
    chain = set(each.calls) if each.guidance else set(each.calls) - {1}
    return ({min(chain)} if chain else set()) | ({1} & set(each.calls))


@pytest.mark.parametrize("about", [{}, {"guidance": (1.0, 4.0)}, {"folder": "/t", "says": "eps", "levels": 1000}])
def test_the_file_serves_as_a_preset_too(about):
    raw = json.loads(json.dumps(params.load_yaml(ROOT / "params.yaml")))
    advised = Answer(SHIPPED, Question((4, 2, 1), "folder:x", **about), 32).raw
    workspace._merge(raw, json.loads(json.dumps(advised)), "preset")
    assert {key: value for key, value in raw.items() if not key.startswith("x-")} == advised


def test_a_line_stands_below_its_reason_and_every_reason_is_in_the_file():
    answer = Answer(SHIPPED, Question((4, 1), "digits"), None)
    lines = text.written(answer.raw, answer.about, answer.advised).splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("  dm1: {")]
    assert "0.28 of a training twice as long" in lines[place - 2] + lines[place - 1]
    assert lines[place - 1].endswith("[docs/methods.md]")
    whole = re.sub(r"\s+# ", " ", "\n".join(lines))
    for line in answer.advised:
        assert line.rule.why in whole, line.path


@pytest.mark.parametrize(
    "word", ["a b", "on", "x:y", "folder:~/my photos", "007", "1e3", "-", "", "null", "ä", "a # b", "~"]
)
def test_words_in_a_line_are_read_back_as_they_are(word):
    value = {"a": word, "b": [word, 1.5e-3, True, None, 3]}
    assert strict_yaml.parse_yaml(text.flow(value), "flow") == value


def test_other_lines_of_teachers_are_left_out_aloud():
    raw = json.loads(json.dumps(SHIPPED.raw))
    raw["teachers"]["second"] = raw["teachers"]["teacher"]
    answer = Answer(params.parse(raw, "test"), Question((4,), "digits"), None)
    assert list(answer.raw["teachers"]) == ["teacher"]
    assert [line for line in answer.about if "second of `teachers`" in line]
    assert not [line for line in Answer(SHIPPED, Question((4,), "digits"), None).about if "Left out" in line]


def test_weights_of_guidance_are_swept_from_the_lowest_to_the_highest():
    swept = {"between": (1.0, 4.0), "one": (2.0, 2.0), "many": (0.0, 9.5), "parts": (1.5, 3.5)}
    weights = {
        key: Answer(SHIPPED, Question((4,), "digits", guidance=each), None).raw["evaluate"]["teacher"][0]["guidance"]
        for key, each in swept.items()
    }
    assert weights == {
        "between": [1.0, 2.0, 3.0, 4.0], "one": [2.0], "many": [0.0, 4.75, 9.5], "parts": [1.5, 2.0, 3.0, 3.5],
    }  # fmt: skip


def test_a_chain_begins_where_steps_divide_the_levels_of_noise():
    def first(levels: int) -> str:
        return next(iter(Answer(SHIPPED, Question((4,), "digits", levels=levels), None).raw["distill"]))

    assert (first(1024), first(1000)) == ("pd16", "pd8")


def test_a_large_network_takes_smaller_steps_and_says_that_none_was_measured():
    answer = Answer(SHIPPED, Question((4, 1), "digits", weights=rules.LARGE), None)
    rates = {name: line["lr"] for name, line in answer.raw["distill"].items()}
    assert rates == {"pd16": 1e-4, "pd8": 1e-4, "pd4": 1e-4, "cd": 1e-4, "dm1": 1e-5}
    assert all("was not measured here" in line.notes[0] for line in answer.fitted.lines)


# ------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize("rule", [rule for rule in rules.RULES if rule.backed], ids=lambda rule: rule.why[:40])
def test_each_number_of_a_reason_stands_in_a_row_that_is_there(rule):
    rows = ""
    for row in rule.backed:
        (whole,) = [line for line in (ROOT / row.file).read_text().splitlines() if line.startswith(row.begins)]
        rows += whole
        if row.command:
            script = re.search(r"bench/\w+\.py", row.command)
            assert (ROOT / (script[0] if script else "presets/classes.yaml")).exists()
    numbers = re.findall(r"\d+\.\d+", rule.why)
    assert numbers
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", rows)] == []


@pytest.mark.parametrize("rule", [rule for rule in rules.RULES if not rule.backed], ids=lambda rule: rule.why[:40])
def test_a_reason_that_no_table_backs_has_no_numbers_and_says_so(rule):
    assert not re.search(r"\d+\.\d+", rule.why)
    assert text.backing(rule) == (" [not measured here]" if "method" in rule.writes else "")


def test_no_rule_is_dead():
    used = set()
    for about in TEACHERS.values():
        own = with_teacher(about)
        used |= {id(line.rule) for each in questions(about) for line in Answer(own, each, None).advised}
    dead = [f"{rule.purpose}: {dict(rule.when)}" for rule in rules.RULES if id(rule) not in used]
    assert dead == []


def test_a_training_costs_the_calls_that_the_trainers_meter_counts(monkeypatch, tmp_path, without_shape_checks):
    """Of every purpose that is trained, the teacher's too."""
    monkeypatch.setattr(calibration, "ENOUGH_SECONDS", 0.0)
    small = {"batch": 4, "cores": 1}
    seen = set()
    for about, targets, guidance in ((TEACHERS["own that says x0"], (1,), None), ({}, (8,), (1.0, 4.0))):
        answer = Answer(with_teacher(about), Question(targets, "digits", guidance=guidance, **about), None)
        raw = json.loads(json.dumps(answer.raw))
        raw["teachers"]["teacher"]["network"].update(QUICK)
        for line in (*raw["teachers"].values(), *raw["distill"].values()):
            line.update({"batch": 4} if "cores" not in line else small)
        parsed = params.parse(raw, "test")
        networks = Networks(parsed, planned_data(parsed), tmp_path / f"{guidance}")
        for line in (answer.teacher, *answer.fitted.lines):
            seen.add(line.rule.purpose)
            counted = calibration.training(parsed, networks, line.name, 1)["calls"] / 4
            assert counted == line.rule.calls, line.path
            assert line.calls == counted * line.value["iterations"] * line.value["batch"]
    assert seen == {rule.purpose for rule in rules.RULES if rule.calls}


# ------------------------------------------------------------------------------- the budget


def answer_of(targets: tuple[int, ...], limit: str, **about) -> Answer:
    return Answer(SHIPPED, Question(targets, "digits", budget=Budget.parse(limit), **about), None)


ADOPTED = {"folder": "/t", "says": "v"}


def test_a_budget_is_shared_by_all_lines_alike_and_not_exceeded():
    for limit in (3e5, 5e5, 1e6, 1e8):
        answer = answer_of((4, 1), f"{limit:g} calls", **ADOPTED)
        unlimited = Answer(SHIPPED, Question((4, 1), "digits", **ADOPTED), None)
        tables = {line.name: line.value["iterations"] for line in unlimited.fitted.lines}
        spent = sum(line.calls for line in answer.fitted.lines)
        assert spent == answer.fitted.price <= limit
        an_update_more = sum(line.calls / line.value["iterations"] for line in answer.fitted.lines)
        assert spent + an_update_more > limit
        for line in answer.fitted.lines:
            assert line.value["iterations"] == int(tables[line.name] * answer.fitted.share)


def test_a_teacher_that_is_still_to_be_trained_is_paid_first():
    of_teacher = 1000 * 128 * 3
    answer = answer_of((1,), "1e6 calls")
    students = sum(line.calls for line in answer.fitted.lines)
    assert answer.fitted.price == of_teacher + students <= 1e6
    assert students > 0.95 * (1e6 - of_teacher)


def test_a_teacher_that_was_trained_here_by_this_line_costs_nothing(monkeypatch):
    line = {**SHIPPED.raw["teachers"]["teacher"], "flip": False}
    (paths.CHECKPOINTS / "teacher").mkdir(parents=True)
    (paths.CHECKPOINTS / "teacher/card.json").touch()
    paths.DATA.mkdir(parents=True)
    (paths.DATA / "manifest.json").touch()
    for parameters, price in ((line, 0), ({**line, "lr": 1.0}, 1000 * 128 * 3)):
        card = Card.__new__(Card)
        object.__setattr__(card, "parameters", parameters)
        monkeypatch.setattr(advise, "read_card", lambda folder, card=card: card)
        answer = answer_of((1,), "1e6 calls")
        assert answer.fitted.price - sum(line.calls for line in answer.fitted.lines) == price


def test_what_does_not_fit_is_left_out_the_dearest_first_and_named():
    all_four = sum(line.calls for line in Answer(SHIPPED, Question(CALLS, "digits", **ADOPTED), None).fitted.lines)
    enough = answer_of(CALLS, f"{LEAST * all_four} calls", **ADOPTED)
    assert enough.fitted.left_out == ()
    less = answer_of(CALLS, f"{LEAST * all_four - 1} calls", **ADOPTED)
    assert less.fitted.left_out == (1,)  # a chain of its own, 352 000 calls
    assert [line for line in less.about if line.startswith("No student of 1 calls")]
    assert "dm1" not in less.raw["distill"]
    least = answer_of(CALLS, "4e4 calls", **ADOPTED)
    assert (least.fitted.targets, least.fitted.left_out) == ((8,), (4, 2, 1))


def test_a_budget_that_is_too_small_for_any_target_says_what_the_least_would_be():
    with pytest.raises(UserError, match=r"a student of 8 calls needs at least 3\.84e\+04 network calls; raise it$"):
        answer_of(CALLS, "3.8e4 calls", **ADOPTED)
    with pytest.raises(UserError, match=r"3\.84e\+05 network calls of them for the teacher"):
        answer_of(CALLS, "1e5 calls")


def test_seconds_are_those_of_the_calibration_of_the_file_that_is_written(monkeypatch):
    seen = []

    def calibrated(slots, names, file):
        lines = params.read(file).lines
        seen.append((names, list(lines)))
        return {"lines": {name: {"seconds": 0.1, "width": 2} for name in names}}

    monkeypatch.setattr(plan, "calibrated", calibrated)
    answer = answer_of((4,), "5 min")
    assert seen == [(["teacher", "pd16", "pd8", "pd4"], ["teacher", "pd16", "pd8", "pd4"])]
    spent = 0.1 * 2 * (1000 + sum(line.value["iterations"] for line in answer.fitted.lines))
    assert spent == pytest.approx(answer.fitted.price)
    assert 299 < spent <= 300
    with pytest.raises(UserError, match="needs at least 224 s, 200 s of them for the teacher"):
        answer_of((4,), "220 s")


# ------------------------------------------------------------------------------- the verb


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert command.main(["advise", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return line


@pytest.fixture
def here(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())


def test_the_file_that_is_written_is_the_one_that_was_announced(here, capsys):
    assert command.main(["advise", "new.yaml", "--calls", "4,1", "--guidance", "1,4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    raw = strict_yaml.load_yaml(Path("new.yaml"))
    assert params.read(Path("new.yaml")).distill.keys() == {"guided", "pd16", "pd8", "pd4", "pd2", "pd1"}
    assert answer["targets"] == [4, 1]
    assert answer["file"] == "new.yaml"
    for line in answer["lines"]:
        section, name, *below = line["path"].split(".")
        place = raw[section][name][below[0]] if below else raw[section][name]
        assert line["value"] == place or line["value"] in place, line["path"]
        assert line["why"]
        assert all((ROOT / row["file"]).exists() for row in line["backed"])


def test_other_images_are_named_with_the_size_and_no_table_is_claimed_for_them(here, capsys):
    words = ("--calls", "4", "--data", "folder:~/photos", "--size", "64", "--budget", "1e9 calls")
    assert command.main(["advise", "new.yaml", *words]) == 0
    assert "Nothing was measured on folder:~/photos" in capsys.readouterr().out
    data = params.read(Path("new.yaml")).data
    assert (data.source, data.size) == ("folder:~/photos", 64)


def test_words_that_mean_nothing_are_refused_in_one_line_and_nothing_is_written(here, capsys):
    Path("there.yaml").write_text("mine")
    assert (
        refused(capsys, "there.yaml", "--calls", "4")
        == "error: there.yaml exists and is not replaced; name another file, or move it away"
    )
    assert refused(capsys, "params.yaml", "--calls", "4").startswith("error: params.yaml exists and is not replaced")
    assert "there is no folder no" in refused(capsys, "no/x.yaml", "--calls", "4")
    for calls in ("3", "16", "4,", "", "4;2"):
        assert "there is advice for 8, 4, 2, 1" in refused(capsys, "x.yaml", "--calls", calls)
    for weights in ("4,1", "a", "-1", "1,2,3", "inf", "nan"):
        assert "--guidance" in refused(capsys, "x.yaml", "--calls", "4", "--guidance", weights)
    for limit in ("3", "3 x", "0 s", "-1 s", "calls"):
        line = refused(capsys, "x.yaml", "--calls", "4", "--budget", limit)
        assert "write a number and one of calls, s, min, h, gpu-h" in line
    elsewhere = ("--data", "folder:x", "--budget", "3 h")
    assert "give the budget in network calls" in refused(capsys, "x.yaml", "--calls", "4", *elsewhere)
    assert "data" in refused(capsys, "x.yaml", "--calls", "4", "--data", "fodler:x")
    assert "is not a teacher" in refused(capsys, "x.yaml", "--calls", "4", "--teacher", "none")


def test_a_file_that_appears_meanwhile_is_not_replaced(here, monkeypatch):
    target = Path("new.yaml")

    def written(*words):
        target.write_text("another's")
        return "mine"

    monkeypatch.setattr(text, "written", written)
    with pytest.raises(UserError, match="exists and is not replaced"):
        advise.advise(params.read(), target, "4", None, None, None, None, None, False)
    assert target.read_text() == "another's"
    assert sorted(path.name for path in Path().iterdir()) == ["new.yaml", "params.yaml"]


# ------------------------------------------------------------------------------- a folder that is adopted


def test_an_adopted_teacher_is_read_for_what_it_says_and_for_its_images(here, tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from tests.test_adopt import TINY

    net = diffusers.UNet2DModel(**TINY)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    read = question.read(params.read(), "8,1", Path("ddpm"), "folder:x", None, "1e6 calls")
    assert (read.says, read.levels, read.side, read.channels) == ("eps", 1000, 8, 1)
    assert read.folder == str(tmp_path / "ddpm")
    assert not read.conditional
    answer = Answer(params.read(), read, None)
    assert list(answer.raw["distill"]) == ["v", "pd8", "cd", "dm1"]
    assert answer.raw["distill"]["dm1"]["teacher"] == "v"
    assert (answer.raw["data"]["size"], answer.raw["data"]["channels"]) == (8, 1)
    with pytest.raises(UserError, match="knows no classes to guide to"):
        question.read(params.read(), "8", Path("ddpm"), None, "2", None)
    assert question.read(replaced(tmp_path / "ddpm"), "8", None, None, None, None).folder == read.folder
    (tmp_path / "ddpm/vae").mkdir()
    with pytest.raises(UserError, match="ddpm works on what the encoder in vae/ makes of images, and here on images"):
        question.read(params.read(), "8", Path("ddpm"), None, None, None)


def test_a_teacher_that_is_told_texts_has_no_advice(here, tmp_path, monkeypatch):
    from tests.test_adopt import save, told_texts

    save(tmp_path / "theirs", told_texts())
    with pytest.raises(
        UserError, match="theirs is told text, text_mask, of which advice knows nothing; take a teacher"
    ):
        question.read(params.read(), "8", Path("theirs"), None, None, None)


def replaced(folder: Path) -> params.Params:
    raw = json.loads(json.dumps(SHIPPED.raw))
    raw["teachers"]["teacher"] = {"from": str(folder)}
    return params.parse(raw, "test")


@pytest.mark.slow
def test_an_advised_pipeline_runs_to_a_frontier_with_a_point_for_each_target(tmp_path):
    folder = make(tmp_path / "w")
    distill = ("-m", "tasks")
    words = ("advise", "advised.yaml", "--calls", "4,1", "--budget", "2.9e5 calls")
    done = call(folder, sys.executable, *distill, *words)
    assert done.returncode == 0, done.stderr
    (folder / "advised.yaml").replace(folder / "params.yaml")
    for verb in ("check", "run"):
        done = call(folder, sys.executable, *distill, verb)
        assert done.returncode == 0, done.stdout + done.stderr
    points = json.loads((folder / "artifacts/frontier.json").read_text())["points"]
    calls = {point["nfe"] for point in points if point["checkpoint"] in ("pd4", "dm1")}
    assert calls == {4.0, 1.0}
    names = ("teacher", "pd16", "pd8", "pd4", "cd", "dm1")
    costs = [json.loads((folder / f"artifacts/cost/{name}.json").read_text()) for name in names]
    assert 2.8e5 < sum(cost["network_calls"] for cost in costs) <= 2.9e5

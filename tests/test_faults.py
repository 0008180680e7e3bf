"""The tools that break things on purpose: what they plant is noticed, and what they see is called by its name."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import campaign, corruptions, environments, inputs, plant, trial, verdict
from tests.faults.desk import Ended
from tests.faults.planted import FAULTS, Fault
from tests.faults.verdict import Outcome

ROOT = Path(__file__).parent.parent
TRACE = "Traceback (most recent call last):\n  File\nOSError: no space\n"


def ended(code: int = 0, errors: str = "", hung: bool = False) -> Ended:
    return Ended(("shard",), code, "said\n", errors, hung)


def test_a_stack_trace_and_a_hang_are_faults_whatever_the_exit_code():
    assert verdict.fault(ended(2, f"error: no\n{TRACE}"))[0] == "traceback"
    assert verdict.fault(ended(0, "Fatal Python error: Segmentation fault\n"))[0] == "traceback"
    assert verdict.fault(ended(-9, hung=True))[0] == "hang"
    assert verdict.fault(ended(2, "error: params.yaml: seed: missing\n")) is None


@pytest.mark.parametrize(
    ("code", "errors", "named"),
    [
        (2, "error: artifacts/x is missing; run the stage `gamma`\n", True),
        (2, "error: one\nerror: two\n", True),
        (2, "error: one\nsomething else besides\n", False),
        (1, "error: one\n", False),
        (2, "", False),
        (255, "error: one\nERROR: failed to reproduce 'gamma': failed to run: ./stage gamma, exited with 2\n", True),
        (255, "ERROR: unexpected error\n", False),
    ],
)
def test_named_is_one_line_and_exit_code_2(code, errors, named):
    assert verdict.named(ended(code, errors)) is named


def test_a_refusals_own_words_are_followed():
    assert trial.remedies("artifacts/data/0.tar is damaged: run the shard stage again", ("train", "teacher")) == [
        ("shard",)
    ]
    assert trial.remedies("gamma.json was changed; run the stage `gamma` again", ("search",)) == [("gamma",)]
    assert trial.remedies(
        "artifacts/checkpoints/pd2/card.json is damaged; run the stage that makes it again", ("gamma",)
    ) == [("train", "pd2")]
    assert trial.remedies("dvc.lock is damaged; `rm dvc.lock`", ("run",)) == [("rm", "dvc.lock")]
    assert trial.remedies("move it away and publish again (`distill publish`)", ("run",)) == [("publish",)]
    assert trial.remedies("there is no verb 'x'; `distill --help` lists what there is", ("run",)) == []
    assert trial.remedies("something is wrong", ("run",)) == []


def test_every_verdict_has_its_column():
    text = verdict.table([("kills", Outcome("identical")), ("kills", Outcome("silent")), ("inputs", Outcome("named"))])
    assert set(verdict.MEANING) == {*verdict.GOOD, *verdict.BAD}
    assert "| kills | 2 | 1 | 0 | 0 | 1 | 0 | 0 | 0 |" in text
    assert "| all | 3 | 1 | 1 | 0 | 1 | 0 | 0 | 0 |" in text
    assert [Outcome(word).bad for word in ("taken", "manual")] == [False, True]


def test_what_is_tried_depends_on_the_seed_alone():
    for part, count in ((corruptions, 200), (inputs, 320), (environments, 44)):
        one, again, other = ([case.what for case in part.cases(seed, count)] for seed in (0, 0, 1))
        assert one == again != other
        assert len(one) >= count - 2
    assert {plan.pattern for plan in corruptions.plans()} == set(corruptions.READERS)
    assert set(campaign.COUNTS) == {"kills", "corruptions", "inputs", "environments"}


def toy(folder: Path) -> Path:
    (folder / "tests").mkdir(parents=True)
    (folder / "half.py").write_text("def half(x):\n    return x / 2\n\n\ndef unseen():\n    return 1\n")
    (folder / "tests" / "test_half.py").write_text(
        "from half import half\n\n\ndef test_half():\n    assert half(4) == 2\n"
    )
    return folder


def planted(old: str, new: str) -> Fault:
    return Fault("toy", "half.py", old, new, "a toy's", ("tests/test_half.py",))


def test_a_fault_whose_text_is_gone_or_there_twice_is_refused(tmp_path):
    tree = toy(tmp_path)
    assert plant.why_not(planted("x / 2", "x / 3"), tree) is None
    assert "found 0 times" in plant.why_not(planted("x / 7", "x"), tree)
    assert "found 2 times" in plant.why_not(planted("return", "yield"), tree)


def test_a_fault_that_leaves_no_python_is_refused(tmp_path):
    """Any test would notice it, whatever it is about."""
    assert "it leaves half.py as no Python" in plant.why_not(
        planted("    return x / 2\n", "        return x\n\n  y\n"), toy(tmp_path)
    )


@pytest.mark.slow
def test_a_planted_fault_is_noticed_or_survives_and_is_taken_out_again(tmp_path):
    tree = toy(tmp_path)
    sound = (tree / "half.py").read_text()
    assert plant.try_one(planted("x / 2", "x / 3"), tree).caught_by == "tests/test_half.py::test_half"
    survivor = plant.try_one(planted("return 1", "return 2"), tree)
    assert survivor.bad
    assert survivor.caught_by == plant.SURVIVED
    assert (tree / "half.py").read_text() == sound


@pytest.mark.slow
def test_a_fault_that_no_fast_test_notices_is_noticed_by_a_slow_one(tmp_path):
    tree = toy(tmp_path)
    tests = tree / "tests" / "test_half.py"
    tests.write_text("import pytest\n" + tests.read_text().replace("def test", "@pytest.mark.slow\ndef test"))
    assert plant.try_one(planted("x / 2", "x / 3"), tree).caught_by == "tests/test_half.py::test_half"


@pytest.mark.slow
def test_a_test_that_fails_without_the_fault_too_has_noticed_nothing(tmp_path):
    tree = toy(tmp_path)
    (tree / "tests" / "test_half.py").write_text("def test_of_no_worth():\n    raise AssertionError\n")
    found = plant.try_one(planted("x / 2", "x / 3"), tree)
    assert found.bad
    assert found.caught_by == f"{plant.UNSOUND}: tests/test_half.py::test_of_no_worth"


@pytest.mark.slow
def test_every_fault_of_the_list_can_still_be_planted():
    assert [reason for fault in FAULTS if (reason := plant.why_not(fault, ROOT))] == []


STRUCK = """
import sys
from pathlib import Path
from tests.faults.strike import Strike
Strike(int(sys.argv[1]), sys.argv[2]).install(Path.cwd(), Path("events"))
Path("one").write_text("whole")
Path("two").write_text("whole")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "action", "code", "left"),
    [
        (1, "kill", -9, {}),
        (2, "kill", -9, {"one": "wh"}),
        (4, "kill", -9, {"one": "whole", "two": "wh"}),
        (4, "ENOSPC", 1, None),
    ],
)
def test_a_strike_hits_the_event_it_is_meant_for(at, action, code, left, tmp_path):
    command = [sys.executable, "-c", STRUCK, str(at), action]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if left is not None:
        assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "events"} == left
    else:
        assert "No space left on device" in done.stderr


@pytest.mark.slow
def test_a_campaign_ends_with_its_table_and_leaves_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.faults.campaign",
        "inputs",
        "--count",
        "12",
        "--scratch",
        str(tmp_path / "s"),
    ]
    done = subprocess.run([*command, "--out", str(tmp_path / "found.md")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert "| all | 12 |" in (tmp_path / "found.md").read_text()
    assert list((tmp_path / "s").iterdir()) == []

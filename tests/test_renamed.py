"""What a params.yaml of before is told: one line for each old name, which says the new one."""

from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from tasks import params, renamed
from tasks.strict_yaml import load_yaml, parse_yaml

SHIPPED = Path(__file__).parent / "compact.yaml"

OLD = [
    (
        "sampler: multistep_consistency",
        "sampler: renoise",
        "evaluate.any_time_students.0.sampler: renoise is multistep_consistency now",
    ),
    (
        "sampler: ddim, trajectory: uniform",
        "sampler: ddim, trajectory: even",
        "evaluate.teacher.0.trajectory: even is uniform now",
    ),
    ("trajectory: least_cost", "trajectory: searched", "evaluate.teacher.1.trajectory: searched is least_cost now"),
    (
        "rk45, trajectory: uniform",
        "rk45, trajectory: [karras, logsnr]",
        "evaluate.teacher.7.trajectory.1: logsnr is uniform_logsnr now",
    ),
    ("\n  any_time_students:", "\n  anytime:", "evaluate.anytime: is any_time_students now"),
    (
        "parameterization: v ",
        "parameterization: both ",
        "teachers.teacher.network.parameterization: both is x0_eps now",
    ),
    ("init: cd, ", "head: v, init: cd, ", "distill.dm1.head: is parameterization now"),
]


def told(*changes: tuple[str, str]) -> list[str]:
    raw = SHIPPED.read_text()
    for new, old in changes:
        assert new in raw
        raw = raw.replace(new, old, 1)
    with pytest.raises(UserError) as caught:
        params.parse(parse_yaml(raw, "params.yaml"), "params.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("new", "old", "line"), OLD)
def test_an_old_name_is_one_line_that_says_the_new_one(new, old, line):
    assert told((new, old)) == [f"params.yaml: {line}"]


def test_all_old_names_are_told_at_once_and_other_faults_beside_them():
    lines = told(*((new, old) for new, old, _ in OLD), ("images: 1000 ", "images: 1 "))
    assert {line for *_, line in OLD} < {line.removeprefix("params.yaml: ") for line in lines}
    assert [line for line in lines if "now" not in line] == [
        "params.yaml: evaluate: images must be at least 10 and batch at least 1 or auto"
    ]


def test_a_file_of_today_is_left_as_it_is():
    raw = load_yaml(SHIPPED)
    assert renamed.renewed(raw) == (raw, [])


def test_a_line_may_be_called_as_an_old_name_is():
    raw = {"distill": {"renoise": {"init": "even"}}, "evaluate": {"students": {"anytime": [{"steps": ["even"]}]}}}
    assert renamed.renewed(raw) == (raw, [])

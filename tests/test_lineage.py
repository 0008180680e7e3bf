"""Who starts from whom, and who teaches whom: what is refused, and what follows of it."""

import pytest

from diffcore import methods
from diffcore.checkpoints import Guidance
from diffcore.core.errors import UserError
from diffcore.lineage import Lineage, Root, Student
from diffcore.noise.schedule import Cosine, Linear

NUMBERS = {"progressive": {"steps": 8}, "consistency": {"steps": 16, "target_ema": 0.5}}


def student(method: str, init: str, teacher: str | None = None, guidance=None, **numbers) -> Student:
    made = methods.load(method)(**{**NUMBERS.get(method, {}), **numbers})
    return Student(init, init if teacher is None else teacher, made, guidance)


def lineage(roots: dict[str, Root] | None = None, **students: Student) -> Lineage:
    return Lineage(roots or {"teacher": Root(True, "v", Cosine())}, students)


@pytest.mark.parametrize(
    ("links", "told"),
    [
        ({"a": ("teacher", "b"), "b": ("a", "a")}, [("a", "teacher", "b"), ("b", "init", "a")]),
        ({"a": ("teacher", "b"), "b": ("teacher", "a")}, [("a", "teacher", "b"), ("b", "teacher", "a")]),
        ({"a": ("b", "teacher"), "b": ("a", "teacher")}, [("a", "init", "b"), ("b", "init", "a")]),
        ({"a": ("teacher", "a")}, [("a", "teacher", "a")]),
        ({"a": ("teacher", "teacher"), "b": ("a", "teacher"), "c": ("a", "b")}, []),
    ],
)
def test_a_circle_is_seen_whichever_relation_closes_it(links, told):
    found = lineage(**{name: student("progressive", *above) for name, above in links.items()})
    words = "the chain {!r} comes from goes round in a circle"
    assert list(found.circles()) == [(name, key, words.format(above)) for name, key, above in told]


def test_a_teacher_is_advised_of_those_that_the_weights_come_from():
    """Not of those that taught them: `jumps` starts as `halves` and learned from `teacher`."""
    above = {"halves": student("progressive", "teacher"), "jumps": student("consistency", "halves", "teacher")}
    last = student("progressive", "jumps", steps=4)
    found = lineage(**above, last=last)
    assert found.usual_teacher("last") == "halves"
    assert list(found.unfit()) == [
        ("last", "teacher", "jumps knows no velocities and cannot teach last; write halves"),
    ]
    again = student("distribution_matching", "jumps", "halves")
    assert list(lineage(**above, again=again).unfit()) == [
        ("again", "teacher", "halves is valid only on its own steps and cannot teach again; write teacher"),
    ]
    missing = student("progressive", "jumps", "", steps=4)
    assert list(lineage(**above, last=missing).unfit()) == [
        ("last", "teacher", "missing: who teaches it; write halves")
    ]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Root(True, "v", Cosine()), None),
        (Root(False, "v", Cosine()), "of teacher and other one is told classes and the other is not"),
        (Root(True, "v", Linear()), "other has another schedule than teacher; write one that comes from the same"),
        (Root(True), "other has another schedule than teacher; write one that comes from the same"),
    ],
)
def test_two_roots_meet_where_they_are_told_the_same_of_one_schedule(other, told):
    roots = {"teacher": Root(True, "v", Cosine()), "other": other}
    met = student("progressive", "teacher", "other")
    assert list(lineage(roots, met=met).unfit()) == ([] if told is None else [("met", "teacher", told)])


def test_two_networks_from_elsewhere_do_not_meet():
    """Only their folders know whether they have one schedule."""
    roots = {"teacher": Root(True), "other": Root(True)}
    ((name, key, fault),) = lineage(roots, met=student("progressive", "teacher", "other")).unfit()
    assert (name, key) == ("met", "teacher")
    assert fault.startswith("other has another schedule than teacher")
    assert list(lineage(roots, met=student("progressive", "other")).unfit()) == []


def test_a_student_s_root_is_that_of_its_weights():
    roots = {"teacher": Root(True, "v", Cosine()), "other": Root(False, "v", Cosine())}
    found = lineage(
        roots, met=student("progressive", "other", "teacher"), below=student("progressive", "met", "teacher")
    )
    assert [found.root_name(name) for name in found] == ["teacher", "other", "other", "other"]
    assert found.root("below") == roots["other"]


@pytest.mark.parametrize(("init", "teacher", "stranger"), [("some", "teacher", "some"), ("teacher", "some", "some")])
def test_weights_of_guidance_are_those_that_init_and_teacher_were_trained_for(init, teacher, stranger):
    some = student("guided", "teacher", guidance=(1.0, 4.0))
    within = lineage(some=some, last=student("guided", init, teacher, (2.0, 3.0)))
    assert within.guidance("last") == Guidance(2.0, 3.0)
    assert list(within.weights()) == []
    told = f"distill.last.guidance: its teacher '{stranger}': this student was trained for a guidance weight of 1 to 4"
    for weights, wrong in (((0.5, 3.0), "0.5"), ((2.0, 9.0), "9")):
        beyond = lineage(some=some, last=student("guided", init, teacher, weights))
        with pytest.raises(UserError, match=f"{told}, not for {wrong}$"):
            beyond.guidance("last")
        assert list(beyond.weights()) == [f"{told}, not for {wrong}"]


def test_who_says_nothing_of_guidance_has_that_of_its_weights():
    some = student("guided", "teacher", guidance=(1.0, 4.0))
    found = lineage(some=some, below=student("progressive", "some"), beside=student("progressive", "teacher", "some"))
    assert [found.guidance(name) for name in found] == [None, Guidance(1.0, 4.0), Guidance(1.0, 4.0), None]


def test_the_grid_that_counts_is_the_teacher_s():
    above = {"halves": student("progressive", "teacher"), "jumps": student("consistency", "halves", "teacher")}
    assert list(lineage(**above, last=student("progressive", "jumps", "halves", steps=4)).unfit()) == []
    ((name, key, fault),) = lineage(**above, last=student("progressive", "jumps", "halves", steps=3)).unfit()
    assert (name, key) == ("last", "")
    assert fault.startswith("steps 3 needs a teacher of 6 steps or one valid at any time, but its teacher has 8")

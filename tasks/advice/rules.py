"""The rule table: what a line says, when, why, and which measured table of this repository backs it.

The first rule of a purpose whose conditions hold is taken. What was measured was measured on the digits (1797 images of 8x8,
a network of 173 217 weights). Every number with a point in a reason stands in one of the rows that back it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE = 2_000_000
"""Weights from which a network is trained at the papers' learning rates: ten times those of the default network, at which the
rates of the tables were chosen, and a tenth of the smallest network of the papers."""


@dataclass(frozen=True)
class Row:
    """A row of a table: the file, how the row begins, and the command that measures it again, None where no script does."""

    file: str
    begins: str
    command: str | None


@dataclass(frozen=True)
class Rule:
    """purpose: of a line. when: facts of a question, each with the values for which the rule holds. writes: keys of the line.
    why: one sentence or two. backed: rows that say so, none for what was not measured here. calls: of a training, network
    calls for each training image, as the trainer's meter counts them. fast: writes for a network of LARGE weights and more,
    which no table backs."""

    purpose: str
    when: Mapping[str, tuple[Any, ...]]
    why: str
    writes: Mapping[str, Any] = field(default_factory=dict)
    backed: tuple[Row, ...] = ()
    calls: float = 0.0
    large: Mapping[str, Any] = field(default_factory=dict)


BENCH = "python bench/methods.py"
CLASSES = "distill workspace FOLDER --preset classes && cd FOLDER && distill run"


def _methods(begins: str) -> Row:
    return Row("docs/methods.md", begins, BENCH)


def _classes(begins: str) -> Row:
    return Row("docs/methods.md", begins, CLASSES)


def _teacher(begins: str) -> Row:
    return Row("docs/teacher.md", begins, None)


HALVED = _methods("| `progressive`, 16 to 1 |")
UNIPC = _methods("| teacher, `unipc` |")
DDIM = _methods("| teacher, `ddim` (at 64 steps: 0.31) |")
JUMPS = _methods("| `consistency`, 250 updates |")
MATCHED = _methods("| `consistency`, then `distribution_matching` |")
MATCHED_LONG = _methods("| the same, the second part twice as long |")
GUIDED_TEACHER = _classes("| guided teacher, DDIM, 64 steps |")
GUIDED_STUDENT = _classes("| guided student, 64 steps |")
GUIDED_FOUR = _classes("| then halved to 4 steps |")
GUIDED_TWO = _classes("| then halved to 2 steps |")
FROM_EPS = _teacher("| `epsilon`, as it is |")
EPS_TO_V = _teacher("| `epsilon`, first 400 updates with `parameterization: v` |")
FROM_V = _teacher("| `v_prediction` |")
SAMPLERS = Row("docs/samplers.md", "| `unipc`, best of three grids |", "make run")
STUDENTS = Row("docs/samplers.md", "| *students, for comparison:* `progressive` |", "make run")

TRAINED = {"batch": 128, "lr": 1.5e-3}
SLOW = {"lr": 1.0e-4}
"""Salimans & Ho 2022, arXiv 2202.00512, of ImageNet 64x64."""

FIRST = {"method": "progressive", "iterations": 60, "warmup": 10, "ema": 0.97, **TRAINED}
LAST = {**FIRST, "iterations": 120}
GUIDED_FIRST = {**FIRST, "iterations": 100}
GUIDED_LAST = {**FIRST, "iterations": 200}
TO_V = {"method": "denoising", "parameterization": "v", "iterations": 400, "batch": 128, "lr": 2.0e-3, "ema": 0.97}
JUMP = {"method": "consistency", "steps": 16, "target_ema": 0.5, "distance": "squared", "iterations": 250, "ema": 0.97}
MATCH = {"method": "distribution_matching", "steps": 1, "iterations": 60, "batch": 128, "lr": 5.0e-4, "ema": 0.97}

HERE, ADOPTED = {"teacher": ("own",)}, {"teacher": ("adopted",)}
OWN = {**HERE, "says": ("v",)}
PLAIN, GUIDED = {"guided": (False,)}, {"guided": (True,)}
EPS = {**ADOPTED, "says": ("eps",)}


def _halving(steps: int, when: Mapping[str, Any], why: str, *backed: Row) -> Rule:
    """A round that ends at so many steps."""
    few = steps <= 4
    writes = (GUIDED_LAST if few else GUIDED_FIRST) if when.get("guided") == (True,) else LAST if few else FIRST
    return Rule("halving", {"steps": (steps,), **when}, why, {**writes, "steps": steps}, backed, 5.0, SLOW)


RULES = (
    # ---- the teacher
    Rule(
        "teacher",
        {**OWN, **PLAIN},
        "Trained here from the images, as params.yaml has it; 64 steps of DDIM come to a distance of 0.31.",
        backed=(DDIM,),
        calls=3.0,
    ),
    Rule("teacher", {**HERE, **PLAIN}, "Trained here from the images, as params.yaml has it.", calls=3.0),
    Rule(
        "teacher",
        {**OWN, **GUIDED, "conditional": (False,)},
        "Guidance needs a teacher that is told classes and can do without; at weight 1 its 128 calls come to 0.15.",
        {"network": {"conditional": True}, "label_dropout": 0.1},
        (GUIDED_TEACHER,),
        3.0,
    ),
    Rule(
        "teacher",
        {**HERE, **GUIDED, "conditional": (False,)},
        "Guidance needs a teacher that is told classes and can do without.",
        {"network": {"conditional": True}, "label_dropout": 0.1},
        calls=3.0,
    ),
    Rule("teacher", {**HERE, **GUIDED}, "It is told classes already; it stays as params.yaml has it.", calls=3.0),
    Rule("teacher", ADOPTED, "It is trained already and taken as it is."),
    # ---- what students begin from
    Rule(
        "start",
        EPS,
        "An eps network is a poor beginning: its students of 8 steps and of 1 came to 10.1 and 28.9, those of a v network "
        "that was made of it first to 0.56 and 1.01.",
        TO_V,
        (FROM_EPS, EPS_TO_V),
        3.0,
        SLOW,
    ),
    Rule(
        "start",
        {"says": ("eps", "x0")},
        "Not every method can ask it for velocities; a v network has them.",
        TO_V,
        calls=3.0,
        large=SLOW,
    ),
    Rule(
        "guided",
        {**OWN, **GUIDED},
        "One call for the two of a guided teacher: at weight 1 its 64 calls come to 0.28, the teacher's 128 to 0.15.",
        {"method": "guided", "iterations": 300, "ema": 0.98, **TRAINED},
        (GUIDED_STUDENT, GUIDED_TEACHER),
        5.0,
        SLOW,
    ),
    Rule(
        "guided",
        GUIDED,
        "One call for the two of a guided teacher.",
        {"method": "guided", "iterations": 300, "ema": 0.98, **TRAINED},
        calls=5.0,
        large=SLOW,
    ),
    # ---- halvings
    _halving(16, {**OWN, **PLAIN}, "The first round, from which the others start; it comes to 0.33 itself.", STUDENTS),
    _halving(
        8,
        {**OWN, **PLAIN},
        "8 steps near the teacher's own samples come to 0.38; untrained, the teacher's UniPC comes to 0.27 with 8 calls.",
        HALVED,
        UNIPC,
    ),
    _halving(
        4,
        {**OWN, **PLAIN},
        "4 steps come to 0.41, the best sampler of the teacher to 1.11 with as many calls.",
        HALVED,
        UNIPC,
    ),
    _halving(2, {**OWN, **PLAIN}, "2 steps come to 0.53, the teacher to 8.68 with as many calls.", HALVED, DDIM),
    _halving(8, {**EPS, **PLAIN}, "8 steps of such a chain came to 0.56.", EPS_TO_V),
    _halving(4, {**EPS, **PLAIN}, "4 steps of such a chain came to 0.72.", EPS_TO_V),
    _halving(2, {**EPS, **PLAIN}, "2 steps of such a chain came to 0.97.", EPS_TO_V),
    _halving(8, {**ADOPTED, "says": ("v",), **PLAIN}, "8 steps came to 0.60.", FROM_V),
    _halving(4, {**ADOPTED, "says": ("v",), **PLAIN}, "4 steps came to 0.72.", FROM_V),
    _halving(2, {**ADOPTED, "says": ("v",), **PLAIN}, "2 steps came to 0.89.", FROM_V),
    _halving(16, {**OWN, **GUIDED}, "The first of the rounds whose 4 steps came to 0.34 at weight 1.", GUIDED_FOUR),
    _halving(8, {**OWN, **GUIDED}, "One of the rounds whose 4 steps came to 0.34 at weight 1.", GUIDED_FOUR),
    _halving(4, {**OWN, **GUIDED}, "4 steps came to 0.34 at weight 1 and to 1.31 at weight 4.", GUIDED_FOUR),
    _halving(2, {**OWN, **GUIDED}, "2 steps came to 0.36 at weight 1 and to 1.35 at weight 4.", GUIDED_TWO),
    *(_halving(steps, GUIDED, "One more round of halving.") for steps in (16, 8, 4, 2, 1)),
    *(_halving(steps, PLAIN, "One more round of halving.") for steps in (16, 8, 4, 2)),
    # ---- one call
    Rule(
        "jump",
        {**OWN, **PLAIN},
        "What a student of one call starts from: it jumps to images already, to 0.73 in one step.",
        {**JUMP, **TRAINED},
        (JUMPS,),
        5.0,
        SLOW,
    ),
    Rule(
        "jump",
        EPS,
        "What a student of one call starts from: it jumps to images already, to 0.81 in one step.",
        {**JUMP, **TRAINED},
        (EPS_TO_V,),
        5.0,
        SLOW,
    ),
    Rule(
        "jump",
        {**ADOPTED, "says": ("v",)},
        "What a student of one call starts from: it jumps to images already, to 1.03 in one step.",
        {**JUMP, **TRAINED},
        (FROM_V,),
        5.0,
        SLOW,
    ),
    Rule(
        "jump",
        {},
        "What a student of one call starts from: it jumps to images already.",
        {**JUMP, **TRAINED},
        calls=5.0,
        large=SLOW,
    ),
    Rule(
        "match",
        {**OWN, **PLAIN},
        "The best of one call: 0.34, and 0.28 of a training twice as long; halvings to one step come to 0.78.",
        MATCH,
        (MATCHED, MATCHED_LONG, HALVED),
        25.0,
        {"lr": 1.0e-5, "critic_lr": 1.0e-5},
    ),
    Rule(
        "match",
        {},
        "For one call, after a student that jumps already, as with a teacher that is trained here.",
        MATCH,
        calls=25.0,
        large={"lr": 1.0e-5, "critic_lr": 1.0e-5},
    ),
    # ---- how it is measured
    Rule("even", {}, "What the students are held against: the teacher by DDIM at as many calls, and at 64."),
    Rule(
        "solver",
        {**OWN, **PLAIN},
        "The best of what needs no training: 0.27 with 8 calls, 1.11 with 4; a student must beat it to be worth its price.",
        {"sampler": "unipc", "trajectory": ["uniform", "quadratic", "uniform_logsnr", "karras", "fitted"]},
        (SAMPLERS,),
    ),
    Rule(
        "solver",
        PLAIN,
        "What needs no training; a student must beat it to be worth its price.",
        {"sampler": "unipc", "trajectory": ["uniform", "quadratic", "uniform_logsnr", "karras", "fitted"]},
    ),
    Rule(
        "anytime",
        {**OWN, **PLAIN},
        "The student that jumps is there anyway, and is valid at any number of steps: 0.78 in 2, 0.53 in 4, 0.47 in 8.",
        {"sampler": "multistep_consistency", "trajectory": "uniform"},
        (JUMPS,),
    ),
    Rule("swept", GUIDED, "It takes the weight as an input, and is measured at each."),
    Rule(
        "anytime",
        PLAIN,
        "The student that jumps is there anyway, and is valid at any number of steps.",
        {"sampler": "multistep_consistency", "trajectory": "uniform"},
    ),
)


def choose(purpose: str, facts: Mapping[str, Any]) -> Rule | None:
    """The first rule of this purpose whose conditions the facts meet; None where no such line is needed."""
    of_purpose = (rule for rule in RULES if rule.purpose == purpose)
    return next((rule for rule in of_purpose if _holds(rule.when, facts)), None)


def _holds(when: Mapping[str, tuple[Any, ...]], facts: Mapping[str, Any]) -> bool:
    return all(facts.get(key) in values for key, values in when.items())

"""Which checkpoint starts from which, who teaches it, and what follows of that: its trajectory, parameterization, guidance,
schedule.

A student has two relations: `init`, whose weights it starts from, and `teacher`, who teaches it. A root begins from nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from diffcore import methods
from diffcore.checkpoints import Guidance
from diffcore.checkpoints.card import STUDENT, TEACHER
from diffcore.core.errors import UserError
from diffcore.methods import Method
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory


@dataclass(frozen=True)
class Root:
    """A checkpoint that begins from nothing. conditional: whether it is told classes. inputs: what else it is told, by name.
    parameterization, schedule: None for those of a network from elsewhere, which only its folder knows. guidance: the lowest
    and the highest weight that its network is told as an input, None for one that takes none."""

    conditional: bool
    parameterization: str | None = None
    schedule: Schedule | None = None
    inputs: tuple[str, ...] = ()
    guidance: tuple[float, float] | None = None

    @property
    def is_told(self) -> bool:
        """Whether there is anything to guide to."""
        return self.conditional or bool(self.inputs)


@dataclass(frozen=True)
class Student:
    """One that is distilled. guidance: the lowest and the highest weight by which its teacher is guided. parameterization:
    what its network shall say, None for what that of `init` says."""

    init: str
    teacher: str
    method: Method
    guidance: tuple[float, float] | None = None
    parameterization: Literal["v"] | None = None


Fault = tuple[str, str, str]
"""Whose, which of its keys ("" for the line as a whole), and what is wrong."""


@dataclass(frozen=True)
class Lineage:
    """All checkpoints by name. What is asked of one presumes that `unknown` and `circles` have found no fault."""

    roots: Mapping[str, Root]
    students: Mapping[str, Student]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.roots, *self.students])

    def root_name(self, name: str) -> str:
        """The root that the weights of `name` come from."""
        while name in self.students:
            name = self.students[name].init
        return name

    def root(self, name: str) -> Root:
        return self.roots[self.root_name(name)]

    def grid(self, name: str) -> Trajectory | None:
        """The only trajectory the checkpoint `name` will be valid on; None for any."""
        return self.students[name].method.grid if name in self.students else None

    def parameterization(self, name: str) -> str | None:
        """What the network of `name` says; None where only a folder knows."""
        if name in self.roots:
            return self.roots[name].parameterization
        return self.students[name].parameterization or self.parameterization(self.students[name].init)

    def guidance(self, name: str) -> Guidance | None:
        """The weights that `name` is for: its own line's, or else those of its `init`; of a root those that its network is
        told. None for no guidance.

        A UserError for guidance without classes, or for weights that its `init` or its teacher was not trained for.
        """
        if name in self.roots:
            own = self.roots[name].guidance
            return own and Guidance(*own)
        line = self.students[name]
        above = self.guidance(line.init)
        if line.guidance is None:
            return above
        if not self.root(name).is_told:
            raise UserError(
                f"distill.{name}.guidance: the teacher knows no class or text to guide to; set `conditional` of "
                f"teachers.{self.root_name(name)} to true, or tell it a text"
            )
        for role in dict.fromkeys([line.init, line.teacher]):
            guidance = self.guidance(role)
            for weight in line.guidance if guidance else ():
                try:
                    guidance.check(weight, self.whose(role))
                except UserError as error:
                    raise UserError(f"distill.{name}.guidance: its teacher {role!r}: {error}") from None
        return Guidance(*line.guidance)

    def whose(self, name: str) -> str:
        """What `name` is, in messages."""
        return TEACHER if name in self.roots else STUDENT

    def usual_teacher(self, name: str) -> str:
        """Who is to teach `name` where nobody is named: its `init`, or if that one only jumps to images the nearest above it
        that knows velocities; for some methods the nearest that knows them at any time."""
        line = self.students[name]
        teacher = line.init
        while teacher in self.students and not self._knows(teacher, line.method):
            teacher = self.students[teacher].init
        return teacher

    def _knows(self, name: str, method: Method) -> bool:
        """Whether the checkpoint's velocities are ones that a student of `method` can learn from."""
        student = self.students.get(name)
        return student is None or (student.method.is_velocity and not (method.any_time_teacher and self.grid(name)))

    def circles(self) -> Iterator[Fault]:
        """Students that are above themselves, by either relation."""
        for name, student in self.students.items():
            for key, above in (("init", student.init), ("teacher", student.teacher)):
                if name in self._above(above):
                    yield name, key, f"the chain {above!r} comes from goes round in a circle"
                    break

    def _above(self, name: str) -> set[str]:
        """`name`, and all it comes from."""
        ancestors = set()
        pending = [name]
        while pending:
            name = pending.pop()
            if name not in ancestors:
                ancestors.add(name)
                line = self.students.get(name)
                pending += [line.init, line.teacher] if line else []
        return ancestors

    def unfit(self) -> Iterator[Fault]:
        """Students whose teacher cannot teach them, each with who can."""
        for name, line in self.students.items():
            usual = self.usual_teacher(name) if line.method.asks_teacher else line.init
            if not line.teacher:
                yield name, "teacher", f"missing: who teaches it; write {usual}"
            elif not line.method.asks_teacher and line.teacher != line.init:
                word = methods.word(line.method)
                yield (
                    name,
                    "teacher",
                    f"{word} learns from the images and asks no teacher; write {line.init}, as in init",
                )
            elif line.method.asks_teacher and not self._knows(line.teacher, line.method):
                why = "is valid only on its own steps" if self._is_velocity(line.teacher) else "knows no velocities"
                yield name, "teacher", f"{line.teacher} {why} and cannot teach {name}; write {usual}"
            else:
                yield from self._strangers(name, line)
                try:
                    line.method.check(self.grid(line.teacher))
                except UserError as error:
                    yield name, "", str(error)

    def _is_velocity(self, name: str) -> bool:
        return name in self.roots or self.students[name].method.is_velocity

    def _strangers(self, name: str, line: Student) -> Iterator[Fault]:
        """Two roots may only meet where they have one schedule and are told the same."""
        root = self.root(name)
        teacher_root = self.root(line.teacher)
        if self.root_name(name) == self.root_name(line.teacher):
            return
        if root.conditional != teacher_root.conditional:
            yield name, "teacher", f"of {line.init} and {line.teacher} one is told classes and the other is not"
        elif root.inputs != teacher_root.inputs:
            yield name, "teacher", f"of {line.init} and {line.teacher} one is told a text and the other is not"
        elif None in (root.schedule, teacher_root.schedule) or root.schedule != teacher_root.schedule:
            yield (
                name,
                "teacher",
                f"{line.teacher} has another schedule than {line.init}; write one that comes from the same",
            )

    def parameterizations(self) -> Iterator[Fault]:
        """A network that says x_0 has no velocity at the data: only methods whose times keep off it can teach it."""
        for name, line in self.students.items():
            checkpoints = [name, line.teacher] if line.method.asks_teacher else [name]
            if not line.method.off_the_data and "x0" in map(self.parameterization, checkpoints):
                yield (
                    name,
                    "method",
                    f"{methods.word(line.method)} asks for velocities close to the data, where x0 has none; "
                    "set parameterization of the network to v or x0_eps, or begin the chain with "
                    "a line of method denoising and parameterization v",
                )

    def weights(self) -> Iterator[str]:
        """Guidance weights that a teacher does not know or a method cannot learn from."""
        for name, line in self.students.items():
            try:
                weights = self.guidance(name)
            except UserError as error:
                yield str(error)
                continue
            yield from self._unheard(name, weights)
            try:
                line.method.check_guidance(weights and (weights.low, weights.high))
            except UserError as error:
                yield f"distill.{name}: {error}"

    def _unheard(self, name: str, weights: Guidance | None) -> Iterator[str]:
        """Weights that a line leaves to its `init`, and its teacher cannot be told."""
        line = self.students[name]
        own = self.guidance(line.teacher) if line.method.asks_teacher and line.guidance is None else None
        if own is None or own == weights:
            return
        if weights is None and own.is_input:
            yield (
                f"distill.{name}.guidance: missing: {line.teacher} takes the weight of guidance as an input; say which one, "
                f"from {own.low:g} to {own.high:g}"
            )
        elif weights is not None and line.teacher in self.roots:
            for weight in (weights.low, weights.high):
                try:
                    own.check(weight, TEACHER)
                except UserError as error:
                    yield f"distill.{name}.guidance: {line.teacher}: {error}; say which one"
                    return

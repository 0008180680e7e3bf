"""What is asked: the words of the command line, read and held against the teacher and the data that they name."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffcore.checkpoints import from_diffusers
from diffcore.core.errors import UserError
from diffcore.data.manifest import Manifest
from tasks import paths
from tasks.params import ROOT, Params
from tasks.sections import Adopted

CALLS = (8, 4, 2, 1)
"""Numbers of network calls that there is advice for."""

UNITS = {"calls": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "gpu-h": 3600.0}
BUDGET = re.compile(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?) *(" + "|".join(sorted(UNITS, key=len, reverse=True)) + ")")


@dataclass(frozen=True)
class Budget:
    """How much all trainings may take together, those of this file that are not done yet. text: as it was typed. amount: of
    network calls, or of seconds of computing."""

    text: str
    amount: float
    in_calls: bool

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`600 s`, `2 gpu-h`, `1e7 calls`. A UserError for any other."""
        match = BUDGET.fullmatch(text.strip().lower())
        if not match or float(match[1]) <= 0:
            raise UserError(
                f"--budget {text}: write a number and one of {', '.join(UNITS)}, as in `600 s` or `1e7 calls`"
            )
        return cls(text.strip(), float(match[1]) * UNITS[match[2]], match[2] == "calls")


@dataclass(frozen=True)
class Question:
    """calls: the targets, the most first. folder: of a teacher that is trained already, None for one that is trained here.
    says: what its network says (v, eps, ...). conditional: whether it is told classes. weights: of its network. levels: of
    its noise, which numbers of steps should divide. side, channels: of its images, None where only the data tell.
    guidance: (lowest, highest), None for none. source: of the images."""

    calls: tuple[int, ...]
    source: str
    folder: str | None = None
    says: str = "v"
    conditional: bool = False
    weights: int = 0
    levels: int = 1024
    side: int | None = None
    channels: int | None = None
    guidance: tuple[float, float] | None = None
    budget: Budget | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the conditions of rules name."""
        teacher = "own" if self.folder is None else "adopted"
        is_guided = self.guidance is not None
        return {"teacher": teacher, "says": self.says, "guided": is_guided, "conditional": self.conditional}


def read(
    params: Params, calls: str, teacher: Path | None, source: str | None, guidance: str | None, budget: str | None
) -> Question:
    """The question, with what the teacher's folder says of its network. A UserError for words that mean none, for a folder
    that cannot be adopted, and for guidance without classes. Without a teacher that of params.yaml, and its source too."""
    line = params.teachers[ROOT]
    folder = str(teacher) if teacher else line.folder if isinstance(line, Adopted) else None
    question = Question(
        _calls(calls),
        source or params.data.source,
        guidance=_guidance(guidance) if guidance else None,
        budget=Budget.parse(budget) if budget else None,
    )
    if folder is not None:
        question = _adopted(question, folder)
    else:
        weights = line.network.parameters(params.data.channels or 1)
        question = replace(question, says=line.parameterization, conditional=line.conditional, weights=weights)
    _check_classes(question, params)
    return question


def _calls(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if any(word not in map(str, CALLS) for word in words):
        raise UserError(
            f"--calls {text}: there is advice for {', '.join(map(str, CALLS))}, separated by commas; with more calls nothing "
            "trained was better than the teacher's own samplers (docs/samplers.md)"
        )
    return tuple(call for call in CALLS if str(call) in words)


def _guidance(text: str) -> tuple[float, float]:
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) not in (1, 2) or not 0 <= weights[0] <= weights[-1] < math.inf:
        raise UserError(f"--guidance {text}: write a weight of at least 0, or the lowest and the highest: 1,4")
    return weights[0], weights[-1]


def _adopted(question: Question, folder: str) -> Question:
    place = Path(folder).expanduser().resolve()
    model = from_diffusers.read(place)
    _check_images(model, folder)
    channels, height, width = model.image
    return replace(
        question,
        folder=str(place),
        says=model.denoiser.reading.parameterization,
        conditional=model.denoiser.classes is not None,
        weights=sum(part.numel() for part in model.denoiser.net.parameters()),
        levels=model.denoiser.reading.num_timesteps,
        side=height if height and height == width else None,
        channels=channels,
    )


def _check_classes(question: Question, params: Params) -> None:
    if question.guidance is None:
        return
    if question.folder is not None and not question.conditional:
        raise UserError(f"--guidance: the teacher in {question.folder} knows no classes to guide to; leave it out")
    if is_here(question, params) and Manifest.read(paths.DATA, verify=False).classes is None:
        raise UserError(f"--guidance: the images in {paths.DATA} have no classes to guide to; leave it out")


def is_here(question: Question, params: Params) -> bool:
    """Whether the images of the question are sharded in this folder."""
    return (paths.DATA / "manifest.json").exists() and question.source == params.data.source


def is_counted(question: Question, params: Params) -> bool:
    """Whether number and size of the images are counted already."""
    plain = params.data.size is None and params.data.limit is None
    return is_here(question, params) or (question.source == "digits" == params.data.source and plain)


def _check_images(model: from_diffusers.Adopted, folder: str) -> None:
    """A UserError for a teacher for which there are no data: of latents, or one that is told texts."""
    if model.latent:
        raise UserError(
            f"{folder} works on what the encoder in {model.latent}/ makes of images, and here on images themselves; take a "
            "teacher of pixels"
        )
    if told := list(model.denoiser.nothing.names):
        raise UserError(
            f"{folder} is told {', '.join(told)}, of which advice knows nothing; take a teacher that is told a time and at "
            "most a class, or write params.yaml by hand"
        )

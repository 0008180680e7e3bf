"""A checkpoint's birth certificate, `card.json`: where it comes from and what it is good for.

It holds nothing that changes from run to run (no dates, no seconds), so equal jobs give equal bytes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers import parameterization

SCHEMA = 3

RENAMED = {
    "labels": "num_timesteps",
    "renoise": "multistep_consistency",
    "head": "parameterization",
    "both": "x0_eps",
}
"""Words of older cards, and what they are now."""

LATER = {"watch", "reading", "inputs", "encoder", "end", "prompts"}
"""Fields that older cards of this schema lack, and new ones where there is nothing to say: so equal jobs keep equal bytes."""


@dataclass(frozen=True)
class Card:
    """Where a checkpoint comes from and what it is good for.

    schedule: `{"name": ...}` as schedule.to_json gives it. num_timesteps: T of the timestep T t - 1 that its network is
    told. solver: what its method samples it with, a word of SOLVERS. grid: the only times it may be sampled at, null
    for any. classes: names of the classes it tells apart, null for none. guidance: the weights of classifier-free
    guidance that it was trained for, null for none, see `Guidance`. image: its samples' shape [c, h, w]. parent: digest
    of the checkpoint that it began as, teacher: of the one it learned from, null for none. data: digest of the shards.
    parameters: everything params.yaml said about it. code: digest of the source that trained it. cost: iterations,
    images and network calls. files: sha256 of each file. digest: of all these files. compute: device, precision, whose
    random numbers and number of processes that trained it, null where that was not here or is not known. watch: of a watched
    training the digest of the feature network that looked at it, the update of these weights, their distance, after how
    many updates it ended, and the alarms; null for one that was not watched. reading: what the network sees and
    is told (input, time, sigma_data of `Reading`), null for x_t as it is and T t - 1. inputs: what
    else the network is told beside class and weight, null for no more; what stands for nothing lies in nothing.safetensors.
    encoder: digest of what made the embeddings of texts that it is told, null for none. end: of a network of two times what
    it was trained to be told of the second, `same` or `any` (see `NetDenoiser`), null for one of one time. prompts: digest
    of the texts without images that it was trained on beside the captions, null for none. seal: digest of
    the rest of the card.
    """

    schema: int
    name: str
    method: str
    schedule: dict[str, Any]
    parameterization: str
    num_timesteps: int
    solver: str
    grid: list[float] | None
    classes: list[str] | None
    guidance: dict[str, Any] | None
    image: list[int]
    weights: str
    parent: str | None
    teacher: str | None
    data: str
    parameters: dict[str, Any]
    seed: int
    code: str
    torch: str
    cost: dict[str, float | int]
    files: dict[str, str]
    digest: str
    compute: dict[str, str | int] | None = None
    seal: str = ""
    watch: dict[str, Any] | None = None
    reading: dict[str, Any] | None = None
    inputs: list[str] | None = None
    encoder: str | None = None
    end: str | None = None
    prompts: str | None = None

    def sealed(self) -> str:
        """What `seal` must be. Older cards have no `compute`, and keep their seals."""
        left_out = {"seal"} if self.compute else {"seal", "compute"}
        return disk.digest({key: value for key, value in self.to_json().items() if key not in left_out})

    def to_json(self) -> dict[str, Any]:
        """Its fields; those of LATER only where there is something to say."""
        return {key: value for key, value in asdict(self).items() if key not in LATER or value is not None}


STUDENT, TEACHER = "this student", "this teacher"
"""Who was trained for weights of guidance, in messages."""


@dataclass(frozen=True)
class Guidance:
    """What a student, or a teacher from elsewhere, knows of classifier-free guidance: unconditional + g (conditional -
    unconditional), in one network call.

    low, high: the weights g it was trained for. They are equal where the guidance is built in, or its network is always told
    that weight; otherwise g is an input.
    """

    low: float
    high: float
    convention: str = "unconditional + g (conditional - unconditional)"

    @property
    def is_input(self) -> bool:
        return self.low < self.high

    def check(self, weight: float, whose: str = STUDENT) -> None:
        """A UserError for a weight that it was not trained for. whose: what it is, in words."""
        if not self.low <= weight <= self.high:
            trained = f"{self.low:g} to {self.high:g}" if self.is_input else f"{self.low:g} alone"
            raise UserError(f"{whose} was trained for a guidance weight of {trained}, not for {weight:g}")


def read_card(folder: Path) -> Card:
    """The card alone, its own fields checked; the weights are not read."""
    path = Path(folder) / "card.json"
    if not path.exists():
        raise UserError(f"{folder} is not a checkpoint: it has no card.json; run the stage that makes it")
    try:
        fields = disk.parse_json(path.read_text())
        _check_schema(path, fields.get("schema", SCHEMA) if isinstance(fields, dict) else SCHEMA)
        card = Card(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}); run the stage that makes it again") from None
    if card.parameterization not in parameterization.NAMES:
        raise UserError(
            f"{path} names the parameterization {card.parameterization!r}; known: {', '.join(parameterization.NAMES)}"
        )
    if type(card.num_timesteps) is not int or card.num_timesteps < 1:
        raise UserError(
            f"{path} says num_timesteps {card.num_timesteps!r}, and a network is told times in at least 1 step"
        )
    if card.seal != card.sealed() or card.digest != disk.digest(card.files):
        raise UserError(f"{path} was changed since it was written; run the stage that makes it again")
    return card


def _check_schema(path: Path, schema: object) -> None:
    """Before the other fields: those of an older card have other names."""
    if schema == SCHEMA:
        return
    renamed = ", ".join(f"{old} is {new} now" for old, new in RENAMED.items())
    hint = f" ({renamed})" if isinstance(schema, int) and schema < SCHEMA else ""
    raise UserError(f"{path} has schema {schema}, this version reads {SCHEMA}{hint}; run the stage that makes it again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

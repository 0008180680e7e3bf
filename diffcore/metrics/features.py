"""The eye of the quality measures: a small network trained on the user's own images.

Distances in its features compare samplings of the same data set, judged by the same network. They are not FID: that
word belongs to one Inception network trained on ImageNet, and two numbers from two networks are not comparable at all.
So the digest of the network goes wherever its numbers go.

With labels the network learns to tell the classes apart; without, by how many quarter turns an image was rotated
(Gidaris et al. 2018, arXiv 1803.07728), which needs to know what the right way up looks like.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.core import disk, precision, processes
from diffcore.core.adamw import AdamW
from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.core.shapes import Sample
from diffcore.data.feed import to_float
from diffcore.metrics.skill import Skill

SCHEMA = 1
WEIGHTS, CARD = "features.safetensors", "card.json"
TURNS = 4
SMALLEST = 4
"""Pixels of the shorter side at which the network stops halving."""

AHEAD = 1 << 28
"""Bytes of images that are looked up together: one sweep over the shards of data that are not in memory."""

ENOUGH = 2000
"""Images for the accuracy and, twice as many, for centre and scale: more would cost time and move no digit that counts."""


@dataclass(frozen=True)
class Config:
    """How large the network is and how long it learns.

    channels: of the first layer, a multiple of 8; doubled at the first two halvings. dimension: of the features. lr:
    AdamW's at the start, lowered to 0 along a half cosine. batch: images per iteration.
    """

    channels: int
    dimension: int
    iterations: int
    batch: int
    lr: float
    seed: int

    def __post_init__(self):
        if self.channels < 8 or self.channels % 8:
            raise ValueError(f"channels must be a positive multiple of 8, got {self.channels}")
        for name in ("dimension", "iterations", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive, got {self.lr}")


@dataclass(frozen=True)
class Card:
    """The birth certificate of a feature network.

    shape: (c, h, w) of the images it learned from. outputs: how many classes or turns it tells apart. images: all it was
    given, of which `held_out` never served to train it. accuracy: on those, None until measured. chance: what the most
    frequent answer alone would score on them.
    """

    config: Config
    shape: tuple[int, int, int]
    task: Literal["classes", "rotations"]
    outputs: int
    images: int
    held_out: int
    accuracy: float | None = None
    chance: float | None = None

    @property
    def skill(self) -> Skill:
        return Skill(self.task, self.outputs, self.accuracy, self.chance)


class Stage(nn.Module):
    """Two normalised 3x3 convolutions with a shortcut: [b, inside, h, w] -> [b, outside, h, w]."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inside), nn.GroupNorm(4, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Sample) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class Features(nn.Module):
    """Images [b, c, h, w] in [-1, 1] -> features [b, dimension]; one image's features do not depend on its batch.

    Centred and scaled by one number, so that over the images it learned from a feature has mean 0 and, on average over
    the dimensions, variance 1: samples that all have the mean feature are then `dimension` away in Frechet distance.
    Takes any height and width (global average pooling), but its c only. Made by `train` or `load`.
    """

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        widths = _widths(card)
        self.stem = nn.Conv2d(card.shape[0], widths[0], 3, padding=1)
        self.stages = nn.ModuleList(Stage(a, b) for a, b in zip([widths[0], *widths], widths))
        self.norm = nn.GroupNorm(4, widths[-1])
        self.embed = nn.Linear(widths[-1], card.config.dimension)
        self.head = nn.Linear(card.config.dimension, card.outputs)
        self.register_buffer("centre", torch.zeros(card.config.dimension))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Sample) -> Tensor:
        return (self._embedding(x) - self.centre) * self.scale

    def logits(self, x: Sample) -> Tensor:
        """What the network was trained by, [b, outputs]."""
        return self.head(F.silu(self._embedding(x)))

    @property
    def digest(self) -> str:
        """The hex sha256 of the weights and of what they were made from: the same digest gives the same features."""
        weights = {
            name: hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
            for name, value in self.state_dict().items()
        }
        card = dataclasses.asdict(dataclasses.replace(self.card, accuracy=None))
        card.pop("chance")
        return disk.digest({"schema": SCHEMA, "made": card, "weights": weights})

    @property
    def device(self) -> torch.device:
        return self.centre.device

    def _embedding(self, x: Sample) -> Tensor:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for level, stage in enumerate(self.stages):
            x = stage(F.avg_pool2d(x, 2, ceil_mode=True) if level else x)
        return self.embed(F.silu(self.norm(x)).mean((2, 3)))


@runtime_checkable
class Images(Protocol):
    """Labelled or unlabelled images, in memory or not. labels: int64 [n] or None; shape: of one image, (c, h, w)."""

    labels: Tensor | None
    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor:
        """uint8 [k, c, h, w], in any order."""
        ...


def train(
    images: Images, config: Config, on_progress: Callable[[int, float], None] = lambda step, loss: None
) -> Features:
    """A feature network for `images`, which learns their labels if there are any.

    Labels that name fewer than two classes teach nothing; the network then learns rotations, and its card says so. A
    tenth of the images, at most ENOUGH, is held out for the accuracy on the card. `on_progress(step, loss)` is called at
    every iteration. A pure function of its arguments on a CPU with a fixed number of threads; trains on the CPU. Holds a
    batch of images, or those that are held out, at a time.
    """
    labels = images.labels
    _check(images, labels)
    seen, held_out = _split(len(images), config.seed)
    labels = _classes(labels)
    features = _build(_card(images, labels, config, len(held_out)))
    _fit(features, images, seen, labels, on_progress)
    _standardise(features, images, seen[: 2 * ENOUGH])
    answers = None if labels is None else labels[held_out]
    accuracy = _accuracy(features, images.take(held_out), answers)
    features.card = dataclasses.replace(features.card, accuracy=accuracy, chance=_chance(answers))
    return features.eval().requires_grad_(False)


@precision.exact()
def extract(features: Features, x: Sample, batch: int = 256) -> Tensor:
    """The features of images [n, c, h, w] in [-1, 1]: [n, dimension], float64, on the CPU.

    `batch` bounds the memory and changes nothing beyond float32 rounding, which is float32's on a GPU too: distances of
    different machines stay comparable. The batches are dealt to all processes.
    """
    if x.shape[1] != features.card.shape[0]:
        raise UserError(
            f"the feature network was trained on images of {features.card.shape[0]} channels and is shown {x.shape[1]}; "
            "train it on the same data (stage `features`)"
        )
    with torch.no_grad():
        return torch.cat(
            list(processes.dealt(x.split(batch), lambda rows: features(rows.to(features.device)).double().cpu()))
        )


def save(features: Features, folder: Path) -> None:
    """Writes the weights and then card.json; `folder` appears whole or not at all."""
    from safetensors.torch import save_file

    with disk.folder(folder) as new:
        save_file({name: value.contiguous().cpu() for name, value in features.state_dict().items()}, new / WEIGHTS)
        card = {
            "schema": SCHEMA,
            **dataclasses.asdict(features.card),
            "digest": features.digest,
            "files": {WEIGHTS: disk.sha256(new / WEIGHTS)},
        }
        disk.write_json(new / CARD, card)


def load(folder: Path) -> Features:
    """What `save` wrote, on the CPU; a UserError if it is missing or not what its card vouches for."""
    from safetensors.torch import load_file

    folder = Path(folder)
    card, stored = _read_card(folder)
    if not (folder / WEIGHTS).is_file() or disk.sha256(folder / WEIGHTS) != stored["files"][WEIGHTS]:
        raise UserError(f"{folder / WEIGHTS} is not the file its card vouches for; {_REMEDY}")
    features = _empty(card)
    try:
        features.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit the network of its card; {_REMEDY}") from error
    if features.digest != stored["digest"]:
        raise UserError(f"{folder / CARD} has a digest that is not its network's; {_REMEDY}")
    return features.eval().requires_grad_(False)


_REMEDY = "make it again with the stage `features`"


def _read_card(folder: Path) -> tuple[Card, dict[str, Any]]:
    try:
        stored = disk.parse_json((folder / CARD).read_text())
        fields = {field.name: stored[field.name] for field in dataclasses.fields(Card)}
        fields |= {"config": Config(**stored["config"]), "shape": tuple(stored["shape"])}
        if stored["schema"] != SCHEMA or not {"digest", "files"} <= stored.keys() or WEIGHTS not in stored["files"]:
            raise ValueError("schema, digest or files")
    except OSError as error:
        raise UserError(f"{folder} holds no feature network (no readable {CARD}); {_REMEDY}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} is not the card of a feature network ({error}); {_REMEDY}") from error
    return Card(**fields), stored


def _check(images: Images, labels: Tensor | None) -> None:
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} images have labels of shape {list(labels.shape)}")
    if len(images) < 10:
        raise UserError(f"a feature network needs at least 10 images, the data have {len(images)}")


def _split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=generator(seed, "features", "split"))
    held_out = min(count // 10, ENOUGH)
    return order[held_out:], order[:held_out]


def _classes(labels: Tensor | None) -> Tensor | None:
    # labels may have gaps: only which are equal matters
    if labels is None:
        return None
    values, classes = torch.unique(labels, return_inverse=True)
    return classes if len(values) > 1 else None


def _card(images: Images, classes: Tensor | None, config: Config, held_out: int) -> Card:
    task = "rotations" if classes is None else "classes"
    outputs = TURNS if classes is None else int(classes.max()) + 1
    return Card(config, tuple(images.shape), task, outputs, len(images), held_out)


def _widths(card: Card) -> list[int]:
    halvings = max(1, math.ceil(math.log2(min(card.shape[1:]) / SMALLEST)))
    return [card.config.channels * 2 ** min(level, 2) for level in range(halvings + 1)]


def _empty(card: Card) -> Features:
    # torch's layers draw a start, soon overwritten, from the global generator: it is put back as it was. On the meta device
    # they draw nothing, but to come from there imports half a second of torch
    with torch.random.fork_rng(devices=[]):
        features = Features(card)
    return features.to(memory_format=torch.channels_last)  # on a CPU twice as fast


def _build(card: Card) -> Features:
    features = _empty(card)
    rng = generator(card.config.seed, "features", "weights")
    for name, value in features.named_parameters():
        nn.init.zeros_(value) if value.ndim == 1 else _he(value, rng)
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(value)
    features.centre.zero_()
    features.scale.fill_(1)
    return features


def _he(weight: Tensor, rng: torch.Generator) -> None:
    # variance 2 / fan-in (He et al. 2015, arXiv 1502.01852)
    nn.init.normal_(weight, std=math.sqrt(2 / weight[0].numel()), generator=rng)


def _fit(
    features: Features,
    images: Images,
    seen: Tensor,
    classes: Tensor | None,
    on_progress: Callable[[int, float], None],
) -> None:
    config = features.card.config
    optimizer = AdamW(features.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=False)
    features.train()
    own = _share(config.batch)
    for step, (x, rows, rng) in enumerate(_batches(images, seen, config)):
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.iterations))
        question = _question(features, to_float(x), None if classes is None else classes[rows], rng, own)
        loss = F.cross_entropy(*question) * (len(question[1]) * processes.count() / config.batch)
        value = processes.total(loss.item()) / processes.count()
        if not math.isfinite(value):
            raise UserError(f"the feature network's loss is {value} at iteration {step}; lower features.lr")
        loss.backward()
        processes.average([parameter.grad for parameter in features.parameters()])
        optimizer.step(rate)
        on_progress(step, value)


def _share(batch: int) -> slice:
    """The rows of a batch that are this process's."""
    count, rank = processes.count(), processes.rank()
    if batch < count:
        raise UserError(
            f"features.batch is {batch} and there are {count} processes; raise it, or lower compute.processes"
        )
    return slice(batch * rank // count, batch * (rank + 1) // count)


Batch = tuple[Tensor, Tensor, torch.Generator]


def _batches(images: Images, seen: Tensor, config: Config) -> Iterator[Batch]:
    """The images of each iteration, their places and its generator; those of many iterations are looked up in one sweep."""
    ahead = max(1, AHEAD // (config.batch * math.prod(images.shape)))
    for first in range(0, config.iterations, ahead):
        steps = range(first, min(first + ahead, config.iterations))
        generators = [generator(config.seed, "features", "step", step) for step in steps]
        rows = [seen[torch.randint(len(seen), (config.batch,), generator=each)] for each in generators]
        yield from zip(images.take(torch.cat(rows)).split(config.batch), rows, generators)


def _question(
    features: Features, x: Sample, answers: Tensor | None, rng: torch.Generator, own: slice
) -> tuple[Tensor, Tensor]:
    """The logits and the right answers of one iteration's batch, of its `own` rows."""
    if answers is not None:
        return features.logits(x[own]), answers[own]
    turns = torch.randint(TURNS, (len(x),), generator=rng)[own]
    return features.logits(_rotated(x[own])[turns, torch.arange(len(turns))]), turns


def _rotated(x: Sample) -> Tensor:
    """All quarter turns of the central squares: [4, b, c, side, side]."""
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    square = x[:, :, top : top + side, left : left + side]
    return torch.stack([torch.rot90(square, k, (2, 3)) for k in range(TURNS)])


@torch.no_grad()
def _standardise(features: Features, images: Images, rows: Tensor) -> None:
    seen = torch.cat([extract(features, to_float(images.take(some))) for some in rows.split(1024)])
    variance = seen.var(0).mean().item()
    if not 0 < variance < math.inf:
        raise UserError("the feature network sees no difference between the images; are they all the same?")
    features.centre.copy_(seen.mean(0))
    features.scale.fill_(variance**-0.5)


@torch.no_grad()
def _accuracy(features: Features, images: Tensor, classes: Tensor | None) -> float:
    right = total = 0
    for first in range(0, len(images), 256):
        x = to_float(images[first : first + 256])
        if classes is None:
            x = _rotated(x).flatten(0, 1)
            answers = torch.arange(TURNS, device=x.device).repeat_interleave(len(x) // TURNS)
        else:
            answers = classes[first : first + 256]
        right += int((features.logits(x).argmax(1) == answers).sum())
        total += len(answers)
    return right / total


def _chance(answers: Tensor | None) -> float:
    return 1 / TURNS if answers is None else answers.bincount().max().item() / len(answers)

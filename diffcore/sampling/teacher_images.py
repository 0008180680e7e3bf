"""Images that a teacher draws, to train on where there are none."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints.from_diffusers import Adopted
from diffcore.core import disk, precision, processes
from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.core.shapes import CLASS, Sample
from diffcore.data import drawn
from diffcore.data.config import TeacherSampling
from diffcore.data.feed import to_uint8
from diffcore.data.ledger import Ledger
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.network import NetDenoiser
from diffcore.noise.trajectory import TRAJECTORIES
from diffcore.sampling import recipe
from diffcore.sampling.headroom import Headroom
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import Sampler
from diffcore.texts.encoder import Encoder, table_of

FILE = 256
"""Images of a file, which are what a kill costs at most."""


@dataclass(frozen=True)
class TeacherImages:
    """Images that a teacher draws: image i depends on (seed, i) alone, on noise that no measuring draws.

    shape: [c, h, w]. classes: names by label, None for a teacher that knows none, else each in turn. prompts: each in turn,
    told by the encoder; empty for a teacher that is told none. inputs: what the teacher is told of a prompt, by name.
    """

    teacher: Adopted
    shape: tuple[int, int, int]
    sampling: TeacherSampling
    count: int
    seed: int
    classes: tuple[str, ...] | None = None
    prompts: Sequence[str] = ()
    encoder: Encoder | None = None
    inputs: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def recipe(self) -> Recipe:
        """With what the teacher's own scheduler does to x_0."""
        spec = {"sampler": self.sampling.sampler, "guidance": self.sampling.guidance, **self.teacher.sampling}
        return recipe.from_json({key: value for key, value in spec.items() if value is not None})

    @functools.cached_property
    def denoiser(self) -> NetDenoiser:
        """The teacher's own, for which what the encoder makes of the empty caption stands for nothing."""
        if self.encoder is None:
            return self.teacher.denoiser.to(self.device)
        nothing = self.encoder.nothing()
        return self.teacher.told({name: nothing[name] for name in self.inputs}).to(self.device)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """A UserError where the teacher cannot be sampled so."""
        times = TRAJECTORIES[self.sampling.trajectory](self.sampling.steps, self.denoiser.schedule)
        return self.recipe.of_network(self.denoiser, times)

    @property
    def by(self) -> dict[str, Any]:
        """Who draws, and how."""
        sampling = self.sampling
        how = {"recipe": self.recipe.to_json(), "trajectory": sampling.trajectory, "steps": sampling.steps}
        encoder = {"encoder": self.encoder.content["digest"]} if self.encoder else {}
        return {"images": self.count, "teacher": disk.digest(self.teacher.files), **how, "seed": self.seed, **encoder}

    @property
    def signature(self) -> dict[str, Any]:
        """All that the images depend on but the code and the number of threads."""
        own = {"shape": self.shape, "classes": self.classes, "prompts": list(self.prompts), "inputs": self.inputs}
        where = {"device": self.device.type, "torch": torch.__version__}
        return {**self.by, **own, **where, "batch": self.sampling.batch, "file": FILE}

    def known(self, rows: range) -> dict[str, Tensor]:
        """What these images are asked to be, by the name of a network's input [n, ...]."""
        inputs = {CLASS: torch.tensor(rows) % len(self.classes)} if self.classes else {}
        return inputs | (self._told(rows) if self.prompts else {})

    def captions(self, rows: range) -> list[str] | None:
        """Their prompts, None for a teacher that is told none."""
        return [self.prompts[i % len(self.prompts)] for i in rows] if self.prompts else None

    def _told(self, rows: range) -> dict[str, Tensor]:
        told = table_of(self.captions(rows), self.encoder.encode).take(slice(None))
        return {name: told[name] for name in self.inputs}

    @precision.exact()
    def draw(self, rows: range, headroom: Headroom | None = None) -> Sample:
        """These of the images, [n, *shape], on the CPU."""

        def numbers(some: range, role: str) -> Sample:
            return noises(self.shape, self.seed, range(rows.start + some.start, rows.start + some.stop), f"data {role}")

        told = self.known(rows)
        weight = self.sampling.guidance
        weights = None if weight is None else torch.full((len(rows),), weight, dtype=torch.float64)
        condition = Condition(told, weights) if told else None
        batch = self.sampling.batch
        return self.sampler.draw(self.shape, len(rows), self.seed, batch, condition, headroom=headroom, numbers=numbers)


def write(
    images: TeacherImages,
    source: str,
    kept: Ledger | None,
    folder: Path,
    by: Mapping[str, Any],
    progress: Callable[[int, int], None],
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Draws all images into the empty `folder`, as `data.drawn` has them.

    source: data.source. kept: where finished files are kept until all are, of the main process; None in the others. by: who
    draws, in further words. tell: hears where it goes on.
    """
    done = processes.from_main((kept.load() or {"shards": []})["shards"] if kept else None)
    headroom, files = Headroom(), list(_files(images.count))
    if done:
        tell(f"goes on after {files[len(done) - 1][1].stop} of {images.count} images")
    for name, rows in files[len(done) :]:
        samples = images.draw(rows, headroom)
        if kept is not None:
            done.append(_kept(kept, name, images, rows, samples))
            kept.save({"shards": done})
        progress(rows.stop, images.count)
    if kept is not None:
        kept.link([each["name"] for each in done], folder)
        classes = list(images.classes) if images.classes else None
        digests = {each["name"]: each["sha256"] for each in done}
        drawn.write(folder, drawn.Drawn(source, classes, bool(images.prompts), {**by, **images.by}, digests))


def _files(images: int) -> Iterator[tuple[str, range]]:
    for number, start in enumerate(range(0, images, FILE)):
        yield f"{number:06d}.npz", range(start, min(start + FILE, images))


def _kept(kept: Ledger, name: str, images: TeacherImages, rows: range, samples: Sample) -> dict[str, str]:
    if not samples.isfinite().all():
        raise UserError(
            "the teacher draws numbers that are not finite; raise data.draw.steps, or name another sampler or guidance"
        )
    pixels = to_uint8(samples).permute(0, 2, 3, 1).contiguous().numpy()
    labels = (torch.tensor(rows) % len(images.classes)).numpy() if images.classes else None
    disk.write(kept.folder / name, drawn.content_of(pixels, labels, images.captions(rows)))
    return {"name": name, "sha256": disk.sha256(kept.folder / name)}

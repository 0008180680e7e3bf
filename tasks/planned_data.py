"""What is known of the images before there are shards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffcore.core import rng
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data import embeddings
from diffcore.data.manifest import Manifest
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets.inputs import blank
from tasks import paths
from tasks.params import Params

DIGITS = 1797, (1, 8, 8), tuple("0123456789")
"""Images, shape and classes of data.source digits."""


@dataclass(frozen=True)
class PlannedData:
    """images: how many. shape: [c, h, w]. classes: names, None without labels. inputs: by the name of a network's
    input the shape of what embeds a caption; empty before there are embeddings."""

    images: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all of them, decoded."""
        return self.images * math.prod(self.shape)

    def of(self, denoiser: NetDenoiser) -> "PlannedData":
        """As it is told of them: a network that is told no class, or nothing beside it, gets none."""
        told = set(denoiser.inputs)
        return replace(
            self, classes=self.classes if CLASS in told else None, inputs=self.inputs if told - {CLASS} else {}
        )

    def known(self, count: int, step: int = 0) -> dict[str, Any]:
        """What so many samples may be asked to be, by the name of a network's input: any class, and a caption of zeros."""
        classes = {CLASS: rng.some(count, count, step) % len(self.classes)} if self.classes else {}
        return classes | blank(self.inputs, self.inputs, count)


def planned_data(params: Params) -> PlannedData:
    """Of the shards, or of the digits; a UserError for others that are not sharded yet, whose number nobody has counted, and
    where a network is told something that the stage `encode` has not made yet."""
    if any(root.inputs for root in params.teachers.values()) and not (paths.TEXT / embeddings.MANIFEST).exists():
        raise UserError(
            "how large that is which networks are told is counted by the stage `encode`; run `distill shard` and "
            "`distill encode` first"
        )
    if (paths.DATA / "manifest.json").exists():
        manifest = Manifest.read(paths.DATA, verify=False)
        texts = embeddings.read(paths.TEXT, manifest) if (paths.TEXT / embeddings.MANIFEST).exists() else None
        inputs = {name: kind.shape for name, kind in texts.inputs.items()} if texts else {}
        return PlannedData(manifest.images, tuple(manifest.shape), manifest.classes, inputs)
    if params.data.source == "digits" and params.data.size is None and params.data.limit is None:
        return PlannedData(*DIGITS)
    first = "`distill draw` and `distill shard`" if params.data.is_drawn else "`distill shard`"
    raise UserError(f"how many images there are and how large is counted by the stage `shard`; run {first} first")

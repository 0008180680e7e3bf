"""Where the text encoders of a pipeline of diffusers lie and what it makes of their outputs, one file each. Adding a file
adds the pipeline. Each is what the pipeline's own `encode_prompt` does where it is asked for no more than a prompt."""

import abc
import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffcore.texts.model import Loaded


@dataclass(frozen=True)
class Layout(abc.ABC):
    """formats: names of the pipelines, as model_index.json has them. places: folders of an encoder and its tokenizer each.
    usual: tokens of a caption, None for what its tokenizer is meant for. counted: which encoder's tokens these are. reads:
    keys of model_index.json that it heeds. settings: these, as far as they are there."""

    formats: ClassVar[tuple[str, ...]]
    places: ClassVar[tuple[tuple[str, str], ...]] = (("text_encoder", "tokenizer"),)
    usual: ClassVar[int | None] = None
    counted: ClassVar[int] = 0
    reads: ClassVar[tuple[str, ...]] = ()

    settings: Mapping[str, Any]

    @abc.abstractmethod
    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        """See `Encoder.encode`. encoders: in the order of `places`. captions: as `prepared` made them."""

    def nothing(self, encoders: Sequence[Loaded], length: int) -> dict[str, Tensor]:
        """What the pipeline has where no prompt is given: the empty one."""
        return {name: tensor[0] for name, tensor in self.encode(encoders, [self.prepared("")], length).items()}

    def prepared(self, caption: str) -> str:
        """The caption as its tokenizer gets it."""
        return caption


def layouts() -> Iterator[type[Layout]]:
    """All that are known, in the order of their files."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        yield from (
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and kind.__module__ == module.__name__ and issubclass(kind, Layout)
        )

"""What is known of the samples of a batch, as named tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS as CLASS
from diffcore.core.shapes import PerSample
from diffcore.core.transfer import to_device

GUIDANCE = "guidance"
"""The name of a network's input: [b], the weight of classifier-free guidance."""

END = "end_timestep"
"""The name of a network's input: [b], what it is told of the time where its hop lands, by the reading of its timestep."""

TEXT, MASK = "text", "text_mask"
"""Embeddings of a text, one for each token, and which of them are there."""


@dataclass(frozen=True)
class Condition:
    """What is known of the samples of a batch.

    inputs: [b, ...] by the name of the network's input: `class_labels` int64, -1 for no class; `text` [b, l, d] with a
    `text_mask` bool [b, l], `pooled` [b, p], `image` [b, c, h, w], and whatever else a network takes. guidance: [b], the
    weight g of classifier-free guidance, None where there is none. negative: what guidance leads away from, by the same
    names, None for nothing. dropped: bool [b], the samples of which nothing is known, None for none of them.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: PerSample | None = None
    negative: Mapping[str, Tensor] | None = None
    dropped: Tensor | None = None

    @property
    def class_labels(self) -> Tensor | None:
        """int64 [b], -1 for no class; None if nothing is known of any."""
        return self.inputs.get(CLASS)

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> "Condition":
        return self._each(lambda part: to_device(part, device))

    def without(self, rows: Tensor) -> "Condition":
        """The same with nothing known of some samples. rows: bool [b]."""
        inputs = dict(self.inputs)
        if CLASS in inputs:
            inputs[CLASS] = torch.where(rows, -1, inputs[CLASS])
        return replace(self, inputs=inputs, dropped=rows if self.dropped is None else rows | self.dropped)

    def with_away(self) -> "Condition":
        """Of a batch of twice the size: what is known, and then what guidance leads away from."""
        known = Condition(self.inputs, dropped=self.dropped)
        if self.negative is not None:
            return joined(known, Condition(self.negative))
        first = next(iter(self.inputs.values()))
        return joined(known, known.without(torch.ones(len(first), dtype=torch.bool, device=first.device)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        def all_of(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: change(part) for name, part in parts.items()}

        return Condition(
            all_of(self.inputs),
            None if self.guidance is None else change(self.guidance),
            None if self.negative is None else all_of(self.negative),
            None if self.dropped is None else change(self.dropped),
        )


def of_classes(
    class_labels: Tensor | None, guidance: PerSample | None = None, negative: Tensor | None = None
) -> Condition:
    """That of a network which is told classes. class_labels, negative: int64 [b], -1 for no class."""
    inputs = {} if class_labels is None else {CLASS: class_labels}
    return Condition(inputs, guidance, None if negative is None else {CLASS: negative})


def joined(first: Condition, second: Condition) -> Condition:
    """Two batches as one, [a + b, ...]; what is shorter is filled up with zeros. A UserError where one lacks an input."""
    if first.inputs.keys() != second.inputs.keys():
        names = ", ".join(sorted(first.inputs.keys() ^ second.inputs.keys()))
        raise UserError(
            f"what guidance leads away from must say as much as what it leads to, and {names} is in one of them alone"
        )
    if TEXT in first.inputs and MASK not in first.inputs:
        _check_lengths(first.inputs[TEXT].shape[1], second.inputs[TEXT].shape[1])
    inputs = {name: torch.cat(padded(part, second.inputs[name])) for name, part in first.inputs.items()}
    if first.dropped is None and second.dropped is None:
        return Condition(inputs)
    return Condition(inputs, dropped=torch.cat([_dropped(part) for part in (first, second)]))


def _check_lengths(first: int, second: int) -> None:
    """A UserError for texts of two lengths, without a mask: what fills up the shorter one would be read as a part of it."""
    if first != second:
        raise UserError(
            f"texts of {first} and of {second} tokens are told as one batch without a mask; give both as many, or a {MASK}"
        )


def _with_mask(condition: Condition) -> Condition:
    """The same with a mask of its text."""
    text = condition.inputs.get(TEXT)
    if text is None or MASK in condition.inputs:
        return condition
    whole = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return replace(condition, inputs={**condition.inputs, MASK: whole})


def _dropped(condition: Condition) -> Tensor:
    if condition.dropped is not None:
        return condition.dropped
    first = next(iter(condition.inputs.values()))
    return torch.zeros(len(first), dtype=torch.bool, device=first.device)


def padded(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the longer one's size in each dimension but the batch's, zeros (False in a mask) at the end."""
    sizes = [max(pair) for pair in zip(first.shape[1:], second.shape[1:])]
    return _filled(first, sizes), _filled(second, sizes)


def _filled(part: Tensor, sizes: list[int]) -> Tensor:
    ends = [end for have, want in zip(reversed(part.shape[1:]), reversed(sizes)) for end in (0, want - have)]
    return F.pad(part, ends) if any(ends) else part


class Nothing(nn.Module):
    """What a network is told where nothing is known: by the name of its input a tensor without the batch's dimension, None
    for an input that must always be known. Data, not a convention: the embedding of the empty prompt, for example."""

    def __init__(self, parts: Mapping[str, Tensor | None]):
        super().__init__()
        self.names = tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    def parts(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in self.names}

    def fill(self, condition: Condition, count: int) -> dict[str, Tensor]:
        """The inputs for a batch of `count`: what is known, and nothing elsewhere; of a text without a mask all tokens are
        there. A UserError for an input that must be known."""
        condition = _with_mask(condition) if MASK in self.names else condition
        return {name: self._filled(name, part, condition, count) for name, part in self.parts().items()}

    def _filled(self, name: str, part: Tensor | None, condition: Condition, count: int) -> Tensor:
        known = condition.inputs.get(name)
        if known is None and part is None:
            raise UserError(
                f"this network must be told {name}, and nothing stands for it; give it a condition with one"
            )
        if known is None:
            return part.expand(count, *part.shape)
        if part is None or condition.dropped is None:
            return known
        if name == TEXT and MASK not in self.names:
            _check_lengths(known.shape[1], len(part))
        known, blank = padded(known, part[None].to(known.dtype))
        rows = condition.dropped.reshape(-1, *([1] * (known.ndim - 1)))
        return torch.where(rows, blank, known)

"""The two shapes that cross diffcore's public functions, and the one place where they meet.

`Sample` is a batch of things of any shape, `PerSample` one number for each of them. The shapes are checked when the
tests run (jaxtyping's import hook); elsewhere they are plain tensors, and jaxtyping need not be installed.
"""

from torch import Tensor

try:
    from jaxtyping import Float
except ModuleNotFoundError:  # a bare GPU box

    class Float:
        """Stands in for jaxtyping's: `Float[Tensor, "b *x"]` is then plain `Tensor`."""

        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]


Sample = Float[Tensor, "b *x"]
PerSample = Float[Tensor, " b"]

CLASS = "class_labels"
"""The name of a network's input that is no embedding: int64 [b], the class of each sample."""

IMAGE = "image"
"""The name of another: [b, c, h, w], what to condition on beside the sample, as further channels."""


def batches(rows: range, size: int) -> list[range]:
    """The rows of each batch of so many, one after the other; of the last one fewer."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def lift(per_sample: PerSample, like: Sample) -> Tensor:
    """`[b] -> [b, 1, ...]` with as many axes as `like`, in its dtype: the only reshape of a per-sample number.

    Shapes alone cannot catch a `[b]` that meets `[b, b, b, b]`; the batch law in the tests does.
    """
    return per_sample.to(like.dtype).reshape(-1, *([1] * (like.ndim - 1)))

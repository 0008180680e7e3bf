"""What is a copy of a training image, by its nearest ones."""

from torch import Tensor

from diffcore.core.shapes import PerSample

NOMINAL = 0.01
"""The share of new real images that count as copies."""

ENOUGH = 100
"""Images of which that share can be told."""

EXACT = 0.01
"""Closeness of what is a copy in any case: where many training images are there twice, new real images are copies too."""


def closeness(squares: Tensor) -> PerSample:
    """The distance from the nearest training image beside the mean from the NEAREST nearest: [n], in [0, 1].

    squares: [n, NEAREST] squared distances from the nearest training images. 0 for a copy, near 1 in many dimensions else.
    The mean is what is usual at that place, so that samples in the middle of the data, which are near to many images, are no
    copies (arXiv 2301.13188, section 4.2).
    """
    distances = squares.sqrt()
    return distances[:, 0] / distances.mean(1).clamp(min=TINY)


def limit(real: Tensor) -> float | None:
    """The closeness below which NOMINAL of new real images are, by their nearest training images as in `closeness`, but at
    least EXACT; None of fewer than ENOUGH."""
    if len(real) < ENOUGH:
        return None
    return max(closeness(real).quantile(NOMINAL).item(), EXACT)


TINY = 1e-300
"""Instead of 0, where all of them are copies."""

"""A row of samples as an image inside the page, small enough that all of them together stay within a bound."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

SIDE = 64
"""Pixels that a sample has at most on its longer side in the file; larger ones are made smaller."""

LEAST = 48
"""Pixels that a strip is high on the page: the browser enlarges smaller ones."""

MOST = 16
"""Samples of a strip."""

ROOM = 2_500_000
"""Bytes that all strips have at most before they are written as text, which takes a third more."""


def strips(samples: Mapping[str, np.ndarray], first: Sequence[str]) -> tuple[dict[str, str], int]:
    """By name a strip of samples as a data URI, and how many samples each has.

    Of large images each strip has fewer samples, and if that is still more than ROOM, only those named in `first` have one.
    Each column of all strips is one noise.
    """
    count = min(MOST, *(len(images) for images in samples.values()))
    while True:
        encoded = {name: _png(images[:count]) for name, images in samples.items()}
        if _size(encoded) <= ROOM or count <= 4:
            break
        count = max(4, count // 2)
    if _size(encoded) > ROOM:
        encoded = {name: content for name, content in encoded.items() if name in first}
    while _size(encoded) > ROOM and count > 1:
        count //= 2
        encoded = {name: _png(samples[name][:count]) for name in encoded}
    return {name: _uri(content) for name, content in encoded.items()}, count


def height(images: np.ndarray) -> int:
    """Pixels of a strip on the page: small images are enlarged."""
    return max(LEAST, min(SIDE, images.shape[1]))


def _size(encoded: Mapping[str, bytes]) -> int:
    return sum(map(len, encoded.values()))


def _png(images: np.ndarray) -> bytes:
    """Images uint8 [n, h, w, c] side by side, a transparent gap between two of them."""
    from PIL import Image

    n, h, w, c = images.shape
    gap = max(1, w // 16)
    row = np.zeros((h, n * (w + gap) - gap, c + 1), np.uint8)
    for k, image in enumerate(images):
        row[:, k * (w + gap) : k * (w + gap) + w] = np.concatenate([image, np.full((h, w, 1), 255, np.uint8)], axis=2)
    picture = Image.fromarray(row)
    if max(h, w) > SIDE:
        scale = SIDE / max(h, w)
        picture = picture.resize((round(row.shape[1] * scale), round(h * scale)), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

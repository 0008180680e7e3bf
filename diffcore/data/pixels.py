"""Entries of a source as pixels in the form of their data set: the work of reading, which several workers can share."""

import contextlib
import errno
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore.core.errors import UserError
from diffcore.data import fitting, workers
from diffcore.data.sources import Entry
from diffcore.data.tally import Sample

MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO)  # the image is not at fault


@dataclass(frozen=True)
class Outcome:
    """What became of an entry: its images, or how many are lost and why."""

    name: str
    samples: list[Sample]
    lost: int
    reason: str


def read(entries: list[Entry], form: fitting.Form, encoded: bool) -> list[Outcome]:
    """The images of these entries; as pixels [h, w, c], or encoded, with the extension. UserError where the machine fails."""
    return [_outcome(entry, form, encode if encoded else None) for entry in entries]


def _outcome(entry: Entry, form: fitting.Form, encode: Callable[[Any], Any] | None) -> Outcome:
    try:
        pictures, labels = entry.read()
        captions = entry.captions or [None] * entry.images
        if entry.captions is not None and not len(captions) == len(pictures[: entry.images]):
            raise UserError(f"{entry.name} was changed while it was read: run the same again")
        read = zip(pictures[: entry.images], labels, captions)
        return Outcome(entry.name, [_sample(*one, form, entry.name, encode) for one in read], 0, "")
    except UserError:
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes; named and counted by the tally
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE):
            raise UserError(
                f"{entry.name}: {fitting.reason(error)}; the machine is at fault: run the same again"
            ) from None
        return Outcome(entry.name, [], entry.images, fitting.reason(error))


def _sample(
    picture: Any,
    label: int | None,
    caption: str | None,
    form: fitting.Form,
    name: str,
    encode: Callable[[Any], Any] | None,
) -> Sample:
    pixels, enlarged, peak = fitting.fit(picture, form, name)
    blank = pixels.shape[:2] != (1, 1) and bool((pixels == pixels[0, 0]).all())
    return Sample(encode(pixels) if encode else pixels, label, enlarged, peak, blank, caption)


def encode(pixels: np.ndarray) -> tuple[str, bytes]:
    # lossless; WebP takes 0.55 of PNG's time to write, 0.75 to read and 0.8 of its bytes, but knows no grey
    from PIL import Image

    file = io.BytesIO()
    if pixels.shape[-1] == 1:
        Image.fromarray(pixels[..., 0]).save(file, "PNG", compress_level=1)
        return "png", file.getvalue()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, method=0, quality=0)
    return "webp", file.getvalue()


def processes(count: int) -> Executor:
    """So many processes that `read`, which refuse what this one does."""
    return workers.processes(count, refuse_bombs)


def refuse_bombs() -> None:
    """From here on a picture that is too large to decode safely cannot be read; Pillow would only warn of one up to twice
    that size."""
    from PIL import Image

    warnings.simplefilter("error", Image.DecompressionBombWarning)


@contextlib.contextmanager
def no_bombs() -> Iterator[None]:
    """`refuse_bombs` for the length of the block."""
    with warnings.catch_warnings():
        refuse_bombs()
        yield

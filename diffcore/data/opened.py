"""One shard whose content was checked, and whose images are read from its file when they are asked for."""

import hashlib
import io
import os
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from diffcore.core.errors import UserError
from diffcore.data import tars
from diffcore.data.manifest import Manifest, Shard

Part = tuple[int, int]
"""Offset in the tar and length, in bytes."""


class Opened:
    """One shard: where each image lies in its open file, and a checksum of it; made by `open_shard`.

    Nothing of the images is held in memory. Each is held against its checksum when it is read, so that a file that changes
    after it was opened is noticed. labels: int64 [n] or None.
    """

    def __init__(self, path: Path, file: int, content: memoryview, shape: tuple[int, int, int]):
        self.shape, self._path, self._file = shape, path, file
        samples = [parts for _, parts in tars.index(content, str(path))]
        self._is_raw = "npy" in samples[0]
        blocks = [self._block(parts["npy"], content) for parts in samples] if self._is_raw else []
        images = np.concatenate(blocks) if self._is_raw else np.array([_image(parts) for parts in samples])
        self._starts, self._sizes = images.astype(np.int64).T
        self._words = [] if self._is_raw else [_word(parts) for parts in samples]
        self._sums = np.array(
            [zlib.crc32(content[start : start + size]) for start, size in images.tolist()], dtype=np.uint32
        )
        counts = [len(block) for block in blocks] or [1] * len(samples)
        labels = [label for parts, count in zip(samples, counts) for label in _labels(parts, count, content)]
        self.labels = None if not labels or labels[0] is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def pixels(self, rows: Sequence[int] | np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
        """The images `rows` as uint8 [n, h, w, c], decoded in `pool` if they are encoded. Raises UserError."""
        channels, height, width = self.shape
        if not self._is_raw:
            return np.stack(list(pool.map(self._decode, map(int, rows))))
        raw = b"".join(map(self._read, map(int, rows)))
        return np.frombuffer(bytearray(raw), dtype=np.uint8).reshape(len(rows), height, width, channels)

    def _block(self, part: Part, content: memoryview) -> np.ndarray:
        # where each image of a block lies: [n, 2]
        channels, height, width = self.shape
        start, size = part
        shape, dtype, header = tars.npy_header(io.BytesIO(content[start : start + min(size, 65536)]), size)
        if dtype != np.uint8 or len(shape) != 4:
            raise ValueError(f"an .npy must be uint8 [n, h, w, c], not {dtype} {list(shape)}")
        if shape[1:] != (height, width, channels):
            raise ValueError(f"its images are {list(shape[1:])}, not {[height, width, channels]}")
        one = height * width * channels
        return np.stack([start + header + one * np.arange(shape[0]), np.full(shape[0], one)], 1)

    def _read(self, row: int) -> bytes:
        content = os.pread(self._file, int(self._sizes[row]), int(self._starts[row]))
        if zlib.crc32(content) != self._sums[row]:
            raise UserError(f"{self._path} was changed while it was in use: run the shard stage again")
        return content

    def _decode(self, row: int) -> np.ndarray:
        channels, height, width = self.shape
        content = self._read(row)
        try:
            picture = tars.pictures_of({self._words[row]: content})[0]
            return np.asarray(picture).reshape(height, width, channels)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"image {row} of {self._path} cannot be read ({error}): run the shard stage again"
            ) from None


def open_shard(folder: Path, manifest: Manifest, index: int) -> Opened:
    """Shard `index` of the manifest, read in one sweep and checked against its digest and its counts; its file stays open.

    Nothing but the decoders of npy, png, jpg, webp, cls and json is let near a member. Raises UserError.
    """
    shard = manifest.shards[index]
    path = Path(folder) / shard.name
    file, content = _whole(path, shard)
    try:
        opened = Opened(path, file, memoryview(content), manifest.shape)
    except (ValueError, TypeError, IndexError, StopIteration) as error:
        os.close(file)
        raise UserError(f"{path} cannot be read ({error}): run the shard stage again") from None
    except UserError:
        os.close(file)
        raise
    weakref.finalize(opened, os.close, file)
    if (opened.labels is None) != (manifest.classes is None):
        has = "no" if opened.labels is None else "unannounced"
        raise UserError(f"{path} has {has} labels, against the manifest: run the shard stage again")
    if len(opened) != shard.images:
        raise UserError(
            f"{path} holds {len(opened)} images, the manifest says {shard.images}: run the shard stage again"
        )
    return opened


def _whole(path: Path, shard: Shard) -> tuple[int, bytes]:
    # the open file, and its content, which is what the manifest says
    if path.is_file():
        file = os.open(path, os.O_RDONLY)
        with open(file, "rb", closefd=False) as opened:
            content = opened.read()
        if hashlib.sha256(content).hexdigest() == shard.sha256:
            return file, content
        os.close(file)
    raise UserError(f"{path} is missing or not what the manifest says: run the shard stage again")


def _word(parts: dict[str, Part]) -> str:
    return next(extension for extension in parts if extension in tars.TAR_IMAGES)


def _image(parts: dict[str, Part]) -> Part:
    return parts[_word(parts)]


def _labels(parts: dict[str, Part], count: int, content: memoryview) -> Sequence[int | None]:
    labels = {word: content[start : start + size] for word, (start, size) in parts.items() if word in tars.TAR_LABELS}
    return tars.labels_of(labels, count)

"""One shard whose content was checked, and whose images are read from its file when they are asked for."""

import hashlib
import io
import os
import weakref
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffcore.core.errors import UserError
from diffcore.data import captions, tars
from diffcore.data.manifest import Manifest, Shard

PIECE = 1 << 20  # bytes
Content = bytes | memoryview
KEPT = (*tars.TAR_LABELS, *tars.TAR_CAPTIONS)  # parts of a sample whose content is looked at


class Opened:
    """One shard: where each image lies in its open file, and a checksum of it; made by `open_shard`.

    Nothing of the images is held in memory. Each is held against its checksum when it is read, so that a file that changes
    after it was opened is noticed. labels: int64 [n] or None. captions: one for each image, or None.
    """

    def __init__(self, path: Path, file: int, index: "Index"):
        self.shape, self._path, self._file = index.shape, path, file
        self._is_raw, self._words = index.is_raw, tuple(index.words)
        self._starts, self._sizes = (np.array(values, dtype=np.int64) for values in (index.starts, index.sizes))
        self._sums = np.array(index.sums, dtype=np.uint32)
        self.labels = np.array(index.labels, dtype=np.int64) if index.labels and index.labels[0] is not None else None
        self.captions = index.captions
        weakref.finalize(self, os.close, file)

    def __len__(self) -> int:
        return len(self._starts)

    def pixels(self, rows: Sequence[int] | np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
        """The images `rows` as uint8 [n, h, w, c], decoded in `pool` if they are encoded. Raises UserError."""
        channels, height, width = self.shape
        if not self._is_raw:
            return np.stack(list(pool.map(self._decode, map(int, rows))))
        pixels = bytearray().join(map(self._read, map(int, rows)))
        return np.frombuffer(pixels, dtype=np.uint8).reshape(len(rows), height, width, channels)

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


class Index:
    """What is learned of a shard in one sweep: place, length and CRC-32 of each image, its label and its caption.

    shape: [c, h, w] of every image. Raises ValueError for what no shard of ours holds.
    """

    def __init__(self, shape: tuple[int, int, int], parts: Iterable[tuple[str, str, int, Content]]):
        self.shape, self.is_raw = shape, False
        self.starts, self.sizes, self.sums = [], [], []
        self.words: list[str] = []
        self.labels: list[int | None] = []
        self.captions: list[str] | None = None
        self._texts: dict[str, str] = {}  # one text in memory for all images that have it
        keys: set[str] = set()
        last, sample, before = None, {}, 0
        for key, word, start, content in parts:
            if key != last:
                self._label(sample, before)
                if key in keys:
                    raise tars.Uncommon
                last, sample, before = key, {}, len(self.starts)
                keys.add(key)
            if word in sample:
                raise tars.Uncommon
            sample[word] = bytes(content) if word in KEPT else b""
            if word in tars.TAR_IMAGES:
                self._image(word, start, content)
        self._label(sample, before)

    def _image(self, word: str, start: int, content: Content) -> None:
        self.is_raw = word == "npy"
        if self.is_raw:
            self._block(start, content)
            return
        self.words.append(word)
        self.starts.append(start)
        self.sizes.append(len(content))
        self.sums.append(zlib.crc32(content))

    def _block(self, start: int, content: Content) -> None:
        channels, height, width = self.shape
        shape, dtype, header = tars.npy_header(io.BytesIO(content[:65536]), len(content))
        if dtype != np.uint8 or len(shape) != 4:
            raise ValueError(f"an .npy must be uint8 [n, h, w, c], not {dtype} {list(shape)}")
        if shape[1:] != (height, width, channels):
            raise ValueError(f"its images are {list(shape[1:])}, not {[height, width, channels]}")
        one, view = height * width * channels, memoryview(content)
        places = range(header, len(content), one)
        self.starts += [start + place for place in places]
        self.sizes += [one] * len(places)
        self.sums += [zlib.crc32(view[place : place + one]) for place in places]

    def _label(self, sample: dict[str, bytes], before: int) -> None:
        if sample:
            labels = {word: content for word, content in sample.items() if word in tars.TAR_LABELS}
            self.labels += tars.labels_of(labels, len(self.starts) - before)
            self._caption(sample, before)

    def _caption(self, sample: dict[str, bytes], before: int) -> None:
        texts = captions.of_sample(sample, len(self.starts) - before)
        if before and (texts is None) != (self.captions is None):
            raise ValueError("only some of its images have captions")
        if texts is not None:
            self.captions = self.captions or []
            self.captions += [self._texts.setdefault(text, text) for text in texts]


def open_shard(folder: Path, manifest: Manifest, index: int) -> Opened:
    """Shard `index` of the manifest, read in one sweep and checked against its digest and its counts; its file stays open.

    Nothing but the decoders of npy, png, jpg, webp, cls and json is let near a member. Raises UserError.
    """
    shard = manifest.shards[index]
    path = Path(folder) / shard.name
    if not path.is_file():
        raise _other(path)
    with open(path, "rb") as file:
        learned = _index(file, path, shard, manifest.shape)
        opened = Opened(path, os.dup(file.fileno()), learned)
    if (opened.labels is None) != (manifest.classes is None):
        has = "no" if opened.labels is None else "unannounced"
        raise UserError(f"{path} has {has} labels, against the manifest: run the shard stage again")
    if (opened.captions is None) == manifest.captions:
        has = "no" if opened.captions is None else "unannounced"
        raise UserError(f"{path} has {has} captions, against the manifest: run the shard stage again")
    if len(opened) != shard.images:
        raise UserError(
            f"{path} holds {len(opened)} images, the manifest says {shard.images}: run the shard stage again"
        )
    return opened


class _Digested:
    """A file that is read from its beginning to its end, and the digest of what was read.

    What `read` gives is good until the next one: it lies in one buffer, so that memory does not grow with the shards.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._buffer = file, hashlib.sha256(), bytearray(PIECE)

    def read(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = bytearray(min(size, os.fstat(self._file.fileno()).st_size))
        content = memoryview(self._buffer)[:size]
        content = content[: self._file.readinto(content)]
        self._digest.update(content)
        return content

    def finish(self) -> str:
        while self.read(PIECE):
            pass
        return self._digest.hexdigest()


def _index(file: BinaryIO, path: Path, shard: Shard, shape: tuple[int, int, int]) -> Index:
    digested, fault = _Digested(file), None
    try:
        index = Index(shape, tars.plain(digested))
    except (ValueError, TypeError, IndexError) as error:
        fault = error
    if digested.finish() != shard.sha256:  # before a word is said of what it holds
        raise _other(path)
    if isinstance(fault, tars.Uncommon):
        file.seek(0)
        fault, index = _fault_of(path, file.read(), shape)
    if fault is not None or not len(index.starts):
        raise UserError(f"{path} cannot be read ({fault or 'it is empty'}): run the shard stage again")
    return index


def _fault_of(path: Path, content: bytes, shape: tuple[int, int, int]) -> tuple[Exception | None, Index | None]:
    # a tar that this writer did not write: tarfile reads it, or says what is wrong
    samples = tars.members(io.BytesIO(content), str(path))
    places = [(key, word, *place) for key, parts in samples for word, place in parts.items()]
    try:
        return None, Index(shape, ((key, word, at, content[at : at + size]) for key, word, at, size in places))
    except (ValueError, TypeError, IndexError) as error:
        return error, None


def _other(path: Path) -> UserError:
    return UserError(f"{path} is missing or not what the manifest says: run the shard stage again")

"""Shards: a data set as tars in webdataset's layout, with a manifest that is written last and vouches for every byte.

Small images lie in blocks, many in one `.npy` member [n, h, w, c] with their labels in `.cls.npy`: reading them costs a
hundredth of what one member for each image costs. Larger images lie one to a member, losslessly encoded, with `.cls`.
"""

import collections
import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffcore import disk, sources, tars
from diffcore.mistake import Mistake
from diffcore.sources import Config as Config

SCHEMA = 1
BLOCK = 256  # images in a block
SMALL = 64 * 64 * 3  # bytes of an image that is still stored in blocks
SHARD_BYTES = 32 << 20  # a shard is closed when it holds this much
OWNER = {"user": "distill", "group": "distill", "mode": 0o644}  # fixed, so that a rerun gives the same bytes
BAD_FRACTION = 0.01  # of unreadable images, beyond which the source itself is at fault

Progress = Callable[[int, int], None]
Indices = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, how many images it holds, its size in bytes and its digest."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what lies in a folder of shards, and where it came from.

    found: images in the source: those written and those quarantined because they cannot be read, each named as
    {name, images, reason} (a damaged block of a tar counts as many). enlarged: images smaller than the size asked for.
    ignored: files of other kinds beside a folder's images. splits: images found in each of a folder's train/, test/, ...
    shape: [channels, height, width]. classes: names by label; None if the images have no labels.
    digest: sha256 over what training can see (the shards, shape, classes, layout), not over where it came from, so that
    the same images found in another place give the same digest. A checkpoint carries it as its data digest.
    """

    schema: int
    source: str
    license: str | None
    found: int
    images: int
    quarantined: tuple[dict[str, Any], ...]
    enlarged: int
    ignored: int
    splits: dict[str, int] | None
    filter: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    members: Literal["block", "image"]
    shards: tuple[Shard, ...]
    digest: str

    @staticmethod
    def read(folder: Path, verify: bool = True) -> "Manifest":
        """The manifest of `folder`, with every shard found in its place and size, and, to `verify`, with its digest.

        Raises Mistake naming what is missing or has changed.
        """
        manifest = _parse(Path(folder))
        for shard in manifest.shards:
            path = Path(folder) / shard.name
            if not path.is_file():
                raise Mistake(f"{path} is missing: run the shard stage again")
            if path.stat().st_size != shard.bytes or (verify and disk.sha256(path) != shard.sha256):
                raise Mistake(f"{path} is not what the manifest says: run the shard stage again")
        return manifest

    @property
    def image_bytes(self) -> int:
        """The size of one decoded image."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Images:
    """A whole data set in memory.

    pixels: uint8 [n, c, h, w]; labels: int64 [n] or None; classes: names by label or None; counts: images in each shard,
    which the order of training goes by; empty means one.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] | None
    counts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, [c, h, w]."""
        return tuple(self.pixels.shape[1:])

    def take(self, indices: Indices) -> Tensor:
        """The images of these numbers, in any order and with repetitions: uint8 [k, c, h, w]. Raises IndexError."""
        return self.pixels[_checked(indices, len(self))]

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time: uint8 [size, c, h, w], the last block maybe shorter."""
        return iter(self.pixels.split(size))


# writing


def write(
    config: Config,
    folder: Path,
    workers: int = 2,
    on_progress: Progress = lambda done, total: None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Reads `config.source` and writes it as shards and, last, manifest.json; `folder` appears whole or not at all.

    The bytes depend on the images and the configuration alone, not on `workers` (threads) or the time. `on_progress` hears
    (images done, images found). Images that cannot be read are quarantined: left out, counted and named in the manifest.
    Raises Mistake if there is nothing to read, if more than 1 % cannot be read, or if the images do not go together.
    """
    source = sources.find(config)
    form = sources.form(config, source)
    kind = config.members
    if kind == "auto":
        kind = "block" if int(np.prod(form.shape)) <= SMALL else "image"
    tally = _Tally(source.images)
    with disk.folder(folder) as temporary:
        samples = _samples(source, form, kind, workers, tally, on_progress)
        members = (_blocks if kind == "block" else _singles)(samples)
        shards = tuple(_write_tars(members, temporary, shard_bytes))
        manifest = _manifest(config, source, form, kind, tally, shards)
        disk.write_json(temporary / "manifest.json", asdict(manifest))
    return manifest


@dataclass
class _Tally:
    found: int
    images: int = 0
    enlarged: int = 0
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    bad: int = 0
    labelled: bool | None = None
    classes: int = 0

    def lose(self, name: str, images: int, reason: str) -> None:
        self.quarantined.append({"name": name, "images": images, "reason": reason})
        self.bad += images
        if self.bad > BAD_FRACTION * self.found:
            few = "; ".join(f"{each['name']}: {each['reason']}" for each in self.quarantined[:3])
            raise Mistake(f"{self.bad} of {self.found} images cannot be read ({few}): mend or remove them")

    def count(self, name: str, label: int | None, enlarged: bool) -> None:
        self.images += 1
        self.enlarged += enlarged
        if self.labelled is None:
            self.labelled = label is not None
        if self.labelled != (label is not None):
            has, first = ("no", "has one") if label is None else ("a", "has none")
            raise Mistake(f"{name} has {has} label and the first image {first}: label all images or none")
        self.classes = max(self.classes, -1 if label is None else label + 1)


@dataclass(frozen=True)
class _Outcome:
    name: str
    samples: list[tuple[Any, int | None, bool]]  # content, label, whether it was enlarged
    lost: int
    reason: str


def _samples(
    source: sources.Source, form: sources.Form, kind: str, workers: int, tally: _Tally, on_progress: Progress
) -> Iterator[tuple[Any, int | None]]:
    # (content, label) of every image that can be read, in the source's order; content as the kind of member wants it
    work = functools.partial(_work, form=form, encode=_encode if kind == "image" else None)
    for outcomes in _in_order(work, _chunks(source.entries), workers):
        for outcome in outcomes:
            if outcome.lost:
                tally.lose(outcome.name, outcome.lost, outcome.reason)
            for content, label, enlarged in outcome.samples:
                tally.count(outcome.name, label, enlarged)
                yield content, label
        on_progress(tally.images + tally.bad, tally.found)


def _work(entries: list[sources.Entry], form: sources.Form, encode: Callable[[Any], Any] | None) -> list[_Outcome]:
    return [_outcome(entry, form, encode) for entry in entries]


def _outcome(entry: sources.Entry, form: sources.Form, encode: Callable[[Any], Any] | None) -> _Outcome:
    try:
        pictures, labels = entry.read()
    except Exception as error:  # whatever a decoder makes of damaged bytes; named and counted by the tally
        return _Outcome(entry.name, [], entry.images, " ".join(f"{type(error).__name__}: {error}".split()))
    samples = []
    for picture, label in zip(pictures[: entry.images], labels):
        pixels, enlarged = sources.fit(picture, form, entry.name)
        samples.append((encode(pixels) if encode else pixels, label, enlarged))
    return _Outcome(entry.name, samples, 0, "")


def _chunks(entries: Iterable[sources.Entry], images: int = 64) -> Iterator[list[sources.Entry]]:
    chunk, held = [], 0
    for entry in entries:
        chunk.append(entry)
        held += entry.images
        if held >= images:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _in_order(work: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    # a pool's map that holds only a few results at a time, for data larger than memory
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[Future] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encode(pixels: np.ndarray) -> tuple[str, bytes]:
    # lossless; WebP takes 0.55 of PNG's time to write, 0.75 to read and 0.8 of its bytes, but knows no grey
    from PIL import Image

    file = io.BytesIO()
    if pixels.shape[-1] == 1:
        Image.fromarray(pixels[..., 0]).save(file, "PNG", compress_level=1)
        return "png", file.getvalue()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, method=0, quality=0)
    return "webp", file.getvalue()


def _blocks(samples: Iterator[tuple[np.ndarray, int | None]]) -> Iterator[tuple[int, dict[str, bytes]]]:
    held: list[tuple[np.ndarray, int | None]] = []
    for sample in samples:
        held.append(sample)
        if len(held) == BLOCK:
            yield len(held), _block(held)
            held = []
    if held:
        yield len(held), _block(held)


def _block(held: list[tuple[np.ndarray, int | None]]) -> dict[str, bytes]:
    parts = {"npy": _npy(np.stack([pixels for pixels, _ in held]))}
    if held[0][1] is not None:
        parts["cls.npy"] = _npy(np.array([label for _, label in held], dtype="<i8"))
    return parts


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _singles(samples: Iterator[tuple[tuple[str, bytes], int | None]]) -> Iterator[tuple[int, dict[str, bytes]]]:
    for (extension, content), label in samples:
        yield 1, {extension: content} | ({} if label is None else {"cls": str(label).encode()})


def _write_tars(members: Iterator[tuple[int, dict[str, bytes]]], folder: Path, shard_bytes: int) -> Iterator[Shard]:
    import webdataset

    member = next(members, None)
    written, number = 0, 0
    while member is not None:
        path = folder / f"{number:06d}.tar"
        held, first = 0, written
        with open(path, "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0, **OWNER) as tar:
            while member is not None and held < shard_bytes:
                held += tar.write({"__key__": f"{written:09d}", **member[1]})
                written += member[0]
                member = next(members, None)
        yield Shard(path.name, written - first, path.stat().st_size, disk.sha256(path))
        number += 1


def _manifest(
    config: Config, source: sources.Source, form: sources.Form, kind: str, tally: _Tally, shards: tuple[Shard, ...]
) -> Manifest:
    written = sum(shard.images for shard in shards)
    if not written == tally.images == tally.found - tally.bad:
        raise RuntimeError(f"{tally.found} images found, {tally.images} read, {tally.bad} bad, {written} written")
    classes = source.classes or [str(label) for label in range(tally.classes)]
    content = {
        "schema": SCHEMA,
        "images": written,
        "shape": form.shape,
        "classes": tuple(classes) if tally.labelled else None,
        "members": kind,
        "shards": shards,
    }
    return Manifest(
        source=config.source,
        license=config.license,
        found=tally.found,
        quarantined=tuple(tally.quarantined),
        enlarged=tally.enlarged,
        ignored=source.ignored,
        splits=source.splits,
        filter=config.filter,
        digest=_digest(content),
        **content,
    )


def _digest(content: dict[str, Any]) -> str:
    seen = ("schema", "images", "shape", "classes", "members")
    return disk.digest({name: content[name] for name in seen} | {"shards": [asdict(s) for s in content["shards"]]})


# reading


def _parse(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Mistake(f"{folder} holds no manifest.json: run the shard stage") from None
    except ValueError:
        raise Mistake(f"{path} is not JSON: run the shard stage again") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise Mistake(f"{path} is not a manifest of schema {SCHEMA}: run the shard stage again")
    with contextlib.suppress(KeyError, TypeError, ValueError):
        value["shards"] = tuple(Shard(**shard) for shard in value["shards"])
        for name in ("shape", "classes", "quarantined"):
            value[name] = value[name] if value[name] is None else tuple(value[name])
        names = [shard.name for shard in value["shards"]]
        whole = set(value) == {each.name for each in fields(Manifest)} and all(Path(n).name == n for n in names)
        adds_up = value["images"] == sum(shard.images for shard in value["shards"])
        if whole and adds_up and value["digest"] == _digest(value):
            return Manifest(**value)
    raise Mistake(f"{path} was changed after it was written: run the shard stage again")


class Opened:
    """One shard in memory, its images not yet decoded; made by `open_shard`.

    labels: int64 [n] or None.
    """

    def __init__(self, path: Path, parts: list[dict[str, memoryview]], shape: tuple[int, int, int]):
        self.shape, self._path = shape, path
        self._encoded = [] if "npy" in parts[0] else parts
        pieces = [] if self._encoded else [np.stack(tars.pictures_of(part)) for part in parts]
        self._pixels = np.concatenate(pieces) if pieces else None
        if pieces and self._pixels.shape[1:] != (*shape[1:], shape[0]):
            raise ValueError(f"its images are {list(self._pixels.shape[1:])}, not {[*shape[1:], shape[0]]}")
        counts = [1] * len(parts) if self._encoded else [len(piece) for piece in pieces]
        labels = [label for part, count in zip(parts, counts) for label in tars.labels_of(part, count)]
        self.labels = None if not labels or labels[0] is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._encoded) if self._pixels is None else len(self._pixels)

    def pixels(self, rows: Sequence[int] | np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
        """The images `rows` as uint8 [n, h, w, c], decoded in `pool` if they are encoded."""
        if self._pixels is not None:
            return self._pixels[rows]
        return np.stack(list(pool.map(self._decode, map(int, rows))))

    def _decode(self, row: int) -> np.ndarray:
        channels, height, width = self.shape
        try:
            return np.asarray(tars.pictures_of(self._encoded[row])[0]).reshape(height, width, channels)
        except (OSError, SyntaxError, ValueError) as error:
            raise Mistake(f"image {row} of {self._path} cannot be read ({error}): run the shard stage again") from None


def open_shard(folder: Path, manifest: Manifest, index: int) -> Opened:
    """Shard `index` of the manifest, read in one sweep and checked against its digest and its counts.

    Nothing but the decoders of npy, png, jpg, webp, cls and json is let near a member. Raises Mistake.
    """
    shard = manifest.shards[index]
    path = Path(folder) / shard.name
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise Mistake(f"{path} is missing or not what the manifest says: run the shard stage again")
    view = memoryview(content)
    parts = [
        {extension: view[start : start + size] for extension, (start, size) in sample.items()}
        for _, sample in tars.members(io.BytesIO(content), str(path))
    ]
    opened = _opened(parts, manifest, path)
    if (opened.labels is None) != (manifest.classes is None):
        has = "no" if opened.labels is None else "unannounced"
        raise Mistake(f"{path} has {has} labels, against the manifest: run the shard stage again")
    if len(opened) != shard.images:
        raise Mistake(f"{path} holds {len(opened)} images, the manifest says {shard.images}: run the shard stage again")
    return opened


def _opened(parts: list[dict[str, memoryview]], manifest: Manifest, path: Path) -> Opened:
    try:
        return Opened(path, parts, manifest.shape)
    except (ValueError, TypeError, IndexError, StopIteration) as error:
        raise Mistake(f"{path} cannot be read ({error}): run the shard stage again") from None


def load_resident(folder: Path, workers: int = 2) -> Images:
    """The whole data set as uint8, every shard checked against its digest; Raises Mistake as `open_shard` does."""
    manifest = Manifest.read(folder, verify=False)  # each shard's digest is checked as it is read
    pixels = torch.empty(manifest.images, *manifest.shape, dtype=torch.uint8)
    labels = torch.empty(manifest.images, dtype=torch.int64)
    counts = tuple(shard.images for shard in manifest.shards)
    start = 0
    with ThreadPoolExecutor(workers) as pool:
        for index, count in enumerate(counts):
            opened = open_shard(folder, manifest, index)
            pixels[start : start + count] = channels_first(opened.pixels(np.arange(count), pool))
            if opened.labels is not None:
                labels[start : start + count] = torch.from_numpy(opened.labels)
            start += count
    if start != manifest.images:
        raise Mistake(f"{folder} holds {start} images, the manifest says {manifest.images}: run the shard stage again")
    return Images(pixels, None if manifest.classes is None else labels, manifest.classes, counts)


def open_images(folder: Path, memory_bytes: int, workers: int = 2) -> "Images | StreamedImages":
    """The data set in `folder`, to be looked up image by image: in memory if the decoded images fit into `memory_bytes`.

    Otherwise shards are read when they are asked for, and those read last are kept up to `memory_bytes` (at least one).
    Both give the same values, and check every shard against its digest as it is read. Raises Mistake as `open_shard` does.
    """
    manifest = Manifest.read(folder, verify=False)
    if manifest.images * manifest.image_bytes <= memory_bytes:
        return load_resident(folder, workers)
    return StreamedImages(folder, manifest, memory_bytes, workers)


class StreamedImages:
    """What `Images` is, for a data set larger than memory; made by `open_images`.

    classes: names by label or None; shape: of one image, [c, h, w]; counts: images in each shard.
    """

    def __init__(self, folder: Path, manifest: Manifest, memory_bytes: int, workers: int = 2):
        self.classes, self.shape = manifest.classes, manifest.shape
        self.counts = tuple(shard.images for shard in manifest.shards)
        self._folder, self._manifest = Path(folder), manifest
        self._memory_bytes, self._workers = memory_bytes, workers
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._opened: collections.OrderedDict[int, Opened] = collections.OrderedDict()  # the last asked for comes last

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.cached_property
    def labels(self) -> Tensor | None:
        """int64 [n] or None. The first look reads every shard."""
        if self.classes is None:
            return None
        return torch.cat([torch.from_numpy(self._shard(index).labels) for index in range(len(self.counts))])

    def take(self, indices: Indices) -> Tensor:
        """The images of these numbers, in any order and with repetitions: uint8 [k, c, h, w]. Raises IndexError."""
        wanted = _checked(indices, len(self)).numpy()
        where = np.searchsorted(self._starts, wanted, side="right") - 1
        pixels = np.empty((len(wanted), *self.shape[1:], self.shape[0]), dtype=np.uint8)
        with ThreadPoolExecutor(self._workers) as pool:
            for index in np.unique(where):
                here = np.flatnonzero(where == index)
                pixels[here] = self._shard(int(index)).pixels(wanted[here] - self._starts[index], pool)
        return channels_first(pixels).contiguous()

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time: uint8 [size, c, h, w], the last block maybe shorter."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))

    def _shard(self, index: int) -> Opened:
        if index not in self._opened:
            room = self._memory_bytes - self._manifest.shards[index].bytes
            while self._opened and sum(self._manifest.shards[held].bytes for held in self._opened) > room:
                self._opened.popitem(last=False)
            self._opened[index] = open_shard(self._folder, self._manifest, index)
        self._opened.move_to_end(index)
        return self._opened[index]


def _checked(indices: Indices, count: int) -> Tensor:
    indices = torch.as_tensor(indices, dtype=torch.int64).cpu()
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise IndexError(
            f"images are numbered 0 .. {count - 1}; asked for {int(indices.min())} .. {int(indices.max())}"
        )
    return indices


def channels_first(pixels: np.ndarray) -> Tensor:
    """uint8 [n, h, w, c] -> [n, c, h, w], the same memory seen otherwise."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)

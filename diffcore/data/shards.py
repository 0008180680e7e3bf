"""Shards: a data set as tars in webdataset's layout, with a manifest that is written last and vouches for every byte.

Small images lie in blocks, many in one `.npy` member [n, h, w, c] with their labels in `.cls.npy`: reading them costs a
hundredth of what one member for each image costs. Larger images lie one to a member, losslessly encoded, with `.cls`.
"""

import collections
import contextlib
import errno
import functools
import hashlib
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.mistake import Mistake
from diffcore.data import folders, ledger, sources, tars
from diffcore.data.sources import Config as Config

SCHEMA = 1
BLOCK = 256  # images in a block
CHUNK = 64  # images that a thread reads at a time
SMALL = 64 * 64 * 3  # bytes of an image that is still stored in blocks
SHARD_BYTES = 32 << 20  # a shard is closed when it holds this much
OWNER = {"user": "distill", "group": "distill", "mode": 0o644}  # fixed, so that a rerun gives the same bytes
MOST_BAD = 100  # unreadable images that are looked for beyond the tolerance, so that all can be named at once
MOST_AFTER = 10_000  # images that are looked through for them
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO)  # the image is not at fault

HELD_OUT = "holdout"
"""The folder, within that of the images to train on, of those that are held out."""

Progress = Callable[[int, int], None]
Tell = Callable[[str], None]
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
    tell: Tell = lambda line: None,
    unfinished: ledger.Unfinished | None = None,
) -> Manifest:
    """Reads `config.source` and writes it as shards and, last, manifest.json; `folder` appears whole or not at all.

    What is held out lies in a folder `holdout` of it, in the same way. The bytes depend on the images and the configuration
    alone, not on `workers` (threads) or the time. `on_progress` hears (images done, images found), `tell` what a user should
    know of what was read. Images that cannot be read are quarantined: left out, counted and named in the manifest.
    unfinished: where finished tars are kept until all are, so that a killed writer goes on from there.
    Raises Mistake if there is nothing to read, if more than `config.tolerance` of it cannot be read, or if the images do not
    go together.
    """
    with _no_bombs():
        source = sources.find(config)
        form = sources.form(config, source)
        small = int(np.prod(form.shape)) <= SMALL
        kind = ("block" if small else "image") if config.members == "auto" else config.members
        job = _Job(config, form, kind, workers, shard_bytes, on_progress, tell)
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(unfinished.open(_signature(job), source.files, tell)) if unfinished else None
            temporary = stack.enter_context(disk.folder(folder))
            return _write_all(job, source, temporary, kept)


def _write_all(job: "_Job", source: sources.Source, folder: Path, kept: ledger.Ledger | None) -> Manifest:
    for note in source.notes:
        job.tell(note)
    _tell_others(source.others, job.tell)
    total, held = source.images + (source.held.images if source.held else 0), None
    trained = _write_part(job, source, folder, kept, functools.partial(_after, 0, total, job.on_progress))
    if source.held is not None:
        (folder / HELD_OUT).mkdir()
        below = kept and kept.below(HELD_OUT)
        on_progress = functools.partial(_after, source.images, total, job.on_progress)
        held = _write_part(job, source.held, folder / HELD_OUT, below, on_progress)
        if held.tally.labelled != trained.tally.labelled:
            raise Mistake("only some of the images have labels: label those that are held out as well, or none")
    parts = [trained] + [held] * (held is not None)
    count = max(len(part.tally.counts) for part in parts)
    classes = tuple(source.classes or map(str, range(count))) if trained.tally.labelled else None
    for part in reversed(parts):  # the manifest of what is trained on is the last
        part.tell(classes, job)
        manifest = _manifest(job, part, classes)
        disk.write_json(part.folder / "manifest.json", asdict(manifest))
    return manifest


@contextlib.contextmanager
def _no_bombs() -> Iterator[None]:
    # a picture that is too large to decode safely is quarantined; Pillow would only warn of it up to twice that size
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@dataclass(frozen=True)
class _Job:
    config: Config
    form: sources.Form
    kind: str
    workers: int
    shard_bytes: int
    on_progress: Progress
    tell: Tell


def _signature(job: _Job) -> dict[str, Any]:
    # all that the bytes of the tars depend on, but for the source's own
    import PIL
    import webdataset

    asked = {name: value for name, value in asdict(job.config).items() if name not in ("flip", "license")}
    versions = {"pillow": PIL.__version__, "numpy": np.__version__, "webdataset": webdataset.__version__}
    return {"data": asked, "versions": versions, "shard_bytes": job.shard_bytes, "block": BLOCK}


def _after(before: int, total: int, on_progress: Progress, done: int) -> None:
    on_progress(before + done, total)


def _write_part(
    job: _Job, source: sources.Source, folder: Path, kept: ledger.Ledger | None, on_progress: Callable[[int], None]
) -> "_Part":
    tally, done = _Tally(source.images, job.config.tolerance), []
    if kept is not None and (left := kept.load()) is not None:
        tally, done = _Tally(**left["tally"]), [Shard(**shard) for shard in left["shards"]]
        job.tell(f"goes on after {tally.images + tally.bad} of {tally.found} images")
    members = (_blocks if job.kind == "block" else _singles)(_samples(source, job, tally, on_progress))
    for shard in _write_tars(members, kept.folder if kept else folder, job.shard_bytes, done):
        done.append(shard)
        if kept is not None:
            kept.save({"tally": asdict(tally), "shards": [asdict(each) for each in done]})
    tally.judge(job.config.bits)
    if kept is not None:
        kept.link([shard.name for shard in done], folder)
    return _Part(source, folder, tally, tuple(done))


@dataclass
class _Tally:
    """What was read so far; `entry` and `taken` say up to where: `taken` images of that entry of the source."""

    found: int
    tolerance: float
    images: int = 0
    bad: int = 0
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    refused_at: int | None = None
    labelled: bool | None = None
    counts: list[int] = field(default_factory=list)
    enlarged: int = 0
    blank: list[str] = field(default_factory=list)
    deep: int = 0
    peak: int = 0
    dim: list[str] = field(default_factory=list)
    entry: int = 0
    taken: int = 0

    def lose(self, name: str, images: int, reason: str) -> None:
        self.quarantined.append({"name": name, "images": images, "reason": reason})
        self.bad += images
        if self.bad > self.tolerance * self.found and self.refused_at is None:
            self.refused_at = self.images + self.bad

    def count(self, name: str, sample: "_Sample") -> None:
        self.images += 1
        self.taken += 1
        self.enlarged += sample.enlarged
        self.blank += [name] * sample.blank
        if sample.peak is not None:
            self.deep += 1
            self.peak = max(self.peak, sample.peak)
            self.dim += [name] * (sample.peak < sources.FULL // 16)
        self._label(name, sample.label)

    def _label(self, name: str, label: int | None) -> None:
        if self.labelled is None:
            self.labelled = label is not None
        if self.labelled != (label is not None):
            has, first = ("no", "has one") if label is None else ("a", "has none")
            raise Mistake(f"{name} has {has} label and the first image {first}: label all images or none")
        if label is not None:
            self.counts += [0] * (label + 1 - len(self.counts))
            self.counts[label] += 1

    def next_entry(self) -> None:
        self.entry, self.taken = self.entry + 1, 0
        if self.refused_at is not None:
            after = self.images + self.bad - self.refused_at
            if self.bad >= MOST_BAD or after >= MOST_AFTER:
                raise self._refusal()

    def judge(self, bits: int | None) -> None:
        """Raises Mistake if what was read cannot be trained on."""
        if self.refused_at is not None:
            raise self._refusal()
        if bits is None and self.deep and self.peak <= sources.FULL // 2:
            what = f"the brightest of {self.deep} images with 16 bits is at {self.peak} of {sources.FULL}"
            likely = max(self.peak.bit_length(), 9)
            raise Mistake(
                f"{what}, so they would come out dark: set data.bits to {likely}, or to 16 if they are that dark"
            )

    def _refusal(self) -> Mistake:
        seen, share = self.images + self.bad, math.ceil(1000 * self.bad / self.found) / 1000
        of = f"{self.bad} of {self.found}" if seen == self.found else f"{self.bad} of the first {seen} of {self.found}"
        what = f"{of} images cannot be read ({_quarantine(self.quarantined)})"
        return Mistake(f"{what}: mend or remove them" + (f", or set data.tolerance to {share}" if share < 1 else ""))


def _quarantine(quarantined: Sequence[dict[str, Any]], most: int = 8) -> str:
    said = "; ".join(f"{each['name']}: {each['reason']}" for each in quarantined[:most])
    return said + (f"; and {len(quarantined) - most} more" if len(quarantined) > most else "")


class _Sample(NamedTuple):
    content: Any
    label: int | None
    enlarged: bool
    peak: int | None
    blank: bool


@dataclass(frozen=True)
class _Outcome:
    name: str
    samples: list[_Sample]
    lost: int
    reason: str


def _samples(
    source: sources.Source, job: _Job, tally: _Tally, on_progress: Callable[[int], None]
) -> Iterator[tuple[Any, int | None]]:
    # (content, label) of every image that can be read, in the source's order, from where the tally stands; content as the
    # kind of member wants it
    work = functools.partial(_work, form=job.form, encode=_encode if job.kind == "image" else None)
    for outcomes in _in_order(work, _chunks(source.entries[tally.entry :]), job.workers):
        for outcome in outcomes:
            if outcome.lost:
                tally.lose(outcome.name, outcome.lost, outcome.reason)
            for sample in outcome.samples[tally.taken :]:
                tally.count(outcome.name, sample)
                yield sample.content, sample.label
            tally.next_entry()
        on_progress(tally.images + tally.bad)


def _work(entries: list[sources.Entry], form: sources.Form, encode: Callable[[Any], Any] | None) -> list[_Outcome]:
    return [_outcome(entry, form, encode) for entry in entries]


def _outcome(entry: sources.Entry, form: sources.Form, encode: Callable[[Any], Any] | None) -> _Outcome:
    try:
        pictures, labels = entry.read()
        read = zip(pictures[: entry.images], labels)
        return _Outcome(entry.name, [_sample(*one, form, entry.name, encode) for one in read], 0, "")
    except Mistake:
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes; named and counted by the tally
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE):
            raise Mistake(
                f"{entry.name}: {sources.reason(error)}; the machine is at fault: run the same again"
            ) from None
        return _Outcome(entry.name, [], entry.images, sources.reason(error))


def _sample(
    picture: Any, label: int | None, form: sources.Form, name: str, encode: Callable[[Any], Any] | None
) -> _Sample:
    pixels, enlarged, peak = sources.fit(picture, form, name)
    blank = pixels.shape[:2] != (1, 1) and bool((pixels == pixels[0, 0]).all())
    return _Sample(encode(pixels) if encode else pixels, label, enlarged, peak, blank)


def _chunks(entries: Iterable[sources.Entry]) -> Iterator[list[sources.Entry]]:
    chunk, held = [], 0
    for entry in entries:
        chunk.append(entry)
        held += entry.images
        if held >= CHUNK:
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


def _write_tars(
    members: Iterator[tuple[int, dict[str, bytes]]], folder: Path, shard_bytes: int, done: Sequence[Shard]
) -> Iterator[Shard]:
    # never asks for a member before it is needed, so that at each shard's end the tally is of what has been written
    import webdataset

    number, written = len(done), sum(shard.images for shard in done)
    for first in members:
        path = folder / f"{number:06d}.tar"
        held = images = 0
        with open(path, "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0, **OWNER) as tar:
            for count, parts in itertools.chain([first], members):
                held += tar.write({"__key__": f"{written + images:09d}", **parts})
                images += count
                if held >= shard_bytes:
                    break
        yield Shard(path.name, images, path.stat().st_size, disk.sha256(path))
        number, written = number + 1, written + images


@dataclass(frozen=True)
class _Part:
    """What became of the images to train on, or of those held out."""

    source: sources.Source
    folder: Path
    tally: _Tally
    shards: tuple[Shard, ...]

    def tell(self, classes: tuple[str, ...] | None, job: _Job) -> None:
        tally, whose = self.tally, "held out: " if self.folder.name == HELD_OUT else ""
        lines = [f"{tally.images} of {tally.found} images read" + _dealt_out(self.source.splits)]
        if tally.bad:
            lines.append(f"{tally.bad} images cannot be read and are left out ({_quarantine(tally.quarantined)})")
        if tally.enlarged:
            lines.append(f"{tally.enlarged} images were smaller than {job.form.size} and are enlarged")
        if tally.blank:
            lines.append(f"{len(tally.blank)} images are of one colour throughout ({tars.few(tally.blank)})")
        if tally.dim:
            lines.append(
                f"{len(tally.dim)} of {tally.deep} images with 16 bits are nearly black ({tars.few(tally.dim)})"
            )
        for line in lines + (_class_lines(classes, tally.counts) if classes else ["no labels"]):
            job.tell(whose + line)


def _dealt_out(splits: dict[str, int] | None) -> str:
    return (
        " (" + ", ".join(f"{count} in {tars.printable(name)}" for name, count in splits.items()) + ")" if splits else ""
    )


def _class_lines(classes: tuple[str, ...], counts: list[int]) -> list[str]:
    counts = counts + [0] * (len(classes) - len(counts))
    shown = [f"{name} {count}" for name, count in zip(classes, counts)]
    lines = [f"{len(classes)} classes: {_shortened(shown)}"]
    empty = [name for name, count in zip(classes, counts) if not count]
    if empty:
        lines.append(f"warning: {len(empty)} of {len(classes)} classes have no images: {_shortened(empty)}")
    if len(classes) == 1:
        lines.append(f"warning: all images are of one class, {classes[0]}; data.labels: none reads them without")
    splits = [name for name in classes if name.lower() in folders.SPLITS]
    if splits:
        lines.append(
            f"warning: {', '.join(splits)} was read as a class and not as a split, as other folders lie beside it"
        )
    return lines


def _shortened(words: Sequence[str], most: int = 12) -> str:
    if len(words) <= most:
        return ", ".join(words)
    return ", ".join([*words[: most - 4], f"... ({len(words) - most} more)", *words[-4:]])


def _tell_others(others: list[folders.Parts], tell: Tell) -> None:
    kept_out = [folders.extension(parts[-1]) in folders.OTHER_IMAGES for parts in others]
    pictures = list(itertools.compress(others, kept_out))
    rest = [parts for parts, is_picture in zip(others, kept_out) if not is_picture]
    if pictures:
        tell(f"warning: not read: {folders.kinds(pictures)}: convert them to png or jpg")
    if rest:
        tell(f"ignored: {folders.kinds(rest)}")


def _manifest(job: _Job, part: _Part, classes: tuple[str, ...] | None) -> Manifest:
    tally, written = part.tally, sum(shard.images for shard in part.shards)
    if not written == tally.images == tally.found - tally.bad:
        raise RuntimeError(f"{tally.found} images found, {tally.images} read, {tally.bad} bad, {written} written")
    content = {
        "schema": SCHEMA,
        "images": written,
        "shape": job.form.shape,
        "classes": classes,
        "members": job.kind,
        "shards": part.shards,
    }
    return Manifest(
        source=job.config.source,
        license=job.config.license,
        found=tally.found,
        quarantined=tuple(tally.quarantined),
        enlarged=tally.enlarged,
        ignored=part.source.ignored,
        splits=part.source.splits,
        filter=job.config.filter,
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
        value = disk.parse_json(path.read_bytes())
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

"""Shards: a data set as tars in webdataset's layout, with a manifest that is written last and vouches for every byte.

Small images lie in blocks, many in one `.npy` member [n, h, w, c] with their labels in `.cls.npy`: reading them costs a
hundredth of what one member for each image costs. Larger images lie one to a member, losslessly encoded, with `.cls`.
Captions lie beside them, in `.captions.json` of a block and in `.txt` of an image.
"""

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import captions, fitting, folders, ledger, pixels, selection, workers
from diffcore.data.cache import Cache
from diffcore.data.config import Config
from diffcore.data.manifest import HELD_OUT, SCHEMA, Manifest, Shard, digest
from diffcore.data.sources import Entry, Source
from diffcore.data.tally import Sample, Tally

BLOCK = 256  # images in a block
CHUNK = 64  # images that a worker reads at a time
FEW = 4096  # images that are read before another process would have started
SMALL = 64 * 64 * 3  # bytes of an image that is still stored in blocks
SHARD_BYTES = 32 << 20  # a shard is closed when it holds this much
NO_SHARD = ("flip", "license", "prompts", "image_condition", "draw")  # what the shards do not depend on
OWNER = {"user": "distill", "group": "distill", "mode": 0o644}  # fixed, so that a rerun gives the same bytes
Progress = Callable[[int, int], None]
Tell = Callable[[str], None]


def write(
    config: Config,
    folder: Path,
    workers: int = 2,
    on_progress: Progress = lambda done, total: None,
    shard_bytes: int = SHARD_BYTES,
    tell: Tell = lambda line: None,
    unfinished: ledger.Unfinished | None = None,
    cache: Cache | None = None,
    start: workers.Start = ThreadPoolExecutor,
    drawn: Path | None = None,
) -> Manifest:
    """Reads `config.source` and writes it as shards and, last, manifest.json; `folder` appears whole or not at all.

    What is held out lies in a folder `holdout` of it, in the same way. The bytes depend on the images and the configuration
    alone, not on the workers or the time. workers: how many read: threads, or what `start` starts for more than FEW images,
    such as `pixels.processes`. `on_progress` hears (images done, images found), `tell` what a user should know of what was
    read. Images that cannot be read are quarantined: left out, counted and named in the manifest. unfinished: where finished
    tars are kept until all are, so that a killed writer goes on from there. cache: of a source that is remote. drawn:
    the folder of what a teacher drew.
    Raises UserError if there is nothing to read, if more than `config.tolerance` of it cannot be read, or if the images
    do not go together.
    """
    with pixels.no_bombs():
        source = selection.find(config, cache, tell, drawn)
        form = fitting.form(config, source)
        small = int(np.prod(form.shape)) <= SMALL
        kind = ("block" if small else "image") if config.members == "auto" else config.members
        job = _Job(config, form, kind, workers, start, shard_bytes, on_progress, tell)
        with contextlib.ExitStack() as stack:
            kept = unfinished and stack.enter_context(
                unfinished.open(_signature(job), source.files, tell, source.versions)
            )
            temporary = stack.enter_context(disk.folder(folder))
            return _write_all(job, source, temporary, kept)


def _write_all(job: "_Job", source: Source, folder: Path, kept: ledger.Ledger | None) -> Manifest:
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
            raise UserError("only some of the images have labels: label those that are held out as well, or none")
    parts = [trained] + [held] * (held is not None)
    count = max(len(part.tally.counts) for part in parts)
    classes = tuple(source.classes or map(str, range(count))) if trained.tally.labelled else None
    for part in reversed(parts):  # the manifest of what is trained on is the last
        part.tell(classes, job)
        manifest = _manifest(job, part, classes)
        disk.write_json(part.folder / "manifest.json", manifest.content())
    return manifest


@dataclass(frozen=True)
class _Job:
    config: Config
    form: fitting.Form
    kind: str
    workers: int
    start: workers.Start
    shard_bytes: int
    on_progress: Progress
    tell: Tell


def _signature(job: _Job) -> dict[str, Any]:
    # all that the bytes of the tars depend on, but for the source's own
    import PIL
    import webdataset

    config = {name: value for name, value in asdict(job.config).items() if name not in NO_SHARD}
    versions = {"pillow": PIL.__version__, "numpy": np.__version__, "webdataset": webdataset.__version__}
    return {"data": config, "versions": versions, "shard_bytes": job.shard_bytes, "block": BLOCK}


def _after(before: int, total: int, on_progress: Progress, done: int) -> None:
    on_progress(before + done, total)


def _write_part(
    job: _Job, source: Source, folder: Path, kept: ledger.Ledger | None, on_progress: Callable[[int], None]
) -> "_Part":
    tally, done = Tally(source.images, job.config.tolerance, captioned=job.config.captions is not None), []
    if kept is not None and (left := kept.load()) is not None:
        tally, done = Tally(**left["tally"]), [Shard(**shard) for shard in left["shards"]]
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


def _samples(source: Source, job: _Job, tally: Tally, on_progress: Callable[[int], None]) -> Iterator[Sample]:
    # of every image that can be read, in the source's order, from where the tally stands; content as the kind of member
    # wants it
    work = functools.partial(pixels.read, form=job.form, encoded=job.kind == "image")
    start = job.start if source.images > FEW else ThreadPoolExecutor
    for outcomes in workers.in_order(work, _chunks(source.entries[tally.entry :]), job.workers, start):
        for outcome in outcomes:
            if outcome.lost:
                tally.lose(outcome.name, outcome.lost, outcome.reason)
            for sample in outcome.samples[tally.taken :]:
                tally.count(outcome.name, sample)
                yield sample
            tally.next_entry()
        on_progress(tally.images + tally.bad)


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    chunk, held = [], 0
    for entry in entries:
        chunk.append(entry)
        held += entry.images
        if held >= CHUNK:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _blocks(samples: Iterator[Sample]) -> Iterator[tuple[int, dict[str, bytes]]]:
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        if len(held) == BLOCK:
            yield len(held), _block(held)
            held = []
    if held:
        yield len(held), _block(held)


def _block(held: list[Sample]) -> dict[str, bytes]:
    parts = {"npy": _npy(np.stack([sample.content for sample in held]))}
    if held[0].label is not None:
        parts["cls.npy"] = _npy(np.array([sample.label for sample in held], dtype="<i8"))
    if held[0].caption is not None:
        parts["captions.json"] = captions.encode([sample.caption for sample in held])
    return parts


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _singles(samples: Iterator[Sample]) -> Iterator[tuple[int, dict[str, bytes]]]:
    for sample in samples:
        extension, content = sample.content
        parts = {extension: content}
        if sample.label is not None:
            parts["cls"] = str(sample.label).encode()
        if sample.caption is not None:
            parts["txt"] = sample.caption.encode()
        yield 1, parts


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

    source: Source
    folder: Path
    tally: Tally
    shards: tuple[Shard, ...]

    def tell(self, classes: tuple[str, ...] | None, job: _Job) -> None:
        whose = "held out: " if self.folder.name == HELD_OUT else ""
        for line in self.tally.report(classes, self.source.splits, job.form.size):
            job.tell(whose + line)
        if job.config.captions is not None:
            job.tell(whose + self._captions())

    def _captions(self) -> str:
        lost = {each["name"] for each in self.tally.quarantined}
        entries = (entry for entry in self.source.entries if entry.name not in lost)
        texts = {text for entry in entries for text in entry.captions or ()}
        words = max(len(text.split()) for text in texts)
        return f"{len(texts)} different captions, the longest of {words} words"


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
        "captions": job.config.captions is not None,
        "unseen": part.source.unseen,
    }
    return Manifest(
        source=job.config.origin,
        license=job.config.license,
        found=tally.found,
        quarantined=tuple(tally.quarantined),
        enlarged=tally.enlarged,
        ignored=part.source.ignored,
        splits=part.source.splits,
        filter=job.config.filter,
        digest=digest(content),
        drawn=part.source.drawn,
        **content,
    )

"""What a user may get wrong: params.yaml, images, a teacher's folder, the command line. One line and exit code 2, or
taken."""

# ruff: noqa: E501

import copy
import functools
import io
import json
import os
import random
import resource
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import bad_params
from tests.faults import verdict
from tests.faults.desk import Ended, limit, remove
from tests.faults.trial import Case, Trial
from tests.faults.verdict import Outcome

SHARES = {"params.yaml": 0.56, "images": 0.17, "teachers": 0.12, "command lines": 0.15}

REFUSE, EITHER, TAKE = "refuse", "either", "take"


def cases(seed: int, count: int) -> list[Case]:
    """`count` trials, dealt out by SHARES; each is made of (seed, number) alone."""
    makers = {"params.yaml": _params, "images": _images, "teachers": _teacher, "command lines": _words}
    found = []
    for kind, share in SHARES.items():
        for number in range(round(count * share)):
            found.append(makers[kind](random.Random(f"{seed}/{kind}/{number}"), number, f"inputs: {kind}"))
    return found


def judged(trial: Trial, ended: Ended, wanted: str) -> Outcome:
    """The verdict on an input that is to be refused, to be taken, or either."""
    if found := verdict.fault(ended):
        return trial.record.outcome(*found)
    if ended.code == 0:
        if wanted == REFUSE:
            return trial.record.outcome("silent", "wrongly taken")
        return trial.record.outcome("taken")
    if not (verdict.named(ended) or verdict.usage(ended)):
        return trial.record.outcome("manual", f"exit {ended.code}: {verdict.message(ended)}")
    if wanted == TAKE:
        return trial.record.outcome("manual", f"wrongly refused: {verdict.message(ended)}")
    return trial.record.outcome("named", verdict.message(ended))


# params.yaml

NOT_NUMBERS = ("text", [1, 2], {"a": 1}, float("nan"), float("inf"), -float("inf"), 1e300, True)
NOT_WORDS = (3, [{"a": 1}], {"a": 1}, True, 2.5)
SIZES = {
    "iterations",
    "batch",
    "steps",
    "images",
    "channels",
    "threads",
    "dimension",
    "points",
    "most",
    "size",
    "layers",
}
HUGE = (10**9, 10**12, 10**30)
SIGNED = {"seed"}


def _params(rng: random.Random, number: int, kind: str) -> Case:
    if rng.random() < 0.25:
        name = rng.choice(list(FILES))
        return Case(
            kind, f"params.yaml is {name}, then ./stage check", lambda trial: _check_file(trial, *FILES[name], rng)
        )
    pick, choice, twist = rng.random(), rng.random(), rng.randrange(10**6)
    if rng.random() < 0.5:
        return _listed(pick, kind)

    def run(trial: Trial) -> Outcome:
        folder = bare(trial)
        tree = load(trial.template / "params.yaml")
        told, wanted = _spoiled(tree, pick, choice, twist)
        dump(tree, folder / "params.yaml")
        trial.record.commands.append(f"params.yaml: {told}")
        return judged(trial, trial.call("check", prepare=limit(resource.RLIMIT_AS, 16 << 30)), wanted)

    return Case(kind, f"params.yaml: one value ({pick:.3f}, {choice:.3f}, {twist}), then ./stage check", run)


@functools.cache
def _bad() -> list[bad_params.Case]:
    return list(bad_params.cases())


def _listed(pick: float, kind: str) -> Case:
    """One of the files that the fast suite looks at too."""
    case = _bad()[int(pick * len(_bad()))]

    def run(trial: Trial) -> Outcome:
        (bare(trial) / "params.yaml").unlink()
        case.lay(trial.folder)
        return judged(trial, trial.call("check", prepare=limit(resource.RLIMIT_AS, 16 << 30)), REFUSE)

    return Case(kind, f"params.yaml: {case.name}, then ./stage check", run)


def _spoiled(tree: dict[str, Any], pick: float, choice: float, twist: int) -> tuple[str, str]:
    """Changes one value or key of the tree; what it did, and what must come of it."""
    places = [path for path in leaves(tree) if not str(path[0]).startswith("x-")]  # which nothing reads
    path = places[int(pick * len(places))]
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key, where = path[-1], ".".join(map(str, path))
    if choice < 0.15 and isinstance(holder, dict):
        value = holder.pop(key)
        holder[f"{key}s"] = value
        return f"{where} is written {key}s", REFUSE
    if choice < 0.2 and isinstance(holder, dict):
        del holder[key]
        return f"{where} is left out", EITHER
    value, wanted = _wrong(str(next(part for part in reversed(path) if isinstance(part, str))), holder[key], twist)
    holder[key] = value
    return f"{where} = {str(value)[:60]!r}", wanted


def _wrong(key: str, value: Any, twist: int) -> tuple[Any, str]:
    rng = random.Random(twist)
    if isinstance(value, bool):
        return rng.choice(["perhaps", 3, [True], {"a": 1}, 0.5]), REFUSE
    if isinstance(value, int | float):
        if key in SIZES and rng.random() < 0.25:
            return rng.choice(HUGE), REFUSE
        if rng.random() < 0.2:
            return -1, EITHER if key in SIGNED else REFUSE
        if rng.random() < 0.15:
            return rng.choice([0, None, 2, 1e-300]), EITHER
        return rng.choice(NOT_NUMBERS), REFUSE
    if isinstance(value, str):
        if rng.random() < 0.3:
            return rng.choice(["", " ", "\0", "a" * 5000, "nonesuch", "../..", "ä", "$HOME"]), EITHER
        return rng.choice(NOT_WORDS), REFUSE
    return rng.choice(["text", {"a": 1}, 2**70]), EITHER


def leaves(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values that are no mappings or lists."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, part in children:
        if isinstance(part, dict | list) and part:
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key)


def bare(trial: Trial) -> Path:
    """A folder with the code and the graph, and nothing made yet."""
    trial.folder.mkdir()
    for name in ("params.yaml", "dvc.yaml", "stage"):
        shutil.copy2(trial.template / name, trial.folder / name)
    for name in ("diffcore", "tasks"):
        (trial.folder / name).symlink_to(trial.template / name)
    return trial.folder


def load(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return copy.deepcopy(YAML(typ="safe").load(path.read_text()))


def dump(tree: dict[str, Any], path: Path) -> None:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False
    with open(path, "w") as file:
        yaml.dump(tree, file)


def _bytes(content: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, rng: _put(path, content(path.read_bytes(), rng)) and None


def _put(path: Path, content: bytes) -> bool:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return bool(path.write_bytes(content)) or True


def _replaced(make: Callable[[Path], Any]) -> Callable[[Path, random.Random], None]:
    def change(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return change


BOMB = "a0: &a0 [1]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12))

FILES: dict[str, tuple[Callable[[Path, random.Random], None], str]] = {
    "missing": (lambda path, rng: path.unlink(), REFUSE),
    "empty": (_bytes(lambda old, rng: b""), REFUSE),
    "a folder": (_replaced(Path.mkdir), REFUSE),
    "a fifo": (_replaced(os.mkfifo), REFUSE),
    "a link to itself": (_replaced(lambda path: path.symlink_to(path.name)), REFUSE),
    "a link to nowhere": (_replaced(lambda path: path.symlink_to("nowhere")), REFUSE),
    "/dev/zero": (_replaced(lambda path: path.symlink_to("/dev/zero")), REFUSE),
    "not UTF-8": (_bytes(lambda old, rng: b"\xff\xfe" + old), REFUSE),
    "with a byte order mark": (_bytes(lambda old, rng: b"\xef\xbb\xbf" + old), EITHER),
    "UTF-16": (_bytes(lambda old, rng: old.decode().encode("utf-16")), EITHER),
    "with zeros": (_bytes(lambda old, rng: old[:50] + b"\0\0" + old[50:]), REFUSE),
    "random bytes": (_bytes(lambda old, rng: rng.randbytes(500)), REFUSE),
    "cut off": (_bytes(lambda old, rng: old[: rng.randrange(10, len(old) - 10)]), EITHER),
    "a flipped bit": (_bytes(lambda old, rng: _flipped(old, rng)), EITHER),
    "a list": (_bytes(lambda old, rng: b"- 1\n- 2\n"), REFUSE),
    "a number": (_bytes(lambda old, rng: b"7\n"), REFUSE),
    "an alias bomb": (_bytes(lambda old, rng: BOMB.encode() + old), REFUSE),
    "an alias bomb under an x- key": (_bytes(lambda old, rng: b"x-b:\n  " + BOMB.replace("\n", "\n  ").encode() + b"\n" + old), EITHER),
    "deeply nested": (_bytes(lambda old, rng: b"x-deep: " + b"[" * 20000 + b"]" * 20000 + b"\n" + old), EITHER),
    "deeply nested in a section": (_bytes(lambda old, rng: old + b"\ndata: " + b"{a: " * 5000 + b"1" + b"}" * 5000), REFUSE),
    "two documents": (_bytes(lambda old, rng: old + b"\n---\na: 1\n"), REFUSE),
    "with a key twice": (_bytes(lambda old, rng: old + b"\nseed: 1\n"), REFUSE),
    "with a Python tag": (_bytes(lambda old, rng: old + b"\nx-t: !!python/object/apply:os.system ['false']\n"), EITHER),
    "with a Python tag as a value": (_bytes(lambda old, rng: old.replace(b"seed: 0", b"seed: !!python/name:os.system", 1)), REFUSE),
    "with keys that are no words": (_bytes(lambda old, rng: old + b"\n? [1, 2]\n: 3\n7: 8\n"), REFUSE),
    "with a null key": (_bytes(lambda old, rng: old + b"\n~: 3\n"), REFUSE),
    "with a date": (_bytes(lambda old, rng: old.replace(b"seed: 0", b"seed: 2026-01-01", 1)), REFUSE),
    "with a binary value": (_bytes(lambda old, rng: old.replace(b"seed: 0", b"seed: !!binary aGVsbG8=", 1)), REFUSE),
    "with a circular alias": (_bytes(lambda old, rng: old + b"\nx-c: &c [*c]\n"), EITHER),
    "with a circular section": (_bytes(lambda old, rng: old + b"\nextra: &c {a: *c}\n"), REFUSE),
    "with tabs": (_bytes(lambda old, rng: old + b"\n\tseed: 1\n"), REFUSE),
    "with Windows line ends": (_bytes(lambda old, rng: old.replace(b"\n", b"\r\n")), TAKE),
    "with comments": (_bytes(lambda old, rng: b"# first\n" + old + b"\n# last"), TAKE),
    "a mapping with a huge integer": (_bytes(lambda old, rng: old.replace(b"seed: 0", b"seed: " + b"9" * 5000, 1)), REFUSE),
    "10 MB of comments": (_bytes(lambda old, rng: b"# x\n" * 2_500_000 + old), EITHER),
}  # fmt: skip


def _flipped(old: bytes, rng: random.Random) -> bytes:
    content = bytearray(old)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _check_file(
    trial: Trial, change: Callable[[Path, random.Random], None], wanted: str, rng: random.Random
) -> Outcome:
    folder = bare(trial)
    change(folder / "params.yaml", rng)
    return judged(trial, trial.call("check", prepare=limit(resource.RLIMIT_AS, 16 << 30)), wanted)


# images


def png(width: int, height: int, channels: int = 1, seed: int = 0) -> bytes:
    """A picture of random pixels, made by hand."""
    rng = random.Random(seed)
    rows = b"".join(b"\0" + rng.randbytes(width * channels) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _bomb() -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        + _chunk(b"IEND", b"")
    )


def _pictures(root: Path, count: int = 40, classes: int = 0) -> None:
    for k in range(count):
        place = root / f"class{k % classes}" if classes else root
        _put(place / f"{k:03}.png", png(8, 8, seed=k))


def _tar(path: Path, members: list[tuple[str, bytes]], kind: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, kind) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _labelled(count: int = 30, **other: bytes) -> list[tuple[str, bytes]]:
    found = []
    for k in range(count):
        found += [(f"{k:04}.png", png(8, 8, seed=k)), (f"{k:04}.cls", other.get(f"c{k}", b"%d" % (k % 3)))]
    return found


def _npy(descr: str, shape: str, content: bytes) -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + content


Pictures = Callable[[Path, random.Random], str]
"""Fills a folder and gives `data.source`."""


def _folder_with(*extra: tuple[str, bytes], count: int = 40, classes: int = 0) -> Pictures:
    def make(root: Path, rng: random.Random) -> str:
        _pictures(root / "in", count, classes)
        for name, content in extra:
            _put(root / "in" / name, content)
        return f"folder:{root / 'in'}"

    return make


def _shards_of(
    members: Callable[[], list[tuple[str, bytes]]], kind: str = "w", cut: float = 1.0, tail: bytes = b""
) -> Pictures:
    def make(root: Path, rng: random.Random) -> str:
        path = _tar(root / "in" / "a.tar", members(), kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(cut * len(content))] + tail)
        return f"shards:{path}"

    return make


def _linked(target: str) -> Pictures:
    def make(root: Path, rng: random.Random) -> str:
        _pictures(root / "in")
        os.symlink(target, root / "in" / "link.png")
        return f"folder:{root / 'in'}"

    return make


def _named(name: str) -> Pictures:
    return lambda root, rng: name


def _spoiled_tar(root: Path, rng: random.Random) -> str:
    path = _tar(root / "in" / "a.tar", _labelled())
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    return f"shards:{path}"


def _spoiled_picture(root: Path, rng: random.Random) -> str:
    _pictures(root / "in", 120)
    path = root / "in" / f"{rng.randrange(120):03}.png"
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"folder:{root / 'in'}"


IMAGES: dict[str, tuple[Pictures, str]] = {
    "40 whole pictures": (_folder_with(), TAKE),
    "40 in 4 classes": (_folder_with(classes=4), TAKE),
    "no folder": (_named("folder:nowhere"), REFUSE),
    "an empty place": (_named("folder:"), REFUSE),
    "an unknown kind": (_named("pictures:in"), REFUSE),
    "a server's address": (_named("folder:http://example.invalid/x"), REFUSE),
    "a command": (_named("shards:pipe:cat x"), REFUSE),
    "a folder named with a zero": (_named("folder:a\0b"), REFUSE),
    "a name of 5000 letters": (_named("folder:" + "a" * 5000), REFUSE),
    "nobody's home": (_named("folder:~nobody-of-that-name/x"), REFUSE),
    "an empty folder": (lambda root, rng: (root / "in").mkdir() or f"folder:{root / 'in'}", REFUSE),
    "a file instead of a folder": (lambda root, rng: _put(root / "in", b"x") and f"folder:{root / 'in'}", REFUSE),
    "only text": (_folder_with(("a.txt", b"x"), count=0), REFUSE),
    "text named .png": (_folder_with(("t.png", b"not a picture")), EITHER),
    "an empty .png": (_folder_with(("e.png", b"")), EITHER),
    "nothing but broken pictures": (_folder_with(("e.png", b""), ("f.png", b"x"), count=0), REFUSE),
    "a folder named x.png": (_folder_with(("x.png/y.txt", b"x")), EITHER),
    "a picture of another size": (_folder_with(("z.png", png(5, 9))), REFUSE),
    "a picture in colour among grey ones": (_folder_with(("z.png", png(8, 8, 3))), REFUSE),
    "a picture of one pixel": (_folder_with(("z.png", png(1, 1))), REFUSE),
    "a decompression bomb": (_folder_with(("z.png", _bomb())), EITHER),
    "a bomb alone": (_folder_with(("z.png", _bomb()), count=0), REFUSE),
    "a HEIC picture": (_folder_with(("h.heic", b"\0\0\0\x18ftypheic" + b"\0" * 50)), EITHER),
    "a picture beside class folders": (_folder_with(("stray.png", png(8, 8)), classes=3), REFUSE),
    "a link to nowhere": (_linked("nowhere"), EITHER),
    "a link to itself": (_linked("link.png"), EITHER),
    "a link to its own folder": (_linked("."), EITHER),
    "a link to /dev/zero": (_linked("/dev/zero"), EITHER),
    "a name that is not UTF-8": (lambda root, rng: _folder_with()(root, rng) if not os.rename(_one(root), os.fsencode(root / "in") + b"/\xff.png") else "", EITHER),
    "a name with a line's end": (_folder_with(("a\nb.png", png(8, 8))), EITHER),
    "a broken dataset.json": (_folder_with(("dataset.json", b"{")), EITHER),
    "a dataset.json of something else": (_folder_with(("dataset.json", b"[1, 2]")), EITHER),
    "a dataset.json with labels for others": (_folder_with(("dataset.json", b'{"labels": [["x.png", 0]]}')), EITHER),
    "a dataset.json with wrong labels": (_folder_with(("dataset.json", b'{"labels": [["000.png", "a"], ["001.png", -3]]}')), EITHER),
    "a metadata.csv that is none": (_folder_with(("metadata.csv", b"\xff\0,,,\n")), EITHER),
    "a metadata.csv for others": (_folder_with(("metadata.csv", b"file_name,label\nx.png,a\n")), EITHER),
    "a broken metadata.jsonl": (_folder_with(("metadata.jsonl", b'{"file_name": "000.png"\n')), EITHER),
    "a metadata.jsonl with odd labels": (_folder_with(("metadata.jsonl", b'{"file_name": "000.png", "label": [1]}\n')), EITHER),
    "a fifo": (lambda root, rng: _folder_with()(root, rng) if not os.mkfifo(_place(root) / "f.png") else "", EITHER),
    "whole shards": (_shards_of(_labelled), TAKE),
    "no such shard": (_named("shards:in/none.tar"), REFUSE),
    "a pattern without shards": (_named("shards:in/*.tar"), REFUSE),
    "a pattern with open braces": (_named("shards:in/{a,b.tar"), REFUSE),
    "a huge range of shards": (_named("shards:in/{0..999999999999}.tar"), REFUSE),
    "an empty tar": (_shards_of(list), REFUSE),
    "a file of no bytes": (_shards_of(_labelled, cut=0.0), REFUSE),
    "a tar cut off": (_shards_of(_labelled, cut=0.5), REFUSE),
    "a tar with a tail": (_shards_of(_labelled, tail=b"more"), REFUSE),
    "a compressed tar": (_shards_of(_labelled, kind="w:gz"), REFUSE),
    "a tar with a pickle": (_shards_of(lambda: [("0.png", png(8, 8)), ("0.pkl", b"\x80\x04.")]), REFUSE),
    "a tar with a path out of it": (_shards_of(lambda: [("../../out.png", png(8, 8)), *_labelled()]), EITHER),
    "labels below 0": (_shards_of(lambda: _labelled(c3=b"-1")), EITHER),
    "a label of 30 digits": (_shards_of(lambda: _labelled(c3=b"9" * 30)), EITHER),
    "a label of 9000 digits": (_shards_of(lambda: _labelled(c3=b"9" * 9000)), EITHER),
    "a label that is a word": (_shards_of(lambda: _labelled(c3=b"cat")), EITHER),
    "a sample without a picture": (_shards_of(lambda: [*_labelled(), ("x.cls", b"1")]), REFUSE),
    "one label missing": (_shards_of(lambda: [*_labelled(), ("zz.png", png(8, 8))]), REFUSE),
    "an npy of objects": (_shards_of(lambda: [("0.npy", _npy("|O", "(1,)", b"\x80\x04N."))]), REFUSE),
    "an npy of floats": (_shards_of(lambda: [("0.npy", _npy("<f4", "(1, 8, 8, 1)", b"\0" * 256))]), REFUSE),
    "an npy shorter than it says": (_shards_of(lambda: [("0.npy", _npy("|u1", "(9, 8, 8, 1)", b"\0" * 64))]), REFUSE),
    "an npy of a huge shape": (_shards_of(lambda: [("0.npy", _npy("|u1", "(10**18, 8, 8, 1)", b"\0" * 64))]), REFUSE),
    "an npy of a negative shape": (_shards_of(lambda: [("0.npy", _npy("|u1", "(-1, 8, 8, 1)", b"\0" * 64))]), REFUSE),
    "a .json that is none": (_shards_of(lambda: [("0.png", png(8, 8)), ("0.json", b"{")]), REFUSE),
    "bytes changed in a tar": (_spoiled_tar, EITHER),
    "a bit flipped in a picture": (_spoiled_picture, EITHER),
}  # fmt: skip


def _one(root: Path) -> bytes:
    _pictures(root / "in")
    return os.fsencode(root / "in" / "000.png")


def _place(root: Path) -> Path:
    (root / "in").mkdir(exist_ok=True)
    return root / "in"


def _images(rng: random.Random, number: int, kind: str) -> Case:
    names = list(IMAGES)
    name = (
        names[number % len(names)]
        if number < len(names)
        else rng.choice(["bytes changed in a tar", "a bit flipped in a picture"])
    )
    make, wanted = IMAGES[name]

    def run(trial: Trial) -> Outcome:
        folder = bare(trial)
        tree = load(trial.template / "params.yaml")
        tree["data"] = {**tree["data"], "source": make(folder, rng), "limit": None}
        dump(tree, folder / "params.yaml")
        return _counted(trial, judged(trial, trial.call("shard", prepare=limit(resource.RLIMIT_AS, 16 << 30)), wanted))

    return Case(kind, f"{name}, then ./stage shard", run)


def _counted(trial: Trial, outcome: Outcome) -> Outcome:
    """What was taken must be all that was found, but for what the manifest names; what was refused must leave nothing."""
    made = trial.folder / "artifacts" / "data" / "manifest.json"
    if outcome.verdict != "taken":
        left = [path.name for path in (trial.folder / "artifacts").rglob("*")]
        return outcome if outcome.bad or not left else trial.record.outcome("manual", f"left behind: {left[:5]}")
    told = json.loads(made.read_text())
    whole = told["found"] == told["images"] + sum(each["images"] for each in told["quarantined"])
    return outcome if whole else trial.record.outcome("silent", f"{told['found']} found, {told['images']} written")


# teachers


def teacher(place: Path) -> Path:
    """A small teacher in diffusers' format, made once."""
    if not place.exists():
        import diffusers
        import torch

        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, add_attention=False, **blocks)
        making = place.with_name(f"{place.name}-{os.getpid()}")
        diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(100)).save_pretrained(making)
        try:
            os.rename(making, place)
        except OSError:  # another job was quicker
            remove(making)
    return place


ODD = (None, -1, 0, 7, 10**12, 1e300, "", "nonesuch", [], [8, 8], {"a": 1}, True, [None], "UpBlock2D")


def _teacher(rng: random.Random, number: int, kind: str) -> Case:
    what = ["a key changed", "a file damaged", "the weights", "a file gone"][number % 4]
    twist = rng.randrange(10**6)

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        given = folder / "given"
        _made_in_child(trial, trial.template.parent / "given")
        shutil.copytree(trial.template.parent / "given", given)
        told, wanted = TEACHERS[what](given, random.Random(twist))
        trial.record.commands.append(told)
        tree = load(folder / "params.yaml")
        tree["teachers"]["teacher"] = {"from": "given"}
        dump(tree, folder / "params.yaml")
        return judged(trial, trial.call("train", "teacher", prepare=limit(resource.RLIMIT_AS, 24 << 30)), wanted)

    return Case(kind, f"a teacher: {what} ({twist}), then ./stage train teacher", run)


def _made_in_child(trial: Trial, place: Path) -> None:
    """Making it computes, which the warm process must not."""
    if place.exists():
        return
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            teacher(place)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _key_changed(given: Path, rng: random.Random) -> tuple[str, str]:
    path = rng.choice([given / "unet" / "config.json", given / "scheduler" / "scheduler_config.json"])
    tree = json.loads(path.read_text())
    key, value = rng.choice(sorted(tree)), rng.choice(ODD)
    if rng.random() < 0.2:
        del tree[key]
        value = "(left out)"
    else:
        tree[key] = value
    path.write_text(json.dumps(tree))
    return f"{path.relative_to(given)}: {key} = {value!r}", EITHER


def _file_damaged(given: Path, rng: random.Random) -> tuple[str, str]:
    path = rng.choice(sorted(p for p in given.rglob("*") if p.is_file()))
    content = path.read_bytes()
    how = rng.choice(["cut", "garbage", "empty", "a list", "a folder", "not UTF-8"])
    made = {"cut": content[: len(content) // 2], "garbage": rng.randbytes(300), "empty": b"", "a list": b"[1]"}
    path.unlink()
    if how == "a folder":
        path.mkdir()
    else:
        path.write_bytes(made.get(how, b"\xff" + content))
    needed = path.parent != given  # model_index.json is diffusers' own, and not read
    return f"{path.relative_to(given)}: {how}", REFUSE if needed else EITHER


def _weights(given: Path, rng: random.Random) -> tuple[str, str]:
    path = next(given.glob("unet/*.safetensors"))
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    head, body = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    names = sorted(name for name in head if name != "__metadata__")
    name, how = (
        rng.choice(names),
        rng.choice(["nan", "inf", "missing", "renamed", "shape", "pickle", "offsets", "dtype"]),
    )
    if how in ("nan", "inf"):
        start = head[name]["data_offsets"][0]
        body[start : start + 4] = struct.pack("<f", float(how))
    elif how == "pickle":
        path.rename(path.with_name("diffusion_pytorch_model.bin"))
        return "weights as a pickle", REFUSE
    elif how == "missing":
        gone = head.pop(name)["data_offsets"]
        del body[gone[0] : gone[1]]
        for each in head.values():
            if "data_offsets" in each and each["data_offsets"][0] >= gone[1]:
                each["data_offsets"] = [end - (gone[1] - gone[0]) for end in each["data_offsets"]]
    elif how == "renamed":
        head[f"{name}x"] = head.pop(name)
    elif how == "shape":
        head[name]["shape"] = [*head[name]["shape"], 1]
    elif how == "offsets":
        head[name]["data_offsets"] = [0, 10**12]
    else:
        head[name]["dtype"] = "F99"
    told = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + bytes(body))
    return f"weights: {how} of {name}", REFUSE


def _file_gone(given: Path, rng: random.Random) -> tuple[str, str]:
    path = rng.choice(sorted(p for p in given.rglob("*") if p != given))
    remove(path) if path.is_dir() else path.unlink()
    return f"{path.relative_to(given)} is gone", EITHER


TEACHERS: dict[str, Callable[[Path, random.Random], tuple[str, str]]] = {
    "a key changed": _key_changed,
    "a file damaged": _file_damaged,
    "the weights": _weights,
    "a file gone": _file_gone,
}


# command lines

LINES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((), REFUSE),
    (("",), REFUSE),
    (("--help",), TAKE),
    (("measure", "--help"), TAKE),
    (("check",), TAKE),
    (("report",), TAKE),
    (("nonesuch",), REFUSE),
    (("shards",), REFUSE),
    (("shard", "more"), REFUSE),
    (("train",), REFUSE),
    (("train", ""), REFUSE),
    (("evaluate",), REFUSE),
    (("train", "real"), REFUSE),
    (("train", "pd3"), REFUSE),
    (("train", "../pd2"), REFUSE),
    (("train", "pd2", "cd"), REFUSE),
    (("train", "a" * 5000), REFUSE),
    (("train", "--name"), REFUSE),
    (("train", "\udcff"), REFUSE),
    (("check", "--preset", "smoke"), REFUSE),
    (("run", "--force"), REFUSE),
    (("workspace",), REFUSE),
    (("workspace", ""), REFUSE),
    (("workspace", "."), REFUSE),
    (("workspace", ".."), REFUSE),
    (("workspace", "/"), REFUSE),
    (("workspace", "params.yaml"), REFUSE),
    (("workspace", "artifacts"), REFUSE),
    (("workspace", "diffcore/x"), REFUSE),
    (("workspace", "w", "--preset"), REFUSE),
    (("workspace", "w", "--preset", ""), REFUSE),
    (("workspace", "w", "--preset", "nonesuch"), REFUSE),
    (("workspace", "w", "--preset", "../params"), REFUSE),
    (("workspace", "w", "--set"), REFUSE),
    (("workspace", "w", "--set", ""), REFUSE),
    (("workspace", "w", "--set", "="), REFUSE),
    (("workspace", "w", "--set", "=1"), REFUSE),
    (("workspace", "w", "--set", "seed"), REFUSE),
    (("workspace", "w", "--set", "seed=["), REFUSE),
    (("workspace", "w", "--set", "seed=x"), REFUSE),
    (("workspace", "w", "--set", "seed.a=1"), REFUSE),
    (("workspace", "w", "--set", "nonesuch=1"), REFUSE),
    (("workspace", "w", "--set", "evaluate..images=3"), REFUSE),
    (("workspace", "w", "--set", "distill=7"), REFUSE),
    (("workspace", "w", "--set", "seed=!!python/object/apply:os.getpid []"), REFUSE),
    (("workspace", "w", "--set", "teacher={folder: nowhere}"), EITHER),
    (("workspace", "a" * 300), REFUSE),
    (("workspace", "w", "w2"), REFUSE),
    (("publish", "-x"), REFUSE),
    (("--version",), REFUSE),
    (("-h",), TAKE),
)


def _words(rng: random.Random, number: int, kind: str) -> Case:
    if number < len(LINES):
        words, wanted = LINES[number]
    else:
        parts = ["check", "distill", "pd2", "--set", "seed=1", "-", "--", "workspace", "*", "a b", "--help=", "é"]
        words, wanted = tuple(rng.choice(parts) for _ in range(rng.randint(1, 5))), EITHER
        if "workspace" in words or not words:
            words = ("distill", *words)

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        for name in ("presets", ".dvc/config"):
            _borrow(name, folder)
        return judged(trial, trial.call(*words), wanted)

    return Case(kind, f"./stage {' '.join(words)[:80]!r}", run)


def _borrow(name: str, folder: Path) -> None:
    from tests.faults.pipeline import ROOT

    source, target = ROOT / name, folder / name
    if source.is_dir() and not target.exists():
        target.mkdir()
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())

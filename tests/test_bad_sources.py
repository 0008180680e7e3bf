"""Whatever a source may be: it is refused in one line, or what is wrong with it is left out by name. Nothing hangs."""

import io
import json
import os
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.core.errors import UserError
from diffcore.data import selection
from diffcore.data.config import Config
from diffcore.data.write import write


def png(side: int = 4, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it is large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png()[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]


def tall(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def npy(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def tif(mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "TIFF")
    return file.getvalue()


# what is refused: everything about it in one line


def put(root: Path, name: str, content: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def folder(*names: str, content: bytes = b"") -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / "in").mkdir()
        for name in names:
            put(root / "in", name, content)
        return f"folder:{root}/in"

    return make


def tarred(*members: tuple[str, bytes], pattern: str = "x.tar", **options) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        with tarfile.open(root / "x.tar", "w", **options) as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return f"shards:{root}/{pattern}"

    return make


def place(name: str, make: Callable[[Path], object] = lambda path: None, kind: str = "folder") -> Callable[[Path], str]:
    def made(root: Path) -> str:
        make(root / name)
        return f"{kind}:{root}/{name}"

    return made


def member(**fields) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        info = tarfile.TarInfo("0.png")
        for name, value in fields.items():
            setattr(info, name, value)
        (root / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        return f"shards:{root}/x.tar"

    return make


GOOD = png()
SAMPLE = ("0.png", GOOD)

REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "no folder": (place("x"), "there is no folder"),
    "a file": (place("x", lambda p: p.write_bytes(b"")), "is no folder"),
    "an archive": (place("x.zip", lambda p: p.write_bytes(b"PK")), "unpack it"),
    "a fifo": (place("x", os.mkfifo), "is no folder"),
    "a device": (lambda root: "folder:/dev/zero", "is no folder"),
    "a link to itself": (place("x", lambda p: p.symlink_to(p)), "there is no folder|cannot be read"),
    "a broken link": (place("x", lambda p: p.symlink_to(p.parent / "y")), "there is no folder"),
    "a long name": (place("x" * 300), "cannot be read|there is no folder"),
    "a name with a nul": (place("x\0y"), "cannot be read|there is no folder"),
    "a name of two lines": (place("x\ny"), r"there is no folder .*x\\ny"),
    "nobody's home": (lambda root: "folder:~nobody.at.all/x", "cannot be read"),
    "an empty folder": (folder(), "it is empty"),
    "texts": (folder("a.txt", "b.csv"), r"only 1 \.csv \(b\.csv\), 1 \.txt"),
    "hidden images": (folder(".a.png", ".b/c.png"), "only 2 hidden"),
    "only what cannot be read here": (folder("a.heic", "b.heic"), r"only 2 \.heic"),
    "only empty folders": (place("x", lambda p: (p / "a/b").mkdir(parents=True)), "it is empty"),
    "no image at all": (folder("a.png", "b.jpg", content=b"x"), "none of its 2 images can be read .a.png|b.jpg"),
    "a dangling place": (place("x/y/z", lambda p: put(p.parent.parent.parent, "x", b"")), "no folder|cannot be read"),
    "no shard": (place("x.tar", kind="shards"), "there is no shard"),
    "a folder of shards": (place("x.tar", os.mkdir, "shards"), "there is no shard"),
    "a fifo of a shard": (place("x.tar", os.mkfifo, "shards"), "there is no shard"),
    "an endless shard": (lambda root: "shards:/dev/zero", "there is no shard"),
    "no shard of many": (lambda root: f"shards:{root}/x-{{000000..999999999999}}.tar", "there is no shard"),
    "no shard of very many": (lambda root: f"shards:{root}/" + "{a,b}" * 40, "there is no shard"),
    "half a brace": (lambda root: f"shards:{root}/x-{{0..", "there is no shard"),
    "one shard twice": (tarred(SAMPLE, pattern="{x,x}.tar"), "named twice"),
    "overlapping patterns": (tarred(SAMPLE, pattern="{x*,*}.tar"), "named twice"),
    "an empty shard": (place("x.tar", lambda p: p.write_bytes(b""), "shards"), "cannot be read"),
    "a text as a shard": (place("x.tar", lambda p: p.write_bytes(b"x" * 2000), "shards"), "cannot be read"),
    "a tar of nothing": (tarred(), "hold no images"),
    "a tar of latents": (tarred(("0.npy", npy(np.ones((4, 8, 8), np.float32)))), "whole numbers .* not float32"),
    "a tar of 16-bit arrays": (tarred(("0.npy", npy(np.ones((8, 8, 3), np.uint16)))), "must be uint8 .* not uint16"),
    "a tar of channels first": (tarred(("0.npy", npy(np.ones((3, 8, 8), np.uint8)))), r"\[1, 3, 8, 8\]"),
    "a tar of objects": (tarred(("0.npy", npy(np.array([{}]), allow_pickle=True))), "not object"),
    "an array of nothing": (tarred(("0.npy", npy(np.ones((0, 8, 8, 3), np.uint8)))), r"\[0, 8, 8, 3\]"),
    "an array of less than nothing": (
        tarred(("0.npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 4, 4, 3), }\n"))),
        "none of its 1 images",
    ),
    "an array larger than the world": (
        tarred(("0.npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (10**30, 4, 4, 3), }\n"))),
        "none of its 1 images",
    ),
    "an array that says it is huge": (
        tarred(("0.npy", header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30}, 4, 4, 3), }}\n"))),
        "shorter or longer",
    ),
    "an array of unfinished words": (tarred(("0.npy", header("{'descr': '''\n"))), "header of the .npy cannot be read"),
    "an array of deep words": (tarred(("0.npy", header("(" * 5000))), "header of the .npy cannot be read"),
    "a label below none": (tarred(("0.cls", b"-1"), SAMPLE), "a label is not in 0"),
    "a label of letters": (tarred(("0.cls", b"cat"), SAMPLE), "not a whole number"),
    "a label of python": (tarred(("0.cls", b"1_0"), SAMPLE), "not a whole number"),
    "a label too large": (tarred(("0.cls", b"65536"), SAMPLE), "a label is not in 0"),
    "a label of text": (tarred(("0.json", json.dumps({"label": "cat"}).encode()), SAMPLE), "not a whole number"),
    "a label that is not JSON": (tarred(("0.json", b"{"), SAMPLE), "none of its 1 images"),
    "a label without end": (tarred(("0.json", b"[" * 100_000), SAMPLE), "none of its 1 images"),
    "half a label": (tarred(("0.cls", b"1"), SAMPLE, ("1.png", GOOD)), "label all images or none"),
    "a pickle": (tarred(SAMPLE, ("0.pkl", b"")), "unknown kind"),
    "two images of one name": (tarred(SAMPLE, ("0.jpg", GOOD)), "must have one part"),
    "a member of no name": (tarred((".png", GOOD)), "unknown kind"),
    "a link": (member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link"),
    "a hard link": (member(type=tarfile.LNKTYPE, linkname="/etc/passwd"), "link"),
    "a device in a tar": (member(type=tarfile.CHRTYPE), "device"),
    "a fifo in a tar": (member(type=tarfile.FIFOTYPE), "device"),
    "a member larger than its tar": (member(size=1 << 40), "cannot be read"),
    "a member larger than any file": (member(size=1 << 80), "cannot be read"),
    "a sparse member": (member(type=tarfile.GNUTYPE_SPARSE), "cannot be read|sparse"),
    "a picture of another kind": (tarred(("0.jpg", GOOD)), "none of its 1 images"),
    "an array with a shorter label": (
        tarred(("0.cls.npy", npy(np.zeros(2, np.int64))), ("0.npy", npy(np.ones((3, 4, 4, 3), np.uint8)))),
        "2 labels for 3 images",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_source_is_one_line(tmp_path, case):
    make, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as caught:
        write(Config(make(tmp_path)), tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


# what is left out, by name

SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda p: p.write_bytes(b""), "cannot identify"),
    "text": (lambda p: p.write_bytes(b"hello"), "cannot identify"),
    "half an image": (lambda p: p.write_bytes(png(64)[:4000]), "OSError"),
    "half a jpeg": (lambda p: p.write_bytes(png(64, "JPEG")[:900]), "OSError"),
    "a wrong checksum": (lambda p: p.write_bytes(GOOD[:45] + b"\xff" + GOOD[46:]), "Error"),
    "postscript": (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot identify"),
    "a drawing": (lambda p: p.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot identify"),
    "a fifo": (os.mkfifo, "no regular file"),
    "a link to an endless device": (lambda p: p.symlink_to("/dev/zero"), "no regular file"),
    "a broken link": (lambda p: p.symlink_to(p.parent / "nowhere"), "No such file"),
    "a link to itself": (lambda p: p.symlink_to(p), "OSError"),
    "a hundred megapixels": (lambda p: p.write_bytes(claiming(10_000, 10_000)), "DecompressionBomb"),
    "four hundred megapixels": (lambda p: p.write_bytes(claiming(20_000, 20_000)), "DecompressionBomb"),
    "an image of no width": (lambda p: p.write_bytes(claiming(0, 4)), "Error"),
    "an image longer than can be resized": (lambda p: p.write_bytes(tall(1, 60_000)), "too long for its width"),
    "a file larger than memory": (lambda p: (p.write_bytes(GOOD), os.truncate(p, 1 << 40)), "bytes; at most"),
    "32 bits": (lambda p: p.write_bytes(tif("F")), "32-bit"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_bad_image_is_left_out_by_name(tmp_path, case):
    make, said = SPOILED[case]
    for number in range(3):
        put(tmp_path / "in", f"{number}.png", GOOD)
    make(tmp_path / "in/bad.png")
    manifest = write(Config(f"folder:{tmp_path}/in", size=64, channels=3, tolerance=0.3), tmp_path / "out")
    (bad,) = manifest.quarantined
    assert bad["name"] == "bad.png"
    assert said in bad["reason"]
    assert bad["reason"].isprintable()
    assert manifest.images == 3


@pytest.mark.parametrize(
    "name", ["/etc/0", "../../0", "a/../../0", "a" * 90 + "/0", "caf\udce9/0", "two\nlines/0", "\x1b[31m/0"]
)
def test_no_name_in_a_tar_is_a_path(tmp_path, name):
    (tmp_path / "deep").mkdir()
    source = tarred((f"{name}.png", GOOD), ("x.png", b"bad"))(tmp_path / "deep")
    before = sorted(tmp_path.rglob("*"))
    manifest = write(Config(source, tolerance=0.5), tmp_path / "out")
    assert manifest.images == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if "out" not in path.parts] == before
    for entry in selection.find(Config(source)).entries:
        assert entry.name.isprintable()


def test_an_image_too_large_to_be_safe_is_left_out_also_where_warnings_only_warn(tmp_path):
    put(tmp_path / "in", "0.png", GOOD)
    put(tmp_path / "in", "bad.png", claiming(10_000, 10_000))
    with warnings.catch_warnings(record=True) as warned:
        warnings.resetwarnings()
        manifest = write(Config(f"folder:{tmp_path}/in", tolerance=0.5), tmp_path / "out")
    assert "DecompressionBomb" in manifest.quarantined[0]["reason"]
    assert not warned


def test_a_block_of_no_images_is_left_out_by_name(tmp_path):
    source = tarred(("0.npy", npy(np.ones((0, 4, 4, 3), np.uint8))), ("1.npy", npy(np.ones((4, 4, 4, 3), np.uint8))))
    manifest = write(Config(source(tmp_path), tolerance=0.3), tmp_path / "out")
    assert (manifest.found, manifest.images) == (5, 4)
    assert [each["name"] for each in manifest.quarantined] == ["x.tar//0"]


@pytest.mark.parametrize("denied", ["in", "in/a"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, denied):
    put(tmp_path / "in/a", "0.png", GOOD)
    put(tmp_path / "in/b", "0.png", GOOD)
    real = os.scandir

    def scandir(path):
        if Path(path) == tmp_path / denied:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=rf"{denied} cannot be read \(Permission denied\)"):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")


def test_damaged_tars_are_refused_or_read_and_nothing_else(tmp_path):
    label = ("0.cls", b"1"), ("0.png", GOOD), ("1.cls", b"0"), ("1.npy", npy(np.ones((4, 4, 3), np.uint8)))
    source = tarred(*label)(tmp_path)
    whole = (tmp_path / "x.tar").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        harmed = bytearray(whole)
        for place in rng.integers(0, 3000, 3):
            harmed[place] = rng.integers(0, 256)
        (tmp_path / "x.tar").write_bytes(harmed)
        try:
            write(Config(source, tolerance=0.6), tmp_path / "out")
        except UserError as error:
            assert str(error).isprintable()  # noqa: PT017

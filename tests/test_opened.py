"""A shard is vouched for as a whole when it is opened, and image by image when it is read."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import tars
from diffcore.data.config import Config
from diffcore.data.manifest import Manifest, Shard
from diffcore.data.opened import open_shard
from diffcore.data.write import write

COUNT = 20


@pytest.fixture(params=["block", "image"])
def data(request, tmp_path, monkeypatch) -> Path:
    """20 images of two classes in one shard, four blocks or 20 members."""
    monkeypatch.setattr("diffcore.data.write.BLOCK", 6)
    for number in range(COUNT):
        path = tmp_path / "in" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(path)
    write(Config(f"folder:{tmp_path}/in", members=request.param), tmp_path / "out")
    return tmp_path / "out"


def pixels(opened, rows: list[int]) -> np.ndarray:
    with ThreadPoolExecutor(2) as pool:
        return opened.pixels(rows, pool)


def test_nothing_is_read_again_of_a_file_that_gave_its_name_to_another(data):
    """It stays open: a shard stage that runs beside a training changes no batch of it."""
    opened = open_shard(data, Manifest.read(data), 0)
    whole = pixels(opened, list(range(COUNT)))
    (data / "new").write_bytes(b"other")
    os.replace(data / "new", data / "000000.tar")
    assert np.array_equal(pixels(opened, list(range(COUNT))), whole)
    assert np.array_equal(pixels(opened, [7, 3, 3]), whole[[7, 3, 3]])


@pytest.mark.parametrize("harm", ["bit", "cut"])
def test_an_image_that_changes_after_its_shard_was_opened_is_refused_and_no_other(data, harm):
    opened, path = open_shard(data, Manifest.read(data), 0), data / "000000.tar"
    whole, start = pixels(opened, list(range(COUNT))), int(opened._starts[COUNT - 1])
    if harm == "cut":
        os.truncate(path, start + 3)
    else:
        content = bytearray(path.read_bytes())
        content[start + 20] ^= 1
        with open(path, "r+b") as file:
            file.write(content)
    assert np.array_equal(pixels(opened, list(range(COUNT - 1))), whole[:-1])
    with pytest.raises(UserError, match=r"000000\.tar was changed while it was in use: run the shard stage again"):
        pixels(opened, [0, COUNT - 1])


def test_the_file_of_a_shard_is_closed_with_it(data):
    manifest = Manifest.read(data)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        opened = open_shard(data, manifest, 0)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        del opened
        assert len(os.listdir("/proc/self/fd")) == before
    (data / "000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="not what the manifest says"):
        open_shard(data, manifest, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def slow(content: bytes) -> list[tuple[str, str, int, bytes]]:
    samples = tars.members(io.BytesIO(content), "x")
    places = [(key, word, *place) for key, parts in samples for word, place in parts.items()]
    return [(key, word, start, content[start : start + size]) for key, word, start, size in places]


def test_our_shards_are_plain_and_read_as_tarfile_reads_them(data):
    content = (data / "000000.tar").read_bytes()
    assert list(tars.plain(io.BytesIO(content))) == slow(content)


OTHERS = {
    "long names": [("a" * 120 + "/0.png", b"1"), ("a" * 120 + "/1.png", b"2")],
    "names that are not ASCII": [("é.png", b"1")],
    "folders of one name": [("a/0.png", b"12"), ("b/0.cls", b"3"), ("b/0.png", b"")],
    "capitals and points": [("a.b/0.PNG", b"1"), ("0.cls.npy", b"2"), ("0.npy", b"4")],
    "lengths of whole blocks": [("0.png", bytes(1024)), ("1.png", bytes(512)), ("1.cls", b"1")],
    "nothing": [],
}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("case", OTHERS)
def test_other_tars_are_read_as_tarfile_does_or_left_to_it(case, kind):
    content = tar(OTHERS[case], kind)
    try:
        parts = list(tars.plain(io.BytesIO(content)))
    except tars.Uncommon:
        assert case in ("long names", "names that are not ASCII")
        return
    assert parts == slow(content)


@pytest.mark.parametrize("name", [".png", "0.pkl", "0"])
def test_what_is_of_an_unknown_kind_or_cut_off_is_left_to_tarfile(name):
    for content in (tar([(name, b"1")], tarfile.USTAR_FORMAT), tar([("0.png", b"1")], tarfile.USTAR_FORMAT)[:512]):
        with pytest.raises(tars.Uncommon):
            list(tars.plain(io.BytesIO(content)))


ODD = {
    "a long name": ([("a" * 120 + "/0.npy", True), ("1.npy", True)], None),
    "a name that is not ASCII": ([("é.npy", True)], None),
    "parts that are not side by side": ([("0.npy", True), ("1.npy", True), ("0.cls", False)], "not side by side"),
    "two parts of one kind": ([("0.npy", True), ("0.npy", True)], r"two parts \.npy"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_vouched_shard_that_is_not_plain_is_read_by_tarfile_or_refused_in_its_words(tmp_path, case):
    members, said = ODD[case]
    block = io.BytesIO()
    np.save(block, np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3))
    content = tar([(name, block.getvalue() if is_image else b"1") for name, is_image in members], tarfile.PAX_FORMAT)
    (tmp_path / "0.tar").write_bytes(content)
    count = 2 * sum(is_image for _, is_image in members)
    shard = Shard("0.tar", count, len(content), disk.sha256(tmp_path / "0.tar"))
    form = {"filter": "box", "shape": (3, 5, 4), "classes": None, "members": "block"}
    counts = {"found": count, "images": count, "enlarged": 0, "ignored": 0, "quarantined": (), "splits": None}
    manifest = Manifest(schema=1, source="", license=None, shards=(shard,), digest="", **form, **counts)
    if said:
        with pytest.raises(UserError, match=said):
            open_shard(tmp_path, manifest, 0)
        return
    expected = np.concatenate([np.load(io.BytesIO(block.getvalue()))] * (count // 2))
    assert np.array_equal(pixels(open_shard(tmp_path, manifest, 0), list(range(count))), expected)


def tar(members: list[tuple[str, bytes]], kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as out:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return file.getvalue()

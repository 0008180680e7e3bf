"""A shard is vouched for as a whole when it is opened, and image by image when it is read."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.core.errors import UserError
from diffcore.data import tars
from diffcore.data.config import Config
from diffcore.data.manifest import Manifest
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


def test_our_shards_are_indexed_without_tarfile_as_tarfile_would(data, monkeypatch):
    content = (data / "000000.tar").read_bytes()
    slow = tars.members(io.BytesIO(content), "x")
    monkeypatch.setattr(tars, "members", lambda *words: pytest.fail("tarfile was asked"))
    assert tars.index(memoryview(content), "x") == slow


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
def test_other_tars_are_indexed_as_tarfile_does(case, kind):
    content = tar(OTHERS[case], kind)
    assert tars.index(memoryview(content), "x") == tars.members(io.BytesIO(content), "x")


REFUSED = {
    "two parts of one kind": [("0.png", b"1"), ("0.png", b"2")],
    "parts that are not side by side": [("0.png", b"1"), ("1.png", b"2"), ("0.cls", b"2")],
    "an unknown kind": [("0.png", b"1"), ("0.pkl", b"2")],
    "no name": [(".png", b"1")],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_tarfile_s_reader_refuses_is_refused(case):
    content = tar(REFUSED[case], tarfile.USTAR_FORMAT)
    with pytest.raises(UserError) as slow:
        tars.members(io.BytesIO(content), "x")
    with pytest.raises(UserError) as quick:
        tars.index(memoryview(content), "x")
    assert str(quick.value) == str(slow.value)
    with pytest.raises(UserError, match=r"ends early|cannot be read"):
        tars.index(memoryview(tar([("0.png", b"1")], tarfile.USTAR_FORMAT)[:1024]), "x")


def tar(members: list[tuple[str, bytes]], kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as out:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return file.getvalue()

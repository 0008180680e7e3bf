"""Shards are written whole or not at all, the same bytes each time, and read only if nothing about them has changed."""

import dataclasses
import errno
import io
import json
import os
import pickle
import re
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import fitting, pixels, selection, sources, workers
from diffcore.data.config import Config
from diffcore.data.manifest import Manifest, Shard, digest
from diffcore.data.read import Images, StreamedImages, load_resident, open_images, open_shard
from diffcore.data.sources import Entry
from diffcore.data.tally import Tally
from diffcore.data.workers import in_order
from diffcore.data.write import _npy, write


def picture(number: int, side: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, channels), dtype=np.uint8)


def album(root: Path, count: int, side: int = 6, channels: int = 3) -> Path:
    """`count` pictures in three classes: number i is picture(i), of class i % 3."""
    for number in range(count):
        path = root / "abc"[number % 3] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, side, channels).squeeze()).save(path)
    return root


def rows(pixels: torch.Tensor) -> list[bytes]:
    return [row.permute(1, 2, 0).numpy().tobytes() for row in pixels]


def content(folder: Path) -> dict[str, str]:
    return {path.name: disk.sha256(path) for path in sorted(folder.iterdir())}


def resealed(folder: Path, members: list[tuple[str, bytes]]) -> Manifest:
    """Puts a tar of `members` in the place of the only shard, with a manifest that vouches for it."""
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    value = json.loads((folder / "manifest.json").read_text())
    value["shards"][0] |= {
        "sha256": disk.sha256(folder / "000000.tar"),
        "bytes": os.path.getsize(folder / "000000.tar"),
    }
    seen = ("schema", "images", "shape", "classes", "members", "shards")
    value["digest"] = disk.digest({name: value[name] for name in seen})
    disk.write_json(folder / "manifest.json", value)
    return Manifest.read(folder)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_comes_back_exactly_with_its_label(tmp_path, members, channels):
    album(tmp_path / "in", 70, channels=channels)
    seen = []
    manifest = write(
        Config(f"folder:{tmp_path}/in", members=members),
        tmp_path / "out",
        on_progress=lambda done, total: seen.append((done, total)),
        shard_bytes=3000,
    )
    assert (manifest.found, manifest.images, manifest.shape) == (70, 70, (channels, 6, 6))
    assert sum(shard.images for shard in manifest.shards) == 70
    assert Manifest.read(tmp_path / "out") == manifest
    assert seen[-1] == (70, 70)
    assert len(seen) > 1
    images = load_resident(tmp_path / "out")
    labels = {picture(number, channels=channels).tobytes(): number % 3 for number in range(70)}
    assert len(images) == len(labels) == 70
    assert {row: int(label) for row, label in zip(rows(images.pixels), images.labels)} == labels
    assert images.classes == ("a", "b", "c")
    assert images.counts == tuple(shard.images for shard in manifest.shards)


def test_digits_are_the_default_and_go_in_blocks(tmp_path):
    manifest = write(Config("digits", license="CC BY 4.0"), tmp_path / "out")
    images = load_resident(tmp_path / "out")
    assert (manifest.images, manifest.shape, manifest.members, manifest.license) == (
        1797,
        (1, 8, 8),
        "block",
        "CC BY 4.0",
    )
    assert manifest.classes == tuple("0123456789")
    assert images.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # the mean of scikit-learn's table is 4.884 of 16 levels
    assert images.pixels.double().mean() / 255 * 16 == pytest.approx(4.884, abs=0.01)
    with tarfile.open(tmp_path / "out/000000.tar") as tar:
        assert len(tar.getnames()) == 2 * 8  # 1797 images in blocks of 256


def test_a_limit_is_the_beginning_of_the_whole(tmp_path):
    write(Config("digits"), tmp_path / "whole")
    assert write(Config("digits", limit=300), tmp_path / "part").images == 300
    assert torch.equal(load_resident(tmp_path / "part").pixels, load_resident(tmp_path / "whole").pixels[:300])


def test_auto_takes_blocks_for_small_images_only(tmp_path):
    album(tmp_path / "in", 3, side=65)
    assert write(Config(f"folder:{tmp_path}/in"), tmp_path / "65").members == "image"
    assert write(Config(f"folder:{tmp_path}/in", size=64), tmp_path / "64").members == "block"


def test_a_rerun_with_any_number_of_threads_gives_the_same_bytes(tmp_path, monkeypatch):
    album(tmp_path / "in", 150)
    album(tmp_path / "elsewhere", 150)
    monkeypatch.setattr("diffcore.data.write.BLOCK", 50)
    for members in ("block", "image"):
        first = write(Config(f"folder:{tmp_path}/in", members=members), tmp_path / "1", workers=1, shard_bytes=5000)
        monkeypatch.setattr("time.time", lambda: 2e9)
        write(Config(f"folder:{tmp_path}/in", members=members), tmp_path / "2", workers=3, shard_bytes=5000)
        third = write(Config(f"folder:{tmp_path}/elsewhere", members=members), tmp_path / "3", shard_bytes=5000)
        assert len(first.shards) > 1
        assert content(tmp_path / "1") == content(tmp_path / "2")
        assert (first.digest, first.shards) == (third.digest, third.shards)


def test_the_digest_is_of_what_training_sees(tmp_path):
    album(tmp_path / "in", 12)
    config = f"folder:{tmp_path}/in"
    digests = [
        write(each, tmp_path / "out").digest
        for each in (
            Config(config),
            Config(config, limit=11),
            Config(config, channels=1),
            Config(config, size=5),
            Config(config, size=5, filter="box"),
            Config(config, members="image"),
        )
    ]
    assert len(set(digests)) == len(digests)
    assert write(Config(config, flip=True, license="mine"), tmp_path / "out").digest == digests[0]
    os.rename(tmp_path / "in/a", tmp_path / "in/d")
    assert write(Config(config), tmp_path / "out").digest not in digests


@pytest.mark.parametrize("members", ["block", "image"])
def test_our_shards_are_a_source_and_webdataset_reads_them(tmp_path, members):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    album(tmp_path / "in", 40)
    first = write(Config(f"folder:{tmp_path}/in", members=members), tmp_path / "1")
    again = write(Config(f"shards:{tmp_path}/1/*.tar", members=members), tmp_path / "2")
    assert again.shards == first.shards
    assert again.classes == ("0", "1", "2")
    with open(tmp_path / "1/000000.tar", "rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": "000000.tar", "stream": stream}])))
    parts = {name for sample in samples for name in sample if not name.startswith("_")}
    assert len(samples) == (1 if members == "block" else 40)
    assert parts == ({"npy", "cls.npy"} if members == "block" else {"webp", "cls"})


def test_unreadable_images_are_quarantined_by_name(tmp_path):
    album(tmp_path / "in", 200)
    whole = (tmp_path / "in/c/0005.png").read_bytes()
    (tmp_path / "in/c/0005.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/a/0006.png").write_bytes(b"")
    manifest = write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    assert (manifest.found, manifest.images) == (200, 198)
    assert sorted(each["name"] for each in manifest.quarantined) == ["a/0006.png", "c/0005.png"]
    assert all(each["reason"] and each["images"] == 1 for each in manifest.quarantined)
    assert len(load_resident(tmp_path / "out")) == 198


def test_more_than_one_in_a_hundred_is_the_sources_fault(tmp_path):
    album(tmp_path / "in", 199)
    for name in ("c/0005.png", "a/0006.png"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 199 images cannot be read \(.*0005.*\)") as caught:
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/0.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 images"):
        write(Config(f"folder:{tmp_path}/bad"), tmp_path / "out")


def test_all_images_are_labelled_or_none(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("0.npy", None), ("0.cls", b"1"), ("1.npy", None)):
            file = io.BytesIO()
            np.save(file, picture(0))
            member = tarfile.TarInfo(name)
            member.size = len(data or file.getvalue())
            tar.addfile(member, io.BytesIO(data or file.getvalue()))
    with pytest.raises(UserError, match="label all images or none"):
        write(Config(f"shards:{tmp_path}/x.tar"), tmp_path / "out")


def test_enlarged_images_are_counted(tmp_path):
    album(tmp_path / "in", 9, side=4)
    album(tmp_path / "in", 3, side=6)
    assert write(Config(f"folder:{tmp_path}/in", size=5), tmp_path / "out").enlarged == 6


def test_a_writer_that_dies_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    album(tmp_path / "in", 100)

    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out", on_progress=die)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    before = write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        write(Config(f"folder:{tmp_path}/in", size=3), tmp_path / "out", on_progress=die)
    assert Manifest.read(tmp_path / "out") == before


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    album(tmp_path / "in", 100)
    there = []
    real = disk.write_json

    def spy(path: Path, value: object) -> None:
        there.extend(sorted(each.name for each in path.parent.iterdir()))
        real(path, value)

    monkeypatch.setattr(disk, "write_json", spy)
    manifest = write(Config(f"folder:{tmp_path}/in", members="image"), tmp_path / "out", shard_bytes=4000)
    assert there == [shard.name for shard in manifest.shards]


def test_counts_that_do_not_add_up_stop_the_writer(tmp_path, monkeypatch):
    album(tmp_path / "in", 10)
    monkeypatch.setattr("diffcore.data.write._chunks", lambda entries: iter([entries[:-1]]))
    with pytest.raises(RuntimeError, match="10 images found, 9 read"):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")


@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "remove"])
def test_a_changed_shard_is_named(tmp_path, harm):
    album(tmp_path / "in", 60)
    write(Config(f"folder:{tmp_path}/in", members="image"), tmp_path / "out", shard_bytes=4000)
    path = tmp_path / "out/000001.tar"
    whole = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "flip":
        whole[700] ^= 1
        path.write_bytes(whole)
    else:
        path.write_bytes(whole[:-512] if harm == "cut" else whole + bytes(512))
    for read in (Manifest.read, load_resident):
        with pytest.raises(UserError, match=r"000001\.tar is .*run the shard stage again"):
            read(tmp_path / "out")
    if harm == "flip":
        assert Manifest.read(tmp_path / "out", verify=False).images == 60


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", 4),
        ("classes", None),
        ("shape", [1, 6, 6]),
        ("digest", "0"),
        ("schema", 2),
        ("more", 1),
        ("shards", {}),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path, key, value):
    album(tmp_path / "in", 5)
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=r"manifest\.json (was changed|is not a manifest)"):
        Manifest.read(tmp_path / "out")


def test_a_manifest_that_does_not_add_up_is_refused(tmp_path):
    album(tmp_path / "in", 5)
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    value = json.loads(path.read_text()) | {"images": 6}
    value["digest"] = digest(value | {"shards": [Shard(**shard) for shard in value["shards"]]})
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="was changed"):
        Manifest.read(tmp_path / "out")


def test_a_folder_without_a_manifest_holds_no_data(tmp_path):
    with pytest.raises(UserError, match="holds no manifest"):
        load_resident(tmp_path)
    for text in ('{"schema": 1,', "[" * 100_000, "\0"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="not JSON"):
            load_resident(tmp_path)


def test_shard_names_stay_in_the_folder(tmp_path):
    album(tmp_path / "in", 5)
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    value = json.loads(path.read_text())
    value["shards"][0]["name"] = "../000000.tar"
    value["digest"] = disk.digest({n: value[n] for n in ("schema", "images", "shape", "classes", "members", "shards")})
    path.write_text(json.dumps(value))
    os.rename(tmp_path / "out/000000.tar", tmp_path / "000000.tar")
    with pytest.raises(UserError, match="was changed"):
        Manifest.read(tmp_path / "out")


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "npz", "py", "cbor"])
def test_foreign_members_are_refused_and_nothing_is_executed(tmp_path, extension):
    album(tmp_path / "in", 5)
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    with tarfile.open(tmp_path / "out/000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    resealed(tmp_path / "out", [*members, (f"000000000.{extension}", bomb)])
    with pytest.raises(UserError, match=f"{extension}' is of an unknown kind"):
        load_resident(tmp_path / "out")
    resealed(tmp_path / "out", [("000000000.npy", bomb)])
    with pytest.raises(UserError, match="cannot be read"):
        load_resident(tmp_path / "out")
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)  # the bomb was live
    assert (tmp_path / "executed").exists()


def test_a_vouched_shard_of_other_counts_or_shape_is_refused(tmp_path):
    album(tmp_path / "in", 5)
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    labels = _npy(np.zeros(5, "<i8"))
    four, other = np.stack([picture(i) for i in range(4)]), np.zeros((5, 6, 7, 3), np.uint8)
    for block, names, said in (
        (four, labels[:-8].replace(b"(5,)", b"(4,)"), "holds 4 images, the manifest says 5"),
        (four, labels, "5 labels for 4 images"),
        (other, labels, r"its images are \[6, 7, 3\]"),
    ):
        resealed(tmp_path / "out", [("0.cls.npy", names), ("0.npy", _npy(block))])
        with pytest.raises(UserError, match=said):
            load_resident(tmp_path / "out")
    resealed(tmp_path / "out", [("0.npy", _npy(other[:, :, :6]))])
    with pytest.raises(UserError, match="has no labels"):
        load_resident(tmp_path / "out")


def test_a_vouched_image_that_does_not_decode_is_named(tmp_path):
    album(tmp_path / "in", 1)
    write(Config(f"folder:{tmp_path}/in", members="image"), tmp_path / "out")
    resealed(tmp_path / "out", [("0.webp", b"RIFF")])
    with pytest.raises(UserError, match=r"image 0 of .* cannot be read"):
        load_resident(tmp_path / "out")


def test_the_source_is_named_by_its_words_not_by_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    album(tmp_path / "in", 5)
    write(Config("folder:~/in"), tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert Manifest.read(tmp_path / "out").source == "folder:~/in"


@pytest.fixture(scope="module", params=["block", "image"])
def many(request, tmp_path_factory) -> dict[bool, Path]:
    """47 images in many shards, by whether they have labels."""
    root = tmp_path_factory.mktemp(request.param)
    album(root / "in", 47)
    (root / "flat").mkdir()
    for path in (root / "in").rglob("*.png"):
        (root / "flat" / path.name).write_bytes(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffcore.data.write.BLOCK", 5)
        for name in ("in", "flat"):
            written = write(
                Config(f"folder:{root / name}", members=request.param), root / f"{name}-out", shard_bytes=500
            )
            assert len(written.shards) > 5
    return {True: root / "in-out", False: root / "flat-out"}


LOOKS = [[], [0], [46], [3, 3, 40, 0, 3], list(range(46, -1, -1)), torch.randperm(47).tolist() * 2]


@pytest.mark.parametrize("labelled", [True, False])
def test_images_in_memory_and_streamed_are_the_same(many, labelled):
    whole = load_resident(many[labelled])
    fits = 47 * 6 * 6 * 3
    resident, large, small = (open_images(many[labelled], memory, 3) for memory in (fits, fits - 1, 0))
    assert [type(each) for each in (resident, large, small)] == [Images, StreamedImages, StreamedImages]
    for each in (resident, large, small):
        assert (len(each), each.shape, each.classes, each.counts) == (47, (3, 6, 6), whole.classes, whole.counts)
        assert each.labels is None if whole.labels is None else torch.equal(each.labels, whole.labels)
        for look in LOOKS:
            for indices in (look, np.array(look, int), torch.tensor(look, dtype=torch.int64)):
                taken = each.take(indices)
                assert (taken.dtype, taken.shape) == (torch.uint8, (len(look), 3, 6, 6))
                assert torch.equal(taken, whole.pixels[torch.tensor(look, dtype=torch.int64)])
        for size in (1, 6, 47, 100):
            blocks = list(each.blocks(size))
            assert [len(block) for block in blocks] == [min(size, 47 - start) for start in range(0, 47, size)]
            assert torch.equal(torch.cat(blocks), whole.pixels)
        for outside in ([47], [-1], [0, 99]):
            with pytest.raises(IndexError, match=r"0 \.\. 46"):
                each.take(outside)


def test_streamed_images_hold_what_memory_allows_and_read_a_shard_oncein_order(many, monkeypatch):
    manifest = Manifest.read(many[True])
    read, real = [], open_shard
    monkeypatch.setattr("diffcore.data.read.open_shard", lambda *where: read.append(where[-1]) or real(*where))
    one = max(shard.bytes for shard in manifest.shards)
    for memory, most in ((0, 1), (3 * one, 3)):
        images = StreamedImages(many[True], manifest, memory)
        for _ in images.blocks(4):
            assert len(images._opened) <= most
            assert sum(manifest.shards[index].bytes for index in images._opened) <= max(memory, one)
        assert read == list(range(len(manifest.shards)))
        read.clear()


def test_streamed_images_let_go_of_the_shard_asked_for_longest_ago(many):
    manifest = Manifest.read(many[True])
    images = StreamedImages(many[True], manifest, 2 * max(shard.bytes for shard in manifest.shards))
    starts = np.cumsum([0, *images.counts])
    for index in (0, 1, 0, 2):
        images.take([int(starts[index])])
    assert sorted(images._opened) == [0, 2]


def test_a_shard_that_changes_under_streamed_images_is_named(many, tmp_path):
    for path in many[True].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "000003.tar").read_bytes())
    content[600] ^= 1
    (tmp_path / "000003.tar").write_bytes(content)
    looks = (lambda images: images.labels, lambda images: images.take(range(47)), lambda images: list(images.blocks(5)))
    for look in looks:
        with pytest.raises(UserError, match=r"000003\.tar is missing or not what"):
            look(open_images(tmp_path, 0))


FORM = fitting.Form((1, 8, 8), None, True, "lanczos")
CODES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO)
LACKS = [MemoryError("no"), *(OSError(code, os.strerror(code), "a.png") for code in CODES)]


@pytest.mark.parametrize("error", LACKS, ids=repr)
def test_what_the_machine_lacks_is_no_fault_of_the_image_s(error):
    def read():
        raise error

    entry = sources.Entry("a.png", 1, read)
    with pytest.raises(UserError, match=r"a\.png.*the machine is at fault: run the same again"):
        pixels.read([entry], FORM, encoded=False)
    error = OSError("truncated")
    assert pixels.read([entry], FORM, encoded=False)[0].lost == 1


def test_a_manifest_says_what_became_of_the_images_and_how(tmp_path):
    album(tmp_path / "in/train", 9, side=4)
    album(tmp_path / "in/test", 6, side=8)
    (tmp_path / "in/train/a/0000.png").write_bytes(b"no image")
    for name in ("notes.txt", "train/a/x.heic"):
        (tmp_path / "in" / name).write_text("")
    asked = {"size": 6, "channels": 1, "filter": "box", "license": "CC0", "members": "image", "tolerance": 0.1}
    manifest = write(Config(f"folder:{tmp_path}/in", **asked), tmp_path / "out", shard_bytes=500)
    assert len(manifest.shards) > 1
    assert sum(shard.images for shard in manifest.shards) == 14
    for shard in manifest.shards:
        path = tmp_path / "out" / shard.name
        assert (shard.bytes, shard.sha256) == (path.stat().st_size, disk.sha256(path))
    (bad,) = manifest.quarantined
    assert (bad["name"], bad["images"]) == ("train/a/0000.png", 1)
    expected = {
        "schema": 1,
        "source": f"folder:{tmp_path}/in",
        "license": "CC0",
        "found": 15,
        "images": 14,
        "quarantined": (bad,),
        "enlarged": 8,
        "ignored": 2,
        "splits": {"test": 6, "train": 9},
        "filter": "box",
        "shape": (1, 6, 6),
        "classes": ("a", "b", "c"),
        "members": "image",
        "shards": manifest.shards,
        "digest": manifest.digest,
    }
    assert manifest.content() | {"shards": manifest.shards} == expected
    assert Manifest.read(tmp_path / "out") == manifest


@pytest.mark.parametrize("members", ["block", "image"])
def test_a_sample_is_called_by_the_place_of_its_first_image(tmp_path, members, monkeypatch):
    """In all shards together, so that no two are called alike; and all belongs to nobody of this machine."""
    monkeypatch.setattr("diffcore.data.write.BLOCK", 4)
    album(tmp_path / "in", 14)
    manifest = write(Config(f"folder:{tmp_path}/in", members=members), tmp_path / "out", shard_bytes=300)
    assert len(manifest.shards) > 1
    found = []
    for shard in manifest.shards:
        with tarfile.open(tmp_path / "out" / shard.name) as tar:
            for member in tar:
                owner = (member.uname, member.gname, member.mode, member.mtime, member.uid, member.gid)
                assert owner == ("distill", "distill", 0o644, 0, 0, 0)
                found.append(member.name.partition(".")[0])
    assert list(dict.fromkeys(found)) == [f"{number:09d}" for number in range(0, 14, 4 if members == "block" else 1)]


@pytest.mark.parametrize("spoiled", [None, 1, "x", [], {}, [1], "absent"])
def test_a_manifest_of_other_kinds_of_values_is_refused_and_no_surprise(tmp_path, spoiled):
    album(tmp_path / "in", 5)
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    whole = json.loads(path.read_text())
    for key in ("schema", "images", "shape", "classes", "members", "shards", "digest"):
        value = {name: each for name, each in whole.items() if name != key}
        path.write_text(json.dumps(value if spoiled == "absent" else value | {key: spoiled}))
        if key == "schema" and spoiled == 1:
            continue
        with pytest.raises(UserError, match=r"manifest\.json (was changed|is not a manifest)"):
            Manifest.read(tmp_path / "out")
    if spoiled == "absent":
        for key in whole:
            path.write_text(json.dumps({name: each for name, each in whole.items() if name != key}))
            with pytest.raises(UserError, match=r"manifest\.json"):
                Manifest.read(tmp_path / "out")
    path.write_text(json.dumps(spoiled))
    with pytest.raises(UserError, match="is not a manifest"):
        Manifest.read(tmp_path / "out")


@pytest.mark.parametrize("harm", ["cut", "grow", "remove"])
def test_a_shard_of_another_size_is_seen_without_reading_it(tmp_path, harm):
    album(tmp_path / "in", 60)
    write(Config(f"folder:{tmp_path}/in", members="image"), tmp_path / "out", shard_bytes=4000)
    path = tmp_path / "out/000001.tar"
    whole = path.read_bytes()
    path.unlink()
    if harm != "remove":
        path.write_bytes(whole[:-512] if harm == "cut" else whole + bytes(512))
    for look in (lambda: Manifest.read(tmp_path / "out", verify=False), lambda: open_images(tmp_path / "out", 0)):
        with pytest.raises(UserError, match=r"000001\.tar is .*run the shard stage again"):
            look()


def test_a_vouched_shard_of_more_images_or_unannounced_labels_is_refused(tmp_path):
    album(tmp_path / "in", 5)
    six = np.stack([picture(number) for number in range(6)])
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    resealed(tmp_path / "out", [("0.cls.npy", _npy(np.zeros(6, "<i8"))), ("0.npy", _npy(six))])
    with pytest.raises(UserError, match="holds 6 images, the manifest says 5"):
        load_resident(tmp_path / "out")
    write(Config(f"folder:{tmp_path}/in", labels="none"), tmp_path / "out")
    resealed(tmp_path / "out", [("0.cls.npy", _npy(np.zeros(5, "<i8"))), ("0.npy", _npy(six[:5]))])
    with pytest.raises(UserError, match="has unannounced labels"):
        load_resident(tmp_path / "out")
    resealed(tmp_path / "out", [])
    with pytest.raises(UserError, match=r"000000\.tar"):
        load_resident(tmp_path / "out")


class Ending:
    """An entry at which the process that reads it is killed."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_processes_write_the_same_bytes_and_one_that_is_ended_is_a_line(tmp_path, monkeypatch):
    """A picture too large to decode safely is left out in each of them too."""
    monkeypatch.setattr("diffcore.data.write.FEW", 100)
    album(tmp_path / "in", 150)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "in/a/bomb.png")
    started = []
    real = workers.processes
    monkeypatch.setattr(workers, "processes", lambda count, begin: started.append(count) or real(count, begin))
    config = Config(f"folder:{tmp_path}/in", members="image", tolerance=0.1)
    first = write(config, tmp_path / "1", shard_bytes=5000)
    assert not started
    assert write(config, tmp_path / "2", shard_bytes=5000, start=pixels.processes) == first
    assert started == [2]
    assert len(first.quarantined) == 1
    assert content(tmp_path / "1") == content(tmp_path / "2")
    find = selection.find
    ending = [Entry("killed", 200, Ending())]
    monkeypatch.setattr(selection, "find", lambda *words: dataclasses.replace(find(*words), entries=ending))
    monkeypatch.setattr("diffcore.data.fitting.form", lambda *words: FORM)
    with pytest.raises(UserError, match=r"^one of 2 processes that read images was ended from outside; look at"):
        write(config, tmp_path / "3", start=pixels.processes)
    assert not (tmp_path / "3").exists()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_more_is_read_ahead_than_a_few_for_each_thread(workers):
    """Data may be larger than memory."""
    drawn = []
    results = in_order(lambda number: -number, (drawn.append(n) or n for n in range(60)), workers)
    for done in range(5):
        assert next(results) == -done
        assert len(drawn) <= done + 1 + 2 * workers
    results.close()
    assert list(in_order(lambda number: -number, range(20), workers)) == [-number for number in range(20)]


@pytest.mark.parametrize("found", [3, 7, 27, 90, 1797, 50_000])
def test_the_tolerance_that_a_refusal_names_is_enough(found):
    """Rounded up, whatever the counts: what it says is what the next run takes; and no more than it has to be."""
    for bad in {1, 2, 3, found // 3, found // 2, found - 1, found} & set(range(1, found + 1)):
        tally = Tally(found, 0.0)
        tally.lose("a.png", bad, "torn")
        with pytest.raises(UserError) as told:
            tally.judge(None)
        share = re.search(r"set data\.tolerance to ([\d.]+)", str(told.value))
        assert (share is None) == (bad * 1000 > 999 * found)
        if share:
            assert bad / found <= float(share[1]) < bad / found + 0.001
            again = Tally(found, float(share[1]))
            again.lose("a.png", bad, "torn")
            again.judge(None)

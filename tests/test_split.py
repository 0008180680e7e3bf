"""What is held out is written apart and never trained on; what was read is told, and what cannot be read is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import fitting, selection, sources
from diffcore.data.config import Config
from diffcore.data.manifest import Manifest
from diffcore.data.read import load_resident
from diffcore.data.split import Split
from diffcore.data.write import write


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path)


@pytest.fixture
def divided(tmp_path) -> Path:
    """train/ of 30, test/ of 12, val/ of 6 images in the classes a and b."""
    for number in range(48):
        split = "train" if number < 30 else "test" if number < 42 else "val"
        save(tmp_path / "in" / split / "ab"[number % 2] / f"{number:02d}.png", number)
    return tmp_path / "in"


def numbers(folder: Path) -> dict[int, int]:
    """Which pictures a data folder holds, with their labels."""
    images = load_resident(folder)
    known = {picture(number).tobytes(): number for number in range(200)}
    rows = [known[row.permute(1, 2, 0).numpy().tobytes()] for row in images.pixels]
    return dict(zip(rows, images.labels.tolist() if images.labels is not None else [None] * len(rows)))


def told(config: Config, folder: Path, **more) -> list[str]:
    lines: list[str] = []
    write(config, folder, tell=lines.append, **more)
    return lines


@pytest.mark.parametrize("members", ["block", "image"])
def test_what_is_held_out_lies_apart_and_is_not_trained_on(divided, tmp_path, members):
    split = Split(train=["train"], holdout=["Test", "val"])
    manifest = write(Config(f"folder:{divided}", split=split, members=members), tmp_path / "out", shard_bytes=900)
    held = Manifest.read(tmp_path / "out/holdout")
    assert (manifest.images, held.images) == (30, 18)
    assert numbers(tmp_path / "out") == {number: number % 2 for number in range(30)}
    assert numbers(tmp_path / "out/holdout") == {number: number % 2 for number in range(30, 48)}
    assert (manifest.splits, held.splits) == ({"train": 30}, {"test": 12, "val": 6})
    assert manifest.classes == held.classes == ("a", "b")
    assert manifest.shape == held.shape


def test_progress_is_one_count_over_both_parts(divided, tmp_path, monkeypatch):
    monkeypatch.setattr("diffcore.data.write.CHUNK", 5)
    heard = []
    config = Config(f"folder:{divided}", split=Split(holdout=["test"]))
    write(config, tmp_path / "out", on_progress=lambda done, total: heard.append((done, total)))
    assert {total for _, total in heard} == {48}
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1] == (48, 48)
    assert (36, 48) in heard


def test_nothing_is_held_out_where_nothing_is_asked(divided, flat, tmp_path):
    for source in ("digits", f"folder:{divided}", f"folder:{flat}", f"folder:{divided}/train"):
        assert selection.find(Config(source)).held is None
    assert selection.find(Config(f"folder:{divided}", split=Split(holdout=["val"]))).held.images == 6
    annotated = json.dumps({"labels": [["train/a/00.png", 1], ["gone.png", 0]]})
    (divided / "dataset.json").write_text(annotated)
    for name in ("train/b", "test", "val"):
        for path in (divided / name).rglob("*.png"):
            path.unlink()
    for path in sorted((divided / "train/a").iterdir())[1:]:
        path.unlink()
    assert {entry.name for entry in selection.find(Config(f"folder:{divided}")).entries} == {
        "train/a/00.png",
        "gone.png",
    }


def test_training_is_as_if_the_images_held_out_were_not_there(divided, tmp_path):
    whole = write(Config(f"folder:{divided}"), tmp_path / "whole")
    kept = write(Config(f"folder:{divided}", split=Split(holdout=["test", "val"])), tmp_path / "kept")
    for name in ("test", "val"):
        os.rename(divided / name, tmp_path / name)
    alone = write(Config(f"folder:{divided}"), tmp_path / "alone")
    assert kept.digest == alone.digest != whole.digest
    assert not (tmp_path / "alone/holdout").exists()


def test_a_split_that_is_named_nowhere_is_left_out_and_said(divided, tmp_path):
    lines = told(Config(f"folder:{divided}", split=Split(train=["train"])), tmp_path / "out")
    assert len(numbers(tmp_path / "out")) == 30
    assert not (tmp_path / "out/holdout").exists()
    assert any("test/ (12 images) and val/ (6 images): neither trained on nor held out" in line for line in lines)


def test_without_the_key_all_splits_are_trained_on_and_it_is_said(divided, tmp_path):
    lines = told(Config(f"folder:{divided}"), tmp_path / "out")
    assert len(numbers(tmp_path / "out")) == 48
    assert any("trains on all splits" in line and "data.split: {holdout: [test]}" in line for line in lines)


def test_any_folder_at_the_top_can_be_a_split_by_its_name(tmp_path):
    for number in range(8):
        save(tmp_path / "in" / f"fold{number % 4}" / "ab"[number // 4] / f"{number}.png", number)
    split = Split(train=["fold0", "fold1", "fold2"], holdout=["fold3"])
    assert write(Config(f"folder:{tmp_path}/in", split=split), tmp_path / "out").classes == ("a", "b")
    assert sorted(numbers(tmp_path / "out/holdout")) == [3, 7]


@pytest.mark.parametrize("split", [Split(holdout=["exam"]), Split(train=["train", "exam"])])
def test_a_split_that_is_not_there_is_named(divided, tmp_path, split):
    with pytest.raises(UserError, match=r"no split 'exam'; .* has test, train, val"):
        write(Config(f"folder:{divided}", split=split), tmp_path / "out")
    with pytest.raises(UserError, match="is not divided"):
        write(Config(f"folder:{divided}/train/a", split=Split(holdout=["exam"])), tmp_path / "out")


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"train": []},
        {"holdout": []},
        {"holdout": 0.0},
        {"holdout": 1.0},
        {"holdout": float("nan")},
        {"train": ["a"], "holdout": ["A"]},
    ],
)
def test_splits_that_mean_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="split"):
        Split(**bad)


@pytest.fixture
def flat(tmp_path) -> Path:
    for number in range(120):
        save(tmp_path / "flat" / f"{number:03d}.png", number)
    return tmp_path / "flat"


def test_a_share_is_drawn_by_name_and_stays_when_others_come(flat, tmp_path):
    config = Config(f"folder:{flat}", split=Split(holdout=0.25))
    write(config, tmp_path / "out")
    kept, held = set(numbers(tmp_path / "out")), set(numbers(tmp_path / "out/holdout"))
    assert kept | held == set(range(120))
    assert not kept & held
    assert 12 <= len(held) <= 48  # 30 expected, 4 standard deviations of 4.7
    for number in range(120, 160):
        save(flat / f"{number:03d}.png", number)
    write(config, tmp_path / "out")
    assert {number for number in numbers(tmp_path / "out/holdout") if number < 120} == held
    larger = Config(f"folder:{flat}", split=Split(holdout=0.5))
    write(larger, tmp_path / "out")
    assert held < set(numbers(tmp_path / "out/holdout"))


@pytest.mark.parametrize("members", ["block", "image"])
def test_a_share_of_digits_and_of_blocks_in_tars(flat, tmp_path, members, monkeypatch):
    monkeypatch.setattr("diffcore.data.write.BLOCK", 7)
    write(Config(f"folder:{flat}", members=members), tmp_path / "tars", shard_bytes=2000)
    config = Config(f"shards:{tmp_path}/tars/*.tar", split=Split(holdout=0.25))
    write(config, tmp_path / "out")
    kept, held = set(numbers(tmp_path / "out")), set(numbers(tmp_path / "out/holdout"))
    assert kept | held == set(range(120))
    assert not kept & held
    assert 12 <= len(held) <= 48
    write(Config("digits", split=Split(holdout=0.1)), tmp_path / "digits")
    parts = [load_resident(tmp_path / "digits"), load_resident(tmp_path / "digits/holdout")]
    whole = selection.find(Config("digits")).entries[0].read()[0]
    both = torch.cat([part.pixels for part in parts])[:, 0].numpy()
    assert sorted(row.tobytes() for row in both) == sorted(row.tobytes() for row in whole)
    assert 129 <= len(parts[1]) <= 231
    assert parts[1].classes == parts[0].classes


def test_of_a_block_each_row_keeps_its_own_label():
    rows = np.arange(4)[:, None, None, None]
    pictures, labels = selection._read_rows(lambda: (rows, [5, 6, 7, 8]), [0, 2, 3])
    assert [int(picture[0, 0, 0]) for picture in pictures] == [0, 2, 3]
    assert labels == [5, 7, 8]


def test_a_limit_is_of_each_part(divided, tmp_path):
    write(Config(f"folder:{divided}", split=Split(holdout=["test"]), limit=5), tmp_path / "out")
    assert [len(load_resident(tmp_path / name)) for name in ("out", "out/holdout")] == [5, 5]


def test_a_share_that_holds_out_none_or_all_is_refused(tmp_path):
    save(tmp_path / "in/0.png", 0)
    lot = selection._lot("0.png")
    for share, said in ((lot / 2, "no image of 1 is held out"), ((lot + 1) / 2, "leaves no image to train on")):
        with pytest.raises(UserError, match=said):
            selection.find(Config(f"folder:{tmp_path}/in", split=Split(holdout=share)))


def test_labels_are_numbered_alike_in_both_parts(tmp_path):
    for number in range(4):
        save(tmp_path / "in" / ("train" if number < 2 else "test") / f"{number}.png", number)
    pairs = [[f"{'train' if number < 2 else 'test'}/{number}.png", number] for number in range(4)]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": pairs}))
    for names in ({"holdout": ["test"]}, {"holdout": ["train"]}):
        manifest = write(Config(f"folder:{tmp_path}/in", split=Split(**names)), tmp_path / "out")
        assert manifest.classes == Manifest.read(tmp_path / "out/holdout").classes == ("0", "1", "2", "3")


def test_labels_of_one_part_alone_are_refused(tmp_path):
    import webdataset

    names = [f"{number}" for number in range(8)]
    lots = {name: selection._lot(f"x.tar//{name}") for name in names}
    share = sorted(lots.values())[4]
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        for number, name in enumerate(names):
            label = {"cls": 1} if lots[name] < share else {}
            tar.write({"__key__": name, "npy": picture(number), **label})
    with pytest.raises(UserError, match="only some of the images have labels"):
        write(Config(f"shards:{tmp_path}/x.tar", split=Split(holdout=share)), tmp_path / "out")


def test_the_manifest_of_what_is_trained_on_is_the_very_last(divided, tmp_path, monkeypatch):
    written = []
    real = disk.write_json
    monkeypatch.setattr(disk, "write_json", lambda path, value: written.append(path.parent.name) or real(path, value))
    write(Config(f"folder:{divided}", split=Split(holdout=["test"])), tmp_path / "out")
    assert len(written) == 2
    assert written[0] == "holdout"


# what is told


def test_what_was_read_is_told(tmp_path):
    for number in range(9):
        save(tmp_path / "in" / "abc"[number % 3] / f"{number}.png", number)
    Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(tmp_path / "in/a/small.png")
    for name in ("readme.txt", "a/x.heic", ".DS_Store"):
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in/c/bad.png").write_bytes(b"no image")
    lines = told(Config(f"folder:{tmp_path}/in", size=4, tolerance=0.2), tmp_path / "out")
    for line in (
        "10 of 11 images read",
        "1 images cannot be read and are left out (c/bad.png: UnidentifiedImageError: cannot identify image file)",
        "1 images were smaller than 4 and are enlarged",
        "1 images are of one colour throughout (a/small.png)",
        "3 classes: a 4, b 3, c 3",
        "warning: not read: 1 .heic (a/x.heic): convert them to png or jpg",
        "ignored: 1 .txt (readme.txt), 1 hidden (.DS_Store)",
    ):
        assert line in lines


def tarred(folder: Path, labels: list[int]) -> str:
    import webdataset

    with webdataset.TarWriter(str(folder / "x.tar")) as tar:
        for number, label in enumerate(labels):
            tar.write({"__key__": f"{number}", "npy": picture(number), "cls": label})
    return f"shards:{folder}/x.tar"


def test_classes_without_images_one_class_alone_and_classes_named_like_splits_are_warned_of(tmp_path):
    lines = told(Config(tarred(tmp_path, [1, 500])), tmp_path / "out")
    assert any(line.startswith("501 classes: 0 0, 1 1, 2 0, 3 0, 4 0, 5 0, 6 0, 7 0, ... (489 more)") for line in lines)
    assert any(line.startswith("warning: 499 of 501 classes have no images: 0, 2, 3, 4") for line in lines)
    assert "warning: all images are of one class" in " ".join(told(Config(tarred(tmp_path, [0, 0])), tmp_path / "out"))
    for number, name in enumerate(("train", "Test", "other")):
        save(tmp_path / "in" / name / "0.png", number)
    lines = told(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    assert any(line.startswith("warning: Test, train was read as a class") for line in lines)


def test_an_image_of_one_pixel_is_not_told_to_be_of_one_colour(tmp_path):
    for number, shape in enumerate(((1, 1, 3), (1, 2, 3), (2, 1, 3))):
        (tmp_path / f"{number}").mkdir()
        Image.fromarray(np.full(shape, 7, np.uint8)).save(tmp_path / f"{number}/0.png")
        lines = told(Config(f"folder:{tmp_path}/{number}"), tmp_path / "out")
        assert any("of one colour" in line for line in lines) == (number > 0)


def test_a_plain_source_is_not_warned_of(tmp_path):
    lines = told(Config("digits"), tmp_path / "out")
    assert lines == ["1797 of 1797 images read", lines[1]]
    assert lines[1].startswith("10 classes: 0 178, 1 182")


# what cannot be read


def spoil(folder: Path, count: int) -> None:
    for path in sorted(folder.rglob("*.png"))[:count]:
        path.write_bytes(b"no image")


def test_all_unreadable_images_are_counted_before_it_is_refused(flat, tmp_path):
    spoil(flat, 6)
    with pytest.raises(UserError, match=r"^6 of 120 images cannot be read \(.*data\.tolerance to 0\.05\b") as caught:
        write(Config(f"folder:{flat}"), tmp_path / "out")
    assert all(f"{number:03d}.png" in str(caught.value) for number in range(6))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "tolerance", "fits"), [(6, 0.05, True), (6, 0.049, False), (1, 0.0, False), (0, 0.0, True)]
)
def test_the_tolerance_is_a_share(flat, tmp_path, count, tolerance, fits):
    spoil(flat, count)
    config = Config(f"folder:{flat}", tolerance=tolerance)
    if fits:
        assert len(write(config, tmp_path / "out").quarantined) == count
    else:
        with pytest.raises(UserError, match="cannot be read"):
            write(config, tmp_path / "out")


@pytest.mark.parametrize(("name", "bound"), [("MOST_BAD", 2), ("MOST_AFTER", 10)])
def test_the_count_of_unreadable_images_ends_somewhere(flat, tmp_path, monkeypatch, name, bound):
    spoil(flat, 60)
    monkeypatch.setattr(f"diffcore.data.tally.{name}", bound)
    with pytest.raises(UserError, match=r"of the first \d+ of 120 images") as caught:
        write(Config(f"folder:{flat}"), tmp_path / "out", workers=1)
    assert int(str(caught.value).split("of the first ")[1].split()[0]) <= 20


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        Config("digits", tolerance=tolerance)


MANIFEST = """
import sys
from pathlib import Path
from diffcore.data.config import Config
from diffcore.data.write import write
padding = [bytearray(100) for _ in range(int(sys.argv[2]))]
write(Config(f"folder:{sys.argv[1]}", tolerance=0.5), Path(sys.argv[1] + ".out"))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_manifest_of_the_same_faults(flat):
    harms(flat)
    found = []
    for padding in ("1", "5000"):
        subprocess.run([sys.executable, "-c", MANIFEST, str(flat), padding], check=True)
        found.append(Path(f"{flat}.out/manifest.json").read_bytes())
    assert found[0] == found[1]


def harms(folder: Path) -> None:
    whole = (folder / "005.png").read_bytes()
    (folder / "000.png").write_bytes(b"no image")
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "002.png").write_bytes(b"")
    (folder / "003.png").unlink()
    (folder / "003.png").symlink_to(folder / "nowhere")
    (folder / "004.png").unlink()
    os.mkfifo(folder / "004.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "006.tif")


def test_reasons_hold_no_address_and_no_path(flat, tmp_path):
    harms(flat)
    manifest = write(Config(f"folder:{flat}", tolerance=0.5), tmp_path / "out")
    reasons = {each["name"]: each["reason"] for each in manifest.quarantined}
    assert sorted(reasons) == ["000.png", "001.png", "002.png", "003.png", "004.png", "006.tif"]
    assert "no regular file" in reasons["004.png"]
    assert not any("0x" in reason or str(tmp_path) in reason or "\n" in reason for reason in reasons.values())
    assert all(len(reason.split(": ")[1]) > 5 for reason in reasons.values())


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_what_the_machine_cannot_do_is_not_the_images_fault(flat, tmp_path, monkeypatch, error):
    form = fitting.form

    def failing(*arguments):
        monkeypatch.setattr("diffcore.data.sources.folder._read_file", None)
        monkeypatch.setattr("diffcore.data.tars.decode", fail)
        return found

    def fail(*arguments):
        raise error

    found = form(Config(f"folder:{flat}"), selection.find(Config(f"folder:{flat}")))
    monkeypatch.setattr("diffcore.data.fitting.form", failing)
    with pytest.raises(UserError, match="the machine is at fault"):
        write(Config(f"folder:{flat}", tolerance=0.9), tmp_path / "out")


# sixteen bits


def deep(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], np.uint16)).save(path)


def test_twelve_bits_in_sixteen_are_refused_until_it_is_said_what_white_is(tmp_path):
    deep(tmp_path / "in/0.png", 0, 4095, 2048)
    deep(tmp_path / "in/1.png", 0, 1000, 5)
    config = f"folder:{tmp_path}/in"
    with pytest.raises(UserError, match=r"brightest of 2 images with 16 bits is at 4095 of 65535.*data\.bits to 12"):
        write(Config(config), tmp_path / "out")
    write(Config(config, bits=12), tmp_path / "out")
    values = sorted(load_resident(tmp_path / "out").pixels.flatten(1).tolist())
    assert values == [[0, 62, 0], [0, 255, 128]]
    write(Config(config, bits=16), tmp_path / "out")
    assert load_resident(tmp_path / "out").pixels.max() == 16
    with pytest.raises(UserError, match=r"as bright as 4095, and white is 1023 by data\.bits 10"):
        write(Config(config, bits=10), tmp_path / "out")


def test_a_set_that_is_bright_somewhere_is_read_as_it_is_and_its_dark_images_are_told(tmp_path):
    deep(tmp_path / "in/0.png", 0, 32768)
    deep(tmp_path / "in/1.png", 0, 4000)
    lines = told(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    assert "1 of 2 images with 16 bits are nearly black (1.png)" in lines
    deep(tmp_path / "in/0.png", 0, 32767)
    with pytest.raises(UserError, match=r"set data\.bits to 15"):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")


@pytest.mark.parametrize("bits", [8, 17, 0])
def test_bits_that_are_none_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        Config("digits", bits=bits)


def colour16(values: np.ndarray, text: bytes = b"deep\0") -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write, and a text in it, which says nothing of the bits.

    Of two channels the second is alpha, of four the last.
    """
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"tEXt", text) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_twelve_bits_in_colour_are_refused_too(tmp_path):
    (tmp_path / "in").mkdir()
    dark = np.array([[[0, 4095, 0], [100, 0, 9]]])
    (tmp_path / "in/0.png").write_bytes(colour16(dark))
    with pytest.raises(UserError, match=r"brightest of 1 images with 16 bits is at 3855"):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    with pytest.raises(UserError, match="in colour"):
        write(Config(f"folder:{tmp_path}/in", bits=12), tmp_path / "out")
    (tmp_path / "in/0.png").write_bytes(colour16(dark * 16))
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    assert load_resident(tmp_path / "out").pixels.max() == 255


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_twelve_bits_are_refused_however_many_channels_there_are_and_alpha_is_no_brightness(tmp_path, channels):
    (tmp_path / "in").mkdir()
    dark = np.full((2, 3, channels), 4095)
    dark[0] = 17
    if channels != 3:
        dark[..., -1] = 65535
    (tmp_path / "in/0.png").write_bytes(colour16(dark))
    with pytest.raises(UserError, match=r"brightest of 1 images with 16 bits is at 3855"):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")


def pixels_of(source: sources.Source) -> dict[str, np.ndarray]:
    """By name of the image, or of the block and row."""
    found = {}
    for entry in source.entries:
        for row, picture in enumerate(entry.read()[0][: entry.images]):
            found[f"{entry.name}{row}{np.asarray(picture).tobytes().hex()}"] = np.asarray(picture)
    return found


@pytest.mark.parametrize("kind", ["digits", "folder", "shards"])
def test_what_is_held_out_does_not_depend_on_whether_labels_are_read(flat, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("diffcore.data.write.BLOCK", 7)
    write(Config(f"folder:{flat}"), tmp_path / "tars", shard_bytes=2000)
    place = {"digits": "digits", "folder": f"folder:{flat}", "shards": f"shards:{tmp_path}/tars/*.tar"}[kind]
    with_labels, without = (
        selection.find(Config(place, labels=labels, split=Split(holdout=0.25))) for labels in (None, "none")
    )
    assert pixels_of(with_labels).keys() == pixels_of(without).keys()
    assert pixels_of(with_labels.held).keys() == pixels_of(without.held).keys()
    assert len(pixels_of(without.held)) > 10
    assert {label for entry in without.held.entries for label in entry.read()[1]} == {None}
    assert without.held.classes is None


@pytest.mark.parametrize("how", ["by the key", "by dataset.json"])
def test_images_without_labels_are_held_out_by_their_folders_all_the_same(divided, tmp_path, how):
    labels = "none" if how == "by the key" else None
    if labels is None:
        (divided / "dataset.json").write_text('{"labels": null}')
    config = Config(f"folder:{divided}", labels=labels, split=Split(holdout=["Test"]))
    manifest = write(config, tmp_path / "out")
    held = Manifest.read(tmp_path / "out/holdout")
    assert numbers(tmp_path / "out") == dict.fromkeys([*range(30), *range(42, 48)])
    assert numbers(tmp_path / "out/holdout") == dict.fromkeys(range(30, 42))
    assert (manifest.splits, held.splits) == ({"train": 30, "val": 6}, {"test": 12})
    lines = told(Config(f"folder:{divided}", labels=labels), tmp_path / "all")
    assert any("trains on all splits, test/ (12 images) and train/ (30 images)" in line for line in lines)


def test_a_limit_does_not_change_how_many_images_were_found(divided, tmp_path):
    """The manifest's splits, and what is told of them, are of what lies in the folder."""
    for limit in (None, 5, 1):
        config = Config(f"folder:{divided}", split=Split(train=["train", "val"], holdout=["test"]), limit=limit)
        lines = told(config, tmp_path / "out")
        parts = [Manifest.read(tmp_path / name) for name in ("out", "out/holdout")]
        assert [part.splits for part in parts] == [{"train": 30, "val": 6}, {"test": 12}]
        assert [part.images for part in parts] == [min(limit or 99, 36), min(limit or 99, 12)]
        assert any(line.endswith("images read (30 in train, 6 in val)") for line in lines)


def test_what_is_held_out_is_dealt_as_well_and_told_apart(divided, tmp_path):
    """Its first N images are a fair sample too, and its lines say whose they are."""
    (divided / "readme.txt").write_text("")
    config = Config(f"folder:{divided}", split=Split(train=["train"], holdout=["test"]))
    held = [entry.name for entry in selection.find(config).held.entries]
    assert held != sorted(held)
    lines = told(config, tmp_path / "out")
    assert [line for line in lines if "images read" in line] == [
        "held out: 12 of 12 images read (12 in test)",
        "30 of 30 images read (30 in train)",
    ]
    assert "held out: 2 classes: a 6, b 6" in lines
    (left,) = [line for line in lines if "neither" in line]
    assert left.startswith("val/ (6 images): neither")  # not test/, which is held out
    assert Manifest.read(tmp_path / "out").ignored == 1
    drawn = selection.find(Config(f"folder:{divided}", split=Split(holdout=0.5)))
    assert (drawn.ignored, drawn.held.ignored, drawn.held.notes) == (1, 0, [])


def test_names_of_splits_are_the_same_in_capitals(tmp_path):
    for number, name in enumerate(("Fold1", "FOLD2", "Training", "Val")):
        save(tmp_path / ("in" if number < 2 else "other") / name / "a" / f"{number}.png", number)
    source = selection.find(Config(f"folder:{tmp_path}/in", split=Split(train=["fold1"], holdout=["Fold2"])))
    assert (source.splits, source.held.splits) == ({"Fold1": 1}, {"FOLD2": 1})
    (note,) = [note for note in selection.find(Config(f"folder:{tmp_path}/other")).notes if "all splits" in note]
    assert "data.split: {holdout: [Val]}" in note
    with pytest.raises(ValueError, match="both trained on and held out"):
        Split(train=["A", "b"], holdout=["B"])


def test_a_class_whose_images_are_all_held_out_is_a_class_without_images_and_said(tmp_path):
    for number, name in enumerate(("train/a", "train/b", "test/a", "test/c")):
        save(tmp_path / "in" / name / f"{number}.png", number)
    lines = told(Config(f"folder:{tmp_path}/in", split=Split(holdout=["test"])), tmp_path / "out")
    assert "3 classes: a 1, b 1, c 0" in lines
    assert "warning: 1 of 3 classes have no images: c" in lines


@pytest.mark.parametrize("split", [Split(train=["train"]), Split(train=["train"], holdout=0.1)])
@pytest.mark.parametrize("source", ["digits", "shards:x.tar"])
def test_only_a_folder_has_splits_to_train_on(source, split):
    with pytest.raises(ValueError, match="split names folders"):
        Config(source, split=split)


def test_the_tolerance_that_is_proposed_is_enough(flat, tmp_path):
    spoil(flat, 2)
    for number in range(116, 120):
        (flat / f"{number}.png").unlink()
    with pytest.raises(UserError, match=r"2 of 116 images .*data\.tolerance to (0\.018)") as caught:
        write(Config(f"folder:{flat}"), tmp_path / "out")
    proposed = float(str(caught.value).rpartition(" ")[2])
    assert len(write(Config(f"folder:{flat}", tolerance=proposed), tmp_path / "out").quarantined) == 2


def test_a_damaged_block_counts_as_all_its_images(tmp_path):
    import webdataset

    block = np.stack([picture(number) for number in range(5)])
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "0", "npy": block, "cls.npy": np.arange(5)})
        tar.write({"__key__": "1", "npy": block[:3], "cls.npy": np.arange(2)})  # a label too few
    heard = []
    config = Config(f"shards:{tmp_path}/x.tar", tolerance=0.4)
    manifest = write(config, tmp_path / "out", on_progress=lambda done, total: heard.append((done, total)))
    assert (manifest.found, manifest.images) == (8, 5)
    assert [(each["name"], each["images"]) for each in manifest.quarantined] == [("x.tar//1", 3)]
    assert heard[-1] == (8, 8)
    with pytest.raises(UserError, match=r"3 of 8 images cannot be read .*data\.tolerance to 0\.375"):
        write(Config(f"shards:{tmp_path}/x.tar", tolerance=0.3), tmp_path / "out")


def test_how_bright_a_set_is_says_its_brightest_image_whatever_the_order(tmp_path):
    for number, values in enumerate(((0, 200), (0, 40000), (0, 300), (0, 4095), (0, 4094), (0, 6000))):
        deep(tmp_path / "in" / f"{number}.png", *values)
    lines = told(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    (dark,) = [line for line in lines if "nearly black" in line]
    assert dark.startswith("3 of 6 images with 16 bits")
    (tmp_path / "in/1.png").unlink()
    with pytest.raises(UserError, match=r"brightest of 5 images with 16 bits is at 6000.*data\.bits to 13"):
        write(Config(f"folder:{tmp_path}/in"), tmp_path / "out")
    deep(tmp_path / "black/0.png", 0, 3)
    with pytest.raises(UserError, match=r"data\.bits to 9, "):
        write(Config(f"folder:{tmp_path}/black"), tmp_path / "out")

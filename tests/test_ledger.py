"""A writer of shards that dies goes on where it was, and writes the same bytes; anything else starts anew."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import fitting, selection
from diffcore.data.config import Config, TeacherSampling
from diffcore.data.ledger import Ledger, Unfinished
from diffcore.data.read import load_resident
from diffcore.data.sources.folder import _read_file
from diffcore.data.split import Split
from diffcore.data.write import _Job, _signature, write

SHARD = 400  # bytes: some ten shards of what `flat` holds


def save(path: Path, number: int) -> None:
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def flat(tmp_path) -> Path:
    """60 images in one folder."""
    (tmp_path / "flat").mkdir()
    for number in range(60):
        save(tmp_path / "flat" / f"{number:03d}.png", number)
    return tmp_path / "flat"


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): disk.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def told(config: Config, folder: Path, **more) -> list[str]:
    lines: list[str] = []
    write(config, folder, tell=lines.append, **more)
    return lines


READ = _read_file


class Reading:
    """Reads files, and dies at the one of a number."""

    def __init__(self, death: int):
        self.death, self.count = death, 0

    def __call__(self, path: Path, label: int | None):
        self.count += 1
        if self.count == self.death:
            raise KeyboardInterrupt
        return READ(path, label)


@pytest.mark.slow
@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("split", [None, Split(holdout=0.3)])
@pytest.mark.parametrize("deaths", [[50], [1, 55], [25, 25, 15]])
def test_a_writer_that_dies_goes_on_and_writes_the_same_bytes(flat, tmp_path, monkeypatch, members, split, deaths):
    monkeypatch.setattr("diffcore.data.write.BLOCK", 3)
    monkeypatch.setattr("diffcore.data.write.CHUNK", 4)
    for path in sorted(flat.iterdir())[:5]:
        path.write_bytes(b"no image")
    config = Config(f"folder:{flat}", members=members, split=split, tolerance=0.2)
    write(config, tmp_path / "whole", shard_bytes=SHARD)
    lines: list[str] = []
    unfinished = Unfinished(tmp_path / "kept", "code")
    for death in deaths:
        monkeypatch.setattr("diffcore.data.sources.folder._read_file", Reading(death))
        with pytest.raises(KeyboardInterrupt):
            write(config, tmp_path / "out", 1, shard_bytes=SHARD, tell=lines.append, unfinished=unfinished)
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr("diffcore.data.sources.folder._read_file", last := Reading(0))
    write(config, tmp_path / "out", 1, shard_bytes=SHARD, tell=lines.append, unfinished=unfinished)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert any(line.startswith("goes on after ") for line in lines)
    assert not (tmp_path / "kept").exists()
    assert last.count < 60


def interrupted(flat: Path, config: Config, kept: Unfinished, out: Path, monkeypatch) -> None:
    # dies when all tars are finished, before the manifest is written
    with monkeypatch.context() as patch:
        patch.setattr("diffcore.data.write._manifest", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(config, out, shard_bytes=SHARD, unfinished=kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("image", "the source has changed"),
        ("time", "the source has changed"),
        ("more", "the source has changed"),
        ("name", "the source has changed"),
        ("configuration", "configuration or the code"),
        ("code", "configuration or the code"),
        ("tar", "damaged"),
        ("gone", "damaged"),
        ("ledger", "damaged"),
        ("torn", "damaged"),
    ],
)
def test_a_writer_starts_anew_where_something_has_changed_and_says_so(flat, tmp_path, monkeypatch, change, said):
    config, kept = Config(f"folder:{flat}", members="image"), Unfinished(tmp_path / "kept", "code")
    interrupted(flat, config, kept, tmp_path / "out", monkeypatch)
    if change == "image":
        save(flat / "007.png", 150)
    elif change == "time":
        os.utime(flat / "007.png", (1, 1))
    elif change == "name":
        (flat / "007.png").rename(flat / "0070.png")  # as old, as large and in the same place as before
    elif change == "more":
        save(flat / "1.png", 150)
    elif change == "configuration":
        config = Config(f"folder:{flat}", members="image", channels=1)
    elif change == "code":
        kept = Unfinished(tmp_path / "kept", "other code")
    elif change == "gone":
        (tmp_path / "kept/000001.tar").unlink()
    else:
        path = tmp_path / "kept" / ("000001.tar" if change == "tar" else "ledger.json")
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole[: len(whole) // 2] if change == "torn" else whole)
    lines = told(config, tmp_path / "out", shard_bytes=SHARD, unfinished=kept)
    assert any(line.startswith("starts anew") and said in line for line in lines)
    write(config, tmp_path / "whole", shard_bytes=SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_finished_writer_that_died_before_its_end_reads_nothing_again(flat, tmp_path, monkeypatch):
    config, kept = Config(f"folder:{flat}"), Unfinished(tmp_path / "kept")
    interrupted(flat, config, kept, tmp_path / "out", monkeypatch)
    lines = told(config, tmp_path / "out", shard_bytes=SHARD, unfinished=kept)
    assert "goes on after 60 of 60 images" in lines
    write(config, tmp_path / "whole", shard_bytes=SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_where_files_cannot_be_linked_they_are_copied(flat, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write(Config(f"folder:{flat}"), tmp_path / "out", unfinished=Unfinished(tmp_path / "kept"))
    assert len(load_resident(tmp_path / "out")) == 60


def test_two_writers_of_one_folder_do_not_share_their_work(flat, tmp_path):
    kept = Unfinished(tmp_path / "kept")
    with (
        kept.open({}, [], lambda line: None),
        pytest.raises(UserError, match="another process is at work on the same files"),
    ):
        write(Config(f"folder:{flat}"), tmp_path / "out", unfinished=kept)


WRITER = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from diffcore.data import write
from diffcore.data.config import Config, TeacherSampling
from diffcore.data.ledger import Unfinished

def wait(done, total):
    if sys.argv[3] != "never" and Path(sys.argv[2], "kept", sys.argv[3]).exists():
        print("ready", flush=True)
        time.sleep(3600)

write.CHUNK, out = 4, Path(sys.argv[2], "out")
config = Config("folder:" + sys.argv[1], members="image")
write.write(config, out, 1, wait, int(sys.argv[4]), lambda line: print(line, flush=True), Unfinished(out.parent / "kept"))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_in_another(flat, tmp_path):
    def start(until: str) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITER, str(flat), str(tmp_path), until, str(SHARD)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for until in ("000001.tar", "000004.tar"):
        with start(until) as process:
            assert "ready\n" in iter(process.stdout.readline, "")
            process.kill()
        assert not (tmp_path / "out").exists()
    with start("never") as process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    (went_on,) = [line for line in lines if line.startswith("goes on after ")]
    assert 0 < int(went_on.split()[3]) < 60
    write(Config(f"folder:{flat}", members="image"), tmp_path / "whole", shard_bytes=SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat", "out", "whole"]


def test_a_ledger_is_of_the_very_files_their_places_sizes_and_times(tmp_path):
    """To the nanosecond, in their order; a file that cannot be looked up is one more state, and no error."""
    paths = [tmp_path / name for name in ("a/0.png", "b/1.png", "b/2.png")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"abc")
        os.utime(path, ns=(0, 10**18 + number))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "far").write_bytes(b"far")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    paths += [tmp_path / "loop", tmp_path / "broken", tmp_path / "link"]

    def kept(files: list[Path], asked: object = 1, code: str = "code") -> bool:
        said: list[str] = []
        unfinished = Unfinished(tmp_path / "kept", code)
        with contextlib.suppress(ZeroDivisionError), unfinished.open({"asked": asked}, files, said.append) as ledger:
            found = ledger.load()
            assert bool(said) == (found is None)
            raise ZeroDivisionError
        save(paths)
        return found is not None

    def save(files: list[Path]) -> None:
        unfinished = Unfinished(tmp_path / "kept", "code")
        with contextlib.suppress(ZeroDivisionError), unfinished.open({"asked": 1}, files, print) as ledger:
            (tmp_path / "kept/0.tar").write_bytes(b"tar")
            sha256 = disk.sha256(tmp_path / "kept/0.tar")
            ledger.save({"shards": [{"name": "0.tar", "bytes": 3, "sha256": sha256}]})
            raise ZeroDivisionError

    save(paths)
    assert kept(paths)
    assert not kept(paths, asked=2)
    assert not kept(paths, code="other")
    assert not kept(paths[:-1])
    assert not kept([paths[1], paths[0], *paths[2:]])
    (tmp_path / "a/1.png").hardlink_to(paths[1])  # of as many bytes and as old
    assert not kept([paths[0], tmp_path / "a/1.png", *paths[2:]])
    os.utime(paths[1], ns=(0, 10**18 + 2))
    assert not kept(paths)
    paths[1].write_bytes(b"abcd")
    os.utime(paths[1], ns=(0, 10**18 + 2))
    assert not kept(paths)
    (tmp_path / "far").write_bytes(b"else")  # what a link leads to
    assert not kept(paths)
    os.utime(tmp_path / "far", ns=(0, 10**18))
    assert not kept(paths)
    (tmp_path / "broken").unlink()
    (tmp_path / "broken").write_bytes(b"there")
    assert not kept(paths)
    assert kept(paths)


def test_each_word_of_the_configuration_that_changes_the_bytes_starts_anew_and_no_other(monkeypatch):
    whole = Config("folder:x")
    others = {
        "source": "folder:y",
        "size": 8,
        "channels": 1,
        "filter": "box",
        "crop": None,
        "limit": 5,
        "members": "image",
        "labels": "none",
        "split": Split(holdout=0.3),
        "tolerance": 0.2,
        "bits": 12,
        "captions": "{class}",
        "unseen": None,
    }
    free = {"flip": True, "license": "mine", "draw": TeacherSampling(), "image_condition": "grey", "prompts": "a.txt"}
    assert {*others, *free} == set(Config.__dataclass_fields__)

    def signature(config: Config, shard_bytes: int = 1) -> str:
        form = fitting.Form((3, 4, 4), None, True, "lanczos")
        return disk.digest(_signature(_Job(config, form, "block", 2, ThreadPoolExecutor, shard_bytes, print, print)))

    changed = [signature(dataclasses.replace(whole, **{k: v})) for k, v in others.items() if v is not None]
    changed.append(signature(dataclasses.replace(whole, captions="{class}", unseen=["a"])))
    changed.append(signature(whole, shard_bytes=2))
    with monkeypatch.context() as patch:
        patch.setattr("diffcore.data.write.BLOCK", 7)
        changed.append(signature(whole))
    for library in ("PIL", "numpy", "webdataset"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{library}.__version__", "0.0")
            changed.append(signature(whole))
    assert len({*changed, signature(whole)}) == len(changed) + 1
    for name, value in free.items():
        assert signature(dataclasses.replace(whole, **{name: value})) == signature(whole)


def test_a_tar_is_safe_on_the_disk_before_the_ledger_vouches_for_it(flat, tmp_path, monkeypatch):
    events, sync, write_sealed = [], os.fsync, disk.write_sealed
    monkeypatch.setattr(
        os, "fsync", lambda number: sync(number) or events.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
    )
    monkeypatch.setattr(
        disk,
        "write_sealed",
        lambda path, value: events.append(value["shards"][-1]["name"]) or write_sealed(path, value),
    )
    config = Config(f"folder:{flat}", members="image")
    interrupted(flat, config, Unfinished(tmp_path / "kept"), tmp_path / "out", monkeypatch)
    tars = [name for name in events if name.endswith(".tar")]
    assert tars == [name for path in sorted((tmp_path / "kept").glob("*.tar")) for name in (path.name, path.name)]
    assert len(tars) > 4


def test_what_is_held_out_has_a_ledger_of_its_own_which_is_told_of_and_gone_on_with(flat, tmp_path, monkeypatch):
    config = Config(f"folder:{flat}", members="image", split=Split(holdout=0.3))
    for harm, said in ((False, "goes on after"), (True, "starts anew")):
        kept = Unfinished(tmp_path / "kept")
        interrupted(flat, config, kept, tmp_path / "out", monkeypatch)
        assert (tmp_path / "kept/holdout/ledger.json").exists()
        if harm:
            (tmp_path / "kept/holdout/000000.tar").unlink()
        lines = told(config, tmp_path / "out", shard_bytes=SHARD, unfinished=kept)
        progress = [line for line in lines if line.startswith(("goes on", "starts anew"))]
        assert len(progress) == 2
        assert progress[1].startswith(said)
    write(config, tmp_path / "whole", shard_bytes=SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_all_files_that_are_read_are_looked_at_the_labels_too(tmp_path, kind, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(4):
        save(tmp_path / "in" / f"{number}.png", number)
    (tmp_path / "in/notes.txt").write_text("not read")
    (tmp_path / "in/metadata.csv").write_text("file_name,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)))
    written = write(Config(f"folder:{tmp_path}/in", members="image"), tmp_path / "tars", shard_bytes=100)
    assert len(written.shards) > 1
    source = {"folder": f"folder:{tmp_path}/in", "shards": f"shards:{tmp_path}/tars/*.tar"}[kind]
    read = {
        "folder": {tmp_path / "in" / name for name in ("0.png", "1.png", "2.png", "3.png", "metadata.csv")},
        "shards": {tmp_path / "tars" / shard.name for shard in written.shards},
    }[kind]
    assert set(selection.find(Config(source)).files) == read
    config, kept = Config(source, members="image"), Unfinished(tmp_path / "kept")
    interrupted(tmp_path / "in", config, kept, tmp_path / "out", monkeypatch)
    os.utime(max(read), (1, 1))  # the table of labels, or the last tar
    lines = told(config, tmp_path / "out", shard_bytes=SHARD, unfinished=kept)
    assert any("the source has changed" in line for line in lines)


def test_a_folder_that_cannot_get_its_name_costs_no_image_to_be_read_again(flat, tmp_path, monkeypatch):
    """What is finished is kept until the new folder stands there."""
    config, kept = Config(f"folder:{flat}"), Unfinished(tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_swap", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(config, tmp_path / "out", shard_bytes=SHARD, unfinished=kept)
    monkeypatch.setattr("diffcore.data.sources.folder._read_file", reading := Reading(0))
    lines = told(config, tmp_path / "out", workers=1, shard_bytes=SHARD, unfinished=kept)
    assert "goes on after 60 of 60 images" in lines
    assert reading.count <= 1  # the first says the shape
    assert len(load_resident(tmp_path / "out")) == 60


def test_a_writer_that_dies_between_its_end_and_the_ledger_s_harms_no_finished_data_set(flat, tmp_path, monkeypatch):
    """The tars of both are the same files then: whoever writes next must not write into them."""
    config, kept = Config(f"folder:{flat}", members="image"), Unfinished(tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "clear", lambda ledger: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(config, tmp_path / "out", shard_bytes=SHARD, unfinished=kept)
    whole = content(tmp_path / "out")
    assert (tmp_path / "kept/000000.tar").samefile(tmp_path / "out/000000.tar")
    interrupted(flat, dataclasses.replace(config, channels=1), kept, tmp_path / "out", monkeypatch)
    assert content(tmp_path / "out") == whole
    assert len(load_resident(tmp_path / "out")) == 60

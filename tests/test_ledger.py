"""A writer of shards that dies goes on where it was, and writes the same bytes; anything else starts anew."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore import disk, shards, sources
from diffcore.ledger import Unfinished
from diffcore.mistake import Mistake
from diffcore.shards import Config, load_resident, write
from diffcore.sources import Split

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


READ = sources._read_file


class Reading:
    """Reads files, and dies at the one of a number."""

    def __init__(self, death: int):
        self.death, self.count = death, 0

    def __call__(self, path: Path, label: int | None):
        self.count += 1
        if self.count == self.death:
            raise KeyboardInterrupt
        return READ(path, label)


@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("split", [None, Split(holdout=0.3)])
@pytest.mark.parametrize("deaths", [[50], [1, 55], [25, 25, 15]])
def test_a_writer_that_dies_goes_on_and_writes_the_same_bytes(flat, tmp_path, monkeypatch, members, split, deaths):
    monkeypatch.setattr(shards, "BLOCK", 3)
    monkeypatch.setattr(shards, "CHUNK", 4)
    for path in sorted(flat.iterdir())[:5]:
        path.write_bytes(b"no image")
    config = Config(f"folder:{flat}", members=members, split=split, tolerance=0.2)
    write(config, tmp_path / "whole", shard_bytes=SHARD)
    lines: list[str] = []
    unfinished = Unfinished(tmp_path / "kept", "code")
    for death in deaths:
        monkeypatch.setattr(sources, "_read_file", Reading(death))
        with pytest.raises(KeyboardInterrupt):
            write(config, tmp_path / "out", 1, shard_bytes=SHARD, tell=lines.append, unfinished=unfinished)
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sources, "_read_file", last := Reading(0))
    write(config, tmp_path / "out", 1, shard_bytes=SHARD, tell=lines.append, unfinished=unfinished)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert any(line.startswith("goes on after ") for line in lines)
    assert not (tmp_path / "kept").exists()
    assert last.count < 60


def interrupted(flat: Path, config: Config, kept: Unfinished, out: Path, monkeypatch) -> None:
    # dies when all tars are finished, before the manifest is written
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_manifest", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(config, out, shard_bytes=SHARD, unfinished=kept)


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
        pytest.raises(Mistake, match="another process is writing the shards"),
    ):
        write(Config(f"folder:{flat}"), tmp_path / "out", unfinished=kept)


WRITER = """
import sys, time
from pathlib import Path
from diffcore import shards
from diffcore.ledger import Unfinished

def wait(done, total):
    if sys.argv[3] != "never" and Path(sys.argv[2], "kept", sys.argv[3]).exists():
        print("ready", flush=True)
        time.sleep(3600)

shards.CHUNK, out = 4, Path(sys.argv[2], "out")
config = shards.Config("folder:" + sys.argv[1], members="image")
shards.write(config, out, 1, wait, int(sys.argv[4]), lambda line: print(line, flush=True), Unfinished(out.parent / "kept"))
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

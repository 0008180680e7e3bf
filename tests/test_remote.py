"""Shards over HTTP give the batches of the same shards on the disk, whatever the network does, or end in one line."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import feed, fitting, remote, selection
from diffcore.data.cache import Cache
from diffcore.data.config import Config
from diffcore.data.ledger import Unfinished
from diffcore.data.write import write
from tests.servers import Files, files_over_http

COUNT = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """60 images of two classes in some ten tars."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(COUNT):
        path = root / "in" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    write(Config(f"folder:{root}/in", members="image"), root / "tars", shard_bytes=2000)
    assert len(list((root / "tars").glob("*.tar"))) > 8
    return root / "tars"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0,) * 4)
    monkeypatch.setattr(remote, "STALL", 2.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(shards) -> Iterator[Files]:
    with files_over_http(Files(shards)) as files:
        yield files


def last(shards: Path) -> str:
    return max(path.stem for path in shards.glob("*.tar"))


def over_http(server: Files, **more) -> Config:
    return Config(f"shards:{server.address}/{{000000..{last(server.folder)}}}.tar", **more)


def cache(folder: Path, limit: int = 1 << 30) -> Cache:
    return Cache(folder / "cache", limit)


def content(folder: Path) -> dict[str, str]:
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): disk.sha256(path) for path in names}


def local(shards: Path, out: Path, **more) -> Path:
    write(Config(f"shards:{shards}/*.tar", **more), out)
    return out


def batches(folder: Path) -> list[torch.Tensor]:
    with feed.StreamFeed(folder, feed.Manifest.read(folder), 7, 0, True) as stream:
        return [part for x0, inputs in map(stream.batch, range(20)) for part in (x0, *inputs.values())]


FAULTS = {
    "none": lambda number, path: None,
    "every tenth fails": lambda number, path: "fail" if number % 10 == 0 else None,
    "every tenth stalls": lambda number, path: "stall" if number % 10 == 0 else None,
    "every tenth is truncated": lambda number, path: "truncate" if number % 10 == 0 else None,
    "all are truncated": lambda number, path: "truncate",
}
CASES = [
    pytest.param(case, ranges, marks=pytest.mark.slow if "stalls" in case and not ranges else ())
    for case in FAULTS
    for ranges in (True, False)
    if ranges or case != "all are truncated"
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "ranges"), CASES)
def test_batches_over_http_are_those_from_the_disk_whatever_the_server_does(server, shards, tmp_path, case, ranges):
    server.plan, server.ranges = FAULTS[case], ranges
    manifest = write(over_http(server), tmp_path / "remote", cache=cache(tmp_path))
    assert content(tmp_path / "remote") == content(local(shards, tmp_path / "local"))
    assert manifest.digest == feed.Manifest.read(tmp_path / "local").digest
    for a, b in zip(batches(tmp_path / "remote"), batches(tmp_path / "local"), strict=True):
        assert torch.equal(a, b)


def test_an_answer_that_ends_early_is_gone_on_with_where_it_ended(server, tmp_path):
    path = server.folder / "000000.tar"
    server.plan = lambda number, path: "truncate" if number == 2 else None
    stat = remote.stat(f"{server.address}/000000.tar")
    received = b"".join(remote.content(f"{server.address}/000000.tar", stat))
    assert received == path.read_bytes()
    assert [span for _, span in server.log] == ["bytes=0-0", None, f"bytes={-(-len(received) // 2)}-"]


def test_of_a_server_without_ranges_no_byte_is_taken_twice(server):
    server.plan, server.ranges = lambda number, path: "truncate" if number == 2 else None, False
    url = f"{server.address}/000000.tar"
    assert b"".join(remote.content(url, remote.stat(url))) == (server.folder / "000000.tar").read_bytes()
    assert len(server.log) == 3


def test_a_failure_while_the_first_image_is_looked_for_is_the_network_s_and_no_image_s(server, tmp_path):
    config, here = over_http(server), cache(tmp_path)
    source = selection.find(config, here)
    for copy in here.folder.glob("*.tar"):
        copy.unlink()
    server.plan = lambda number, path: "fail"
    with pytest.raises(UserError, match=r"^data\.source: .*000000\.tar cannot be read \(5 tries"):
        fitting.form(config, source)


ENDS = {
    "fail": r"cannot be read \(5 tries brought nothing, the last one: HTTP 503 Service Unavailable\): run the same again",
    "truncate": r"5 tries brought nothing, the last one: the answer ended after \d+ of \d+ bytes",
    "refuse": r"cannot be read \(HTTP 403 Forbidden\)",
    "alter": "was changed while it was read",
    "gzip": "is sent as gzip",
    "sizeless": "comes without its size",
}


@pytest.mark.parametrize("fault", ENDS)
def test_what_does_not_pass_ends_in_one_line_that_names_the_address(server, tmp_path, fault):
    server.ranges = False  # so that no half of an answer is of use
    first = 1 if fault in ("gzip", "sizeless") else 6
    server.plan = lambda number, path: fault if number >= first else None
    with pytest.raises(UserError, match=ENDS[fault]) as caught:
        write(over_http(server), tmp_path / "out", cache=cache(tmp_path))
    assert f"data.source: {server.address}/0000" in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_server_that_says_nothing_any_more_ends_in_one_line(server, tmp_path, monkeypatch):
    stat = remote.stat(f"{server.address}/000000.tar")
    monkeypatch.setattr(remote, "STALL", 0.2)
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    server.plan, server.ranges = lambda number, path: "stall", False
    with pytest.raises(UserError, match=r"2 tries brought nothing, the last one: (no byte in 0\.2 s|.*timed out)"):
        b"".join(remote.content(f"{server.address}/000000.tar", stat))


def test_a_server_that_is_not_there_ends_in_one_line(tmp_path):
    with files_over_http(Files(tmp_path)) as gone:
        pass
    with pytest.raises(UserError, match=r"000000\.tar cannot be read \(5 tries brought nothing, .*refused"):
        selection.find(Config(f"shards:{gone.address}/000000.tar"), cache(tmp_path))


def test_waits_grow():
    assert list(remote.WAITS) == sorted(remote.WAITS)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{000000..999999999999}.tar", r"/\d+\.tar is not there"),
        ("no.tar", r"no\.tar is not there: there is no shard of this name"),
        ("*.tar", "over http nothing can be listed"),
        ("000000.tar?sign=secret*", "is named twice|hold no images|^$"),
        ("{000000,000000}.tar", "named twice"),
    ],
)
def test_patterns_over_http(server, tmp_path, pattern, said):
    config = Config(f"shards:{server.address}/{pattern}")
    if "?" in pattern:  # a query is a part of the address, and a secret
        source = selection.find(config, cache(tmp_path))
        assert list(source.versions) == [f"{server.address}/000000.tar"]
        assert "secret" not in config.origin
        return
    with pytest.raises(UserError, match=said) as caught:
        selection.find(config, cache(tmp_path))
    assert str(caught.value).isprintable()


def test_a_second_look_fetches_nothing_that_is_in_the_cache(server, tmp_path):
    write(over_http(server), tmp_path / "1", cache=cache(tmp_path))
    server.log.clear()
    write(over_http(server), tmp_path / "2", cache=cache(tmp_path))
    assert {span for _, span in server.log} == {"bytes=0-0"}
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_the_cache_keeps_to_its_bound_and_lets_go_of_what_was_used_longest_ago(server, tmp_path, monkeypatch):
    sizes = {path.name: path.stat().st_size for path in server.folder.glob("*.tar")}
    small, most = cache(tmp_path, 2 * max(sizes.values())), 0
    real = Cache._make_room

    def spy(self: Cache, size: int, temporary: Path) -> bool:
        nonlocal most
        room = real(self, size, temporary)
        held = [path for path in self.folder.iterdir() if path.suffix in (".tar", ".part") and path != temporary]
        most = max(most, sum(path.stat().st_size for path in held) + size * room)
        return room

    monkeypatch.setattr(Cache, "_make_room", spy)
    write(over_http(server), tmp_path / "remote", cache=small)
    assert 0 < most <= small.limit
    assert content(tmp_path / "remote") == content(local(server.folder, tmp_path / "local"))
    names = sorted(sizes)[:3]
    looked_up = [small.look_up(f"{server.address}/{name}", lambda file: None)[0] for name in names[:2]]
    for file in looked_up[::-1]:
        file.open().close()
    small.look_up(f"{server.address}/{names[2]}", lambda file: None)[0].open().close()
    server.log.clear()
    looked_up[0].open().close()
    assert server.log == []
    looked_up[1].open().close()
    assert {path for path, _ in server.log} == {f"/{names[1]}"}


def test_a_shard_larger_than_the_cache_is_refused_by_name(server, tmp_path):
    with pytest.raises(
        UserError, match=r"000000\.tar has .* GB, more than the cache may hold .*raise compute\.cache_gb"
    ):
        selection.find(over_http(server), cache(tmp_path, 1000))


def test_a_copy_that_was_damaged_is_fetched_again(server, tmp_path):
    here = cache(tmp_path)
    file, _ = here.look_up(f"{server.address}/000000.tar", lambda opened: None)
    (copy,) = here.folder.glob("*.tar")
    whole = copy.read_bytes()
    copy.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with file.open() as opened:
        assert opened.read() == whole
    copy.unlink()
    with file.open() as opened:
        assert opened.read() == whole
    for note in here.folder.glob("*.json"):
        note.write_text("{")
    assert here.look_up(f"{server.address}/000000.tar", lambda opened: None)[0] == file


@pytest.mark.parametrize("versions", [True, False])
def test_another_content_under_one_address_never_passes_for_the_first(server, shards, tmp_path, versions):
    """Fetched again because it had to make room; with and without an ETag that would tell."""
    (tmp_path / "tars").mkdir()
    for path in shards.glob("*.tar"):
        (tmp_path / "tars" / path.name).write_bytes(path.read_bytes())
    server.folder, server.versions = tmp_path / "tars", versions
    source = selection.find(over_http(server), cache(tmp_path))
    path = tmp_path / "tars/000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    for copy in (tmp_path / "cache").glob("*.tar"):
        copy.unlink()
    with pytest.raises(UserError, match=r"000000\.tar (was changed while it was read|holds other bytes than before)"):
        source.entries[0].read()
    again = selection.find(over_http(server), cache(tmp_path))
    assert again.versions != source.versions


def test_a_failure_of_the_network_leaves_no_image_out(server, tmp_path):
    """It is no image's fault: nothing is quarantined, the stage ends, and the next one goes on with the same bytes."""
    lines: list[str] = []
    more = {"cache": cache(tmp_path, 2 * 20_480), "unfinished": Unfinished(tmp_path / "kept"), "shard_bytes": 2000}
    config = over_http(server, members="image", tolerance=0.9)
    selection.find(config, more["cache"])
    requests = itertools.count()
    server.plan = lambda number, path: "fail" if next(requests) > 5 else None
    with pytest.raises(UserError, match="HTTP 503"):
        write(config, tmp_path / "out", 1, tell=lines.append, **more)
    server.plan = lambda number, path: None
    manifest = write(config, tmp_path / "out", 1, tell=lines.append, **more)
    assert manifest.quarantined == ()
    write(Config(f"shards:{server.folder}/*.tar", members="image"), tmp_path / "local", shard_bytes=2000)
    assert content(tmp_path / "out") == content(tmp_path / "local")


def test_a_writer_does_not_go_on_with_what_was_read_of_another_content(server, shards, tmp_path):
    (tmp_path / "tars").mkdir()
    for path in shards.glob("*.tar"):
        (tmp_path / "tars" / path.name).write_bytes(path.read_bytes())
    server.folder, here = tmp_path / "tars", cache(tmp_path)
    stamps = []
    for _ in range(3):
        source = selection.find(over_http(server), here)
        with Unfinished(tmp_path / "kept").open({}, source.files, print, source.versions) as ledger:
            stamps.append(ledger.job["source"])
        if len(stamps) == 2:
            (tmp_path / "tars/000000.tar").write_bytes((shards / "000001.tar").read_bytes())
    assert stamps[0] == stamps[1] != stamps[2]


def test_half_a_copy_of_a_dead_process_takes_no_room(server, tmp_path):
    here = cache(tmp_path, 40_000)
    here.folder.mkdir()
    left = here.folder / f"{'0' * 32}.part"
    left.write_bytes(bytes(39_000))
    here.look_up(f"{server.address}/000000.tar", lambda file: None)
    assert not left.exists()


def test_an_address_in_a_manifest_holds_no_signature(server, tmp_path):
    config = Config(f"shards:{server.address}/000000.tar?X-Amz-Signature=wxyz")
    manifest = write(config, tmp_path / "out", cache=cache(tmp_path))
    assert manifest.source == f"shards:{server.address}/000000.tar"
    assert not any("wxyz" in path.read_text() for path in (tmp_path / "cache").glob("*.json"))


def test_files_in_the_cache_that_cannot_be_written_are_named(server, tmp_path, monkeypatch):
    def full(*words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cache/\w+\.part cannot be written \(No space left on device\)"):
        cache(tmp_path).look_up(f"{server.address}/000000.tar", lambda file: None)


def test_without_its_extra_s3_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    remote._s3.cache_clear()
    with pytest.raises(UserError, match=r"needs s3fs, which is not installed: pip install 'distill\[remote\]'"):
        selection.find(Config("shards:s3://bucket/a.tar"), cache(tmp_path))


def test_the_limit_of_the_cache_is_no_part_of_what_is_written(server, tmp_path):
    write(over_http(server), tmp_path / "1", cache=cache(tmp_path))
    write(over_http(server), tmp_path / "2", cache=dataclasses.replace(cache(tmp_path), limit=1 << 29))
    assert content(tmp_path / "1") == content(tmp_path / "2")

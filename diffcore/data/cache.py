"""Copies of remote files on this machine's disk, up to a number of bytes; those used longest ago make room for new ones.

A copy is vouched for by the size and version that the store announced, and by the digest of what arrived: one that was
damaged here is fetched again, and content that is not what it was is refused. `rm -r` of the folder is always safe.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import remote

SCHEMA = 1
POLL = 0.1  # seconds between looks for room that another fetch still takes

_verified: set[tuple[str, int, int, int]] = set()


@dataclass(frozen=True)
class Remote:
    """A remote file as it was when it was first looked at; `open` gives the same bytes each time."""

    url: str
    bytes: int
    version: str
    sha256: str
    cache: "Cache"

    @property
    def name(self) -> str:
        return remote.name(self.url)

    def __str__(self) -> str:
        return remote.public(self.url)

    def open(self) -> BinaryIO:
        """The copy, opened for reading; fetched anew if it had to make room. Raises UserError if that gives other bytes."""
        return self.cache.open(self)


@dataclass(frozen=True)
class Cache:
    """Copies in `folder`, of at most `limit` bytes together. Any number of threads and processes may share it."""

    folder: Path
    limit: int

    def look_up(self, url: str, describe: Callable[[BinaryIO], Any]) -> tuple[Remote, Any]:
        """The file at `url` as it is now, and `describe` of it, a JSON value that is kept beside the copy and outlives it."""
        stat = remote.stat(url)
        with self._lock(_key(url)):
            note = self._note(url, stat)
            if note is None:
                with self._fetched(url, stat) as (file, sha256):
                    note = {"sha256": sha256, "content": describe(file)}
                mark = {"schema": SCHEMA, "url": remote.public(url), "bytes": stat.bytes, "version": stat.version}
                disk.write_sealed(self._path(url, ".json"), mark | note)
        return Remote(url, stat.bytes, stat.version, note["sha256"], self), note["content"]

    def open(self, file: Remote) -> BinaryIO:
        """See Remote."""
        with self._lock(_key(file.url)):
            opened = self._opened(file)
            if opened is None:
                with self._fetched(file.url, remote.Stat(file.bytes, file.version)) as (opened, sha256):
                    if sha256 != file.sha256:
                        raise UserError(
                            f"data.source: {file} holds other bytes than before under one version: run the same again"
                        )
                    opened = os.fdopen(os.dup(opened.fileno()), "rb")
        opened.seek(0)
        return opened

    def _note(self, url: str, stat: remote.Stat) -> dict[str, Any] | None:
        # what is known of the file in this version; without a version it may have changed at any time
        with contextlib.suppress(UserError, OSError):
            note = disk.read_sealed(self._path(url, ".json"), SCHEMA, "")
            if stat.version and (note["bytes"], note["version"]) == stat:
                return note
        return None

    def _opened(self, file: Remote) -> BinaryIO | None:
        path = self._path(file.url, ".tar")
        try:
            opened = path.open("rb")
        except FileNotFoundError:
            return None
        status = os.fstat(opened.fileno())
        mark = (file.sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        if mark not in _verified:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                opened.close()
                path.unlink(missing_ok=True)
                return None
            _verified.add(mark)
        with contextlib.suppress(OSError):  # evicted by another process since
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return opened

    @contextlib.contextmanager
    def _fetched(self, url: str, stat: remote.Stat) -> Iterator[tuple[BinaryIO, str]]:
        # a new copy, which gets its name if the block ends without an error
        path, temporary, digest = self._path(url, ".tar"), self._path(url, ".part"), hashlib.sha256()
        try:
            self._reserve(url, temporary, stat.bytes)
            with open(temporary, "r+b") as file:
                for piece in remote.content(url, stat):
                    file.write(piece)
                    digest.update(piece)
                file.seek(0)
                yield file, digest.hexdigest()
            with self._lock("room"):
                os.replace(temporary, path)
                status = os.stat(path)
            _verified.add((digest.hexdigest(), status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise UserError(f"{error.filename or temporary} cannot be written ({error.strerror}): free it") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _reserve(self, url: str, temporary: Path, size: int) -> None:
        # a file of that size, which counts at once
        if size > self.limit:
            gigabytes = f"{size / 2**30:.3g} GB, more than the cache may hold ({self.limit / 2**30:.3g})"
            raise UserError(f"data.source: {remote.public(url)} has {gigabytes}: raise compute.cache_gb")
        while True:
            with self._lock("room"):
                if self._make_room(size, temporary):
                    with open(temporary, "wb") as file:
                        file.truncate(size)
                    return
            time.sleep(POLL)  # what others fetch just now can make room when it is whole

    def _make_room(self, size: int, temporary: Path) -> bool:
        statuses = {}
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part") and path != temporary and not self._is_left(path):
                with contextlib.suppress(FileNotFoundError):  # a fetch that failed just now
                    statuses[path] = path.stat()
        held = sum(status.st_size for status in statuses.values())
        for path in sorted(statuses, key=lambda each: statuses[each].st_atime_ns):
            if path.suffix == ".tar" and held + size > self.limit:
                path.unlink()
                held -= statuses[path].st_size
        return held + size <= self.limit

    def _is_left(self, path: Path) -> bool:
        # half a copy of a process that is dead; removed
        if path.suffix != ".part":
            return False
        with open(self.folder / f"{path.stem}.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            path.unlink(missing_ok=True)
        return True

    def _path(self, url: str, suffix: str) -> Path:
        return self.folder / f"{_key(url)}{suffix}"

    @contextlib.contextmanager
    def _lock(self, word: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{word}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:32]

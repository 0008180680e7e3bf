"""DVC's own files, whole again after a kill.

DVC writes dvc.lock and rwlock in place, so that whoever is killed there, or finds the disk full, leaves them torn, and no
later command of DVC's can read them. And it deletes a stage's outputs before it starts the stage.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks.progress import log

LOCK = Path("dvc.lock")
HOME = Path(".dvc")
KEPT, DAMAGED = HOME / "tmp/dvc.lock.kept", HOME / "tmp/dvc.lock.damaged"
HOLDERS = HOME / "tmp/rwlock"
CACHE, RUNS = HOME / "cache/files/md5", HOME / "cache/runs"
HALF_MADE = re.compile(r"\.[\w-]{22}\.tmp", re.ASCII)
"""How DVC names what it writes before it moves it: 128 random bits, which nobody else would hit upon."""


def mend() -> None:
    """Puts back the last dvc.lock that could be read, takes the dead out of rwlock and removes what DVC had half made.

    Not what DVC is writing now.
    """
    with _unless_held("lock") as free:
        if free and LOCK.exists() and read(LOCK) is None:
            _put_back_lock()
        if free:
            _remove_half_made()
    with _unless_held("rwlock.lock") as free:
        if free and HOLDERS.exists():
            _forget_the_dead()


def keep() -> None:
    """Copies dvc.lock, if it can be read, for `mend`."""
    with _unless_held("lock") as free:
        if free and read(LOCK) is not None and not (KEPT.exists() and disk.sha256(KEPT) == disk.sha256(LOCK)):
            disk.write(KEPT, LOCK.read_bytes())


def read(path: Path) -> dict[str, Any] | None:
    """The stages of a dvc.lock by name, None if DVC could not read it."""
    from ruamel.yaml import YAML, YAMLError

    try:
        content = YAML(typ="safe").load(path.read_bytes())
    except (OSError, YAMLError, ValueError):
        return None
    stages = content.get("stages") if isinstance(content, dict) and "schema" in content else None
    return stages if isinstance(stages, dict) and all(map(_whole, stages.values())) else None


def _whole(stage: Any) -> bool:
    """What DVC's own schema asks of a stage, as far as a cut can spoil it."""
    if not isinstance(stage, dict) or not isinstance(stage.get("cmd"), str | list):
        return False
    params, parts = stage.get("params", {}), [stage.get("deps", []), stage.get("outs", [])]
    if not isinstance(params, dict) or not all(isinstance(one, dict) for one in params.values()):
        return False
    return all(isinstance(part, list) and all(map(_whole_part, part)) for part in parts)


def _whole_part(part: Any) -> bool:
    if not isinstance(part, dict) or "path" not in part:
        return False
    kinds = {"path": str, "md5": str, "hash": str, "size": int, "nfiles": int}
    return all(isinstance(part[key], kind) for key, kind in kinds.items() if key in part)


@contextlib.contextmanager
def _unless_held(name: str) -> Iterator[bool]:
    """Holds one of DVC's own locks during the block; False if DVC has it, is not at home here, or nothing can be written."""
    with contextlib.ExitStack() as held:
        try:
            (HOME / "tmp").mkdir(exist_ok=True)
            file = held.enter_context(open(HOME / "tmp" / name, "a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _put_back_lock() -> None:
    os.replace(LOCK, DAMAGED)
    instead = "it is made anew"
    if read(KEPT) is not None:
        disk.write(LOCK, KEPT.read_bytes())
        instead = "the last whole one is back in its place"
    log(
        f"dvc.lock was damaged, as a kill or a full disk leaves it: {instead}, what was finished since comes from DVC's cache"
    )


def _remove_half_made() -> None:
    """Copies on their way to the cache or to an output, and trials of links beside one: DVC never looks at them again."""
    outs = [Path(out["path"]) for stage in (read(LOCK) or {}).values() for out in stage.get("outs", [])]
    places = {out.parent for out in outs} | {CACHE, *CACHE.glob("??"), *RUNS.glob("??/*")}
    with contextlib.suppress(OSError):  # a read-only disk says so at the first thing that matters
        for path in [path for place in places for path in place.glob(".*.tmp")]:
            if HALF_MADE.fullmatch(path.name) and not (path.is_dir() and not path.is_symlink()):
                path.unlink()
    remove_empty_notes()


def remove_empty_notes() -> None:
    """Empty folders of DVC's run cache, over which DVC falls."""
    for place in (*RUNS.glob("??/*/*"), *RUNS.glob("??/*")):
        with contextlib.suppress(OSError):  # a file, or it holds something
            place.rmdir()


def _forget_the_dead() -> None:
    """DVC itself counts one that nobody has waited for yet, or whose number another process has by now, as at work."""
    written = HOLDERS.stat().st_mtime
    try:
        held = disk.parse_json(HOLDERS.read_text())
        writers, readers = held.get("write", {}), held.get("read", {})
        write = {path: one for path, one in writers.items() if _lives(one, written)}
        read = {path: [one for one in ones if _lives(one, written)] for path, ones in readers.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        log(f"{HOLDERS} was damaged, as a kill or a full disk leaves it: it is made anew")
        write, read = {}, {}
    left = {"write": write, "read": {path: ones for path, ones in read.items() if ones}}
    disk.write(HOLDERS, json.dumps(left))


def _lives(holder: dict[str, Any], written: float) -> bool:
    """Whether the process is the one that DVC noted, in a file last written at that time."""
    import psutil

    try:
        process = psutil.Process(int(holder["pid"]))
        arguments = holder["cmd"].split()[1:]
        born = process.create_time()
        command = " ".join(process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and born < written + 1 and command.endswith(" ".join(arguments))
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def wait_for_others(patience: float = 15.0) -> None:
    """Returns when no DVC is at work here; one that is after so many seconds is a UserError that names it."""
    deadline = time.monotonic() + patience
    while (pid := _at_work()) is not None:
        if time.monotonic() > deadline:
            raise UserError(f"DVC is at work in this folder: {who(pid)}; wait for it or end it")
        time.sleep(0.3)  # one whose starter was killed needs a moment to end
        mend()


def _at_work() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        held = disk.parse_json(HOLDERS.read_text())
        ones = [*held.get("write", {}).values(), *(one for ones in held.get("read", {}).values() for one in ones)]
        return next((int(one["pid"]) for one in ones), None)
    return None


def who(pid: int) -> str:
    """`process 4711 (python -m tasks run), since 2026-03-01 14:02:11`."""
    import psutil

    try:
        process = psutil.Process(pid)
        since = datetime.fromtimestamp(process.create_time()).isoformat(" ", "seconds")
        return f"process {pid} ({' '.join(process.cmdline())}), since {since}"
    except psutil.Error:
        return f"process {pid}"


def put_back(stage: str) -> list[Path]:
    """The outputs of the stage's last good run, from DVC's cache, for those where nothing stands now."""
    outs = (read(LOCK) or {}).get(stage, {}).get("outs", [])
    return [path for out in outs if _restored(path := Path(out["path"]), out.get("md5"))]


def _restored(path: Path, md5: Any) -> bool:
    if not isinstance(md5, str) or os.path.lexists(path):
        return False
    with contextlib.suppress(OSError, ValueError):  # not in this cache: DVC can still say where from
        if md5.endswith(".dir"):
            _restore_folder(path, md5)
        else:
            disk.write(path, _object(md5).read_bytes())
    return os.path.lexists(path)


def _restore_folder(path: Path, md5: str) -> None:
    with disk.folder(path) as new:
        for part in disk.parse_json(_object(md5).read_text()):
            (new / part["relpath"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_object(part["md5"]), new / part["relpath"])


def _object(md5: str) -> Path:
    """A file of DVC's cache, whose name is the digest of its content."""
    path = CACHE / md5[:2] / md5[2:]
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != md5.removesuffix(".dir"):
            raise ValueError(f"{path} is damaged")
    return path

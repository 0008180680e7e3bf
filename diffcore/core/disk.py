"""Writing that cannot be half done: a temporary name on the same file system, fsync, rename, and only then prune."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError

AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
"""What renameat2 answers where the kernel or the file system cannot do what a flag says."""


def sha256(path: Path) -> str:
    """The hex digest of one file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """The hex sha256 of a JSON value: the same for the same content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_free(path: Path, option: str = "target") -> None:
    """A UserError for a path that exists: what is there is not replaced. option: what the user names another one by."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists and is not replaced; name another {option}, or move it away")


def write(path: Path, content: bytes | str, new: bool = False) -> None:
    """Writes one file so that `path` holds either the old content or all of the new. new: never in the place of another
    file, also of one that has come meanwhile; a UserError then."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path, new)
    except OSError as error:
        error.add_note(str(path))  # the system names no file when it refuses a byte
        raise
    finally:
        _remove(temporary)  # where something was raised: on a full disk every byte counts
    _sync_folder(path.parent)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for brackets nested deeper than Python follows."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: Path, value: Any) -> None:
    """`write` for JSON, readable and with a stable order of keys as given; refuses NaN, which is not JSON."""
    write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` of an object, its key `schema` among others, with the digest of them all as its last key, `seal`."""
    content = json.loads(json.dumps(value, allow_nan=False))  # as it will be read: every key a string
    write_json(path, {**content, "seal": digest(content)})


def read_sealed(path: Path, schema: int | None, remedy: str) -> dict[str, Any]:
    """What `write_sealed` wrote, without the seal; schema: None for what has none.

    A UserError that ends with the remedy for a file that is missing, torn, changed or of another schema.
    """
    try:
        value = parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except ValueError:
        raise UserError(f"{path} is damaged, it is not JSON; {remedy}") from None
    if not isinstance(value, dict) or "seal" not in value:
        raise UserError(f"{path} has no seal: another version wrote it, or it was changed since; {remedy}")
    if value.pop("seal") != digest(value):
        raise UserError(f"{path} was changed since it was written; {remedy}")
    if value.get("schema") != schema:
        raise UserError(f"{path} has schema {value.get('schema')}, this version reads {schema}; {remedy}")
    return value


def write_summed(path: Path, text: str) -> None:
    """`write` for a table, which can hold no seal, and its digest beside it as `NAME.sha256`, which sha256sum checks."""
    write(path, text)
    write(_sum(path), f"{sha256(path)}  {path.name}\n")


def read_summed(path: Path, remedy: str) -> str:
    """What `write_summed` wrote. A UserError that ends with the remedy for a file that is missing or changed."""
    for needed in (path, _sum(path)):
        if needed.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(needed))
        if not needed.is_file():
            raise UserError(f"{needed} is missing; {remedy}")
    if _sum(path).read_bytes() != f"{sha256(path)}  {path.name}\n".encode():
        raise UserError(f"{path} was changed since it was written; {remedy}")
    return path.read_text()


def _sum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@contextlib.contextmanager
def folder(path: Path, new: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends, and vanishes if it raises. new: never in the place of what
    is there then; a UserError.

    What stood at `path` is exchanged for it in one step, after the new folder is complete and safe on the disk, and then
    removed. A process killed on the way leaves a `.NAME.PID.tmp` beside it, which the next writer of the same path removes.
    Where names cannot be exchanged (not Linux, or a file system without it) the old folder steps aside as `.NAME.PID.old`
    first; killed between these two renames, it is put back by the next writer.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            else:
                _sync_folder(file)
        _sync_folder(temporary)
        _swap(temporary, path, new)
    except Exception as error:
        error.add_note(str(path))
        raise
    finally:
        _remove(temporary)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty folder on the file system of `path`, to make in it what shall take that name; removed at the end."""
    temporary = _temporary(Path(path))
    try:
        temporary.mkdir()
        yield temporary
    finally:
        _remove(temporary)


def put(made: Path, path: Path, new: bool = False) -> None:
    """Gives a finished file its name, in the place of what stood there; new: as of `write`."""
    with open(made, "rb") as file:
        os.fsync(file.fileno())
    _rename(made, path, new)
    _sync_folder(Path(path).parent)


def _rename(made: Path, path: Path, new: bool) -> None:
    """new: refused in the same step where the name is taken."""
    if not new:
        os.replace(made, path)
        return
    try:
        if _renamed(made, path, RENAME_NOREPLACE):
            return
    except FileExistsError:
        pass
    check_free(path)
    os.rename(made, path)


def _temporary(path: Path) -> Path:
    """A free name beside `path`, whose folder there is then; what killed writers of the same path left is cleared away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def lock_file(path: Path) -> int:
    """A descriptor of a file to lock, made if it is not there, that every user may lock."""
    try:  # in a folder like /tmp, Linux refuses O_CREAT on what another user made
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)


def clear(path: Path) -> None:
    """Removes what killed writers of `path` left beside it, and puts back what stood there if it had stepped aside."""
    own = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(tmp|old)")
    matches = [match for match in map(own.fullmatch, os.listdir(path.parent)) if match]
    for match in matches:
        left = path.with_name(match[0])
        if int(match[1]) != os.getpid() and _alive(int(match[1])):
            continue
        if match[2] == "old" and not os.path.lexists(path):
            os.rename(left, path)
        _remove(left)


def _swap(made: Path, path: Path, new: bool) -> None:
    """Puts `made` in the place of `path`, and what stood there, if anything, in the place of `made`; new: as of `write`."""
    if new or not os.path.lexists(path):
        _rename(made, path, new)
    elif not _exchanged(made, path):
        _step_aside(made, path)
    _sync_folder(path.parent)


def _exchanged(made: Path, path: Path) -> bool:
    return _renamed(made, path, RENAME_EXCHANGE)


def _renamed(made: Path, path: Path, flag: int) -> bool:
    """Whether the kernel could rename as the flag says, which no reader and no kill can see half done."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if call(AT_FDCWD, os.fsencode(made), AT_FDCWD, os.fsencode(path), flag) == 0:
        return True
    if (code := ctypes.get_errno()) in UNABLE:
        return False
    raise OSError(code, os.strerror(code), str(path))


def _step_aside(made: Path, path: Path) -> None:
    # rename cannot replace a folder that has content: the old one steps aside first and is restored on failure
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, aside)
    try:
        os.rename(made, path)
    except OSError:
        os.rename(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What the machine refuses, in one line with its name and the remedy; the exit code is 2, for no further try mends it."""

import errno
import re
import shlex

REMEDIES = {
    errno.ENOSPC: "no space left on the disk; free some",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; make it writable, or work elsewhere",
    errno.EACCES: "permission denied; give this user the right to it",
    errno.EPERM: "not permitted; give this user the right to it",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine; close some or raise the limit",
    errno.ENOMEM: "out of memory; end other programs, or lower batch, images or compute.memory_gb",
    errno.EIO: "the disk fails to read or write it; look at the machine's log",
    errno.ENODEV: "no such device; look whether the disk is still there",
    errno.ENXIO: "no such device; look whether the disk is still there",
    errno.ENOTDIR: "a file is where a folder should be; move it away",
    errno.EISDIR: "a folder is where a file should be; move it away",
    errno.EFBIG: "the file is too large for this file system; work on another",
    errno.ESTALE: "the network file system lost it; mount it again",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.ELOOP: "the links lead in a circle; remove one",
}
MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory|bad_alloc", re.IGNORECASE)
NUMBER = re.compile(r"(?:\bcode: |os error |Errno )(\d+)")
"""Of an error that a library in another language passes on in words."""
SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
}


def describe(error: BaseException) -> str | None:
    """One line, or None if it is not the machine's fault. What an error was raised from counts too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if line := _describe_one(error):
            return line
        error = error.__cause__ or error.__context__
    return None


def one_line(error: BaseException) -> str:
    """An error in its own words, its cause in brackets, without line breaks."""
    causes = f"{error}" + (f" ({error.__cause__})" if error.__cause__ else "")
    return " ".join(causes.split())


def _describe_one(error: BaseException) -> str | None:
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or _says(error, RuntimeError, MEMORY)
    ):
        return f"{_first(error) or 'memory'}: {REMEDIES[errno.ENOMEM]}, and run the same command again"
    code = error.errno if isinstance(error, OSError) else _foreign(error)
    if code not in REMEDIES:
        return None
    named = [name for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name is not None]
    thing = " to ".join(map(str, named)) or ", ".join(getattr(error, "__notes__", [])) or _first(error)
    moved = f" (`mv {shlex.join([thing, f'{thing}.moved'])}`)" if code == errno.EISDIR and len(named) == 1 else ""
    return f"{thing}: {REMEDIES[code]}{moved}, and run the same command again"


def _foreign(error: BaseException) -> int | None:
    """The number that sqlite or safetensors means."""
    if type(error).__name__ == "SafetensorError" and (match := NUMBER.search(str(error))):
        return int(match[1])
    codes = [code for text, code in SQLITE.items() if text in str(error)]
    return codes[0] if codes and type(error).__name__ in ("OperationalError", "MlflowException") else None


def _says(error: BaseException, kind: type, pattern: re.Pattern) -> bool:
    return isinstance(error, kind) and pattern.search(str(error)) is not None


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""

"""Files on other machines, read over http(s) and S3: a few tries with growing waits, then one line that names the address.

What arrives is held against the size and the version (ETag, else the time of the last change) that the store announced for
it, answer by answer, so that a truncated or exchanged file never passes for a whole one. http needs nothing but Python; S3
needs s3fs, which takes its credentials and endpoint from the environment as all tools of AWS do.
"""

import abc
import contextlib
import functools
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from diffcore.core.errors import UserError
from diffcore.data.tars import printable

SCHEMES = ("http", "https", "s3")
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of a request that brought nothing."""
STALL = 30.0
"""Seconds without a byte after which a request counts as failed."""
PIECE = 1 << 20  # bytes that are held in memory at a time
RANGE = 16 << 20  # bytes of one request to S3
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Status codes that another try may better."""

T = TypeVar("T")


class Stat(NamedTuple):
    """Size in bytes, and what changes with the content: "" where the store says nothing of it."""

    bytes: int
    version: str


class Final(Exception):
    """A failure that no further try betters."""


class Store(abc.ABC):
    """Where files of one scheme lie. Any exception but `Final` may pass with another try."""

    @abc.abstractmethod
    def stat(self, url: str) -> Stat:
        """Size and version of a file."""

    @abc.abstractmethod
    def pieces(self, url: str, stat: Stat, start: int) -> Iterator[bytes]:
        """The bytes from `start` on. Raises Final if the file is no longer of that size and version."""

    def list(self, pattern: str) -> list[str]:
        """The addresses that a pattern with `*`, `?` or `[...]` stands for, sorted."""
        return [pattern]


def is_remote(place: str) -> bool:
    """Whether a place is an address of one of the schemes that are read."""
    match = ADDRESS.match(place)
    return match is not None and match[1].lower() in SCHEMES


def public(url: str) -> str:
    """An address for one line of text, without its query, which may hold a signature."""
    return printable(re.split(r"[?#]", url, maxsplit=1)[0] if url.lower().startswith("http") else url)


def name(url: str) -> str:
    """The last part of an address: the file's name."""
    return public(url).rpartition("/")[2]


def stat(url: str) -> Stat:
    """Size and version of a file. Raises UserError when it cannot be had."""
    return _tried(url, lambda: store(url).stat(url))


def expand(pattern: str) -> list[str]:
    """The addresses that a pattern without braces stands for. Raises UserError if there are none or if none can be listed."""
    return _tried(pattern, lambda: store(pattern).list(pattern))


def content(url: str, stat: Stat) -> Iterator[bytes]:
    """All bytes of a file in pieces. What was received is not asked for again after a failure, where the store allows that.

    Raises UserError if they cannot be had, or if the file is not of that size and version.
    """
    start = failures = 0
    while start < stat.bytes:
        try:
            for piece in store(url).pieces(url, stat, start):
                start, failures = start + len(piece), 0
                yield piece
            if start < stat.bytes:
                raise EOFError(f"the answer ended after {start} of {stat.bytes} bytes")
        except (UserError, Final) as error:
            raise _error(url, error) from None
        except Exception as error:
            failures += 1
            _wait(url, failures, error)


def _tried(url: str, request: Callable[[], T]) -> T:
    failures = 0
    while True:
        try:
            return request()
        except (UserError, Final) as error:
            raise _error(url, error) from None
        except Exception as error:
            failures += 1
            _wait(url, failures, error)


def _wait(url: str, failures: int, error: Exception) -> None:
    if failures > len(WAITS):
        tries = f"{failures} tries brought nothing, the last one: {_reason(error)}"
        raise UserError(f"data.source: {public(url)} cannot be read ({tries}): run the same again later") from None
    time.sleep(WAITS[failures - 1])


def _error(url: str, error: Exception) -> UserError:
    return error if isinstance(error, UserError) else UserError(f"data.source: {public(url)} {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return printable(f"HTTP {error.code} {error.reason}")
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return f"no byte in {STALL:g} s"
    return printable(" ".join(f"{error}".split()) or type(error).__name__)


def store(url: str) -> Store:
    """The store of an address. Raises UserError naming the extra that is missing."""
    return _s3() if ADDRESS.match(url)[1].lower() == "s3" else _http()


@functools.cache
def _http() -> "Http":
    return Http()


@functools.cache
def _s3() -> "S3":
    return S3()


class Http(Store):
    """Servers of files over http and https, with or without ranges."""

    def __init__(self):
        self._opener = urllib.request.build_opener()

    def list(self, pattern: str) -> list[str]:
        if "*" in pattern.partition("?")[0]:
            raise Final("has a *, and over http nothing can be listed: name the shards with {000..012} or {a,b}")
        return [pattern]

    def stat(self, url: str) -> Stat:
        with self._get(url, {"Range": "bytes=0-0"}) as answer:
            return _announced(answer)

    def pieces(self, url: str, stat: Stat, start: int) -> Iterator[bytes]:
        with self._get(url, {"Range": f"bytes={start}-"} if start else {}) as answer:
            if _announced(answer) != stat:
                raise Final("was changed while it was read: run the same again")
            at = _first(answer)
            if at > start:
                raise ValueError(f"it answers from byte {at}, asked for {start}")
            while at < stat.bytes and (piece := answer.read(min(PIECE, stat.bytes - at))):
                at += len(piece)
                if at > start:  # a server without ranges begins anew
                    kept = piece[-(at - start) :]
                    start = at
                    yield kept

    @contextlib.contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers})
        try:
            with self._opener.open(request, timeout=STALL) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise Final("is not there: there is no shard of this name") from None
            if error.code not in PASSING:
                raise Final(f"cannot be read ({_reason(error)})") from None
            raise


def _announced(answer: http.client.HTTPResponse) -> Stat:
    headers = answer.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Final(f"is sent as {printable(headers['Content-Encoding'])}: only plain bytes are read")
    total = headers.get("Content-Range", "").rpartition("/")[2] if answer.status == 206 else headers["Content-Length"]
    if not re.fullmatch(r"[0-9]{1,18}", total or ""):
        raise Final("comes without its size: use a server that announces it")
    return Stat(int(total), headers.get("ETag") or headers.get("Last-Modified") or "")


def _first(answer: http.client.HTTPResponse) -> int:
    # the position of the answer's first byte
    if answer.status != 206:
        return 0
    return int(re.match(r"bytes ([0-9]{1,18})-", answer.headers.get("Content-Range", "bytes 0-"))[1])


class S3(Store):
    """Buckets of S3 and of what speaks its language, through s3fs."""

    def __init__(self):
        try:
            import s3fs
        except ImportError:
            raise UserError(
                "data.source: s3:// needs s3fs, which is not installed: pip install 'distill[remote]'"
            ) from None
        patience = {"connect_timeout": STALL, "read_timeout": STALL, "retries": {"max_attempts": 1}}
        self._files = s3fs.S3FileSystem(config_kwargs=patience, use_listings_cache=False, skip_instance_cache=True)
        self._files.retries = 1  # tries are counted here

    def list(self, pattern: str) -> list[str]:
        if not re.search(r"[*?\[]", pattern):
            return [pattern]
        with _s3_errors():
            names = sorted(self._files.glob(pattern))
        if not names:
            raise Final("stands for nothing: there is no shard of this name")
        return [f"s3://{each}" for each in names]

    def stat(self, url: str) -> Stat:
        with _s3_errors():
            info: dict[str, Any] = self._files.info(url, refresh=True)
        if info.get("type") != "file":
            raise Final("is no file: there is no shard of this name")
        return Stat(int(info["size"]), str(info.get("ETag") or info.get("LastModified") or ""))

    def pieces(self, url: str, stat: Stat, start: int) -> Iterator[bytes]:
        for first in range(start, stat.bytes, RANGE):
            last = min(first + RANGE, stat.bytes)
            with _s3_errors():
                piece = self._files.cat_file(url, start=first, end=last)
            if self.stat(url) != stat:
                raise Final("was changed while it was read: run the same again")
            if len(piece) != last - first:
                raise EOFError(f"the answer has {len(piece)} of {last - first} bytes")
            yield piece


@contextlib.contextmanager
def _s3_errors() -> Iterator[None]:
    from botocore import exceptions

    try:
        yield
    except FileNotFoundError:
        raise Final("is not there: there is no shard of this name") from None
    except PermissionError as error:
        raise Final(f"cannot be read ({_reason(error)}): check the credentials") from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        remedy = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
        )
        raise Final(f"needs credentials, and none were found: {remedy}") from None


def fault(place: str) -> str | None:
    """What is wrong with an address as such, before anything is asked of it."""
    match = ADDRESS.match(place)
    if match is None:
        return None
    if match[1].lower() not in SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        return f"shards are read from this machine's disks and over {schemes}; fetch {public(place)} first"
    try:
        secret = "@" in urlsplit(place.partition("{")[0]).netloc
    except ValueError:
        return f"{public(place)} is no address"
    return "an address must not hold a password, which would be kept with the results" if secret else None

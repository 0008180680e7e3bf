"""Servers on this machine for tests: files over HTTP, with faults on demand, and S3."""

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffcore.core import disk

Fault = str | None
"""fail: 503. stall: some bytes, then none. truncate: half of what is announced. refuse: 403. alter: other bytes of the same
size under another ETag. gzip: encoded. sizeless: no Content-Length."""


@dataclass
class Files:
    """A folder over HTTP. plan: the fault of a request, by its number from 1 and its path. log: (path, Range) of each."""

    folder: Path
    plan: Callable[[int, str], Fault] = lambda number, path: None
    ranges: bool = True
    versions: bool = True
    log: list[tuple[str, str | None]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""


@contextlib.contextmanager
def files_over_http(files: Files) -> Iterator[Files]:
    """Serves on a free port of 127.0.0.1 until the block ends."""

    class Handler(_Handler):
        served = files

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    files.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        files.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Files
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        files, span = self.served, self.headers.get("Range")
        with files.lock:
            files.log.append((self.path, span))
            fault = files.plan(len(files.log), self.path)
        path = files.folder / self.path.partition("?")[0].lstrip("/")
        if fault in ("fail", "refuse") or not path.is_file():
            self.send_error({"fail": 503, "refuse": 403}.get(fault, 404))
            return
        content = path.read_bytes()
        version = disk.sha256(path)[:16]
        if fault == "alter":
            content, version = bytes(len(content)), "other"
        start, stop = self._span(span, len(content))
        self._head(span, start, stop, len(content), version, fault)
        body = content[start:stop]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body[: -(-len(body) // 2)] if fault in ("stall", "truncate") else body)
        if fault == "stall":
            files.over.wait()

    def _span(self, span: str | None, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", span or "") if self.served.ranges else None
        return (int(match[1]), min(int(match[2]) + 1, size) if match[2] else size) if match else (0, size)

    def _head(self, span: str | None, start: int, stop: int, size: int, version: str, fault: Fault) -> None:
        partial = span is not None and self.served.ranges
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        if fault != "sizeless":
            self.send_header("Content-Length", str(stop - start))
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if self.served.versions:
            self.send_header("ETag", f'"{version}"')
        self.end_headers()

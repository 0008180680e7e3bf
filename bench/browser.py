"""A headless Chromium that is driven over its own protocol: pictures of pages that draw themselves, also after a click."""

import base64
import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

STARTS = 60
"""Seconds that the browser has to start."""


class Page:
    """One tab. Each command is answered before the next is sent."""

    def __init__(self, socket: ClientConnection):
        self.socket, self.number = socket, 0
        self._call("Page.enable")
        self._call("Runtime.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=STARTS))
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False, seconds: float = 60) -> None:
        """Goes there with a window of this size and waits until the page has loaded, at most so many seconds."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._call("Page.navigate", url="about:blank")  # or another part of the same page would be no new one
        self._call("Page.navigate", url=address)
        self.wait("document.readyState == 'complete'", seconds)

    def run(self, script: str) -> Any:
        """What a piece of the page's own language gives."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a piece of the page's language is true; a TimeoutError that names it."""
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            with contextlib.suppress(RuntimeError):  # the page is just being replaced
                if self.run(condition):
                    return
            time.sleep(0.2)
        raise TimeoutError(f"{condition} is still not true after {seconds} s")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def move(self, x: float, y: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page however high it is."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.contextmanager
def browser(program: str = "chromium") -> Iterator[Page]:
    """A browser of its own, without a profile, that ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_tab(Path(profile)), max_size=None, open_timeout=STARTS) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(STARTS)


def _tab(profile: Path) -> str:
    """The address of the first tab's protocol."""
    last = time.monotonic() + STARTS
    note = profile / "DevToolsActivePort"
    while not (note.exists() and re.match(r"\d+\n", note.read_text())):
        if time.monotonic() > last:
            raise TimeoutError("the browser does not start")
        time.sleep(0.1)
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{int(note.read_text().split()[0])}/json/list") as answer:
        return next(each["webSocketDebuggerUrl"] for each in json.load(answer) if each["type"] == "page")

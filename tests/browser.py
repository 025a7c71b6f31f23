"""A headless Chromium that tests drive over its debugging pipe: open, click, measure, look."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REQUIRED = os.environ.get("VFLOWOPT_REQUIRE_BROWSER") == "1"
"""Set where a missing Chromium is an error rather than a reason to skip."""
_OFF = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
_SECONDS = 60


class Page:
    """One tab of the browser.

    Attributes:
        complaints: what was said on the console, thrown, or could not be loaded.
    """

    def __init__(self, browser: subprocess.Popen[bytes], pipes: tuple[Any, Any]) -> None:
        self._browser = browser
        self._to, self._from = pipes
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, hash: str = "") -> None:
        """Load a file and wait until it has drawn what it shows."""
        self._call("Page.navigate", url=f"{file.resolve().as_uri()}{hash}")
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def size(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        """Be a window of this size."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefers(self, scheme: str) -> None:
        """Be a system with this colour scheme."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def tell(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Go on when a condition in the page holds."""
        end = time.monotonic() + _SECONDS
        while not self.tell(condition):
            assert time.monotonic() < end, f"the page never came to {condition}"
            time.sleep(0.05)

    def picture(self, file: Path, *, whole: bool = False, selector: str | None = None) -> None:
        """Save what is seen: the window, the whole page or one element of it."""
        clip: dict[str, Any] = {}
        if selector is not None:
            box = f"document.querySelector({selector!r}).getBoundingClientRect()"
            sides = self.tell(f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])({box})")
            names = ("x", "y", "width", "height")
            clip = {"clip": {**dict(zip(names, sides, strict=True)), "scale": 1}}
        shot = self._call(
            "Page.captureScreenshot",
            captureBeyondViewport=whole or selector is not None,
            **clip,
        )
        file.write_bytes(b64decode(shot["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (letter := self._from.read(1)) != b"\0":
            assert letter, "chromium ended"
            text += letter
        message: dict[str, Any] = json.loads(bytes(text))
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            words = [str(each.get("value", each.get("description"))) for each in told["args"]]
            self.complaints.append(f"console.{told['type']}: {' '.join(words)}")
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(f"exception: {thrown}")
        elif method == "Log.entryAdded":
            self.complaints.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.complaints.append(f"request: {url}")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A fresh browser with one page; its profile is kept in a folder of the caller's."""
    assert CHROMIUM is not None
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
        *(f"--disable-{thing}" for thing in _OFF),
        f"--user-data-dir={profile}",
    ]
    # chromium reads its pipe from 3 and writes to 4
    script = f'exec "$@" 3<&{to_browser} 4>&{to_us}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(to_browser, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"HOME": str(profile), "PATH": "/usr/bin:/bin"},
    )
    os.close(to_browser)
    os.close(to_us)
    with os.fdopen(from_us, "wb") as writer, os.fdopen(from_browser, "rb") as reader:
        try:
            yield Page(process, (writer, reader))
        finally:
            process.terminate()
            process.wait(timeout=_SECONDS)

"""Debian's Chromium without a screen, driven over its debugging pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from teuthis.closing import Closing

PROGRAM = shutil.which("chromium")
_TO_BROWSER, _FROM_BROWSER = 3, 4


class Chromium(Closing):
    """One page in a browser of its own."""

    def __init__(self, home: Path, size: tuple[int, int] = (1500, 1600)) -> None:
        assert PROGRAM is not None
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        # The browser reads commands from descriptor 3 and writes answers to 4.
        script = f'exec "$@" {_TO_BROWSER}<&{read} {_FROM_BROWSER}>&{write}'
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe",
            f"--user-data-dir={home}", "--window-size={},{}".format(*size), "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", PROGRAM, *options],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._numbers = itertools.count(1)
        self._unread = b""
        self.messages: list[str] = []
        """What the page said on its console: errors, refusals of its security policy."""
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(each for each in targets if each["type"] == "page")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    _session: str | None = None

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        command: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._to, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            data = os.read(self._from, 1 << 16)
            assert data, "the browser has gone"
            self._unread += data
        raw, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Log.entryAdded":
                self.messages.append(message["params"]["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.messages.append(json.dumps(message["params"]["exceptionDetails"]))

    def prefer(self, *, dark: bool) -> None:
        """Light or dark surroundings."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def open(self, address: str) -> None:
        """Goes to a page."""
        self._call("Page.navigate", url=address)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(
        self, expression: str, among: Collection[object] = (True,), seconds: float = 300
    ) -> Any:
        """Waits until the expression has one of the values."""
        deadline = time.monotonic() + seconds
        while (value := self.ask(expression)) not in among:
            assert time.monotonic() < deadline, f"{expression} is {value}; {self.messages}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> None:
        """Writes what the page looks like as a PNG."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

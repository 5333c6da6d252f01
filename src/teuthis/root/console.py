"""The guest's console as the client sees it: the newest output, kept for its last words.

Everything here was written by the guest. It is kept and passed on as bytes, and `harmless` stands
between it and every message or terminal.
"""

import os
import re
import threading
from typing import Final, Protocol

from teuthis.flows import FLOWS

KEPT: Final = FLOWS["console.output"].max_bytes
"""How many bytes of the console are kept."""

_LAST_LINES: Final = 24
_LINES_BEFORE_PANIC: Final = 6
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


class Sink(Protocol):
    """Where console output may be copied to: a binary file, for instance."""

    def write(self, data: bytes, /) -> object:
        """Takes some output."""


def harmless(text: bytes) -> str:
    """Guest text that may be shown: no escape sequences, no control or invisible characters."""
    clean = _ESCAPES.sub("", text.decode(errors="replace").replace("\r\n", "\n"))
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in clean
    )


class Console:
    """Reads the console pipe in a thread of its own, since `sink` may block."""

    def __init__(self, descriptor: int, sink: Sink | None) -> None:
        """Reads `descriptor` to its end and closes it; copies everything to `sink`."""
        self._descriptor = descriptor
        self._sink = sink
        self._tail = bytearray()
        self._thread = threading.Thread(target=self._read, name="teuthis-console", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with os.fdopen(self._descriptor, "rb", buffering=0) as pipe:
            while data := pipe.read(KEPT):
                self._tail += data
                del self._tail[:-KEPT]
                if self._sink is not None:
                    try:
                        self._sink.write(data)
                    except (OSError, ValueError):
                        self._sink = None  # gone; the newest output is still kept

    def finish(self, timeout: float) -> None:
        """Waits until everything has been read, at most `timeout` seconds."""
        self._thread.join(timeout)

    def tail(self) -> bytes:
        """The newest output, at most `KEPT` bytes."""
        return bytes(self._tail)

    def last_words(self) -> str:
        """The last lines, harmless; of a kernel panic the lines around its first one."""
        lines = harmless(self.tail()).rstrip().splitlines()
        panic = next((at for at, line in enumerate(lines) if "Kernel panic" in line), len(lines))
        first = max(0, min(panic - _LINES_BEFORE_PANIC, len(lines) - _LAST_LINES))
        return "\n".join(lines[first : first + _LAST_LINES])

"""Log files of a VM: what a guest writes into them is bounded, and shown harmless."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

LIMIT: Final = 10 << 20
"""Bytes of one log; the oldest half goes when it is full."""
KERNEL: Final = "kernel.log"
OUTPUT: Final = "output.log"

_CHUNK: Final = 64 * 1024
_POLL_SECONDS: Final = 0.2


class LogFile:
    """The writing end: two files of half the limit each, the newer one of which grows."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Goes on with the log at `path`, if there is one."""
        self._path = path
        self._half = limit // 2
        self._file = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def write(self, data: bytes, /) -> None:
        """Appends `data`. Raises `OSError`: a full disk, for instance."""
        view = memoryview(data)
        while view:
            room = self._half - os.fstat(self._file).st_size
            if room <= 0:
                self._begin_anew()
                continue
            view = view[os.write(self._file, view[:room]) :]

    def _begin_anew(self) -> None:
        """Whatever fails in here: the descriptor we hold stays ours, and the next time goes on."""
        with suppress(FileNotFoundError):
            self._path.replace(_older(self._path))
        newer = self._open()
        os.close(self._file)
        self._file = newer

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read(path: Path, go_on: Callable[[], bool] = lambda: False) -> Iterator[bytes]:
    """What the log at `path` holds, oldest first; waits for more while `go_on()`."""
    older = _older(path)
    if older.exists():
        yield from _content(older)
    while True:
        more = go_on()  # asked first: what was written before the end is read after it
        try:
            with path.open("rb", buffering=0) as file:
                while True:
                    while data := file.read(_CHUNK):
                        yield data
                    if _replaced(file.fileno(), path):
                        yield from iter(lambda: file.read(_CHUNK), b"")
                        break
                    if not more:
                        return
                    time.sleep(_POLL_SECONDS)
                    more = go_on()
        except FileNotFoundError:
            if not more:
                return
            time.sleep(_POLL_SECONDS)


def _content(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        yield from iter(lambda: file.read(_CHUNK), b"")


def _replaced(descriptor: int, path: Path) -> bool:
    try:
        return path.stat().st_ino != os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return True


def _older(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".1")

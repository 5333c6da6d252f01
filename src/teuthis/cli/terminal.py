"""A program in a virtual machine on the user's own terminal."""

import os
import re
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final, Self

from teuthis.cli import attach, escapes
from teuthis.errors import ConfigurationError
from teuthis.flows import Counters
from teuthis.root.guest import Guest
from teuthis.root.process import PIPE, Process
from teuthis.root.settings import MAX_TERMINAL

_STDIN, _STDOUT = 0, 1
_CHUNK: Final = 64 * 1024
_PATIENCE: Final = 0.05
"""Seconds for answers of the terminal that are still on their way, so that nobody takes them for
typing."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")

SHELL: Final = (
    "/bin/sh",
    "-c",
    "cd 2>/dev/null; if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi",
)
"""A login shell: bash where there is one. Not every user has a home."""


def check() -> None:
    """Raises `ConfigurationError` unless we have a terminal, with input and output."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError(
            "there is no terminal: stdin and stdout must both be one; "
            "`teuthis run` and `teuthis exec` without --tty do not need it"
        )


def run(
    vm: Guest,
    command: Sequence[str],
    workdir: str,
    limit: float | None,
    counters: Counters,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> int:
    """Runs the program on our terminal; returns the exit code for us.

    After the Enter key, `~.` ends the session, whatever the guest does.
    """
    check()
    name = os.environ.get("TERM", "")
    variables = {"TERM": name if _NAME.fullmatch(name) else "vt100", **(env or {})}
    with vm.popen(
        command, stdin=PIPE, cwd=workdir, env=variables, user=user, tty=_size()
    ) as process:
        with _Raw():
            code = _show(process, limit, escapes.Filter(counters))
        if code is None:
            process.kill()
            if limit is not None:
                attach.say(f"killed after its time limit of {limit:g} s")
            return attach.TIMED_OUT
    return 128 - code if code < 0 else code


def _show(process: Process, limit: float | None, shown: escapes.Filter) -> int | None:
    """Shows the program until its end; None when its time is over."""

    def resize(number: int = 0, frame: FrameType | None = None) -> None:
        process.resize(*_size())

    assert process.stdin is not None
    assert process.stdout is not None
    keys = os.dup(process.stdin.fileno())  # a thread that waits for a key owns its descriptor
    threading.Thread(target=_feed, args=(keys,), daemon=True).start()
    pump = threading.Thread(target=_pump, args=(process.stdout.fileno(), shown), daemon=True)
    pump.start()
    signal.signal(signal.SIGWINCH, resize)
    try:
        resize()  # it may have changed before we listened
        code = process.wait(limit)
        pump.join()
    except TimeoutError:
        return None
    finally:
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
    return code


def _size() -> tuple[int, int]:
    columns, rows = os.get_terminal_size(_STDOUT)
    return min(max(rows, 1), MAX_TERMINAL), min(max(columns, 1), MAX_TERMINAL)


def _pump(source: int, shown: escapes.Filter) -> None:
    with suppress(OSError):  # a terminal that is gone: SIGHUP ends us
        while data := os.read(source, _CHUNK):
            attach.write(_STDOUT, shown.feed(data))


def _feed(target: int) -> None:
    keys = Keys()
    with suppress(OSError):
        while data := os.read(_STDIN, _CHUNK):
            attach.write(target, keys.typed(data))
            if keys.left:
                os.kill(os.getpid(), signal.SIGHUP)  # the way of a terminal that goes
                break
    os.close(target)


class Keys:
    """What is typed, but for the way out: `~.` after Enter. `~~` there types one `~`.

    Attributes:
        left: whether the way out was taken.
    """

    def __init__(self) -> None:
        self.left = False
        self._line_begins = True
        self._tilde = False

    def typed(self, data: bytes) -> bytes:
        """What of it is for the guest."""
        out = bytearray()
        for key in data:
            if self._tilde:
                self._tilde = False
                if key == ord("."):
                    self.left = True
                    break
                if key != ord("~"):
                    out.append(ord("~"))
            elif self._line_begins and key == ord("~"):
                self._tilde = True
                self._line_begins = False
                continue
            out.append(key)
            self._line_begins = key in b"\r\n"
        return bytes(out)


class _Raw:
    """Our terminal while a guest has it; as it was before in every way out."""

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(_STDIN)
        tty.setraw(_STDIN)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with suppress(OSError):
                attach.write(_STDOUT, escapes.RESET)
            time.sleep(_PATIENCE)
        finally:
            with suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSAFLUSH, self._before)

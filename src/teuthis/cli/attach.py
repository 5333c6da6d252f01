"""A program in a virtual machine with its streams connected to ours: what its verbs share."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Final

from teuthis.errors import (
    CommandNotExecutable,
    CommandNotFound,
    CommandTimeout,
    ConfigurationError,
    TeuthisError,
    VMError,
)
from teuthis.root.console import harmless
from teuthis.root.guest import Guest
from teuthis.root.process import PIPE

if TYPE_CHECKING:
    from rich.table import Table

    from teuthis.root.disks import Disk
    from teuthis.root.named import NamedVM

TIMED_OUT: Final = 124
OWN_ERROR: Final = 125
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
_STDIN, STDOUT, _STDERR = 0, 1, 2
_CHUNK: Final = 64 * 1024
_FILE_WIDTH: Final = 1000


@contextmanager
def verb(*, brief: bool = False) -> Iterator[None]:
    """Ends the program with the exit code of what happens in the block: a signal, or our error.

    `brief` leaves out the guest's last words, when they have been shown already.
    """
    codes = {
        CommandTimeout: TIMED_OUT,
        CommandNotFound: _NOT_FOUND,
        CommandNotExecutable: _NOT_EXECUTABLE,
    }
    try:
        with _signals():
            yield
    except _Signalled as end:
        raise SystemExit(128 + end.number) from None
    except TeuthisError as error:
        say(str(error).partition("\n")[0] if brief else str(error))
        raise SystemExit(codes.get(type(error), OWN_ERROR)) from None


def variable(text: str) -> tuple[str, str]:
    """Name and value of an `--env` option."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--env {text}: write NAME=VALUE")
    return name, value


def disk(text: str) -> "Disk":
    """What a `--disk` option says."""
    from teuthis.root.disks import Disk

    path, comma, mode = text.rpartition(",")
    if not comma or mode not in ("ro", "cow"):
        return Disk(text)
    return Disk(path, read_only=mode == "ro", copy_on_write=mode == "cow")


def connect(name: str) -> "NamedVM":
    """A VM with a name that can be asked for programs and files now."""
    from teuthis.root import named

    vm = named.connect(name)
    if vm.paused:
        vm.close()
        raise VMError(f"the VM {name!r} is paused: `teuthis resume {name}` lets it go on")
    return vm


def say(text: str) -> None:
    """Tells the user something, on stderr; nothing in it can command a terminal."""
    with suppress(OSError):
        clean = harmless(text.encode(errors="replace"))
        print(f"teuthis: {clean}", file=sys.stderr, flush=True)


class _Signalled(BaseException):
    """A signal that ends the VM and us."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals() -> Iterator[None]:
    """Turns the first ^C, SIGTERM or hang-up into an exception; a second one ends us at once.

    Nothing depends on our cleaning up: whenever we are gone, the VM ends.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def handle(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise _Signalled(number)

    for each in numbers:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handle)
    yield


class Log:
    """Text of a guest on one of our streams, line by line, harmless for terminals."""

    def __init__(self, target: int = _STDERR) -> None:
        self._target = target
        self._line = b""

    def write(self, data: bytes, /) -> None:
        """Shows the complete lines of `data` and of what came before."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _CHUNK:
            lines.append(self._line)
            self._line = b""
        text = "".join(harmless(line.rstrip(b"\r")) + "\n" for line in lines)
        write(self._target, text.encode())

    def close(self) -> None:
        """Shows what has no end of line."""
        if self._line:
            self.write(b"\n")


def shown(text: str) -> str:
    """Text that may have come from a guest, harmless and on one line."""
    return " ".join(harmless(text.encode(errors="replace")).split())


def print_table(table: "Table", *, stderr: bool = False) -> None:
    """Shows a table; in a file or a pipe no line is folded to the width of a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _FILE_WIDTH
    Console(stderr=stderr, highlight=False, markup=False, width=width).print(table)


def print_json(value: object) -> None:
    """Writes a value as JSON to stdout."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def run(
    vm: Guest,
    command: Sequence[str],
    workdir: str,
    limit: float | None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> int:
    """Runs the program with its streams connected to ours; returns the exit code for us."""
    deadline = None if limit is None else time.monotonic() + limit
    process = vm.popen(command, stdin=PIPE, cwd=workdir, env=env, user=user)
    assert process.stdin is not None
    assert process.stderr is not None
    unread = threading.Event()
    pumps = [
        threading.Thread(target=_pump, args=(source.fileno(), target, vm, unread), daemon=True)
        for source, target in ((process.stdout, STDOUT), (process.stderr, _STDERR))
    ]
    # A thread that waits for a terminal's next line cannot be ended: it owns its descriptor.
    feed = os.dup(process.stdin.fileno())
    process.stdin.close()
    threading.Thread(target=_feed, args=(feed,), daemon=True).start()
    for pump in pumps:
        pump.start()
    try:
        code = process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        for pump in pumps:
            pump.join()
    except TimeoutError:
        say(f"killed after its time limit of {limit:g} s")
        return TIMED_OUT
    except VMError:
        if not unread.is_set():
            raise
        code = -signal.SIGPIPE
    if unread.is_set():
        code = -signal.SIGPIPE
    if code == -signal.SIGKILL and vm.memory_ran_out():
        say("the guest's memory ran out and its kernel killed the program: --memory gives it more")
    return 128 - code if code < 0 else code


def _pump(source: int, target: int, vm: Guest, unread: threading.Event) -> None:
    """Copies the guest's output to ours as it comes; ends the VM when nobody reads ours."""
    while data := os.read(source, _CHUNK):
        try:
            write(target, data)
        except OSError:
            unread.set()
            vm.close()
            return


def _feed(target: int) -> None:
    """Copies our stdin to the guest until its end."""
    with suppress(OSError):
        while data := os.read(_STDIN, _CHUNK):
            write(target, data)
    os.close(target)


def write(target: int, data: bytes) -> None:
    """Writes all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]

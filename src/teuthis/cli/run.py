"""`teuthis run`: one program in a virtual machine of its own, its streams connected to ours."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from teuthis.errors import (
    CommandNotExecutable,
    CommandNotFound,
    CommandTimeout,
    ConfigurationError,
    TeuthisError,
    VMError,
)
from teuthis.root.process import PIPE
from teuthis.root.vm import VM

_TIMED_OUT: Final = 124
_OWN_ERROR: Final = 125
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_CHUNK: Final = 64 * 1024


class Command(TyperCommand):
    """The verb; wrong options end it with the exit code of our own errors, not the program's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:
                error.exit_code = _OWN_ERROR  # type: ignore[attr-defined]
            raise


def main(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    memory: Annotated[str, typer.Option(help="Guest memory: 256M, 2G, …")] = "256M",
    timeout: Annotated[
        str | None,
        typer.Option(help="Time limit of the program, such as 30s or 5m; then the VM is killed."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An environment variable; may be repeated."),
    ] = None,
    workdir: Annotated[str, typer.Option(help="Working directory in the guest.")] = "/",
    kernel: Annotated[
        Path | None,
        typer.Option(help="A vmlinuz or vmlinux instead of the distribution's cloud kernel."),
    ] = None,
    console: Annotated[
        bool, typer.Option("--console", help="Show the guest kernel's log on stderr.")
    ] = False,
    allow_missing_wall: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run without a wall that this host cannot give."),
    ] = None,
    flows: Annotated[
        bool,
        typer.Option("--flows", help="Afterwards show on stderr what crossed the VM's boundary."),
    ] = False,
    counts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Afterwards write the same as JSON, for `squid`."),
    ] = None,
) -> None:
    """Run a program in a new virtual machine.

    The program's stdout and stderr arrive here as they come, and stdin goes to it. The VM has a
    fresh file system in memory, no network and no access to this machine's files; when the program
    ends, on ^C and after the time limit nothing of it stays behind.

    The exit code is the program's own, or 128 + n when signal n killed it; 124 after the time
    limit; 125 when Teuthis or the VM failed; 126 and 127 when the guest cannot run or find the
    program.

    For example:

        teuthis run -- uname -a
        teuthis run --memory 512M --timeout 30s -- sh -c 'exit 3'
        teuthis run --env NAME=world -- sh -c 'echo hello $NAME'
        tar c . | teuthis run -- sha256sum
        teuthis run --kernel ./vmlinuz --console -- dmesg
    """
    from teuthis.root import settings

    code = _OWN_ERROR
    try:
        with _signals():
            limit = None if timeout is None else settings.duration(timeout)
            variables = dict(_variable(text) for text in env or ())
            log = _Log() if console else None
            with VM(
                memory,
                kernel=kernel,
                console=log,
                env=variables,
                allow_missing_walls=allow_missing_wall or (),
            ) as vm:
                try:
                    code = _run(vm, command, workdir, limit)
                finally:
                    vm.close()
                    if flows:
                        from teuthis.cli.flows import print_counts

                        print_counts(vm.flows())
                    if counts is not None:
                        _write_counts(counts, vm)
    except _Signalled as end:
        code = 128 + end.number
    except TeuthisError as error:
        _say(str(error).partition("\n")[0] if console else str(error))
        code = _exit_code(error)
    raise typer.Exit(code)


def _write_counts(path: Path, vm: VM) -> None:
    from teuthis.flows.counts import write

    try:
        write(path, vm.flows())
    except OSError as error:
        raise ConfigurationError(f"--counts {path}: {error.strerror}") from error


def _exit_code(error: TeuthisError) -> int:
    codes = {
        CommandTimeout: _TIMED_OUT,
        CommandNotFound: _NOT_FOUND,
        CommandNotExecutable: _NOT_EXECUTABLE,
    }
    return codes.get(type(error), _OWN_ERROR)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--env {text}: write NAME=VALUE")
    return name, value


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"teuthis: {text}", file=sys.stderr, flush=True)


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


class _Log:
    """The guest's console on our stderr, line by line, harmless for terminals."""

    def __init__(self) -> None:
        self._line = b""

    def write(self, data: bytes, /) -> None:
        """Shows the complete lines of `data` and of what came before."""
        from teuthis.root.console import harmless

        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _CHUNK:
            lines.append(self._line)
            self._line = b""
        text = "".join(harmless(line.rstrip(b"\r")) + "\n" for line in lines)
        _write(_STDERR, text.encode())


def _run(vm: VM, command: Sequence[str], workdir: str, limit: float | None) -> int:
    """Runs the program with its streams connected to ours; returns the exit code for us."""
    deadline = None if limit is None else time.monotonic() + limit
    process = vm.popen(command, stdin=PIPE, cwd=workdir)
    assert process.stdin is not None
    assert process.stderr is not None
    unread = threading.Event()
    pumps = [
        threading.Thread(target=_pump, args=(source.fileno(), target, vm, unread), daemon=True)
        for source, target in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
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
        _say(f"killed after its time limit of {limit:g} s")
        return _TIMED_OUT
    except VMError:
        if not unread.is_set():
            raise
        code = -signal.SIGPIPE
    if unread.is_set():
        code = -signal.SIGPIPE
    if code == -signal.SIGKILL and vm.memory_ran_out():
        _say("the guest's memory ran out and its kernel killed the program: --memory gives it more")
    return 128 - code if code < 0 else code


def _pump(source: int, target: int, vm: VM, unread: threading.Event) -> None:
    """Copies the guest's output to ours as it comes; ends the VM when nobody reads ours."""
    while data := os.read(source, _CHUNK):
        try:
            _write(target, data)
        except OSError:
            unread.set()
            vm.close()
            return


def _feed(target: int) -> None:
    """Copies our stdin to the guest until its end."""
    with suppress(OSError):
        while data := os.read(_STDIN, _CHUNK):
            _write(target, data)
    os.close(target)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]

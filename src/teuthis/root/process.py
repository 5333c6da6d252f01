"""A program that runs in a guest."""

import errno
import math
import os
import signal
import time
from contextlib import suppress
from types import TracebackType
from typing import Final

from teuthis.closing import Closing
from teuthis.errors import (
    CommandError,
    CommandNotExecutable,
    CommandNotFound,
    CommandTimeout,
    NoAgent,
    OutputTooLarge,
)
from teuthis.flows import FLOWS
from teuthis.protocol import ROOT, Exec, Resize, Signal, StatusKind
from teuthis.root import settings
from teuthis.root.caller import Caller
from teuthis.root.result import Result
from teuthis.root.streams import Exchange, Pipes

PIPE: Final = -1
"""As in `subprocess`: a new pipe."""
STDOUT: Final = -2
"""As in `subprocess`: stderr goes where stdout goes."""

NO_AGENT: Final = (
    "this VM was started without our agent (agent=False, --no-agent), so nobody in it runs "
    "commands or moves files for us: use its own services, over its network for instance"
)
_UNKNOWN_USER: Final = FLOWS["agent.error"].values["unknown_user"]
_UNKNOWN_GROUP: Final = FLOWS["agent.error"].values["unknown_group"]
_KILL_PATIENCE: Final = 2.0
"""Seconds that the guest's kernel gets to end a killed program."""
_DEATH_PATIENCE: Final = 3.0
"""Seconds from a lost connection to the end of the VM, if that is why it was lost."""


class Process(Closing):
    """A program running in a guest, used like a `subprocess.Popen`. Made by `VM.popen`.

    Attributes:
        args: its command line.
        pid: its process id in the guest.
        stdin, stdout, stderr: our ends of its streams, binary files; None where there is no pipe.
    """

    def __init__(
        self,
        machine: Caller,
        args: list[str],
        env: dict[str, str],
        cwd: str,
        *,
        stdin: int | None = None,
        stderr: int = PIPE,
        user: str = ROOT,
        tty: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.args = args
        self._machine = machine
        self._began = time.monotonic()
        with Pipes() as pipes:
            stdin_pipe = pipes.writer()
            self.stdout = pipes.reader()
            self.stderr = None
            if stderr == STDOUT or tty is not None:
                pipes.give(os.dup(pipes.given[-1]))
            else:
                self.stderr = pipes.reader()
            self._answer = machine.submit(
                lambda number: Exec(number, args, env, cwd, tty, user), pipes.given
            )
            pipes.sent()
            try:
                self.pid = self._answer.started.result(timeout)
            except TimeoutError:
                self.kill()
                raise _too_slow(args, timeout, self._result(-signal.SIGKILL, None)) from None
            if self.pid == 0:
                raise self._not_started(cwd, user)
            self.stdin = stdin_pipe if stdin == PIPE else None
            if self.stdin is None:
                stdin_pipe.close()
            pipes.keep()

    def _not_started(self, cwd: str, user: str) -> CommandError:
        number = self._answer.finished.result().value
        if number == errno.ECONNRESET:
            self._machine.raise_end(_DEATH_PATIENCE)
        if number == errno.ENOTCONN:
            return NoAgent(NO_AGENT)
        program = self.args[0]
        if number == errno.ENOENT:
            return CommandNotFound(
                f"{program!r} was not found in the guest: `ls /bin` there lists its programs"
            )
        if number == errno.ENOTDIR:
            return CommandNotFound(
                f"the working directory {cwd!r} of {program!r} does not exist in the guest"
            )
        if number in (_UNKNOWN_USER, _UNKNOWN_GROUP):
            name, _, group = user.partition(":")
            missing = f"user {name!r} in its /etc/passwd"
            if number == _UNKNOWN_GROUP:
                missing = f"group {group!r} in its /etc/group"
            return CommandError(
                f"{program!r} cannot run as {user!r}: the guest has no {missing}. "
                "Say one that is there, a number, or root (`user`, --user)"
            )
        if number in (errno.EACCES, errno.ENOEXEC, errno.EISDIR):
            return CommandNotExecutable(
                f"{program!r} cannot be run by the guest: {os.strerror(number)}"
            )
        return CommandError(f"the guest could not run {program!r}: {os.strerror(number)}")

    def __repr__(self) -> str:
        return f"<Process {self.args} pid={self.pid} returncode={self.returncode}>"

    @property
    def returncode(self) -> int | None:
        """Exit code, or -n when signal n killed it; None while it runs or when its VM ended."""
        finished = self._answer.finished
        return self.wait() if finished.done() and finished.exception() is None else None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; returns the exit code, or -n when signal n killed it.

        As with `subprocess`, a program that writes more than a pipe holds does not end before its
        output is read.

        Raises:
            TimeoutError: it still runs after `timeout` seconds (it goes on running).
            VMError: the VM ended first.
        """
        try:
            status = self._answer.finished.result(timeout)
        except TimeoutError:
            raise TimeoutError(f"{self.args[0]!r} still runs after {timeout:g} s") from None
        if status.kind is StatusKind.FAILED:
            # A dying guest drops its connections first.
            self._machine.raise_end(_DEATH_PATIENCE)
            raise CommandError(f"the guest lost {self.args[0]!r}: {os.strerror(status.value)}")
        return -status.detail if status.detail else status.value

    def send_signal(self, number: int) -> None:
        """Sends a signal to its process group; does nothing when it has ended."""
        if not self._answer.finished.done():
            self._machine.tell(Signal(self._answer.id, number))

    def resize(self, rows: int, columns: int) -> None:
        """Changes the size of its terminal; does nothing when it has none, or has ended."""
        rows, columns = settings.terminal_size(rows, columns)
        if not self._answer.finished.done():
            self._machine.tell(Resize(self._answer.id, rows, columns))

    def terminate(self) -> None:
        """Asks it to end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it (SIGKILL)."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Closes our ends of its streams. A program that still writes gets SIGPIPE."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if kind is None:
            self.wait()
        else:
            self.kill()

    def collect(self, data: bytes, timeout: float | None, max_output: int) -> Result:
        """Feeds `data` to it, reads what it writes, and waits for its end.

        Raises:
            CommandTimeout: not at its end `timeout` seconds after its start; it has been killed.
            OutputTooLarge: wrote more than `max_output` bytes; it has been killed.
            VMError: the VM ended first.
        """
        deadline = math.inf if timeout is None else self._began + timeout
        readers = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        exchange = Exchange(data, self.stdin, readers, max_output)
        try:
            if exchange.run(deadline):
                with suppress(TimeoutError):
                    rest = None if timeout is None else max(0.1, deadline - time.monotonic())
                    return self._result(self.wait(rest), exchange)
            self.kill()
            exchange.run(time.monotonic() + _KILL_PATIENCE)
        except BaseException:
            self.kill()
            raise
        finally:
            self.close()
        result = self._result(-signal.SIGKILL, exchange)
        if exchange.too_large:
            raise OutputTooLarge(
                f"{self.args[0]!r} wrote more than {max_output} bytes and was killed: "
                "raise `max_output`, or read its output in pieces with `popen`",
                result,
            )
        raise _too_slow(self.args, timeout, result)

    def _result(self, code: int, exchange: Exchange | None) -> Result:
        stdout, stderr = (
            exchange.output(stream) if exchange is not None and stream is not None else b""
            for stream in (self.stdout, self.stderr)
        )
        duration = time.monotonic() - self._began
        if code < 0:
            return Result(128 - code, -code, stdout, stderr, duration)
        return Result(code, None, stdout, stderr, duration)


def _too_slow(args: list[str], timeout: float | None, result: Result) -> CommandTimeout:
    return CommandTimeout(f"{args[0]!r} was killed after its time limit of {timeout:g} s", result)

"""A guest that is ready to run programs: what can be done with it, whoever started it."""

import errno
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from teuthis.closing import Closing
from teuthis.errors import CommandFailed, CommandOutOfMemory, ConfigurationError, FileError
from teuthis.flows import Count
from teuthis.protocol import Health
from teuthis.root import files, integration, settings
from teuthis.root.caller import Caller
from teuthis.root.process import PIPE, Process
from teuthis.root.result import Result
from teuthis.root.streams import MAX_OUTPUT

DEFAULT_ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
"""HOME is each user's own, which the guest knows."""
MAX_COPY: Final = 1 << 30
"""Bytes that a guest may send of a file or directory that is copied out."""
SHUTDOWN_TIMEOUT: Final = 60.0
"""Seconds that a guest may take to power off in order."""
_SIGKILL: Final = 9
_OOM_KILLS: Final = re.compile(rb"^oom_kill (\d{1,19})$", re.MULTILINE)


class Guest(Closing):
    """A virtual machine that has booted and is ready to run programs.

    All methods may be called from any thread, and several programs may run at once; from asyncio
    call them with `asyncio.to_thread`.

    Attributes:
        environment: the variables that programs get.
        user: who programs run as.
    """

    def __init__(self, machine: Caller, env: Mapping[str, str], user: str) -> None:
        self._machine = machine
        self.environment = env
        self.user = user
        self._oom_kills = 0
        self._oom_lock = threading.Lock()

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stderr: int = PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        user: str | None = None,
        tty: tuple[int, int] | None = None,
    ) -> Process:
        """Starts a program and returns at once; its streams are binary files, as in `subprocess`.

        Args:
            argv: the program and its arguments; no shell is involved.
            stdin: `teuthis.PIPE` to write to it; None for an empty input.
            stderr: `teuthis.PIPE`, or `teuthis.STDOUT` to have it in `stdout`.
            env: environment variables beside the VM's own.
            cwd: working directory in the guest.
            user: who it runs as, instead of the VM's own (`VM`).
            tty: rows and columns of a terminal that the program is to have; all its output then
                comes in `stdout`, and may command the terminal that shows it.

        Raises:
            CommandNotFound, CommandNotExecutable: the guest cannot run it.
            NoAgent: the VM has no agent.
            VMError: the VM is no more.
        """
        return self._popen(argv, stdin=stdin, stderr=stderr, env=env, cwd=cwd, user=user, tty=tty)

    def _popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None,
        stderr: int,
        env: Mapping[str, str] | None,
        cwd: str,
        user: str | None,
        tty: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> Process:
        return Process(
            self._machine,
            settings.arguments(argv),
            settings.environment(self.environment, env),
            settings.guest_path(cwd),
            stdin=stdin,
            stderr=stderr,
            user=self.user if user is None else settings.user(user),
            tty=None if tty is None else settings.terminal_size(*tty),
            timeout=timeout,
        )

    def run(
        self,
        argv: Sequence[str],
        input: bytes = b"",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        check: bool = False,
        *,
        user: str | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Result:
        """Runs a program to its end.

        Args:
            argv: the program and its arguments; no shell is involved.
            input: what it reads from stdin.
            timeout: seconds until it is killed; the VM lives on.
            env: environment variables beside the VM's own.
            cwd: working directory in the guest.
            check: raise `CommandFailed` when the exit code is not 0.
            user: who it runs as, instead of the VM's own (`VM`).
            max_output: bytes of stdout and stderr together (64 MiB unless given), so that no guest
                can fill this process's memory; `popen` has no such limit.

        Raises:
            CommandNotFound, CommandNotExecutable: the guest cannot run it.
            CommandTimeout, OutputTooLarge, CommandOutOfMemory: it was killed for that.
            VMError: the VM ended first.
        """
        timeout = settings.time_limit(timeout)
        process = self._popen(
            argv, stdin=PIPE, stderr=PIPE, env=env, cwd=cwd, user=user, timeout=timeout
        )
        result = process.collect(input, timeout, max_output)
        if result.exit_code == 128 + _SIGKILL and self.memory_ran_out():
            raise CommandOutOfMemory(
                f"the guest's memory ran out and its kernel killed {argv[0]!r}: "
                "give the VM more, say memory=1G",
                result,
            )
        if check and result.exit_code != 0:
            raise CommandFailed(f"{argv[0]!r} ended with exit code {result.exit_code}", result)
        return result

    def memory_ran_out(self) -> bool:
        """Whether the guest's kernel has killed something for memory since the last call."""
        with self._oom_lock:
            try:
                match = _OOM_KILLS.search(self.read_file("/proc/vmstat", max_size=1 << 16))
            except FileError as error:
                return error.errno in (errno.ENOMEM, errno.ECONNRESET)  # not even enough for that
            before, self._oom_kills = self._oom_kills, int(match[1]) if match else 0
            return self._oom_kills > before

    def write_file(self, path: str | os.PathLike[str], data: bytes, mode: int = 0o644) -> None:
        """Creates or replaces a file of the guest, as root; its directory must exist.

        Raises:
            FileError: the guest refused.
            VMError: the VM is no more.
        """
        if not 0 <= mode <= 0o7777:
            raise ConfigurationError(f"mode={mode:#o} is not a file mode: say 0o644")
        files.write_file(self._machine, settings.guest_path(path), data, mode)

    def read_file(self, path: str | os.PathLike[str], *, max_size: int = MAX_OUTPUT) -> bytes:
        """The content of any file of the guest, of at most `max_size` bytes (64 MiB unless given).

        Raises:
            FileError: the guest refused.
            OutputTooLarge: the file is larger.
            VMError: the VM is no more.
        """
        return files.read_file(self._machine, settings.guest_path(path), max_size)

    def shutdown(self, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """Asks the guest's kernel to power off in order; returns when the VM has ended so.

        This needs no agent in the guest, only the kernel's integration services (`hv_utils`).

        Raises:
            ShutdownFailed, ShutdownTimeout: the guest refused, or took longer than `timeout`
                seconds. It still runs; `close` ends it.
            VMError: it ended in another way.
        """
        settings.time_limit(timeout)
        integration.shutdown(self._machine, timeout)

    def facts(self) -> dict[str, str]:
        """What the guest says about itself: distribution, kernel, addresses, …, by name.

        A daemon in the guest collects them (`hv_kvp_daemon`). They are the guest's own words,
        without characters that could command a terminal; do not trust them any further.

        Raises:
            NoFacts: no such daemon runs there.
            VMError: the VM is no more.
        """
        return integration.facts(self._machine)

    @property
    def health(self) -> Health:
        """Whether the guest's kernel answers heartbeats; a hung one is noticed within 25 s."""
        return self._machine.health

    def copy_in(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Copies a file or a directory of this host to a path in the guest, or into a directory.

        Owners become root; modes, times and symbolic links stay as they are.

        Raises:
            ConfigurationError: the source is not there, or holds what cannot be copied.
            HostError: it cannot be read.
            CommandError: the guest refused.
            VMError: the VM is no more.
        """
        from teuthis.root import copy

        copy.copy_in(self, Path(source), settings.guest_path(target))

    def copy_out(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_size: int = MAX_COPY,
    ) -> list[str]:
        """Copies a file or a directory of the guest to a path on this host, or into a directory.

        What is made belongs to the caller; it is never a device, never setuid, and no link in it
        leads out of it.

        Args:
            source: its path in the guest.
            target: where to.
            max_size: bytes that the guest may send (1 GiB unless given).

        Returns:
            The names, harmless for terminals, of what was left out for that.

        Raises:
            ConfigurationError: the target cannot be.
            HostError: it cannot be written.
            OutputTooLarge: there is more.
            CommandError: the guest refused, or what it sent was refused here.
            VMError: the VM is no more.
        """
        from teuthis.root import copy

        left_out: list[str] = []
        copy.copy_out(self, settings.guest_path(source), Path(target), max_size, left_out.append)
        return left_out

    def count(self, flow: str, size: int = 0, *, rejected: str | None = None) -> None:
        """Counts an item of a flow that ends on this side."""
        self._machine.count(flow, size, rejected=rejected)

    def pause(self) -> None:
        """Lets the guest stand still: no instruction runs, and its time stops.

        Raises:
            SnapshotError: it stands still already.
            VMError: the VM is no more.
        """
        self._machine.pause()

    def resume(self) -> None:
        """Lets a paused guest go on; its clock is set to the time of day.

        Raises:
            SnapshotError: it does not stand still.
            VMError: the VM is no more.
        """
        self._machine.resume()

    @property
    def paused(self) -> bool:
        """Whether it stands still, as `pause` asked."""
        return self._machine.standing

    def flows(self) -> dict[str, Count]:
        """How often each flow of the register ran so far, its bytes, and what was refused.

        After the VM's end: the last counters.
        """
        return self._machine.flows()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or ended by itself."""
        return self._machine.ended

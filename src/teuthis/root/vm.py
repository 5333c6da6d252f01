"""The virtual machine of the public API."""

import errno
import os
import re
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from teuthis.errors import (
    BootTimeout,
    CommandFailed,
    CommandOutOfMemory,
    ConfigurationError,
    FileError,
)
from teuthis.flows import Count
from teuthis.images import boot_files
from teuthis.root import files, loader, settings
from teuthis.root.console import Sink
from teuthis.root.loader import BootState
from teuthis.root.machine import Machine
from teuthis.root.process import PIPE, Process, Result
from teuthis.root.streams import MAX_OUTPUT

DEFAULT_MEMORY: Final = "256M"
BOOT_TIMEOUT: Final = 120.0
"""Seconds from start to the agent's first word; a boot takes a few on an idle host."""

_ENVIRONMENT: Final = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_SIGKILL: Final = 9
_OOM_KILLS: Final = re.compile(rb"^oom_kill (\d{1,19})$", re.MULTILINE)


class VM:
    """A virtual machine that has booted and is ready to run programs.

    Use it in a `with` block. All methods may be called from any thread, and several programs may
    run at once; from asyncio call them with `asyncio.to_thread`. When the last reference goes, or
    the process ends in whatever way, the VM ends too.
    """

    def __init__(
        self,
        memory: int | str = DEFAULT_MEMORY,
        *,
        kernel: str | os.PathLike[str] | None = None,
        console: Sink | None = None,
        env: Mapping[str, str] | None = None,
        boot_timeout: float = BOOT_TIMEOUT,
        allow_missing_walls: Collection[str] = (),
    ) -> None:
        """Boots a VM and waits until its agent is ready.

        Args:
            memory: guest memory: bytes, or a text such as "256M" or "2G".
            kernel: a `vmlinuz` or `vmlinux` instead of the distribution's newest cloud kernel.
            console: a binary file that the kernel's log is written to as it comes; the guest's own
                bytes, so look at them with care.
            env: environment variables of all programs; nothing of this process's own is passed on.
            boot_timeout: seconds that the boot may take.
            allow_missing_walls: names of walls around the VM's processes that may be missing
                where this host cannot give them.

        Raises:
            ConfigurationError: an argument cannot be.
            KernelError: the kernel cannot be had or used.
            HostError: this host lacks something.
            BootTimeout, GuestPanic, …: the guest did not come up.
        """
        size = settings.memory_size(memory)
        self._env = settings.environment(_ENVIRONMENT, env)
        settings.time_limit(boot_timeout)
        boot = boot_files(None if kernel is None else Path(kernel))
        arguments = loader.command_line(console=console is not None)

        def load(descriptor: int, size: int) -> BootState:
            return loader.load(descriptor, size, boot.kernel, boot.initrd, arguments)

        self._machine = Machine(size, load, console, allow_missing_walls)
        self._finalizer = weakref.finalize(self, self._machine.close)
        self._oom_kills = 0
        self._oom_lock = threading.Lock()
        try:
            self._machine.ready.result(boot_timeout)
        except FutureTimeoutError:
            self.close()
            words = self._machine.console.last_words()
            raise BootTimeout(
                f"the guest was not ready after {boot_timeout:g} s: give it more time "
                "(`boot_timeout`) or look at its log (`console`, --console)"
                + (f"\n{words}" if words else "")
            ) from None
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<VM {'closed' if self.closed else 'running'}>"

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stderr: int = PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Process:
        """Starts a program and returns at once; its streams are binary files, as in `subprocess`.

        Args:
            argv: the program and its arguments; no shell is involved.
            stdin: `teuthis.PIPE` to write to it; None for an empty input.
            stderr: `teuthis.PIPE`, or `teuthis.STDOUT` to have it in `stdout`.
            env: environment variables beside the VM's own.
            cwd: working directory in the guest.

        Raises:
            CommandNotFound, CommandNotExecutable: the guest cannot run it.
            VMError: the VM is no more.
        """
        return self._popen(argv, stdin=stdin, stderr=stderr, env=env, cwd=cwd)

    def _popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None,
        stderr: int,
        env: Mapping[str, str] | None,
        cwd: str,
        timeout: float | None = None,
    ) -> Process:
        return Process(
            self._machine,
            settings.arguments(argv),
            settings.environment(self._env, env),
            settings.guest_path(cwd),
            stdin=stdin,
            stderr=stderr,
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
            max_output: bytes of stdout and stderr together (64 MiB unless given), so that no guest
                can fill this process's memory; `popen` has no such limit.

        Raises:
            CommandNotFound, CommandNotExecutable: the guest cannot run it.
            CommandTimeout, OutputTooLarge, CommandOutOfMemory: it was killed for that.
            VMError: the VM ended first.
        """
        timeout = settings.time_limit(timeout)
        process = self._popen(argv, stdin=PIPE, stderr=PIPE, env=env, cwd=cwd, timeout=timeout)
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
        """Creates or replaces a file of the guest; its directory must exist.

        Raises:
            FileError: the guest refused.
            VMError: the VM is no more.
        """
        if not 0 <= mode <= 0o7777:
            raise ConfigurationError(f"mode={mode:#o} is not a file mode: say 0o644")
        files.write_file(self._machine, settings.guest_path(path), data, mode)

    def read_file(self, path: str | os.PathLike[str], *, max_size: int = MAX_OUTPUT) -> bytes:
        """The content of a file of the guest, of at most `max_size` bytes (64 MiB unless given).

        Raises:
            FileError: the guest refused.
            OutputTooLarge: the file is larger.
            VMError: the VM is no more.
        """
        return files.read_file(self._machine, settings.guest_path(path), max_size)

    def flows(self) -> dict[str, Count]:
        """How often each flow of the register ran so far, its bytes, and what was refused.

        After the VM's end: the last counters.
        """
        return self._machine.flows()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or ended by itself."""
        return self._machine.ended

    def close(self) -> None:
        """Ends the VM at once; both its processes are gone when this returns."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def run(
    argv: Sequence[str],
    input: bytes = b"",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    check: bool = False,
    *,
    memory: int | str = DEFAULT_MEMORY,
    kernel: str | os.PathLike[str] | None = None,
    max_output: int = MAX_OUTPUT,
) -> Result:
    """Runs one program in a VM of its own; see `VM` and `VM.run`."""
    with VM(memory, kernel=kernel) as vm:
        return vm.run(argv, input, timeout, env, cwd, check, max_output=max_output)

"""The virtual machine of the public API."""

import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Final

from teuthis.errors import BootTimeout
from teuthis.images import boot_files
from teuthis.root import loader, settings
from teuthis.root.console import Sink
from teuthis.root.guest import DEFAULT_ENVIRONMENT, Guest
from teuthis.root.loader import BootState
from teuthis.root.machine import Machine
from teuthis.root.process import Result
from teuthis.root.streams import MAX_OUTPUT

DEFAULT_MEMORY: Final = "256M"
BOOT_TIMEOUT: Final = 120.0
"""Seconds from start to the agent's first word; a boot takes a few on an idle host."""


class VM(Guest):
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
        settings.time_limit(boot_timeout)
        boot = boot_files(None if kernel is None else Path(kernel))
        arguments = loader.command_line(console=console is not None)

        def load(descriptor: int, size: int) -> BootState:
            return loader.load(descriptor, size, boot.kernel, boot.initrd, arguments)

        variables = settings.environment(DEFAULT_ENVIRONMENT, env)
        machine = Machine(size, load, console, allow_missing_walls)
        super().__init__(machine, variables)
        self._finalizer = weakref.finalize(self, machine.close)
        try:
            machine.ready.result(boot_timeout)
        except FutureTimeoutError:
            self.close()
            words = machine.console.last_words()
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

    def close(self) -> None:
        """Ends the VM at once; both its processes are gone when this returns."""
        self._finalizer()


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

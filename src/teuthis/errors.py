"""Everything that can go wrong, as one small tree.

    TeuthisError
    ├── ConfigurationError (also ValueError)   the caller asked for something that cannot be
    ├── KernelError                            the kernel or initrd cannot be booted
    ├── ImageError                             an image is damaged, not safe to import, or in use
    ├── SnapshotError                          a machine cannot be saved, or a saved one not be used
    ├── RecordingError                         a run cannot be recorded, or a recording not replayed
    ├── HostError                              this host lacks something, or refused it
    │   └── MissingWall                        … one of the walls around a VM's processes
    ├── VMError                                the virtual machine is no more
    │   ├── VMClosed                           it was closed, here
    │   ├── BootTimeout                        its agent did not report in time
    │   ├── GuestPanic                         its kernel crashed; `last_words` says how
    │   │   └── GuestOutOfMemory               … because its memory ran out
    │   ├── GuestPowerOff                      it switched itself off
    │   ├── GuestReset                         it restarted itself
    │   ├── GuestHalted                        its processor stopped: triple fault, halt for ever
    │   ├── GuestHung                          its kernel did not answer, and was to be ended then
    │   └── ProtocolViolation                  it, or a process serving it, broke the rules
    └── CommandError                           one command or file failed; the VM lives on
        ├── CommandNotFound
        ├── CommandNotExecutable
        ├── CommandFailed                      exit code not 0, and `check=True`
        ├── CommandOutOfMemory                 the guest's kernel killed it for memory
        ├── CommandTimeout (also TimeoutError)
        ├── OutputTooLarge                     more bytes than the caller allowed
        ├── FileError                          a file in the guest could not be read or written
        ├── NoAgent                            it was started without our agent
        ├── NoFacts                            it says nothing about itself
        └── ShutdownFailed                     it does not power off: it refused
            └── ShutdownTimeout (also TimeoutError)  … or took too long

Text that comes from a guest is only ever in attributes (`last_words`, `stdout`, …) and, made
harmless for terminals, at the end of a message.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as `typing` has it, which takes as long to load as Python to start
if TYPE_CHECKING:
    from typing import Any

    from teuthis.root.result import Result


class TeuthisError(Exception):
    """Base of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take other arguments than `args`; errors must still cross process pools.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[TeuthisError], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(TeuthisError, ValueError):
    """The caller asked for something that cannot be: a memory size, a name, a file."""


class KernelError(TeuthisError):
    """The kernel or the initrd is missing, damaged, or does not fit."""


class ImageError(TeuthisError):
    """An image is damaged, not safe to import, or in use."""


class SnapshotError(TeuthisError):
    """A machine cannot be saved now, or a saved one is damaged, newer, or another program's."""


class RecordingError(TeuthisError):
    """A run cannot be recorded, or a recording is damaged, newer, or none at all."""


class HostError(TeuthisError):
    """The host lacks something that a VM needs, or refused it."""


class MissingWall(HostError):
    """This host does not give one of the walls around a VM's processes.

    Attributes:
        name: which; `teuthis doctor` lists all.
        reason: what the kernel said, as far as it is known.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"this host does not give the wall {name!r} ({reason}), and without it nothing was "
            f"started: see `teuthis doctor`, or go without it by --allow-missing-wall {name}"
        )
        self.name = name
        self.reason = reason


class VMError(TeuthisError):
    """The virtual machine is no more; a new one can be started."""


class VMClosed(VMError):
    """The VM was closed by its user."""


class BootTimeout(VMError):
    """The guest's agent did not report in time."""


class GuestPanic(VMError):
    """The guest's kernel crashed.

    Attributes:
        last_words: the end of what the guest wrote to its console, harmless for terminals.
    """

    def __init__(self, message: str, last_words: str = "") -> None:
        super().__init__(f"{message}\n{last_words}" if last_words else message)
        self.last_words = last_words


class GuestOutOfMemory(GuestPanic):
    """The guest's kernel crashed because its memory ran out."""


class GuestPowerOff(VMError):
    """The guest switched itself off."""


class GuestReset(VMError):
    """The guest restarted itself; a VM runs one boot only."""


class GuestHalted(GuestPanic):
    """The guest's processor stopped: a triple fault, or a halt without interrupts."""


class GuestHung(GuestPanic):
    """The guest's kernel did not answer heartbeats, and `on_hang="kill"` was given."""


class ProtocolViolation(GuestPanic):
    """The guest, or a process that serves it, broke the rules; the VM was ended."""


class CommandError(TeuthisError):
    """One command or file operation failed; the VM itself can still be used."""


class CommandNotFound(CommandError):
    """The guest has no such program (a shell would exit with 127)."""


class CommandNotExecutable(CommandError):
    """The guest has the file but cannot run it (a shell would exit with 126)."""


class _WithResult(CommandError):
    """An error of a command that ran; `result` has its output up to the error, if it had any."""

    def __init__(self, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class CommandFailed(_WithResult):
    """The command's exit code was not 0, and `check=True` was given."""


class CommandOutOfMemory(_WithResult):
    """The guest's kernel killed the command because the guest's memory ran out."""


class CommandTimeout(_WithResult, TimeoutError):
    """The command took longer than its time limit, and was killed."""


class OutputTooLarge(_WithResult):
    """The command wrote, or the file has, more bytes than the caller allowed."""


class FileError(CommandError):
    """A file in the guest could not be read or written.

    Attributes:
        path: the file, in the guest.
        errno: the guest's error number.
    """

    def __init__(self, action: str, path: str, errno: int) -> None:
        super().__init__(f"the guest could not {action} {path!r}: {os.strerror(errno)}")
        self.path = path
        self.errno = errno


class NoAgent(CommandError):
    """The VM was started with `agent=False`: nobody in it runs commands or moves files for us."""


class NoFacts(CommandError):
    """The guest does not say anything about itself: no `hv_kvp_daemon` runs in it."""


class ShutdownFailed(CommandError):
    """The guest refused to power off; it still runs."""


class ShutdownTimeout(ShutdownFailed, TimeoutError):
    """The guest did not power off in time; it still runs."""

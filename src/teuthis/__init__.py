"""Teuthis: virtual machines whose every way out is listed, counted and tested.

import teuthis

with teuthis.VM(memory="256M") as vm:
result = vm.run(["sh", "-c", "echo hi"], timeout=10)
print(result.exit_code, result.stdout)

print(teuthis.run(["uname", "-a"]).stdout)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from teuthis.errors import (
    BootTimeout,
    CommandError,
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    CommandOutOfMemory,
    CommandTimeout,
    ConfigurationError,
    FileError,
    GuestHalted,
    GuestHung,
    GuestOutOfMemory,
    GuestPanic,
    GuestPowerOff,
    GuestReset,
    HostError,
    ImageError,
    KernelError,
    MissingWall,
    NoAgent,
    NoFacts,
    OutputTooLarge,
    ProtocolViolation,
    ShutdownFailed,
    ShutdownTimeout,
    SnapshotError,
    TeuthisError,
    VMClosed,
    VMError,
)
from teuthis.protocol import Health

if TYPE_CHECKING:
    from teuthis.root.disks import Disk
    from teuthis.root.named import NamedVM, connect, list, remove, start, start_again, stop
    from teuthis.root.process import PIPE, STDOUT, Process
    from teuthis.root.result import Result
    from teuthis.root.vm import VM, run
else:
    # Imported when first used: a worker process imports this package too, and must not carry the
    # root side with it.
    _HOMES = {
        "Disk": "disks",
        "NamedVM": "named",
        "PIPE": "process",
        "STDOUT": "process",
        "Process": "process",
        "Result": "result",
        "VM": "vm",
        "connect": "named",
        "list": "named",
        "remove": "named",
        "run": "vm",
        "start": "named",
        "start_again": "named",
        "stop": "named",
    }

    def __getattr__(name):
        if name in _HOMES:
            return getattr(import_module(f"teuthis.root.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "PIPE",
    "STDOUT",
    "VM",
    "BootTimeout",
    "CommandError",
    "CommandFailed",
    "CommandNotExecutable",
    "CommandNotFound",
    "CommandOutOfMemory",
    "CommandTimeout",
    "ConfigurationError",
    "Disk",
    "FileError",
    "GuestHalted",
    "GuestHung",
    "GuestOutOfMemory",
    "GuestPanic",
    "GuestPowerOff",
    "GuestReset",
    "Health",
    "HostError",
    "ImageError",
    "KernelError",
    "MissingWall",
    "NamedVM",
    "NoAgent",
    "NoFacts",
    "OutputTooLarge",
    "Process",
    "ProtocolViolation",
    "Result",
    "ShutdownFailed",
    "ShutdownTimeout",
    "SnapshotError",
    "TeuthisError",
    "VMClosed",
    "VMError",
    "connect",
    "list",
    "remove",
    "run",
    "start",
    "start_again",
    "stop",
]

"""Teuthis: virtual machines whose every way out is listed, counted and tested.

import teuthis

with teuthis.VM(memory="256M") as vm:
result = vm.run(["sh", "-c", "echo hi"], timeout=10)
print(result.exit_code, result.stdout)

print(teuthis.run(["uname", "-a"]).stdout)
"""

from importlib import import_module

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
    RecordingError,
    ShutdownFailed,
    ShutdownTimeout,
    SnapshotError,
    TeuthisError,
    VMClosed,
    VMError,
)

TYPE_CHECKING = False  # as `typing` has it, which takes as long to load as Python to start
if TYPE_CHECKING:
    from teuthis.protocol import Health
    from teuthis.root.disks import Disk
    from teuthis.root.named import NamedVM, connect, list, remove, start, start_again, stop
    from teuthis.root.pool import Pool
    from teuthis.root.process import PIPE, STDOUT, Process
    from teuthis.root.result import Result
    from teuthis.root.vm import VM, run
else:
    # Imported when first used: a worker process imports this package too, and must not carry the
    # root side with it; a command starts the zygote before it loads what it needs itself.
    _HOMES = {
        "Disk": "teuthis.root.disks",
        "Health": "teuthis.protocol",
        "NamedVM": "teuthis.root.named",
        "PIPE": "teuthis.root.process",
        "Pool": "teuthis.root.pool",
        "STDOUT": "teuthis.root.process",
        "Process": "teuthis.root.process",
        "Result": "teuthis.root.result",
        "VM": "teuthis.root.vm",
        "connect": "teuthis.root.named",
        "list": "teuthis.root.named",
        "remove": "teuthis.root.named",
        "run": "teuthis.root.vm",
        "start": "teuthis.root.named",
        "start_again": "teuthis.root.named",
        "stop": "teuthis.root.named",
    }

    def __getattr__(name):
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
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
    "Pool",
    "Process",
    "ProtocolViolation",
    "RecordingError",
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

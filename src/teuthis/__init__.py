"""Teuthis: virtual machines whose every way out is listed, counted and tested.

    import teuthis

    with teuthis.VM(memory="256M") as vm:
        result = vm.run(["sh", "-c", "echo hi"], timeout=10)
        print(result.exit_code, result.stdout)

    print(teuthis.run(["uname", "-a"]).stdout)
"""

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
    GuestOutOfMemory,
    GuestPanic,
    GuestPowerOff,
    GuestReset,
    HostError,
    KernelError,
    OutputTooLarge,
    ProtocolViolation,
    TeuthisError,
    VMClosed,
    VMError,
)
from teuthis.root.process import PIPE, STDOUT, Process, Result
from teuthis.root.vm import VM, run

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
    "FileError",
    "GuestHalted",
    "GuestOutOfMemory",
    "GuestPanic",
    "GuestPowerOff",
    "GuestReset",
    "HostError",
    "KernelError",
    "OutputTooLarge",
    "Process",
    "ProtocolViolation",
    "Result",
    "TeuthisError",
    "VMClosed",
    "VMError",
    "run",
]

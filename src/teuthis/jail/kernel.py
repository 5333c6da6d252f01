"""Calls into the kernel that Python's own modules do not offer."""

import ctypes
import os
from typing import Final

from teuthis.jail.system_calls import NUMBERS

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PUNCH_HOLE: Final = 3
"""Mode of `fallocate`: give the space of a range back; the file keeps its size."""

Argument = int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None


def call(name: str, *arguments: Argument) -> int:
    """Makes the system call `name`; structures are passed by address.

    Raises:
        OSError: the kernel's answer.
    """
    words = [ctypes.c_long(NUMBERS[name]), *map(_word, arguments)]
    result: int = _libc.syscall(*words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Changes this process; unused arguments are zero. Raises `OSError`."""
    return call("prctl", option, *arguments, *(0,) * (4 - len(arguments)))


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Gives the space of a range of a file back; it reads as zeros. Raises `OSError`."""
    call("fallocate", descriptor, PUNCH_HOLE, offset, length)


def _word(argument: Argument) -> object:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    return argument

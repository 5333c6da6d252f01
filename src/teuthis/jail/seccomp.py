"""The system-call wall: what is not on the list kills the process."""

import ctypes
from typing import Final

from teuthis.jail.bpf import AllowList, Check, assemble, pack
from teuthis.jail.kernel import call

_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1

_INT: Final = 0xFFFF_FFFF
_POINTER: Final = 0xFFFF_FFFF_FFFF_FFFF


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def integer(argument: int, value: int) -> Check:
    """Argument number `argument`, which the kernel reads as an int, is `value`."""
    return Check(argument, _INT, value & _INT)


def null(argument: int) -> Check:
    """Argument number `argument` is a null pointer."""
    return Check(argument, _POINTER, 0)


def without(argument: int, bits: int) -> Check:
    """None of `bits` is set in argument number `argument`."""
    return Check(argument, bits, 0)


def install(allowed: AllowList) -> None:
    """Allows `allowed` and nothing else to this process from now on. Raises `OSError`."""
    program = assemble(allowed)
    packed = pack(program)
    call("seccomp", _SET_MODE_FILTER, _FLAG_TSYNC, _Program(len(program), packed))

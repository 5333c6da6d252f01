"""What a user may ask of a VM, checked: sizes, durations, arguments, environment."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from teuthis.errors import ConfigurationError
from teuthis.protocol import MAX_USER

MIB: Final = 1 << 20
MINIMUM_MEMORY: Final = 96 * MIB
"""The least that a Debian cloud kernel, the initrd and a small program need."""

MAX_TERMINAL: Final = 4096
"""Rows, or columns."""

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|)", re.ASCII)


def memory_size(memory: int | str) -> int:
    """Guest memory in bytes, a whole number of MiB, from bytes or a text such as "256M" or "1.5G".

    Raises:
        ConfigurationError: not a size, less than a guest needs, or more than this host has.
    """
    memory = byte_count(memory)
    size = -(-memory // MIB) * MIB
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size < MINIMUM_MEMORY:
        raise ConfigurationError(
            f"{_mib(memory)} of memory is too little for a guest: "
            f"give at least {MINIMUM_MEMORY // MIB}M"
        )
    if size > host:
        raise ConfigurationError(
            f"{_mib(memory)} of memory is more than this host has ({_mib(host)}): ask for less"
        )
    return size


def byte_count(size: int | str) -> int:
    """Bytes, from a number of them or a text such as "256M" or "1.5G".

    Raises:
        ConfigurationError: not a size.
    """
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ConfigurationError(
            f"{size!r} is not a size: write a number and a unit, such as 256M or 2G"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}M" if abs(size) >= MIB else f"{size} bytes"


def duration(text: str) -> float:
    """Seconds, from a text such as "30", "1.5s", "500ms", "2m" or "1h".

    Raises:
        ConfigurationError: not a duration, or none at all.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ConfigurationError(
            f"{text!r} is not a time limit: write a number and a unit, such as 30s, 500ms or 2m"
        )
    return seconds


def time_limit(seconds: float | None) -> float | None:
    """A time limit in seconds that the API was given, or None for none.

    Raises:
        ConfigurationError: not a positive, finite number.
    """
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigurationError(f"timeout={seconds!r}: give a positive number of seconds, or None")
    return seconds


def terminal_size(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a terminal.

    Raises:
        ConfigurationError: no terminal is so large, or so small.
    """
    if not (1 <= rows <= MAX_TERMINAL and 1 <= columns <= MAX_TERMINAL):
        raise ConfigurationError(
            f"{rows} rows and {columns} columns are no terminal: give 1 to {MAX_TERMINAL} of each"
        )
    return rows, columns


def arguments(argv: Sequence[str]) -> list[str]:
    """A command line that can be sent to the guest.

    Raises:
        ConfigurationError: empty, not texts, or texts that no program could be given.
    """
    if isinstance(argv, str):
        raise ConfigurationError(
            f"the command must be a list of arguments, not one text: "
            f'["sh", "-c", {argv!r}] runs it through a shell'
        )
    argv = [_text(argument, "argument") for argument in argv]
    if not argv or not argv[0]:
        raise ConfigurationError("the command is empty: give at least the program's name")
    return argv


def environment(*layers: Mapping[str, str] | None) -> dict[str, str]:
    """One environment out of several; later ones win.

    Raises:
        ConfigurationError: a name or value that no environment can hold.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        for name, value in (layer or {}).items():
            if not name or "=" in name:
                raise ConfigurationError(f"{name!r} cannot be the name of an environment variable")
            merged[_text(name, "variable name")] = _text(value, f"variable {name}")
    return merged


def user(name: str) -> str:
    """A user of the guest, as container images and `docker run` say it.

    Raises:
        ConfigurationError: the guest could have no such user.
    """
    name = _text(name, "user")
    if not 0 < len(name.encode()) <= MAX_USER:
        raise ConfigurationError(
            f"user {name[:80]!r} cannot be: say NAME, UID, NAME:GROUP or UID:GID "
            f"with at most {MAX_USER} bytes"
        )
    return name


def guest_path(path: str | os.PathLike[str]) -> str:
    """An absolute path in the guest.

    Raises:
        ConfigurationError: relative, or not a path at all.
    """
    text = _text(os.fspath(path), "path")
    if not text.startswith("/"):
        raise ConfigurationError(f"{text!r} is not an absolute path of the guest: start it with /")
    return text


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{what} {value!r} is {type(value).__name__}, not text (str)")
    if "\0" in value:
        raise ConfigurationError(f"{what} {value!r} contains a zero byte")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} {value!r} is not valid UTF-8 text") from None
    return value

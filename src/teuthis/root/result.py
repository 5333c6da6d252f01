"""What is left of a program when it has ended."""

import msgspec


class Result(msgspec.Struct, frozen=True):
    """What a program left behind.

    Attributes:
        exit_code: its exit code; 128 + n when signal n killed it, as shells say it.
        signal: the signal that killed it, or None.
        stdout: all it wrote there.
        stderr: all it wrote there.
        duration: seconds from the request to the end.
    """

    exit_code: int
    signal: int | None
    stdout: bytes
    stderr: bytes
    duration: float

"""Frames of the agent protocol: u8 type, three zero bytes, u32 length, payload.

Sans-I/O. The guest's side of the stream is hostile: `FrameDecoder` accepts exactly what the
register lists and raises `FrameError` at the first thing else; it never holds more than one frame.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.protocol import MAX_USER

HEADER: Final = struct.Struct("<B3sI")
_ZERO = bytes(3)
_U32 = struct.Struct("<I")
_TWO_U16 = struct.Struct("<HH")
_TWO_U32 = struct.Struct("<II")
_U64 = struct.Struct("<Q")

INITIAL_CREDIT: Final = FLOWS["agent.hello"].values["initial_credit"]
"""Bytes that each stream may send in each direction before it is given more."""
MAX_CREDIT: Final = FLOWS["agent.window"].values["credit_max"]
STDOUT: Final = 1
STDERR: Final = 2


class FrameError(ValueError):
    """Not a frame that this protocol has, here and now: its flow, and why not."""

    def __init__(self, flow: str, kind: str, why: str) -> None:
        super().__init__(why)
        self.flow = flow
        self.kind = kind


# ---- guest to host -------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True):
    """The agent is up."""

    version: int


class Started(msgspec.Struct, frozen=True):
    """The program runs."""

    pid: int


class Output(msgspec.Struct, frozen=True):
    """Bytes of a stream, `STDOUT` or `STDERR`."""

    stream: int
    data: bytes


class Exit(msgspec.Struct, frozen=True):
    """The program has ended: exit code (0 to 255), or the signal that killed it."""

    killed: bool
    code: int


class Error(msgspec.Struct, frozen=True):
    """The agent could not do it."""

    errno: int
    text: str


class Window(msgspec.Struct, frozen=True):
    """More credit for the host's data."""

    credit: int


class Done(msgspec.Struct, frozen=True):
    """A file operation is complete."""

    size: int


Frame = Hello | Started | Output | Exit | Error | Window | Done


def _exit(payload: bytes) -> Exit:
    killed, code = _TWO_U32.unpack(payload)
    if killed > 1 or code > 255 or (killed and not 1 <= code <= 64):
        raise ValueError("an exit that no process can have")
    return Exit(bool(killed), code)


def _error(payload: bytes) -> Error:
    errno = _U32.unpack_from(payload)[0]
    if not 0 < errno < 4096:
        raise ValueError("an error number that does not exist")
    return Error(errno, payload[_U32.size :].decode("utf-8"))


def _started(payload: bytes) -> Started:
    pid = _U32.unpack(payload)[0]
    if not 0 < pid < 1 << 31:
        raise ValueError("a process id that does not exist")
    return Started(pid)


def _done(payload: bytes) -> Done:
    size = _U64.unpack(payload)[0]
    if size >= 1 << 63:
        raise ValueError("an impossible size")
    return Done(size)


_PARSER_OF: Final[dict[str, Callable[[bytes], Frame]]] = {
    "agent.hello": lambda payload: Hello(_U32.unpack(payload)[0]),
    "agent.started": _started,
    "agent.stdout": lambda payload: Output(STDOUT, payload),
    "agent.stderr": lambda payload: Output(STDERR, payload),
    "agent.exit": _exit,
    "agent.error": _error,
    "agent.window": lambda payload: Window(_U32.unpack(payload)[0]),
    "agent.done": _done,
}
_PARSERS = {FLOWS[flow].number: (FLOWS[flow], parse) for flow, parse in _PARSER_OF.items()}


class FrameDecoder:
    """Takes a stream in any pieces and yields its frames."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._buffer = b""

    @property
    def empty(self) -> bool:
        """Whether no part of a frame is held, once all that was fed has been taken."""
        return not self._buffer

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Raises `FrameError`, after which nothing follows."""
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        while end - at >= HEADER.size:
            kind, zero, length = HEADER.unpack_from(data, at)
            known = _PARSERS.get(kind)
            if known is None or zero != _ZERO:
                raise FrameError("agent.unknown", "frame", "unknown frame")
            flow, parse = known
            if not flow.min_bytes <= length <= flow.max_bytes:
                raise FrameError(flow.id, "size", "a frame of impossible length")
            start = at + HEADER.size
            if end - start < length:
                break
            at = start + length
            try:
                frame = parse(data[start:at])
            except ValueError as error:
                raise FrameError(flow.id, "value", str(error)) from error
            self._counters.accept(flow.id, length)
            yield frame
        self._buffer = data[at:]


# ---- host to guest -------------------------------------------------------------------------------


def encode(flow: str, payload: bytes = b"") -> bytes:
    """One frame. Raises `ValueError` when the payload is larger than its kind allows."""
    entry = FLOWS[flow]
    if len(payload) > entry.max_bytes:
        raise ValueError(f"{flow} with {len(payload)} bytes, the limit is {entry.max_bytes}")
    return HEADER.pack(entry.number, _ZERO, len(payload)) + payload


def _text(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def encode_exec(
    argv: list[bytes],
    environment: list[bytes],
    directory: bytes,
    user: bytes,
    terminal: tuple[int, int] | None = None,
) -> bytes:
    """EXEC, on a terminal of so many rows and columns if given; the environment as "NAME=value".

    Raises `ValueError` when it does not fit.
    """
    if len(user) > MAX_USER:
        raise ValueError(f"a user of {len(user)} bytes, the limit is {MAX_USER}")
    return encode(
        "agent.exec" if terminal is None else "agent.exec-terminal",
        b"".join(
            [
                b"" if terminal is None else _TWO_U16.pack(*terminal),
                _U32.pack(len(argv)),
                *map(_text, argv),
                _U32.pack(len(environment)),
                *map(_text, environment),
                _text(directory),
                _text(user),
            ]
        ),
    )


def encode_credit(stream: int, size: int) -> bytes:
    """WINDOW: the guest may send `size` more bytes of `stream`."""
    return encode("agent.credit", _TWO_U32.pack(stream, size))


def encode_signal(number: int) -> bytes:
    """SIGNAL to the program's process group."""
    return encode("agent.signal", _U32.pack(number))


def encode_resize(rows: int, columns: int) -> bytes:
    """RESIZE of the program's terminal."""
    return encode("agent.resize", _TWO_U16.pack(rows, columns))


def encode_write_file(mode: int, path: bytes) -> bytes:
    """WRITE_FILE. Raises `ValueError` when the path is too long."""
    return encode("agent.write-file", _U32.pack(mode) + path)

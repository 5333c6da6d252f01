"""A strict reader of tar archives that a guest made: bytes in, members out, nothing on disk.

Of the formats (tar(5)) it takes what GNU tar and busybox write by default: ustar and GNU headers,
GNU long names, sizes in base 256. All else is refused: a guest that writes something else is at
war. Python's `tarfile` is not for this: it believes sizes and recurses at the archive's will.
"""

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

BLOCK: Final = 512
MAX_PATH: Final = 4096
MAX_DEPTH: Final = 64
MAX_NAME: Final = 255
_CHUNK: Final = 256 * 1024
_OCTAL: Final = re.compile(rb" *([0-7]+)[ \0]*|[ \0]*")
_CHECKSUM: Final = slice(148, 156)
_LONG_NAME, _LONG_TARGET = b"L", b"K"


class ArchiveError(ValueError):
    """The archive is not one, or holds what no honest one does."""


class Truncated(ArchiveError):
    """The archive ends in the middle, as when the program that makes it gives up."""


class Kind(enum.Enum):
    """What a member is."""

    FILE = b"0"
    HARD_LINK = b"1"
    LINK = b"2"
    DIRECTORY = b"5"
    OTHER = b"?"
    """A device, a pipe: never made on a host."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member.

    Attributes:
        kind: what it is.
        path: its path's components; none is empty, "." or "..".
        mode: permission bits, at most 0o777.
        size: bytes of content.
        mtime: seconds since 1970.
        target: what a link points to, as it stands there.
    """

    kind: Kind
    path: tuple[bytes, ...]
    mode: int
    size: int
    mtime: int
    target: bytes


class Stream(Protocol):
    """Where an archive comes from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class Reader:
    """The members of one archive, in order."""

    def __init__(self, stream: Stream, limit: int) -> None:
        """Reads `stream`, of which it takes at most `limit` bytes."""
        self._stream = stream
        self._limit = self._room = limit
        self._left = 0

    @property
    def too_large(self) -> bool:
        """Whether it was the limit that made an end."""
        return self._room < 0

    @property
    def taken(self) -> int:
        """How many bytes the archive had so far."""
        return self._limit - self._room

    def members(self) -> Iterator[Member]:
        """The members; the content of each is to be read, if at all, before the next.

        Raises:
            ArchiveError: it is refused.
        """
        long: dict[bytes, bytes] = {}
        while True:
            for _ in self.content():
                pass
            header = self._exactly(BLOCK)
            if header == bytes(BLOCK):
                return
            kind = _checked(header)
            size = _number(header[124:136])
            if size < 0:
                raise ArchiveError("a negative size")
            if kind in (_LONG_NAME, _LONG_TARGET):
                if kind in long or not 0 < size <= MAX_PATH:
                    raise ArchiveError("a long name of impossible length")
                long[kind] = self._exactly(-(-size // BLOCK) * BLOCK)[:size].rstrip(b"\0")
                continue
            member = _member(header, kind, size, long)
            long = {}
            self._left = member.size
            yield member

    def content(self) -> Iterator[bytes]:
        """The rest of the current member's content."""
        padding = -self._left % BLOCK
        while self._left:
            data = self._read(min(self._left, _CHUNK))
            self._left -= len(data)
            yield data
        self._exactly(padding)

    def finish(self) -> None:
        """Takes what follows the end, which fills a last record; it counts too.

        Raises:
            ArchiveError: it is more than allowed.
        """
        while data := self._stream.read(_CHUNK):
            self._room -= len(data)
            if self._room < 0:
                raise ArchiveError("it is larger than allowed")

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._read(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        self._room -= size
        if self._room < 0:
            raise ArchiveError("it is larger than allowed")
        data = self._stream.read(size)
        if not data:
            raise Truncated("it ends in the middle")
        self._room += size - len(data)
        return data


def _checked(header: bytes) -> bytes:
    """The type of a header whose sum and magic are right."""
    blank = header[:148] + b" " * 8 + header[156:]
    if _number(header[_CHECKSUM]) != sum(blank) or header[257:262] != b"ustar":
        raise ArchiveError("a header is damaged")
    return header[156:157]


def _member(header: bytes, flag: bytes, size: int, long: dict[bytes, bytes]) -> Member:
    name = _text(header[0:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = prefix + b"/" + name
    name = long.get(_LONG_NAME, name)
    target = long.get(_LONG_TARGET, _text(header[157:257]))
    if flag in (b"x", b"g", b"S", b"M", b"V", b"D"):
        raise ArchiveError("extensions of the format that are not taken")
    kind = Kind.FILE if flag in (b"\0", b"7") else Kind.OTHER
    if flag in (each.value for each in Kind):
        kind = Kind(flag)
    if kind is not Kind.FILE and size:
        raise ArchiveError("content where there can be none")
    if b"\0" in name or b"\0" in target:
        raise ArchiveError("a zero byte in a name")
    mode = _number(header[100:108]) & 0o777
    return Member(kind, components(name), mode, size, _number(header[136:148]), target)


def components(name: bytes) -> tuple[bytes, ...]:
    """The components of a member's path.

    Raises:
        ArchiveError: it leads elsewhere, or is no path.
    """
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if name.startswith(b"/") or b".." in parts:
        raise ArchiveError("a name that leads out of the archive")
    if not parts or len(parts) > MAX_DEPTH or max(map(len, parts)) > MAX_NAME:
        raise ArchiveError("a name that cannot be one")
    return parts


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    if field[0] in (0x80, 0xFF):
        # Base 256, two's complement: sizes of 8 GiB and more, dates before 1970.
        return int.from_bytes(b"\0" + field[1:] if field[0] == 0x80 else field, signed=True)
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ArchiveError("a number that is none")
    return int(match[1] or b"0", 8)

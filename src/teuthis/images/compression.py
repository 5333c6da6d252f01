"""Unpacks archives into files, as far as a limit: a few kilobytes may unpack to a full disk."""

import gzip
import hashlib
import lzma
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, cast

import zstandard

from teuthis.errors import ImageError

_CHUNK: Final = 1 << 20
_MEMORY: Final = 128 << 20
"""Bytes that a decompressor may take for its window."""
_SPARE: Final = 256 << 20
"""Bytes that unpacking leaves free on the host's disk."""
_GZIP: Final = b"\x1f\x8b"
_XZ: Final = b"\xfd7zXZ\0"
_ZSTANDARD: Final = b"\x28\xb5\x2f\xfd"
_DAMAGED: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@dataclass(slots=True)
class Allowance:
    """Bytes that may still be unpacked, over all archives of one import."""

    left: int

    def take(self, size: int) -> None:
        """Counts bytes before they are written.

        Raises:
            ImageError: they are more than is left.
        """
        self.left -= size
        if self.left < 0:
            raise ImageError(
                "the archive unpacks to more than is allowed: "
                "if you trust it, allow more with a larger --size"
            )


class Source(Protocol):
    """The part of a file object that unpacking uses."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Goes to an offset, from the start or (whence 1) from here."""


def is_compressed(source: Source) -> bool:
    """Whether a file, of which we are at the start, is compressed in a way that is known."""
    start = source.read(len(_XZ))
    source.seek(0)
    return start.startswith((_GZIP, _ZSTANDARD)) or start == _XZ


def unpack(source: Source, target: Path, allowance: Allowance) -> str:
    """Writes what a compressed or plain file holds to a new file; returns its SHA-256.

    Args:
        source: the file, at its start, with `seek`. Compressed by gzip, xz or zstd, or not at all.
        target: what is made.
        allowance: how much that may be.

    Raises:
        ImageError: the file is damaged, or holds too much.
        HostError, OSError: the disk is full.
    """
    digest = hashlib.sha256()
    free = shutil.disk_usage(target.parent).free - _SPARE
    with target.open("xb") as file:
        for data in _plain(source):
            allowance.take(len(data))
            free -= len(data)
            if free < 0:
                raise ImageError(
                    f"too little disk space for what the archive holds: {target.parent}"
                )
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _plain(source: Source) -> Iterator[bytes]:
    start = source.read(len(_XZ))
    source.seek(0)
    try:
        if start.startswith(_GZIP):
            yield from _chunks(gzip.GzipFile(fileobj=source))
        elif start.startswith(_ZSTANDARD):
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MEMORY)
            file = cast(IO[bytes], source)  # it only reads
            yield from _chunks(decompressor.stream_reader(file, read_across_frames=True))
        elif start == _XZ:
            yield from _xz(source)
        else:
            yield from _chunks(source)
    except _DAMAGED as error:
        raise ImageError(f"the archive is damaged: {error}") from error


def _chunks(file: Source) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def _xz(source: Source) -> Iterator[bytes]:
    """One stream; `lzma.open` knows no limit for its memory."""
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY)
    while not decompressor.eof:
        data = source.read(_CHUNK) if decompressor.needs_input else b""
        if decompressor.needs_input and not data:
            raise EOFError("it is cut off")
        yield decompressor.decompress(data, _CHUNK)

"""The files of a container image: in a directory, or inside a tar archive, where they stay.

Names come from the image's own documents. In an archive they are looked up among its members; in a
directory they may have no `..`, and what they name must be a plain file.
"""

import os
import posixpath
import stat
from pathlib import Path
from typing import IO, Final

from teuthis.closing import Closing
from teuthis.errors import ImageError
from teuthis.images import tar

_MAX_LINKS: Final = 8


class Part(Closing):
    """A file, or a stretch of one; read like a file that ends where the stretch ends."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        """Takes over an open file."""
        self._file = file
        self._start = start
        self.size = size
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        left = self.size - self._position
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to an offset, from the start or (whence 1) from here."""
        self._position = max(0, min(self.size, offset + (self._position if whence else 0)))
        return self._position

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Layout:
    """Files by name."""

    def __init__(self, path: Path) -> None:
        """Looks through a directory's top, or an uncompressed archive.

        Raises:
            ImageError: the archive is damaged.
        """
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        if path.is_dir():
            return
        for member in tar.members(path):
            name = posixpath.normpath(member.name)
            if member.isreg() and member.sparse is None:
                self._places[name] = member.offset_data, member.size
            elif member.issym():  # docker save: a layer that is there twice
                self._links[name] = posixpath.join(posixpath.dirname(name), member.linkname)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._places or (self._path.is_dir() and (self._path / name).is_file())

    def open(self, name: str) -> Part:
        """A file, from its start.

        Raises:
            ImageError: there is none of that name.
        """
        if self._path.is_dir():
            return self._open_in_directory(name)
        name = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = posixpath.normpath(self._links[name])
        if name not in self._places:
            raise ImageError(f"the image lacks its file {name[:200]!r}")
        return Part(self._path.open("rb"), *self._places[name])

    def _open_in_directory(self, name: str) -> Part:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise ImageError(f"the image names a file outside of it: {name[:200]!r}")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        directory = os.open(self._path, flags | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = inner
            descriptor = os.open(parts[-1], flags, dir_fd=directory)
        except OSError as error:
            raise ImageError(
                f"the image lacks its file {name[:200]!r}: {error.strerror}"
            ) from error
        finally:
            os.close(directory)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ImageError(f"the image's file {name[:200]!r} is not a plain file")
        return Part(os.fdopen(descriptor, "rb"), 0, status.st_size)

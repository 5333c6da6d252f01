"""Makes the files of a guest's archive on this host, below one name in one directory.

The archive is hostile. No path of it is ever given to the kernel as a whole: each component is
opened by itself, relative to the one before, and never through a symbolic link; what is there
already is replaced, never written through. So no member can reach beside or above the target.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from teuthis.root.tar import ArchiveError, Kind, Member, Reader, components

MAX_MEMBERS: Final = 1 << 20
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LAST_TIME: Final = 1 << 40

Place = tuple[bytes, ...]


class Unpacker:
    """One archive on its way to `name` in the directory behind a descriptor."""

    def __init__(self, directory: int, name: bytes, left_out: Callable[[Member], None]) -> None:
        """Makes nothing yet.

        Args:
            directory: descriptor of the directory that is to hold the copy.
            name: what the copy is to be called there, whatever the archive calls it.
            left_out: called with each member that has no place on a host: a device, a link that
                leads out of the copy.
        """
        self._directory = directory
        self._name = name
        self._left_out = left_out
        self._umask = _umask()
        self._files: set[Place] = set()
        self._modes: dict[Place, tuple[int, int]] = {}

    def run(self, reader: Reader) -> None:
        """Makes all members.

        Raises:
            ArchiveError: the archive is refused; what was made before that stays.
            OSError: this host cannot make a file.
        """
        first: bytes | None = None
        count = 0
        for count, member in enumerate(reader.members(), 1):
            first = first or member.path[0]
            if member.path[0] != first:
                raise ArchiveError("it holds more than was asked for")
            if count > MAX_MEMBERS:
                raise ArchiveError(f"it has more than {MAX_MEMBERS} members")
            self._make(member, (self._name, *member.path[1:]), reader)
        if not count:
            raise ArchiveError("it is empty")
        # Only now, as a directory may be one that even its owner cannot write to.
        for path, (mode, mtime) in reversed(self._modes.items()):
            with self._parent(path) as parent:
                directory = os.open(path[-1], _OPEN_DIRECTORY, dir_fd=parent)
                try:
                    self._finish(directory, mode, mtime)
                finally:
                    os.close(directory)

    def _make(self, member: Member, path: Place, reader: Reader) -> None:
        with self._parent(path) as parent:
            match member.kind:
                case Kind.DIRECTORY:
                    with suppress(FileExistsError):
                        os.mkdir(path[-1], 0o700, dir_fd=parent)
                    with _no_links():
                        os.close(os.open(path[-1], _OPEN_DIRECTORY, dir_fd=parent))
                    self._modes[path] = (member.mode, member.mtime)
                case Kind.FILE:
                    self._make_file(member, path, parent, reader)
                case Kind.LINK if _stays(member.target, len(path) - 2):
                    self._make_room(path, parent)
                    os.symlink(member.target, path[-1], dir_fd=parent)
                case Kind.HARD_LINK:
                    self._make_hard_link(member, path, parent)
                case _:
                    self._left_out(member)

    def _make_file(self, member: Member, path: Place, parent: int, reader: Reader) -> None:
        self._make_room(path, parent)
        file = os.open(path[-1], _NEW_FILE, 0o600, dir_fd=parent)
        try:
            for data in reader.content():
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            self._finish(file, member.mode, member.mtime)
        finally:
            os.close(file)
        self._files.add(path)

    def _make_hard_link(self, member: Member, path: Place, parent: int) -> None:
        source = (self._name, *components(member.target)[1:])
        if source not in self._files or source == path:
            raise ArchiveError("a hard link to something that is not in it")
        self._make_room(path, parent)
        with self._parent(source) as other:
            os.link(
                source[-1], path[-1], src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False
            )
        self._files.add(path)

    def _make_room(self, path: Place, parent: int) -> None:
        """Removes what is in the way of a new file, but no directory."""
        self._files.discard(path)
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(path[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                raise IsADirectoryError(errno.EISDIR, "a directory is in the way", path[-1])
            os.unlink(path[-1], dir_fd=parent)

    def _finish(self, descriptor: int, mode: int, mtime: int) -> None:
        os.fchmod(descriptor, mode & ~self._umask)
        if 0 <= mtime < _LAST_TIME:
            os.utime(descriptor, (mtime, mtime))

    @contextmanager
    def _parent(self, path: Place) -> Iterator[int]:
        """The directory of the copy that holds the last component of `path`."""
        current = os.dup(self._directory)
        try:
            for name in path[:-1]:
                with _no_links():
                    deeper = os.open(name, _OPEN_DIRECTORY, dir_fd=current)
                os.close(current)
                current = deeper
            yield current
        finally:
            os.close(current)


@contextmanager
def _no_links() -> Iterator[None]:
    """A component that is a link, a file or not there at all is the archive's doing."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT):
            raise ArchiveError("a path through something that is not a directory of it") from error
        raise


def _umask() -> int:
    """This process's, without the moment of another one that umask(2) takes to tell."""
    status = Path("/proc/self/status").read_bytes()
    return int(re.findall(rb"^Umask:\s*([0-7]+)", status, re.MULTILINE)[0], 8)


def _stays(target: bytes, depth: int) -> bool:
    """Whether a symbolic link leads to a place inside the copy.

    It may climb only at its beginning, where each step up leads out of a directory that is known
    to be one; not after a name, which may be a link itself.

    Args:
        target: what it points to.
        depth: how many directories of the copy it is in; -1 for the copy itself.
    """
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == b"..":
        climbs += 1
    inside = not target.startswith(b"/") and b".." not in parts[climbs:]
    return bool(target) and inside and climbs <= depth

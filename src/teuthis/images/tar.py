"""Reads tar archives from anywhere into a `Tree`.

Python's `tarfile` takes the headers apart. It is lenient and trusts sizes, so it reads through a
file object that hands out at most `_MAX_HEADERS` bytes for one member (headers that ask for more
are a bomb, those that ask for less than nothing CVE-2025-8194), and each member is checked before
use.
"""

import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from teuthis.errors import ImageError
from teuthis.images.tree import MAX_ENTRIES, Content, Node, Tree

_MAX_HEADERS: Final = 4 << 20
"""Bytes of one member's headers: names, attributes, the map of a sparse file."""
_MAX_ALL_HEADERS: Final = 1 << 30
_MAX_GLOBAL: Final = 64 << 10
"""Bytes of pax headers that are for all members, and kept as long as the archive is read."""
_MAX_ID: Final = (1 << 32) - 2
_MAX_TIME: Final = (1 << 31) - 1
_MAX_MAJOR: Final = (1 << 12) - 1
_MAX_MINOR: Final = (1 << 16) - 1  # debugfs takes no more
_XATTR: Final = "SCHILY.xattr."
_XATTR_KINDS: Final = ("user.", "security.", "trusted.", "system.posix_acl_")
_MAX_XATTRS: Final = 3500
"""Bytes of names and values of one file: they share one block of the file system."""
_DAMAGED: Final = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError)
_KINDS: Final = {
    **dict.fromkeys(tarfile.REGULAR_TYPES, stat.S_IFREG),
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class _Guarded:
    """The part of a file object that `tarfile` uses, without reads of a size that cannot be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = 0
        self.tell = file.tell

    def begin(self) -> None:
        """The headers of another member follow."""
        self._left = _MAX_HEADERS

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise ImageError("the archive is damaged: a member with headers of impossible size")
        self._left -= size
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed archive whose data all lie inside it.

    Raises:
        ImageError: it is no tar archive, damaged, cut off, or has too many members.
    """
    size = path.stat().st_size
    last = -1
    count = headers = 0
    with path.open("rb") as file:
        guarded = _Guarded(file)
        guarded.begin()
        try:
            archive = tarfile.TarFile(
                fileobj=guarded,  # type: ignore[arg-type]
                encoding="utf-8",
                errors="surrogateescape",
            )
            while member := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # a million, otherwise
                if member.offset <= last or member.size < 0:
                    raise ImageError(f"the archive is damaged at offset {member.offset}")
                last = member.offset
                parts = pieces(member)
                if member.offset_data + sum(length for _, _, length in parts) > size:
                    raise ImageError(f"the archive is cut off inside {member.name[:200]!r}")
                count += max(1, len(parts))
                headers += member.offset_data - member.offset
                if count > MAX_ENTRIES or headers > _MAX_ALL_HEADERS or _too_much(archive):
                    raise ImageError("the archive has more members, or more headers, than it may")
                yield member
                guarded.begin()
        except _DAMAGED as error:
            raise ImageError(f"the archive is not a tar archive, or damaged: {error}") from error
        # `tarfile` takes a bad header for the end; the end is a block of zeros.
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise ImageError(f"the archive is damaged or cut off at offset {archive.offset}")


def _too_much(archive: tarfile.TarFile) -> bool:
    """Whether the headers for all members are more than a few short notes."""
    size = sum(len(key) + len(value) for key, value in archive.pax_headers.items())
    return size > _MAX_GLOBAL


def pieces(member: tarfile.TarInfo) -> tuple[tuple[int, int, int], ...]:
    """Where a member's data lie: (offset in the file, offset in the archive, length).

    Raises:
        ImageError: the map of a sparse file makes no sense.
    """
    if not member.isreg() or not member.size:
        return ()
    if member.sparse is None:
        return ((0, member.offset_data, member.size),)
    found: list[tuple[int, int, int]] = []
    end = 0
    start = member.offset_data
    spans: list[tuple[int, int]] = member.sparse  # type: ignore[assignment]
    for offset, length in spans:
        if length < 0 or offset < end or offset + length > member.size:
            raise ImageError(f"the map of the sparse file {member.name[:200]!r} makes no sense")
        if length:
            found.append((offset, start, length))
        end = offset + length
        start += length
    return tuple(found)


def apply(path: Path, tree: Tree, max_file: int, *, whiteouts: bool = False) -> None:
    """Adds what an uncompressed archive holds to a tree.

    Args:
        path: the archive, which must stay where it is until the tree has been written.
        tree: what it is added to.
        max_file: bytes that one file may have, holes included.
        whiteouts: whether names that start with `.wh.` remove files of lower layers.

    Raises:
        ImageError: the archive is damaged, or has an entry that cannot be.
    """
    for member in members(path):
        if whiteouts and tree.white_out(member.name):
            continue
        if member.islnk():
            tree.link(member.name, member.linkname)
        else:
            tree.add(member.name, _node(path, member, max_file))


def _node(path: Path, member: tarfile.TarInfo, max_file: int) -> Node:
    name = member.name[:200]
    kind = _KINDS.get(member.type)
    if kind is None:
        raise ImageError(f"the entry {name!r} is of an unknown kind ({member.type!r})")
    if member.size > max_file:
        raise ImageError(f"the file {name!r} has {member.size} bytes; {max_file} are allowed")
    if not 0 <= member.uid <= _MAX_ID or not 0 <= member.gid <= _MAX_ID:
        raise ImageError(f"the owner of {name!r} cannot be: {member.uid}:{member.gid}")
    node = Node(
        mode=kind | stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        mtime=min(max(0, int(member.mtime)), _MAX_TIME),
        xattrs=_xattrs(member),
    )
    if kind == stat.S_IFREG:
        node.content = Content(path, pieces(member), member.size)
    elif kind == stat.S_IFLNK:
        node.target = member.linkname
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        node.device = member.devmajor, member.devminor
        if not (0 <= node.device[0] <= _MAX_MAJOR and 0 <= node.device[1] <= _MAX_MINOR):
            raise ImageError(f"the device {name!r} cannot be: {node.device}")
    return node


def _xattrs(member: tarfile.TarInfo) -> dict[str, bytes]:
    """Extended attributes (of a kind that a file system keeps) from a member's pax headers."""
    found = {}
    for key, value in member.pax_headers.items():
        name = key.removeprefix(_XATTR)
        if name != key and name.startswith(_XATTR_KINDS):
            found[name] = value.encode("utf-8", "surrogateescape")
    size = sum(len(name) + len(value) for name, value in found.items())
    if size > _MAX_XATTRS or any(not name.isprintable() or len(name) > 255 for name in found):
        raise ImageError(f"extended attributes of {member.name[:200]!r} are too large, or odd")
    return found

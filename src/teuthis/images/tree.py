"""A root file system in memory: names, owners, modes and where the contents lie, but no contents.

Archives from anywhere are applied to a `Tree`, and only the finished tree is written, into a file
system of its own (`ext4`). No name of an archive is ever a path on this host, so there is nothing
for `..`, a symbolic link or a hard link to lead out of: links are followed as in a `chroot`.
"""

import io
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from teuthis.errors import ImageError

MAX_ENTRIES: Final = 1_000_000
MAX_DEPTH: Final = 256
_CHUNK: Final = 1 << 20
_MAX_NAME: Final = 255
_MAX_TARGET: Final = 4095
_MAX_HOPS: Final = 40
"""Symbolic links on one path, as in Linux."""
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file: pieces of `source`, zeros between them, `size` in all.

    A piece is (offset in this file, offset in the source, length).
    """

    source: Path | bytes
    pieces: tuple[tuple[int, int, int], ...]
    size: int

    @classmethod
    def of(cls, source: Path | bytes) -> "Content":
        """All of a file of this host, or of some bytes."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return cls(source, ((0, 0, size),), size)

    def read(self, limit: int) -> bytes:
        """The content of a file that is small.

        Raises:
            ImageError: it has more than `limit` bytes.
        """
        if self.size > limit:
            raise ImageError(f"a file of the image has {self.size} bytes; {limit} are allowed")
        data = io.BytesIO()
        self.write(data)
        return data.getvalue().ljust(self.size, b"\0")

    def write(self, target: IO[bytes]) -> None:
        """Writes the content into an empty file; zeros become holes where they were holes."""
        source = self.source
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            for offset, start, length in self.pieces:
                file.seek(start)
                target.seek(offset)
                left = length
                while left:
                    data = file.read(min(left, _CHUNK))
                    if not data:
                        raise ImageError("an archive became shorter while it was read")
                    target.write(data)
                    left -= len(data)
        target.truncate(self.size)


@dataclass(slots=True)
class Node:
    """One file of whatever kind; hard links are several entries with the same node."""

    mode: int
    """Kind and permissions, as in `st_mode`."""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    content: Content | None = None
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    entries: "dict[str, Entry]" = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        """Whether it may have entries."""
        return stat.S_ISDIR(self.mode)


@dataclass(slots=True)
class Entry:
    """A name in a directory, and the layer that named it last, or something below it."""

    node: Node
    layer: int


class Tree:
    """A root file system that grows by archives, layer over layer."""

    def __init__(self) -> None:
        self.root = Entry(Node(stat.S_IFDIR | 0o755), 0)
        self._layer = 0
        self._count = 0

    def new_layer(self) -> None:
        """From here on whiteouts hide what has been added so far."""
        self._layer += 1

    def add(self, path: str, node: Node) -> None:
        """Puts a file at `path`, instead of what is there; a directory keeps what is in it.

        Raises:
            ImageError: the path is not one inside the tree, or there are too many.
        """
        directory, name = self._place(path)
        if not name:
            if not node.is_directory:
                raise ImageError("the archive's root is not a directory")
            node.entries = self.root.node.entries
            self.root.node = node
            return
        if stat.S_ISLNK(node.mode):
            _check_target(path, node.target)
        old = directory.entries.get(name)
        if node.is_directory and old and old.node.is_directory:
            node.entries = old.node.entries
        self._enter(directory, name, node)

    def link(self, path: str, target: str) -> None:
        """A hard link: another name for the file at `target`.

        Raises:
            ImageError: there is no such file, it is a directory, or the path cannot be.
        """
        parts = _parts(target)
        found = self._find(parts)
        if found is None or found.is_directory:
            raise ImageError(f"{path!r} is a hard link to {target!r}, which is no file before it")
        directory, name = self._place(path)
        if not name:
            raise ImageError("the archive's root is not a directory")
        self._enter(directory, name, found)

    def white_out(self, path: str) -> bool:
        """Applies a whiteout of an OCI layer, if `path` is one (OCI image-spec, layer.md)."""
        name = path.rstrip("/").rpartition("/")[2]
        if not name.startswith(_WHITEOUT):
            return False
        directory, _ = self._place(path)
        if name == _OPAQUE:
            self._strip(directory)
        elif not name.startswith(_AUFS):  # others of that kind were notes of aufs to itself
            (hidden,) = _parts(name.removeprefix(_WHITEOUT)) or ("",)
            entry = directory.entries.get(hidden)
            if not hidden:
                raise ImageError(f"{path!r} is a whiteout of nothing")
            if entry and entry.layer == self._layer:
                self._strip(entry.node)
            elif entry:
                del directory.entries[hidden]
        return True

    def file(self, path: str) -> Node | None:
        """What is at `path`, links followed; None if nothing is."""
        for _ in range(_MAX_HOPS):
            parts = _parts(path)
            node = self._find(parts)
            if node is None or not stat.S_ISLNK(node.mode):
                return node
            here = "" if node.target.startswith("/") else "/".join(parts[:-1])
            path = _flattened(f"{here}/{node.target}")
        return None

    def walk(self) -> Iterator[tuple[str, Node]]:
        """All files with their paths, parents first, names in order."""
        pending = [("", self.root.node)]
        while pending:
            path, node = pending.pop()
            yield path, node
            pending += [
                (f"{path}/{name}", node.entries[name].node)
                for name in sorted(node.entries, reverse=True)
            ]

    def _enter(self, directory: Node, name: str, node: Node) -> None:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise ImageError(f"the archive has more than {MAX_ENTRIES} entries")
        directory.entries[name] = Entry(node, self._layer)

    def _place(self, path: str) -> tuple[Node, str]:
        """The directory that holds `path` (made if it is missing) and the last name of the path."""
        parts = _parts(path)
        if not parts:
            return self.root.node, ""
        stack = self._follow(parts[:-1], make=True)
        assert stack is not None
        for entry in stack:
            entry.layer = self._layer
        return stack[-1].node, parts[-1]

    def _find(self, parts: list[str]) -> Node | None:
        """What is at a path; a symbolic link at its end is itself."""
        if not parts:
            return self.root.node
        stack = self._follow(parts[:-1], make=False)
        entry = stack[-1].node.entries.get(parts[-1]) if stack else None
        return entry.node if entry else None

    def _follow(self, parts: list[str], *, make: bool) -> list[Entry] | None:
        """The entries from the root to a directory, as a process in a chroot would reach it."""
        stack = [self.root]
        pending = deque(parts)
        hops = 0
        while pending:
            name = pending.popleft()
            if name in ("", "."):
                continue
            if name == "..":  # of a link's target; the root is its own parent
                del stack[max(1, len(stack) - 1) :]
                continue
            directory = stack[-1].node
            entry = directory.entries.get(name)
            if entry is None:
                if not make:
                    return None
                if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME:
                    raise ImageError(f"a name of more than {_MAX_NAME} bytes: {name[:40]!r}…")
                self._enter(directory, name, Node(stat.S_IFDIR | 0o755))
                entry = directory.entries[name]
            if stat.S_ISLNK(entry.node.mode):
                hops += 1
                if hops > _MAX_HOPS:
                    raise ImageError(f"too many symbolic links on the way to {name!r}")
                target = entry.node.target
                if target.startswith("/"):
                    del stack[1:]
                pending.extendleft(reversed(target.split("/")))
            elif entry.node.is_directory:
                stack.append(entry)
                if len(stack) > MAX_DEPTH:
                    raise ImageError(f"more than {MAX_DEPTH} directories inside each other")
            elif make:
                raise ImageError(f"an entry lies below {name!r}, which is not a directory")
            else:
                return None
        return stack

    def _strip(self, node: Node) -> None:
        """Removes what lower layers put below a directory."""
        for name, entry in list(node.entries.items()):
            if entry.layer < self._layer:
                del node.entries[name]
            else:
                self._strip(entry.node)


def _parts(path: str) -> list[str]:
    """The names on an archive's path; the root of an absolute path is the image's.

    Raises:
        ImageError: it has `..`, or a name that no file can have.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise ImageError(f"the path {path[:200]!r} leads upwards (`..`)")
        if "\0" in part or "\n" in part or "\r" in part:
            raise ImageError(f"a name with a line break or NUL: {part[:200]!r}")
        if len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME:
            raise ImageError(f"a name of more than {_MAX_NAME} bytes: {part[:40]!r}…")
    return parts


def _flattened(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _check_target(path: str, target: str) -> None:
    size = len(target.encode("utf-8", "surrogateescape"))
    if not 0 < size <= _MAX_TARGET or any(mark in target for mark in "\0\n\r"):
        raise ImageError(f"the symbolic link {path[:200]!r} has a target that cannot be")

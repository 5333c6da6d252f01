"""Writes a `Tree` as an ext4 file system into a file.

`mke2fs` makes it empty, `debugfs` fills it by commands, and `e2fsck` has the last word. It needs no
mount, no root and no privilege, keeps every owner, mode, device node and attribute, and no file
appears on this host but contents under numbers of ours. (`mke2fs -d` wants the whole tree as files
of this host, and those of an archive that an attacker made; newer ones take a tar archive.)
The same tree gives the same bytes.
"""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Final

from teuthis.errors import ImageError
from teuthis.images import host
from teuthis.images.tree import Content, Node, Tree
from teuthis.root.console import harmless

_BLOCK: Final = 4096
_UUID: Final = "7e075e07-15a4-4e07-9d15-c0ffee07d15c"
_HASH_SEED: Final = "5eed5eed-7e07-4e07-8e07-5eed5eed5eed"
_INODE_RATIO: Final = 16384
_SPARE_INODES: Final = 8192
_MAX_ENTRY_HEADER: Final = 12
_DIRECTORY_BLOCK: Final = 3800
"""Bytes of a directory's block that are surely used before a name no longer fits in."""
_MAX_LINE: Final = 8000
"""`debugfs` reads lines into 8 KiB."""


def write(tree: Tree, disk: Path, size: int, time: int) -> None:
    """Makes the file system.

    Args:
        tree: what goes into it.
        disk: the file, which must not exist yet.
        size: of the file system, in bytes; what stays empty takes no space on this host.
        time: seconds since 1970 that all its time stamps get, but files' own modification times.

    Raises:
        ImageError: the tree does not fit into it, or a name or attribute cannot be written.
        HostError: a program is missing on this host.
    """
    links: dict[int, int] = {}
    for _, node in tree.walk():
        links[id(node)] = links.get(id(node), 0) + 1
    inodes = max(size // _INODE_RATIO, len(links) + _SPARE_INODES)
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(time), "LC_ALL": "C"}
    with disk.open("xb") as file:
        file.truncate(size // _BLOCK * _BLOCK)
    features = "^orphan_file,^metadata_csum_seed"  # kernels before 5.15 refuse the first
    extended = f"root_owner=0:0,hash_seed={_HASH_SEED},lazy_itable_init=0,lazy_journal_init=0"
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-m", "0", "-N", str(inodes)]
    make += ["-U", _UUID, "-L", "root", "-O", features, "-E", extended, str(disk)]
    host.run(make, "making the file system failed", environment)
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix=".contents-") as contents:
        commands = Path(contents) / "commands"
        with commands.open("wb") as file:
            for line in _Script(tree, Path(contents), links).lines():
                if len(line) > _MAX_LINE:
                    raise ImageError(f"a path or target is too long: {line[:100]!r}…")
                file.write(line + b"\n")
        _fill(disk, commands, environment)
    host.run(["e2fsck", "-f", "-n", str(disk)], "the new file system is not clean", environment)


def _fill(disk: Path, commands: Path, environment: dict[str, str]) -> None:
    command = [host.program("debugfs"), "-w", "-f", str(commands), str(disk)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    # It goes on after an error and ends with 0; its first line is its name and version.
    errors = done.stderr.splitlines()[1:]
    if done.returncode or errors:
        words = errors[0] if errors else b"status %d" % done.returncode
        raise ImageError(
            "the files could not be written into the file system "
            f"({harmless(words)}): if it is full, give it a larger --size"
        )


class _Script:
    """What `debugfs` is told, line by line; contents appear in a directory as they are named."""

    def __init__(self, tree: Tree, contents: Path, links: dict[int, int]) -> None:
        self._tree = tree
        self._contents = contents
        self._links = links
        self._written: dict[int, bytes] = {}
        self._files = 0

    def lines(self) -> Iterator[bytes]:
        yield from self._attributes(self._tree.root.node, b'"/"')
        yield from self._below(self._tree.root.node, b"")

    def _below(self, directory: Node, path: bytes) -> Iterator[bytes]:
        names = {os.fsencode(text): entry.node for text, entry in directory.entries.items()}
        if any(self._links[id(node)] > 1 for node in names.values()):  # `ln` makes no room
            room = sum(len(name) + _MAX_ENTRY_HEADER for name in names)
            yield from [b"expand_dir ."] * (room // _DIRECTORY_BLOCK)
        for name, node in sorted(names.items(), key=itemgetter(0)):
            full = path + b"/" + name
            if first := self._written.get(id(node)):
                yield b"ln %b %b" % (_quoted(first), _quoted(name))
                continue
            if self._links[id(node)] > 1:
                self._written[id(node)] = full
            if full != b"/lost+found" or not node.is_directory:  # mke2fs has made that
                yield self._creation(node, _quoted(name))
            here = _quoted(b"./" + name)
            yield from self._attributes(node, here)
            if node.entries:
                yield b"cd " + here
                yield from self._below(node, full)
                yield b'cd ".."'

    def _creation(self, node: Node, name: bytes) -> bytes:
        kind = stat.S_IFMT(node.mode)
        if kind == stat.S_IFDIR:
            return b"mkdir " + name
        if kind == stat.S_IFLNK:
            return b"symlink %b %b" % (name, _quoted(os.fsencode(node.target)))
        if kind == stat.S_IFIFO:
            return b"mknod %b p" % name
        if kind == stat.S_IFREG:
            assert node.content is not None
            return b"write %b %b" % (_quoted(os.fsencode(self._plain(node.content))), name)
        letter = b"c" if kind == stat.S_IFCHR else b"b"
        return b"mknod %b %b %d %d" % (name, letter, *node.device)

    def _attributes(self, node: Node, path: bytes) -> Iterator[bytes]:
        fields = {
            b"mode": b"0%o" % node.mode,
            b"uid": b"%d" % node.uid,
            b"gid": b"%d" % node.gid,
            b"mtime": b"@%d" % node.mtime,
        }
        if self._links[id(node)] > 1:
            fields[b"links_count"] = b"%d" % self._links[id(node)]
        for field, value in fields.items():
            yield b"sif %b %b %b" % (path, field, value)
        for attribute, content in sorted(node.xattrs.items()):
            file = os.fsencode(self._plain(Content.of(content)))
            yield b"ea_set -f %b %b %b" % (_quoted(file), path, _quoted(os.fsencode(attribute)))

    def _plain(self, content: Content) -> Path:
        """The content as a file of this host, with its holes."""
        if not content.size:
            return Path(os.devnull)
        source = content.source
        if isinstance(source, Path) and content == Content.of(source):
            return source
        self._files += 1
        path = self._contents / str(self._files)
        with path.open("wb") as file:
            content.write(file)
        return path


def _quoted(word: bytes) -> bytes:
    return b'"' + word.replace(b'"', b'""') + b'"'

"""Writes cpio archives in the `newc` format, which the kernel unpacks as its initramfs.

Reference: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.
"""

import stat

_DIRECTORY_LINKS = 2


class Archive:
    """An archive in memory. Same calls, same bytes: no time, no owner but root, no inode of a host.

    Parents must be added before what is in them.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Adds a directory."""
        self._add(path, stat.S_IFDIR | mode, links=_DIRECTORY_LINKS)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a character device node."""
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The archive with its end mark."""
        self._count = -1  # the end mark has inode 0
        self._add("TRAILER!!!", 0)
        return bytes(self._data)

    def _add(
        self,
        path: str,
        mode: int,
        content: bytes = b"",
        device: tuple[int, int] = (0, 0),
        links: int = 1,
    ) -> None:
        self._count += 1
        name = path.encode() + b"\0"
        owner = (0, 0)
        time = 0
        own_device = (0, 0)
        size = len(content)
        header = [self._count, mode, *owner, links, time, size, *own_device, *device, len(name), 0]
        self._data += b"070701" + b"".join(b"%08X" % field for field in header) + name
        self._align()
        self._data += content
        self._align()

    def _align(self) -> None:
        self._data += bytes(-len(self._data) % 4)

"""The descriptors of one VM, and the memory files among them.

Memory files are sealed against changing size: a process that has been taken over could otherwise
shrink one and so kill the others that map it.
"""

import fcntl
import os
from contextlib import ExitStack
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Descriptors(ExitStack):
    """Makes descriptors that close with this object, none inheritable."""

    def own(self, descriptor: int) -> int:
        """Takes `descriptor` over."""
        self.callback(os.close, descriptor)
        return descriptor

    def memory_file(self, name: str, size: int) -> int:
        """A zeroed memory file of `size` bytes that can neither shrink nor grow."""
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        descriptor = self.own(os.memfd_create(f"teuthis-{name}", flags))
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return descriptor

    def document(self, name: str, content: bytes) -> int:
        """A memory file to be read once from its start."""
        descriptor = self.own(os.memfd_create(f"teuthis-{name}", os.MFD_CLOEXEC))
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def pipe(self) -> tuple[int, int]:
        """A non-blocking pipe: where to read, where to write."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return self.own(read), self.own(write)

    def eventfd(self) -> int:
        """A non-blocking event counter."""
        return self.own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

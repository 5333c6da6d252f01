"""Where a restored machine's memory comes from, as the worker uses it.

The memory of a saved machine is shared by all machines restored from it and never written. Each of
them has a memory file of its own, empty at first; whoever needs a page, the hypervisor or the
worker, first copies it there. `hypervisor/src/template.rs` is the other half and tells why.

The page file: a header page, then one byte per page, 0 for a page that is still only in the
template, 2 for one that the root side has copied before either had the file. The first three bytes
of the header are a lock by Peterson's algorithm: who wants it, and whose turn it is. It takes plain
stores and loads and one barrier, which is what there is here.
"""

import mmap
from typing import Final

from teuthis.worker.barrier import full_barrier

_PAGE: Final = mmap.PAGESIZE
HEADER_BYTES: Final = _PAGE
_HYPERVISOR_WANTS, _WORKER_WANTS, _TURN = range(3)
_HYPERVISORS_TURN: Final = 0
_PATIENCE: Final = 1_000_000_000
"""How often to look whether the hypervisor has let go: a minute or two, as it may have been stopped
by the host. One that does not let go is dead, or hostile, and can hurt this machine only."""


class Template:
    """The saved memory, and which pages of it are copied by now."""

    def __init__(self, descriptor: int, pages: int, size: int) -> None:
        """Maps `size` bytes of saved memory, which cannot be written here, and the page file."""
        self._data = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        self._pages = mmap.mmap(pages, HEADER_BYTES + size // _PAGE)

    def touch(self, ram: mmap.mmap, first: int, end: int) -> None:
        """Copies the pages `first` to `end - 1` into `ram`, unless they are there."""
        absent = self._pages.find(b"\0", HEADER_BYTES + first, HEADER_BYTES + end)
        while absent >= 0:
            self._fill(ram, absent)
            absent = self._pages.find(b"\0", absent + 1, HEADER_BYTES + end)

    def _fill(self, ram: mmap.mmap, cell: int) -> None:
        self._take()
        if self._pages[cell] == 0:  # the hypervisor was not faster
            start = (cell - HEADER_BYTES) * _PAGE
            ram[start : start + _PAGE] = self._data[start : start + _PAGE]
            self._pages[cell] = 1
        self._pages[_WORKER_WANTS] = 0

    def _take(self) -> None:
        pages = self._pages
        pages[_WORKER_WANTS] = 1
        pages[_TURN] = _HYPERVISORS_TURN
        full_barrier()
        for _ in range(_PATIENCE):
            if not pages[_HYPERVISOR_WANTS] or pages[_TURN] != _HYPERVISORS_TURN:
                return

"""The pages that a guest touches first, put in place before it runs.

The RAM of a restored machine is empty at first, and a page is copied from the template when the
guest touches it: a fault of its processor each time, in a program that somebody waits for. Which
pages that will be a template knows, from a machine that ran a program. Here they are copied while
the machine's worker is being born, before either process has guest RAM. Pages of zeros are left
out: the kernel gives those as quickly when they are touched.

The list is a hint. A page is the same whether it is copied early or late, so a wrong list costs
time and memory, and a missing one saves none.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import Final

from teuthis.root import generation
from teuthis.root.saved import HEADER, PAGE, PLACED, ZERO, Memory, extents, runs, write_all

NAME: Final = "first-pages"
"""Of the file, in a template's directory: a byte per page, as in its map."""
_TOUCHED: Final = b"\0"
_NOT_TOUCHED: Final = b"\1"
MOST: Final = 2048
"""Pages that are put in place; a longer list is no list."""
_KEPT: Final = 2
"""Templates whose lists and mappings a process keeps."""

_Key = tuple[int, ...]
_kept: dict[_Key, FirstPages] = {}
_lock = threading.Lock()


class FirstPages:
    """What is put into the memory of each machine from one template."""

    def __init__(self, memory: int, pages: bytes, touched: bytes) -> None:
        """From the template's memory file, the map of its pages, and that of those touched."""
        size = len(pages) * PAGE
        view = memoryview(mmap.mmap(memory, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
        found = runs(touched)
        self._pieces = [(start, view[start:end]) for start, end in found]
        marked = bytearray(pages)
        for start, end in found:
            marked[start // PAGE : end // PAGE] = bytes([PLACED]) * ((end - start) // PAGE)
        self.page_file = HEADER + bytes(marked)
        """That of a machine in which they are."""

    def put(self, memory: int) -> None:
        """Copies them into the machine's own memory file. Nobody uses it yet."""
        for offset, data in self._pieces:
            write_all(memory, data, offset)


def write(directory: Path, memory: Memory, pages: bytes) -> None:
    """Keeps with a template, whose map of pages it is, what a machine started from it touched."""
    touched = bytearray(_NOT_TOUCHED) * len(pages)
    for start, end in extents(memory.own, memory.size):
        run = slice(start // PAGE, end // PAGE)
        touched[run] = pages[run]
    own = generation.ADDRESS // PAGE
    touched[own : own + 1] = _NOT_TOUCHED  # no two machines share it
    (directory / NAME).write_bytes(touched)


def read(directory: Path, memory: int, pages: bytes) -> FirstPages | None:
    """Those of a template that is open: its memory file, the map of its pages.

    None where there is no list, or none that can be used.
    """
    try:
        with (directory / NAME).open("rb") as file:
            key = (*_identity(memory), *_identity(file.fileno()))
            with _lock:
                found = _kept.get(key)
                if found is None:
                    touched = file.read(len(pages) + 1)
                    if not _is_list(touched, pages):
                        return None
                    found = FirstPages(memory, pages, touched)
                    while len(_kept) >= _KEPT:
                        del _kept[next(iter(_kept))]
                    _kept[key] = found
                return found
    except OSError:
        return None


def _is_list(touched: bytes, pages: bytes) -> bool:
    """Whether it is one of pages that hold something, and few, and not the generation id's."""
    return (
        len(touched) == len(pages)
        and not touched.translate(None, _TOUCHED + _NOT_TOUCHED)
        and touched.count(_TOUCHED) <= MOST
        and touched[generation.ADDRESS // PAGE :][:1] != _TOUCHED
        and not any(ZERO in pages[start // PAGE : end // PAGE] for start, end in runs(touched))
    )


def _identity(file: int) -> _Key:
    found = os.fstat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

"""Memory of a restored machine: pages come from the template when they are touched."""

import mmap
import os
import threading
import time

import pytest

from teuthis.worker.memory import GuestMemory, PageRange
from teuthis.worker.template import HEADER_BYTES, Template

PAGES = 16
SIZE = PAGES * mmap.PAGESIZE


class Restored:
    """RAM over a template in which each byte of page n is n + 1."""

    def __init__(self) -> None:
        template, pages, own = (os.memfd_create(name) for name in ("template", "pages", "own"))
        content = b"".join(bytes([n + 1]) * mmap.PAGESIZE for n in range(PAGES))
        os.write(template, content)
        os.ftruncate(pages, HEADER_BYTES + PAGES)
        os.ftruncate(own, SIZE)
        reader = os.open(f"/proc/self/fd/{template}", os.O_RDONLY)
        self.cells = mmap.mmap(pages, HEADER_BYTES + PAGES)
        self.own = mmap.mmap(own, SIZE)
        self.template = mmap.mmap(template, SIZE)
        self.memory = GuestMemory(own, SIZE, Template(reader, pages, SIZE))
        for descriptor in (template, pages, own, reader):
            os.close(descriptor)

    def present(self) -> list[int]:
        return [n for n in range(PAGES) if self.cells[HEADER_BYTES + n]]


@pytest.fixture
def restored() -> Restored:
    return Restored()


def test_reading_brings_the_pages(restored: Restored) -> None:
    assert restored.memory.read(0x3FFE, 4) == b"\4\4\5\5"
    assert restored.present() == [3, 4]
    assert restored.own[0x3000] == 4
    assert restored.cells[:3] == b"\0\0\0"


def test_what_is_written_stays_with_the_machine(restored: Restored) -> None:
    pages = PageRange(restored.memory, [5, 2])
    assert restored.present() == [2, 5]
    pages.write(mmap.PAGESIZE - 1, b"ab")
    assert restored.own[0x5FFF] == ord("a")
    assert restored.own[0x2000] == ord("b")
    assert restored.own[0x2001] == 3
    assert restored.template[0x5FFF] == 6


def test_a_page_that_is_there_is_not_fetched(restored: Restored) -> None:
    restored.cells[HEADER_BYTES + 7] = 1
    assert restored.memory.read(0x7000, 1) == b"\0"


def test_views_for_system_calls_are_of_pages_that_are_there(restored: Restored) -> None:
    (view,) = PageRange(restored.memory, [9]).views(0, 8)
    assert bytes(view) == b"\x0a" * 8


def test_the_lock_is_taken_in_turn(restored: Restored) -> None:
    restored.cells[0] = 1  # the hypervisor has it

    def let_go() -> None:
        time.sleep(0.05)
        restored.cells[HEADER_BYTES + 4] = 1
        restored.cells[0] = 0

    holder = threading.Thread(target=let_go)
    holder.start()
    assert restored.memory.read(0x4000, 1) == b"\0"  # it was faster
    holder.join()
    assert restored.cells[1] == 0


def test_a_hypervisor_that_never_lets_go_does_not_hold_up_its_worker_for_ever(
    restored: Restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teuthis.worker.template._PATIENCE", 1000)
    restored.cells[0] = 1
    assert restored.memory.read(0x4000, 1) == b"\5"

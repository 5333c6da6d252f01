"""The pages that a guest touches first: put in place, and what a list of them cannot do."""

import os
from pathlib import Path

import pytest

from teuthis.root import first_pages, generation
from teuthis.root.saved import IN_FILE, PAGE, PLACED, ZERO, Memory, pieces

COUNT = 512
SIZE = COUNT * PAGE
OWN = generation.ADDRESS // PAGE


def file(size: int) -> int:
    descriptor = os.memfd_create("memory")
    os.ftruncate(descriptor, size)
    return descriptor


def listing(*touched: int) -> bytes:
    return bytes(0 if page in touched else 1 for page in range(COUNT))


@pytest.fixture
def template() -> tuple[int, bytes]:
    """A memory file, and the map of its pages: each third is nothing but zeros."""
    pages = bytes(ZERO if page % 3 == 0 else IN_FILE for page in range(COUNT))
    memory = file(SIZE)
    for page in range(COUNT):
        # What a file holds where its map says zeros is no part of a template.
        os.pwrite(memory, bytes([page % 255 + 1]) * PAGE, page * PAGE)
    assert pages[OWN] == IN_FILE
    return memory, pages


def machine(template: tuple[int, bytes], found: first_pages.FirstPages) -> Memory:
    own, pages = file(SIZE), file(len(found.page_file))
    os.pwrite(pages, found.page_file, 0)
    found.put(own)
    return Memory(SIZE, own, template[0], pages)


def content(memory: Memory) -> bytes:
    whole = bytearray(memory.size)
    for start, data in pieces(memory):
        whole[start : start + len(data)] = data
    return bytes(whole)


def allocated(memory: Memory) -> int:
    return os.fstat(memory.own).st_blocks * 512 // PAGE


def test_the_machine_has_the_same_memory(template: tuple[int, bytes], tmp_path: Path) -> None:
    (tmp_path / first_pages.NAME).write_bytes(listing(1, 2, 4, 5, 103, COUNT - 1))
    found = first_pages.read(tmp_path, *template)
    assert found is not None
    whole = machine(template, found)
    without = Memory(SIZE, file(SIZE), template[0], file(PAGE + COUNT))
    os.pwrite(without.pages or 0, template[1], PAGE)
    assert content(whole) == content(without)
    assert allocated(whole) == 6
    cells = os.pread(whole.pages or 0, COUNT, PAGE)
    assert cells[:6] == bytes([ZERO, PLACED, PLACED, ZERO, PLACED, PLACED])
    assert cells[7] == IN_FILE
    assert first_pages.read(tmp_path, *template) is found, "a process looks at a list once"


def test_what_a_machine_touched_is_what_the_next_one_has(
    template: tuple[int, bytes], tmp_path: Path
) -> None:
    touched = Memory(SIZE, file(SIZE), template[0], file(PAGE + COUNT))
    for page in (3, 4, 5, 91, OWN):
        os.pwrite(touched.own, b"x", page * PAGE)
    first_pages.write(tmp_path, touched, template[1])
    found = first_pages.read(tmp_path, *template)
    assert found is not None
    whole = machine(template, found)
    cells = os.pread(whole.pages or 0, COUNT, PAGE)
    assert [page for page in range(COUNT) if cells[page] == PLACED] == [4, 5, 91]
    assert os.pread(whole.own, 1, 4 * PAGE) == b"\5", "of the template, not of that machine"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        listing(1)[:-1],
        listing(1) + b"\1",
        b"\2" + listing(1)[1:],
        b"\xff" * COUNT,
        listing(1, 3),
        listing(1, OWN),
    ],
    ids=["empty", "short", "long", "other", "noise", "zeros", "generation id"],
)
def test_what_is_no_list_is_not_used(
    template: tuple[int, bytes], tmp_path: Path, text: bytes
) -> None:
    (tmp_path / first_pages.NAME).write_bytes(text)
    assert first_pages.read(tmp_path, *template) is None


def test_no_more_than_so_many_pages_are_put_in_place(tmp_path: Path) -> None:
    pages = bytes(OWN + 1 + first_pages.MOST + 1)
    memory = file(len(pages) * PAGE)
    for count, used in ((first_pages.MOST, True), (first_pages.MOST + 1, False)):
        directory = tmp_path / str(count)
        directory.mkdir()
        listed = bytes(count).rjust(len(pages), b"\1")
        (directory / first_pages.NAME).write_bytes(listed)
        found = first_pages.read(directory, memory, pages)
        assert (found is not None) is used


def test_a_template_without_a_list_has_none(template: tuple[int, bytes], tmp_path: Path) -> None:
    assert first_pages.read(tmp_path, *template) is None


def test_a_process_keeps_few_lists(template: tuple[int, bytes], tmp_path: Path) -> None:
    directories = [tmp_path / str(number) for number in range(5)]
    for directory in directories:
        directory.mkdir()
        (directory / first_pages.NAME).write_bytes(listing(1))
        assert first_pages.read(directory, *template) is not None
    assert len(first_pages._kept) <= 2

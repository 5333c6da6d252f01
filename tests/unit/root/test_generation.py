"""The generation id, in a machine that boots and in one that is restored from a template."""

import os

from teuthis.root import generation
from teuthis.root.saved import IN_FILE, PAGE, Memory, copy, pieces

SIZE = 2 << 20
NUMBER = generation.ADDRESS // PAGE


def file(size: int) -> int:
    descriptor = os.memfd_create("memory")
    os.ftruncate(descriptor, size)
    return descriptor


def read(memory: int) -> bytes:
    """The page with the id, which holds nothing else."""
    page = os.pread(memory, PAGE, NUMBER * PAGE)
    assert not any(page[16:])
    return page[:16]


def test_no_two_machines_have_the_same() -> None:
    machines = [file(SIZE) for _ in range(20)]
    for memory in machines:
        generation.give(memory)
    assert len({read(memory) for memory in machines}) == 20


def test_a_restored_machine_has_its_own_and_not_the_templates() -> None:
    booted, template = file(SIZE), file(SIZE)
    os.pwrite(booted, b"other", (NUMBER + 1) * PAGE)
    generation.give(booted)
    content = copy(Memory(SIZE, booted), template)
    assert content[NUMBER] == content[NUMBER + 1] == IN_FILE
    own, pages = file(SIZE), file(PAGE + len(content))
    os.pwrite(pages, content, PAGE)
    generation.give(own, pages)
    given = os.pread(pages, len(content), PAGE)
    assert given[NUMBER] != IN_FILE
    assert given[:NUMBER] + given[NUMBER + 1 :] == content[:NUMBER] + content[NUMBER + 1 :]
    assert read(own) != read(booted)
    # Saved again, it is the machine's own too.
    whole = b"".join(data for _, data in pieces(Memory(SIZE, own, template, pages)))
    assert read(own) in whole
    assert read(booted) not in whole

"""Layers of saved disks: two become one, their digest, and maps that no worker of ours writes."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teuthis import layer
from teuthis.errors import SnapshotError
from teuthis.flows import Counters
from teuthis.layer import BASE, BLOCK, HOLE, LOWER, OWN
from teuthis.protocol import DiskConfig, LayerConfig
from teuthis.root import layers
from teuthis.root.disks import OpenDisk
from teuthis.root.saved import Identity

SIZE = 600 * BLOCK + 512


class Files:
    """Layer files that are open."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.open: list[int] = []

    def make(self, entries: dict[int, int], data: bytes = b"") -> int:
        """A layer with `data` at its start and these entries in its map."""
        file = os.open(self.place / str(len(self.open)), os.O_RDWR | os.O_CREAT)
        self.open.append(file)
        os.ftruncate(file, layer.file_size(SIZE))
        os.pwrite(file, data, 0)
        for block, entry in entries.items():
            os.pwrite(file, bytes((entry,)), layer.map_offset(SIZE) + block)
        return file


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    for each in files.open:
        os.close(each)


def content(file: int) -> tuple[bytes, bytes]:
    """Data and map."""
    entries = os.pread(file, layer.map_size(SIZE), layer.map_offset(SIZE))
    return os.pread(file, SIZE, 0), entries


@pytest.mark.parametrize("shared", [True, False])
def test_two_layers_become_one(files: Files, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    if not shared:

        def refuse(*_: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    choose = random.Random(5)
    entries = {block: choose.choice((BASE, OWN, HOLE, LOWER)) for block in range(601)}
    own, below = choose.randbytes(SIZE), choose.randbytes(SIZE)
    upper = files.make(entries, own)
    lower = files.make(dict.fromkeys(entries, OWN), below)
    target = files.make({})
    layers.copy(upper, lower, SIZE, target)
    data, merged = content(target)
    for block, entry in entries.items():
        place = slice(block * BLOCK, min((block + 1) * BLOCK, SIZE))
        expected = {OWN: own[place], LOWER: below[place]}.get(entry, bytes(len(own[place])))
        assert data[place] == expected, (block, entry)
        assert merged[block] == {LOWER: OWN}.get(entry, entry)
    assert content(lower)[0] == below


def test_a_copy_takes_only_what_was_written(files: Files) -> None:
    target = files.make({})
    layers.copy(files.make({5: OWN}, bytes(6 * BLOCK)), None, SIZE, target)
    assert os.fstat(target).st_blocks * 512 <= 4 * BLOCK


def test_the_digest_is_of_map_and_data(files: Files) -> None:
    def found(entries: dict[int, int], data: bytes) -> str:
        return layers.digest(files.make(entries, data), SIZE)

    first = found({0: OWN}, b"a")
    assert found({0: OWN}, b"a") == first
    assert found({0: OWN}, b"a" + bytes(BLOCK) + b"nobody reads this") == first
    assert len({first, found({0: OWN}, b"b"), found({1: OWN}, b"a"), found({0: HOLE}, b"a")}) == 4


@pytest.mark.parametrize("entries", [{0: 4}, {7: 255}, {3: LOWER}])
def test_a_map_that_no_worker_writes_is_refused(
    files: Files, entries: dict[int, int], tmp_path: Path
) -> None:
    (tmp_path / "base").write_bytes(bytes(SIZE))
    base = os.open(tmp_path / "base", os.O_RDONLY)
    files.open.append(base)
    own = LayerConfig(0, 0, kept=False)
    config = DiskConfig(file=0, size=SIZE, writable=True, punches=True, layer=own)
    disk = OpenDisk("/disk", Identity.of(base), config, files.make(entries))
    counters = Counters()
    with pytest.raises(SnapshotError, match="damaged"):
        layers.save([disk], counters)
    assert counters.snapshot()["state.layer-map"].rejected == 1


@settings(max_examples=60)
@given(entries=st.lists(st.integers(0, 4), max_size=40), below=st.booleans(), length=st.integers())
def test_any_map_is_taken_or_refused(entries: list[int], below: bool, length: int) -> None:
    size = 20 * BLOCK - 512
    source, lower, target = (os.memfd_create("layer") for _ in range(3))
    try:
        for file in (source, lower):
            os.ftruncate(file, layer.file_size(size))
        os.pwrite(source, bytes(entries), layer.map_offset(size))
        os.ftruncate(source, layer.file_size(size) - length % layer.file_size(size))
        layers.copy(source, lower if below else None, size, target)
    except SnapshotError:
        return
    finally:
        assert os.fstat(target).st_size in (0, layer.file_size(size))
        for file in (source, lower, target):
            os.close(file)


def test_what_a_map_says_beyond_the_disk_copies_nothing(files: Files) -> None:
    target = files.make({})
    layers.copy(files.make({700: OWN}), None, SIZE, target)
    assert content(target)[0] == bytes(SIZE)


def test_a_layer_that_is_cut_off_is_refused(files: Files) -> None:
    file = files.make({0: OWN})
    os.ftruncate(file, SIZE)
    with pytest.raises(SnapshotError, match="damaged"):
        layers.digest(file, SIZE)

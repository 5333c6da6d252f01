"""Copy-on-write layers: the disk they make, what they cost, and what is left after a crash."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from teuthis.layer import BLOCK, LOWER, file_size, map_offset
from teuthis.worker.devices.storage.backend import SECTOR, File, Memory
from teuthis.worker.devices.storage.layer import Layer, LayerDamaged

SIZE = 300 * BLOCK + 3 * SECTOR
BASE = random.Random(7).randbytes(SIZE)
Make = Callable[..., Layer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a layer over the base, in the same file as the one before."""
    (tmp_path / "base").write_bytes(BASE)

    def layer(*, limit: int = 1 << 30, kept: bool = True, punches: bool = True) -> Layer:
        path = tmp_path / "layer"
        whole = file_size(SIZE)
        with path.open("ab") as file:
            file.truncate(whole)
        base = os.open(tmp_path / "base", os.O_RDONLY)
        made = Layer(
            File(base, SIZE, writable=False, punches=False),
            File(os.open(path, os.O_RDWR), SIZE, writable=True, punches=punches),
            limit=limit,
            kept=kept,
        )
        made.load()
        return made

    return layer


def content(layer: Layer, offset: int = 0, length: int = SIZE) -> bytes:
    data = bytearray(length)
    layer.read(Memory(data), offset, length)
    return bytes(data)


def put(layer: Layer, offset: int, data: bytes) -> None:
    layer.write(Memory(bytearray(data)), offset, len(data))


def test_a_fresh_layer_shows_its_base(make: Make) -> None:
    layer = make()
    assert content(layer) == BASE
    assert (layer.size, layer.writable, layer.punches) == (SIZE, True, True)


@pytest.mark.parametrize("punches", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_any_series_of_changes_is_what_is_read(
    make: Make, tmp_path: Path, punches: bool, kept: bool
) -> None:
    layer = make(punches=punches, kept=kept)
    mirror = bytearray(BASE)
    choose = random.Random(3)
    for step in range(400):
        first = choose.randrange(SIZE // SECTOR)
        count = min(choose.choice((1, 2, 8, 9, 64, 300)), SIZE // SECTOR - first)
        offset, length = first * SECTOR, count * SECTOR
        match choose.randrange(3):
            case 0:
                data = choose.randbytes(length)
                put(layer, offset, data)
                mirror[offset : offset + length] = data
            case 1:
                layer.zero(offset, length)
                mirror[offset : offset + length] = bytes(length)
            case _:
                assert content(layer, offset, length) == mirror[offset : offset + length]
        if step % 50 == 49:
            layer.flush()
            assert content(layer) == mirror
            if kept:
                layer = make(punches=punches)
    assert content(layer) == mirror
    assert (tmp_path / "base").read_bytes() == BASE


def test_what_was_flushed_outlives_the_worker(make: Make) -> None:
    layer = make()
    put(layer, 5 * SECTOR, b"flushed!" * 1000)
    layer.flush()
    put(layer, 100 * BLOCK, b"y" * BLOCK)
    again = make()
    assert content(again, 5 * SECTOR, 8000) == b"flushed!" * 1000
    assert content(again, 100 * BLOCK, BLOCK) == BASE[100 * BLOCK : 101 * BLOCK]
    put(again, 100 * BLOCK + SECTOR, b"z" * SECTOR)
    expected = bytearray(BASE[100 * BLOCK : 101 * BLOCK])
    expected[SECTOR : 2 * SECTOR] = b"z" * SECTOR
    assert content(again, 100 * BLOCK, BLOCK) == expected, "nothing of the lost write shows"


def test_data_reach_the_host_before_the_map(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    events: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def write(descriptor: int, views: list[memoryview], offset: int) -> int:
        events.append("map" if offset >= map_offset(SIZE) else "data")
        return pwritev(descriptor, views, offset)

    def sync(descriptor: int) -> None:
        events.append("sync")
        fdatasync(descriptor)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    put(layer, 0, bytes(BLOCK))
    layer.flush()
    assert events == ["data", "sync", "map", "sync"]
    events.clear()
    put(layer, 0, bytes(BLOCK))
    layer.flush()
    assert events == ["data", "sync"], "the map says so already"
    events.clear()
    layer.flush()
    assert events == []


def test_a_layer_to_be_thrown_away_syncs_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(kept=False)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: pytest.fail("for whom?"))
    put(layer, 0, bytes(BLOCK))
    layer.flush()


def test_a_full_layer_refuses_and_stays_whole(make: Make) -> None:
    layer = make(limit=10 * BLOCK)
    put(layer, 0, bytes(10 * BLOCK))
    put(layer, BLOCK, b"x" * BLOCK)
    with pytest.raises(OSError, match="limit") as refused:
        put(layer, 10 * BLOCK, bytes(SECTOR))
    assert refused.value.errno == errno.ENOSPC
    assert content(layer)[10 * BLOCK :] == BASE[10 * BLOCK :]
    layer.zero(0, BLOCK)
    put(layer, 50 * BLOCK, b"y" * SECTOR)
    with pytest.raises(OSError, match="limit"):
        put(layer, 0, bytes(BLOCK))
    layer.flush()
    again = make(limit=10 * BLOCK)
    with pytest.raises(OSError, match="limit"):
        put(again, 0, bytes(BLOCK))


def test_a_layer_takes_only_what_was_written(make: Make, tmp_path: Path) -> None:
    layer = make()
    put(layer, 0, BASE[: 64 * BLOCK])
    layer.flush()
    used = (tmp_path / "layer").stat().st_blocks * 512
    assert used < (64 + 16) * BLOCK
    layer.zero(0, 64 * BLOCK)
    assert (tmp_path / "layer").stat().st_blocks * 512 <= used - 60 * BLOCK
    layer.zero(100 * BLOCK, 64 * BLOCK)
    assert content(layer, 100 * BLOCK, 64 * BLOCK) == bytes(64 * BLOCK), "a hole over the base"


def test_a_map_that_no_layer_can_have_is_refused(make: Make, tmp_path: Path) -> None:
    make()
    with (tmp_path / "layer").open("r+b") as file:
        file.seek(map_offset(SIZE) + 17)
        file.write(b"\x03")
    with pytest.raises(LayerDamaged):
        make()


def test_a_saved_layer_is_gone_on_with_and_never_written(make: Make, tmp_path: Path) -> None:
    """Generations: each is a layer over the one before, whose map holds all that it needs."""
    mirror = bytearray(BASE)
    choose = random.Random(11)
    lower: Path | None = None
    for generation in range(4):
        path = tmp_path / f"own-{generation}"
        with path.open("wb") as file:
            file.truncate(file_size(SIZE))
        below = None
        if lower is not None:
            below = File(os.open(lower, os.O_RDONLY), SIZE, writable=False, punches=False)
        layer = Layer(
            File(os.open(tmp_path / "base", os.O_RDONLY), SIZE, writable=False, punches=False),
            File(os.open(path, os.O_RDWR), SIZE, writable=True, punches=True),
            below,
            limit=1 << 30,
            kept=False,
        )
        layer.load()
        assert content(layer) == mirror
        before = lower.read_bytes() if lower else b""
        for _ in range(60):
            first = choose.randrange(SIZE // SECTOR)
            count = min(choose.choice((1, 8, 9, 64)), SIZE // SECTOR - first)
            offset, length = first * SECTOR, count * SECTOR
            data = choose.randbytes(length) if choose.randrange(3) else bytes(length)
            if any(data):
                put(layer, offset, data)
            else:
                layer.zero(offset, length)
            mirror[offset : offset + length] = data
            assert content(layer) == mirror
        layer.save()
        if lower is not None:
            assert lower.read_bytes() == before
        # What the root side does (`teuthis.root.layers`): both layers become one.
        merged = bytearray(path.read_bytes())
        entries = merged[map_offset(SIZE) :]
        for block in range(-(-SIZE // BLOCK)):
            if entries[block] == LOWER:
                place = slice(block * BLOCK, min((block + 1) * BLOCK, SIZE))
                merged[place] = before[place]
                merged[map_offset(SIZE) + block] = 1
        lower = tmp_path / f"merged-{generation}"
        lower.write_bytes(merged)


def test_a_limit_holds_for_both_layers(make: Make, tmp_path: Path) -> None:
    below = make(kept=False)
    put(below, 0, bytes(8 * BLOCK))
    below.save()
    (tmp_path / "layer").rename(tmp_path / "below")
    lower = File(os.open(tmp_path / "below", os.O_RDONLY), SIZE, writable=False, punches=False)
    (tmp_path / "own").write_bytes(bytes(file_size(SIZE)))
    layer = Layer(
        File(os.open(tmp_path / "base", os.O_RDONLY), SIZE, writable=False, punches=False),
        File(os.open(tmp_path / "own", os.O_RDWR), SIZE, writable=True, punches=True),
        lower,
        limit=10 * BLOCK,
        kept=False,
    )
    layer.load()
    put(layer, 0, bytes(10 * BLOCK))
    with pytest.raises(OSError, match="limit"):
        put(layer, 10 * BLOCK, bytes(SECTOR))


def test_a_saved_map_that_no_layer_can_have_is_refused(make: Make, tmp_path: Path) -> None:
    made = make(kept=False)
    put(made, 0, bytes(BLOCK))
    made.save()
    file = os.open(tmp_path / "layer", os.O_RDWR)
    os.pwrite(file, bytes((LOWER,)), map_offset(SIZE) + 3)
    base, own = (File(file, SIZE, writable=False, punches=False) for _ in range(2))
    with pytest.raises(LayerDamaged):
        Layer(base, own, own, limit=0, kept=False).load()

"""Disks as a user gives them: which are taken, which are refused, and what the worker may do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from teuthis import Disk, layer
from teuthis.errors import ConfigurationError
from teuthis.jail import worker
from teuthis.protocol import Birth, DiskConfig, LayerConfig, WorkerConfig
from teuthis.root.descriptors import Descriptors
from teuthis.root.disks import open_disks

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def opened(*disks: Disk) -> tuple[DiskConfig, ...]:
    with Descriptors() as given:
        return tuple(disk.config for disk in open_disks(disks, given, given))


def refused(*disks: Disk) -> str:
    with pytest.raises(ConfigurationError) as caught:
        opened(*disks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_kinds_of_disks(path: Path, tmp_path: Path) -> None:
    (disk,) = opened(Disk(path))
    assert (disk.size, disk.writable, disk.punches, disk.layer) == (SIZE, True, True, None)
    (disk,) = opened(Disk(path, read_only=True))
    assert (disk.size, disk.writable, disk.punches, disk.layer) == (SIZE, False, False, None)
    (disk,) = opened(Disk(path, copy_on_write=True, layer_limit="64K"))
    assert (disk.writable, disk.layer and disk.layer.limit) == (True, 64 << 10)
    assert disk.layer is not None
    assert not disk.layer.kept
    (disk,) = opened(Disk(path, layer=tmp_path / "layer"))
    assert disk.layer is not None
    assert disk.layer.kept
    assert path.read_bytes() == bytes(SIZE)


def test_the_file_is_opened_as_the_disk_needs_it(path: Path) -> None:
    with Descriptors() as given:
        for asked in (Disk(path, read_only=True), Disk(path, copy_on_write=True)):
            (disk,) = open_disks([asked], given, given)
            flags = Path(f"/proc/self/fdinfo/{disk.config.file}").read_text().split()[3]
            assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
            assert not os.get_inheritable(disk.config.file)


def test_what_is_no_disk_is_refused(path: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(Disk(tmp_path / "absent"))
    assert "directory" in refused(Disk(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "neither" in refused(Disk(tmp_path / "pipe"))  # and nobody waited for its other end
    assert "neither" in refused(Disk("/dev/null"))
    for size in (0, 1, 511, 513):
        os.truncate(path, size)
        assert f"{size} bytes" in refused(Disk(path))


def test_contradictions_are_refused(path: Path, tmp_path: Path) -> None:
    assert "not both" in refused(Disk(path, read_only=True, copy_on_write=True))
    assert "not both" in refused(Disk(path, read_only=True, layer=tmp_path / "layer"))
    assert "layer_limit" in refused(Disk(path, layer_limit="1G"))
    assert "not a size" in refused(Disk(path, copy_on_write=True, layer_limit="many"))
    assert "up to 64" in refused(*[Disk(path, read_only=True)] * 65)
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, layer.MAX_DISK + 512)
    assert "1 TiB" in refused(Disk(huge, copy_on_write=True))


def test_one_writer_or_many_readers(path: Path) -> None:
    with Descriptors() as given:
        open_disks([Disk(path, read_only=True), Disk(path, copy_on_write=True)], given, given)
        assert "in use" in refused(Disk(path))
        opened(Disk(path, read_only=True))
    with Descriptors() as given:
        open_disks([Disk(path)], given, given)
        assert "in use" in refused(Disk(path))
        assert "in use" in refused(Disk(path, read_only=True))
    opened(Disk(path))


def test_a_lock_lives_as_long_as_somebody_has_the_descriptor(path: Path) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    with Descriptors() as given:
        (disk,) = open_disks([Disk(path)], given, given)
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[disk.config.file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
    assert "in use" in refused(Disk(path))
    child.communicate()
    opened(Disk(path))


def test_a_layer_fits_its_base_only(path: Path, tmp_path: Path) -> None:
    top = tmp_path / "layer"
    opened(Disk(path, layer=top))
    assert top.stat().st_size == layer.file_size(SIZE)
    assert top.stat().st_mode & 0o777 == 0o600
    opened(Disk(path, layer=top))
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    os.utime(other, ns=(1, 1))
    assert "not a layer of" in refused(Disk(other, layer=top))
    path.write_bytes(bytes(SIZE))
    assert "not a layer of" in refused(Disk(path, layer=top)), "its base has changed"


def test_what_is_no_layer_is_left_alone(path: Path, tmp_path: Path) -> None:
    top = tmp_path / "precious"
    for content in (b"x", bytes(SIZE), bytes(layer.file_size(SIZE))):
        top.write_bytes(content)
        assert "not a layer of" in refused(Disk(path, layer=top))
        assert top.read_bytes() == content


def test_a_layer_to_be_thrown_away_has_no_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEUTHIS_CACHE", str(tmp_path / "cache"))
    with Descriptors() as given:
        (disk,) = open_disks([Disk(path, copy_on_write=True)], given, given)
        assert disk.layer is not None
        assert os.fstat(disk.layer).st_size == layer.file_size(SIZE), "with room for its map"
        assert list((tmp_path / "cache/layers").iterdir()) == []


def config(*disks: DiskConfig) -> WorkerConfig:
    ours = dict.fromkeys(
        ("memory", "link", "doorbells", "to_worker", "to_hypervisor", "counters", "control"), 3
    )
    return WorkerConfig(memory_size=1 << 28, console=3, disks=disks, **ours)  # type: ignore[arg-type]


def test_the_worker_gets_what_its_disks_need() -> None:
    """Each call of storage names its descriptors, and the largest file it may write is a limit."""
    import resource

    locked = DiskConfig(file=10, size=SIZE, writable=False, punches=False)
    raw = DiskConfig(file=11, size=4 * SIZE, writable=True, punches=True)
    lost = LayerConfig(file=13, limit=0, kept=False)
    discarded = DiskConfig(file=12, size=2 * SIZE, writable=True, punches=True, layer=lost)

    def named(disks: tuple[DiskConfig, ...]) -> dict[str, set[int]]:
        calls = worker.system_calls([0], 0, 0, disks)
        return {
            name: {alternative[0].value for alternative in calls[name]}
            for name in ("preadv2", "pwritev2", "fdatasync", "fallocate")
            if name in calls
        }

    assert named(()) == {}
    assert named((locked,)) == {"preadv2": {10}}
    assert named((locked, raw, discarded)) == {
        "preadv2": {10, 11, 12, 13},
        "pwritev2": {11, 13},
        "fdatasync": {11},
        "fallocate": {11, 13},
    }
    limits = [
        worker.worker(config(*disks), Birth(), {}).limits[resource.RLIMIT_FSIZE]
        for disks in ((), (locked,), (locked, discarded), (locked, raw, discarded))
    ]
    assert limits == [0, 0, layer.file_size(2 * SIZE), 4 * SIZE]
    below = LayerConfig(file=13, limit=0, kept=False, lower=14)
    restored = DiskConfig(file=12, size=SIZE, writable=True, punches=True, layer=below)
    calls = named((restored,))
    assert calls["preadv2"] == {12, 13, 14}
    assert calls["pwritev2"] == calls["fallocate"] == {13}, "what others read is never written"
    assert worker.worker(config(locked, raw), Birth(), {}).descriptors.count(11) == 1  # type: ignore[attr-defined]

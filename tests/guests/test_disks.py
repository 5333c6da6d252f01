"""Disks of whole virtual machines: what is written is there, what must not be written is not."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import teuthis
from tests.guests import disks
from tests.guests.disks import MIB
from tests.guests.processes import run
from teuthis import STDOUT, VM, Disk


class Machine:
    """One VM with four disks, for all tests that do not end it."""

    def __init__(self, place: Path) -> None:
        self.written = disks.ext4(place / "written")
        self.locked = disks.ext4(place / "locked")
        self.base = disks.ext4(place / "base")
        self.small = disks.sparse(place / "small")
        self.before = {path: disks.digest(path) for path in (self.locked, self.base, self.small)}
        self.vm = VM(
            "192M",
            disks=[
                Disk(self.written),
                Disk(self.locked, read_only=True),
                Disk(self.base, copy_on_write=True),
                Disk(self.small, copy_on_write=True, layer_limit="2M"),
            ],
        )
        self.run("mkdir /mnt/a /mnt/b /mnt/c")

    def run(self, script: str, *, check: bool = True) -> str:
        done = self.vm.run(["sh", "-c", script], timeout=300)
        assert not check or done.exit_code == 0, done
        return (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("disks"))
    with machine.vm:
        yield machine


def test_disks_are_what_they_were_said_to_be(machine: Machine) -> None:
    for name, locked in (("sda", 0), ("sdb", 1), ("sdc", 0), ("sdd", 0)):
        assert int(machine.run(f"cat /sys/block/{name}/size")) * 512 == 64 * MIB
        assert int(machine.run(f"cat /sys/block/{name}/ro")) == locked
        assert int(machine.run(f"cat /sys/block/{name}/queue/rotational")) == 0
        assert int(machine.run(f"cat /sys/block/{name}/queue/physical_block_size")) == 4096
    assert "write back" in machine.run("cat /sys/block/sda/queue/write_cache")
    assert len(machine.run("ls /sys/block").split()) == 4, "and no disk more"


def test_what_was_written_is_there(machine: Machine) -> None:
    data = os.urandom(5 * MIB + 12345)
    machine.run("mount -t ext4 /dev/sda /mnt/a")
    machine.vm.write_file("/mnt/a/data", data)
    machine.run("umount /mnt/a; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/sda /mnt/a")
    assert machine.vm.read_file("/mnt/a/data") == data
    before = machine.vm.flows()["scsi.synchronize"].count
    machine.run("echo more >/mnt/a/more; sync /mnt/a/more")
    assert machine.vm.flows()["scsi.synchronize"].count > before
    machine.run("umount /mnt/a")
    disks.check(machine.written)
    dumped = subprocess.run(
        ["debugfs", "-R", "cat /data", machine.written], capture_output=True, check=True
    )
    assert dumped.stdout == data


def test_a_read_only_disk_stays_as_it_is(machine: Machine) -> None:
    machine.run("mount -t ext4 -o rw /dev/sdb /mnt/b")
    assert "Read-only" in machine.run("echo x 2>&1 >/mnt/b/x", check=False)
    machine.run("umount /mnt/b")
    machine.run("echo x >/dev/sdb; dd if=/dev/zero of=/dev/sdb bs=4k count=1", check=False)
    machine.run("echo 0 >/sys/block/sdb/ro; blockdev --setrw /dev/sdb", check=False)
    said = machine.run("dd if=/dev/zero of=/dev/sdb bs=4k count=1 conv=fsync 2>&1", check=False)
    assert "Read-only" in said or "not permitted" in said
    assert disks.digest(machine.locked) == machine.before[machine.locked]


def test_a_base_is_never_written(machine: Machine) -> None:
    machine.run("mount -t ext4 /dev/sdc /mnt/c && dd if=/dev/urandom of=/mnt/c/x bs=1M count=9")
    first = machine.run("sha256sum /mnt/c/x")
    machine.run("umount /mnt/c; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/sdc /mnt/c")
    assert machine.run("sha256sum /mnt/c/x; umount /mnt/c") == first
    assert disks.digest(machine.base) == machine.before[machine.base]


def test_a_full_layer_is_an_error_of_the_disk(machine: Machine) -> None:
    write = "dd if=/dev/zero of=/dev/sdd bs=64k conv=fsync"
    machine.run(f"{write} count=30")
    said = machine.run(f"{write} count=100", check=False)
    assert "No space" in said or "error" in said
    assert machine.vm.run(["echo", "alive"]).stdout == b"alive\n"
    assert machine.vm.flows()["scsi.write"].rejected > 0
    machine.run("blkdiscard /dev/sdd")
    machine.run(f"{write} count=30")
    assert disks.digest(machine.small) == machine.before[machine.small]


def test_discarded_space_returns_to_the_host(tmp_path: Path) -> None:
    path = disks.ext4(tmp_path / "disk")
    with VM("192M", disks=[Disk(path)]) as vm:
        assert vm.run(["sh", "-c", "mount -t ext4 /dev/sda /mnt"]).exit_code == 0
        vm.write_file("/mnt/large", os.urandom(20 * MIB))
        vm.run(["sync"], check=True)
        full = disks.used(path)
        assert full > 20 * MIB
        vm.run(["sh", "-c", "rm /mnt/large; sync; fstrim /mnt; umount /mnt"], check=True)
        assert disks.used(path) < full - 18 * MIB
        assert vm.flows()["scsi.unmap"].count > 0
    disks.check(path)


# Appends records, each acknowledged on stdout once it has been synced.
_JOURNAL = """
i=0
while :; do
    i=$((i + 1))
    dd if=/dev/urandom of=/mnt/noise bs=64k count=8 conv=notrunc seek=$((i % 50)) 2>/dev/null
    echo "record $i" >>/mnt/journal
    sync /mnt/journal
    echo $i
done
"""


def acknowledged_before_the_kill(disk: Disk) -> int:
    """Runs the journal for a while, kills the worker; the last record that was acknowledged."""
    with VM("192M", disks=[disk]) as vm:
        vm.run(["sh", "-c", "mount -t ext4 /dev/sda /mnt"], check=True)
        process = vm.popen(["sh", "-c", _JOURNAL], stderr=STDOUT)
        with process.stdout:
            lines = [process.stdout.readline() for _ in range(20)]
            time.sleep(0.2)
            disks.kill_worker(vm)
            lines += process.stdout.readlines()
    complete = [line for line in lines if line.endswith(b"\n")]
    return int(complete[-1])


def records(vm: VM) -> list[bytes]:
    vm.run(["sh", "-c", "mount -t ext4 /dev/sda /mnt"], check=True)
    return vm.read_file("/mnt/journal").splitlines()


@pytest.mark.parametrize("kind", ["raw", "layer"])
def test_a_killed_worker_loses_only_what_was_not_flushed(tmp_path: Path, kind: str) -> None:
    path = disks.ext4(tmp_path / "disk")
    disk = Disk(path, layer=tmp_path / "layer" if kind == "layer" else None)
    last = acknowledged_before_the_kill(disk)
    assert last >= 20
    with VM("192M", disks=[disk]) as vm:
        found = records(vm)
        assert found[:last] == [b"record %d" % i for i in range(1, last + 1)]
        vm.run(["umount", "/mnt"], check=True)
        copy = tmp_path / "copy"
        # As the guest sees it: through its layer.
        with copy.open("wb") as file, vm.popen(["cat", "/dev/sda"], stderr=STDOUT) as process:
            while piece := process.stdout.read(1 << 20):
                file.write(piece)
            assert process.wait() == 0
    disks.check(copy)
    if kind == "layer":
        disks.check(path)
        with VM("192M", disks=[Disk(path, read_only=True)]) as vm:
            vm.run(["sh", "-c", "mount -t ext4 /dev/sda /mnt"], check=True)
            assert vm.run(["ls", "/mnt"]).stdout == b"lost+found\n", "the base is as it was"


def test_one_writer_or_many_readers(tmp_path: Path) -> None:
    path = disks.sparse(tmp_path / "disk")
    with VM("128M", disks=[Disk(path)]):
        for other in (Disk(path), Disk(path, read_only=True), Disk(path, copy_on_write=True)):
            with pytest.raises(teuthis.ConfigurationError, match="in use"):
                VM("128M", disks=[other])
    with (
        VM("128M", disks=[Disk(path, read_only=True)]),
        VM("128M", disks=[Disk(path, copy_on_write=True)]),
        pytest.raises(teuthis.ConfigurationError, match="in use"),
    ):
        VM("128M", disks=[Disk(path)])
    with pytest.raises(teuthis.ConfigurationError, match="in use"):
        VM("128M", disks=[Disk(path), Disk(path)])


def test_disks_on_the_command_line(tmp_path: Path) -> None:
    path = disks.sparse(tmp_path / "a,b")
    done = run("run", "--disk", f"{path},ro", "--", "cat", "/sys/block/sda/ro")
    assert (done.stdout, done.stderr) == (b"1\n", b"")
    done = run("run", "--disk", f"{path},cow", "--", "sh", "-c", "echo x >/dev/sda && sync")
    assert done.returncode == 0
    assert not any(path.read_bytes())
    done = run("run", "--disk", str(path), "--", "sh", "-c", "echo x >/dev/sda && sync")
    assert done.returncode == 0
    assert path.read_bytes()[:2] == b"x\n"
    done = run("run", "--disk", str(tmp_path), "--", "true")
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    disks.make_image("small", tmp_path)
    return "small"


def test_the_root_is_on_the_images_disk(image: str, tmp_path: Path) -> None:
    disk = tmp_path / "data/images/small/disk.img"
    before = disks.digest(disk)
    with VM("192M", image=image) as vm:
        mounts = vm.read_file("/proc/mounts").decode().splitlines()
        assert any(line.startswith("/dev/sda / ext4 rw") for line in mounts)
        assert not any("rootfs" in line for line in mounts)
        assert vm.run(["hostname"]).stdout == b"on-a-disk\n"
        assert vm.run(["ls", "/"]).stdout.split() == (
            b"bin dev etc lost+found proc root run sys".split()
        )
        assert b"127.0.0.1" in vm.run(["ifconfig", "lo"]).stdout
        vm.write_file("/root/x", b"written")
        assert vm.read_file("/root/x") == b"written"
    with VM("192M", image=image) as vm, pytest.raises(teuthis.FileError):
        vm.read_file("/root/x")
    assert disks.digest(disk) == before


def test_a_layer_that_is_kept(image: str, tmp_path: Path) -> None:
    layer = str(tmp_path / "kept")
    first = run("run", "--image", image, "--keep", layer, "--", "sh", "-c", "echo kept >/root/x")
    assert (first.returncode, first.stderr) == (0, b"")
    again = run("run", "--image", image, "--keep", layer, "--", "cat", "/root/x")
    assert (again.stdout, again.stderr) == (b"kept\n", b"")
    with pytest.raises(teuthis.ConfigurationError, match="not a layer"):
        VM(disks=[Disk(disks.sparse(tmp_path / "other"), layer=layer)])
    with pytest.raises(teuthis.ConfigurationError, match="no disk"):
        VM(keep=layer)


def test_a_root_that_is_none_is_told(image: str, tmp_path: Path) -> None:
    disks.sparse(tmp_path / "data/images/small/disk.img")
    with pytest.raises(teuthis.GuestPanic) as caught:
        VM("192M", image=image)
    assert "root disk sda: no ext4 file system" in caught.value.last_words

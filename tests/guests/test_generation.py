"""The generation id: a stock kernel with the driver seeds its random numbers anew in each copy."""

import io
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

import teuthis
from tests.guests.processes import await_true
from teuthis.images import make, packages, store
from teuthis.images.cpio import Archive
from teuthis.images.modules import ModuleTree
from teuthis.root import generation

LONG = 240.0
RESEEDED = b"crng reseeded due to virtual machine fork"
INIT = """#!/busybox sh
/busybox mount -t devtmpfs dev /dev
while read module; do /busybox insmod /modules/$module.ko; done < /modules/load-order
while /busybox sleep 1; do
    echo "drew $(/busybox head -c 16 /dev/urandom | /busybox hexdump -ve '/1 "%02x"')" > /dev/kmsg
done
"""


@pytest.fixture(scope="module")
def kernel() -> Path:
    """Debian's ordinary kernel: the one for clouds is built without the driver."""
    names = packages.dependencies("linux-image-amd64")
    (name,) = [each for each in names if each.startswith("linux-image-")]
    (file,) = (packages.unpacked(name) / "boot").glob("vmlinuz-*")
    return file


def identity(vm: teuthis.VM) -> bytes:
    """The id, where the kernel looks for it."""
    where = f"bs=16 count=1 skip={generation.ADDRESS // 16}"
    return vm.run(["dd", "if=/dev/mem", *where.split()], check=True).stdout


def reseeded(vm: teuthis.VM) -> int:
    """How often its kernel has said that it seeded its random numbers anew for this."""
    return vm.run(["dmesg"], check=True).stdout.count(RESEEDED)


def await_reseeded(vm: teuthis.VM, times: int) -> None:
    await_true(lambda: reseeded(vm) == times, LONG)


def test_each_copy_is_told_and_has_an_id_of_its_own(kernel: Path, tmp_path: Path) -> None:
    with ExitStack() as machines:
        vm = machines.enter_context(teuthis.VM("256M", kernel=kernel))
        vm.snapshot(tmp_path / "saved")
        copies = vm.fork(2) + [teuthis.VM.restore(tmp_path / "saved") for _ in range(2)]
        for copy in copies:
            machines.enter_context(copy)
            await_reseeded(copy, 1)
            assert copy.flows()["interrupt.generation"].count == 1
        ids = {identity(each) for each in (vm, *copies)}
        assert len(ids) == 5
        assert bytes(16) not in ids
        assert reseeded(vm) == 0, "it is who it was"
        # A copy of a copy is another one again.
        (child,) = copies[0].fork()
        with child:
            await_reseeded(child, 2)
            assert identity(child) not in ids


def test_a_kernel_without_the_driver_goes_on_as_well() -> None:
    """From the template, as ever; its agent has seeded it."""
    with teuthis.VM() as vm:
        assert vm.run(["grep", "-c", "ACPI:Ged", "/proc/interrupts"]).stdout == b"1\n"
        assert reseeded(vm) == 0
        assert vm.flows()["interrupt.generation"].count == 1


@pytest.fixture
def own_init(kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image with an init of its own, which draws random numbers; nothing of ours is in it."""
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    archive = Archive()
    for name in ("dev", "modules"):
        archive.directory(name)
    busybox = packages.unpacked("busybox-static") / "bin/busybox"
    archive.file("busybox", busybox.read_bytes(), 0o755)
    release = kernel.name.removeprefix("vmlinuz-")
    modules = kernel.parents[1] / "lib/modules" / release
    drivers = ModuleTree(modules).load_order(("hv_utils",))
    for name, content in drivers.items():
        archive.file(f"modules/{name}.ko", content)
    archive.file("modules/load-order", "".join(f"{name}\n" for name in drivers).encode())
    archive.file("init", INIT.encode(), 0o755)
    home = store.directory() / "own"
    home.mkdir()
    (home / store.DISK).write_bytes(bytes(1 << 20))
    (home / store.KERNEL).write_bytes(kernel.read_bytes())
    (home / store.INITRD).write_bytes(archive.finish())
    record = store.Record(
        source="a test", root="sda", release=release, epoch=0, files=make.pins(home)
    )
    store.write_record(home, record)
    return home.name


def drawn(log: io.BytesIO) -> list[bytes]:
    """What a copy drew after it was told; the first may have been drawn just before."""
    _, told, after = log.getvalue().partition(RESEEDED)
    return re.findall(rb"drew ([0-9a-f]{32})\b", after)[1:] if told else []


def test_copies_without_our_agent_draw_numbers_of_their_own(own_init: str, tmp_path: Path) -> None:
    log = io.BytesIO()
    with teuthis.VM("256M", image=own_init, agent=False, console=log, boot_timeout=LONG) as vm:
        await_true(lambda: log.getvalue().count(b"drew ") >= 2, LONG)
        assert vm.flows()["agent.hello"].count == 0
        vm.snapshot(tmp_path / "saved")
    logs = [io.BytesIO() for _ in range(3)]
    with ExitStack() as machines:
        for log in logs:
            machines.enter_context(teuthis.VM.restore(tmp_path / "saved", console=log))
        await_true(lambda: all(len(drawn(log)) >= 3 for log in logs), LONG)
    numbers = [number for log in logs for number in drawn(log)]
    assert len(set(numbers)) == len(numbers)

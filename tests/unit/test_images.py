"""The initrd: what another cpio reads out of it, module order, and how kernels are found."""

import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from teuthis.errors import KernelError
from teuthis.images import cache
from teuthis.images.boot import boot_files
from teuthis.images.cpio import Archive
from teuthis.images.initrd import _is_static
from teuthis.images.kernel import default_kernel, kernel_from_file, release
from teuthis.images.modules import INTEGRATION, NETWORK, STORAGE, TRANSPORT, ModuleTree


def archive() -> bytes:
    made = Archive()
    made.directory("etc")
    made.file("etc/odd", b"12345", 0o640)
    made.file("etc/empty", b"")
    made.link("usr", "etc/odd")
    made.character_device("console", 5, 1)
    return made.finish()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_cpio_lists_the_archive() -> None:
    done = subprocess.run(
        ["cpio", "-tv", "--numeric-uid-gid"], input=archive(), capture_output=True, check=True
    )
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "etc"),
        ("-rw-r-----", "etc/odd"),
        ("-rw-r--r--", "etc/empty"),
        ("lrwxrwxrwx", "etc/odd"),
        ("crw-------", "console"),
    ]
    assert all(line[2:4] == ["0", "0"] for line in lines)
    assert lines[-1][4:6] == ["5,", "1"]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_cpio_extracts_the_content() -> None:
    command = ["cpio", "-i", "--to-stdout", "--quiet", "etc/odd"]
    done = subprocess.run(command, input=archive(), capture_output=True, check=True)
    assert done.stdout == b"12345"


def test_the_archive_is_reproducible() -> None:
    assert archive() == archive()


def module(depends: str) -> bytes:
    return b"\x7fELF...license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def tree(tmp_path: Path) -> Path:
    top = tmp_path / "modules"
    drivers = top / "kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "hv_sock.ko").write_bytes(module("hv_vmbus,vsock"))
    (drivers / "hv_vmbus.ko").write_bytes(module(""))
    (drivers / "vsock.ko").write_bytes(module("some-library,part"))
    (drivers / "some-library.ko").write_bytes(module(""))
    (top / "modules.builtin").write_text("kernel/lib/part.ko\n")
    return top


def test_modules_are_loaded_after_what_they_depend_on(tmp_path: Path) -> None:
    order = ModuleTree(tree(tmp_path)).load_order(("hv_sock", "hv_vmbus"))
    assert list(order) == ["hv_vmbus", "some_library", "vsock", "hv_sock"]


def test_signatures_are_left_out(tmp_path: Path) -> None:
    top = tree(tmp_path)
    content = module("")
    trailer = bytes(8) + (100).to_bytes(4, "big") + b"~Module signature appended~\n"
    (top / "kernel/drivers/hv_vmbus.ko").write_bytes(content + b"s" * 100 + trailer)
    assert ModuleTree(top).load_order(("hv_vmbus",)) == {"hv_vmbus": content}


def test_compressed_modules(tmp_path: Path) -> None:
    top = tree(tmp_path)
    drivers = top / "kernel/drivers"
    (drivers / "hv_vmbus.ko").unlink()
    (drivers / "hv_vmbus.ko.xz").write_bytes(lzma.compress(module("vsock")))
    assert list(ModuleTree(top).load_order(("hv_vmbus",)))[-2:] == ["vsock", "hv_vmbus"]


def test_a_kernel_without_a_needed_module(tmp_path: Path) -> None:
    top = tree(tmp_path)
    (top / "kernel/drivers/some-library.ko").unlink()
    with pytest.raises(KernelError, match="no module some_library"):
        ModuleTree(top).load_order(("hv_sock",))


@pytest.mark.parametrize("drivers", [TRANSPORT, INTEGRATION, STORAGE, NETWORK])
def test_the_default_kernel_has_the_drivers(drivers: tuple[str, ...]) -> None:
    modules = default_kernel().modules
    assert modules is not None
    order = list(ModuleTree(modules).load_order(drivers))
    assert order.index("hv_vmbus") < order.index(drivers[0]) or drivers[0] == "hv_vmbus"


def test_no_program_runs_for_an_initrd_once_busybox_has_been_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    first = boot_files()
    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert boot_files() == first


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}").touch()
        os.utime(tmp_path / f"{number}", (number, number))
    assert cache.used(tmp_path / "1", keep=3) == tmp_path / "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4", "5"]


def bzimage(release: str) -> bytes:
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x300)
    image[0x500 : 0x500 + len(release) + 5] = release.encode() + b" (me)"
    return bytes(image)


@pytest.mark.parametrize(
    "place", ["modules", "lib/modules/6.1.0-9-test", "../lib/modules/6.1.0-9-test"]
)
def test_modules_beside_a_kernel_file(place: str, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    file = boot / "my-kernel"
    file.write_bytes(bzimage("6.1.0-9-test"))
    assert kernel_from_file(file).modules is None
    (boot / place).mkdir(parents=True)
    found = kernel_from_file(file).modules
    assert found is not None
    assert found.samefile(boot / place)


@pytest.mark.parametrize("said", ["6.1.0-9/../../../../etc", "6.1.0-9\x1b[2J"])
def test_a_kernel_that_lies_about_its_release(said: str, tmp_path: Path) -> None:
    file = tmp_path / "vmlinuz"
    file.write_bytes(bzimage(said))
    assert release(file) == "6.1.0-9"


def test_no_kernel_file(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no kernel file"):
        kernel_from_file(tmp_path / "vmlinuz")


def test_static_programs_have_no_interpreter() -> None:
    def elf(kind: int) -> bytes:
        header = b"\x7fELF\2\1\1".ljust(32, b"\0") + struct.pack(
            "<QQIHHHHHH", 64, 0, 0, 64, 56, 1, 0, 0, 0
        )
        return header + struct.pack("<I", kind) + bytes(52)

    assert _is_static(elf(1))
    assert not _is_static(elf(3))

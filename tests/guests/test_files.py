import errno
import os

import pytest

import teuthis
from teuthis import VM


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
def test_in_and_out(vm: VM, size: int) -> None:
    data = os.urandom(size)
    vm.write_file("/tmp/data", data)
    assert vm.read_file("/tmp/data") == data
    assert vm.run(["wc", "-c", "/tmp/data"]).stdout.split()[0] == b"%d" % size


def test_writing_replaces(vm: VM) -> None:
    vm.write_file("/tmp/replaced", b"a long first content")
    vm.write_file("/tmp/replaced", b"short")
    assert vm.read_file("/tmp/replaced") == b"short"


def test_modes(vm: VM) -> None:
    vm.write_file("/tmp/script", b"#!/bin/sh\necho from a script\n", 0o755)
    assert vm.run(["/tmp/script"]).stdout == b"from a script\n"
    vm.write_file("/tmp/secret", b"", 0o600)
    assert vm.run(["stat", "-c", "%a", "/tmp/secret"]).stdout == b"600\n"
    with pytest.raises(teuthis.ConfigurationError):
        vm.write_file("/tmp/x", b"", 0o100644)


def test_files_of_the_kernel(vm: VM) -> None:
    assert b"Linux version" in vm.read_file("/proc/version")


@pytest.mark.parametrize(
    ("path", "number"),
    [("/none", errno.ENOENT), ("/tmp", errno.EISDIR), ("/etc/passwd/x", errno.ENOTDIR)],
)
def test_reading_what_cannot_be_read(vm: VM, path: str, number: int) -> None:
    with pytest.raises(teuthis.FileError, match=path) as caught:
        vm.read_file(path)
    assert caught.value.errno == number


@pytest.mark.parametrize("data", [b"", b"x", bytes(2_000_000)])
def test_writing_where_one_cannot(vm: VM, data: bytes) -> None:
    for path in ("/none/file", "/tmp"):
        with pytest.raises(teuthis.FileError, match=path):
            vm.write_file(path, data)


def test_a_file_larger_than_expected(vm: VM) -> None:
    with pytest.raises(teuthis.OutputTooLarge, match="/dev/zero"):
        vm.read_file("/dev/zero", max_size=1_000_000)
    assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_relative_paths_are_refused(vm: VM) -> None:
    with pytest.raises(teuthis.ConfigurationError, match="absolute"):
        vm.read_file("etc/passwd")

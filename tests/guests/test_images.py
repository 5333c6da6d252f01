"""Images of every kind, booted: what went into them is what the guest finds."""

import gzip
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import teuthis
from tests.unit.images.archives import (
    Member,
    Oci,
    archive,
    directory,
    docker_save,
    entry,
    hard_link,
    symlink,
)
from teuthis.flows import FLOWS
from teuthis.images import ext4, make, packages, store, tar
from teuthis.images.importing import import_image
from teuthis.images.store import Image
from teuthis.images.tree import Tree
from teuthis.worker.agent import frames

_SIZE = 64 << 20
_WITH_MODULES = 256 << 20
_SCRIPT = b"""#!/bin/sh
stat -c '%a %u %g %h %s' /bin/su
stat -c '%F %a %t,%T' /dev-in-image/null
readlink /link
cat /link/file "/odd \\"name\\""
ls -a /opaque
ls /gone 2>/dev/null
grep ' / ' /proc/mounts | cut -d ' ' -f 1,3
"""
_SAYS = b"""4755 1000 70000 2 3
character special file 666 1,3
/srv
content
odd
.
..
new
/dev/sda ext4
"""


def root_members() -> list[Member]:
    """A root file system around busybox, with one of everything."""
    busybox = (packages.unpacked("busybox-static") / "bin/busybox").read_bytes()
    applets = ("sh", "stat", "readlink", "cat", "ls", "grep", "cut", "pwd")
    return [
        directory("./bin"),
        entry("./bin/busybox", busybox, mode=0o755),
        *(symlink(f"./bin/{name}", "busybox") for name in applets),
        entry("./bin/su", b"123", mode=0o4755, uid=1000, gid=70000),
        hard_link("./bin/su-again", "./bin/su"),
        entry("./dev-in-image/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        symlink("./link", "/srv"),
        entry("./link/file", b"content\n"),
        entry('./odd "name"', b"odd\n"),
        entry("./script", _SCRIPT, mode=0o755),
        entry("./opaque/new"),
    ]


@pytest.fixture(scope="module")
def root_archive() -> bytes:
    return archive(directory("srv"), *root_members())


@pytest.fixture
def importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Image]:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    return lambda source: import_image(source, name="x", size=_WITH_MODULES, say=lambda step: None)


def says(image: Image) -> bytes:
    with teuthis.VM("192M", image=image.name) as vm:
        return vm.run(["/script"], check=True).stdout


def test_a_root_archive(
    root_archive: bytes, importer: Callable[[Path], Image], tmp_path: Path
) -> None:
    source = tmp_path / "root.tar.gz"
    source.write_bytes(gzip.compress(root_archive, 1))
    assert says(importer(source)) == _SAYS


def file_system(data: bytes, path: Path) -> Path:
    source = path.with_suffix(".tar")
    source.write_bytes(data)
    tree = Tree()
    tar.apply(source, tree, _SIZE)
    ext4.write(tree, path, _SIZE, 0)
    return path


def test_a_file_system(
    root_archive: bytes, importer: Callable[[Path], Image], tmp_path: Path
) -> None:
    assert says(importer(file_system(root_archive, tmp_path / "fs"))) == _SAYS


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_a_disk_with_partitions(
    label: str, root_archive: bytes, importer: Callable[[Path], Image], tmp_path: Path
) -> None:
    content = file_system(root_archive, tmp_path / "fs").read_bytes()
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(_SIZE + (4 << 20))
    script = f"label: {label}\nsize=1MiB\nsize=64MiB\n"
    command = ["/usr/sbin/sfdisk", "-q", str(disk)]
    subprocess.run(command, input=script, text=True, check=True)
    with disk.open("r+b") as file:
        file.seek(2 << 20)
        file.write(content)
    image = importer(disk)
    assert image.root == "sda2"
    assert says(image) == _SAYS.replace(b"/dev/sda", b"/dev/sda2")


def layers() -> list[bytes]:
    """The same root file system in two layers, and what the second one hides."""
    lower = archive(directory("srv"), entry("gone"), entry("opaque/old"), entry("bin/su", b"old"))
    marks = [entry(".wh.gone"), entry("opaque/.wh..wh..opq")]
    return [lower, archive(*root_members(), *marks)]


CONFIG = {"Entrypoint": ["/script"], "Env": ["PATH=/bin"], "WorkingDir": "/srv"}


@pytest.mark.parametrize("kind", ["oci-archive", "oci-layout", "docker-save"])
def test_a_container(kind: str, importer: Callable[[Path], Image], tmp_path: Path) -> None:
    source = tmp_path / "image"
    if kind == "docker-save":
        files = docker_save(layers(), CONFIG)
        source.write_bytes(archive(*(entry(name, data) for name, data in files.items())))
    else:
        made = Oci()
        packed = [gzip.compress(layer, 1) for layer in layers()]
        made.index(made.image(packed, plain=layers(), config=CONFIG))
        if kind == "oci-layout":
            made.directory(source)
        else:
            source.write_bytes(made.archive())
    image = importer(source)
    assert says(image) == _SAYS
    if kind == "oci-archive":
        command = [sys.executable, "-m", "teuthis", "run", "--image", "x"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, _SAYS, b"")
        done = subprocess.run([*command, "--", "pwd"], capture_output=True, check=False)
        assert done.stdout == b"/srv\n"


@pytest.fixture(scope="session")
def debian() -> str:
    """The image that `make setup` has built; built here if it has not."""
    return make.build("debian", say=print).name


@pytest.fixture(scope="module")
def debian_vm(debian: str) -> Iterator[teuthis.VM]:
    with teuthis.VM("512M", image=debian) as vm:
        yield vm


def test_python_in_debian(debian_vm: teuthis.VM) -> None:
    program = "import platform; print(platform.freedesktop_os_release()['ID'], 6 * 7)"
    assert debian_vm.run(["python3", "-c", program], check=True).stdout == b"debian 42\n"


def test_modprobe_in_debian(debian_vm: teuthis.VM) -> None:
    debian_vm.run(["modprobe", "dummy"], check=True)
    assert b"dummy" in debian_vm.read_file("/proc/modules")


def test_debian_knows_its_packages(debian_vm: teuthis.VM, debian: str) -> None:
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]
    lines = debian_vm.run(command, check=True).stdout.decode().splitlines()
    record = store.find(debian).record
    assert record is not None
    assert dict(line.split() for line in lines) == record.packages
    assert debian_vm.run(["dpkg", "--audit"], check=True).stdout == b""


def test_debian_is_as_it_was_made(debian_vm: teuthis.VM, debian: str) -> None:
    debian_vm.run(["sh", "-c", "rm -rf /usr/share/doc; echo x > /x; sync"], check=True)
    assert make.verify(store.find(debian)) == []


_ASK = f"""
import socket, sys
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as agent:
    agent.settimeout(60)
    agent.connect((1, {FLOWS["agent.hello"].values["port"]}))
    try:
        agent.send(sys.stdin.buffer.read())
        print(agent.recv(100))
    except ConnectionError:
        print(b"")
"""


def test_the_agent_obeys_no_program_of_the_guest(debian_vm: teuthis.VM) -> None:
    debian_vm.run(["modprobe", "vsock_loopback"], check=True)
    request = frames.encode_exec([b"touch", b"/ran"], [], b"/", b"root")
    result = debian_vm.run(["python3", "-c", _ASK], request, user="nobody", check=True)
    assert result.stdout == b"b''\n"
    assert debian_vm.run(["test", "-e", "/ran"]).exit_code == 1

"""`apt-get install` inside a VM, through the user's network, from a repository of this host's."""

import gzip
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from functools import partial

import pytest

import teuthis
from teuthis.images import make

PACKAGE = "teuthis-greeting"
GREETING = "hello from a package\n"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a flat repository with one package, on the host's loopback."""
    top = tmp_path_factory.mktemp("repository")
    tree = tmp_path_factory.mktemp("package")
    (tree / "DEBIAN").mkdir()
    control = (
        f"Package: {PACKAGE}\nVersion: 1.0\nArchitecture: all\n"
        "Maintainer: nobody <nobody@localhost>\nDescription: a greeting\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr/share/greeting").mkdir(parents=True)
    (tree / "usr/share/greeting/text").write_text(GREETING)
    deb = top / f"{PACKAGE}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True)
    content = deb.read_bytes()
    entry = (
        f"{control}Filename: ./{deb.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    (top / "Packages.gz").write_bytes(gzip.compress(entry.encode()))
    handler = partial(_Quiet, directory=str(top))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_apt_installs_through_the_users_network(repository: int) -> None:
    image = make.build("debian", say=print).name
    source = f"deb [trusted=yes] http://10.126.7.1:{repository} ./\n"
    with teuthis.VM("512M", image=image, network="user", host_ports=[repository]) as vm:
        vm.run(["sh", "-c", "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*"], check=True)
        vm.write_file("/etc/apt/sources.list", source.encode())
        vm.run(["apt-get", "update"], timeout=200, check=True)
        done = vm.run(["apt-get", "install", "-y", PACKAGE], timeout=200)
        assert done.exit_code == 0, done.stderr
        assert vm.read_file("/usr/share/greeting/text").decode() == GREETING
        assert vm.run(["dpkg", "--verify", PACKAGE]).stdout == b""


def test_without_a_network_there_is_no_repository(repository: int) -> None:
    with teuthis.VM("192M") as vm:
        done = vm.run(["wget", "-q", "-O", "-", f"http://10.126.7.1:{repository}/"])
        assert done.exit_code == 1
        assert b"Network is unreachable" in done.stderr
        assert vm.run(["ls", "/sys/class/net"]).stdout.split() == [b"lo"]

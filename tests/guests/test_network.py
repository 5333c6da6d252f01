"""Real traffic: VMs with each other, with the host's network, and nothing where nothing may be."""

import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import teuthis
from teuthis.errors import ConfigurationError, HostError
from teuthis.jail.surface import processes, surface
from teuthis.root.network import named

from .processes import alive, await_true, run

PAGE = b"a page of another machine\n" * 100
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="makes network namespaces")
needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")


def sh(vm: teuthis.VM, script: str, timeout: float = 300) -> str:
    """What a shell script in the guest says."""
    result = vm.run(["sh", "-c", script], timeout=timeout)
    return result.stdout.decode() + result.stderr.decode()


def serve(vm: teuthis.VM) -> None:
    vm.write_file("/tmp/page", PAGE)
    vm.run(["httpd", "-p", "80", "-h", "/tmp"], check=True)


def fetch(vm: teuthis.VM, where: str, seconds: int = 60) -> bytes | None:
    """What a page holds; None: nobody answers."""
    # `wget -T` of this busybox falls over, on any machine.
    argv = ["timeout", str(seconds), "wget", "-q", "-O", "-", f"http://{where}/page"]
    result = vm.run(argv)
    return result.stdout if result.exit_code == 0 else None


def rejected(vm: teuthis.VM, flow: str) -> int:
    return vm.flows()[flow].rejected


def network(kind: str = "lan") -> str:
    """A name that no other run of the tests uses."""
    return f"switch:{kind}-{os.getpid()}"


class Console:
    """Keeps what a VM's console says."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes, /) -> None:
        self.text += data


# ---- none ----------------------------------------------------------------------------------------


def test_without_asking_there_is_no_network(vm: teuthis.VM) -> None:
    assert sh(vm, "ls /sys/class/net").split() == ["lo"]
    assert vm.address is None
    flows = vm.flows()
    assert not any(flows[flow] for flow in flows if flow.startswith(("nvsp", "rndis", "network")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"publish": ["8080:80"]}, "belong to a network"),
        ({"network": "bridge"}, "not a network"),
        ({"network": "switch:"}, "name of a network"),
        ({"network": "switch:../x"}, "name of a network"),
        ({"network": "switch:lan", "publish": ["8080:80"]}, "user's network"),
        ({"network": "user", "publish": ["80"]}, "not a port to publish"),
        ({"network": "user", "publish": ["0:80"]}, "not a port"),
        ({"network": "user", "publish": ["8080:80/sctp"]}, "not a port to publish"),
        ({"network": "user", "publish": ["1.2.3.400:1:1"]}, "not an IPv4 address"),
        ({"network": "user", "publish": "8080:80"}, "must be a list"),
        ({"network": "user", "mac": "00:11:22:33:44:55"}, "begin with 02"),
        ({"network": "user", "mac": "2"}, "not a MAC address"),
        ({"network": "user", "mtu": 100}, "MTU"),
        ({"network": "user", "net_rate": "fast"}, "not a rate"),
        ({"network": "user", "net_rate": 1}, "not possible"),
    ],
)
def test_what_cannot_be_is_said_at_once(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        teuthis.VM(**arguments)  # type: ignore[arg-type]


# ---- between VMs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[teuthis.VM, teuthis.VM]]:
    """Two VMs on one network."""
    with (
        teuthis.VM("128M", network=network("pair"), mac="02:00:00:00:00:0a") as one,
        teuthis.VM("128M", network=network("pair")) as other,
    ):
        serve(one)
        yield one, other


def test_a_page_from_one_vm_to_the_other(pair: tuple[teuthis.VM, teuthis.VM]) -> None:
    one, other = pair
    assert (one.address, other.address) == ("10.126.8.1", "10.126.8.2")
    assert sh(one, "cat /sys/class/net/eth0/address").strip() == "02:00:00:00:00:0a"
    before = rejected(other, "network.from-worker")
    assert fetch(other, "10.126.8.1") == PAGE
    assert rejected(other, "network.from-worker") == before
    sent = other.flows()["rndis.packet"].count
    assert sent > 5

    def came() -> int:
        seen = other.flows()["network.from-worker"]
        return seen.count + seen.rejected

    await_true(lambda: came() >= sent)
    assert other.flows()["switch.joined"].count == 1


def test_the_other_way_and_by_ipv6(pair: tuple[teuthis.VM, teuthis.VM]) -> None:
    one, other = pair
    target = re.search(r"fe80::[0-9a-f:]+", sh(one, "ip -6 addr show eth0"))
    assert target is not None
    await_true(lambda: "1 packets received" in sh(other, f"ping -6 -c 1 {target[0]}%eth0"))
    await_true(lambda: "2 packets received" in sh(one, "ping -c 2 10.126.8.2"))


def test_many_bytes_survive_both_ways(pair: tuple[teuthis.VM, teuthis.VM]) -> None:
    one, other = pair
    sh(one, "dd if=/dev/urandom of=/tmp/large bs=64k count=80 2>/dev/null")
    wanted = sh(one, "sha256sum < /tmp/large")
    assert sh(other, "wget -q -O - http://10.126.8.1/large | sha256sum") == wanted


def test_spoofed_addresses_are_dropped_and_counted(pair: tuple[teuthis.VM, teuthis.VM]) -> None:
    one, other = pair
    innocent = rejected(one, "network.from-worker")
    before = rejected(other, "network.from-worker")

    def spoofed() -> bool:
        said = sh(
            other,
            "ip addr add 10.126.8.77/24 dev eth0; ip neigh flush dev eth0;"
            " ping -c 2 -W 1 -I 10.126.8.77 10.126.8.1; ip addr del 10.126.8.77/24 dev eth0",
        )
        assert "0 packets received" in said
        return rejected(other, "network.from-worker") >= before + 2

    await_true(spoofed)
    # Claiming somebody else's address, at the level of ARP.
    before = rejected(other, "network.from-worker")
    sh(
        other,
        "ip addr add 10.126.8.1/32 dev lo; arping -c 3 -A -I eth0 10.126.8.1;"
        " arping -c 3 -U -I eth0 10.126.8.1; ip addr del 10.126.8.1/32 dev lo",
    )
    await_true(lambda: rejected(other, "network.from-worker") >= before + 3)
    await_true(lambda: "0a" in sh(other, "ping -c 1 10.126.8.1; ip neigh show 10.126.8.1"))
    assert rejected(one, "network.from-worker") == innocent


def test_the_mac_address_cannot_be_changed(pair: tuple[teuthis.VM, teuthis.VM]) -> None:
    _, other = pair
    said = sh(other, "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:0b; echo $?")
    assert said.split()[-1] != "0"
    sh(other, "ip link set eth0 up")
    await_true(lambda: fetch(other, "10.126.8.1") == PAGE)


def test_a_flood_of_broadcasts_is_bounded(pair: tuple[teuthis.VM, teuthis.VM]) -> None:
    one, other = pair
    started = time.monotonic()
    seen, dropped = one.flows()["network.to-worker"].count, rejected(other, "network.from-worker")
    flood = "ping -q -i 0.001 -w 4 -I eth0 224.0.0.1"
    sent = re.search(rb"(\d+) packets transmitted", other.run(["sh", "-c", flood]).stdout)
    await_true(lambda: one.flows()["network.to-worker"].count > seen)
    received = one.flows()["network.to-worker"].count - seen
    seconds = time.monotonic() - started
    assert sent is not None
    if int(sent[1]) > 250 * (seconds + 1):  # the guest may be too slow for its own flood
        await_true(lambda: rejected(other, "network.from-worker") > dropped)
        assert received < 250 * (seconds + 1)
    assert fetch(other, "10.126.8.1") == PAGE


def test_networks_of_other_names_do_not_meet() -> None:
    with (
        teuthis.VM("128M", network=network("a")) as one,
        teuthis.VM("128M", network=network("b")) as other,
    ):
        serve(one)
        assert one.address == other.address == "10.126.8.1"  # the networks know nothing of another
        sh(other, "ip addr del 10.126.8.1/24 dev eth0; ip addr add 10.126.8.2/24 dev eth0")
        before = one.flows()["network.to-worker"].count
        assert fetch(other, "10.126.8.1", 3) is None
        assert one.flows()["network.to-worker"].count == before


def test_the_switch_comes_with_the_first_vm_and_goes_with_the_last() -> None:
    name = network("life")
    with ExitStack() as stack:
        first = stack.enter_context(teuthis.VM("128M", network=name))
        second = stack.enter_context(teuthis.VM("128M", network=name))
        first.close()
        serve(second)
        third = stack.enter_context(teuthis.VM("128M", network=name))
        assert third.address == "10.126.8.1"  # what the first had
        assert fetch(third, "10.126.8.2") == PAGE
        with pytest.raises(ConfigurationError, match="MTU"):
            teuthis.VM("128M", network=name, mtu=9000)
    with teuthis.VM("128M", network=name) as again:
        assert again.address == "10.126.8.1"
    assert left("life") == []


def test_the_link_goes_down_with_the_switch_and_the_vm_lives() -> None:
    console = Console()
    with teuthis.VM("128M", network=network("dies"), console=console) as vm:
        switch = network_processes(vm)["switch"]
        assert sh(vm, "cat /sys/class/net/eth0/carrier").strip() == "1"
        os.kill(switch, signal.SIGKILL)
        await_true(lambda: sh(vm, "cat /sys/class/net/eth0/carrier").strip() == "0")
        await_true(lambda: b"the network has gone" in console.text)
        assert sh(vm, "ping -c 1 -W 1 10.126.8.9; echo lives").split()[-1] == "lives"
        with teuthis.VM("128M", network=network("dies")) as other:  # a new switch
            assert other.address == "10.126.8.1"
    assert left("dies") == []


def left(kind: str) -> list[Path]:
    """The files of a network that has ended."""
    return list(named._directory().glob(f"{kind}-{os.getpid()}.*"))


def network_processes(vm: teuthis.VM) -> Mapping[str, int]:
    """Those that serve its network, by name."""
    attached = vm.machine.attached
    assert attached is not None
    return attached.processes


# ---- the user's network --------------------------------------------------------------------------


@contextmanager
def host_server(address: str = "127.0.0.1") -> Iterator[int]:
    """A web server of this host's; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def other_host() -> Iterator[str]:
    """A host with a web server on port 8000, in a network namespace; its address.

    It is wired to this host, whose address there is one less.
    """
    name = f"teuthis-{os.getpid()}"
    subnet = f"10.99.{os.getpid() % 250}"
    near = f"tt{os.getpid() % 10**8}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{subnet}.1/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        with subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", SERVER, f"{subnet}.2"],
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield f"{subnet}.2"
            server.kill()
    finally:
        ip("netns", "del", name)


SERVER = f"""
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write({PAGE!r})
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer((sys.argv[1], 8000), Handler)
print("ready", flush=True)
server.serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def user() -> Iterator[tuple[teuthis.VM, int, int]]:
    """A VM on the user's network; the port that is published, the host's port that is open."""
    published = free_port()
    with (
        host_server() as open_port,
        teuthis.VM(
            "128M", network="user", publish=[f"{published}:80"], host_ports=[open_port]
        ) as vm,
    ):
        serve(vm)
        yield vm, published, open_port


@needs_passt
def test_the_guest_has_its_address_and_a_way_out(user: tuple[teuthis.VM, int, int]) -> None:
    vm, _, _ = user
    assert vm.address == "10.126.7.2"
    said = sh(vm, "ip addr show eth0; ip route")
    assert "mtu 65520" in said
    assert "inet 10.126.7.2/24" in said
    assert "default via 10.126.7.1" in said


@needs_passt
def test_a_guest_without_our_agent_may_ask_by_dhcp(user: tuple[teuthis.VM, int, int]) -> None:
    vm, _, _ = user
    vm.write_file("/tmp/lease", b'#!/bin/sh\n[ "$1" != bound ] || env\n', mode=0o755)
    said = sh(vm, "udhcpc -i eth0 -n -q -t 30 -s /tmp/lease 2>/dev/null")
    lease = dict(line.partition("=")[::2] for line in said.splitlines())
    assert (lease["ip"], lease["mask"], lease["mtu"]) == ("10.126.7.2", "24", "65520")
    assert lease["router"] == "10.126.7.1"
    servers = re.findall(r"nameserver (\S+)", sh(vm, "cat /etc/resolv.conf"))
    assert lease.get("dns", "").split() == servers


@needs_passt
@needs_root
def test_a_host_beyond_this_one_is_reached_and_this_one_is_not(
    user: tuple[teuthis.VM, int, int],
) -> None:
    vm, _, _ = user
    with other_host() as there:
        assert fetch(vm, f"{there}:8000") == PAGE
        here = there.removesuffix("2") + "1"
        # A VM that starts when this host has an address there is kept from that address.
        with host_server("0.0.0.0") as port, teuthis.VM("128M", network="user") as later:
            assert fetch(later, f"{here}:{port}", 3) is None
            await_true(lambda: rejected(later, "network.to-uplink") > 0)
            assert fetch(later, f"{there}:8000") == PAGE


@needs_passt
def test_the_hosts_loopback_is_out_of_reach(user: tuple[teuthis.VM, int, int]) -> None:
    vm, _, open_port = user
    with host_server() as port:
        before = rejected(vm, "network.to-uplink")
        assert fetch(vm, f"10.126.7.1:{port}", 3) is None
        await_true(lambda: rejected(vm, "network.to-uplink") > before)
        # Sent to the loopback address itself, past the guest's own.
        before = rejected(vm, "network.to-uplink")
        sh(
            vm,
            "ip route del local 127.0.0.0/8 table local; ip addr del 127.0.0.1/8 dev lo;"
            " ip route add 127.0.0.0/8 via 10.126.7.1;"
            " echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet",
        )
        assert fetch(vm, f"127.0.0.1:{port}", 3) is None
        await_true(lambda: rejected(vm, "network.to-uplink") > before)
    assert fetch(vm, f"10.126.7.1:{open_port}") == PAGE  # it was asked for


@needs_passt
def test_a_published_port_leads_to_the_guest(user: tuple[teuthis.VM, int, int]) -> None:
    _, published, _ = user
    # passt gives up on a guest that takes longer than its patience, on hosts with much to do.
    await_true(lambda: answer_of(published) == PAGE)


def answer_of(port: int) -> bytes:
    """The page behind a port of this host's loopback, or what has come of it."""
    answer = b""
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        while data := connection.recv(65536):
            answer += data
    return answer.rpartition(b"\r\n\r\n")[2]


@needs_passt
def test_ports_that_are_taken_are_said_to_be() -> None:
    with host_server() as port, pytest.raises(ConfigurationError, match=f"127.0.0.1:{port} cannot"):
        teuthis.VM("128M", network="user", publish=[f"{port}:80"])


def test_without_passt_it_is_said_which_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="apt-get install passt"):
        teuthis.VM("128M", network="user")


@needs_passt
@needs_root
def test_passt_and_switch_are_as_small_as_they_can_be(user: tuple[teuthis.VM, int, int]) -> None:
    vm, _, _ = user
    pids = network_processes(vm)
    assert set(pids.values()) <= set(processes())
    passt, switch = surface(pids["passt"]), surface(pids["switch"])
    for each in (passt, switch):
        assert each.user >= 0x7E07_0000
        assert each.capabilities == 0
        assert each.no_new_privileges
        assert each.filters >= 1
        assert (each.mounts, each.writable_mounts) == (1, 0)
    assert switch.namespaces == ["user", "mnt", "net", "ipc", "uts", "cgroup"]
    assert {"user", "mnt", "ipc", "uts"} <= set(passt.namespaces or ())
    assert len({passt.user, switch.user, *(surface(pid).user for pid in pids.values())}) == 2


@needs_passt
@pytest.mark.parametrize("victim", ["passt", "switch"])
def test_the_link_goes_down_when_either_is_killed(victim: str) -> None:
    console = Console()
    with teuthis.VM("128M", network="user", console=console) as vm:
        pids = network_processes(vm)
        os.kill(pids[victim], signal.SIGKILL)
        await_true(lambda: sh(vm, "cat /sys/class/net/eth0/carrier").strip() == "0")
        await_true(lambda: b"the network has gone" in console.text)
        await_true(lambda: not alive(pids.values()))
        assert sh(vm, "echo lives").strip() == "lives"


@needs_passt
def test_all_of_it_ends_with_the_vm() -> None:
    with teuthis.VM("128M", network="user") as vm:
        pids = network_processes(vm)
        assert alive(pids.values()) == set(pids.values())
    await_true(lambda: not alive(pids.values()))


@needs_passt
def test_by_command() -> None:
    with host_server() as port:
        done = run(
            *("run", "--memory", "128M", "--net", "user", "--host-port", str(port), "--"),
            *("wget", "-q", "-O", "-", f"http://10.126.7.1:{port}/page"),
        )
    assert (done.returncode, done.stdout) == (0, PAGE), done.stderr
    done = run("run", "--net", "nowhere", "--", "true")
    assert done.returncode == 125
    assert b"switch:NAME" in done.stderr


# ---- rates ---------------------------------------------------------------------------------------


def test_a_vm_sends_no_faster_than_it_may() -> None:
    name = network("rate")
    with (
        teuthis.VM("128M", network=name, net_rate="500K") as slow,
        teuthis.VM("128M", network=name) as other,
    ):
        sh(slow, "dd if=/dev/zero of=/tmp/page bs=1000 count=2000 2>/dev/null")
        slow.run(["httpd", "-p", "80", "-h", "/tmp"], check=True)
        begun = time.monotonic()
        page = fetch(other, "10.126.8.1", 300)
        assert page == bytes(2_000_000)
        assert time.monotonic() - begun > 3

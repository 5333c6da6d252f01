"""The user's network: passt, which opens sockets of the host, and the switch that stands before it.

passt runs as nobody else does: under a user id of its own when root starts it, in namespaces and
with a system-call filter that it makes itself. It speaks IPv4 only, gets no name of the host, and
the gateway leads to the host's loopback only if ports of it were opened.
"""

import ipaddress
import os
import re
import select
import shutil
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from teuthis.errors import ConfigurationError, HostError
from teuthis.jail import identity
from teuthis.protocol import PASST_MAC
from teuthis.root.descriptors import Descriptors
from teuthis.root.network.wanted import Publish, Wanted
from teuthis.root.spawn import Child
from teuthis.switch.protocol import Member, SwitchConfig, Uplink

SUBNET: Final = ipaddress.IPv4Network("10.126.7.0/24")
GATEWAY: Final = SUBNET[1]
GUEST: Final = SUBNET[2]

_RESOLVERS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_NAME_SERVERS_MAX: Final = 3
_START_SECONDS: Final = 20.0
_STREAM_BUFFER: Final = 1 << 20
"""As much as the kernel lets us: what does not fit passt drops, and sends again much later."""


def start(
    wanted: Wanted,
    given: Descriptors,
    held: Descriptors,
    frames: int,
    counters: int,
    allow_missing_walls: frozenset[str],
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Starts passt and the switch for one VM.

    Returns:
        The name servers that the guest may ask; the processes by name.

    Raises:
        HostError: passt is missing or does not start.
        ConfigurationError: a port to publish is taken.
    """
    program = shutil.which("passt")
    if program is None:
        raise HostError("the network `user` needs passt: apt-get install passt")
    own = held.enter_context(identity.lease())
    servers = _name_servers()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    uplink, stream = given.enter_context(near).fileno(), given.enter_context(far).fileno()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STREAM_BUFFER)
    for each in wanted.publish:
        _check_free(each)
    passt = _start_passt(program, wanted, servers, stream, given, held, own.hypervisor)
    config = SwitchConfig(
        uplink=Uplink(
            stream=uplink,
            gateway=GATEWAY.packed,
            refused=[f"{address}/32" for address in _own_addresses()],
            host_ports=list(wanted.host_ports),
            member=Member(
                mac=wanted.mac,
                mtu=wanted.mtu,
                bytes_rate=wanted.bytes_rate,
                frames_rate=wanted.frames_rate,
                address=GUEST.packed,
            ),
            frames=frames,
            counters=counters,
        ),
        uid=own.worker,
        allow_missing_walls=allow_missing_walls,
    )
    document = given.document("switch", msgspec.json.encode(config))
    switch = Child.start(
        [sys.executable, "-I", "-m", "teuthis.switch", "--config-fd", str(document)],
        [document, *config.descriptors()],
    )
    held.callback(switch.end)
    return servers, {"switch": switch.pid, "passt": passt.pid}


def _start_passt(
    program: str,
    wanted: Wanted,
    servers: Sequence[str],
    stream: int,
    given: Descriptors,
    held: Descriptors,
    uid: int | None,
) -> Child:
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    given.own(ready_read)
    os.fchmod(ready_write, 0o222)  # it opens it by name, as the user that it has become
    log = given.document("passt", b"")
    # The interface only has to exist: addresses and ways out do not depend on it.
    arguments = f"""
        --foreground --ipv4-only --interface lo --address {GUEST} --netmask {SUBNET.netmask}
        --gateway {GATEWAY} --mac-addr {PASST_MAC} --mtu {wanted.mtu} --search none
        --fd {stream} --pid /proc/self/fd/{ready_write}
    """.split()
    for server in servers or ("none",):
        arguments += ["--dns", server]  # for guests that ask by DHCP
    if not wanted.host_ports:
        arguments.append("--no-map-gw")
    if uid is not None:
        arguments += ["--runas", f"{uid}:{uid}"]
    for each in wanted.publish:
        option = "--tcp-ports" if each.protocol == "tcp" else "--udp-ports"
        arguments += [option, f"{each.address}/{each.host}:{each.guest}"]
    try:
        passt = Child.start_foreign([program, *arguments], [stream, ready_write], stderr=log)
    finally:
        os.close(ready_write)
    held.callback(passt.end)
    poll = select.poll()
    poll.register(ready_read, select.POLLIN)
    if not poll.poll(_START_SECONDS * 1000) or not os.read(ready_read, 16):
        passt.wait(_START_SECONDS)
        raise HostError(f"passt did not start ({passt.fate}): {_last_line(log)}")
    return passt


def _last_line(log: int) -> str:
    text = os.pread(log, 1 << 16, 0).decode(errors="replace")
    lines = [line for line in text.splitlines() if line and "syslog" not in line]
    return lines[-1] if lines else "it said nothing"


def _check_free(publish: Publish) -> None:
    """Raises `ConfigurationError` when the host's port cannot be had."""
    kind = socket.SOCK_STREAM if publish.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if publish.protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((publish.address, publish.host))
        except OSError as error:
            raise ConfigurationError(
                f"{publish.address}:{publish.host} cannot be published: {error.strerror}"
            ) from error


def _own_addresses() -> list[str]:
    """IPv4 addresses of this host: its services listen there as well as on its loopback."""
    found: set[str] = set()
    address = ""
    with suppress(OSError):
        for line in Path("/proc/net/fib_trie").read_text().splitlines():
            if match := re.search(r"\|-- (\d+\.\d+\.\d+\.\d+)", line):
                address = match[1]
            elif "host LOCAL" in line and not address.startswith("127."):
                found.add(address)
    return sorted(found)


def _name_servers() -> tuple[str, ...]:
    """The host's name servers, as far as a guest can reach them: not those on its loopback."""
    own = set(_own_addresses())
    for path in _RESOLVERS:
        with suppress(OSError):
            servers = [each for each in _listed(path.read_text()) if each not in own]
            if servers:
                return tuple(servers[:_NAME_SERVERS_MAX])
    return ()


def _listed(text: str) -> Iterable[str]:
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            with suppress(ValueError):
                address = ipaddress.IPv4Address(words[1])
                if not address.is_loopback:
                    yield str(address)

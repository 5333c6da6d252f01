"""Puts a VM on its network before it boots: what the worker and the guest need for that."""

import socket
from collections.abc import Collection, Mapping

import msgspec

from teuthis.protocol import NetworkConfig
from teuthis.root.descriptors import Descriptors
from teuthis.root.network import named, user
from teuthis.root.network.wanted import Wanted


class Attachment(msgspec.Struct, frozen=True):
    """A VM's place on a network.

    Attributes:
        mac: its MAC address, 6 bytes.
        address: its IPv4 address.
        prefix: the length of its network's prefix.
        gateway: the IPv4 address of the way out, where there is one.
        name_servers: IPv4 addresses.
        processes: those that serve it, by name, as process ids.
        shared: other VMs have the same processes.
    """

    mac: bytes
    address: str
    prefix: int
    mtu: int
    gateway: str | None = None
    name_servers: tuple[str, ...] = ()
    processes: Mapping[str, int] = msgspec.field(default_factory=dict)
    shared: bool = False

    @property
    def own_processes(self) -> Collection[int]:
        """Those that serve no other VM, and end with this one."""
        return () if self.shared else self.processes.values()

    @property
    def argument(self) -> str:
        """How our agent is told: a parameter of the kernel's command line."""
        parts = [f"{self.address}/{self.prefix}", f"mac={self.mac.hex(':')}", f"mtu={self.mtu}"]
        if self.gateway is not None:
            parts.append(f"gateway={self.gateway}")
        parts += [f"dns={server}" for server in self.name_servers]
        return "teuthis.net=" + ",".join(parts)


def attach(
    wanted: Wanted,
    given: Descriptors,
    held: Descriptors,
    counters: int,
    allow_missing_walls: frozenset[str],
) -> tuple[Attachment, NetworkConfig]:
    """Plugs a VM in.

    Args:
        wanted: what was asked for.
        given: keeps what the VM's processes get until they have it.
        held: keeps what ends with the VM.
        counters: the page on which the switch counts for this VM.
        allow_missing_walls: walls that the switch may go without.

    Raises:
        ConfigurationError: a port, an address or a MAC address is taken.
        HostError, OSError: something that is needed cannot be had here.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = given.enter_context(near).fileno()
    switch = given.enter_context(far).fileno()
    for end in (near, far):
        # As much as the kernel lets us: it holds what a guest has not taken yet.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    config = NetworkConfig(frames=worker, mac=wanted.mac, mtu=wanted.mtu)
    if wanted.name is None:
        servers, processes = user.start(wanted, given, held, switch, counters, allow_missing_walls)
        attachment = Attachment(
            wanted.mac,
            str(user.GUEST),
            user.SUBNET.prefixlen,
            wanted.mtu,
            str(user.GATEWAY),
            servers,
            processes,
        )
        return attachment, config
    address, pid = named.join(wanted, wanted.name, held, switch, counters, allow_missing_walls)
    prefix = named.SUBNET.prefixlen
    processes = {"switch": pid}
    attachment = Attachment(
        wanted.mac, str(address), prefix, wanted.mtu, processes=processes, shared=True
    )
    return attachment, config

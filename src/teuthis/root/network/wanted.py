"""What a user may ask of a VM's network, checked: its kind, ports, MAC address, rate."""

import os
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from teuthis.errors import ConfigurationError

USER_MTU: Final = 65520
"""What passt takes at most: fewer, larger frames cost a guest much less."""
SWITCH_MTU: Final = 1500
DEFAULT_RATE: Final = 125_000_000
"""Bytes a second: 1 Gbit/s."""
_SMALLEST_FRAME_SHARE: Final = 1000
"""One frame a second for so many bytes a second, and at least 100."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_PUBLISH: Final = re.compile(
    r"(?:(?P<address>\d{1,3}(?:\.\d{1,3}){3}):)?(?P<host>\d{1,5}):(?P<guest>\d{1,5})"
    r"(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_RATE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([KMG]?)", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_LOOPBACK: Final = "127.0.0.1"


class Publish(msgspec.Struct, frozen=True):
    """A port of the host that leads to a port of the guest."""

    address: str
    host: int
    guest: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.address}:{self.host}:{self.guest}/{self.protocol}"


class Wanted(msgspec.Struct, frozen=True):
    """A network that was asked for.

    Attributes:
        name: the named network; None: the user's own, through passt.
        mac: 6 bytes.
        mtu: largest payload of a frame.
        bytes_rate, frames_rate: what the VM may send a second.
        publish: ports of the host that lead to the guest.
        host_ports: ports of the host's loopback that the guest may reach.
    """

    name: str | None
    mac: bytes
    mtu: int
    bytes_rate: int
    frames_rate: int
    publish: tuple[Publish, ...] = ()
    host_ports: tuple[int, ...] = ()

    def elsewhere(self, publish: Sequence[Publish]) -> "Wanted":
        """The same network for another machine: one address is never two machines'."""
        return msgspec.structs.replace(self, mac=_mac(None), publish=tuple(publish))


def wanted(
    network: str | None,
    *,
    publish: Sequence[str] = (),
    host_ports: Sequence[int] = (),
    mac: str | None = None,
    mtu: int | None = None,
    rate: int | str | None = None,
) -> Wanted | None:
    """The network that these arguments ask for; None: no network at all.

    Raises:
        ConfigurationError: they contradict each other, or one of them cannot be.
    """
    if isinstance(publish, str):
        raise ConfigurationError(f'publish must be a list: ["{publish}"]')
    if network is None:
        if publish or host_ports or mac is not None or mtu is not None or rate is not None:
            raise ConfigurationError(
                "publish, host_ports, mac, mtu and rate belong to a network: "
                'say which, network="user" (--net user) for instance'
            )
        return None
    name = _name(network)
    if name is not None and (publish or host_ports):
        raise ConfigurationError(
            f"ports of the host belong to the user's network (--net user); on {network} the VMs "
            "reach each other directly"
        )
    for port in host_ports:
        _port(port, "host port")
    if mtu is not None and not 576 <= mtu <= USER_MTU:
        raise ConfigurationError(f"an MTU of {mtu} is not possible: 576 to {USER_MTU} are")
    bytes_rate = DEFAULT_RATE if rate is None else _bytes_rate(rate)
    return Wanted(
        name,
        _mac(mac),
        mtu if mtu is not None else USER_MTU if name is None else SWITCH_MTU,
        bytes_rate,
        max(bytes_rate // _SMALLEST_FRAME_SHARE, 100),
        tuple(map(_published, publish)),
        tuple(host_ports),
    )


def _name(network: str) -> str | None:
    if network == "user":
        return None
    kind, _, name = network.partition(":")
    if kind != "switch":
        raise ConfigurationError(
            f"{network!r} is not a network: say user, or switch:NAME for one between VMs"
        )
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is not the name of a network: up to 32 of a-z, 0-9 and hyphens inside"
        )
    return name


def _published(text: str) -> Publish:
    match = _PUBLISH.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"{text!r} is not a port to publish: write [ADDRESS:]HOST:GUEST[/tcp|/udp], "
            "such as 8080:80 or 0.0.0.0:8080:80/tcp"
        )
    address = match["address"] or _LOOPBACK
    if any(int(part) > 255 for part in address.split(".")):
        raise ConfigurationError(f"{address} in {text!r} is not an IPv4 address")
    host, guest = (_port(int(match[end]), f"port in {text!r}") for end in ("host", "guest"))
    return Publish(address, host, guest, match["protocol"] or "tcp")


def _port(number: int, what: str) -> int:
    if not 1 <= number <= 65535:
        raise ConfigurationError(f"{what}: {number} is not a port, 1 to 65535 are")
    return number


def _mac(text: str | None) -> bytes:
    """A MAC address; a random one of those that nobody was ever given unless it is said."""
    if text is None:
        random = os.urandom(6)
        return bytes([random[0] & 0xFC | 2]) + random[1:]
    if not _MAC.fullmatch(text):
        raise ConfigurationError(f"{text!r} is not a MAC address: write 02:00:5e:10:00:01")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 3 != 2:
        raise ConfigurationError(
            f"{text} is not a locally administered address of one station: let it begin with 02"
        )
    return mac


def _bytes_rate(rate: int | str) -> int:
    if isinstance(rate, str):
        match = _RATE.fullmatch(rate.strip())
        if match is None:
            raise ConfigurationError(f"{rate!r} is not a rate: write bytes a second, 10M for one")
        rate = int(float(match[1]) * _UNITS[match[2].upper()])
    if not 1000 <= rate < 1 << 40:
        raise ConfigurationError(f"a rate of {rate} bytes a second is not possible: 1K and more is")
    return rate

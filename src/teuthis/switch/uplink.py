"""The way to passt, for the one VM of a switch, and what may go there.

passt opens real sockets of the host for what a guest sends, also to the host's own loopback if a
frame says so. So what names the host itself is refused here, in a process that no guest speaks with
directly: its loopback, its own addresses, link-local ones (cloud metadata among them), and the
gateway, but for the ports that the user opened and for answers to whoever called the VM.

The stream is frames with a 32-bit big-endian length before each, as QEMU's socket network has it.
"""

import ipaddress
import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from teuthis.flows import FLOWS
from teuthis.switch import rules
from teuthis.switch.rules import Refused
from teuthis.switch.switch import Port, Switch
from teuthis.worker.loop import READ, WRITE

_LENGTH = struct.Struct(">I")
_MAX_FRAME: Final = FLOWS["network.from-uplink"].max_bytes
_CALLS_MAX: Final = FLOWS["network.to-uplink"].values["calls_max"]
_CHUNK = 256 * 1024
_DHCP_SERVER_PORT = 67

ALWAYS_REFUSED: Final = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")


class Destinations:
    """What the VM may reach through the uplink."""

    def __init__(self, gateway: bytes, refused: Sequence[str], host_ports: Sequence[int]) -> None:
        """`refused`: networks beyond `ALWAYS_REFUSED`, in CIDR notation."""
        self._gateway = gateway
        networks = [ipaddress.IPv4Network(text) for text in (*ALWAYS_REFUSED, *refused)]
        self._refused = [(int(net.netmask), int(net.network_address)) for net in networks]
        self._host_ports = frozenset(host_ports)
        self._calls: OrderedDict[tuple[bytes, int | None, int | None, int], None] = OrderedDict()

    def called(self, frame: bytes) -> None:
        """Remembers who calls the VM: it may answer, even where it could not call itself."""
        packet = rules.ipv4(frame)
        if packet is None or packet.source_port is None:
            return
        call = (packet.source, packet.source_port, packet.destination_port, packet.protocol)
        self._calls[call] = None
        self._calls.move_to_end(call)
        if len(self._calls) > _CALLS_MAX:
            self._calls.popitem(last=False)

    def check(self, frame: bytes) -> None:
        """Lets a frame pass to the uplink. Raises `Refused`."""
        if frame[12:14] == b"\x08\x06":
            return
        packet = rules.ipv4(frame)
        if packet is None:
            raise Refused("protocol", "the user's network speaks IPv4 only")
        if packet.fragment:
            raise Refused("fragment", "a fragment hides its port")
        target, port = packet.destination, packet.destination_port
        if packet.protocol == rules.UDP and port == _DHCP_SERVER_PORT:
            if target in (rules.BROADCAST[:4], self._gateway):
                return
        elif (target, port, packet.source_port, packet.protocol) in self._calls:
            return
        if target == self._gateway:
            if port is None or port not in self._host_ports:
                raise Refused("port", "a port of the host that is not open to this VM")
            return
        number = int.from_bytes(target)
        if any(number & mask == network for mask, network in self._refused):
            raise Refused("host", "an address of the host itself")


class Uplink:
    """The stream to passt."""

    def __init__(
        self,
        switch: Switch,
        stream: int,
        destinations: Destinations,
        port: Port,
    ) -> None:
        """`port`: the VM's."""
        self.closed = False
        """Whether passt has ended."""
        self._switch = switch
        self._stream = stream
        self._destinations = destinations
        self._counters = port.counters
        self._port = port
        self._incoming = bytearray()
        self._unsent = b""
        os.set_blocking(stream, False)
        switch.uplink = self.send
        port.on_taken = self._watch
        self._watch()

    def _watch(self) -> None:
        """Waits for passt, but not for frames that a slow VM would lose.

        Unless passt takes nothing either: then each could wait for the other for ever.
        """
        if self.closed:
            return
        reads = READ if self._unsent or not self._port.slow else 0
        events = reads | (WRITE if self._unsent else 0)
        if events:
            self._switch.loop.watch(self._stream, events, self._ready)
        else:
            self._switch.loop.unwatch(self._stream)

    def send(self, frame: bytes, _: Port) -> None:
        """Sends a frame of the VM's, if it may go there."""
        try:
            self._destinations.check(frame)
        except Refused as refused:
            self._counters.reject("network.to-uplink", refused.kind)
            return
        self._counters.accept("network.to-uplink", len(frame))
        self._unsent += _LENGTH.pack(len(frame)) + frame
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._stream, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
            return
        if self._switch.blocked != bool(self._unsent):
            self._switch.block(bool(self._unsent))
            self._watch()

    def _ready(self) -> None:
        if self._unsent:
            self._flush()
        if self._port.slow and not self._unsent:
            return
        try:
            data = os.read(self._stream, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        self._incoming += data
        self._take()
        self._watch()

    def _take(self) -> None:
        """Hands on the whole frames that have arrived; what passt says is judged as well."""
        at, end = 0, len(self._incoming)
        while end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._incoming, at)
            if not rules.ETHERNET_BYTES <= length <= _MAX_FRAME:
                self._counters.reject("network.from-uplink", "length")
                self.closed = True  # there is no way to find the next frame
                return
            start, at = at + _LENGTH.size, at + _LENGTH.size + length
            if at > end:
                at = start - _LENGTH.size
                break
            frame = bytes(self._incoming[start:at])
            try:
                self._destinations.called(frame)
            except Refused as refused:
                self._counters.reject("network.from-uplink", refused.kind)
                continue
            self._counters.accept("network.from-uplink", length)
            self._port.deliver(frame)
        del self._incoming[:at]

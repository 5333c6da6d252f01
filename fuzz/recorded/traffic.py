"""What crosses a guest's boundary in each turn of a recorded machine, by flow of the register.

The worker's own parsers take it apart, but none of its devices is here and nothing is answered:
the recorded worker did that. The rings are read in a private view of the RAM, so that the read
indices, which a reader writes, are not seen by the guest.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fuzz.recorded.replay import Turn
from teuthis.flows import FLOWS, Counters
from teuthis.worker import link
from teuthis.worker.agent import frames
from teuthis.worker.devices import hvsock
from teuthis.worker.devices.integration import heartbeat, kvp, shutdown, timesync
from teuthis.worker.devices.network import device, nvsp, rndis
from teuthis.worker.devices.storage import scsi, storvsp, vstor
from teuthis.worker.memory import GuestMemory, PageRange
from teuthis.worker.vmbus import gpa
from teuthis.worker.vmbus import messages as m
from teuthis.worker.vmbus.gpadl import Gpadl
from teuthis.worker.vmbus.ring import COMPLETION, GPA_DIRECT, Packet, RingReader

Take = Callable[[str, bytes], None]
"""Takes one input of a flow."""

_POST: Final = struct.Struct("<IIII")
_SIGNAL: Final = struct.Struct("<IHH")
_CHANNEL: Final = struct.Struct("<H")
_DESCRIPTOR: Final = struct.Struct("<HHHHQ")
_OFFER: Final = FLOWS["vmbus.offer-channel"].number
_RESCIND: Final = FLOWS["vmbus.rescind-channel-offer"].number
_TO_HYPERVISOR: Final = {
    flow.number: flow.id
    for flow in FLOWS.values()
    if flow.id.startswith("link.")
    and flow.direction == "worker-to-hypervisor"
    and flow.opcode is not None
}
_SERVICES: Final = {
    service.interface: service.flow
    for service in (
        heartbeat.Heartbeat,
        kvp.KeyValuePairs,
        shutdown.Shutdown,
        timesync.TimeSync,
    )
}
_IC_TYPE: Final = struct.Struct("<12xH")
_NEGOTIATION: Final = FLOWS["integration.negotiation"].number
_OBJECT: Final = struct.Struct("<12xI")
_OBJECTS: Final = frozenset(rndis._Object)
_IPV4: Final = (b"\x08\x00", b"\x08\x06")
"""Types of frames that the user's network takes: the packets, and ARP."""
_DATA_OUT_MAX: Final = 512
"""Bytes kept of what a guest writes to a disk: their content means nothing."""


class View(GuestMemory):
    """Guest RAM as it is now; what is written here stays here, until `refresh`."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(-1, size)
        self.bytes = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE)
        self.view = memoryview(self.bytes)
        self.words = self.view.cast("I")

    def refresh(self) -> None:
        """Forgets all that was written here."""
        self.bytes.madvise(mmap.MADV_DONTNEED)


@dataclass
class _Channel:
    """An offered channel; with a ring while it is open."""

    interface: bytes
    ring: RingReader | None = None
    gpadl: int = 0
    stream: bytes = b""
    """Of an hv_sock connection: the beginning of a frame."""
    send_buffer: int | None = None
    """The description of a network adapter's send buffer."""


class Traffic:
    """Follows one guest from its first instruction on."""

    def __init__(self, memory: View, take: Take) -> None:
        self._memory = memory
        self._take = take
        self._channels: dict[int, _Channel] = {}
        self._gpadls: dict[int, Gpadl] = {}
        self._counters = Counters()

    def see(self, turn: Turn) -> None:
        """Looks at all that a turn holds, while the guest stands still in it."""
        self._memory.refresh()
        for packet in turn.given:
            self._given(packet)
        for relid in turn.rung:
            self._take("hypercall.signal-event", _SIGNAL.pack(m.connection_id(relid), 0, 0))
            self._take("doorbell.to-worker", _CHANNEL.pack(relid))
        for channel in self._channels.values():
            while channel.ring is not None and (packets := channel.ring.read()):
                for each in packets:
                    self._packet(channel, each)
        for packet in turn.sent:
            self._sent(packet)
        for entry in turn.entries:
            self._take("recording.entry", entry)
        for relid in turn.doorbells:
            self._take("doorbell.to-hypervisor", _CHANNEL.pack(relid))

    # ---- the link --------------------------------------------------------------------------------

    def _given(self, packet: bytes) -> None:
        flow, message = link.decode(packet)
        self._take(flow, _cut(packet))
        match message:
            case link.PostMessage(connection, kind, payload):
                head = _POST.pack(connection, 0, kind, len(payload))
                self._take("hypercall.post-message", head + payload)
                self._posted(payload)
            case link.ConsoleText(text):
                self._take("client.terminal", text)

    def _sent(self, packet: bytes) -> None:
        self._take(_TO_HYPERVISOR[packet[2]], _cut(packet))
        payload = _cut(packet)[16:]
        if packet[2] == FLOWS["link.deliver-message"].number:
            kind, _ = m.HEADER.unpack_from(payload)
            if kind == _OFFER:
                (relid,) = struct.unpack_from("<I", payload, 8 + 176)
                self._channels[relid] = _Channel(payload[8:24])
            elif kind == _RESCIND:
                (relid,) = struct.unpack_from("<I", payload, 8)
                self._channels[relid].ring = None  # nobody reads it any more

    # ---- VMBus -----------------------------------------------------------------------------------

    def _posted(self, payload: bytes) -> None:
        shape, record, tail = m.decode(payload)
        self._take(shape.flow, payload)
        match record:
            case m.InitiateContact() | m.Unload():
                self._channels.clear()
                self._gpadls.clear()
            case m.GpadlHeader():
                self._gpadls[record.gpadl] = Gpadl(record, tail)
            case m.GpadlBody():
                self._gpadls[record.gpadl].append(tail)
            case m.GpadlTeardown():
                self._gpadls.pop(record.gpadl, None)
            case m.OpenChannel():
                channel = self._channels[record.relid]
                pages = self._gpadls[record.ring_gpadl].pages[: record.downstream_page]
                channel.ring = RingReader(self._memory, pages, self._counters)
            case m.CloseChannel() if record.relid in self._channels:
                self._channels[record.relid].ring = None
            case m.RelidReleased():
                self._channels.pop(record.relid, None)

    # ---- rings -----------------------------------------------------------------------------------

    def _packet(self, channel: _Channel, packet: Packet) -> None:
        header, payload = bytes(packet.header), bytes(packet.payload)
        offset, length = (_DESCRIPTOR.size + len(header)) // 8, 0
        length = offset + len(payload) // 8
        descriptor = _DESCRIPTOR.pack(packet.type, offset, length, packet.flags, packet.transaction)
        self._take("ring.packet", descriptor + header + payload + bytes(8))
        if packet.type == GPA_DIRECT:
            self._take("ring.gpa-direct", header)
            self._take("memory.ram", header)
        if channel.interface == storvsp.OFFER.interface:
            self._storage(packet, payload)
        elif channel.interface == device.OFFER.interface:
            self._network(channel, packet, payload)
        elif (service := _SERVICES.get(channel.interface)) is not None:
            (kind,) = _IC_TYPE.unpack_from(payload)
            self._take("integration.negotiation" if kind == _NEGOTIATION else service, payload)
        elif hvsock.service_port(channel.interface) is not None:
            self._take("hvsock.data", payload)
            self._stream(channel, payload)

    def _storage(self, packet: Packet, payload: bytes) -> None:
        request = payload[: vstor.PACKET_BYTES]
        flow = storvsp._FLOWS[vstor.operation(request)]
        self._take(flow, request)
        if flow != "storvsp.execute-srb":
            return
        srb, data = vstor.srb(request), b""
        if srb.direction is vstor.Direction.OUT:
            (buffer,) = gpa.buffers(self._memory, packet.header, self._counters)
            data = buffer.read(0, srb.data_length)
        command = scsi.COMMANDS.get(srb.cdb[0])
        if srb.cdb[0] == scsi.REPORT_LUNS:
            self._take("scsi.report-luns", request)
        elif command is None:
            self._take("scsi.unknown", request)
        else:
            self._take(command.flow, request + data[:_DATA_OUT_MAX])

    def _network(self, channel: _Channel, packet: Packet, payload: bytes) -> None:
        if packet.type == COMPLETION:
            self._take("nvsp.taken", payload)
            return
        flow, record = nvsp.decode(payload)
        self._take(flow, payload[: nvsp.MESSAGE_BYTES])
        if isinstance(record, nvsp.SendBuffer):
            channel.send_buffer = record.gpadl
        elif isinstance(record, nvsp.RndisPacket):
            for number, message in rndis.split(self._rndis(channel, packet, record)):
                flow = rndis._NUMBERS[number]
                if flow == "rndis.query" and _OBJECT.unpack_from(message)[0] not in _OBJECTS:
                    continue  # what Linux asks although it may not be there
                self._take(flow, bytes(message))
                if flow == "rndis.packet":
                    frame = bytes(rndis.frame(message, rndis.MAX_MESSAGE))
                    self._take("network.from-worker", frame)
                    if frame[12:14] in _IPV4:
                        self._take("network.to-uplink", frame)

    def _rndis(self, channel: _Channel, packet: Packet, record: nvsp.RndisPacket) -> bytes:
        pieces = []
        if record.section != nvsp.NO_SECTION and channel.send_buffer is not None:
            buffer = PageRange(self._memory, self._gpadls[channel.send_buffer].pages)
            at = record.section * device.SEND_SECTION
            pieces.append(buffer.read(at, record.section_bytes))
        if packet.type == GPA_DIRECT:
            ranges = gpa.buffers(self._memory, packet.header, self._counters)
            pieces += [each.read(0, each.length) for each in ranges]
        return b"".join(pieces)

    def _stream(self, channel: _Channel, payload: bytes) -> None:
        """The frames of the agent's that a packet of its stream completes."""
        _, size = struct.unpack_from("<II", payload)
        data = channel.stream + payload[8 : 8 + size]
        while len(data) >= frames.HEADER.size:
            kind, _, length = frames.HEADER.unpack_from(data)
            end = frames.HEADER.size + length
            if len(data) < end:
                break
            self._take(frames._PARSERS[kind][0].id, data[:end])
            data = data[end:]
        channel.stream = data


def _cut(packet: bytes) -> bytes:
    """A packet of the link without what fills it up."""
    return packet[: 16 + int.from_bytes(packet[4:8], "little")]

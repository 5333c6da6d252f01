"""The network adapter: NVSP packets in, frames out, and back.

Guest to host: an RNDIS message stands in a section of the send buffer, in page ranges, or partly
in each; it is copied once, judged, and its frames go to the port. Host to guest: frames are written
into sections of the receive buffer, which are lent until the guest's completion gives them back.

Both directions hold each other to their pace: while the port takes nothing, no packet of the guest
is handled, and its ring fills; while the guest has no section or no room in its ring, the port is
not read, and the switch drops. Whatever a message says, it is completed.

A machine may be saved at any step of its driver. The one that goes on from it has an adapter of its
own, with another address and another cable, which is offered when the driver has let go of the old
one. Until then the old one serves the driver from the saved state, so that no request stays without
an answer; its cable is cut. Our agent makes the driver let go: a channel that is taken away while
Linux waits for an answer on it stays for ever (`vmbus_onoffer_rescind` stops listening at once). An
adapter whose driver knows only of the offer is no old one yet: it becomes the new one.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.worker.devices.network import nvsp, rndis
from teuthis.worker.devices.network.port import Port
from teuthis.worker.devices.network.rndis import RndisError
from teuthis.worker.devices.network.saved import State
from teuthis.worker.memory import GuestMemory, PageRange
from teuthis.worker.vmbus import gpa
from teuthis.worker.vmbus.channel import Channel, Saveable
from teuthis.worker.vmbus.messages import Offer
from teuthis.worker.vmbus.ring import (
    COMPLETION,
    GPA_DIRECT,
    OVERHEAD,
    WANTS_COMPLETION,
    Outgoing,
    Packet,
    RingError,
    transfer_pages,
)
from teuthis.worker.vmbus.saved import PacketState
from teuthis.worker.vmbus.server import Server

OFFER: Final = Offer(
    UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e").bytes_le,
    UUID("7e070000-0000-4e65-8000-000000000001").bytes_le,
    0,
)
SEND_SECTION: Final = 6144
"""Bytes of a section of the send buffer: what the guest copies there instead of naming pages."""
_SECTIONS_MAX = FLOWS["nvsp.receive-buffer"].values["sections_max"]
_CONTROLS_MAX = FLOWS["rndis.answer"].values["unsent_max"]
_TURN = 64
"""Packets handled, or frames delivered, before others get their turn."""
_FRAMES_AT_ONCE = 16
"""Frames that one packet to the guest announces."""
_COMPLETION_BYTES = nvsp.MESSAGE_BYTES + OVERHEAD
LET_GO_SECONDS: Final = 20.0
"""How long a driver may take to let go of the adapter of a machine that was saved."""
SETTLE_SECONDS: Final = 2.0
"""The same where nobody tells it to: time to end what it has begun, mostly."""
_DELIVERY_ROOM = nvsp.MESSAGE_BYTES + 8 + 8 * _FRAMES_AT_ONCE
"""Room in the ring that one delivery may take, as payload."""


class _Buffer(msgspec.Struct, frozen=True):
    """Memory that the guest shares with its adapter, and the handle that it named it by."""

    handle: int
    pages: PageRange


class Network(Saveable):
    """The device behind the adapter's channel."""

    def __init__(
        self,
        server: Server,
        memory: GuestMemory,
        counters: Counters,
        port: Port,
        mac: bytes,
        mtu: int,
        note: Callable[[str], None],
        clock: Callable[[], float],
        let_go_seconds: float = LET_GO_SECONDS,
    ) -> None:
        """Takes what it serves, and its place on the network.

        `mac`: 6 bytes; `mtu`: largest payload of a frame; `note` tells the user a line; `clock`:
        seconds, monotonic; `let_go_seconds`: how long a driver may keep an old adapter.
        """
        self._server = server
        self._memory = memory
        self._counters = counters
        self._port = port
        self._note = note
        self._clock = clock
        self._adapter = rndis.Adapter(mac, mtu, counters)
        self._max_frame = mtu + rndis.ETHERNET_HEADER
        self._channel: Channel | None = None
        self._old: Network | None = None
        """The adapter of the machine that was saved, while the guest still has it."""
        self._patience: float | None = None
        """Until when its driver may keep it."""
        self._let_go_seconds = let_go_seconds
        self.on_closed: Callable[[Channel], None] = lambda channel: None
        """Called when the guest has let go of the adapter."""
        self._reset()
        port.on_ready = self._on_port

    def _reset(self) -> None:
        self._adapter.reset()
        self._version: int | None = None
        self._receive_buffer: _Buffer | None = None
        self._send_buffer: _Buffer | None = None
        self._section_bytes = 0
        self._free: list[int] = []
        """Sections of the receive buffer that the guest does not have."""
        self._lent: dict[int, list[int]] = {}
        """Sections that the guest has, by the transaction that it completes."""
        self._next_transaction = 1
        self._packets: deque[Packet] = deque()
        self._frames: deque[memoryview] = deque()
        """Frames of the packet handled last, which the port has not taken yet."""
        self._controls: deque[bytes] = deque()
        """Control messages that wait for a section or for room in the ring."""
        self._waiting = False
        """Whether the guest is to signal when it has made room in its ring."""

    # ---- what the server calls -------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """The guest has opened the channel: everything is negotiated anew."""
        self._old = self._patience = None
        self._channel = channel
        self._reset()

    def ready(self, channel: Channel) -> bool:
        """Handles what the guest sent, and goes on with what waited for it."""
        more = self._handle_packets(channel)
        if channel.writer is not None:
            self._deliver(channel)
        self._watch()
        return more

    def closed(self, channel: Channel) -> None:
        """The guest let go of the adapter; it may open it again."""
        self._channel = None
        self._reset()
        self._watch()
        self.on_closed(channel)

    # ---- saved machines --------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """That of the adapter that the guest has now."""
        if self._old is not None:
            return self._old.save()
        state = State(
            mac=self._adapter.mac,
            version=self._version,
            initialized=self._adapter.initialized,
            receive_buffer=None if self._receive_buffer is None else self._receive_buffer.handle,
            send_buffer=None if self._send_buffer is None else self._send_buffer.handle,
            lent=self._lent,
            next_transaction=self._next_transaction,
            packets=[PacketState.of(packet) for packet in self._packets],
            controls=list(self._controls),
        )
        plain: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,))
        return plain

    def restore(self, state: dict[str, Any], channel: Channel | None) -> None:
        """Has the guest let go of the adapter that it has, and then puts this one in.

        Raises:
            ValueError: no adapter can have that state.
        """
        saved = msgspec.convert(state, State)
        if channel is None:
            self._server.offer(OFFER, self)
        elif not channel.fresh:
            old = Network(
                self._server,
                self._memory,
                self._counters,
                self._port.cut(),
                saved.mac,
                self._adapter.mtu,
                self._note,
                self._clock,
            )
            old._go_on(saved, channel)
            old.on_closed = self._take_away
            channel.device = self._old = old
            if not channel.open or channel.rescinded:
                self._take_away(channel)

    def resumed(self) -> None:
        """The guest goes on, or begins to: its driver has time from now on."""
        if self._old is not None:
            self._patience = self._clock() + self._let_go_seconds

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return self._patience

    def expire(self) -> None:
        """Takes the old adapter away from a driver that keeps it."""
        if self._patience is not None and self._patience <= self._clock():
            self._patience = None
            if self._old is not None and self._old._channel is not None:
                self._take_away(self._old._channel)

    def _take_away(self, channel: Channel) -> None:
        self._server.withdraw(channel, self._plug_in)

    def _go_on(self, saved: State, channel: Channel) -> None:
        """Serves the driver of a saved machine. Raises `ValueError`."""
        self._adapter.connected = False
        if channel.reader is None:
            return
        self._channel = channel
        self._version = saved.version
        self._adapter.initialized = saved.initialized
        self._receive_buffer = self._shared(channel, saved.receive_buffer)
        self._send_buffer = self._shared(channel, saved.send_buffer)
        if self._divide_receive_buffer():
            self._lent = dict(saved.lent)
            lent = {section for sections in saved.lent.values() for section in sections}
            if not lent <= set(self._free):
                raise ValueError("sections that the receive buffer does not have")
            self._free = [section for section in self._free if section not in lent]
        self._next_transaction = saved.next_transaction
        self._packets.extend(each.packet() for each in saved.packets)
        self._controls.extend(saved.controls)

    def _shared(self, channel: Channel, handle: int | None) -> _Buffer | None:
        """What a guest shares under a handle; None: nothing."""
        pages = None if handle is None else self._server.shared_memory(channel, handle)
        return None if handle is None or pages is None else _Buffer(handle, pages)

    def _plug_in(self) -> None:
        self._old = self._patience = None
        self._server.offer(OFFER, self)

    # ---- the port --------------------------------------------------------------------------------

    def _on_port(self) -> None:
        channel = self._channel
        if channel is None or channel.writer is None:
            return
        try:
            more = self._handle_packets(channel) if self._frames else False
            self._deliver(channel)
        except RingError:
            self._server.rescind(channel)
            return
        self._watch()
        if more:
            self._port.soon()

    def _watch(self) -> None:
        self._port.want(
            read=self._adapter.receiving and bool(self._free) and not self._waiting,
            write=bool(self._frames),
        )

    def _send_frames(self) -> bool:
        """Hands frames to the port; False: it takes no more now."""
        while self._frames:
            if not self._port.send(self._frames[0]):
                return False
            self._frames.popleft()
        return True

    # ---- guest to host ---------------------------------------------------------------------------

    def _handle_packets(self, channel: Channel) -> bool:
        """Handles a turn's worth of packets; True: there may be more. Raises `RingError`."""
        assert channel.writer is not None
        if not self._has_room(channel):
            return False
        answers: list[Outgoing] = []
        room = channel.writer.room() + OVERHEAD
        more = True
        for _ in range(_TURN):
            if not self._send_frames():
                more = False  # the port says when it goes on
                break
            if not self._packets:
                self._packets.extend(self._server.take(channel))
                if not self._packets:
                    more = False
                    break
            if room < _COMPLETION_BYTES * (len(answers) + 1):
                break
            answer = self._handle(channel, self._packets.popleft())
            if answer is not None:
                answers.append(answer)
        if answers and channel.writer.write(answers):
            self._server.interrupt(channel)
        return more and self._has_room(channel)

    def _has_room(self, channel: Channel) -> bool:
        """Whether the guest's ring has room; if not, the guest signals when it has made some."""
        assert channel.writer is not None
        if channel.writer.room() < _DELIVERY_ROOM:
            self._waiting = not channel.writer.wait_for(_DELIVERY_ROOM)
        elif self._waiting:
            self._waiting = False
            channel.writer.stop_waiting()
        return not self._waiting

    def _handle(self, channel: Channel, packet: Packet) -> Outgoing | None:
        """One packet; its completion, if the guest wants one."""
        if packet.type == COMPLETION:
            self._taken(packet)
            return None
        try:
            flow, record = nvsp.decode(packet.payload)
        except nvsp.UnknownMessage:
            self._counters.reject("nvsp.unknown", "message")
            answer = None
        else:
            if isinstance(record, nvsp.RndisPacket):
                answer = self._rndis(packet, record)
            else:
                refused, answer = self._set_up(channel, record)
                if refused is None:
                    self._counters.accept(flow, len(packet.payload))
                else:
                    self._counters.reject(flow, refused)
        if not packet.flags & WANTS_COMPLETION:
            return None
        # Nothing may stay without an answer: the guest would wait for ever.
        message = answer or nvsp.rndis_complete(nvsp.FAILURE)
        self._counters.accept(nvsp.answer_flow(message), len(message))
        return Outgoing(message, COMPLETION, packet.transaction)

    def _taken(self, packet: Packet) -> None:
        """The guest gives sections back."""
        sections = self._lent.pop(packet.transaction, None)
        if sections is None or not nvsp.is_taken(packet.payload):
            self._counters.reject("nvsp.taken", "transaction")
        else:
            self._counters.accept("nvsp.taken", len(packet.payload))
        self._free.extend(sections or ())

    def _set_up(self, channel: Channel, record: nvsp.Record) -> tuple[str | None, bytes | None]:
        """Everything but RNDIS: the kind of bad input, if it is one, and the answer to it."""
        if isinstance(record, nvsp.Init):
            agreed = [each for each in nvsp.VERSIONS if record.oldest <= each <= record.newest]
            self._version = max(agreed, default=None)
            status = nvsp.SUCCESS if agreed else nvsp.FAILURE
            answer = nvsp.init_complete(self._version or 0, status)
            return None if agreed else "version", answer
        if self._version is None:
            return "early", None
        match record:
            case nvsp.NdisVersion() | nvsp.NdisConfig():
                return None, None
            case nvsp.ReceiveBuffer(handle, nvsp.RECEIVE_BUFFER) if not self._receive_buffer:
                self._receive_buffer = self._shared(channel, handle)
                sections = self._divide_receive_buffer()
                answer = nvsp.receive_buffer_complete(self._section_bytes, sections)
                return None if sections else "buffer", answer
            case nvsp.SendBuffer(handle, nvsp.SEND_BUFFER) if not self._send_buffer:
                self._send_buffer = self._shared(channel, handle)
                if self._send_buffer is not None:
                    return None, nvsp.send_buffer_complete(SEND_SECTION)
                return "buffer", nvsp.send_buffer_complete(0)
            case nvsp.ReceiveBuffer():
                return "buffer", nvsp.receive_buffer_complete(0, 0)
            case nvsp.SendBuffer():
                return "buffer", nvsp.send_buffer_complete(0)
            case nvsp.RevokeReceiveBuffer(nvsp.RECEIVE_BUFFER):
                self._receive_buffer = None
                self._free, self._lent = [], {}
                return None, None
            case nvsp.RevokeSendBuffer(nvsp.SEND_BUFFER):
                self._send_buffer = None
                return None, None
        return "buffer", None

    def _divide_receive_buffer(self) -> int:
        """Divides the receive buffer, if there is one, into so many sections."""
        largest = rndis.PACKET_OVERHEAD + max(self._max_frame, rndis.MAX_CONTROL)
        self._section_bytes = -(-largest // 64) * 64
        length = self._receive_buffer.pages.length if self._receive_buffer else 0
        sections = min(length // self._section_bytes, _SECTIONS_MAX)
        self._free = list(range(sections - 1, -1, -1))
        if not sections:
            self._receive_buffer = None
        return sections

    def _rndis(self, packet: Packet, record: nvsp.RndisPacket) -> bytes:
        """The RNDIS messages that a packet carries; the completion."""
        try:
            data = self._data(packet, record)
            for number, message in rndis.split(data):
                if record.channel == nvsp.CONTROL:
                    self._control(number, message)
                else:
                    self._transmit(number, message)
        except RndisError as error:
            self._counters.reject(error.flow, error.kind)
            return nvsp.rndis_complete(nvsp.FAILURE)
        self._counters.accept("nvsp.rndis-packet", len(data))
        return nvsp.rndis_complete(nvsp.SUCCESS)

    def _data(self, packet: Packet, record: nvsp.RndisPacket) -> bytes:
        """A copy of what the packet carries. Raises `RndisError`."""
        refused = "nvsp.rndis-packet"
        if self._version is None or record.channel not in (nvsp.DATA, nvsp.CONTROL):
            raise RndisError(refused, "channel", "before its time, or of an unknown kind")
        pieces = []
        size = 0
        if record.section != nvsp.NO_SECTION:
            buffer, size = self._send_buffer, record.section_bytes
            sections = buffer.pages.length // SEND_SECTION if buffer is not None else 0
            if buffer is None or record.section >= sections or size > SEND_SECTION:
                raise RndisError(refused, "section", "outside the send buffer")
            pieces.append(buffer.pages.read(record.section * SEND_SECTION, size))
        if packet.type == GPA_DIRECT:
            try:
                ranges = gpa.buffers(self._memory, packet.header, self._counters)
            except gpa.GpaError as error:
                raise RndisError(refused, "pages", "page ranges that lie") from error
            size += sum(each.length for each in ranges)
            if size > rndis.MAX_MESSAGE:
                raise RndisError(refused, "size", "larger than any message")
            pieces += [each.read(0, each.length) for each in ranges]
        return b"".join(pieces)

    def _transmit(self, number: int, message: memoryview) -> None:
        if number != FLOWS["rndis.packet"].number or not self._adapter.initialized:
            raise RndisError("rndis.packet", "early", "no frame, or before its time")
        self._frames.append(rndis.frame(message, self._max_frame))
        self._counters.accept("rndis.packet", len(message))

    def _control(self, number: int, message: memoryview) -> None:
        if len(self._controls) >= _CONTROLS_MAX:
            self._counters.reject("rndis.answer", "unread")
            raise RingError("a guest that asks and does not take its answers")
        answer = self._adapter.control(number, message)
        if answer is not None:
            self._controls.append(answer)

    # ---- host to guest ---------------------------------------------------------------------------

    def _deliver(self, channel: Channel) -> None:
        """Writes what waits for the guest, a turn's worth of frames at most. Raises `RingError`."""
        assert channel.writer is not None
        delivered = 0
        while self._receive_buffer is not None and self._free and delivered < _TURN:
            if not self._has_room(channel):
                return
            if self._controls:
                self._write(channel, nvsp.CONTROL, [self._place(self._controls.popleft())])
                continue
            ranges = self._take_frames() if self._adapter.receiving else []
            if ranges:
                self._write(channel, nvsp.DATA, ranges)
                delivered += len(ranges)
            elif not self._link_went_down():
                return

    def _link_went_down(self) -> bool:
        """Whether that is to be told now, and has not been."""
        if not self._port.closed or not self._adapter.connected:
            return False
        self._adapter.connected = False
        self._note("the network has gone: the process that switched this VM's frames has ended")
        if self._adapter.initialized:
            self._controls.append(self._adapter.status_change())
        return True

    def _take_frames(self) -> list[tuple[int, int]]:
        """Puts frames of the port into free sections: (offset, bytes) of each."""
        ranges: list[tuple[int, int]] = []
        while self._free and len(ranges) < _FRAMES_AT_ONCE:
            frame = self._port.receive()
            if frame is None:
                break
            if not rndis.ETHERNET_HEADER <= len(frame) <= self._max_frame:
                self._counters.reject("network.to-worker", "size")
                continue
            self._counters.accept("network.to-worker", len(frame))
            self._counters.accept("rndis.deliver", len(frame))
            ranges.append(self._place(rndis.envelope(len(frame)) + frame))
        return ranges

    def _place(self, message: bytes) -> tuple[int, int]:
        """Writes a message into a free section."""
        assert self._receive_buffer is not None
        offset = self._free.pop() * self._section_bytes
        self._receive_buffer.pages.write(offset, message)
        return offset, len(message)

    def _write(self, channel: Channel, kind: int, ranges: list[tuple[int, int]]) -> None:
        """Announces messages in the receive buffer."""
        assert channel.writer is not None
        transaction, self._next_transaction = self._next_transaction, self._next_transaction + 1
        self._lent[transaction] = [offset // self._section_bytes for offset, _ in ranges]
        message = nvsp.rndis_packet(kind)
        if kind == nvsp.CONTROL:
            self._counters.accept("rndis.answer", ranges[0][1])
        self._counters.accept("nvsp.deliver", len(message))
        packet = transfer_pages(message, nvsp.RECEIVE_BUFFER, ranges, transaction)
        if channel.writer.write([packet]):
            self._server.interrupt(channel)

"""storvsp: the host's end of the storage channel, with all disks of a VM behind it.

The guest first agrees on a version and the channel's properties, then sends SRBs: SCSI commands
with, where they move data, a page list of guest memory. Each packet is answered by a completion
with its transaction id. Requests are served in their order, each to its end; a few, then others get
their turn. What the guest does not collect stops its own requests only.
"""

import enum
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.worker.devices.storage import inquiry, scsi, vstor
from teuthis.worker.devices.storage.backend import Backend
from teuthis.worker.devices.storage.scsi import CheckCondition, Data, Disk, Mismatch
from teuthis.worker.devices.storage.vstor import Direction, Srb, SrbError, SrbStatus
from teuthis.worker.memory import GuestMemory
from teuthis.worker.vmbus.channel import Channel, Saveable
from teuthis.worker.vmbus.gpa import GpaError, buffers
from teuthis.worker.vmbus.messages import Offer
from teuthis.worker.vmbus.ring import (
    COMPLETION,
    GPA_DIRECT,
    IN_BAND,
    WANTS_COMPLETION,
    Outgoing,
    Packet,
    RingError,
)
from teuthis.worker.vmbus.saved import Number, PacketState
from teuthis.worker.vmbus.server import Server

OFFER: Final = Offer(
    uuid.UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f").bytes_le,
    uuid.UUID("7e075151-0d15-4000-8000-000000000000").bytes_le,
    0,
)
MAX_DISKS: Final = FLOWS["storvsp.execute-srb"].values["luns_max"]

_TURN_BYTES: Final = 1 << 20
_TURN_REQUESTS: Final = 16
"""What is served before others get their turn."""

_VERSIONS: Final = frozenset(
    value
    for name, value in FLOWS["storvsp.query-protocol-version"].values.items()
    if name.startswith("version")
)


class _State(enum.IntEnum):
    NEW = 0
    BEGUN = 1
    AGREED = 2
    """On a version."""
    READY = 3


_TAKEN_IN: Final = {
    "storvsp.begin-init": tuple(_State),
    "storvsp.query-protocol-version": (_State.BEGUN, _State.AGREED),
    "storvsp.query-properties": (_State.AGREED,),
    "storvsp.end-init": (_State.AGREED,),
    "storvsp.execute-srb": (_State.READY,),
    "storvsp.reset-lun": (_State.READY,),
    "storvsp.reset-adapter": (_State.READY,),
    "storvsp.reset-bus": (_State.READY,),
}
"""When each operation is in order."""
_FLOWS: Final = {FLOWS[name].number: name for name in _TAKEN_IN}

Note = Callable[[str], None]

_Body = Annotated[bytes, msgspec.Meta(min_length=vstor.PACKET_BYTES)]


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The controller in a saved machine."""

    state: _State
    waiting: list[PacketState]
    unsent: tuple[_Body, Number] | None


class Storvsp(Saveable):
    """The SCSI controller of one VM."""

    def __init__(
        self,
        server: Server,
        memory: GuestMemory,
        counters: Counters,
        disks: Sequence[Backend],
        note: Note,
    ) -> None:
        """`disks`: by LUN; `note` takes a line about what went wrong on the host."""
        self._server = server
        self._memory = memory
        self._counters = counters
        self._note = note
        self._disks = [
            Disk(lun, backend, counters, self._failed) for lun, backend in enumerate(disks)
        ]
        self._told: set[tuple[int, int | None]] = set()
        self._state = _State.NEW
        self._waiting: deque[Packet] = deque()
        """Packets out of the ring, not yet served."""
        self._unsent: Outgoing | None = None
        """A completion that the ring had no room for."""

    # ---- what the server does --------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """The guest's driver begins, or begins anew."""
        self._state = _State.NEW
        self._waiting.clear()
        self._unsent = None

    def closed(self, channel: Channel) -> None:
        """The driver is gone; what it still waited for nobody would take."""
        self._waiting.clear()
        self._unsent = None

    def ready(self, channel: Channel) -> bool:
        """Serves a turn of requests. Raises `RingError`."""
        if self._unsent is not None and not self._send(channel, self._unsent):
            return False
        moved = 0
        for _ in range(_TURN_REQUESTS):
            if not self._waiting and not self._receive(channel):
                return False
            packet = self._waiting.popleft()
            answer, size = self._serve(packet)
            if not self._send(channel, Outgoing(answer, COMPLETION, packet.transaction)):
                return False
            moved += size
            if moved >= _TURN_BYTES:
                break
        return True

    # ---- saved machines --------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """No request is half served: what has begun is done, the rest is part of the state."""
        for disk in self._disks:
            disk.save()
        waiting = [PacketState.of(packet) for packet in self._waiting]
        unsent = None
        if self._unsent is not None:
            unsent = self._unsent.payload, self._unsent.transaction
        saved = _Saved(self._state, waiting, unsent)
        state: dict[str, Any] = msgspec.to_builtins(saved, builtin_types=(bytes,))
        return state

    def restore(self, state: dict[str, Any], channel: Channel | None) -> None:
        """Goes on from there. Raises `ValueError`, `msgspec.ValidationError`."""
        saved = msgspec.convert(state, _Saved)
        waiting = [each.packet() for each in saved.waiting]
        if not all(map(_is_request, waiting)):
            raise ValueError("a request that is none")
        self._state = saved.state
        self._waiting.extend(waiting)
        if saved.unsent is not None:
            payload, transaction = saved.unsent
            self._unsent = Outgoing(payload[: vstor.PACKET_BYTES], COMPLETION, transaction)

    # ---- packets ---------------------------------------------------------------------------------

    def _receive(self, channel: Channel) -> bool:
        """Takes what is in the ring; False: nothing."""
        packets = self._server.take(channel)
        if not all(map(_is_request, packets)):
            self._counters.reject("storvsp.unknown", "packet")
            raise RingError("a packet that is no request")
        self._waiting.extend(packets)
        return bool(packets)

    def _send(self, channel: Channel, completion: Outgoing) -> bool:
        """Writes a completion, or keeps it until the guest has made room."""
        writer = channel.writer
        if writer is None:
            return False
        if writer.room() < len(completion.payload) and not writer.wait_for(len(completion.payload)):
            self._unsent = completion
            return False
        self._unsent = None
        self._counters.accept("storvsp.completion", len(completion.payload))
        if writer.write((completion,)):
            self._server.interrupt(channel)
        return True

    # ---- operations ------------------------------------------------------------------------------

    def _serve(self, packet: Packet) -> tuple[bytes, int]:
        """The answer to a packet, and the bytes of data it moved."""
        request = bytes(packet.payload[: vstor.PACKET_BYTES])
        flow = _FLOWS.get(vstor.operation(request))
        if flow is None:
            self._counters.reject("storvsp.unknown", "operation")
            return vstor.answer(vstor.NOT_SUPPORTED), 0
        if self._state not in _TAKEN_IN[flow]:
            self._counters.reject(flow, "order")
            return vstor.answer(vstor.INVALID_DEVICE_STATE), 0
        body = b""
        match flow:
            case "storvsp.execute-srb":
                return self._execute(request, packet)
            case "storvsp.begin-init":
                self._state = _State.BEGUN
            case "storvsp.query-protocol-version":
                if vstor.version(request) not in _VERSIONS:
                    self._counters.reject(flow, "version")
                    return vstor.answer(vstor.REVISION_MISMATCH), 0
                self._state = _State.AGREED
            case "storvsp.query-properties":
                body = vstor.properties(inquiry.MAX_TRANSFER)
            case "storvsp.end-init":
                self._state = _State.READY
            # A reset has nothing to do: every request before it has been served to its end.
        self._counters.accept(flow, len(request))
        return vstor.answer(vstor.SUCCESS, body), 0

    def _execute(self, request: bytes, packet: Packet) -> tuple[bytes, int]:
        try:
            srb = vstor.srb(request)
            data = self._data(srb, packet)
            moved = self._command(srb, data)
        except (SrbError, Mismatch) as refused:
            self._counters.reject("storvsp.execute-srb", refused.kind)
            return vstor.srb_answer(request, SrbStatus.INVALID_REQUEST), 0
        except CheckCondition as failed:
            if failed.sense is scsi.ABSENT:
                self._counters.reject("storvsp.execute-srb", "lun")
            else:
                self._counters.accept("storvsp.execute-srb", len(request))
            sense = failed.sense.encode()
            return vstor.srb_answer(request, SrbStatus.ERROR, sense=sense), 0
        self._counters.accept("storvsp.execute-srb", len(request))
        return vstor.srb_answer(request, SrbStatus.SUCCESS, moved), moved

    def _data(self, srb: Srb, packet: Packet) -> Data:
        if packet.type == IN_BAND:
            if srb.data_length:
                raise SrbError("request", "data without memory")
            return Data(srb.direction, 0, None)
        try:
            ranges = buffers(self._memory, packet.header, self._counters)
        except GpaError as error:
            raise SrbError("memory", str(error)) from error
        if len(ranges) != 1 or not srb.data_length <= ranges[0].length <= inquiry.MAX_TRANSFER:
            raise SrbError("memory", "memory that does not fit the data")
        return Data(srb.direction, srb.data_length, ranges[0])

    def _command(self, srb: Srb, data: Data) -> int:
        """Hands a command to its disk, or answers for a disk that is not there."""
        here = srb.path == 0 and srb.target == 0
        if srb.cdb[0] == scsi.REPORT_LUNS:
            return scsi.report_luns(srb.cdb, data, len(self._disks) if here else 0, self._counters)
        if here and srb.lun < len(self._disks):
            return self._disks[srb.lun].execute(srb.cdb, data)
        if srb.cdb[0] == scsi.INQUIRY and data.direction is not Direction.OUT:
            # Linux takes any other answer for a disk.
            return data.put(inquiry.inquiry(present=False), data.length)
        raise CheckCondition("lun", scsi.ABSENT)

    def _failed(self, lun: int, error: OSError) -> None:
        """Says once for each disk and kind of error what the guest is told as a disk error."""
        if (lun, error.errno) not in self._told:
            self._told.add((lun, error.errno))
            self._note(f"disk {lun}: {error.strerror}")


def _is_request(packet: Packet) -> bool:
    return (
        packet.type in (IN_BAND, GPA_DIRECT)
        and len(packet.payload) >= vstor.PACKET_BYTES
        and bool(packet.flags & WANTS_COMPLETION)
    )

"""Ring buffers shared with the guest: every index and length is copied once and judged as a copy.

A half of a ring is one control page and data pages. Control page: u32 write index at 0, read index
at 4, interrupt mask at 8, pending send size at 12, feature bits at 64. Our own index of each half
lives here; what the guest makes of the copy in the control page does not matter to us.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.worker.barrier import full_barrier
from teuthis.worker.memory import GuestMemory, PageRange

_DESCRIPTOR = struct.Struct("<HHHHQ")
_TRAILER = struct.Struct("<Q")
OVERHEAD: Final = _DESCRIPTOR.size + _TRAILER.size
"""Bytes of a packet besides its payload."""

IN_BAND: Final = FLOWS["ring.packet"].values["in_band"]
GPA_DIRECT: Final = FLOWS["ring.packet"].values["gpa_direct"]
COMPLETION: Final = FLOWS["ring.packet"].values["completion"]
TRANSFER_PAGES: Final = FLOWS["ring.send"].values["transfer_pages"]
WANTS_COMPLETION: Final = 1
"""Flag of a packet whose sender waits for a `COMPLETION` with the same transaction id."""
_TYPES = frozenset(FLOWS["ring.packet"].values.values())
_MAX_PACKET = FLOWS["ring.packet"].max_bytes
READ_MAX: Final = 256 * 1024
"""Bytes taken at once. A ring may hold more than a million packets of the smallest size; whoever
takes them all at once serves nobody else for many seconds."""

# Words of the control page.
_WRITE, _READ, _MASK, _PENDING, _FEATURES = 0, 1, 2, 3, 16
_FEATURE_PENDING_SIZE = 1


class RingError(ValueError):
    """The guest broke the rules of its own ring; its channel ends."""


class Packet(msgspec.Struct, frozen=True):
    """One packet, copied out of the ring."""

    type: int
    flags: int
    transaction: int
    header: memoryview
    """What stands between descriptor and payload: page lists of `GPA_DIRECT`, else nothing."""
    payload: memoryview


class Outgoing(msgspec.Struct, frozen=True):
    """One packet to be written."""

    payload: bytes
    type: int = IN_BAND
    transaction: int = 0
    flags: int = 0
    header: bytes = b""
    """What stands between descriptor and payload, in multiples of 8 bytes."""


def transfer_pages(
    payload: bytes, buffer: int, ranges: Sequence[tuple[int, int]], transaction: int
) -> Outgoing:
    """A packet about `ranges`, (offset, bytes) each, of a buffer that the guest has shared.

    The guest answers with a completion once it has taken them.
    """
    flat = [word for offset, length in ranges for word in (length, offset)]
    header = struct.pack(f"<HBxI{len(flat)}I", buffer, 0, len(ranges), *flat)
    return Outgoing(payload, TRANSFER_PAGES, transaction, WANTS_COMPLETION, header)


class _Half:
    """What reader and writer have in common."""

    def __init__(self, memory: GuestMemory, pages: Sequence[int], counters: Counters) -> None:
        """`pages`: the control page, then the data pages. Raises `ValueError` outside RAM."""
        if len(pages) < 2:
            raise ValueError("a ring half without data pages")
        self._data = PageRange(memory, pages[1:])
        self._size = self._data.length
        self._memory = memory
        self._words = memory.words
        self._control = PageRange(memory, pages[:1]).offset(0) // 4
        self._counters = counters

    def _index(self, word: int) -> int:
        """A copy of one of the guest's indices, inside the ring or `RingError`."""
        index = self._words[self._control + word]
        if index >= self._size or index % 8:
            self._counters.reject("ring.control", "index")
            raise RingError("an index outside the ring")
        return index

    def _store(self, word: int, value: int) -> None:
        """Writes one word of the control page."""
        self._words[self._control + word] = value
        self._memory.wrote(4 * (self._control + word), 4)


class RingReader(_Half):
    """Guest to host."""

    def __init__(self, memory: GuestMemory, pages: Sequence[int], counters: Counters) -> None:
        """As `_Half`; reading starts where the guest left its read index."""
        super().__init__(memory, pages, counters)
        self._read = self._index(_READ)
        self.signal = False
        """Whether the guest waits for space that the last `read` has made."""

    def read(self) -> list[Packet]:
        """Packets that are there now, their space given back; none: there are no more.

        Raises `RingError`.
        """
        available = (self._index(_WRITE) - self._read) % self._size
        self.signal = False
        if not available:
            return []
        length = min(available, READ_MAX)
        tail = self._size - self._read
        if length <= tail:
            data = self._data.read(self._read, length)
        else:
            data = self._data.read(self._read, tail) + self._data.read(0, length - tail)
        packets, taken = self._parse(memoryview(data), more=length < available)
        self._read = (self._read + taken) % self._size
        words, control = self._words, self._control
        self._store(_READ, self._read)
        full_barrier()
        pending = words[control + _PENDING]
        if pending and words[control + _FEATURES] & _FEATURE_PENDING_SIZE:
            # The guest waits for space: signal when this read crossed its mark, once.
            free = self._size - (self._index(_WRITE) - self._read) % self._size
            self.signal = free - taken <= pending < free
        return packets

    def _parse(self, data: memoryview, *, more: bool) -> tuple[list[Packet], int]:
        """The packets in `data` and their bytes; `more` follows, so the last may be cut off."""
        packets = []
        at, end = 0, len(data)
        unpack = _DESCRIPTOR.unpack_from
        while at < end:
            if end - at < OVERHEAD:
                if more:
                    break
                raise self._bad("bounds", "a packet shorter than its descriptor")
            kind, offset, length, flags, transaction = unpack(data, at)
            offset *= 8
            length *= 8
            if kind not in _TYPES or length > _MAX_PACKET:
                raise self._bad("type", "a packet of unknown type or size")
            if not _DESCRIPTOR.size <= offset <= length:
                raise self._bad("bounds", "a packet that contradicts itself")
            if length > end - at - _TRAILER.size:
                if more:
                    break
                raise self._bad("bounds", "a packet that reaches past what was written")
            header = data[at + _DESCRIPTOR.size : at + offset]
            payload = data[at + offset : at + length]
            packets.append(Packet(kind, flags, transaction, header, payload))
            self._counters.accept("ring.packet", length)
            at += length + _TRAILER.size
        return packets, at

    def _bad(self, kind: str, why: str) -> RingError:
        self._counters.reject("ring.packet", kind)
        return RingError(why)


class RingWriter(_Half):
    """Host to guest."""

    def __init__(self, memory: GuestMemory, pages: Sequence[int], counters: Counters) -> None:
        """As `_Half`; writing starts where the guest left its write index."""
        super().__init__(memory, pages, counters)
        self._write = self._index(_WRITE)

    def room(self) -> int:
        """Bytes of payload that one packet could carry now. Raises `RingError`.

        A ring never becomes completely full: that would read as empty.
        """
        used = (self._write - self._index(_READ)) % self._size
        return max(self._size - used - 8 - OVERHEAD, 0) & ~7

    def write(self, packets: Iterable[Outgoing]) -> bool:
        """Writes packets whose sum the caller knows to fit; True: signal the guest.

        The guest is to be signalled when the ring was empty before and it does not mask.
        Raises `RingError`.
        """
        start = self._write
        position = start
        pieces: list[bytes] = []
        for packet in packets:
            payload, header = packet.payload, packet.header
            padding = -len(payload) % 8
            offset = _DESCRIPTOR.size + len(header)
            length = offset + len(payload) + padding
            pieces += (
                _DESCRIPTOR.pack(
                    packet.type, offset // 8, length // 8, packet.flags, packet.transaction
                ),
                header,
                payload,
                bytes(padding),
                _TRAILER.pack(position << 32),
            )
            self._counters.accept("ring.send", length)
            position = (position + length + _TRAILER.size) % self._size
        data = b"".join(pieces)
        tail = self._size - start
        if len(data) <= tail:
            self._data.write(start, data)
        else:
            self._data.write(start, data[:tail])
            self._data.write(0, data[tail:])
        self._write = position
        self._store(_WRITE, position)
        full_barrier()
        return not self._words[self._control + _MASK] and self._index(_READ) == start

    def wait_for(self, room: int) -> bool:
        """Asks the guest for a signal once `room` bytes of payload fit; True: they fit already.

        `room`: a multiple of 8, less than the ring can hold.
        """
        self._store(_PENDING, room + OVERHEAD)
        full_barrier()
        if self.room() < room:
            return False
        self._store(_PENDING, 0)
        return True

    def stop_waiting(self) -> None:
        """Takes the request of `wait_for` back."""
        self._store(_PENDING, 0)

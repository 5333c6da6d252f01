"""Live counters of one process: how often each flow ran, its bytes, what was rejected.

They live in a shared page, so that the root reads them without asking the process that counts.
Layout: for the flow at position i of the register, three unsigned 64-bit little-endian numbers at
byte 24 * i: count, bytes, rejected.
"""

import mmap
from dataclasses import dataclass

from teuthis.flows.register import FLOWS

_WORDS = 3


@dataclass(frozen=True, slots=True)
class Count:
    """Counters of one flow."""

    count: int
    bytes: int
    rejected: int

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.count + other.count, self.bytes + other.bytes, self.rejected + other.rejected
        )

    def __bool__(self) -> bool:
        """Whether anything happened."""
        return bool(self.count or self.rejected)


def counters_size() -> int:
    """Bytes of a counter page: the register's size, rounded up to whole pages."""
    return -(-len(FLOWS) * _WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE


class Counters:
    """The counters in a shared mapping (or, without one, in private memory, for tests)."""

    def __init__(self, descriptor: int | None = None, *, writable: bool = True) -> None:
        """Maps the counter page behind `descriptor`, of `counters_size()` bytes."""
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        size = counters_size()
        self._map = mmap.mmap(-1 if descriptor is None else descriptor, size, access=access)
        self._words = memoryview(self._map).cast("Q")
        self._index = {name: flow.index * _WORDS for name, flow in FLOWS.items()}

    def accept(self, flow: str, size: int = 0) -> None:
        """Counts one accepted item of `size` bytes."""
        at = self._index[flow]
        self._words[at] += 1
        self._words[at + 1] += size

    def reject(self, flow: str) -> None:
        """Counts one refused item."""
        self._words[self._index[flow] + 2] += 1

    def snapshot(self) -> dict[str, Count]:
        """Counters of all flows, by id."""
        words = self._words.tolist()
        return {name: Count(*words[at : at + _WORDS]) for name, at in self._index.items()}

    def close(self) -> None:
        """Unmaps the page."""
        self._words.release()
        self._map.close()

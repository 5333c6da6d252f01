"""Live counters of one process: how often each flow ran, its bytes, what was rejected and why.

They live in a shared page, so that the root reads them without asking the process that counts.
Layout: for the flow at position i of the register, three unsigned 64-bit little-endian numbers at
byte 24 * i: count, bytes, rejected; behind them one for each kind of bad input, in its order.
"""

import mmap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from teuthis.flows.register import FLOWS

_WORDS = 3
_KINDS = [(flow.id, kind) for flow in FLOWS.values() for kind in flow.rejects]
_INDEX = {name: flow.index * _WORDS for name, flow in FLOWS.items()}
_KIND_INDEX = {kind: at for at, kind in enumerate(_KINDS, start=len(FLOWS) * _WORDS)}


class Count(msgspec.Struct, frozen=True):
    """Counters of one flow."""

    count: int
    bytes: int
    rejected: int
    kinds: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Of what was rejected, how much for which reason, as the register names it."""

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.count + other.count,
            self.bytes + other.bytes,
            self.rejected + other.rejected,
            dict(Counter(self.kinds) + Counter(other.kinds)),
        )

    def __bool__(self) -> bool:
        """Whether anything happened."""
        return bool(self.count or self.rejected)


def counters_size() -> int:
    """Bytes of a counter page: the register's size, rounded up to whole pages."""
    return -(-8 * (len(FLOWS) * _WORDS + len(_KINDS)) // mmap.PAGESIZE) * mmap.PAGESIZE


class Counters:
    """The counters in a shared mapping (or, without one, in private memory, for tests)."""

    def __init__(self, descriptor: int | None = None, *, writable: bool = True) -> None:
        """Maps the counter page behind `descriptor`, of `counters_size()` bytes."""
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        size = counters_size()
        self._map = mmap.mmap(-1 if descriptor is None else descriptor, size, access=access)
        self._words = memoryview(self._map).cast("Q")

    def accept(self, flow: str, size: int = 0) -> None:
        """Counts one accepted item of `size` bytes."""
        at = _INDEX[flow]
        self._words[at] += 1
        self._words[at + 1] += size

    def reject(self, flow: str, kind: str) -> None:
        """Counts one refused item; `kind`: why, as the register names it."""
        self._words[_KIND_INDEX[flow, kind]] += 1
        self._words[_INDEX[flow] + 2] += 1

    def words(self) -> list[int]:
        """The numbers as they lie in the page."""
        return self._words.tolist()

    def snapshot(self) -> dict[str, Count]:
        """Counters of all flows, by id."""
        return by_flow(self.words())

    def close(self) -> None:
        """Unmaps the page."""
        self._words.release()
        self._map.close()


def total(pages: Iterable[Counters]) -> list[int]:
    """The sum of several pages, number by number."""
    return list(map(sum, zip(*(page.words() for page in pages), strict=True)))


def by_flow(words: Sequence[int]) -> dict[str, Count]:
    """What the numbers of a page mean, by the flows' ids. Takes as long as ending a VM may."""
    found = {}
    for name, flow in FLOWS.items():
        at = _INDEX[name]
        kinds = {kind: words[_KIND_INDEX[name, kind]] for kind in flow.rejects}
        happened = {kind: number for kind, number in kinds.items() if number}
        count, size, rejected = words[at : at + _WORDS]
        found[name] = Count(count, size, rejected, happened)
    return found

"""GPADLs: guest memory described page by page over several messages."""

import struct
from array import array
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from teuthis.flows import FLOWS
from teuthis.worker.memory import PAGE_SIZE, GuestMemory
from teuthis.worker.vmbus.messages import GpadlHeader

_LIMITS = FLOWS["vmbus.gpadl-header"].values
MAX_PER_CHANNEL: Final = _LIMITS["channel_gpadls_max"]
MAX_PAGES: Final = _LIMITS["pages_max"]
MAX_TOTAL_PAGES: Final = _LIMITS["total_pages_max"]

_RANGE_HEADER_BYTES = 8
_PAGE_NUMBER_BYTES = 8
_HEADER, _BODY = FLOWS["vmbus.gpadl-header"], FLOWS["vmbus.gpadl-body"]
_MAX_PAGES_IN_HEADER = (_HEADER.max_bytes - _HEADER.min_bytes) // _PAGE_NUMBER_BYTES
_MAX_PAGES_IN_BODY = (_BODY.max_bytes - _BODY.min_bytes) // _PAGE_NUMBER_BYTES + 1


class GpadlError(ValueError):
    """A description that is refused; `kind` as the register names it."""

    def __init__(self, why: str, kind: str = "description") -> None:
        super().__init__(why)
        self.kind = kind


class GpadlState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A description in a saved machine."""

    relid: int
    id: int
    byte_count: int
    byte_offset: int
    pages: list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 52)]]


class Gpadl:
    """One description being assembled, then complete."""

    def __init__(self, header: GpadlHeader, tail: bytes) -> None:
        """Starts from the header message. Raises `GpadlError`."""
        self.relid = header.relid
        self.id = header.gpadl
        self.byte_count = header.byte_count
        self.byte_offset = header.byte_offset
        if header.range_count != 1:
            raise GpadlError("not exactly one range")
        if header.byte_count == 0 or header.byte_offset >= PAGE_SIZE:
            raise GpadlError("an impossible range")
        self.expected = -(-(header.byte_offset + header.byte_count) // PAGE_SIZE)
        if header.range_bytes != _RANGE_HEADER_BYTES + self.expected * _PAGE_NUMBER_BYTES:
            raise GpadlError("a length that lies")
        if self.expected > MAX_PAGES:
            raise GpadlError("too many pages")
        self.pages = array("Q")
        self._append(tail, _MAX_PAGES_IN_HEADER)

    def save(self) -> GpadlState:
        """Its state in a saved machine."""
        return GpadlState(
            self.relid, self.id, self.byte_count, self.byte_offset, self.pages.tolist()
        )

    @classmethod
    def restored(cls, state: GpadlState) -> "Gpadl":
        """The description with that state. Raises `GpadlError`."""
        pages = -(-(state.byte_offset + state.byte_count) // PAGE_SIZE)
        size = _RANGE_HEADER_BYTES + pages * _PAGE_NUMBER_BYTES
        header = GpadlHeader(state.relid, state.id, size, 1, state.byte_count, state.byte_offset)
        gpadl = cls(header, b"")
        if len(state.pages) > gpadl.expected:
            raise GpadlError("more pages than announced")
        gpadl.pages.extend(state.pages)
        return gpadl

    @property
    def complete(self) -> bool:
        """Whether all page numbers have arrived."""
        return len(self.pages) == self.expected

    def append(self, tail: bytes) -> None:
        """Adds the page numbers of a body message. Raises `GpadlError`."""
        if not tail:
            raise GpadlError("a body without pages")
        self._append(tail, _MAX_PAGES_IN_BODY)

    def _append(self, tail: bytes, limit: int) -> None:
        count, rest = divmod(len(tail), _PAGE_NUMBER_BYTES)
        if rest or count > limit or len(self.pages) + count > self.expected:
            raise GpadlError("more pages than announced")
        self.pages.extend(struct.unpack(f"<{count}Q", tail))


class Gpadls:
    """All that one guest has described, within its limits."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._all: dict[int, Gpadl] = {}

    def get(self, handle: int) -> Gpadl | None:
        """The description with that handle, whether it is complete or not."""
        return self._all.get(handle)

    def find(self, handle: int, relid: int) -> Gpadl | None:
        """One that a channel can use: its own, complete, from the beginning of a page on."""
        gpadl = self._all.get(handle)
        usable = (
            gpadl is not None and gpadl.complete and gpadl.relid == relid and gpadl.byte_offset == 0
        )
        return gpadl if usable else None

    @property
    def pages(self) -> int:
        """How many pages have been announced."""
        return sum(gpadl.expected for gpadl in self._all.values())

    def begin(self, header: GpadlHeader, tail: bytes, *, known: bool) -> Gpadl:
        """Takes a new description; `known`: its channel is there. Raises `GpadlError`."""
        gpadl = Gpadl(header, tail)
        if not known or gpadl.id in self._all:
            raise GpadlError("no such channel, or a handle in use", "handle")
        mine = sum(other.relid == gpadl.relid for other in self._all.values())
        if mine >= MAX_PER_CHANNEL or self.pages + gpadl.expected > MAX_TOTAL_PAGES:
            raise GpadlError("too much memory", "limit")
        self._check(gpadl)
        self._all[gpadl.id] = gpadl
        return gpadl

    def go_on(self, gpadl: Gpadl, tail: bytes) -> None:
        """Takes more of a description, which is dropped when that raises `GpadlError`."""
        try:
            gpadl.append(tail)
            self._check(gpadl)
        except GpadlError:
            self.drop(gpadl)
            raise

    def _check(self, gpadl: Gpadl) -> None:
        if gpadl.complete and not self._is_ram(gpadl.pages):
            raise GpadlError("a page outside of memory", "page")

    def _is_ram(self, pages: Iterable[int]) -> bool:
        return all(page != 0 and self._memory.page_offset(page) is not None for page in pages)

    def drop(self, gpadl: Gpadl) -> None:
        """Forgets a description."""
        del self._all[gpadl.id]

    def drop_all(self, relid: int) -> None:
        """Forgets those of a channel."""
        for gpadl in [each for each in self._all.values() if each.relid == relid]:
            self.drop(gpadl)

    def clear(self) -> None:
        """Forgets all."""
        self._all.clear()

    def save(self) -> list[GpadlState]:
        """Their states in a saved machine."""
        return [gpadl.save() for gpadl in self._all.values()]

    def restore(self, states: Iterable[GpadlState]) -> None:
        """Goes on from these. Raises `ValueError`."""
        for state in states:
            gpadl = Gpadl.restored(state)
            if gpadl.id in self._all or not self._is_ram(gpadl.pages):
                raise ValueError("guest memory that cannot be")
            self._all[gpadl.id] = gpadl
        if self.pages > MAX_TOTAL_PAGES:
            raise ValueError("too much guest memory in use")

"""GPADLs: guest memory described page by page over several messages."""

import struct
from array import array
from typing import Annotated, Final

import msgspec

from teuthis.flows import FLOWS
from teuthis.worker.memory import PAGE_SIZE
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
    """A description that contradicts itself."""


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

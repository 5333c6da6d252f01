"""SCSI disks: the commands that Linux sends, each checked against its disk before anything is done.

A command of unknown code or with a bit set that is not offered ends in CHECK CONDITION, as SPC-3
and SBC-3 say; so does every error of the files behind a disk. A request whose data do not fit its
command never gets as far as the command's own checks.
"""

import errno
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.worker.devices.storage import inquiry
from teuthis.worker.devices.storage.backend import SECTOR, Backend
from teuthis.worker.devices.storage.vstor import Direction
from teuthis.worker.vmbus.gpa import GuestBuffer

_SENSE = struct.Struct(">BxB4xB4xBB4x")
_FIXED_CURRENT: Final = 0x70
_SENSE_MORE: Final = 10

_FORCE_UNIT_ACCESS: Final = 0x08
_CACHE_HINTS: Final = 0x1A
"""DPO, FUA and FUA_NV; the other bits beside them ask for what is not offered."""
_UNMAP, _NO_DATA = 0x08, 0x01
_SUBPAGE_NONE: Final = 0
_SAVED_VALUES: Final = 3
_LUNS_WELL_KNOWN: Final = 1
_LUNS_LAST_CHOICE: Final = 2
_MIN_REPORT: Final = 16
_REPORT_LUNS_BYTES: Final = 12
_UNMAP_HEAD = struct.Struct(">HH4x")
_UNMAP_EXTENT = struct.Struct(">QI4x")
_UNMAP_BYTES: Final = _UNMAP_HEAD.size + inquiry.MAX_UNMAP_RANGES * _UNMAP_EXTENT.size
INQUIRY: Final = FLOWS["scsi.inquiry"].values["inquiry"]
REPORT_LUNS: Final = FLOWS["scsi.report-luns"].values["report_luns"]


class Sense(msgspec.Struct, frozen=True):
    """Why a command failed: sense key, additional sense code and its qualifier."""

    key: int
    code: int
    qualifier: int = 0

    def encode(self) -> bytes:
        """18 bytes of fixed format."""
        return _SENSE.pack(_FIXED_CURRENT, self.key, _SENSE_MORE, self.code, self.qualifier)


MEDIUM_READ: Final = Sense(3, 0x11)
MEDIUM_WRITE: Final = Sense(3, 0x0C)
PARAMETER_LIST_LENGTH: Final = Sense(5, 0x1A)
UNKNOWN_COMMAND: Final = Sense(5, 0x20)
OUT_OF_RANGE: Final = Sense(5, 0x21)
INVALID_FIELD: Final = Sense(5, 0x24)
ABSENT: Final = Sense(5, 0x25)
INVALID_PARAMETER: Final = Sense(5, 0x26)
NOT_SAVED: Final = Sense(5, 0x39)
WRITE_PROTECTED: Final = Sense(7, 0x27)
NO_SPACE: Final = Sense(7, 0x27, 7)


class CheckCondition(Exception):
    """A command that failed, as its guest is told."""

    def __init__(self, kind: str, sense: Sense) -> None:
        """`kind`: why, as the register names it."""
        super().__init__(sense)
        self.kind = kind
        self.sense = sense


class Mismatch(Exception):
    """A request whose data have another length or direction than its command."""

    kind: Final = "data"


class Data(msgspec.Struct, frozen=True):
    """The data of one request: which way, how many bytes, and where in guest memory."""

    direction: Direction
    length: int
    buffer: GuestBuffer | None

    def put(self, content: bytes, allocation: int) -> int:
        """Hands `content` to the guest, cut to what it has asked for; returns the bytes moved."""
        content = content[: min(allocation, self.length)]
        if self.buffer is not None:
            self.buffer.write(0, content)
        return len(content)


class Command(msgspec.Struct, frozen=True):
    """How one operation code is served."""

    flow: str
    cdb_length: int
    direction: Direction
    """Where its data go, if it has any."""
    serve: Callable[["Disk", bytes, Data], int]


class Disk:
    """One logical unit."""

    def __init__(
        self, lun: int, backend: Backend, counters: Counters, failed: Callable[[int, OSError], None]
    ) -> None:
        """`failed`: hears of errors of the files behind it."""
        self._lun = lun
        self._backend = backend
        self._counters = counters
        self._failed = failed

    def execute(self, cdb: bytes, data: Data) -> int:
        """Serves one command; the bytes moved. Raises `CheckCondition`, `Mismatch`."""
        command = COMMANDS.get(cdb[0])
        if command is None:
            self._counters.reject("scsi.unknown", "command")
            raise CheckCondition("command", UNKNOWN_COMMAND)
        try:
            if len(cdb) < command.cdb_length:
                raise Mismatch
            if data.direction not in (command.direction, Direction.NONE):
                raise Mismatch
            moved = command.serve(self, cdb, data)
        except (CheckCondition, Mismatch) as refused:
            self._counters.reject(command.flow, refused.kind)
            raise
        except OSError as error:
            self._counters.reject(command.flow, "host")
            self._failed(self._lun, error)
            raise CheckCondition("host", _sense(error, command)) from error
        self._counters.accept(command.flow, moved)
        return moved

    def save(self) -> None:
        """Lets its files be copied as they are now. Raises `OSError`."""
        self._backend.save()

    # ---- what it is ------------------------------------------------------------------------------

    def _nothing(self, cdb: bytes, data: Data) -> int:
        return 0

    def _inquiry(self, cdb: bytes, data: Data) -> int:
        if cdb[1] & ~1 or (not cdb[1] and cdb[2]):
            raise CheckCondition("field", INVALID_FIELD)
        (allocation,) = struct.unpack_from(">H", cdb, 3)
        if not cdb[1]:
            return data.put(inquiry.inquiry(present=True), allocation)
        page = inquiry.vital_product_data(cdb[2], self._lun, self._backend.punches)
        if page is None:
            raise CheckCondition("field", INVALID_FIELD)
        return data.put(page, allocation)

    def _capacity_10(self, cdb: bytes, data: Data) -> int:
        return data.put(inquiry.capacity_10(self._backend.size), SECTOR)

    def _service_in_16(self, cdb: bytes, data: Data) -> int:
        action, (allocation,) = cdb[1] & 0x1F, struct.unpack_from(">I", cdb, 10)
        if action != FLOWS["scsi.capacity"].values["read_capacity_action"]:
            raise CheckCondition("field", INVALID_FIELD)
        return data.put(inquiry.capacity_16(self._backend.size, self._backend.punches), allocation)

    def _mode_sense(self, cdb: bytes, data: Data) -> int:
        page, control = cdb[2] & 0x3F, cdb[2] >> 6
        if control == _SAVED_VALUES:
            raise CheckCondition("saved", NOT_SAVED)
        content = inquiry.mode_pages(page, control, self._backend.writable)
        if content is None or cdb[3] != _SUBPAGE_NONE:
            raise CheckCondition("field", INVALID_FIELD)
        return data.put(content, cdb[4])

    # ---- its content -----------------------------------------------------------------------------

    def _read_6(self, cdb: bytes, data: Data) -> int:
        return self._read(data, *_short(cdb))

    def _read_10(self, cdb: bytes, data: Data) -> int:
        return self._read(data, *_extent_10(cdb))

    def _read_12(self, cdb: bytes, data: Data) -> int:
        return self._read(data, *_extent_12(cdb))

    def _read_16(self, cdb: bytes, data: Data) -> int:
        return self._read(data, *_extent_16(cdb))

    def _read(self, data: Data, sector: int, count: int) -> int:
        offset, length = self._range(sector, count)
        if length != data.length:
            raise Mismatch
        if data.buffer is not None:
            self._backend.read(data.buffer, offset, length)
        return length

    def _write_6(self, cdb: bytes, data: Data) -> int:
        return self._write(data, *_short(cdb), flush=False)

    def _write_10(self, cdb: bytes, data: Data) -> int:
        return self._write(data, *_extent_10(cdb), flush=bool(cdb[1] & _FORCE_UNIT_ACCESS))

    def _write_12(self, cdb: bytes, data: Data) -> int:
        return self._write(data, *_extent_12(cdb), flush=bool(cdb[1] & _FORCE_UNIT_ACCESS))

    def _write_16(self, cdb: bytes, data: Data) -> int:
        return self._write(data, *_extent_16(cdb), flush=bool(cdb[1] & _FORCE_UNIT_ACCESS))

    def _write(self, data: Data, sector: int, count: int, *, flush: bool) -> int:
        self._check_writable()
        offset, length = self._range(sector, count)
        if length != data.length:
            raise Mismatch
        if data.buffer is not None:
            self._backend.write(data.buffer, offset, length)
        if flush:
            self._backend.flush()
        return length

    def _synchronize(self, cdb: bytes, data: Data) -> int:
        if self._backend.writable:
            self._backend.flush()
        return 0

    def _unmap(self, cdb: bytes, data: Data) -> int:
        (announced,) = struct.unpack_from(">H", cdb, 7)
        if cdb[1] or not self._backend.punches:
            raise CheckCondition("field", INVALID_FIELD)
        self._check_writable()
        if announced != data.length:
            raise Mismatch
        if data.buffer is None:
            return 0
        content = data.buffer.read(0, min(announced, _UNMAP_BYTES))
        for offset, length in [self._range(*extent) for extent in _unmap_extents(content)]:
            if length:
                self._backend.zero(offset, length)
        return len(content)

    def _write_same(self, cdb: bytes, data: Data) -> int:
        sector, count = struct.unpack_from(">QI", cdb, 2)
        punches = self._backend.punches
        limit = inquiry.MAX_UNMAP_SECTORS if punches else inquiry.MAX_ZERO_SECTORS
        if cdb[1] & ~(_UNMAP | _NO_DATA) or not 0 < count <= limit:
            raise CheckCondition("field", INVALID_FIELD)
        self._check_writable()
        if data.length != (0 if cdb[1] & _NO_DATA else SECTOR):
            raise Mismatch
        if data.buffer is not None and any(data.buffer.read(0, SECTOR)):
            raise CheckCondition("list", INVALID_PARAMETER)
        self._backend.zero(*self._range(sector, count))
        return data.length

    def _check_writable(self) -> None:
        if not self._backend.writable:
            raise CheckCondition("read-only", WRITE_PROTECTED)

    def _range(self, sector: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes of sectors that are all on the disk."""
        offset, length = sector * SECTOR, count * SECTOR
        if offset + length > self._backend.size:
            raise CheckCondition("range", OUT_OF_RANGE)
        return offset, length


def _short(cdb: bytes) -> tuple[int, int]:
    """Sector and count of a 6-byte read or write; no count means 256."""
    if cdb[1] & 0xE0:
        raise CheckCondition("field", INVALID_FIELD)
    return int.from_bytes(cdb[1:4]), cdb[4] or 256


def _extent_10(cdb: bytes) -> tuple[int, int]:
    return _extent(cdb, ">IxH")


def _extent_12(cdb: bytes) -> tuple[int, int]:
    return _extent(cdb, ">II")


def _extent_16(cdb: bytes) -> tuple[int, int]:
    return _extent(cdb, ">QI")


def _extent(cdb: bytes, layout: str) -> tuple[int, int]:
    if cdb[1] & ~_CACHE_HINTS:
        raise CheckCondition("field", INVALID_FIELD)
    sector, count = struct.unpack_from(layout, cdb, 2)
    return sector, count


def _unmap_extents(content: bytes) -> list[tuple[int, int]]:
    """(sector, count) of each descriptor in a copy of the parameter list of UNMAP."""
    if len(content) < _UNMAP_HEAD.size:
        raise CheckCondition("short", PARAMETER_LIST_LENGTH)
    _, size = _UNMAP_HEAD.unpack_from(content)
    extents = content[_UNMAP_HEAD.size : _UNMAP_HEAD.size + size]
    if len(extents) != size or size % _UNMAP_EXTENT.size:
        raise CheckCondition("list", INVALID_PARAMETER)
    found = list(_UNMAP_EXTENT.iter_unpack(extents))
    sectors = sum(count for _, count in found)
    if len(found) > inquiry.MAX_UNMAP_RANGES or sectors > inquiry.MAX_UNMAP_SECTORS:
        raise CheckCondition("list", INVALID_PARAMETER)
    return found


def _sense(error: OSError, command: Command) -> Sense:
    """What a guest is told of an error of the host's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NO_SPACE
    return MEDIUM_READ if command.direction is Direction.IN else MEDIUM_WRITE


def _command(
    flow: str,
    name: str,
    cdb_length: int,
    direction: Direction,
    serve: Callable[[Disk, bytes, Data], int],
) -> tuple[int, Command]:
    return FLOWS[flow].values[name], Command(flow, cdb_length, direction, serve)


# The disk's own methods are entries of its table.
_NONE, _IN, _OUT = Direction.NONE, Direction.IN, Direction.OUT
COMMANDS: Final[dict[int, Command]] = dict(
    [
        _command("scsi.unit", "test_unit_ready", 6, _NONE, Disk._nothing),
        _command("scsi.unit", "start_stop_unit", 6, _NONE, Disk._nothing),
        _command("scsi.inquiry", "inquiry", 6, _IN, Disk._inquiry),
        _command("scsi.capacity", "read_capacity_10", 10, _IN, Disk._capacity_10),
        _command("scsi.capacity", "service_action_in_16", 16, _IN, Disk._service_in_16),
        _command("scsi.mode-sense", "mode_sense_6", 6, _IN, Disk._mode_sense),
        _command("scsi.read", "read_6", 6, _IN, Disk._read_6),
        _command("scsi.read", "read_10", 10, _IN, Disk._read_10),
        _command("scsi.read", "read_12", 12, _IN, Disk._read_12),
        _command("scsi.read", "read_16", 16, _IN, Disk._read_16),
        _command("scsi.write", "write_6", 6, _OUT, Disk._write_6),
        _command("scsi.write", "write_10", 10, _OUT, Disk._write_10),
        _command("scsi.write", "write_12", 12, _OUT, Disk._write_12),
        _command("scsi.write", "write_16", 16, _OUT, Disk._write_16),
        _command("scsi.synchronize", "synchronize_cache_10", 10, _NONE, Disk._synchronize),
        _command("scsi.synchronize", "synchronize_cache_16", 16, _NONE, Disk._synchronize),
        _command("scsi.unmap", "unmap", 10, _OUT, Disk._unmap),
        _command("scsi.write-same", "write_same_16", 16, _OUT, Disk._write_same),
    ]
)
"""Served by each disk, by operation code; REPORT LUNS is served by their target."""


def report_luns(cdb: bytes, data: Data, count: int, counters: Counters) -> int:
    """REPORT LUNS of a target with `count` disks. Raises `CheckCondition`, `Mismatch`."""
    try:
        moved = _report_luns(cdb, data, count)
    except (CheckCondition, Mismatch) as refused:
        counters.reject("scsi.report-luns", refused.kind)
        raise
    counters.accept("scsi.report-luns", moved)
    return moved


def _report_luns(cdb: bytes, data: Data, count: int) -> int:
    if len(cdb) < _REPORT_LUNS_BYTES or data.direction is Direction.OUT:
        raise Mismatch
    choice, (allocation,) = cdb[2], struct.unpack_from(">I", cdb, 6)
    if choice > _LUNS_LAST_CHOICE or allocation < _MIN_REPORT:
        raise CheckCondition("field", INVALID_FIELD)
    luns = range(0 if choice == _LUNS_WELL_KNOWN else count)
    content = struct.pack(">I4x", 8 * len(luns)) + b"".join(
        struct.pack(">BB6x", 0, lun) for lun in luns
    )
    return data.put(content, allocation)

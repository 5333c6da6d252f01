"""The ACPI tables of the machine: RSDP, XSDT, FADT (hardware-reduced), DSDT, MADT.

Reference: ACPI specification 6.3, chapters 5 (tables) and 20 (AML). The DSDT names the VMBus
device, without which the guest's driver does not load, the power-off state `_S5`, and the virtual
machine's generation id ("Virtual Machine Generation ID", Microsoft, 2012): where 16 bytes lie that
no two machines share, and the interrupt at which the kernel is to look at them again.
"""

import struct

from teuthis.flows import FLOWS
from teuthis.root import generation

_POWER = FLOWS["port.power"].values
_IO_APIC = FLOWS["memory.ioapic"].values
_GENERATION_CHANGED = 0x80
_SYSTEM_IO = 1
_BYTE_ACCESS = 1

# FADT flags.
_WBINVD = 1 << 0
_POWER_BUTTON_IS_DEVICE = 1 << 4
_SLEEP_BUTTON_IS_DEVICE = 1 << 5
_RESET_REGISTER = 1 << 10
_HARDWARE_REDUCED = 1 << 20
# FADT IA-PC boot architecture flags: neither VGA nor an RTC that a driver could bind to.
_NO_VGA = 1 << 2
_NO_RTC = 1 << 5


def build(base: int, processors: int = 1) -> bytes:
    """All tables as one block for guest physical address `base`, the RSDP first."""
    block = bytearray(36)

    def place(table: bytes) -> int:
        block.extend(bytes(-len(block) % 16))
        block.extend(table)
        return base + len(block) - len(table)

    dsdt = place(_table(b"DSDT", 2, dsdt_body()))
    fadt = place(_table(b"FACP", 6, _fadt_body(dsdt)))
    madt = place(_table(b"APIC", 4, _madt_body(processors)))
    xsdt = place(_table(b"XSDT", 1, struct.pack("<QQ", fadt, madt)))
    block[:36] = _rsdp(xsdt)
    return bytes(block)


def _checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes zero modulo 256."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with the common 36-byte header."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        36 + len(body),
        revision,
        0,
        b"TEUTHI",
        b"TEUTHIS ",
        1,
        b"TEUT",
        1,
    )
    table = bytearray(header + body)
    table[9] = _checksum(table)
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """Root pointer, revision 2: a checksum over the first 20 bytes, then one over all 36."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"TEUTHI", 2, 0, 36, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    return bytes(rsdp)


def _register(port: int) -> bytes:
    """Generic address structure of an 8-bit I/O port."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8, 0, _BYTE_ACCESS, port)


def _fadt_body(dsdt: int) -> bytes:
    body = bytearray(276 - 36)

    def put(offset: int, layout: str, *values: int | bytes) -> None:
        struct.pack_into("<" + layout, body, offset - 36, *values)

    put(40, "I", dsdt)
    put(109, "H", _NO_VGA | _NO_RTC)
    put(
        112,
        "I",
        _WBINVD
        | _POWER_BUTTON_IS_DEVICE
        | _SLEEP_BUTTON_IS_DEVICE
        | _RESET_REGISTER
        | _HARDWARE_REDUCED,
    )
    put(116, "12sB", _register(_POWER["reset"]), _POWER["reset_value"])
    put(131, "B", 3)  # minor version: ACPI 6.3
    put(140, "Q", dsdt)
    put(244, "12s", _register(_POWER["sleep_control"]))
    put(256, "12s", _register(_POWER["sleep_status"]))
    return bytes(body)


def _madt_body(processors: int) -> bytes:
    """Enabled processors, numbered as their local APICs are; an I/O APIC; no 8259.

    The I/O APIC's interrupts follow the 16 of a PC, none of which exists here.
    """
    local_apics = [struct.pack("<BBBBI", 0, 8, number, number, 1) for number in range(processors)]
    io_apic = struct.pack("<BBBBII", 1, 12, 0, 0, _IO_APIC["base"], _IO_APIC["gsi"])
    return struct.pack("<II", 0xFEE00000, 0) + b"".join(local_apics) + io_apic


def dsdt_body() -> bytes:
    """The AML of the machine.

    Name (_S5, Package () { type, 0 })
    Scope (_SB) {
        Device (VMBS) { _HID "VMBUS", _UID 0, _STA 15, _CRS (empty) }
        Device (VGEN) { _HID "TEUT0001", _CID Package () { "VM_Gen_Counter", "VMGENCTR" },
                        _DDN "VM_Gen_Counter", ADDR Package () { low, high } }
        Device (EVNT) { _HID "ACPI0013", _CRS (an edge), Method (_EVT, 1) { Notify (VGEN, 0x80) } }
    }
    """
    vmbus = (
        _aml_name(b"_HID", _aml_string("VMBUS"))
        + _aml_name(b"_UID", _aml_integer(0))
        + _aml_name(b"_STA", _aml_integer(15))
        + _aml_name(b"_CRS", _aml_resources())
    )
    identity = (
        _aml_name(b"_HID", _aml_string("TEUT0001"))
        + _aml_name(b"_CID", _aml_package(_aml_string("VM_Gen_Counter"), _aml_string("VMGENCTR")))
        + _aml_name(b"_DDN", _aml_string("VM_Gen_Counter"))
        + _aml_name(b"ADDR", _aml_package(_aml_integer(generation.ADDRESS), _aml_integer(0)))
    )
    notify = b"\x86VGEN" + _aml_integer(_GENERATION_CHANGED)
    events = (
        _aml_name(b"_HID", _aml_string("ACPI0013"))
        + _aml_name(b"_CRS", _aml_resources(_edge(_IO_APIC["gsi"])))
        + _aml_block(b"\x14", b"_EVT\x01" + notify)
    )
    sleep = _aml_package(_aml_integer(_POWER["sleep_type_s5"]), _aml_integer(0))
    devices = ((b"VMBS", vmbus), (b"VGEN", identity), (b"EVNT", events))
    return _aml_name(b"_S5_", sleep) + _aml_block(
        b"\x10",
        b"_SB_" + b"".join(_aml_block(b"\x5b\x82", name + content) for name, content in devices),
    )


def _edge(gsi: int) -> bytes:
    """The resource of one interrupt: consumed, edge, active high, exclusive."""
    return struct.pack("<BHBBI", 0x89, 6, 0b0011, 1, gsi)


def _aml_resources(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors, with the end tag."""
    content = b"".join(descriptors) + b"\x79\x00"
    return _aml_block(b"\x11", _aml_integer(len(content)) + content)


def _aml_package(*elements: bytes) -> bytes:
    return _aml_block(b"\x12", bytes([len(elements)]) + b"".join(elements))


def _aml_string(text: str) -> bytes:
    return b"\x0d" + text.encode() + b"\0"


def _aml_integer(value: int) -> bytes:
    """An AML constant of at most 32 bits."""
    if value < 2:
        return bytes([value])
    return bytes([0x0A, value]) if value < 0x100 else struct.pack("<BI", 0x0C, value)


def _aml_name(name: bytes, value: bytes) -> bytes:
    return b"\x08" + name + value


def _aml_block(opcode: bytes, content: bytes) -> bytes:
    """An operator with a PkgLength, which counts its own bytes."""
    length = len(content) + 1
    if length < 0x40:
        return opcode + bytes([length]) + content
    length += 1
    return opcode + bytes([0x40 | length & 0xF, length >> 4]) + content

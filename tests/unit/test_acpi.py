"""The ACPI tables: checksums, pointers, and that ACPICA's compiler reads every table."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from teuthis.root import generation
from teuthis.root.loader import acpi

BASE = 0xE0000


def tables() -> dict[str, bytes]:
    """All tables by signature, found the way a kernel finds them."""
    block = acpi.build(BASE)
    rsdp = block[:36]
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == 0
    assert sum(rsdp) & 0xFF == 0

    def at(address: int) -> bytes:
        offset = address - BASE
        (length,) = struct.unpack_from("<I", block, offset + 4)
        assert offset + length <= len(block)
        return block[offset : offset + length]

    xsdt = at(struct.unpack_from("<Q", rsdp, 24)[0])
    found = [at(pointer) for (pointer,) in struct.iter_unpack("<Q", xsdt[36:])]
    fadt = next(table for table in found if table[:4] == b"FACP")
    found += [xsdt, at(struct.unpack_from("<Q", fadt, 140)[0])]
    return {table[:4].decode(): table for table in found}


def test_every_checksum_is_right() -> None:
    found = tables()
    assert set(found) == {"XSDT", "FACP", "APIC", "DSDT"}
    for table in found.values():
        assert sum(table) & 0xFF == 0


@pytest.mark.parametrize("processors", [1, 4])
def test_every_processor_is_listed_by_its_number(processors: int) -> None:
    block = acpi.build(BASE, processors)
    madt = block[block.index(b"APIC") :]
    (length,) = struct.unpack_from("<I", madt, 4)
    entries = list(struct.iter_unpack("<BBBBI", madt[44 : length - 12]))
    assert entries == [(0, 8, number, number, 1) for number in range(processors)]


def test_the_io_apic_has_the_interrupts_behind_those_of_a_pc() -> None:
    entry = struct.unpack("<BBBBII", tables()["APIC"][-12:])
    assert entry == (1, 12, 0, 0, 0xFEC0_0000, 16)


def test_power_registers_are_the_ports_of_the_register_of_flows() -> None:
    fadt = tables()["FACP"]
    assert len(fadt) == 276
    ports = [struct.unpack_from("<Q", fadt, offset + 4)[0] for offset in (244, 256, 116)]
    assert ports == [0x600, 0x601, 0x602]
    assert fadt[128] == 1  # RESET_VALUE
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags >> 20 & 1  # hardware-reduced
    assert flags >> 10 & 1  # RESET_REG is there


def test_long_aml_blocks_have_two_length_bytes() -> None:
    for size in (0, 61, 62, 63, 200, 4000):
        block = acpi._aml_block(b"\x10", bytes(size))
        first = block[1]
        count = first >> 6
        length = first if count == 0 else first & 0xF | block[2] << 4
        assert length == len(block) - 1


@pytest.mark.skipif(shutil.which("iasl") is None, reason="needs iasl (acpica-tools)")
@pytest.mark.parametrize("signature", ["XSDT", "FACP", "APIC", "DSDT"])
def test_iasl_reads_and_rebuilds_the_table(signature: str, tmp_path: Path) -> None:
    table = tables()[signature]
    binary = tmp_path / "table.dat"
    binary.write_bytes(table)
    first = subprocess.run(["iasl", "-d", binary], capture_output=True, text=True, cwd=tmp_path)
    output = first.stdout + first.stderr
    assert first.returncode == 0, output
    assert "rror" not in output.replace("0 Errors", ""), output
    assert "nvalid" not in output, output
    source = binary.with_suffix(".dsl")
    again = subprocess.run(["iasl", "-f", source], capture_output=True, text=True, cwd=tmp_path)
    output = again.stdout + again.stderr
    assert again.returncode == 0, output
    # The guest's driver binds to a name that is shorter than a _HID ought to be: error 6033.
    numbers = re.findall(r"^(?:Error|Warning) +(\d+)", output, re.MULTILINE)
    assert numbers == (["6033"] if signature == "DSDT" else []), output
    if signature == "DSDT":
        text = source.read_text()
        assert 'Name (_HID, "VMBUS")' in text
        assert "_S5" in text
        words = " ".join(re.sub(r"//.*", "", text).split())
        assert f"Name (ADDR, Package (0x02) {{ 0x{generation.ADDRESS:08X}, Zero }})" in words
        assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive" in words
        assert "Method (_EVT, 1, NotSerialized) { Notify (VGEN, 0x80)" in words
        assert (tmp_path / "table.aml").read_bytes()[36:] == table[36:]

"""Where everything lies in guest memory when the first instruction runs.

| guest physical address | what | size |
|---|---|---|
| 0x0000_1000 | GDT | 1 page |
| 0x0000_2000 | boot_params ("zero page") | 1 page |
| 0x0000_3000 | command line | 1 page |
| 0x0000_4000 | page tables: PML4, PDPT, 4 directories | 6 pages |
| 0x0000_F000 | stack of the entry code, growing down | |
| 0x000A_0000 | hole for what was video memory and firmware | 384 KiB |
| 0x000E_0000 | ACPI tables, in the reserved hole | 60 KiB |
| 0x000E_F000 | generation id | 1 page |
| 0x0010_0000 | RAM; the kernel at its own address (16 MiB) | |
| below the low limit | initrd, at the top of low RAM, page-aligned | |
| 0xC000_0000 | hole: no RAM up to 4 GiB | 1 GiB |
| 0x1_0000_0000 | the rest of RAM | |

The memory file has no holes: the byte at file offset `LOW_LIMIT` is the one at `HIGH_BASE`.
"""

from teuthis.flows import FLOWS

PAGE_SIZE = 4096

GDT = 0x1000
BOOT_PARAMS = 0x2000
COMMAND_LINE = 0x3000
PAGE_TABLES = 0x4000
STACK = 0xF000
LEGACY_HOLE = 0xA0000
ACPI_TABLES = 0xE0000
ACPI_TABLES_SIZE = 0xF000
HIGH_RAM = 0x100000

LOW_LIMIT = FLOWS["memory.hole"].values["hole_first"]
HIGH_BASE = FLOWS["memory.hole"].values["hole_end"]

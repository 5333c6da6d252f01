"""Puts kernel, initrd, boot parameters and ACPI tables into guest RAM before the guest runs.

All input here is the user's own; nothing that a guest has touched is ever read.
"""

from teuthis.root.loader.boot import BootState, command_line, load

__all__ = ["BootState", "command_line", "load"]

"""The generation id: 16 random bytes in a page of guest RAM that no other machine has.

A kernel with a driver for it (`CONFIG_VMGENID`) seeds its random numbers with it when it boots, and
anew when it has become another one. `teuthis.root.loader.acpi` tells the kernel where it lies.
"""

import os
from typing import Final

from teuthis.flows import FLOWS
from teuthis.root.saved import PAGE, ZERO

_FLOW: Final = FLOWS["interrupt.generation"]
ADDRESS: Final = _FLOW.values["id"]
"""Guest physical. Nothing else lies in its page, which the kernel does not use."""


def give(memory: int, pages: int | None = None) -> None:
    """Writes a new one into the memory file of a machine whose guest does not run yet.

    Args:
        memory: the machine's own memory file.
        pages: where it is restored from a template, its page file.
    """
    os.pwrite(memory, os.urandom(_FLOW.max_bytes), ADDRESS)
    if pages is not None:  # not to be copied over it
        os.pwrite(pages, bytes([ZERO]), PAGE + ADDRESS // PAGE)

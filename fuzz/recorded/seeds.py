"""The kept inputs of each flow, in `fuzz/seeds/FLOW`: few, small, no two of the same shape."""

import shutil
from functools import cache
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).parents[1] / "seeds"
_MOST: Final = 12
"""Inputs of one flow."""
_MAX_BYTES: Final = 4096
_EXACT: Final = 64
"""Up to so many bytes, another length is another shape."""
_TELLING: Final = {
    "hypercall.post-message": ((0, 4), (16, 4)),
    "hypercall.signal-event": ((0, 0),),
    "doorbell.": ((0, 0),),
    "link.": ((16, 4),),
    "scsi.": ((19, 1), (22, 1), (28, 2)),
    "storvsp.execute-srb": ((19, 1), (22, 1), (28, 1)),
    "rndis.": ((12, 4),),
    "nvsp.": ((4, 4),),
    "ring.packet": ((0, 4),),
    "network.": ((12, 2), (20, 4)),
    "intercept.": ((0, 6),),
    "msr.": ((0, 6),),
    "port.cmos": ((0, 7),),
    "port.": ((0, 6),),
    "recording.entry": ((0, 1),),
}
"""By flow or family: (offset, bytes) of what tells one shape from another, beside the length."""


def shape(flow: str, seed: bytes) -> tuple[int, ...]:
    """Inputs of one flow that have the same are much alike."""
    size = len(seed) if len(seed) <= _EXACT else -len(seed).bit_length()
    telling = next((places for name, places in _TELLING.items() if flow.startswith(name)), ())
    return size, *(int.from_bytes(seed[at : at + count], "little") for at, count in telling)


class Keeper:
    """Takes all inputs of a machine and keeps the first of each shape."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[tuple[int, ...], bytes]] = {}

    def take(self, flow: str, seed: bytes) -> None:
        """One input of a flow."""
        kept = self._kept.setdefault(flow, {})
        if len(seed) <= _MAX_BYTES and len(kept) < _MOST:
            kept.setdefault(shape(flow, seed), seed)

    def write(self, directory: Path = DIRECTORY) -> int:
        """Writes them in place of what is there; how many bytes they are."""
        shutil.rmtree(directory, ignore_errors=True)
        total = 0
        for flow, kept in sorted(self._kept.items()):
            (directory / flow).mkdir(parents=True)
            for number, seed in enumerate(kept.values()):
                (directory / flow / f"{number:02}").write_bytes(seed)
                total += len(seed)
        return total


@cache
def kept(flow: str) -> tuple[bytes, ...]:
    """The kept inputs of a flow."""
    return tuple(path.read_bytes() for path in sorted((DIRECTORY / flow).glob("*")))


def flows() -> list[str]:
    """The flows that have any."""
    return sorted(path.name for path in DIRECTORY.iterdir())

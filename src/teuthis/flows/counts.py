"""Counters of a run as a file: what `run --counts` writes and `squid --counts` draws."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from teuthis.errors import ConfigurationError
from teuthis.flows.counters import Count
from teuthis.flows.register import FLOWS

_MAX_BYTES = 1 << 20


def write(path: Path, counts: Mapping[str, Count]) -> None:
    """Writes the flows that happened or were refused, as JSON: id to count, bytes, rejected.

    Raises:
        OSError: the file cannot be written.
    """
    happened = {name: count for name, count in counts.items() if count}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(happened)) + b"\n")


def read(path: Path) -> dict[str, Count]:
    """Reads what `write` wrote.

    Raises:
        ConfigurationError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            counts = msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, Count])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"{path} holds no counters of a run: {error}; `teuthis run --counts FILE` writes them"
        ) from error
    if strangers := set(counts) - set(FLOWS):
        raise ConfigurationError(
            f"{path} counts flows that are not in this version's register: "
            + ", ".join(sorted(strangers))
        )
    return counts

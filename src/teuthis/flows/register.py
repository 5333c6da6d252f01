"""Loads `flows.toml`: the one list of every way that data crosses a boundary.

Numbers, limits, dispatch tables and counters of the Python side come from here; the Rust side
takes the same file through its build script. Parsing it takes longer than starting a VM from a
template may: what it says is kept beside this module's compiled code, as Python keeps that, until
the size or time of one of the two files changes.
"""

import marshal
import os
import sys
import zlib
from contextlib import suppress
from typing import Any

import msgspec


class Receiver(msgspec.Struct, frozen=True):
    """A process that parses flows, and what it could reach if it fell."""

    name: str
    reach: str


class Flow(msgspec.Struct, frozen=True):
    """One entry of the register; the fields are described at the head of `flows.toml`."""

    index: int
    id: str
    kind: str
    direction: str
    receiver: str
    shape: str
    max_bytes: int
    handler: str
    tests: tuple[str, ...]
    fuzz: str
    threat: str
    left: str = ""
    rejects: dict[str, str] = msgspec.field(default_factory=dict)
    """Kinds of bad input, in alphabetical order, and how each is answered."""
    min_bytes: int = 0
    opcode: int | None = None
    values: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def number(self) -> int:
        """The operation code on the wire.

        Raises:
            LookupError: this flow has none.
        """
        if self.opcode is None:
            raise LookupError(f"flow {self.id} has no number in the register")
        return self.opcode


def _find() -> str:
    """The register beside the installed package, or at the root of the checkout."""
    here = os.path.dirname(os.path.realpath(__file__))
    installed = os.path.join(here, "flows.toml")
    if os.path.exists(installed):
        return installed
    return os.path.normpath(os.path.join(here, "../../../flows.toml"))


def _flow(index: int, entry: dict[str, Any]) -> Flow:
    entry = dict(entry)
    entry["opcode"] = entry.pop("number", None)
    entry["rejects"] = dict(sorted(entry.get("rejects", {}).items()))
    entry["tests"] = tuple(entry["tests"])
    return Flow(index=index, **entry)


def _made_of(path: str) -> tuple[int, ...]:
    """By what a kept register is known: the file at `path` and this module, unchanged."""
    found = map(os.stat, (path, __file__))
    return tuple(part for file in found for part in (file.st_mtime_ns, file.st_size))


def _load(path: str, kept: str | None) -> dict[str, Any]:
    """What the file at `path` says, from `kept` where that was made of this very file."""
    made_of = _made_of(path)
    if kept is not None:
        with suppress(OSError, ValueError, EOFError, TypeError), open(kept, "rb") as file:
            of, found = marshal.loads(file.read())  # noqa: S302 - as compiled code is
            if of == made_of:
                return dict(found)
    import tomllib

    with open(path, "rb") as file:
        document = tomllib.load(file)
    flows = [_flow(index, entry) for index, entry in enumerate(document["flow"])]
    found = {
        "receivers": {name: entry["reach"] for name, entry in document["receivers"].items()},
        "capabilities": {entry["name"]: entry["opens"] for entry in document["capability"]},
        "flows": list(map(msgspec.structs.astuple, flows)),
        "digest": zlib.crc32("".join(map(_summary, flows)).encode()),
    }
    if kept is not None and not sys.dont_write_bytecode:
        with suppress(OSError):  # a place that is not ours to write
            new = f"{kept}.{os.getpid()}"
            with open(new, "wb") as file:
                marshal.dump((made_of, found), file)
            os.replace(new, kept)
    return found


def _summary(flow: Flow) -> str:
    words = [flow.id, str(flow.min_bytes), str(flow.max_bytes)]
    if flow.opcode is not None:
        words.append(f"number={flow.opcode}")
    words += (f"{key}={value}" for key, value in sorted(flow.values.items()))
    return " ".join((*words, *flow.rejects)) + "\n"


def _kept() -> str | None:
    """Where the parsed register is kept; None: Python keeps no compiled code either."""
    compiled = __spec__.cached if __spec__ is not None else None
    return None if compiled is None else f"{compiled[:-4]}.flows"


REGISTER_PATH = _find()
_found = _load(REGISTER_PATH, _kept())
RECEIVERS: dict[str, Receiver] = {
    name: Receiver(name, reach) for name, reach in _found["receivers"].items()
}
CAPABILITIES: dict[str, str] = _found["capabilities"]
"""What the hypervisor uses of KVM, by the names of Linux without KVM_CAP_, and what it opens."""
FLOWS: dict[str, Flow] = {flow.id: flow for flow in (Flow(*row) for row in _found["flows"])}
FINGERPRINT = f"teuthis-register:{_found['digest']:08x}"
"""Of all that programs take from the register; each Rust program carries that of its own."""

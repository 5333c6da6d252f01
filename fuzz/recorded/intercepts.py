"""What a recorded guest runs into: processor identification, registers, ports.

A replay of the recording tells it, step by step; hypercalls and halts among them, which `traffic`
sees better.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from teuthis.flows import FLOWS
from teuthis.root.recording import Recording
from teuthis.root.replay import Replay

_FIELDS: Final = struct.Struct("<BBIQ")
_STEP: Final = re.compile(
    r"^\d+ \w+ (?P<kind>Cpuid|MsrRead|MsrWrite|PortRead|PortWrite|Halt) \{ (?P<fields>[^}]*) \}"
    r" -> (?P<answer>.*)"
)
_REFUSALS: Final = ("Complete(GeneralProtection)", "Complete(Cpuid([0, 0, 0, 0]))")
_FIELD: Final = re.compile(r"(\w+): (\w+)")
KINDS: Final = ("Cpuid", "MsrRead", "MsrWrite", "PortRead", "PortWrite", "Halt")
_RANGES: Final = {"first": "last", "scontrol": "eom", "sint0": "sint15", "p0": "p4"}


class Intercept(NamedTuple):
    """One of them, as a seed holds it."""

    kind: str
    size: int = 0
    """Bytes of an access to a port."""
    number: int = 0
    """Leaf, register or port."""
    value: int = 0
    """What is written; the subleaf."""

    def encode(self) -> bytes:
        """As a seed."""
        return _FIELDS.pack(KINDS.index(self.kind), self.size, self.number, self.value)

    @classmethod
    def decode(cls, seed: bytes) -> "Intercept":
        """Of a seed."""
        kind, *rest = _FIELDS.unpack(seed)
        return cls(KINDS[kind], *rest)

    @property
    def flow(self) -> str:
        """Of the register."""
        match self.kind:
            case "Cpuid":
                return "intercept.cpuid"
            case "Halt":
                return "intercept.halt"
            case "MsrRead" | "MsrWrite":
                return _owner("msr.", self.number)
        return _owner("port.", self.number)


def of(recording: Recording) -> Iterator[Intercept]:
    """All of a recording's, but for those that were refused and those of no flow of their own."""
    report = io.BytesIO()
    Replay(recording, report=report, trace=True).run()
    for line in report.getvalue().decode().splitlines():
        if (step := _STEP.match(line)) and step["answer"] not in _REFUSALS:
            fields: dict[str, str] = dict(_FIELD.findall(step["fields"]))
            numbers = [fields[name] for name in ("leaf", "msr", "port") if name in fields]
            value = fields.get("value") or fields.get("subleaf") or "0"
            size = int(fields.get("size", "0"))
            number = int(numbers[0], 16) if numbers else 0
            found = Intercept(step["kind"], size, number, int(value, 16))
            if not found.flow.endswith(".unknown"):
                yield found


def _owner(family: str, number: int) -> str:
    """The flow of a family that names the number, by itself or in a range."""
    for flow in FLOWS.values():
        if flow.id.startswith(family):
            values = flow.values
            for name, first in values.items():
                last = values.get(_RANGES.get(name, ""), first)
                if name == "base":
                    last = first + values["registers"] - 1
                if first <= number <= last:
                    return flow.id
    return f"{family}unknown"

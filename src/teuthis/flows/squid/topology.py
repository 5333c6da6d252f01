"""Who stands at each end of a flow, and which limb of the drawing it belongs to.

A flow with the guest at one end is part of a limb: all flows of one kind that one process handles.
A flow between two processes is a cable.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from teuthis.flows.register import Flow

GUEST: Final = "guest"
_HYPERVISOR: Final = "hypervisor"
_WORKER: Final = "worker"


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a flow's data comes from and goes to; `both` when it also goes the other way."""

    source: str
    target: str
    both: bool = False

    @property
    def process(self) -> str:
        """The end that is not the guest (of a cable: the sender)."""
        return self.target if self.source == GUEST else self.source


@dataclass(frozen=True, slots=True)
class Limb:
    """All flows of one kind between the guest and one process, in the register's order."""

    process: str
    kind: str
    flows: tuple[Flow, ...]


def ends(flow: Flow) -> Ends:
    """The two ends of `flow`.

    The register names the receiver; `host` in a direction is whoever handles the flow: its
    receiver or, for what the guest receives, the process whose code the handler is.
    """
    if flow.direction == "both":
        return Ends(GUEST, _host_end(flow), both=True)
    source, _, target = flow.direction.partition("-to-")
    if GUEST in (source, target):
        source, target = (_host_end(flow) if end == "host" else end for end in (source, target))
    return Ends(source, target)


def _host_end(flow: Flow) -> str:
    if flow.receiver != GUEST:
        return flow.receiver
    return _HYPERVISOR if "#" in flow.handler else _WORKER


def limbs(flows: Iterable[Flow]) -> list[Limb]:
    """The limbs, by process and kind in the order of their first flows."""
    found: dict[tuple[str, str], list[Flow]] = {}
    for flow in flows:
        way = ends(flow)
        if GUEST in (way.source, way.target):
            found.setdefault((way.process, flow.kind), []).append(flow)
    return [Limb(process, kind, tuple(each)) for (process, kind), each in found.items()]


def cables(flows: Iterable[Flow]) -> list[Flow]:
    """The flows between two processes."""
    return [flow for flow in flows if GUEST not in (ends(flow).source, ends(flow).target)]

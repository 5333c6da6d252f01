"""Below the animal: the flows between processes.

The process with the most of them has the right edge to itself, and its lines sag from edge to edge.
A line between two others turns back to the left edge, on a lane of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from teuthis.flows.register import Flow
from teuthis.flows.squid.anatomy import HULL, MARGIN, MIDDLE, WIDTH, Hull, Point
from teuthis.flows.squid.topology import Ends, ends

_ROW: Final = 15.0
_APART: Final = 10.0
_SAG: Final = 12.0
_FIRST_LANE: Final = 150.0
_LANE: Final = 11.0
_CORNER: Final = 7.0
_LEFT: Final = MARGIN + HULL + 2.5
_RIGHT: Final = WIDTH - _LEFT


@dataclass(frozen=True, slots=True)
class Cable:
    """A flow between two processes; `forwards`: it goes the way that its line is drawn."""

    flow: Flow
    line: tuple[Point, ...]
    forwards: bool
    turns: bool
    label: Point


@dataclass(frozen=True, slots=True)
class Cables:
    """All of them, and the processes that they join."""

    cables: tuple[Cable, ...]
    hulls: tuple[Hull, ...]
    bottom: float


def name_length(process: str) -> float:
    """How long a process's name is along its hull."""
    return 10.5 * len(process) + 6


def lay(flows: Sequence[Flow], top: float) -> Cables:
    """Lays out the flows below `top`."""
    ways = {flow.id: ends(flow) for flow in flows}
    names = [name for way in ways.values() for name in (way.source, way.target)]
    hub = max(dict.fromkeys(names), key=names.count)
    partners = [name for name in dict.fromkeys(names) if name != hub]
    rows: dict[tuple[str, str], float] = {}
    hulls = []
    y = top
    for name in partners:
        mine = [flow.id for flow in flows if name in (ways[flow.id].source, ways[flow.id].target)]
        height = max(_ROW * len(mine) + 6, name_length(name))
        first = y + (height - _ROW * (len(mine) - 1)) / 2
        rows |= {(name, flow): first + _ROW * number for number, flow in enumerate(mine)}
        hulls.append(Hull(name, -1, y, y + height))
        y += height + _APART
    bottom = y - _APART
    hulls.append(Hull(hub, 1, top, bottom))
    cables = []
    lanes = 0
    for flow in flows:
        way = ways[flow.id]
        if hub in (way.source, way.target):
            cables.append(_across(flow, way, hub, rows))
        else:
            cables.append(_turning(flow, way, _FIRST_LANE + lanes * _LANE, rows))
            lanes += 1
    return Cables(tuple(cables), tuple(hulls), bottom)


def _across(flow: Flow, way: Ends, hub: str, rows: dict[tuple[str, str], float]) -> Cable:
    y = rows[way.source if way.target == hub else way.target, flow.id]
    line = ((_LEFT, y), (_LEFT + 300, y + _SAG), (_RIGHT - 300, y + _SAG), (_RIGHT, y))
    return Cable(flow, line, way.target == hub, False, (MIDDLE, y + 0.75 * _SAG + 3.6))


def _turning(flow: Flow, way: Ends, lane: float, rows: dict[tuple[str, str], float]) -> Cable:
    start, end = rows[way.source, flow.id], rows[way.target, flow.id]
    corner = _CORNER if end > start else -_CORNER
    x = _LEFT + lane
    points = [
        ((_LEFT, start), (x - _CORNER, start)),
        ((x, start), (x, start + corner)),
        ((x, end - corner), (x, end)),
        ((x - _CORNER, end), (_LEFT, end)),
    ]
    # Straight pieces and round corners in turn, all as cubic curves.
    line = (
        points[0][0], *points[0], points[0][1],
        points[1][0], points[1][0], points[1][1],
        points[1][1], points[2][0], points[2][0],
        points[2][1], points[2][1], points[3][0],
        points[3][0], points[3][1], points[3][1],
    )  # fmt: skip
    return Cable(flow, line, True, True, (_LEFT + 8, start - 3))

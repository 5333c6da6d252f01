"""Where everything of the drawing is: the body, the limbs, the rows of labels, the cables.

All lengths are user units of the SVG, y grows downwards. The lines of the flows are the drawing:
they run the length of the body as meridians, leave it at the crown in one bundle for each limb,
and part at last, each to its own row, where the process that handles it is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

from teuthis.flows.register import Flow
from teuthis.flows.squid.topology import Limb

WIDTH: Final = 1040.0
MIDDLE: Final = WIDTH / 2
HULL: Final = 20.0
MARGIN: Final = 26.0
INNER: Final = 232.0
"""Distance of a row's inner end from the edge of the drawing; the limbs live between."""

TIP: Final = 164.0
ROWS_TOP: Final = 146.0
ROW: Final = 14.5
HEADING: Final = 22.0
FAMILY_GAP: Final = 5.0
HULL_GAP: Final = 20.0

_BODY_LEAST: Final = 470.0
_BODY_SHARE: Final = 0.52
CROWN: Final = 92.0
"""Half the width of the crown, where the limbs leave the head."""
_PROFILE: Final = (
    (0.0, 3),
    (0.06, 34),
    (0.2, 82),
    (0.42, 112),
    (0.62, 108),
    (0.78, 78),
    (0.88, 86),
)
"""The body's half width by its length: mantle, neck, head."""
_EDGE_ANGLE: Final = math.radians(82)
_LINE_GAP: Final = 0.75
_LIMB_GAP: Final = 5.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A flow's place in the column of a side (-1 left, 1 right) and its two lines."""

    flow: Flow
    side: int
    y: float
    width: float
    body: tuple[Point, ...]
    arm: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one limb below their heading."""

    limb: Limb
    side: int
    heading: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Hull:
    """A process's edge along the rows that end at it."""

    process: str
    side: int
    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Body:
    """The animal without its limbs."""

    tip: float
    crown: float

    @property
    def length(self) -> float:
        """From tip to crown."""
        return self.crown - self.tip

    def at(self, share: float) -> float:
        """The height of a share of its length."""
        return self.tip + share * self.length

    def outline(self, side: int) -> tuple[Point, ...]:
        """The silhouette of one side from the tip to the eyes, as a Bézier path."""
        return spline([(MIDDLE + side * half, self.at(share)) for share, half in _PROFILE])


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The upper part of the drawing: all that touches the guest."""

    body: Body
    groups: tuple[Group, ...]
    hulls: tuple[Hull, ...]
    bottom: float


def anatomy(limbs: Sequence[Limb], widths: dict[str, float]) -> Anatomy:
    """Lays out `limbs`; `widths` says how thick each flow's line is."""
    sides = _sides(limbs)
    bottom = ROWS_TOP + max(map(_height, sides))
    body = Body(TIP, TIP + max(_BODY_LEAST, _BODY_SHARE * (bottom - TIP)))
    places = _crown(sides, widths)
    total = sum(len(limb.flows) for side in sides for limb in side)
    groups: list[Group] = []
    hulls: list[Hull] = []
    for side, column in zip((-1, 1), sides, strict=True):
        # A column that is shorter than the other is centred, so that the animal stays in balance.
        y = ROWS_TOP + (bottom - ROWS_TOP - _height(column)) / 2
        wrists = _wrists(column, y, body, side)
        place = 0
        for index, limb in enumerate(column):
            if index and column[index - 1].process != limb.process:
                y += HULL_GAP
            top = y
            heading = y + HEADING - 8
            y += HEADING
            rows = []
            for number, flow in enumerate(limb.flows):
                if number and _family(flow) != _family(limb.flows[number - 1]):
                    y += FAMILY_GAP
                y += ROW
                at = place if side < 0 else total - 1 - place
                place += 1
                theta = _EDGE_ANGLE * (2 * (at + 0.5) / total - 1)
                wrist = wrists[index].moved(places[flow.id].offset)
                x = places[flow.id].x
                rows.append(
                    Row(
                        flow,
                        side,
                        y,
                        widths[flow.id],
                        _meridian(body, math.sin(theta), x),
                        _arm((x, body.crown), wrist, (_inner(side), y)),
                    )
                )
            y += 4
            groups.append(Group(limb, side, heading, tuple(rows)))
            if hulls and (hulls[-1].process, hulls[-1].side) == (limb.process, side):
                hulls[-1] = Hull(limb.process, side, hulls[-1].top, y)
            else:
                hulls.append(Hull(limb.process, side, top, y))
    return Anatomy(body, tuple(groups), tuple(hulls), bottom)


def _inner(side: int) -> float:
    return INNER if side < 0 else WIDTH - INNER


def _family(flow: Flow) -> str:
    return flow.id.partition(".")[0]


def _height(column: Sequence[Limb]) -> float:
    """How high the rows of a side are."""
    families = sum(_family(a) != _family(b) for limb in column for a, b in pairwise(limb.flows))
    hulls = sum(a.process != b.process for a, b in pairwise(column))
    rows = sum(len(limb.flows) for limb in column)
    return rows * ROW + len(column) * (HEADING + 4) + families * FAMILY_GAP + hulls * HULL_GAP


def _sides(limbs: Sequence[Limb]) -> tuple[list[Limb], list[Limb]]:
    """Left and right, from top to bottom, as equally high as can be.

    The process with the most flows may stand on both sides; everybody else is on the left.
    """
    sizes: dict[str, int] = {}
    for limb in limbs:
        sizes[limb.process] = sizes.get(limb.process, 0) + len(limb.flows)
    largest = max(sizes, key=lambda name: sizes[name])
    movable = [limb for limb in limbs if limb.process == largest]
    fixed = [limb for limb in limbs if limb.process != largest]
    choices = (
        chosen for n in range(len(movable)) for chosen in combinations(range(len(movable)), n)
    )

    def split(chosen: Iterable[int]) -> tuple[list[Limb], list[Limb]]:
        moved = set(chosen)
        left = [limb for index, limb in enumerate(movable) if index in moved]
        right = [limb for index, limb in enumerate(movable) if index not in moved]
        return [*left, *fixed], right

    return min(map(split, choices), key=lambda sides: abs(_height(sides[0]) - _height(sides[1])))


@dataclass(frozen=True, slots=True)
class _Place:
    """A line's x at the crown and its distance from the middle of its limb."""

    x: float
    offset: float


def _crown(sides: Sequence[Sequence[Limb]], widths: dict[str, float]) -> dict[str, _Place]:
    """Side by side at the crown: the topmost limb outermost, so that no two limbs cross."""
    places: dict[str, _Place] = {}
    sizes = [
        sum(sum(widths[f.id] + _LINE_GAP for f in limb.flows) + _LIMB_GAP for limb in side)
        for side in sides
    ]
    scale = 2 * CROWN / sum(sizes)
    for side, column in zip((-1, 1), sides, strict=True):
        x = MIDDLE + side * CROWN
        for limb in column:
            size = sum(widths[flow.id] + _LINE_GAP for flow in limb.flows)
            run = 0.0
            for flow in limb.flows:
                half = (widths[flow.id] + _LINE_GAP) / 2
                run += half
                places[flow.id] = _Place(x - side * run * scale, run - size / 2)
                run += half
            x -= side * (size + _LIMB_GAP) * scale
    return places


@dataclass(frozen=True, slots=True)
class _Wrist:
    """Where a limb's lines begin to part, and where it is heading there."""

    x: float
    y: float
    heading: Point
    side: int

    def moved(self, offset: float) -> "_Wrist":
        """The wrist of a line `offset` from the limb's middle (positive: further down)."""
        dx, dy = self.heading
        # The first flow of a limb keeps to the inside of its turn, which is its topmost row.
        normal = (-dy * -self.side, dx * -self.side)
        return _Wrist(
            self.x - normal[0] * offset, self.y - normal[1] * offset, self.heading, self.side
        )


def _wrists(column: Sequence[Limb], top: float, body: Body, side: int) -> list[_Wrist]:
    """The wrists stand around the crown in the order of the rows that they lead to."""
    middles = []
    y = top
    for index, limb in enumerate(column):
        if index and column[index - 1].process != limb.process:
            y += HULL_GAP
        height = _height([limb])
        middles.append(y + height / 2)
        y += height
    wrists = []
    for index, middle in enumerate(middles):
        rank = (index + 0.5) / len(middles)
        # 0 is straight down, a quarter turn straight outwards.
        natural = math.atan2(MIDDLE - INNER, middle - (body.crown + 30))
        even = math.radians(138 - 128 * rank)
        angle = 0.45 * natural + 0.55 * even
        down = math.cos(angle)
        x = MIDDLE + side * (46 + 118 * min(1.0, angle / math.radians(80)))
        turn = angle + math.radians(8)
        wrists.append(
            _Wrist(
                x,
                body.crown + 92 + 84 * down,
                (side * math.sin(turn), math.cos(turn)),
                side,
            )
        )
    return wrists


def _meridian(body: Body, sine: float, crown: float) -> tuple[Point, ...]:
    """A line from the tip to the crown on the body's surface, seen at `sine` of its angle."""
    points = [(MIDDLE + half * sine, body.at(share)) for share, half in _PROFILE]
    return spline([*points, (crown, body.crown)])


def _arm(start: Point, wrist: _Wrist, end: Point) -> tuple[Point, ...]:
    """From the crown downwards, round to the wrist, and level into the row."""
    reach = math.dist(start, (wrist.x, wrist.y))
    dx, dy = wrist.heading
    there = math.dist((wrist.x, wrist.y), end)
    level = math.copysign(min(0.55 * abs(end[0] - wrist.x) + 12, 110), wrist.x - end[0])
    return (
        start,
        (start[0], start[1] + 0.5 * reach),
        (wrist.x - dx * 0.42 * reach, wrist.y - dy * 0.42 * reach),
        (wrist.x, wrist.y),
        (wrist.x + dx * 0.36 * there, wrist.y + dy * 0.36 * there),
        (end[0] + level, end[1]),
        end,
    )


def spline(points: Sequence[Point]) -> tuple[Point, ...]:
    """A smooth Bézier path through `points` (Catmull and Rom)."""
    path = [points[0]]
    for index, (a, b) in enumerate(pairwise(points)):
        before = points[max(index - 1, 0)]
        after = points[min(index + 2, len(points) - 1)]
        path += [
            (a[0] + (b[0] - before[0]) / 6, a[1] + (b[1] - before[1]) / 6),
            (b[0] - (after[0] - a[0]) / 6, b[1] - (after[1] - a[1]) / 6),
            b,
        ]
    return tuple(path)

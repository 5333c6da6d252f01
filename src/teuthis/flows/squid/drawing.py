"""The register as a drawing: the virtual machine is the animal, each flow is one of its lines.

The output depends on the register and the counters alone: the same input, the same bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from teuthis.flows.counters import Count
from teuthis.flows.register import FLOWS, RECEIVERS, Flow
from teuthis.flows.squid import anatomy as place
from teuthis.flows.squid.anatomy import MIDDLE, WIDTH, Anatomy, Group, Hull, Point, Row
from teuthis.flows.squid.cables import Cable, Cables, lay, name_length
from teuthis.flows.squid.style import style
from teuthis.flows.squid.topology import GUEST, Ends, cables, ends, limbs

_THIN: Final = 1.25
_THINNEST: Final = 0.7
_THICKEST: Final = 5.5
_CABLES_GAP: Final = 34.0


def draw(counts: Mapping[str, Count] | None = None) -> str:
    """The drawing of the whole register as an SVG document.

    Args:
        counts: counters of a run; they make the lines thick or thin (bytes, on a logarithmic
            scale), and what did not happen stays a hair line.
    """
    flows = list(FLOWS.values())
    widths = {flow.id: _width(flow, counts) for flow in flows}
    upper = place.anatomy(limbs(flows), widths)
    lower = lay(cables(flows), upper.bottom + _CABLES_GAP)
    legend_top = lower.bottom + 46
    height = legend_top + 24 * len(RECEIVERS) + 74
    title = "Teuthis: every way out of a virtual machine"
    counted = "" if counts is None else ", thickness by the traffic of a run"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" '
        f'width="{WIDTH:g}" height="{height:g}" role="img" '
        'aria-labelledby="squid-title squid-desc">',
        f'<title id="squid-title">{title}</title>',
        f'<desc id="squid-desc">A giant squid. Its body is the virtual machine; each of its '
        f"{len(flows)} lines is one flow of the register{counted}, ending at the process that "
        "handles it and coloured by what falls if its receiver falls.</desc>",
        f"<style>{style()}</style>",
        f"<defs>{''.join(_fades(upper))}</defs>",
        f'<rect class="paper" width="{WIDTH:g}" height="{height:g}" rx="10"/>',
        f'<rect class="frame" x="9" y="9" width="{WIDTH - 18:g}" height="{height - 18:g}" rx="5"/>',
        f'<rect class="frame" x="13" y="13" width="{WIDTH - 26:g}" height="{height - 26:g}" '
        'rx="3" stroke-width=".5"/>',
        *_heading(flows),
        *_fins(upper),
        *_body(upper),
        *(line for group in upper.groups for line in _group(group, counts)),
        *_face(upper),
        *_cables(lower, widths, counts),
        *(line for hull in upper.hulls for line in _hull(hull)),
        *_legend(legend_top, flows, counts),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _width(flow: Flow, counts: Mapping[str, Count] | None) -> float:
    if counts is None:
        return _THIN
    count = counts.get(flow.id, Count(0, 0, 0))
    traffic = count.bytes + count.count + count.rejected
    return min(_THINNEST + 0.23 * math.log2(1 + traffic), _THICKEST)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Sequence[Point]) -> str:
    """A path of cubic Bézier curves."""
    first, *rest = (f"{_number(x)} {_number(y)}" for x, y in points)
    return f"M{first}C{' '.join(rest)}"


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" class="{kind}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _heading(flows: Sequence[Flow]) -> Iterable[str]:
    yield _text(MIDDLE + 8, 76, "TEUTHIS", "title", "middle")
    yield _text(
        MIDDLE,
        106,
        f"every way out of a virtual machine, and every way in: {len(flows)} flows",
        "subtitle",
        "middle",
    )


def _between(one: Sequence[Point], other: Sequence[Point], share: float) -> list[Point]:
    return [
        (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share)
        for a, b in zip(one, other, strict=True)
    ]


def _fins(anatomy: Anatomy) -> Iterable[str]:
    body = anatomy.body
    for side in (-1, 1):
        root = [
            (MIDDLE, body.at(-0.03)),
            (MIDDLE + side * 40, body.at(0.03)),
            (MIDDLE + side * 74, body.at(0.12)),
            (MIDDLE + side * 98, body.at(0.30)),
        ]
        rim = [
            (MIDDLE, body.at(-0.03)),
            (MIDDLE + side * 96, body.at(-0.01)),
            (MIDDLE + side * 196, body.at(0.18)),
            (MIDDLE + side * 98, body.at(0.30)),
        ]
        yield f'<path class="flesh" d="{_path(rim)}"/>'
        for step in range(1, 12):
            yield f'<path class="hatch" d="{_path(_between(rim, root, step / 12))}"/>'


def _body(anatomy: Anatomy) -> Iterable[str]:
    left = _path(anatomy.body.outline(-1))
    right = _path(anatomy.body.outline(1))
    back = _path(list(reversed(anatomy.body.outline(1)))).partition("C")[2]
    low = _number(anatomy.body.crown)
    start, end = MIDDLE - place.CROWN, MIDDLE + place.CROWN
    (eyes_x, eyes_y) = anatomy.body.outline(1)[-1]
    # The crown has no edge: that is where the lines come out.
    yield (
        f'<path class="flesh bare" d="{left}L{start:g} {low}H{end:g}'
        f'L{_number(eyes_x)} {_number(eyes_y)}C{back}Z"/>'
    )
    yield f'<path class="edge" d="{left}"/><path class="edge" d="{right}"/>'


def _face(anatomy: Anatomy) -> Iterable[str]:
    """The eyes, and the plate that says what this animal is."""
    body = anatomy.body
    y = body.at(0.87)
    for side in (-1, 1):
        x = MIDDLE + side * 66
        rays = "".join(
            f"M{_number(x + 10 * math.cos(a))} {_number(y + 8 * math.sin(a))}"
            f"L{_number(x + 17 * math.cos(a))} {_number(y + 15.5 * math.sin(a))}"
            for a in (math.tau * ray / 40 for ray in range(40))
        )
        yield f'<ellipse class="eye" cx="{x:g}" cy="{_number(y)}" rx="21" ry="19"/>'
        yield f'<ellipse class="eye fine" cx="{x:g}" cy="{_number(y)}" rx="18" ry="16.3"/>'
        yield f'<path class="hatch" d="{rays}"/>'
        yield f'<ellipse class="pupil" cx="{x:g}" cy="{_number(y)}" rx="9.5" ry="6.4"/>'
    y = body.at(0.44)
    yield (
        f'<rect class="plate" x="{MIDDLE - 84:g}" y="{_number(y)}" width="168" height="62" '
        'rx="31"/>'
    )
    yield (
        f'<rect class="plate" x="{MIDDLE - 80:g}" y="{_number(y + 4)}" width="160" height="54" '
        'rx="27" stroke-width=".5"/>'
    )
    yield _text(MIDDLE + 1, y + 29, "THE GUEST", "plate-name", "middle")
    yield _text(MIDDLE, y + 46, "a kernel, and all it runs", "small", "middle")


def _fades(anatomy: Anatomy) -> Iterable[str]:
    """The lines gather strength on their way through the body."""
    top, bottom = _number(anatomy.body.at(0.3)), _number(anatomy.body.crown)
    for name in RECEIVERS:
        yield (
            f'<linearGradient id="fade-{name}" class="to-{name}" gradientUnits="userSpaceOnUse" '
            f'x1="0" x2="0" y1="{top}" y2="{bottom}"><stop class="faded"/>'
            '<stop class="strong" offset="1"/></linearGradient>'
        )


def _group(group: Group, counts: Mapping[str, Count] | None) -> Iterable[str]:
    limb = group.limb
    edge = _edge(group.side)
    anchor = "start" if group.side < 0 else "end"
    yield f'<g class="limb" data-kind="{limb.kind}" data-process="{limb.process}">'
    yield (
        f'<text x="{_number(edge)}" y="{_number(group.heading)}" class="heading" '
        f'text-anchor="{anchor}">{limb.kind.replace("-", " ")} '
        f"<tspan>{len(limb.flows)}</tspan></text>"
    )
    for row in group.rows:
        yield from _row(row, counts)
    yield "</g>"


def _edge(side: int) -> float:
    """Where a column's text stands, beside the hull."""
    inset = place.MARGIN + place.HULL + 10
    return inset if side < 0 else WIDTH - inset


def _open(flow: Flow, counts: Mapping[str, Count] | None, *, forwards: bool) -> str:
    """The start of a flow's group: what a tool-tip and a screen reader say.

    `forwards`: whether its data goes the way that its line is drawn.
    """
    said = f"{flow.id}: {flow.shape}"
    lines = [
        f"{flow.kind}, {flow.direction}, at most {flow.max_bytes:,} bytes",
        f"received by: {flow.receiver} ({RECEIVERS[flow.receiver].reach})",
        *(f"refused: {reject}" for reject in flow.rejects.values()),
        f"threat: {flow.threat}",
    ]
    if counts is not None and (count := counts.get(flow.id)):
        lines.insert(0, f"{count.count:,} times, {count.bytes:,} bytes, {count.rejected:,} refused")
    return (
        f'<g class="flow to-{flow.receiver}" data-flow="{flow.id}" '
        f'data-way="{"forwards" if forwards else "backwards"}">'
        f"<title>{escape(said)}</title><desc>{escape('; '.join(lines))}</desc>"
    )


def _row(row: Row, counts: Mapping[str, Count] | None) -> Iterable[str]:
    way = ends(row.flow)
    yield _open(row.flow, counts, forwards=way.target != GUEST)
    width = _number(row.width)
    yield f'<path class="body" stroke-width="{width}" d="{_path(row.body)}"/>'
    yield f'<path class="arm" stroke-width="{width}" d="{_path(row.arm)}"/>'
    inner, edge = row.arm[-1][0], _edge(row.side)
    hull = edge + row.side * 10
    y = _number(row.y)
    yield f'<path class="row" d="M{_number(inner)} {y}H{_number(hull)}"/>'
    yield from _dots(way, (inner, row.y), (hull + -row.side * 2.5, row.y))
    anchor = "start" if row.side < 0 else "end"
    yield (
        f'<text x="{_number(edge)}" y="{_number(row.y - 3)}" text-anchor="{anchor}">'
        f"{row.flow.id}</text></g>"
    )


def _dots(way: Ends, guest: Point, process: Point) -> Iterable[str]:
    """A sucker where data is received: at the process's edge, at the guest's side, or at both."""
    for point, receives in (
        (guest, way.target == GUEST or way.both),
        (process, way.target != GUEST or way.both),
    ):
        if receives:
            kind = "" if way.target != GUEST else ' class="open"'
            yield f'<circle{kind} cx="{_number(point[0])}" cy="{_number(point[1])}" r="2.4"/>'


def _hull(hull: Hull) -> Iterable[str]:
    """A process's edge with its name along it."""
    x = place.MARGIN if hull.side < 0 else WIDTH - place.MARGIN - place.HULL
    middle = x + place.HULL / 2
    y = (hull.top + hull.bottom) / 2
    yield f'<g class="to-{hull.process}">'
    yield (
        f'<rect class="hull" x="{_number(x)}" y="{_number(hull.top)}" width="{place.HULL:g}" '
        f'height="{_number(hull.bottom - hull.top)}" rx="4"/>'
    )
    if hull.bottom - hull.top >= name_length(hull.process):
        yield (
            f'<text class="hull-name" text-anchor="middle" dominant-baseline="central" '
            f'transform="translate({_number(middle)} {_number(y)}) rotate({90 * hull.side})">'
            f"{hull.process.upper()}</text>"
        )
    yield "</g>"


def _cables(
    lower: Cables, widths: Mapping[str, float], counts: Mapping[str, Count] | None
) -> Iterable[str]:
    for cable in lower.cables:
        yield from _cable(cable, widths[cable.flow.id], counts)
    for hull in lower.hulls:
        yield from _hull(hull)


def _cable(cable: Cable, width: float, counts: Mapping[str, Count] | None) -> Iterable[str]:
    yield _open(cable.flow, counts, forwards=cable.forwards)
    yield f'<path class="arm" stroke-width="{_number(width)}" d="{_path(cable.line)}"/>'
    x, y = cable.line[-1 if cable.forwards else 0]
    yield f'<circle cx="{_number(x)}" cy="{_number(y)}" r="2.4"/>'
    (x, y), anchor = cable.label, "start" if cable.turns else "middle"
    yield _text(x, y, cable.flow.id, "halo" if anchor == "middle" else "row-name", anchor)
    yield "</g>"


def _legend(top: float, flows: Sequence[Flow], counts: Mapping[str, Count] | None) -> Iterable[str]:
    left = place.MARGIN + 4
    yield _text(left, top, "What falls with whoever receives a flow", "heading")
    y = top
    for name, receiver in RECEIVERS.items():
        y += 24
        number = sum(flow.receiver == name for flow in flows)
        yield f'<g class="to-{name}">'
        yield (
            f'<rect class="hull" x="{left:g}" y="{_number(y - 10)}" width="26" height="12" rx="3"/>'
        )
        yield _text(left + 36, y, name, "name")
        yield _text(left + 150, y, f"{number}", "reach", "end")
        yield _text(left + 168, y, receiver.reach, "reach")
        yield "</g>"
    thickness = (
        "One line, one flow of flows.toml."
        if counts is None
        else "One line, one flow of flows.toml; the thicker, the more bytes in this run."
    )
    yield _text(
        left,
        y + 34,
        f"{thickness} A sucker sits where data arrives: full at a process, open at the guest.",
        "small",
    )

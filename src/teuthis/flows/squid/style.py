"""Colours and type of the drawing, for light and dark surroundings."""

from typing import Final

from teuthis.flows.register import RECEIVERS

_LIGHT: Final = ("#6c7a80", "#14708c", "#a9660b", "#8f3f86", "#4d7a2f", "#5a3ea0", "#d2452a")
_DARK: Final = ("#8c9ea6", "#5cc0dc", "#eab054", "#e08fd4", "#9ccc74", "#b39cff", "#ff9466")
_LIGHT_WORST: Final = "#8a0f24"
_DARK_WORST: Final = "#ff4f64"

_STYLE: Final = """
svg { --paper: #f6f1e4; --ink: #1f2d36; --faint: #1f2d3622; --soft: #55636b; --flesh: #ece3cd;
  %(light)s }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0c1820; --ink: #e4e9e6; --faint: #e4e9e622; --soft: #9db0b8; --flesh: #13262f;
    %(dark)s }
}
text { font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L",
  "Book Antiqua", Georgia, "Liberation Serif", "DejaVu Serif", serif; fill: var(--ink) }
.paper { fill: var(--paper) }
.frame { fill: none; stroke: var(--ink) }
.flesh { fill: var(--flesh); stroke: var(--ink); stroke-width: 1.4; stroke-linejoin: round }
.bare { stroke: none }
.edge { fill: none; stroke: var(--ink); stroke-width: 1.4; stroke-linecap: round }
.hatch { fill: none; stroke: var(--ink); stroke-width: .6; stroke-linecap: round; opacity: .5 }
.eye { fill: var(--paper); stroke: var(--ink); stroke-width: 1.2 }
.fine { stroke-width: .5 }
.pupil { fill: var(--ink) }
.flow path { fill: none; stroke-linecap: round; stroke: var(--c) }
.faded { stop-color: var(--c); stop-opacity: .55 } .strong { stop-color: var(--c) }
.flow .body { stroke-linecap: butt }
.flow .row { stroke-width: .8; opacity: .8 }
.flow text, .plain { font-family: "Inter", "Helvetica Neue", Helvetica, Arial,
  "Liberation Sans", "DejaVu Sans", sans-serif; font-size: 10.6px }
.flow circle { fill: var(--c); stroke: var(--c); stroke-width: 1.2 }
.flow circle.open { fill: var(--paper) }
.flow .halo { stroke: var(--paper); stroke-width: 7px; paint-order: stroke; stroke-linejoin: round }
.heading { font-style: italic; font-size: 14px }
.heading tspan { font-style: normal; font-size: 11px; fill: var(--soft) }
.hull { fill: var(--c) }
.hull-name { fill: var(--paper); font-size: 11px; letter-spacing: .22em; font-weight: 600 }
.title { font-size: 50px; letter-spacing: .34em }
.subtitle { font-style: italic; font-size: 17px; fill: var(--soft) }
.plate { fill: var(--paper); stroke: var(--ink) }
.plate-name { font-size: 17px; letter-spacing: .12em }
.small { font-size: 11.5px; font-style: italic; fill: var(--soft) }
.name { font-size: 13.5px; font-weight: 600 }
.reach { font-size: 12.5px; fill: var(--soft) }
%(classes)s
"""


def style() -> str:
    """The style sheet; the class `to-NAME` gives what a receiver's fall would cost as `--c`.

    The register names the receivers in the order of what falls with them; the last one is red.
    """
    *names, worst = RECEIVERS
    classes = [f".to-{n} {{ --c: var(--reach-{i % len(_LIGHT)}) }}" for i, n in enumerate(names)]
    classes.append(f".to-{worst} {{ --c: var(--reach-worst) }}")
    classes += [f".flow.to-{n} .body {{ stroke: url(#fade-{n}) }}" for n in RECEIVERS]
    return _STYLE % {
        "light": _variables(_LIGHT, _LIGHT_WORST),
        "dark": _variables(_DARK, _DARK_WORST),
        "classes": "\n".join(classes),
    }


def _variables(colours: tuple[str, ...], worst: str) -> str:
    named = [f"--reach-{index}: {colour};" for index, colour in enumerate(colours)]
    return " ".join([*named, f"--reach-worst: {worst};"])

"""The drawing shows the whole register, and nothing twice."""

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from teuthis.cli.verbs import app
from teuthis.errors import ConfigurationError
from teuthis.flows import FLOWS, RECEIVERS, Count, counts
from teuthis.flows.squid import draw
from teuthis.flows.squid.anatomy import ROW, anatomy
from teuthis.flows.squid.topology import GUEST, cables, ends, limbs

SVG = "{http://www.w3.org/2000/svg}"


def flows_of(drawing: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(drawing)
    return [each for each in root.iter(f"{SVG}g") if each.get("data-flow")]


def test_every_flow_is_one_line_with_words_for_those_who_cannot_see_it() -> None:
    drawn = flows_of(draw())
    assert sorted(str(each.get("data-flow")) for each in drawn) == sorted(FLOWS)
    for each in drawn:
        flow = FLOWS[str(each.get("data-flow"))]
        assert each.get("class") == f"flow to-{flow.receiver}"
        assert len(each.findall(f"{SVG}path[@class='arm']")) == 1
        assert each.findtext(f"{SVG}text") == flow.id
        assert each.findtext(f"{SVG}title") == f"{flow.id}: {flow.shape}"
        description = str(each.findtext(f"{SVG}desc"))
        assert all(words in description for words in (*flow.rejects.values(), flow.threat))


def test_the_same_register_gives_the_same_drawing() -> None:
    assert draw() == draw()


def test_it_asks_for_nothing_from_outside() -> None:
    addresses = set(re.findall(r"\w+://[^\"' ]+", draw()))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "<script" not in draw()


def test_the_legend_says_what_falls() -> None:
    words = "".join(ElementTree.fromstring(draw()).itertext())
    for name, receiver in RECEIVERS.items():
        assert name in words
        assert receiver.reach in words


def test_the_more_traffic_the_thicker() -> None:
    busy = {"agent.stdout": Count(1000, 1 << 20, 0), "agent.stderr": Count(1, 10, 0)}
    widths = {
        each.get("data-flow"): float(str(path.get("stroke-width")))
        for each in flows_of(draw(busy))
        for path in each.findall(f"{SVG}path[@class='arm']")
    }
    assert widths["agent.stdout"] > widths["agent.stderr"] > widths["agent.exit"]


def test_rows_neither_overlap_nor_leave_the_drawing() -> None:
    whole = anatomy(limbs(FLOWS.values()), dict.fromkeys(FLOWS, 1.25))
    for side in (-1, 1):
        heights = [row.y for group in whole.groups if group.side == side for row in group.rows]
        assert all(b - a >= ROW for a, b in pairwise(heights))
        assert heights[-1] <= whole.bottom


def test_every_flow_has_two_known_ends() -> None:
    for flow in FLOWS.values():
        way = ends(flow)
        # Whoever sends can fall too: what it reaches must be said.
        assert {way.source, way.target} <= set(RECEIVERS), f"{flow.id}: not in [receivers]"
        assert flow.receiver in (way.source, way.target)
    in_limbs = [flow for limb in limbs(FLOWS.values()) for flow in limb.flows]
    assert len(in_limbs) + len(cables(FLOWS.values())) == len(FLOWS)
    assert all(GUEST not in (ends(f).source, ends(f).target) for f in cables(FLOWS.values()))


def test_counters_go_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    some = {"agent.stdout": Count(2, 30, 1), "agent.stderr": Count(0, 0, 0)}
    counts.write(path, some)
    assert counts.read(path) == {"agent.stdout": Count(2, 30, 1)}
    result = CliRunner().invoke(app(), ["squid", "--counts", str(path)])
    assert result.exit_code == 0
    assert "2 times, 30 bytes, 1 refused" in result.output


@pytest.mark.parametrize(
    "text", ["", "[]", '{"agent.stdout": 3}', '{"no.such": {"count":1,"bytes":1,"rejected":0}}']
)
def test_a_file_without_counters_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"counts\.json"):
        counts.read(path)


def test_the_command_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "squid.svg"
    assert CliRunner().invoke(app(), ["squid", "-o", str(path)]).exit_code == 0
    assert path.read_text() == draw()
    assert CliRunner().invoke(app(), ["squid", "--run"]).exit_code == 2

"""Makes docs/threat-model.md from the register, the code and the prose beside it."""

from collections.abc import Iterable

from tests.register import measure
from teuthis.flows import FLOWS, RECEIVERS, Flow
from teuthis.flows.squid.topology import GUEST, cables, ends, limbs
from teuthis.jail.system_calls import NUMBERS

PROSE = measure.ROOT / "docs/threat-model.in.md"
PATH = measure.ROOT / "docs/threat-model.md"


def text() -> str:
    """The whole document."""
    page = PROSE.read_text(encoding="utf-8")
    parts = {
        "number": str(len(FLOWS)),
        "processes": "\n".join(_processes()),
        "known_calls": str(len(NUMBERS)),
        "system_calls": "\n".join(_system_calls()),
        "unsafe": str(measure.unsafe_blocks()["hypervisor"]),
        "flows": "\n".join(_flows()),
    }
    for name, value in parts.items():
        page = page.replace("{{" + name + "}}", value)
    return page


def _table(*rows: Iterable[object]) -> Iterable[str]:
    head, *body = rows
    head = list(head)
    yield _line(head)
    yield "|" + "---|" * len(head)
    yield from map(_line, body)


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _processes() -> Iterable[str]:
    rows: list[Iterable[object]] = [("who", "receives flows", "if it falls, the attacker has")]
    for name, receiver in RECEIVERS.items():
        number = sum(flow.receiver == name for flow in FLOWS.values())
        rows.append((f"**{name}**", number, receiver.reach))
    return _table(*rows)


def _system_calls() -> Iterable[str]:
    rows: list[Iterable[object]] = [("process", "number", "calls")]
    for process, calls in measure.system_calls().items():
        rows.append((process, len(calls), " ".join(f"`{call}`" for call in calls)))
    return _table(*rows)


def _flows() -> Iterable[str]:
    flows = list(FLOWS.values())
    processes = dict.fromkeys(limb.process for limb in limbs(flows))
    for process in processes:
        yield from (f"### Between the guest and the {process}", "")
        for limb in limbs(flows):
            if limb.process == process:
                yield from (f"#### {limb.kind.replace('-', ' ').capitalize()}", "")
                yield from _entries(limb.flows)
    yield from ("### Between processes", "")
    yield from _entries(cables(flows))


def _entries(flows: Iterable[Flow]) -> Iterable[str]:
    for flow in flows:
        yield from _entry(flow)


def _entry(flow: Flow) -> Iterable[str]:
    way = ends(flow)
    arrow = "↔" if way.both else "→"
    size = f"{flow.max_bytes:,}"
    if flow.min_bytes and flow.min_bytes != flow.max_bytes:
        size = f"{flow.min_bytes:,} to {size}"
    elif flow.min_bytes != flow.max_bytes:
        size = f"at most {size}"
    bounds = [f"{key} = {value:,}" for key, value in flow.values.items() if key.endswith("_max")]
    yield f"**`{flow.id}`** {way.source} {arrow} {way.target}: {flow.shape} ({size})"
    yield f"- *could go wrong*: {flow.threat}"
    yield f"- *checked*: {'; '.join((*flow.rejects.values(), *bounds)) or 'nothing to refuse'}"
    yield f"- *by*: `{flow.handler}`"
    falls = "nothing of the host's" if flow.receiver == GUEST else f"the {flow.receiver}"
    yield f"- *falls*: {falls}"
    if flow.left:
        yield f"- *left*: {flow.left}"
    evidence = [f"{len(flow.tests)} tests" if len(flow.tests) != 1 else "1 test"]
    evidence.append("random input" if flow.fuzz else "no random input")
    yield f"- *evidence*: {', '.join(evidence)}"
    yield ""


def main() -> None:
    """Writes the page."""
    PATH.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()

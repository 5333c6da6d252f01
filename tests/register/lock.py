"""The gate: the attack surface grows only when `flows.lock` is changed, with a reason.

`make flows-lock REASON="what grew and why it must"` writes the file anew and appends the reason.
"""

import datetime
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.register import measure

PATH = measure.ROOT / "flows.lock"
HEAD = """\
# The attack surface as it was last agreed to; the tests compare it with what there is. Growth fails
# until this file is changed in the same commit: make flows-lock REASON="what grew and why it must".
"""
TOLERANCE = {"bytes": 1.05, "lines": 1.1}
"""By how much a number may grow unnoticed: the compiler's moods, a line or two of a handler."""
LINES_SPARE = 4

Surface = dict[str, dict[str, Any]]


def surface() -> Surface:
    """The attack surface of this checkout, by section of the lock."""
    calls = measure.system_calls()
    return {
        "flows": measure.counts(),
        "limits": measure.limits(),
        "system_calls": dict(calls),
        "kvm_requests": dict(measure.kvm_requests()),
        "unsafe": measure.unsafe_blocks(),
        "bytes": {name: measure.program_bytes(name) for name in measure.PROGRAMS},
        "lines": measure.lines(),
    }


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as the lock has it."""

    what: str
    before: object
    now: object
    grew: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.before} → {self.now}"


def changes(locked: Surface, now: Surface) -> Iterable[Change]:
    """Everything that grew beyond its tolerance, or shrank."""
    for section in now:
        before, after = locked.get(section, {}), now[section]
        for name in sorted({*before, *after}):
            old, new = before.get(name), after.get(name)
            what = f"{section.replace('_', ' ')}: {name}"
            if old == new or (section == "bytes" and new is None):
                continue
            if isinstance(new, list) or isinstance(old, list):
                added, gone = set(new or ()) - set(old or ()), set(old or ()) - set(new or ())
                yield from (Change(what, "absent", call, True) for call in sorted(added))
                yield from (Change(what, call, "gone", False) for call in sorted(gone))
            elif new is None or (old is not None and new < old):
                yield Change(what, old, "gone" if new is None else new, False)
            elif old is None or new > allowed(section, old):
                yield Change(what, "absent" if old is None else old, new, True)


def allowed(section: str, old: int) -> float:
    """What `old` may grow to before the gate closes."""
    spare = LINES_SPARE if section == "lines" else 0
    return max(old * TOLERANCE.get(section, 1), old + spare)


def read() -> tuple[Surface, list[str]]:
    """The lock, and the reasons given so far."""
    document = tomllib.loads(PATH.read_text(encoding="utf-8"))
    reasons = document.pop("reasons")
    return document, reasons


def text(now: Surface, reasons: Iterable[str]) -> str:
    """The lock as a file."""
    parts = [HEAD]
    parts.append("reasons = [\n" + "".join(f"    {_value(r)},\n" for r in reasons) + "]\n")
    for section, entries in now.items():
        parts.append(f"[{section}]\n" + "".join(_entries(entries)))
    return "\n".join(parts)


def _entries(entries: Mapping[str, Any]) -> Iterable[str]:
    for name, value in sorted(entries.items()):
        if value is not None:
            yield f"{_value(name)} = {_value(value)}\n"


def _value(value: object) -> str:
    """TOML for strings, numbers and lists of strings, which is JSON for them too."""
    return json.dumps(value, ensure_ascii=False)


def main(reason: str) -> int:
    """Locks what there is now; growth needs a reason."""
    now = surface()
    locked, reasons = read() if PATH.exists() else ({}, [])
    grown = [change for change in changes(locked, now) if change.grew]
    if grown and not reason.strip():
        print("The attack surface grew:", *map(str, grown), sep="\n  ")
        print('Say why it must: make flows-lock REASON="…"')
        return 1
    if reason.strip():
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        reasons.append(f"{today}: {reason.strip()}")
    PATH.write_text(text(now, reasons), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))

"""Writes `docs/attacks.md`: what was tried from inside each process, and what answered.

`make attacks-report`, as root.
"""

import errno
import platform
from pathlib import Path

from teuthis.jail import landlock

from .catalogue import CATALOGUE, LEFT_OPEN
from .prison import SIGSYS, Prison
from .test_attacks import bait
from .test_system_calls import CALLS

HEAD = """\
# Attacks, and what answered

Made by `make attacks-report` on Linux {kernel} (Landlock ABI {landlock}), never by hand; the same
attacks run in every `make test`, as root and as an ordinary user (`tests/isolation/`).

The attacker has taken over one process of a VM and runs any code it likes there, behind the walls
that the process has raised around itself before it read the first byte of the guest's. *killed*
means that the kernel ended the process at the call. The columns *no filter* show the same
attacks behind all walls but the system-call filter, as if the attacker had found a hole in it;
where one of them works, the filter is the only wall.

Besides these, every system call number up to 64 beyond the newest that we know is tried: all but
{calls} are *killed*.
(`uretprobe` and `uprobe` are not put before any filter by recent kernels, and refused by those.)

| the attacker tries to | {processes} | no filter: {processes} | what stands there |
|---|{rules}---|
"""


def shown(answer: str) -> str:
    """An answer in words."""
    kind, _, number = answer.partition(" ")
    if answer == f"killed {SIGSYS}":
        return "killed"
    if answer == f"errno {errno.ENOSYS}":
        return "not in this kernel"
    return errno.errorcode[int(number)] if kind == "errno" else f"**{answer}**"


def main() -> None:
    calls = [attack.calls for attack in CATALOGUE]
    prisons = [Prison(process, "root") for process in CALLS]
    with bait():
        columns = [prison.attempt(calls, given=[LEFT_OPEN]) for prison in prisons]
        columns += [
            prison.attempt(calls, without=["system-calls"], given=[LEFT_OPEN]) for prison in prisons
        ]
    text = HEAD.format(
        kernel=platform.release().partition("-")[0],
        landlock=landlock.version(),
        calls=" and ".join(f"the {len(list_)} of the {name}" for name, list_ in CALLS.items()),
        processes=" | ".join(CALLS),
        rules="---|" * 2 * len(CALLS),
    )
    for attack, *answers in zip(CATALOGUE, *columns, strict=True):
        cells = [attack.goal, *map(shown, answers), attack.second_wall or "the filter alone"]
        text += f"| {' | '.join(cells)} |\n"
    (Path(__file__).parents[2] / "docs" / "attacks.md").write_text(text)


if __name__ == "__main__":
    main()

"""Where the Rust programs are, and whether they belong to us: the one place that knows.

A wheel carries them beside the interpreter's scripts, a checkout has them in cargo's target
directory: the hypervisor in `release`, the statically linked guest agent under its target's name.
`TEUTHIS_PROGRAMS` names another directory (a debug build, a packager's layout).
"""

import os
from functools import cache
from pathlib import Path

from teuthis.errors import ConfigurationError
from teuthis.flows.register import FINGERPRINT

HYPERVISOR = "teuthis-hypervisor"
HYPERVISOR_KVM = "teuthis-hypervisor-kvm"
"""The same without a software processor, which is a fifth of the code."""
GUEST_AGENT = "teuthis-guest"
_PIECE = 1 << 15


def find(name: str) -> Path:
    """The program `name`.

    Raises:
        ConfigurationError: it is in none of the places where it can be, or it was made from
            another register of flows than ours.
    """
    places = _places(name)
    if chosen := os.environ.get("TEUTHIS_PROGRAMS"):
        places = [Path(chosen)]
    for place in places:
        if os.access(place / name, os.X_OK):
            _check(place / name, (place / name).stat().st_mtime_ns)
            return place / name
    tried = ", ".join(str(place) for place in places)
    raise ConfigurationError(
        f"the program {name} was not found (looked in {tried}): "
        "build it with `make programs`, or set TEUTHIS_PROGRAMS to its directory"
    )


@cache
def _places(name: str) -> list[Path]:
    """Where it can be, of an installed package and of a checkout."""
    target = Path(__file__).resolve().parents[2] / "target"
    built = target / "x86_64-unknown-linux-gnu" if name == GUEST_AGENT else target
    if target.exists():
        return [built / "release"]
    import sysconfig

    return [Path(sysconfig.get_path("scripts"))]


@cache
def _check(program: Path, _changed: int) -> None:
    """Looks for our register's fingerprint in a program: otherwise numbers and limits differ."""
    looked_for, end = FINGERPRINT.encode(), b""
    with program.open("rb") as file:
        while piece := file.read(_PIECE):
            if looked_for in end + piece:
                return
            end = piece[-len(looked_for) :]
    raise ConfigurationError(
        f"{program} was made from another register of flows (flows.toml) than this "
        "package: rebuild it with `make programs`"
    )

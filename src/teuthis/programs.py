"""Where the Rust programs are: the one place that knows.

A wheel carries them beside the interpreter's scripts, a checkout has them in cargo's target
directory: the hypervisor in `release`, the statically linked guest agent under its target's name.
`TEUTHIS_PROGRAMS` names another directory (a debug build, a packager's layout).
"""

import os
import sysconfig
from pathlib import Path

from teuthis.errors import ConfigurationError

HYPERVISOR = "teuthis-hypervisor"
HYPERVISOR_KVM = "teuthis-hypervisor-kvm"
"""The same without a software processor, which is a fifth of the code."""
GUEST_AGENT = "teuthis-guest"


def find(name: str) -> Path:
    """The program `name`.

    Raises:
        ConfigurationError: it is in none of the places where it can be.
    """
    target = Path(__file__).resolve().parents[2] / "target"
    built = target / "x86_64-unknown-linux-gnu" if name == GUEST_AGENT else target
    places = [Path(sysconfig.get_path("scripts")), built / "release"]
    if chosen := os.environ.get("TEUTHIS_PROGRAMS"):
        places = [Path(chosen)]
    for place in places:
        if os.access(place / name, os.X_OK):
            return place / name
    tried = ", ".join(str(place) for place in places)
    raise ConfigurationError(
        f"the program {name} was not found (looked in {tried}): "
        "build it with `make programs`, or set TEUTHIS_PROGRAMS to its directory"
    )

"""Inputs with which a fuzzer once broke something: each runs again through its target.

They lie in `fuzz/regressions/NAME`, where NAME is the target's short name (`fuzz.target`); those of
the Rust targets are run by `hypervisor/tests/fuzz`.
"""

from fuzz.drive import load
from fuzz.target import ROOT, all_targets

DIRECTORY = ROOT / "fuzz/regressions"
NAMES = {target.short: target.name for target in all_targets()}
KEPT = sorted(DIRECTORY.glob("*/*")) if DIRECTORY.exists() else []


def test_each_kept_input_belongs_to_a_target() -> None:
    strangers = {path.parent.name for path in KEPT} - set(NAMES)
    assert not strangers, f"no target is called {sorted(strangers)}"


def test_what_once_broke_a_property_no_longer_does() -> None:
    for path in KEPT:
        target = NAMES[path.parent.name]
        if "::" in target:
            load(target)(path.read_bytes())

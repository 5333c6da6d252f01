"""Control groups where they are real: many hosts and containers have none to give."""

import pytest

from . import machine

pytestmark = pytest.mark.timeout(900)

SCRIPT = """
/busybox mkdir -p /sys/fs/cgroup
/busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
/busybox mount -t tmpfs evidence build/evidence
exec python -m pytest -q -p no:cacheprovider --timeout 400 tests/unit/root/test_cgroup.py
"""


def test_the_tests_of_control_groups_pass_without_a_skip() -> None:
    (machine.ROOT / "build/evidence").mkdir(parents=True, exist_ok=True)
    result = machine.run(["sh", "-c", SCRIPT], timeout=600)
    assert result.exit_code == 0, result.output
    assert "skipped" not in result.output.splitlines()[-1]

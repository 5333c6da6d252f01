"""Takes each wall away in turn, of each process, and demands that a test notices.

`make walls-matter`. A wall whose absence no test notices is either not there or not tested.
"""

import os
import subprocess
import sys
from pathlib import Path

from teuthis.jail.walls import NAMES

from .prison import build_prisoner

TESTS = ("test_walls.py", "test_attacks.py", "test_system_calls.py")


def notices(process: str, wall: str) -> str:
    """The test that fails without `wall`, or an empty text."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-k", f"{process}-", *(str(here / test) for test in TESTS)],
        env=os.environ | {"TEUTHIS_TEST_WITHOUT": wall},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition("::")[2].partition(" - ")[0] if failed else ""


def main() -> int:
    build_prisoner()
    unnoticed = 0
    for process in sys.argv[1:] or ("worker", "hypervisor", "switch", "replay"):
        for wall in NAMES:
            test = notices(process, wall)
            unnoticed += not test
            print(f"{process:11} without {wall:18} {test or 'NO TEST NOTICES'}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())

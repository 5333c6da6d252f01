import subprocess
import sys

import teuthis
from teuthis import errors


def test_the_public_names() -> None:
    assert all(hasattr(teuthis, name) for name in teuthis.__all__)
    assert teuthis.__all__ == sorted(
        teuthis.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )


def test_every_error_is_public() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TeuthisError) and name[0] != "_"
    }
    assert kinds <= set(teuthis.__all__)


def test_a_worker_does_not_carry_the_root_side() -> None:
    script = "import sys, teuthis.worker.main; print([n for n in sys.modules if '.root' in n])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"[]\n"

"""The interpreter's own tests: they pass in the guest as they do on the host's processor."""

import pytest

import teuthis

MODULES = [
    "test_float", "test_math", "test_struct", "test_hashlib", "test_zlib", "test_json", "test_re",
    "test_decimal", "test_array", "test_random", "test_statistics", "test_complex",
]  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", MODULES)
def test_standard_library(image: str, module: str) -> None:
    with teuthis.VM("1G", image=image) as vm:
        result = vm.run(["python3", "-m", "test", module], timeout=3500, cwd="/tmp")
    text = result.stdout.decode() + result.stderr.decode()
    assert result.exit_code == 0, text
    assert "Tests result: SUCCESS" in text or "Result: SUCCESS" in text, text

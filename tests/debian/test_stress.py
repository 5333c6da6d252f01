"""`stress-ng --verify` and `fio --verify`: a minute each, and nothing computed or stored wrong."""

from collections.abc import Iterator

import pytest

import teuthis


@pytest.fixture(scope="module")
def vm(image: str) -> Iterator[teuthis.VM]:
    with teuthis.VM("1G", image=image) as machine:
        yield machine


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "stressors",
    [
        ["--cpu", "1", "--cpu-method", "all"],
        ["--vm", "1", "--vm-bytes", "128M", "--vm-method", "all"],
        ["--hdd", "1", "--hdd-bytes", "64M", "--fallocate", "1", "--fallocate-bytes", "64M"],
    ],
    ids=["cpu", "memory", "file-system"],
)
def test_stress(vm: teuthis.VM, stressors: list[str]) -> None:
    command = ["stress-ng", *stressors, "--verify", "--timeout", "60s", "--temp-path", "/var/tmp"]
    result = vm.run([*command, "--metrics-brief"], timeout=1100)
    text = result.stdout.decode() + result.stderr.decode()
    assert result.exit_code == 0, text
    assert "fail" not in text.replace("failed: 0", "").lower(), text


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pattern", ["write", "randwrite", "randrw"])
def test_fio(vm: teuthis.VM, pattern: str) -> None:
    result = vm.run(
        [
            *("fio", "--name=x", f"--rw={pattern}", "--size=96M", "--direct=1", "--verify=crc32c"),
            *("--bsrange=4k-256k", "--filename=/var/tmp/fio", "--ioengine=psync", "--end_fsync=1"),
            *("--verify_fatal=1", "--do_verify=1", "--unlink=1"),
        ],
        timeout=1100,
    )
    text = result.stdout.decode() + result.stderr.decode()
    assert result.exit_code == 0, text
    assert "err= 0" in text, text

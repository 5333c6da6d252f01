"""Which processor a VM gets, on hosts whose KVM is absent, closed, or not what it seems."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from teuthis import programs
from teuthis.errors import ConfigurationError, HostError
from teuthis.root import processor


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEUTHIS_CACHE", str(tmp_path / "cache"))


def remembered(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "cache/kvm/verdict.json").read_bytes())


def test_the_program_for_kvm_has_no_software_processor() -> None:
    words = ["--memory-size", "4096", "--processor", "soft"]
    answers = {
        name: subprocess.run(
            [programs.find(name), *words], capture_output=True, text=True, check=False
        ).stderr
        for name in (programs.HYPERVISOR, programs.HYPERVISOR_KVM)
    }
    assert "`--memory-fd` is missing" in answers[programs.HYPERVISOR]
    assert "`--processor` is neither" in answers[programs.HYPERVISOR_KVM]


def test_ours_is_always_there() -> None:
    assert processor.choose("soft") == "soft"


def test_a_choice_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'tcg'.* auto, kvm, soft"):
        processor.choose("tcg")


def test_ours_is_one_processor() -> None:
    with pytest.raises(ConfigurationError, match="2 processors need KVM, and the software"):
        processor.choose("soft", 2)
    for cpus in (0, -1, processor.MAX_CPUS + 1):
        with pytest.raises(ConfigurationError, match="1 to 16"):
            processor.choose("auto", cpus)


def test_without_kvm_there_are_not_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "DEVICE", tmp_path / "kvm")
    for wanted in ("auto", "kvm"):
        with pytest.raises(HostError, match=r"2 processors need KVM, and .*this host has none"):
            processor.choose(wanted, 2)


def test_without_a_device_ours_is_taken_and_kvm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "DEVICE", tmp_path / "kvm")
    assert processor.choose("auto") == "soft"
    with pytest.raises(HostError, match=r"this host has none.*`soft` or `auto`"):
        processor.choose("kvm")


def test_a_device_that_is_no_kvm_is_tried_once_and_not_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "DEVICE", Path("/dev/null"))
    assert processor.choose("auto") == "soft"
    verdict = processor.kvm()
    assert not verdict.usable
    assert "version" in verdict.reason
    assert remembered(tmp_path)["verdict"] == {"usable": False, "reason": verdict.reason}


def test_a_verdict_holds_for_one_boot_and_is_looked_into_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "DEVICE", Path("/dev/null"))
    assert not processor.kvm().usable
    path = tmp_path / "cache/kvm/verdict.json"
    record = remembered(tmp_path)
    record["verdict"] = {"usable": True, "reason": ""}
    path.write_text(json.dumps(record))
    assert processor.kvm().usable
    assert not processor.kvm(anew=True).usable
    record["host"][0] = "another boot"
    path.write_text(json.dumps(record))
    assert not processor.kvm().usable

"""The store of images: names, what find says, and that nothing in use is removed."""

import os
from pathlib import Path

import pytest

from teuthis.errors import ConfigurationError, ImageError
from teuthis.images import store
from teuthis.images.store import Pin, Record
from teuthis.root.descriptors import Descriptors
from teuthis.root.disks import Disk, open_disks


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def make(name: str, *, initrd: bool = False) -> Path:
    home = store.directory() / name
    home.mkdir()
    parts = [store.DISK, store.KERNEL] + [store.INITRD] * initrd
    for part in parts:
        (home / part).write_bytes(bytes(512))
    pins = {part: Pin(512, "0" * 64) for part in parts}
    record = Record(source="a test", root="sda", release="6.1", epoch=0, files=pins)
    store.write_record(home, record)
    return home


def test_what_was_made_is_found(data: Path) -> None:
    home = make("one")
    image = store.find("one")
    assert (image.disk, image.kernel) == (home / "disk.img", home / "vmlinuz")
    assert (image.root, image.modules, image.initrd) == ("sda", None, None)
    assert home.parent == data / "images"
    assert make("two", initrd=True) / "initrd" == store.find("two").initrd
    assert [image.name for image in store.list_images()] == ["one", "two"]


def test_the_built_in_image_has_no_disk_and_stays() -> None:
    assert store.find("tiny").disk is None
    with pytest.raises(ConfigurationError, match="built in"):
        store.remove("tiny")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".hidden", "-rf", "a\0", "A", "é", "x" * 64, "a\n", " a"]
)
def test_names_that_no_image_may_have(name: str) -> None:
    for call in (store.find, store.remove, store.check_name):
        with pytest.raises(ConfigurationError, match="no name for an image"):
            call(name)


def test_an_absent_image() -> None:
    for call in (store.find, store.remove):
        with pytest.raises(ConfigurationError, match="there is no image 'absent'"):
            call("absent")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": 2}', b"\xff", b'{"format":1,"extra":0}']
)
def test_a_damaged_record(content: bytes) -> None:
    home = make("one")
    (home / "image.json").write_bytes(content)
    with pytest.raises(ImageError, match="is damaged"):
        store.find("one")
    assert store.list_images() == []
    store.remove("one")
    assert not home.exists()


def test_an_image_in_use_is_not_removed() -> None:
    home = make("one")
    disk = store.find("one").disk
    assert disk is not None
    with Descriptors() as held:
        open_disks([Disk(disk, copy_on_write=True)], held, held)
        open_disks([Disk(disk, copy_on_write=True)], held, held)
        with pytest.raises(ImageError, match="in use"):
            store.remove("one")
        assert (home / "image.json").exists()
    store.remove("one")
    assert list(store.directory().iterdir()) == []


def test_what_a_killed_build_left_is_removed_later(tmp_path: Path) -> None:
    old, young, busy = (store.directory() / f".new-{number}" for number in range(3))
    for path in (old, young, busy):
        path.mkdir()
        (path / "disk.img").write_bytes(b"x")
    with store.claim(busy):
        for path in (old, busy):
            os.utime(path, (1, 1))
        make("one")
        store.sweep()
    assert sorted(path.name for path in store.directory().iterdir()) == [".new-1", ".new-2", "one"]

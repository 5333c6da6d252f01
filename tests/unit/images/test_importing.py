"""Imports end to end, on this side: what appears in the store, and that nothing else changes."""

import gzip
import hashlib
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from teuthis.errors import ConfigurationError, ImageError
from teuthis.images import debian, ext4, host, make, store
from teuthis.images.importing import import_image
from teuthis.images.store import Image
from teuthis.images.tree import Tree

from .archives import Oci, archive, directory, entry, hard_link, symlink
from .test_tar import HOSTILE

ROOT = archive(
    directory("etc"), entry("etc/hostname", b"guest\n"), entry("bin/sh", b"#!", mode=0o755)
)
_RELEASE = "6.1.0-test"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel file that says its release, with one module beside it."""
    boot = tmp_path / "boot"
    drivers = boot / "modules/kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "hv_vmbus.ko").write_bytes(b"no module")
    (boot / "modules/modules.order").touch()
    image = bytearray(4096)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x300).to_bytes(2, "little")
    image[0x500 : 0x500 + len(_RELEASE)] = _RELEASE.encode()
    (boot / "vmlinuz").write_bytes(image)
    return boot / "vmlinuz"


def imported(source: Path, kernel: Path, **options: object) -> Image:
    settings: dict[str, Any] = {"size": 64 << 20, **options}
    return import_image(source, name="x", kernel=kernel, say=lambda step: None, **settings)


def listed(image: Image, path: str) -> str:
    command = [host.program("debugfs"), "-R", f"ls {path}", str(image.disk)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def _zstd(data: bytes) -> bytes:
    return zstandard.compress(data)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, _zstd])
def test_a_root_archive(pack: Callable[[bytes], bytes], kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(pack(ROOT))
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    image = imported(source, kernel)
    assert (image.root, image.initrd) == ("sda", None)
    assert image.record is not None
    assert (image.record.source, image.record.release) == ("root.tar", _RELEASE)
    assert "hostname" in listed(image, "/etc")
    assert "modules.dep" in listed(image, f"/lib/modules/{_RELEASE}")
    assert make.verify(image) == []
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before


def test_modules_follow_a_link_in_the_image(kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(archive(directory("usr/lib"), symlink("lib", "usr/lib")))
    image = imported(source, kernel)
    assert "hv_vmbus.ko" in listed(image, f"/usr/lib/modules/{_RELEASE}/kernel/drivers")


def test_a_container(kernel: Path, tmp_path: Path) -> None:
    made = Oci()
    layer = archive(entry("srv/app", b"1"), entry("old"))
    made.index(made.image([layer, archive(entry(".wh.old"))], config={"Cmd": ["/srv/app"]}))
    for source in (tmp_path / "oci.tar", made.directory(tmp_path / "oci")):
        if not source.exists():
            source.write_bytes(made.archive())
        image = imported(source, kernel)
        assert image.defaults.command == ("/srv/app",)
        assert "app" in listed(image, "/srv")
        assert "old" not in listed(image, "/")
        store.remove("x")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_system(pack: Callable[[bytes], bytes], kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "fs"
    ext4.write(Tree(), source, 64 << 20, 0)
    content = source.read_bytes()
    source.write_bytes(pack(content))
    image = imported(source, kernel)
    assert image.root == "sda"
    assert image.disk is not None
    assert image.disk.read_bytes() == content
    assert image.disk.stat().st_blocks * 512 < 32 << 20


def test_a_directory_that_is_no_layout(kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no file `oci-layout`"):
        imported(tmp_path / "boot", kernel)
    assert list(store.directory().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules": Path("/nowhere")}, "holds no modules"),
        ({"root": "../sda"}, "--root"),
        ({"size": 1024}, "unpacks to more"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, object], words: str, kernel: Path, tmp_path: Path
) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(gzip.compress(ROOT))
    with pytest.raises((ConfigurationError, ImageError), match=words):
        imported(source, kernel, **options)
    assert list(store.directory().iterdir()) == []


def test_a_name_that_is_taken(kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(ROOT)
    imported(source, kernel)
    with pytest.raises(ConfigurationError, match="there is an image 'x' already"):
        imported(source, kernel)


def _state(top: Path) -> dict[str, object]:
    """All that is below a directory: kinds, modes, contents."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = status.st_mode, status.st_nlink, hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Files that no archive may touch, where hostile ones would like to write."""
    top = tmp_path / "outside"
    top.mkdir()
    (top / "secret").write_bytes(b"secret")
    (top / "link").symlink_to("secret")
    return top


def contained(outside: Path) -> dict[str, bytes]:
    """Archives that are accepted, and whose ways out end inside."""
    return {
        "absolute": archive(entry(f"{outside}/secret", b"evil")),
        "link-then-file": archive(symlink("a", str(outside)), entry("a/secret", b"evil")),
        "relative-link-then-file": archive(
            symlink("a", "../" * 20 + str(outside)), entry("a/secret", b"evil")
        ),
        "link-then-same-name": archive(symlink("a", f"{outside}/secret"), entry("a", b"evil")),
        "link-then-directory": archive(symlink("a", str(outside)), directory("a", mode=0o777)),
        "setuid": archive(entry("su", b"x", mode=0o6755, uid=0)),
        "hard-link-to-link": archive(
            symlink("a", f"{outside}/secret"), hard_link("b", "a"), entry("b", b"evil")
        ),
        "quotes": archive(entry(f'a" \n"write {outside}/secret b'.replace("\n", " "), b"evil")),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "absolute",
        "link-then-file",
        "relative-link-then-file",
        "link-then-same-name",
        "link-then-directory",
        "setuid",
        "hard-link-to-link",
        "quotes",
    ],
)
def test_ways_out_end_inside(kind: str, outside: Path, kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(contained(outside)[kind])
    before = _state(outside)
    image = imported(source, kernel)
    assert _state(outside) == before
    assert sorted(path.name for path in store.directory().iterdir()) == ["x"]
    files = {"disk.img", "image.json", "modules", "vmlinuz"}
    assert {path.name for path in (store.directory() / "x").iterdir()} == files
    assert make.verify(image) == []


@pytest.mark.parametrize("kind", HOSTILE)
def test_refused_archives_leave_nothing_behind(
    kind: str, outside: Path, kernel: Path, tmp_path: Path
) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(gzip.compress(archive(*HOSTILE[kind])))
    before = _state(outside)
    with pytest.raises(ImageError):
        imported(source, kernel)
    assert _state(outside) == before
    assert list(store.directory().iterdir()) == []


def test_device_nodes_are_only_in_the_image(kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    node = entry("dev/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666)
    source.write_bytes(archive(node))
    image = imported(source, kernel)
    assert "sda" in listed(image, "/dev")
    assert not any(path.is_block_device() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, _zstd])
def test_bombs(pack: Callable[[bytes], bytes], kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "bomb"
    source.write_bytes(pack(archive(entry("zeros", bytes(64 << 20)))))
    with pytest.raises(ImageError, match="unpacks to more"):
        imported(source, kernel, size=8 << 20)
    assert list(store.directory().iterdir()) == []


def test_a_window_that_takes_all_memory(kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "bomb"
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    data = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(
        data, closefd=False
    ) as writer:
        writer.write(ROOT)
    source.write_bytes(data.getvalue())
    with pytest.raises(ImageError, match="damaged"):
        imported(source, kernel)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}]
    source.write_bytes(lzma.compress(ROOT, filters=filters))
    with pytest.raises(ImageError, match="damaged"):
        imported(source, kernel)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, _zstd])
def test_compressed_files_that_are_cut_off(
    pack: Callable[[bytes], bytes], kernel: Path, tmp_path: Path
) -> None:
    source = tmp_path / "cut"
    packed = pack(ROOT)
    source.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ImageError):
        imported(source, kernel)


@pytest.mark.parametrize("part", ["disk.img", "vmlinuz", "modules/kernel/drivers/hv_vmbus.ko"])
def test_verify_finds_one_changed_bit(part: str, kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(ROOT)
    image = imported(source, kernel)
    path = store.directory() / "x" / part
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1) or b"\0"
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert make.verify(image) == [part.split("/")[0]]


def test_verify_finds_a_missing_and_an_added_file(kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(ROOT)
    image = imported(source, kernel)
    home = store.directory() / "x"
    (home / "initrd").write_bytes(b"evil")
    assert make.verify(image) == ["initrd"]
    (home / "initrd").unlink()
    (home / "vmlinuz").unlink()
    assert make.verify(image) == ["vmlinuz"]


def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ImageError("broken")

    monkeypatch.setattr(debian, "bootstrap", broken)
    with pytest.raises(ImageError, match="broken"):
        make.build("debian-stock", say=lambda step: None)
    assert list(store.directory().iterdir()) == []
    with pytest.raises(ConfigurationError, match="debian, debian-stock"):
        make.build("windows", say=lambda step: None)


def test_an_image_that_is_there_is_not_built_again(kernel: Path, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(ROOT)
    imported(source, kernel)
    assert make.build("debian", name="x", say=lambda step: None).name == "x"
    with pytest.raises(ConfigurationError, match="already, without git"):
        make.build("debian", name="x", include=["git"], say=lambda step: None)

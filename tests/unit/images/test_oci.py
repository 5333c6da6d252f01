"""Container images: layers over layers, digests, platforms, several images in one archive."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from teuthis.errors import ConfigurationError, ImageError
from teuthis.images import oci
from teuthis.images.compression import Allowance
from teuthis.images.layout import Layout
from teuthis.images.store import Defaults
from teuthis.images.tree import Tree

from .archives import Oci, archive, digest, directory, docker_save, entry, symlink

LOWER = archive(directory("bin"), entry("bin/sh", b"1"), entry("gone", b"x"))
UPPER = archive(entry("bin/python", b"2"), entry(".wh.gone"))
CONFIG = {
    "Entrypoint": ["/bin/python"],
    "Cmd": ["-V"],
    "Env": ["A=1", "B=x=y", "none"],
    "WorkingDir": "/srv",
    "User": "1000:1000",
    "ExposedPorts": {},
}


def applied(
    path: Path, tmp_path: Path, tag: str | None = None, limit: int = 1 << 20
) -> tuple[list[str], Defaults]:
    tree = Tree()
    work = tmp_path / "work"
    work.mkdir()
    defaults = oci.apply(Layout(path), tree, work, Allowance(limit), tag)
    return [each for each, _ in tree.walk()][1:], defaults


def stored(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    return path


def good() -> Oci:
    made = Oci()
    packed = [gzip.compress(LOWER), zstandard.compress(UPPER)]
    return made.index(made.image(packed, plain=[LOWER, UPPER], config=CONFIG))


@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_layers_and_defaults(kind: str, tmp_path: Path) -> None:
    made = good()
    path = (
        stored(made.archive(), tmp_path)
        if kind == "archive"
        else made.directory(tmp_path / "layout")
    )
    assert oci.is_layout(Layout(path))
    paths, defaults = applied(path, tmp_path)
    assert paths == ["/bin", "/bin/python", "/bin/sh"]
    assert defaults == Defaults(
        ("/bin/python",), ("-V",), {"A": "1", "B": "x=y"}, "/srv", "1000:1000"
    )


def test_docker_save(tmp_path: Path) -> None:
    files = docker_save([LOWER, UPPER], CONFIG)
    data = archive(*(entry(name, content) for name, content in files.items()))
    paths, defaults = applied(stored(data, tmp_path), tmp_path)
    assert paths == ["/bin", "/bin/python", "/bin/sh"]
    assert defaults.entrypoint == ("/bin/python",)


def test_docker_save_with_a_layer_that_is_a_link(tmp_path: Path) -> None:
    files = docker_save([LOWER], {})
    name = f"{digest(LOWER)}/layer.tar"
    others = [entry(each, content) for each, content in files.items() if each != name]
    data = archive(entry("0/layer.tar", LOWER), symlink(name, "../0/layer.tar"), *others)
    assert "/bin/sh" in applied(stored(data, tmp_path), tmp_path)[0]


def test_the_platform_is_chosen_from_an_index(tmp_path: Path) -> None:
    made = Oci()
    arm = made.image([UPPER], architecture="arm64")
    intel = made.image([LOWER])
    manifests = [
        {**arm, "platform": {"os": "linux", "architecture": "arm64"}},
        {**intel, "platform": {"os": "linux", "architecture": "amd64"}},
        {**arm, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    made.index(made.document({"manifests": manifests}, kind))
    assert "/bin/sh" in applied(stored(made.archive(), tmp_path), tmp_path)[0]


def test_one_of_several_images_is_named_by_its_tag(tmp_path: Path) -> None:
    made = Oci()
    note = "org.opencontainers.image.ref.name"
    one = {**made.image([LOWER]), "annotations": {note: "one"}}
    two = {**made.image([UPPER]), "annotations": {note: "two"}}
    path = stored(made.index(one, two).archive(), tmp_path)
    for tag in (None, "three"):
        with pytest.raises(ConfigurationError, match="--tag; there are: one, two"):
            oci.apply(Layout(path), Tree(), tmp_path, Allowance(1 << 20), tag)
    assert "/bin/python" in applied(path, tmp_path, "two")[0]


def test_names_in_a_message_command_no_terminal(tmp_path: Path) -> None:
    made = Oci()
    note = "org.opencontainers.image.ref.name"
    one = {**made.image([LOWER]), "annotations": {note: "\x1b]52;c;eA==\x07one\x9b2J"}}
    path = stored(made.index(one, made.image([UPPER])).archive(), tmp_path)
    with pytest.raises(ConfigurationError, match="--tag; there are: ") as raised:
        oci.apply(Layout(path), Tree(), tmp_path, Allowance(1 << 20), None)
    assert str(raised.value).isprintable()


def _changed(made: Oci, old: bytes, new: bytes) -> Oci:
    """The same names, one blob with other bytes in it."""
    for name, content in made.files.items():
        if old in content:
            made.files[name] = content.replace(old, new)
            return made
    raise AssertionError(old)


def _loop() -> Oci:
    """An index whose digest is right cannot hold itself; deep nesting can be had."""
    made = Oci()
    inner = made.image([LOWER])
    for _ in range(6):
        kind = "application/vnd.oci.image.index.v1+json"
        inner = made.document({"manifests": [inner]}, kind)
    return made.index(inner)


def _itself() -> Oci:
    made = Oci()
    kind = "application/vnd.oci.image.index.v1+json"
    name = "ab" * 32
    descriptor = {"mediaType": kind, "digest": f"sha256:{name}", "size": 2}
    content = json.dumps({"manifests": [descriptor]}).encode()
    made.files[f"blobs/sha256/{name}"] = content
    return made.index({**descriptor, "size": len(content)})


def _with(**changes: Any) -> Oci:
    made = Oci()
    return made.index({**made.image([LOWER]), **changes})


def _config(**changes: Any) -> Oci:
    """An image whose configuration says something else."""
    made = Oci()
    good = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}}
    config = made.document({**good, **changes}, "application/vnd.oci.image.config.v1+json")
    kind = "application/vnd.oci.image.manifest.v1+json"
    return made.index(made.document({"config": config, "layers": []}, kind))


def _missing() -> Oci:
    made = good()
    del made.files[next(name for name in made.files if name.startswith("blobs"))]
    return made


def _document(content: bytes) -> Oci:
    made = good()
    made.files["index.json"] = content
    return made


def _other_layer() -> Oci:
    made = Oci()
    return made.index(made.image([gzip.compress(LOWER)], plain=[UPPER]))


HOSTILE: dict[str, Callable[[], Oci]] = {
    "changed-layer": lambda: _changed(good(), gzip.compress(LOWER), gzip.compress(UPPER)),
    "changed-config": lambda: _changed(good(), b'"amd64"', b'"amd65"'),
    "changed-manifest": lambda: _changed(good(), b'"schemaVersion": 2', b'"schemaVersion": 3'),
    "wrong-size": lambda: _with(size=1),
    "negative-size": lambda: _with(size=-1),
    "path-as-digest": lambda: _with(digest="sha256:../../../../etc/passwd"),
    "other-digest": lambda: _with(digest="md5:" + "0" * 32),
    "not-an-image": lambda: _with(mediaType="application/vnd.cncf.helm.chart"),
    "wrong-diff-id": _other_layer,
    "missing-blob": _missing,
    "nested": _loop,
    "loop": _itself,
    "other-platform": lambda: _config(architecture="arm64"),
    "too-few-layers": lambda: _config(rootfs={"diff_ids": [f"sha256:{'0' * 64}"]}),
    "nul-in-command": lambda: _config(config={"Cmd": ["a\0b"]}),
    "no-json": lambda: _document(b"no"),
    "other-json": lambda: _document(b'{"manifests": 1}'),
    "deep-json": lambda: _document(b"[" * 100_000),
    "empty-index": lambda: _document(b'{"manifests": []}'),
    "huge-document": lambda: _document(b" " * (5 << 20)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_images_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises((ImageError, ConfigurationError)):
        applied(stored(HOSTILE[kind]().archive(), tmp_path), tmp_path)


def test_a_layer_that_unpacks_to_too_much(tmp_path: Path) -> None:
    bomb = archive(entry("zeros", bytes(32 << 20)))
    made = Oci()
    made.index(made.image([gzip.compress(bomb)], plain=[bomb]))
    with pytest.raises(ImageError, match="unpacks to more"):
        applied(stored(made.archive(), tmp_path), tmp_path)
    sizes = [path.stat().st_size for path in (tmp_path / "work").iterdir()]
    assert sum(sizes) <= 1 << 20


def test_docker_save_whose_files_are_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(LOWER)
    files = docker_save([LOWER], {})
    name = f"{digest(LOWER)}/layer.tar"
    others = [entry(each, content) for each, content in files.items() if each != name]
    for member in (symlink(name, str(secret)), symlink(name, "../../secret"), symlink(name, name)):
        path = stored(archive(member, *others), tmp_path)
        with pytest.raises(ImageError, match="lacks its file"):
            oci.apply(Layout(path), Tree(), tmp_path, Allowance(1 << 20), None)


@pytest.mark.parametrize("kind", ["file-link", "directory-link", "fifo", "directory"])
def test_a_layout_directory_cannot_name_files_elsewhere(kind: str, tmp_path: Path) -> None:
    made = good()
    top = made.directory(tmp_path / "layout")
    elsewhere = tmp_path / "elsewhere"
    if kind == "directory-link":
        (top / "blobs").rename(elsewhere)
        (top / "blobs").symlink_to(elsewhere)
    else:
        for blob in (top / "blobs/sha256").iterdir():
            blob.rename(tmp_path / blob.name)
            if kind == "file-link":
                blob.symlink_to(tmp_path / blob.name)
            elif kind == "fifo":
                os.mkfifo(blob)
            else:
                blob.mkdir()
    with pytest.raises(ImageError, match=r"lacks its file|not a plain file"):
        applied(top, tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../x", "a\0b"])
def test_names_in_a_layout_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    with pytest.raises(ImageError, match="outside"):
        Layout(tmp_path / "layout").open(name)

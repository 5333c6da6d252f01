"""Reads container images: OCI layouts (a directory or an archive) and what `docker save` writes.

Every blob is found by its digest and must have it, size and all; layers must also have the digests
that the configuration gives for them unpacked. Reference: OCI image-spec 1.1.
"""

import hashlib
import posixpath
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from teuthis.errors import ConfigurationError, ImageError
from teuthis.images import tar
from teuthis.images.compression import Allowance, unpack
from teuthis.images.layout import Layout, Part
from teuthis.images.store import Defaults
from teuthis.images.tree import Tree
from teuthis.root.console import harmless

_MAX_DOCUMENT: Final = 4 << 20
_MAX_LAYERS: Final = 512
_MAX_NESTING: Final = 4
_CHUNK: Final = 1 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAMED_BY_DIGEST: Final = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")
_REFERENCE: Final = "org.opencontainers.image.ref.name"
_FULL_NAME: Final = "io.containerd.image.name"
_WANTED: Final = ("linux", "amd64")
_CONFIGURATIONS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LAYER_KIND: Final = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar"
    r"|docker\.image\.rootfs\.diff\.tar)([.+](gzip|zstd))?"
)


class _Platform(msgspec.Struct):
    architecture: str = ""
    os: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: _Platform | None = None
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Saved(msgspec.Struct, rename="pascal"):
    """One image in `manifest.json` of `docker save`."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Settings(msgspec.Struct, rename="pascal"):
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str = ""
    user: str = ""


class _RootFS(msgspec.Struct):
    diff_ids: list[str]


class _Configuration(msgspec.Struct):
    architecture: str
    os: str
    rootfs: _RootFS
    config: _Settings | None = None


_Document = TypeVar("_Document", _Index, _Manifest, _Configuration, list[_Saved])


_Layer = Callable[[], Part]
"""Opens a layer."""


def apply(
    layout: Layout, tree: Tree, work: Path, allowance: Allowance, tag: str | None
) -> Defaults:
    """Applies the layers of an image to a tree; returns how programs in it want to be started.

    Args:
        layout: where the image is.
        tree: what its layers are applied to.
        work: a directory for the unpacked layers, which stay until the tree has been written.
        allowance: how many bytes they may have.
        tag: which image, if there are several.

    Raises:
        ImageError: something is missing, damaged, or not what its digest says.
        ConfigurationError: there are several images, and `tag` names none of them.
    """
    if layout.has("index.json"):
        configuration, layers = _from_index(layout, tag)
    else:
        configuration, layers = _from_docker_save(layout, tag)
    if (configuration.os, configuration.architecture) != _WANTED:
        raise ImageError(
            f"the image is for {configuration.os}/{configuration.architecture}, not linux/amd64"
        )
    digests = configuration.rootfs.diff_ids
    if len(digests) != len(layers) or len(layers) > _MAX_LAYERS:
        raise ImageError(f"the image has {len(layers)} layers and {len(digests)} layer digests")
    limit = allowance.left
    for number, (layer, digest) in enumerate(zip(layers, digests, strict=True)):
        spool = work / f"layer-{number}"
        with layer() as part:
            found = unpack(part, spool, allowance)
        if f"sha256:{found}" != digest:
            raise ImageError(f"layer {number + 1} is not what its digest says: it is damaged")
        tree.new_layer()
        tar.apply(spool, tree, limit, whiteouts=True)
    return _defaults(configuration.config or _Settings())


def is_layout(layout: Layout) -> bool:
    """Whether this looks like a container image, rather than a root file system."""
    return layout.has("oci-layout") or layout.has("manifest.json")


def _from_index(layout: Layout, tag: str | None) -> tuple[_Configuration, list[_Layer]]:
    index = _document(layout.open("index.json"), _Index)
    named = {_name(each): each for each in index.manifests if _fits(each)}
    chosen = _choose(named, tag)
    for _ in range(_MAX_NESTING):
        if chosen.media_type not in _INDEXES:
            break
        inner = _document(_blob(layout, chosen), _Index).manifests
        fitting = [each for each in inner if _fits(each)]
        if not fitting:
            raise ImageError("the image exists for other platforms only, not for linux/amd64")
        chosen = fitting[0]
    if chosen.media_type not in _MANIFESTS:
        raise ImageError(f"this is not an image but {chosen.media_type[:100]!r}")
    manifest = _document(_blob(layout, chosen), _Manifest)
    if manifest.config.media_type not in _CONFIGURATIONS:
        raise ImageError(f"this is not an image but {manifest.config.media_type[:100]!r}")
    for layer in manifest.layers:
        if not _LAYER_KIND.fullmatch(layer.media_type):
            raise ImageError(f"a layer is of an unknown kind: {layer.media_type[:100]!r}")
    configuration = _document(_blob(layout, manifest.config), _Configuration)
    return configuration, [partial(_blob, layout, layer) for layer in manifest.layers]


def _from_docker_save(layout: Layout, tag: str | None) -> tuple[_Configuration, list[_Layer]]:
    saved = _document(layout.open("manifest.json"), list[_Saved])
    named = {name: each for each in saved for name in each.repo_tags or [each.config]}
    chosen = _choose(named, tag)
    part = layout.open(chosen.config)
    if match := _NAMED_BY_DIGEST.fullmatch(chosen.config):
        _check(part, f"sha256:{match[1]}", part.size)
    return _document(part, _Configuration), [partial(layout.open, name) for name in chosen.layers]


_Choice = TypeVar("_Choice", _Descriptor, _Saved)


def _choose(named: dict[str, _Choice], tag: str | None) -> _Choice:
    if not named:
        raise ImageError("there is no image for linux/amd64 in it")
    if tag is None and len({id(each) for each in named.values()}) == 1:
        return next(iter(named.values()))
    if tag is not None and tag in named:
        return named[tag]
    names = ", ".join(harmless(name[:100].encode()) for name in sorted(named)[:20])
    raise ConfigurationError(f"say which image with --tag; there are: {names}")


def _name(descriptor: _Descriptor) -> str:
    notes = descriptor.annotations
    return notes.get(_FULL_NAME) or notes.get(_REFERENCE) or descriptor.digest


def _fits(descriptor: _Descriptor) -> bool:
    platform = descriptor.platform
    return platform is None or (platform.os, platform.architecture) == _WANTED


def _blob(layout: Layout, descriptor: _Descriptor) -> Part:
    """The content that a descriptor names, after its size and digest have been compared."""
    if not _DIGEST.fullmatch(descriptor.digest):
        raise ImageError(f"a digest that is not SHA-256: {descriptor.digest[:100]!r}")
    part = layout.open("blobs/sha256/" + descriptor.digest.removeprefix("sha256:"))
    _check(part, descriptor.digest, descriptor.size)
    return part


def _check(part: Part, digest: str, size: int) -> None:
    found = hashlib.sha256()
    if part.size == size:
        while data := part.read(_CHUNK):
            found.update(data)
        part.seek(0)
    if f"sha256:{found.hexdigest()}" != digest:
        part.close()
        raise ImageError(f"the blob {digest} is not what its digest says: it is damaged")


def _document(part: Part, kind: type[_Document]) -> _Document:
    with part:
        if part.size > _MAX_DOCUMENT:
            raise ImageError(f"a document of {part.size} bytes; {_MAX_DOCUMENT} are allowed")
        try:
            return msgspec.json.decode(part.read(part.size), type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ImageError(f"the image's description makes no sense: {error}") from error


def _defaults(settings: _Settings) -> Defaults:
    pairs = (variable.partition("=") for variable in settings.env or ())
    return Defaults(
        entrypoint=_texts(settings.entrypoint or ()),
        command=_texts(settings.cmd or ()),
        env={name: value for name, equals, value in pairs if name and equals},
        workdir=posixpath.join("/", settings.working_dir),
        user=settings.user,
    )


def _texts(words: Sequence[str]) -> tuple[str, ...]:
    if any("\0" in word for word in words):
        raise ImageError("the image's command has a NUL in it")
    return tuple(words)

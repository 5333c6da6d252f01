"""Archives for the tests, written by hand with `tarfile`: honest ones and hostile ones."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Member = tuple[str, dict[str, Any], bytes]


def entry(name: str, content: bytes = b"", **fields: Any) -> Member:
    """A member: a file unless `type` says otherwise."""
    return name, fields, content


def directory(name: str, **fields: Any) -> Member:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str) -> Member:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Member:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def archive(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of these members, as they are: nothing is made harmless."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as made:
        for name, fields, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            made.addfile(info, io.BytesIO(content))
    return data.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Oci:
    """An OCI layout in the making: blobs by digest."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def blob(self, data: bytes, kind: str) -> dict[str, Any]:
        """Adds a blob; returns its descriptor."""
        self.files[f"blobs/sha256/{digest(data)}"] = data
        return {"mediaType": kind, "digest": f"sha256:{digest(data)}", "size": len(data)}

    def image(
        self,
        layers: Sequence[bytes],
        *,
        plain: Sequence[bytes] | None = None,
        config: Mapping[str, Any] | None = None,
        architecture: str = "amd64",
    ) -> dict[str, Any]:
        """Adds an image; `plain` are its layers unpacked, if they are compressed."""
        configuration = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{digest(layer)}" for layer in plain or layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.document(configuration, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                self.blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers
            ],
        }
        return self.document(manifest, "application/vnd.oci.image.manifest.v1+json")

    def document(self, content: Any, kind: str) -> dict[str, Any]:
        return self.blob(json.dumps(content).encode(), kind)

    def index(self, *manifests: dict[str, Any]) -> "Oci":
        self.files["index.json"] = json.dumps({"manifests": manifests}).encode()
        return self

    def archive(self) -> bytes:
        return archive(*(entry(name, content) for name, content in self.files.items()))

    def directory(self, top: Path) -> Path:
        for name, content in self.files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(content)
        return top


def docker_save(
    layers: Sequence[bytes], config: Mapping[str, Any], tags: Sequence[str] = ("x:latest",)
) -> dict[str, bytes]:
    """The files that `docker save` writes (before version 25)."""
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"diff_ids": [f"sha256:{digest(layer)}" for layer in layers]},
        }
    ).encode()
    names = [f"{digest(layer)}/layer.tar" for layer in layers]
    saved = [{"Config": f"{digest(configuration)}.json", "RepoTags": tags, "Layers": names}]
    return {
        f"{digest(configuration)}.json": configuration,
        **dict(zip(names, layers, strict=True)),
        "manifest.json": json.dumps(saved).encode(),
    }

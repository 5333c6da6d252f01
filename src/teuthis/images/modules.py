"""Kernel modules: which files a driver needs, in the order in which they must be loaded."""

import gzip
import lzma
from pathlib import Path

import zstandard

from teuthis.errors import KernelError

TRANSPORT = ("hv_vmbus", "hv_sock")
"""What the agent needs to speak with the host."""
INTEGRATION = ("hv_utils",)
STORAGE = ("hv_storvsc", "sd_mod")
ROOT = (*STORAGE, "ext4")
NETWORK = ("hv_netvsc",)

_COMPRESSED = {".xz": lzma.decompress, ".gz": gzip.decompress}
_MAX_MODULE = 64 << 20
_SIGNED = b"~Module signature appended~\n"


class ModuleTree:
    """The modules of one kernel: a directory with `kernel/…` and `modules.builtin`."""

    def __init__(self, top: Path) -> None:
        self._files = {_name(path): path for path in top.rglob("*.ko*")}
        builtin = top / "modules.builtin"
        lines = builtin.read_text().split() if builtin.exists() else []
        self._builtin = {_name(Path(line)) for line in lines}

    def load_order(self, wanted: tuple[str, ...]) -> dict[str, bytes]:
        """Contents of the modules `wanted` and of all they depend on, in load order, by name.

        Raises:
            KernelError: a module is neither here nor built into the kernel.
        """
        order: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in order or name in self._builtin:
                return
            if name not in self._files:
                raise KernelError(
                    f"this kernel has no module {name}, which its guests need: "
                    "use a kernel with Hyper-V guest support (every cloud kernel has it)"
                )
            content = _read(self._files[name])
            for dependency in _dependencies(content):
                add(dependency)
            order[name] = content

        for name in wanted:
            add(name)
        return order


def _name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_MODULE)
    elif path.suffix in _COMPRESSED:
        data = _COMPRESSED[path.suffix](data)
    return _without_signature(data)


def _without_signature(module: bytes) -> bytes:
    """The module as the guest loads it.

    Whoever could change a module here could change the kernel as well, and apt has checked both: a
    check inside the guest would prove nothing, and costs it a sixth of its boot.
    Layout at the end (Linux `include/linux/module_signature.h`): signature, 12 bytes of which the
    last 4 are its length, a mark.
    """
    end = len(module) - len(_SIGNED)
    if not module.endswith(_SIGNED) or end < 12:
        return module
    return module[: max(0, end - 12 - int.from_bytes(module[end - 4 : end], "big"))]


def _dependencies(module: bytes) -> list[str]:
    """The names behind `depends=` in a module's `.modinfo` section (strings that end with NUL)."""
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    start += len(b"\0depends=")
    listed = module[start : module.index(b"\0", start)].decode("ascii", "replace")
    return [name.replace("-", "_") for name in listed.split(",") if name]

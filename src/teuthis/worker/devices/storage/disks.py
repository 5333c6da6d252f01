"""The backend of a disk, from the descriptors that the root side gave."""

from teuthis.protocol import DiskConfig
from teuthis.worker.devices.storage.backend import Backend, File
from teuthis.worker.devices.storage.layer import Layer


def disk_backend(disk: DiskConfig) -> Backend:
    """What `disk` stores its bytes in. Reads nothing yet."""
    if disk.layer is None:
        return File(disk.file, disk.size, writable=disk.writable, punches=disk.punches)
    base = File(disk.file, disk.size, writable=False, punches=False)
    own = File(disk.layer.file, disk.size, writable=True, punches=disk.punches)
    lower = None
    if disk.layer.lower is not None:
        lower = File(disk.layer.lower, disk.size, writable=False, punches=False)
    return Layer(base, own, lower, limit=disk.layer.limit, kept=disk.layer.kept)

"""What a VM has before it is known what it starts from.

User ids, a control group, and a worker that is born and raises its first walls while the root side
reads a template or loads a kernel.
"""

from collections.abc import Collection
from typing import Self

import msgspec

from teuthis.errors import HostError
from teuthis.jail import host, identity
from teuthis.protocol import Birth
from teuthis.root import cgroup, zygote
from teuthis.root.descriptors import Descriptors


class Reserved:
    """A VM's own, until somebody takes it over; in the end nothing of it is left.

    Attributes:
        memory_size: of its guest, in bytes.
        cpus: processors of its guest.
        allowed: names of walls that may be missing.
        own: user ids of its processes.
        group: its control group.
        birth: its worker.
    """

    def __init__(
        self, memory_size: int, cpus: int = 1, allow_missing_walls: Collection[str] = ()
    ) -> None:
        """Raises `ConfigurationError` for a wall that does not exist, `HostError`."""
        self.memory_size = memory_size
        self.cpus = cpus
        self.allowed = host.check_names(allow_missing_walls)
        with Descriptors() as held:
            try:
                self.own = held.enter_context(identity.lease())
                self.group = held.enter_context(cgroup.lease(memory_size, cpus, cgroup.place()))
                self.birth = zygote.ask(msgspec.json.encode(Birth(self.own.worker, self.allowed)))
            except OSError as error:
                raise HostError(f"could not start a VM: {error}") from error
            held.callback(self.birth.end)
            self._held = held.pop_all()

    def take_over(self) -> Descriptors:
        """Whoever calls this has it from now on, and closes what is returned."""
        return self._held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

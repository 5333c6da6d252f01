"""The control socket between the root side and one VM's worker: requests down, statuses up.

Both directions are packets of one ``AF_UNIX``/``SOCK_SEQPACKET`` pair. Requests are msgpack
documents with descriptors attached (`socket.send_fds`); the root side is trusted, yet the worker
decodes them strictly. Statuses are 32 fixed bytes: all that a worker, which a guest may have taken
over, can tell the root side. Neither side ever finds guest text here.
"""

import enum
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from teuthis.flows import FLOWS

VERSION: Final = 1
_END = FLOWS["link.end"].values
_STATUS_VALUES = FLOWS["control.status"].values
MAX_REQUEST: Final = FLOWS["control.request"].max_bytes
"""Largest encoded request in bytes."""


class ProtocolError(ValueError):
    """A packet that is not of this protocol."""


class Ended(enum.IntEnum):
    """Why a VM ended. The first are the hypervisor's own reasons (END on the partition link)."""

    POWER_OFF = _END["power_off"]
    RESET = _END["reset"]
    TRIPLE_FAULT = _END["triple_fault"]
    GUEST_CRASH = _END["guest_crash"]
    """The guest reported a crash; its last words are in the console pipe."""
    HALTED = _END["halted"]
    """Halted with interrupts disabled: nothing can wake it."""
    WORKER_VIOLATION = _END["worker_violation"]
    STOPPED = _END["stopped"]
    STATE_REFUSED = _END["state_refused"]
    """The saved machine that it was to go on from is damaged, or another program's."""
    AGENT_VIOLATION = _STATUS_VALUES["reason_agent"]
    MESSAGES_NOT_TAKEN = _STATUS_VALUES["reason_messages"]
    """The guest does not take its synthetic-interrupt messages."""
    LINK_VIOLATION = _STATUS_VALUES["reason_link"]
    HYPERVISOR_DIED = _STATUS_VALUES["reason_hypervisor_died"]
    VMBUS_LIMIT = _STATUS_VALUES["reason_vmbus"]
    INTERNAL_ERROR = _STATUS_VALUES["reason_internal"]
    """A defect in the worker."""
    LAYER_DAMAGED = _STATUS_VALUES["reason_layer_damaged"]
    """A kept layer's map is none."""
    HUNG = _STATUS_VALUES["reason_hung"]
    """Did not answer heartbeats, and its owner wants such a guest ended."""


class Health(enum.IntEnum):
    """Whether the guest's kernel answers heartbeats."""

    UNKNOWN = 0
    """It has not answered yet, or cannot."""
    ALIVE = 1
    HUNG = 2
    """It has answered before, or promised to, and does not for several beats now."""


# ---- worker configuration ------------------------------------------------------------------------

Descriptor = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class LayerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A copy-on-write layer over a disk's file (`teuthis.layer`)."""

    file: Descriptor
    limit: Annotated[int, msgspec.Meta(ge=0)]
    """Bytes that its data may take."""
    kept: bool
    """Whether it is to be used again."""
    lower: Descriptor | None = None
    """The layer below, of a saved machine, which is only read."""


class DiskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One disk; its place in the list is its LUN."""

    file: Descriptor
    size: Annotated[int, msgspec.Meta(ge=512, le=1 << 60, multiple_of=512)]
    writable: bool
    """Whether the guest may write to it: to the layer, where there is one."""
    punches: bool
    """Whether the file that is written to can give space back."""
    layer: LayerConfig | None = None

    @property
    def written(self) -> int | None:
        """The descriptor that is written to."""
        if not self.writable:
            return None
        return self.layer.file if self.layer else self.file

    def descriptors(self) -> list[int]:
        """Its descriptors."""
        if self.layer is None:
            return [self.file]
        lower = self.layer.lower
        return [self.file, self.layer.file, *([] if lower is None else [lower])]

    def renumbered(self, now: Mapping[int, int]) -> "DiskConfig":
        """The same with other numbers for its descriptors."""
        layer = self.layer
        if layer is not None:
            lower = None if layer.lower is None else now[layer.lower]
            layer = replace(layer, file=now[layer.file], lower=lower)
        return replace(self, file=now[self.file], layer=layer)


PASST_MAC: Final = "02:7e:07:00:00:01"
"""passt's own address towards a guest; on its command line it tells ours from others."""


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VM's network adapter: the socket to its switch, its MAC address, the largest payload."""

    frames: Descriptor
    mac: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    mtu: Annotated[int, msgspec.Meta(ge=576, le=65520)]


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Saved memory as the source of a restored VM's: see `teuthis.worker.template`."""

    memory: Descriptor
    """Many VMs read it and none writes."""
    pages: Descriptor
    """Which pages are in the VM's own memory."""

    def descriptors(self) -> list[int]:
        """All descriptors in here."""
        return [self.memory, self.pages]


class SavedMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a restored VM goes on: descriptors of the worker's state and of the memory."""

    state: Descriptor
    template: Template | None = None
    """Where pages are from that are not in the VM's own memory; None: all are."""
    news: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    """What our agent is told that the saved machine did not have, as on a kernel's command line."""

    def renumbered(self, now: Mapping[int, int]) -> "SavedMachine":
        """The same with other numbers for its descriptors."""
        template = self.template
        if template is not None:
            template = Template(now[template.memory], now[template.pages])
        return replace(self, state=now[self.state], template=template)


class Birth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker is born with: a JSON document. It says nothing of the VM that it will have."""

    uid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)] | None = None
    """The worker's own user id, when root starts it."""
    allow_missing_walls: frozenset[str] = frozenset()


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The VM that a worker is given: a JSON document, in which descriptors are numbers."""

    memory: Descriptor
    memory_size: Annotated[int, msgspec.Meta(ge=4096, le=1 << 46)]
    link: Descriptor
    doorbells: Descriptor
    to_worker: Descriptor
    to_hypervisor: Descriptor
    counters: Descriptor
    control: Descriptor
    console: Descriptor
    network: NetworkConfig | None = None
    processors: Annotated[
        int, msgspec.Meta(ge=1, le=FLOWS["kvm.apic"].values["processors_max"])
    ] = 1
    agent: bool = True
    """Whether our agent is in the guest; else the VM is ready when its heart beats."""
    disks: tuple[DiskConfig, ...] = ()
    saved: SavedMachine | None = None
    lockstep: bool = False
    """Whether the VM is recorded: guest and worker run in turns."""

    def descriptors(self) -> list[int]:
        """All descriptors in here."""
        saved = self.saved
        template = None if saved is None else saved.template
        return [
            *([] if saved is None else [saved.state]),
            *([] if template is None else template.descriptors()),
            *(getattr(self, name) for name in _ALWAYS),
            *(descriptor for disk in self.disks for descriptor in disk.descriptors()),
            *([] if self.network is None else [self.network.frames]),
        ]

    def renumbered(self, received: Sequence[int]) -> "WorkerConfig":
        """The same for whoever has received `descriptors`, in this order, under these numbers.

        Raises:
            ValueError: there are more or fewer of them.
        """
        now = dict(zip(self.descriptors(), received, strict=True))
        saved, network = self.saved, self.network
        return replace(
            self,
            **{name: now[getattr(self, name)] for name in _ALWAYS},
            saved=saved and saved.renumbered(now),
            disks=tuple(disk.renumbered(now) for disk in self.disks),
            network=network and replace(network, frames=now[network.frames]),
        )


MAX_CONFIG: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 253
"""What one packet can carry (SCM_MAX_FD)."""

_ALWAYS: Final = (
    *("memory", "link", "doorbells", "to_worker", "to_hypervisor"),
    *("counters", "control", "console"),
)
"""Descriptors that every worker has."""


# ---- requests: root to worker --------------------------------------------------------------------

RequestId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
TerminalSide = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
MAX_USER: Final = FLOWS["agent.exec"].values["user_bytes_max"]
"""Bytes of the text that names a user of the guest."""
ROOT: Final = "root"
"""The guest's user who needs no entry in its /etc/passwd."""


class Exec(msgspec.Struct, tag="exec", frozen=True, forbid_unknown_fields=True):
    """Run a program. Descriptors: stdin, stdout, stderr.

    Descriptors here and below are pipes that the root side made for it: the worker makes them
    non-blocking, and its limits let it write no regular file. It closes them when the program has
    ended and all its output is written.
    Answers: STARTED then EXITED, or FAILED.
    """

    id: RequestId
    argv: list[str]
    env: dict[str, str]
    cwd: str
    tty: tuple[TerminalSide, TerminalSide] | None = None
    """Rows and columns of its terminal, if it is to have one: all its output is then stdout."""
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_USER)] = ROOT
    """Who it runs as: name or number, perhaps with a group, as the guest's own files have it."""


class Signal(msgspec.Struct, tag="signal", frozen=True, forbid_unknown_fields=True):
    """Send a signal to the process group of a running `Exec`. No answer of its own."""

    id: RequestId
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)]


class Resize(msgspec.Struct, tag="resize", frozen=True, forbid_unknown_fields=True):
    """Change the size of the terminal of a running `Exec`. No answer of its own."""

    id: RequestId
    rows: TerminalSide
    columns: TerminalSide


class WriteFile(msgspec.Struct, tag="write-file", frozen=True, forbid_unknown_fields=True):
    """Create or replace a guest file. Descriptor: source, read to its end; then DONE or FAILED."""

    id: RequestId
    path: str
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]


class ReadFile(msgspec.Struct, tag="read-file", frozen=True, forbid_unknown_fields=True):
    """Copy a guest file out. Descriptor: sink. Answer: DONE or FAILED."""

    id: RequestId
    path: str


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True, forbid_unknown_fields=True):
    """Ask the guest's kernel to power off in order. Answer: DONE when it agreed, or FAILED."""

    id: RequestId


class Facts(msgspec.Struct, tag="facts", frozen=True, forbid_unknown_fields=True):
    """Ask what the guest says about itself. Descriptor: sink. Answer: DONE or FAILED."""

    id: RequestId


class Stop(msgspec.Struct, tag="stop", frozen=True, forbid_unknown_fields=True):
    """End the VM now, without asking the guest. Answer: ENDED(STOPPED)."""


class Pause(msgspec.Struct, tag="pause", frozen=True, forbid_unknown_fields=True):
    """Let the guest stand still, its time with it. Answer: DONE or FAILED."""

    id: RequestId


class Resume(msgspec.Struct, tag="resume", frozen=True, forbid_unknown_fields=True):
    """Let the guest go on. Answer: DONE or FAILED."""

    id: RequestId


class Save(msgspec.Struct, tag="save", frozen=True, forbid_unknown_fields=True):
    """Write the state of a guest that stands still, but for its memory.

    Descriptors: pipes for the hypervisor's state and for the worker's. Answer: DONE or FAILED.
    """

    id: RequestId


class Snapshot(msgspec.Struct, tag="snapshot", frozen=True, forbid_unknown_fields=True):
    """Save the whole VM to a new directory of the host: asked of a keeper, never of a worker.

    Descriptor: sink for the error (`teuthis.root.failure`). Answer: DONE or FAILED.
    """

    id: RequestId
    path: Annotated[str, msgspec.Meta(pattern="^/[^\0]*$", max_length=4096)]


ForGuest = Exec | Signal | Resize | WriteFile | ReadFile | Shutdown | Facts
"""What a guest is asked for."""

Request = ForGuest | Stop | Pause | Resume | Save

KeeperRequest = Request | Snapshot
"""What a keeper is asked for."""

DESCRIPTORS: Final[dict[type[msgspec.Struct], int]] = {
    Exec: 3,
    Signal: 0,
    Resize: 0,
    WriteFile: 1,
    ReadFile: 1,
    Shutdown: 0,
    Facts: 1,
    Stop: 0,
    Pause: 0,
    Resume: 0,
    Save: 2,
    Snapshot: 1,
}
"""How many descriptors travel with each request."""

_T = TypeVar("_T", bound=KeeperRequest)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_keeper_decoder: msgspec.msgpack.Decoder[KeeperRequest] = msgspec.msgpack.Decoder(KeeperRequest)


def encode_request(request: KeeperRequest) -> bytes:
    """The packet for `request`. Raises `ProtocolError` when it is larger than `MAX_REQUEST`."""
    packet = _encoder.encode(request)
    if len(packet) > MAX_REQUEST:
        raise ProtocolError(
            f"the request is {len(packet)} bytes, the limit is {MAX_REQUEST}: "
            "shorten the arguments or the environment"
        )
    return packet


def decode_request(packet: bytes, descriptors: int) -> Request:
    """The request in `packet`, which came with that many descriptors. Raises `ProtocolError`."""
    return _decode(_decoder, packet, descriptors)


def decode_keeper_request(packet: bytes, descriptors: int) -> KeeperRequest:
    """As `decode_request`, of what a keeper is asked."""
    return _decode(_keeper_decoder, packet, descriptors)


def _decode(decoder: msgspec.msgpack.Decoder[_T], packet: bytes, descriptors: int) -> _T:
    if len(packet) > MAX_REQUEST:
        raise ProtocolError("request too large")
    try:
        request = decoder.decode(packet)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"malformed request: {error}") from error
    if descriptors != DESCRIPTORS[type(request)]:
        raise ProtocolError(f"{descriptors} descriptors with {type(request).__name__}")
    return request


# ---- statuses: worker to root --------------------------------------------------------------------


class StatusKind(enum.IntEnum):
    """What a `Status` says; the meaning of `value` and `detail` follows from it."""

    READY = _STATUS_VALUES["ready"]
    """The agent said hello."""
    STARTED = _STATUS_VALUES["started"]
    """value = process id in the guest."""
    EXITED = _STATUS_VALUES["exited"]
    """value = exit code 0..255, or detail = the signal that killed the program."""
    FAILED = _STATUS_VALUES["failed"]
    """value = errno."""
    DONE = _STATUS_VALUES["done"]
    """value = bytes copied."""
    ENDED = _STATUS_VALUES["ended"]
    """value = an `Ended`. The last status of a worker."""
    HEALTH = _STATUS_VALUES["health"]
    """value = a `Health`, other than the last one."""


_STATUS = struct.Struct("<HHIqqQ")
STATUS_SIZE: Final = _STATUS.size


class Status(NamedTuple):
    """One fixed-size answer of the worker."""

    kind: StatusKind
    id: int = 0
    value: int = 0
    detail: int = 0

    def encode(self) -> bytes:
        """The 32-byte packet."""
        return _STATUS.pack(VERSION, self.kind, self.id, self.value, self.detail, 0)

    @classmethod
    def decode(cls, packet: bytes) -> "Status":
        """The status in `packet`, which a hostile worker may have made. Raises `ProtocolError`."""
        if len(packet) != STATUS_SIZE:
            raise ProtocolError("a status of the wrong size")
        version, kind, request_id, value, detail, reserved = _STATUS.unpack(packet)
        if version != VERSION or reserved != 0:
            raise ProtocolError("a status of another version")
        try:
            status = cls(StatusKind(kind), request_id, value, detail)
            if status.kind is StatusKind.ENDED:
                Ended(value)
        except ValueError as error:
            raise ProtocolError("an unknown status") from error
        if not _RANGES[status.kind](status):
            raise ProtocolError("a status with a value out of range")
        return status


_RANGES: Final = {
    StatusKind.READY: lambda s: s.id == s.value == s.detail == 0,
    StatusKind.STARTED: lambda s: 0 < s.value < 1 << 32 and s.detail == 0,
    StatusKind.EXITED: lambda s: 0 <= s.value <= 255 and 0 <= s.detail <= 64,
    StatusKind.FAILED: lambda s: 0 < s.value < 4096 and s.detail == 0,
    StatusKind.DONE: lambda s: s.value >= 0 and s.detail == 0,
    StatusKind.ENDED: lambda s: s.id == s.detail == 0,
    StatusKind.HEALTH: lambda s: s.id == s.detail == 0 and 0 <= s.value <= max(Health),
}

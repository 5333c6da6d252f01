"""The VMBus host as a state machine: messages of the guest in, messages of the link out.

No I/O happens here: what is to be sent collects in `outbox`, what is to be signalled in
`interrupts`; the event loop takes both. Whatever is unknown or out of order is refused as the
register says, counted under its flow, and changes nothing.
"""

from collections.abc import Callable
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.worker import link
from teuthis.worker.memory import PAGE_SIZE, GuestMemory, PageRange
from teuthis.worker.vmbus import messages as m
from teuthis.worker.vmbus.channel import Channel, Device, Saveable
from teuthis.worker.vmbus.gpadl import Gpadl, GpadlError, Gpadls
from teuthis.worker.vmbus.ring import Packet, RingError, RingReader, RingWriter
from teuthis.worker.vmbus.saved import ChannelState, ServerState

MAX_CHANNELS: Final = FLOWS["doorbell.to-worker"].values["channels"]
_POST = FLOWS["hypercall.post-message"].values
_GENERAL_CONNECTION = _POST["connection"]
_CONTACT_CONNECTION = _POST["initiate_contact_connection"]
_VMBUS_MESSAGE = FLOWS["synic.message"].values["type_vmbus"]
_SINT = FLOWS["synic.message"].values["sint"]
_MIN_HALF_PAGES = 2

ConnectRequest = Callable[[bytes, bytes], str | None]
"""Answers a request for an hv_sock connection (endpoint, service): False refuses it."""


class Server:
    """The host's end of one guest's VMBus."""

    def __init__(self, memory: GuestMemory, counters: Counters, processors: int = 1) -> None:
        self.outbox: list[link.Outgoing] = []
        self.interrupts: list[tuple[int, int]] = []
        """(relid, processor) of channels whose guest side is to be signalled."""
        self.version: int | None = None
        """Agreed version, or None without a connection."""
        self.on_connect_request: ConnectRequest = lambda endpoint, service: "service"
        self._memory = memory
        self._counters = counters
        self._processors = processors
        self._message_vp = 0
        self._offers_requested = False
        self._channels: dict[int, Channel] = {}
        self._gpadls = Gpadls(memory)
        self._last_relid = 0
        self._installed: list[tuple[m.Offer, Device]] = []
        self._handlers: dict[type[m.Record], Callable[..., str | None]] = {
            m.RequestOffers: self._request_offers,
            m.OpenChannel: self._open_channel,
            m.CloseChannel: self._close_channel,
            m.GpadlHeader: self._gpadl_header,
            m.GpadlBody: self._gpadl_body,
            m.GpadlTeardown: self._gpadl_teardown,
            m.RelidReleased: self._relid_released,
            m.Unload: self._unload,
            m.TlConnectRequest: self._tl_connect_request,
            m.ModifyChannel: self._modify_channel,
        }

    # ---- what the guest does ---------------------------------------------------------------------

    def receive(self, connection_id: int, message_type: int, payload: bytes) -> None:
        """Handles one message that the guest posted."""
        if message_type != _VMBUS_MESSAGE:
            self._counters.reject("vmbus.unknown", "type")
            return
        try:
            shape, record, tail = m.decode(payload)
        except m.UnknownMessage as unknown:
            self._counters.reject("vmbus.unknown", unknown.kind)
            return
        refused: str | None
        if isinstance(record, m.InitiateContact):
            refused = self._initiate_contact(record, connection_id)
        elif self.version is None or connection_id != _GENERAL_CONNECTION:
            refused = "early"
        elif isinstance(record, m.GpadlHeader | m.GpadlBody):
            refused = self._handlers[type(record)](record, tail)
        else:
            refused = self._handlers[type(record)](record)
        if refused is None:
            self._counters.accept(shape.flow, len(payload))
        else:
            self._counters.reject(shape.flow, refused)

    def doorbell(self, relid: int) -> bool:
        """The guest signalled `relid`; True: call again soon, there may be more."""
        channel = self._channels.get(relid)
        if channel is None or not channel.open or channel.finished:
            self._counters.reject("doorbell.to-worker", "closed")
            return False
        try:
            return channel.device.ready(channel)
        except RingError:
            self.rescind(channel)
            return False

    # ---- what devices do -------------------------------------------------------------------------

    def install(self, offer: m.Offer, device: Device) -> None:
        """A device that is there from the start: offered whenever a guest asks for its offers."""
        self._installed.append((offer, device))

    @property
    def takes_offers(self) -> bool:
        """Whether the guest has asked for offers, and a relid is free."""
        return self._offers_requested and len(self._channels) < MAX_CHANNELS - 1

    def offer(self, offer: m.Offer, device: Device) -> Channel | None:
        """Offers a channel; None unless the guest `takes_offers`."""
        if not self.takes_offers:
            return None
        # Least recently used first: a guest is slow to forget.
        relid = self._last_relid % (MAX_CHANNELS - 1) + 1
        while relid in self._channels:
            relid = relid % (MAX_CHANNELS - 1) + 1
        self._last_relid = relid
        channel = Channel(relid, device, offer.instance)
        self._channels[relid] = channel
        self._deliver("vmbus.offer-channel", m.encode_offer(offer, relid))
        return channel

    def rescind(self, channel: Channel) -> None:
        """Takes a channel away; its relid is free once the guest says so."""
        if self._channels.get(channel.relid) is channel:
            self.withdraw(channel, channel.on_released)
            self._finish(channel)

    def withdraw(self, channel: Channel, released: Callable[[], None]) -> None:
        """Takes a channel away in order: its device serves it until the guest has let go of it.

        `released` is called then.
        """
        if self._channels.get(channel.relid) is not channel:
            return
        channel.on_released = released
        if not channel.rescinded:
            channel.rescinded = True
            self._send("vmbus.rescind-channel-offer", channel.relid)

    def take(self, channel: Channel) -> list[Packet]:
        """Packets that the guest has written by now, out of the ring; none: there are no more.

        Raises `RingError`.
        """
        if channel.reader is None:
            return []
        packets = channel.reader.read()
        if channel.reader.signal:
            self.interrupt(channel)
        return packets

    def interrupt(self, channel: Channel) -> None:
        """Signals the guest's side of an open channel."""
        self.interrupts.append((channel.relid, channel.target_vp))

    def shared_memory(self, channel: Channel, handle: int) -> PageRange | None:
        """The memory that a guest has described for its device; None: there is no such GPADL."""
        gpadl = self._gpadls.find(handle, channel.relid)
        if gpadl is None or gpadl.id == channel.ring_gpadl:
            return None
        return PageRange(self._memory, gpadl.pages)

    # ---- handlers: None, or the kind of bad input as the register names it -----------------------

    def _initiate_contact(self, contact: m.InitiateContact, connection_id: int) -> str | None:
        """Begins anew: whatever was open before is gone, without a word, as on real hosts."""
        self._reset()
        modern = contact.version >= m.VERSION_5_0
        supported = (
            contact.version in m.VERSIONS
            and connection_id == (_CONTACT_CONNECTION if modern else _GENERAL_CONNECTION)
            and contact.target_vp < self._processors
            and (not modern or (contact.sint == _SINT and contact.vtl == 0))
        )
        if supported:
            self.version = contact.version
            self._message_vp = contact.target_vp
        self._send("vmbus.version-response", supported, 0, _GENERAL_CONNECTION)
        return None if supported else "version"

    def _request_offers(self, _: m.RequestOffers) -> str | None:
        if self._offers_requested:
            return "twice"
        self._offers_requested = True
        for offer, device in self._installed:
            self.offer(offer, device)
        self._send("vmbus.all-offers-delivered")
        return None

    def _unload(self, _: m.Unload) -> str | None:
        self._reset()
        self._send("vmbus.unload-response")
        return None

    def _reset(self) -> None:
        self.version = None
        self._offers_requested = False
        channels = list(self._channels.values())
        self._channels.clear()
        self._gpadls.clear()
        for channel in channels:
            self._finish(channel)

    # ---- guest memory ----------------------------------------------------------------------------

    def _gpadl_header(self, header: m.GpadlHeader, tail: bytes) -> str | None:
        channel = self._channels.get(header.relid)
        known = channel is not None and not channel.rescinded
        try:
            gpadl = self._gpadls.begin(header, tail, known=known)
        except GpadlError as error:
            return self._gpadl_refused(header.relid, header.gpadl, error)
        self._gpadl_completed(gpadl)
        return None

    def _gpadl_body(self, body: m.GpadlBody, tail: bytes) -> str | None:
        gpadl = self._gpadls.get(body.gpadl)
        if gpadl is None or gpadl.complete:
            return "handle"
        try:
            self._gpadls.go_on(gpadl, tail)
        except GpadlError as error:
            return self._gpadl_refused(gpadl.relid, gpadl.id, error)
        self._gpadl_completed(gpadl)
        return None

    def _gpadl_completed(self, gpadl: Gpadl) -> None:
        if gpadl.complete:
            self._send("vmbus.gpadl-created", gpadl.relid, gpadl.id, m.SUCCESS)

    def _gpadl_refused(self, relid: int, handle: int, error: GpadlError) -> str:
        status = m.INSUFFICIENT_RESOURCES if error.kind == "limit" else m.INVALID_PARAMETER
        self._send("vmbus.gpadl-created", relid, handle, status)
        return error.kind

    def _gpadl_teardown(self, teardown: m.GpadlTeardown) -> str | None:
        gpadl = self._gpadls.get(teardown.gpadl)
        if gpadl is not None:
            channel = self._channels.get(gpadl.relid)
            if gpadl.relid != teardown.relid:
                return "channel"
            if channel is not None and channel.ring_gpadl == gpadl.id:
                return "in-use"
            self._gpadls.drop(gpadl)
        self._send("vmbus.gpadl-torndown", teardown.gpadl)  # a guest waits for it in any case
        return "handle" if gpadl is None else None

    # ---- channels --------------------------------------------------------------------------------

    def _open_channel(self, request: m.OpenChannel) -> str | None:
        channel = self._channels.get(request.relid)
        if channel is None:
            return "relid"
        opened = self._open(channel, request)
        status = m.SUCCESS if opened else m.INVALID_PARAMETER
        if opened:
            # The port first: the guest may signal as soon as it reads the result.
            self.outbox.append(link.open_port(m.connection_id(channel.relid)))
        self._send("vmbus.open-channel-result", request.relid, request.open_id, status)
        if opened:
            try:
                channel.device.opened(channel)
            except RingError:
                self.rescind(channel)
        return None if opened else "ring"

    def _open(self, channel: Channel, request: m.OpenChannel) -> bool:
        gpadl = self._gpadls.find(request.ring_gpadl, channel.relid)
        if (
            channel.open
            or channel.rescinded
            or gpadl is None
            or gpadl.byte_count != len(gpadl.pages) * PAGE_SIZE
            or request.target_vp >= self._processors
            or not _has_halves(gpadl, request.downstream_page)
        ):
            return False
        channel.downstream_page = request.downstream_page
        if not self._map_rings(channel, gpadl):
            return False
        channel.ring_gpadl = gpadl.id
        channel.target_vp = request.target_vp
        channel.finished = False
        return True

    def _map_rings(self, channel: Channel, gpadl: Gpadl) -> bool:
        pages = gpadl.pages.tolist()
        upstream, downstream = pages[: channel.downstream_page], pages[channel.downstream_page :]
        try:
            channel.reader = RingReader(self._memory, upstream, self._counters)
            channel.writer = RingWriter(self._memory, downstream, self._counters)
        except RingError:
            channel.reader = None
            return False
        return True

    def _close_channel(self, request: m.CloseChannel) -> str | None:
        channel = self._channels.get(request.relid)
        if channel is None or not channel.open:
            return "relid"
        channel.ring_gpadl = None
        self._finish(channel)
        return None

    def _relid_released(self, released: m.RelidReleased) -> str | None:
        channel = self._channels.get(released.relid)
        if channel is None or not channel.rescinded:
            return "relid"
        self._finish(channel)
        del self._channels[released.relid]
        self._gpadls.drop_all(released.relid)
        channel.on_released()
        return None

    def _modify_channel(self, request: m.ModifyChannel) -> str | None:
        channel = self._channels.get(request.relid)
        modified = channel is not None and channel.open and request.target_vp < self._processors
        if channel is not None and modified:
            channel.target_vp = request.target_vp
        if self.version == m.VERSION_5_3:
            status = m.SUCCESS if modified else m.INVALID_PARAMETER
            self._send("vmbus.modify-channel-response", request.relid, status)
        return None if modified else "target"

    def _tl_connect_request(self, request: m.TlConnectRequest) -> str | None:
        refused = self.on_connect_request(request.endpoint, request.service)
        if refused is not None:
            self._send(
                "vmbus.tl-connect-result", request.endpoint, request.service, m.CONNECTION_REFUSED
            )
        return refused

    def _finish(self, channel: Channel) -> None:
        """Stops all work on a channel and tells its device."""
        if channel.finished:
            return
        channel.finished = True
        if channel.reader is not None:
            channel.reader = channel.writer = None
            self.outbox.append(link.close_port(m.connection_id(channel.relid)))
        channel.device.closed(channel)

    # ---- saved machines --------------------------------------------------------------------------

    def save(self) -> ServerState:
        """The state from which another server goes on.

        Raises:
            NotImplementedError: a device cannot be saved; its name.
        """
        devices = {}
        for offer, device in self._installed:
            if not isinstance(device, Saveable):
                raise NotImplementedError(type(device).__name__)
            devices[offer.instance] = device.save()
        channels = [
            ChannelState(
                channel.relid,
                channel.instance if channel.instance in devices else None,
                channel.target_vp,
                channel.ring_gpadl,
                channel.downstream_page,
                channel.rescinded,
                channel.finished,
            )
            for channel in self._channels.values()
        ]
        return ServerState(
            self.version,
            self._message_vp,
            self._offers_requested,
            self._last_relid,
            channels,
            self._gpadls.save(),
            devices,
        )

    def restore(
        self, state: ServerState, stream: Callable[[ChannelState], Device]
    ) -> list[Channel]:
        """Goes on from `state`, in a server that has served nobody.

        `stream` takes the channels that belong to no device that is there from the start. Devices
        that the saved machine did not have are offered to the guest.

        Raises:
            ValueError, KeyError, TypeError: no server can have that state.
        """
        if state.version not in (None, *m.VERSIONS) or state.message_vp >= self._processors:
            raise ValueError("a connection that cannot be")
        self.version = state.version
        self._message_vp = state.message_vp
        self._offers_requested = state.offers_requested
        self._last_relid = state.last_relid
        self._gpadls.restore(state.gpadls)
        installed = {offer.instance: device for offer, device in self._installed}
        mine: dict[bytes, Channel] = {}
        for saved in state.channels:
            if saved.instance is None:
                self._restore_channel(saved, stream(saved))
            elif saved.instance in mine:
                raise ValueError("a device with two channels")
            else:
                channel = self._restore_channel(saved, installed[saved.instance])
                mine[saved.instance] = channel
        if not mine.keys() <= state.devices.keys():
            raise ValueError("a channel of a device that was not there")
        for instance, device_state in state.devices.items():
            device = installed[instance]
            if not isinstance(device, Saveable):
                raise TypeError(type(device).__name__)
            device.restore(device_state, mine.get(instance))
        restored = list(self._channels.values())
        for offer, device in self._installed:
            if offer.instance not in state.devices:
                self.offer(offer, device)
        return restored

    def _restore_channel(self, saved: ChannelState, device: Device) -> Channel:
        if saved.relid in self._channels or saved.target_vp >= self._processors:
            raise ValueError("a channel that cannot be")
        channel = Channel(saved.relid, device, saved.instance)
        channel.target_vp = saved.target_vp
        channel.rescinded = saved.rescinded
        channel.finished = saved.finished
        channel.downstream_page = saved.downstream_page
        channel.ring_gpadl = saved.ring_gpadl
        self._channels[channel.relid] = channel
        if saved.ring_gpadl is not None and not saved.finished:
            gpadl = self._gpadls.find(saved.ring_gpadl, channel.relid)
            if (
                gpadl is None
                or not _has_halves(gpadl, channel.downstream_page)
                or not self._map_rings(channel, gpadl)
            ):
                raise ValueError("a ring that cannot be")
        return channel

    def ring_all(self) -> list[int]:
        """The channels that are open: after a restore, each may have been signalled before it."""
        return [each.relid for each in self._channels.values() if each.reader is not None]

    # ---- sending ---------------------------------------------------------------------------------

    def _send(self, flow: str, *fields: int | bytes) -> None:
        self._deliver(flow, m.encode(flow, *fields))

    def _deliver(self, flow: str, message: bytes) -> None:
        self._counters.accept(flow, len(message))
        self.outbox.append(link.deliver(message, self._message_vp))


def _has_halves(gpadl: Gpadl, downstream_page: int) -> bool:
    """Whether a ring that is divided there has room for both directions."""
    return _MIN_HALF_PAGES <= downstream_page <= gpadl.expected - _MIN_HALF_PAGES

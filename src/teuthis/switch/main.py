"""The switch process of one network. Read from top to bottom to see what it holds at each point."""

import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from teuthis.flows import Counters
from teuthis.jail import switch as jail
from teuthis.jail import walls
from teuthis.switch.protocol import MAX_REQUEST, Answer, Member, Outcome, SwitchConfig
from teuthis.switch.protocol import Uplink as UplinkConfig
from teuthis.switch.rules import arp_request
from teuthis.switch.switch import Switch
from teuthis.switch.uplink import Destinations, Uplink
from teuthis.worker.loop import READ, Loop

_USAGE = 64
_PATIENCE: Final = 30.0
"""Seconds for the first VM to join."""
_CREDENTIALS = struct.Struct("iII")
_TURN = 16
_JOIN_DESCRIPTORS = 2
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * 4)


def main(arguments: Sequence[str]) -> int:
    """Serves one network; 0 when its last VM has gone. Raises `MissingWall`."""
    # 1. Read what we were given: the numbers of our descriptors.
    try:
        config = _read_config(arguments)
    except (ValueError, OSError):
        return _USAGE

    # A named network outlives the VM that it was started for: its switch is nobody's child.
    if config.requests is not None and (pid := os.fork()):
        os.write(1, b"%d" % pid)
        os._exit(0)

    # 2. Drop everything else that somebody may have left, and leave: from here on no path, no
    #    network, no other process, no privilege.
    walls.enter(jail.switch(config, {}), jail.first_walls(config))
    os.environ.clear()

    # 3. Put the switch together around what is left.
    loop = Loop()
    switch = Switch(loop, time.monotonic)
    uplink = None if config.uplink is None else _uplink(switch, config.uplink)
    entrance = None if config.requests is None else Entrance(switch, config.requests, config.uid)

    # 4. The door is locked: what is left are the system calls that forwarding frames takes.
    calls = jail.system_calls(loop.fileno(), config.requests)
    walls.enter(jail.switch(config, calls), walls.REST)

    # 5. Only now read what a guest may have made, as long as there is anybody.
    give_up = time.monotonic() + _PATIENCE
    while True:
        deadlines = [switch.deadline(), give_up if entrance and not entrance.joined else None]
        left = [deadline - time.monotonic() for deadline in deadlines if deadline is not None]
        loop.turn(max(0.0, min(left)) if left else None)
        switch.expire()
        if uplink is not None and uplink.closed:
            return 0
        if entrance is not None and not entrance.joined and time.monotonic() < give_up:
            continue
        if entrance is not None:
            entrance.serve()
        if not switch.ports:
            return 0


def _read_config(arguments: Sequence[str]) -> SwitchConfig:
    """The configuration behind `--config-fd N`. Raises `ValueError`, `OSError`."""
    if len(arguments) != 2 or arguments[0] != "--config-fd":
        raise ValueError("usage: python -m teuthis.switch --config-fd N")
    with os.fdopen(int(arguments[1]), "rb") as file:
        return msgspec.json.decode(file.read(), type=SwitchConfig)


def _uplink(switch: Switch, config: UplinkConfig) -> Uplink:
    counters = Counters(config.counters)
    os.close(config.counters)
    switch.join(config.member, config.frames, counters)
    (port,) = switch.ports
    destinations = Destinations(config.gateway, config.refused, config.host_ports)
    uplink = Uplink(switch, config.stream, destinations, port)
    if config.member.address is not None:
        # passt learns the guest's MAC address from its frames: callers need not wait for one.
        uplink.send(arp_request(config.member.mac, config.member.address, config.gateway), port)
    return uplink


class Entrance:
    """Where the root sides of VMs ask to join: one datagram each, answered on a socket in it.

    Who may send at all the file system decides: the socket lies in a directory of the user's own.
    Started by an ordinary user we see who asks; in the namespace that root's switch has, all
    others look alike.
    """

    def __init__(self, switch: Switch, requests: int, uid: int | None) -> None:
        self.joined = False
        """Whether a VM ever did."""
        self._switch = switch
        self._requests = socket.socket(fileno=requests)
        self._requests.setblocking(False)
        self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._owner = os.geteuid() if uid is None else None
        switch.loop.watch(requests, READ, self.serve)

    def close(self) -> None:
        """Lets nobody in any more."""
        self._switch.loop.unwatch(self._requests.fileno())
        self._requests.close()

    def serve(self) -> None:
        """Answers the requests that are there."""
        for _ in range(_TURN):
            try:
                packet, ancillary, _, _ = self._requests.recvmsg(MAX_REQUEST + 1, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            self._answer(packet, ancillary)

    def _answer(self, packet: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        descriptors: list[int] = []
        uid: int | None = None
        for _, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
            elif kind == socket.SCM_CREDENTIALS:
                _, uid, _ = _CREDENTIALS.unpack(data)
        *given, reply = descriptors or [-1]
        if reply >= 0 and self._owner in (None, uid):
            answer = self._join(packet, given)
            self.joined |= answer.outcome is Outcome.JOINED
            with suppress(OSError):  # it has not waited
                os.write(reply, answer.encode())
            given = []
        for descriptor in (*given, reply):
            if descriptor >= 0:
                os.close(descriptor)

    def _join(self, packet: bytes, descriptors: list[int]) -> Answer:
        """Plugs a VM in; what it does not need of the descriptors is closed."""
        answer = Answer(Outcome.MALFORMED)
        if len(descriptors) == _JOIN_DESCRIPTORS:
            frames, page = descriptors
            counters = Counters(page)
            with suppress(ValueError):
                member = msgspec.json.decode(packet, type=Member)
                answer = self._switch.join(member, frames, counters)
            if answer.outcome is Outcome.JOINED:
                counters.accept("switch.join", len(packet))
                descriptors = [page]
            else:
                counters.reject("switch.join", answer.outcome.name.lower().replace("_", "-"))
                counters.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return answer

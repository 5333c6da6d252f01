"""The worker's part of a saved machine, as one record.

It was written by a worker that served a guest, and comes back by way of a file: it is judged like
guest data, after the door is locked.
"""

from functools import partial
from typing import Annotated, Final, Literal

import msgspec

from teuthis.flows import Counters
from teuthis.worker.agent.agent import Agent, AgentState
from teuthis.worker.devices.hvsock import Accept, Connection, HvSock
from teuthis.worker.vmbus.saved import ChannelState, ServerState
from teuthis.worker.vmbus.server import Server

FORMAT: Final = 2
MAX_BYTES: Final = 32 << 20


class StateError(ValueError):
    """This is no state that a worker can go on from."""


class WorkerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a worker needs to go on."""

    format: Literal[2]
    server: ServerState
    last_host_port: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    agent: AgentState


_decoder: Final = msgspec.msgpack.Decoder(WorkerState)


def save(server: Server, sockets: HvSock, agent: Agent) -> bytes:
    """The record. Raises `NotImplementedError`, by name, for a device that cannot be saved."""
    state = WorkerState(FORMAT, server.save(), sockets.last_host_port, agent.save())
    return msgspec.msgpack.encode(state)


def restore(
    record: bytes, server: Server, sockets: HvSock, agent: Agent, counters: Counters
) -> None:
    """Goes on from a record, in a worker that has served nobody.

    Streams that carried programs and files are closed: whoever asked for them is gone. Raises
    `StateError`.
    """
    try:
        _restore(record, server, sockets, agent)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        malformed = isinstance(error, msgspec.MsgspecError)
        counters.reject("state.worker", "malformed" if malformed else "impossible")
        raise StateError(f"the saved state of the worker is damaged: {error}") from error
    counters.accept("state.worker", len(record))


def _restore(record: bytes, server: Server, sockets: HvSock, agent: Agent) -> None:
    if len(record) > MAX_BYTES:
        raise ValueError("it is too large")
    state = _decoder.decode(record)
    sockets.restore(state.last_host_port)
    kept: dict[int | None, Accept] = {
        state.agent.idle: agent.restore_idle,
        state.agent.greeting: partial(agent.restore, state.agent),
    }
    streams: dict[int, Connection] = {}

    def stream(channel: ChannelState) -> Connection:
        accept = kept.get(channel.relid) if channel.ring_gpadl is not None else None
        streams[channel.relid] = sockets.restored(accept)
        return streams[channel.relid]

    for channel in server.restore(state.server, stream):
        if channel.relid in streams:
            streams[channel.relid].attach(channel, None)
            if channel.relid not in kept:
                server.rescind(channel)
    agent.was_ready(state.agent.ready)

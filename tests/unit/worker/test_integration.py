"""Integration services against a guest that does what Linux's `hv_utils` does, and worse."""

import errno
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from teuthis.protocol import Facts, Health, Shutdown, Status, StatusKind
from teuthis.worker.devices.integration import Integration
from teuthis.worker.devices.integration.heartbeat import MISSED_MAX, PATIENCE, PERIOD, Heartbeat
from teuthis.worker.devices.integration.kvp import (
    ANSWER_SECONDS,
    FACTS_MAX,
    Fact,
    KeyValuePairs,
)
from teuthis.worker.devices.integration.pipe import Service
from teuthis.worker.devices.integration.shutdown import WISHES_MAX
from teuthis.worker.devices.integration.shutdown import Shutdown as ShutdownService
from teuthis.worker.devices.integration.timesync import (
    JUMP_SECONDS,
    LATE_SECONDS,
    SAMPLE_SECONDS,
    TimeSync,
)
from teuthis.worker.loop import Loop
from teuthis.worker.memory import PAGE_SIZE

from ..recorded import recorded
from .conftest import World
from .simulator import packet

MESSAGE = struct.Struct("<HHHHHHIBBxx")
VERSIONS = {"heartbeat": (3, 0), "kvp": (5, 0), "shutdown": (3, 2), "timesync": (3, 0)}
ALL_DONE = 0x8007_0103


class Question(NamedTuple):
    framework: tuple[int, int]
    kind: int
    version: tuple[int, int]
    transaction: int
    body: bytes


class Module:
    """The guest's side of one service."""

    def __init__(self, world: World, service: Service) -> None:
        self.world = world
        self.service = service
        if world.server.version is None:
            assert world.guest.connect()
        self.channel = next(
            channel
            for channel in world.guest.channels.values()
            if channel.interface == service.interface
        )
        self.channel.do_open(pages_each=4)
        world.guest.pump()

    def questions(self) -> list[Question]:
        self.world.guest.pump()
        data, found = self.channel.received, []
        while data:
            major, minor, kind, *version, size, status, transaction, flags = MESSAGE.unpack_from(
                data
            )
            assert (status, flags) == (0, 3)
            body = bytes(data[MESSAGE.size : MESSAGE.size + size])
            assert len(body) == size
            del data[: MESSAGE.size + size]
            found.append(
                Question((major, minor), kind, (version[0], version[1]), transaction, body)
            )
        return found

    def question(self) -> Question:
        (found,) = self.questions()
        return found

    def answer(
        self,
        question: Question,
        body: bytes | None = None,
        *,
        kind: int | None = None,
        transaction: int | None = None,
        status: int = 0,
        flags: int = 5,
        pipe: int = 1,
        rest: int | None = None,
        size: int | None = None,
        packet_type: int = 6,
    ) -> None:
        body = question.body if body is None else body
        message = MESSAGE.pack(
            *question.framework,
            question.kind if kind is None else kind,
            *question.version,
            len(body) if size is None else size,
            status,
            question.transaction if transaction is None else transaction,
            flags,
        )
        header = struct.pack("<II", pipe, len(message) + len(body) if rest is None else rest)
        self.channel.write(packet(header + message + body, packet_type), signal=True)
        self.world.guest.pump()

    def negotiate(self) -> None:
        name = self.service.flow.partition(".")[2]
        version = VERSIONS[name]
        self.answer(self.question(), struct.pack("<HHI4H", 1, 1, 0, 3, 0, *version))

    @property
    def open(self) -> bool:
        return not self.channel.rescinded


class Recorder:
    """What services report."""

    def __init__(self) -> None:
        self.health: list[Health] = []
        self.facts: list[list[Fact] | int] = []
        self.agreed: list[int] = []
        self.time_of_day = 1_700_000_000.25


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


Make = Callable[[str], Module]


def make(world: World, seen: Recorder, name: str) -> Module:
    common = (world.server, world.counters, world.clock)
    service: Service
    match name:
        case "heartbeat":
            service = Heartbeat(*common, seen.health.append)
        case "kvp":
            service = KeyValuePairs(*common)
        case "shutdown":
            service = ShutdownService(*common)
        case _:
            service = TimeSync(*common, lambda: seen.time_of_day)
    return Module(world, service)


def busy(world: World, seen: Recorder, name: str) -> tuple[Module, Question]:
    """A service that awaits an answer to its first question."""
    module = make(world, seen, name)
    module.negotiate()
    if isinstance(module.service, KeyValuePairs):
        module.service.tell(seen.facts.append)
    elif isinstance(module.service, ShutdownService):
        module.service.power_off(seen.agreed.append)
    return module, module.question()


def later(world: World, service: Service, seconds: float) -> None:
    world.clock.now += seconds
    service.expire()


# ---- negotiation and frames ----------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_are_offered_and_chosen(world: World, seen: Recorder, name: str) -> None:
    module = make(world, seen, name)
    assert world.guest.channels
    question = module.question()
    assert (question.framework, question.kind, question.version) == ((0, 0), 0, (0, 0))
    frameworks, versions, zero = struct.unpack_from("<HHI", question.body)
    assert (frameworks, zero) == (2, 0)
    pairs = struct.unpack_from(f"<{2 * (frameworks + versions)}H", question.body, 8)
    offered = list(zip(pairs[::2], pairs[1::2], strict=True))
    assert offered[:2] == [(3, 0), (1, 0)]
    assert VERSIONS[name] in offered[2:]
    module.answer(question, struct.pack("<HHI4H", 1, 1, 0, 3, 0, *VERSIONS[name]))
    assert module.open
    assert world.accepted("integration.negotiation") == 1


@pytest.mark.parametrize("name", VERSIONS)
def test_a_guest_may_know_none_of_our_versions(world: World, seen: Recorder, name: str) -> None:
    module = make(world, seen, name)
    module.answer(module.question(), struct.pack("<HHI4H", 0, 0, 0, 0, 0, 0, 0))
    later(world, module.service, 1000)
    assert module.open
    assert module.questions() == []
    assert not module.service.idle


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<HHI", 1, 1, 0),
        struct.pack("<HHI4H", 2, 1, 0, 3, 0, 3, 0),
        struct.pack("<HHI4H", 1, 0, 0, 3, 0, 3, 0),
        struct.pack("<HHI4H", 1, 1, 0, 4, 0, 3, 0),
        struct.pack("<HHI4H", 1, 1, 0, 3, 0, 9, 9),
    ],
)
def test_impossible_choices_end_the_channel(world: World, seen: Recorder, body: bytes) -> None:
    module = make(world, seen, "heartbeat")
    module.answer(module.question(), body)
    assert not module.open
    assert world.rejected("integration.negotiation") == 1


def test_malformed_negotiations_end_the_channel(world: World, seen: Recorder) -> None:
    module = make(world, seen, "heartbeat")
    module.answer(module.question(), flags=0)
    assert not module.open
    assert world.counters.snapshot()["integration.negotiation"].kinds == {"frame": 1}


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize(
    "change",
    [
        {"kind": 9},
        {"kind": 0},
        {"transaction": 77},
        {"flags": 3},
        {"flags": 0},
        {"flags": 7},
        {"pipe": 2},
        {"rest": 4},
        {"rest": 1 << 31},
        {"size": 0xFFFF},
        {"packet_type": 11},
        {"body": bytes(5000), "size": 40},
    ],
    ids=str,
)
def test_malformed_answers_end_the_channel(
    world: World, seen: Recorder, name: str, change: dict[str, int]
) -> None:
    module, question = busy(world, seen, name)
    module.answer(question, **change)  # type: ignore[arg-type]
    assert not module.open
    assert world.rejected(module.service.flow) == 1


@pytest.mark.parametrize("name", VERSIONS)
def test_an_answer_that_nobody_awaits_ends_the_channel(
    world: World, seen: Recorder, name: str
) -> None:
    module, question = busy(world, seen, name)
    module.answer(question, status=ALL_DONE if name == "kvp" else 0, body=_beat(question))
    assert module.open
    module.answer(question)
    assert not module.open
    assert world.rejected(module.service.flow) == 1


def _beat(question: Question) -> bytes:
    """The answer that Linux gives to a beat; to anything else, the question itself."""
    if question.kind != 1:
        return question.body
    return struct.pack("<Q", int.from_bytes(question.body[:8], "little") + 1) + question.body[8:]


def test_a_packet_shorter_than_a_header_ends_the_channel(world: World, seen: Recorder) -> None:
    module, _ = busy(world, seen, "heartbeat")
    module.channel.write(packet(bytes(16)), signal=True)
    world.guest.pump()
    assert not module.open
    assert world.rejected("integration.heartbeat") == 1


def test_a_ring_without_room_ends_the_channel(world: World, seen: Recorder) -> None:
    module = make(world, seen, "shutdown")
    module.negotiate()
    words = module.channel.inn.words
    words[1] = words[0] + 8  # it was empty; now it pretends to be full
    assert isinstance(module.service, ShutdownService)
    module.service.power_off(seen.agreed.append)
    words[1] = words[0]
    world.guest.pump()
    assert not module.open


def test_services_come_back_with_a_new_connection(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "heartbeat")
    world.guest.channels.clear()
    assert world.guest.connect()
    again = Module(world, module.service)
    again.negotiate()
    question = again.question()
    again.answer(question, _beat(question))
    assert seen.health == [Health.ALIVE]


BODIES = recorded(
    *("integration.negotiation", "integration.heartbeat", "integration.shutdown"),
    "integration.timesync",
).map(lambda sent: sent[8 + MESSAGE.size :])


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(VERSIONS)),
    st.booleans(),
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.binary(max_size=300), BODIES),
            st.sampled_from([0, 0, 0, 0, ALL_DONE, 0x8000_4005]),
            st.sampled_from([5, 5, 5, 5, 5, 3]),
            st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5]),
            st.sampled_from([None, None, None, 0, 39, 60]),
        ),
        max_size=40,
    ),
    st.integers(0, 3 * PAGE_SIZE),
)
@example("kvp", True, [(None, 0, 5, 0, None), (None, ALL_DONE, 5, 0, None)], 0)
@example("kvp", True, [(None, 0x8000_4005, 5, 0, None)], 0)
@example("kvp", True, [(None, 0, 5, 0, None)] * FACTS_MAX, 0)
@example("heartbeat", True, [(None, 0, 5, 0, 39)], 0)
@example("heartbeat", True, [(bytes(8), 0, 5, 0, None)], 0)
@example("heartbeat", True, [(None, 0, 5, 0, None)], 3 * PAGE_SIZE - 8)
@example("timesync", True, [(None, 0, 5, 0, 0)], 0)
@example("shutdown", True, [(None, 1, 5, 0, None)], 0)
def test_any_answer_is_taken_or_ends_the_channel(
    name: str,
    negotiated: bool,
    answers: list[tuple[bytes | None, int, int, int, int | None]],
    pending: int,
) -> None:
    """`pending`: the room in its ring that the guest waits for."""
    world, seen = World(), Recorder()
    if negotiated:
        module, question = busy(world, seen, name)
    else:
        module = make(world, seen, name)
        question = module.question()
    module.channel.out.words[3] = pending
    for body, status, flags, kind, size in answers:
        if body is not None:
            whole = body + question.body[len(body) :]
        elif name == "heartbeat":
            whole = _beat(question)
        else:
            whole = pair(question, "OSName", "Debian") if name == "kvp" else question.body
        whole = whole[:size]
        module.answer(question, whole, status=status, flags=flags, kind=kind or None)
        if not module.open:
            break
        question = next(iter(module.questions()), question)
    later(world, module.service, 30)
    heard = world.accepted(module.service.flow) + world.rejected(module.service.flow)
    assert heard <= len(answers) + 1


# ---- heartbeat -----------------------------------------------------------------------------------


def test_a_heart_beats(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "heartbeat")
    sent = []
    for _ in range(10):
        assert len(question.body) == 40
        sent.append(int.from_bytes(question.body[:8], "little"))
        later(world, module.service, PATIENCE / 2)
        module.answer(question, _beat(question))
        assert module.service.deadline() == world.clock.now + PERIOD
        later(world, module.service, PERIOD - 0.1)
        assert module.questions() == []  # nobody is woken in between
        later(world, module.service, 0.1)
        question = module.question()
    assert sent == sorted(set(sent))
    assert seen.health == [Health.ALIVE]
    assert module.service.deadline() == world.clock.now + PATIENCE


def test_a_guest_that_does_not_answer_is_hung_and_may_come_back(
    world: World, seen: Recorder
) -> None:
    module, question = busy(world, seen, "heartbeat")
    module.answer(question, _beat(question))
    later(world, module.service, PERIOD)
    question = module.question()
    for _ in range(MISSED_MAX - 1):
        assert module.service.deadline() == world.clock.now + PATIENCE
        later(world, module.service, PATIENCE)
    assert seen.health == [Health.ALIVE]
    later(world, module.service, PATIENCE)
    assert seen.health == [Health.ALIVE, Health.HUNG]
    assert module.questions() == []  # one beat is outstanding, not many
    later(world, module.service, 10 * PERIOD)
    module.answer(question, _beat(question))
    assert seen.health == [Health.ALIVE, Health.HUNG, Health.ALIVE]


def test_a_guest_whose_channel_is_gone_is_hung(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "heartbeat")
    module.answer(question, _beat(question))
    world.guest.post(16)
    world.guest.expect(17)
    later(world, module.service, PERIOD)
    for _ in range(MISSED_MAX - 1):
        later(world, module.service, PATIENCE)
    assert seen.health == [Health.ALIVE, Health.HUNG]


def test_a_guest_and_a_worker_stopped_together_are_not_hung(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "heartbeat")
    later(world, module.service, 3600)
    later(world, module.service, 0)
    module.answer(question, _beat(question))
    assert seen.health == [Health.ALIVE]


@pytest.mark.parametrize("change", [0, 2, -1])
def test_wrong_beats_end_the_channel(world: World, seen: Recorder, change: int) -> None:
    module, question = busy(world, seen, "heartbeat")
    number = int.from_bytes(question.body[:8], "little") + change
    module.answer(question, struct.pack("<Q32x", number))
    assert not module.open
    assert world.rejected("integration.heartbeat") == 1


# ---- shutdown ------------------------------------------------------------------------------------


def test_power_off_is_asked_for(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "shutdown")
    assert len(question.body) == 12 + 2048  # Linux ignores anything shorter
    assert struct.unpack_from("<III", question.body) == (0, 0, 0)
    assert seen.agreed == []
    module.answer(question)
    assert seen.agreed == [0]


def test_a_wish_before_the_guest_is_ready_waits(world: World, seen: Recorder) -> None:
    module = make(world, seen, "shutdown")
    assert isinstance(module.service, ShutdownService)
    module.service.power_off(seen.agreed.append)
    module.negotiate()
    module.answer(module.question())
    assert seen.agreed == [0]


def test_a_refusal_is_passed_on(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "shutdown")
    module.answer(question, status=0x8000_4005)
    assert seen.agreed == [errno.EPERM]


def test_wishes_that_a_guest_never_answers_are_bounded(world: World, seen: Recorder) -> None:
    module = make(world, seen, "shutdown")
    assert isinstance(module.service, ShutdownService)
    for _ in range(WISHES_MAX):
        module.service.power_off(seen.agreed.append)
    assert seen.agreed == []
    for _ in range(3):
        module.service.power_off(seen.agreed.append)
    assert seen.agreed == 3 * [errno.EAGAIN]
    module.negotiate()
    module.answer(module.question())
    assert seen.agreed == 3 * [errno.EAGAIN] + WISHES_MAX * [0]
    module.service.power_off(seen.agreed.append)  # there is room again
    module.answer(module.question())
    assert seen.agreed[-1] == 0


# ---- time ----------------------------------------------------------------------------------------


def test_the_clock_is_set_once_and_after_a_jump(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "timesync")
    now, _, _, flag = struct.unpack("<QQQB", question.body)
    assert now == 116444736000000000 + 17_000_000_002_500_000
    assert flag == 1
    module.answer(question)
    world.clock.now += 5
    seen.time_of_day += 5
    module.service.expire()
    assert module.questions() == []
    world.clock.now += 5
    seen.time_of_day += 3605  # the host slept for an hour
    module.service.expire()
    question = module.question()
    assert question.body[24] == 1
    module.answer(question)
    seen.time_of_day -= 2 * JUMP_SECONDS  # somebody set it back
    module.service.expire()
    assert module.question().body[24] == 1


def test_a_guest_that_heard_the_time_late_is_told_again(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "timesync")
    world.clock.now += 3
    seen.time_of_day += 3
    module.answer(question)
    module.service.expire()
    again = module.question()
    assert again.body[24] == 1
    now, before = (struct.unpack_from("<Q", each.body)[0] for each in (again, question))
    assert now - before == 30_000_000
    world.clock.now += LATE_SECONDS / 2
    module.answer(again)
    module.service.expire()
    assert module.questions() == []


def test_otherwise_the_guest_gets_samples(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "timesync")
    assert module.service.deadline() is None
    module.answer(question)
    assert module.service.deadline() == world.clock.now + SAMPLE_SECONDS
    seen.time_of_day += SAMPLE_SECONDS
    later(world, module.service, SAMPLE_SECONDS)
    assert module.question().body[24] == 2
    later(world, module.service, SAMPLE_SECONDS)
    assert module.questions() == []  # the last one has not been answered


def test_a_short_echo_of_the_time_ends_the_channel(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "timesync")
    module.answer(question, question.body[:-1])
    assert not module.open


# ---- facts ---------------------------------------------------------------------------------------


def pair(question: Question, key: str, value: str) -> bytes:
    """What Linux answers."""
    keys, values = (text.encode("utf-16-le") + b"\0\0" for text in (key, value))
    sizes = struct.pack("<III", 1, len(keys), len(values))
    return question.body[:8] + sizes + keys.ljust(512, b"\0") + values.ljust(2048, b"\0")


def test_facts_are_collected(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "kvp")
    assert question.body[:8] == struct.pack("<BBxxI", 3, 2, 0)
    assert len(question.body) == 20 + 512 + 2048
    module.answer(question, pair(question, "OSName", "Debian"))
    question = module.question()
    assert question.body[4] == 1
    module.answer(question, pair(question, "ä", ""))
    module.answer(module.question(), status=ALL_DONE)
    name, debian, umlaut, nothing = (
        (text + "\0").encode("utf-16-le") for text in ("OSName", "Debian", "ä", "")
    )
    assert seen.facts == [[Fact(name, debian), Fact(umlaut, nothing)]]


def test_two_who_ask_are_told_the_same(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "kvp")
    assert isinstance(module.service, KeyValuePairs)
    module.service.tell(seen.facts.append)
    module.answer(question, status=ALL_DONE)
    assert seen.facts == [[], []]
    assert module.questions() == []


def test_a_guest_with_endless_facts_is_cut_off(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "kvp")
    for number in range(FACTS_MAX):
        assert question.body[4] == number
        module.answer(question, pair(question, "k" * 255, "v" * 1023))
        question = next(iter(module.questions()), question)
    (facts,) = seen.facts
    assert isinstance(facts, list)
    assert len(facts) == FACTS_MAX
    assert module.service.idle


def test_who_asks_a_silent_guest_is_told(world: World, seen: Recorder) -> None:
    module = make(world, seen, "kvp")  # without a daemon Linux does not even negotiate
    assert isinstance(module.service, KeyValuePairs)
    module.service.tell(seen.facts.append)
    assert module.service.deadline() == world.clock.now + ANSWER_SECONDS
    later(world, module.service, ANSWER_SECONDS)
    assert seen.facts == [errno.ETIMEDOUT]
    assert module.service.deadline() is None
    module.negotiate()
    assert module.questions() == []


def test_a_guest_that_answers_late_is_asked_again(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "kvp")
    later(world, module.service, ANSWER_SECONDS)
    module.answer(question, pair(question, "a", "b"))
    assert isinstance(module.service, KeyValuePairs)
    module.service.tell(seen.facts.append)
    assert module.question().body[4] == 0


def test_a_guest_that_fails_is_reported(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "kvp")
    module.answer(question, status=0x8000_4005)
    assert seen.facts == [errno.EIO]


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 1), (8, 2), (12, 0), (12, 3), (12, 514), (16, 1), (16, 2050), (16, 0xFFFFFFFF)],
)
def test_impossible_pairs_end_the_channel(
    world: World, seen: Recorder, at: int, value: int
) -> None:
    module, question = busy(world, seen, "kvp")
    body = bytearray(pair(question, "OSName", "Debian"))
    struct.pack_into("<B" if at == 0 else "<I", body, at, value)
    module.answer(question, bytes(body))
    assert not module.open
    assert world.rejected("integration.kvp") == 1


def test_a_pair_cut_short_ends_the_channel(world: World, seen: Recorder) -> None:
    module, question = busy(world, seen, "kvp")
    module.answer(question, pair(question, "OSName", "Debian")[:-8])
    assert not module.open


# ---- all of them ---------------------------------------------------------------------------------


class Whole:
    """All services as a worker has them."""

    def __init__(self, world: World, *, heartbeat_is_ready: bool = False) -> None:
        self.statuses: list[Status] = []
        self.loop = Loop()
        self.services = Integration(
            self.loop,
            world.server,
            world.counters,
            world.clock,
            self.statuses.append,
            heartbeat_is_ready=heartbeat_is_ready,
        )
        self.modules = {
            service.flow.partition(".")[2]: Module(world, service)
            for service in self.services.services
        }


@pytest.mark.parametrize("ready", [False, True])
def test_a_vm_without_an_agent_is_ready_when_its_heart_beats(world: World, ready: bool) -> None:
    whole = Whole(world, heartbeat_is_ready=ready)
    module = whole.modules["heartbeat"]
    module.negotiate()
    assert whole.statuses == []
    question = module.question()
    module.answer(question, _beat(question))
    expected = [Status(StatusKind.HEALTH, value=Health.ALIVE)]
    assert whole.statuses == expected + ready * [Status(StatusKind.READY)]


def test_requests_are_answered(world: World) -> None:
    whole = Whole(world)
    for name in ("shutdown", "kvp"):
        whole.modules[name].negotiate()
    whole.services.handle(Shutdown(7), [])
    whole.modules["shutdown"].answer(whole.modules["shutdown"].question())
    ours, theirs = os.pipe()
    whole.services.handle(Facts(8), [theirs])
    kvp = whole.modules["kvp"]
    question = kvp.question()
    kvp.answer(question, pair(question, "a", "b"))
    kvp.answer(kvp.question(), status=ALL_DONE)
    assert whole.statuses == [Status(StatusKind.DONE, 7), Status(StatusKind.DONE, 8, 12)]
    assert os.read(ours, 100) == struct.pack("<HH", 4, 4) + b"a\0\0\0b\0\0\0"
    os.close(ours)


def test_facts_that_do_not_come_are_an_error(world: World) -> None:
    whole = Whole(world)
    ours, theirs = os.pipe()
    whole.services.handle(Facts(8), [theirs])
    world.clock.now = whole.services.deadline() or 0
    whole.services.expire()
    assert whole.statuses == [Status(StatusKind.FAILED, 8, errno.ETIMEDOUT)]
    assert os.read(ours, 100) == b""
    os.close(ours)

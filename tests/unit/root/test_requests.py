import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.errors import VMClosed, VMError
from teuthis.protocol import Ended, Exec, Health, ProtocolError, ReadFile, Status, StatusKind
from teuthis.root.requests import MAX_OUTSTANDING, Answer, Requests


def execute(requests: Requests) -> Answer:
    return requests.open(lambda number: Exec(number, ["true"], {}, "/"))[0]


def read(requests: Requests) -> Answer:
    return requests.open(lambda number: ReadFile(number, "/x"))[0]


def tell(requests: Requests, kind: StatusKind, number: int = 0, value: int = 0) -> Ended | None:
    return requests.take(Status(kind, number, value).encode())


def test_a_command_from_start_to_end() -> None:
    requests = Requests()
    assert tell(requests, StatusKind.READY) is None
    assert requests.ready.done()
    answer = execute(requests)
    tell(requests, StatusKind.STARTED, answer.id, 77)
    assert answer.started.result() == 77
    assert not answer.finished.done()
    tell(requests, StatusKind.EXITED, answer.id, 3)
    assert answer.finished.result().value == 3


def test_a_command_that_does_not_start() -> None:
    requests = Requests()
    answer = execute(requests)
    tell(requests, StatusKind.FAILED, answer.id, 2)
    assert answer.started.result() == 0
    assert answer.finished.result() == Status(StatusKind.FAILED, answer.id, 2)


def test_requests_are_answered_in_any_order() -> None:
    requests = Requests()
    first, second = read(requests), read(requests)
    tell(requests, StatusKind.DONE, second.id, 2)
    tell(requests, StatusKind.DONE, first.id, 1)
    assert [answer.finished.result().value for answer in (first, second)] == [1, 2]


def test_the_end_has_a_reason() -> None:
    assert tell(Requests(), StatusKind.ENDED, value=Ended.RESET) is Ended.RESET


def test_health_is_kept_and_may_change() -> None:
    requests = Requests()
    assert requests.health is Health.UNKNOWN
    for health in (Health.ALIVE, Health.HUNG, Health.ALIVE):
        assert tell(requests, StatusKind.HEALTH, value=health) is None
        assert requests.health is health


def test_health_that_changes_without_end_is_refused() -> None:
    requests = Requests()
    with pytest.raises(ProtocolError):
        tell(requests, StatusKind.HEALTH, value=Health.UNKNOWN)
    requests = Requests()
    for turn in range(16):
        tell(requests, StatusKind.HEALTH, value=1 + turn % 2)
    with pytest.raises(ProtocolError):
        tell(requests, StatusKind.HEALTH, value=Health.ALIVE)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(StatusKind.DONE, 1), (StatusKind.EXITED, 0), (StatusKind.FAILED, 2), (StatusKind.STARTED, 5)],
)
def test_an_answer_to_no_request_is_refused(kind: StatusKind, value: int) -> None:
    with pytest.raises(ProtocolError):
        tell(Requests(), kind, 9, value)


def test_a_second_answer_is_refused() -> None:
    requests = Requests()
    answer = execute(requests)
    tell(requests, StatusKind.STARTED, answer.id, 5)
    with pytest.raises(ProtocolError):
        tell(requests, StatusKind.STARTED, answer.id, 5)
    tell(requests, StatusKind.EXITED, answer.id, 0)
    with pytest.raises(ProtocolError):
        tell(requests, StatusKind.EXITED, answer.id, 0)


def test_an_answer_of_another_kind_is_refused() -> None:
    requests = Requests()
    command, file = execute(requests), read(requests)
    with pytest.raises(ProtocolError):
        tell(requests, StatusKind.DONE, command.id, 1)
    for kind, value in ((StatusKind.EXITED, 0), (StatusKind.STARTED, 5)):
        with pytest.raises(ProtocolError):
            tell(requests, kind, file.id, value)


def test_ready_twice_is_refused() -> None:
    requests = Requests()
    tell(requests, StatusKind.READY)
    with pytest.raises(ProtocolError):
        tell(requests, StatusKind.READY)


@given(st.lists(st.binary(min_size=30, max_size=34), max_size=8))
def test_a_hostile_worker_can_only_break_the_protocol(packets: list[bytes]) -> None:
    requests = Requests()
    execute(requests)
    for packet in packets:
        try:
            requests.take(packet)
        except ProtocolError:
            return


def test_everybody_who_waits_learns_of_the_end() -> None:
    requests = Requests()
    command, file = execute(requests), read(requests)
    requests.fail(lambda: VMClosed("closed"))
    promises = (requests.ready, command.started, command.finished, file.finished)
    errors = [promise.exception() for promise in promises]
    assert [type(error) for error in errors] == [VMClosed] * 4
    assert command.finished.exception() is not file.finished.exception()
    with pytest.raises(VMClosed):
        execute(requests)


def test_outstanding_requests_are_bounded() -> None:
    requests = Requests()
    answers = [read(requests) for _ in range(MAX_OUTSTANDING)]
    with pytest.raises(VMError):
        read(requests)
    requests.withdraw(answers[0])
    read(requests)

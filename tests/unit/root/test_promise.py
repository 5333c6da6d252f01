"""Promises between threads."""

import threading

import pytest

from teuthis.root.promise import Promise


def test_a_value_reaches_all_who_wait() -> None:
    promise: Promise[int] = Promise()
    seen: list[int] = []
    waiting = [threading.Thread(target=lambda: seen.append(promise.result())) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert not promise.done()
    promise.set_result(7)
    for thread in waiting:
        thread.join(100)
    assert seen == [7, 7, 7]
    assert promise.done()
    assert promise.exception() is None


def test_an_error_is_raised_each_time() -> None:
    promise: Promise[int] = Promise()
    promise.set_exception(ValueError("why"))
    for _ in range(2):
        with pytest.raises(ValueError, match="why"):
            promise.result()
    assert isinstance(promise.exception(), ValueError)


def test_waiting_has_a_limit() -> None:
    promise: Promise[int] = Promise()
    with pytest.raises(TimeoutError):
        promise.result(0.01)
    with pytest.raises(TimeoutError):
        promise.exception(0)


def test_callbacks_come_once_before_and_after() -> None:
    promise: Promise[str] = Promise()
    seen: list[str] = []
    promise.add_done_callback(lambda kept: seen.append("early " + kept.result()))
    assert not seen
    promise.set_result("yes")
    promise.add_done_callback(lambda kept: seen.append("late " + kept.result()))
    assert seen == ["early yes", "late yes"]

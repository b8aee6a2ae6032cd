"""The queue behind uploads and MLflow's entries: what fails is retried and nothing waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from resp_tune.common import retry_queue
from resp_tune.common.retry_queue import SKIPPED, RetryQueue


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retry_queue, "LONGEST_PAUSE", 0.02)


@contextmanager
def queue(**options: Any) -> Iterator[RetryQueue]:
    made = RetryQueue("test", **options)
    try:
        yield made
    finally:
        made.close(5.0)


class Store:
    """Takes values unless it is away; `entered` and `open` hold a write up."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.away = False
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()

    def write(self, value: str) -> None:
        self.entered.set()
        assert self.open.wait(10)
        if self.away:
            raise OSError(f"away for {value}")
        self.taken.append(value)


def test_order_is_kept_through_an_outage_which_is_reported_once() -> None:
    store, events = Store(), list[object]()
    store.away = True
    with queue(
        ordered=True,
        on_outage=lambda error: events.append(str(error)),
        on_recovery=lambda waiting: events.append(waiting),
    ) as ordered:
        for value in "abc":
            ordered.put(value, lambda value=value: store.write(value))  # type: ignore[misc]
        assert ordered.flush(10, until_failure=True) == 3
        assert ordered.flush(0.1) == 3
        assert str(ordered.failure) == "away for a"
        store.away = False
        assert ordered.flush(10) == 0
        assert ordered.failure is None
    assert store.taken == ["a", "b", "c"]
    assert events == ["away for a", 2]
    assert ordered.done == 3


def test_a_task_replaces_a_waiting_one_of_its_name() -> None:
    store = Store()
    store.open.clear()
    with queue() as keyed:
        keyed.put("a", lambda: store.write("first"))
        assert store.entered.wait(10)
        for value in ("old", "new"):
            keyed.put("b", lambda value=value: store.write(value))  # type: ignore[misc]
        keyed.put("a", lambda: store.write("changed meanwhile"))
        store.open.set()
        assert keyed.flush(10) == 0
    assert store.taken == ["first", "new", "changed meanwhile"]


def test_without_order_what_fails_lets_others_pass_and_yields_to_a_newer_task() -> None:
    store = Store()

    def broken() -> None:
        raise OSError("a file that cannot be read")

    with queue() as keyed:
        keyed.put("bad", broken)
        keyed.put("good", lambda: store.write("good"))
        assert keyed.flush(0.5) == 1
        assert store.taken == ["good"]
        keyed.put("bad", lambda: store.write("mended"))
        assert keyed.flush(10) == 0
    assert store.taken == ["good", "mended"]


def test_what_is_refused_for_good_is_dropped_and_reported() -> None:
    store, refused = Store(), list[str]()

    def wrong() -> None:
        raise ValueError("never")

    with queue(
        ordered=True,
        is_permanent=lambda error: isinstance(error, ValueError),
        on_refusal=lambda name, error: refused.append(f"{name}: {error}"),
    ) as ordered:
        ordered.put("wrong", wrong)
        ordered.put("right", lambda: store.write("right"))
        assert ordered.flush(10) == 0
    assert (store.taken, refused) == (["right"], ["wrong: never"])


def test_a_skipped_task_ends_no_outage() -> None:
    store, back = Store(), list[int]()
    store.away = True
    with queue(on_recovery=back.append) as keyed:
        keyed.put("a", lambda: store.write("a"))
        assert keyed.flush(10, until_failure=True) == 1
        keyed.put("gone", lambda: SKIPPED)
        keyed.flush(0.2)
        assert (back, keyed.done) == ([], 0)
        store.away = False
        assert keyed.flush(10) == 0
    assert (len(back), keyed.done) == (1, 1)


def test_lingering_tasks_wait_unless_the_queue_is_flushed() -> None:
    store = Store()
    with queue(ordered=True) as ordered:
        ordered.put("later", lambda: store.write("later"), linger=60)
        ordered.put("after it", lambda: store.write("after it"))
        assert not store.entered.wait(0.2)
        assert ordered.flush(10) == 0
    assert store.taken == ["later", "after it"]


def test_nothing_begins_after_the_end() -> None:
    store = Store()
    closed = RetryQueue("test")
    closed.close(5.0)
    closed.put("a", lambda: store.write("a"))
    assert closed.flush(0.1) == 1
    assert store.taken == []

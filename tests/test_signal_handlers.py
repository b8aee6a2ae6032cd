"""The end of a terminal is an interrupt, and commands run in any thread."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resp_tune import search
from resp_tune.cli import run
from resp_tune.cluster.ray_thread import run_in_thread
from resp_tune.common.signal_handlers import (
    ARRIVAL_SECONDS,
    INTERRUPTS,
    DroppedInterrupts,
    dropped_interrupts_resent,
)
from resp_tune.errors import INTERRUPTED
from resp_tune.harness.signals import handle_interrupts


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", INTERRUPTS, ids=lambda number: number.name)
def test_a_command_is_interrupted(number: int) -> None:
    assert run(lambda _: os.kill(os.getpid(), number)) == INTERRUPTED


@pytest.mark.parametrize("number", INTERRUPTS, ids=lambda number: number.name)
def test_a_search_says_how_to_resume(number: int, said: list[str]) -> None:
    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            os.kill(os.getpid(), number)

    assert run(body) == INTERRUPTED
    assert "rerun the same command to resume" in said


def test_an_interrupted_query_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """SQLAlchemy logs an error with a traceback where it cannot close the cursor of a query."""
    pool = logging.getLogger("sqlalchemy.pool.impl.QueuePool")

    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                pool.error("Error closing cursor")

    assert run(body) == INTERRUPTED
    pool.error("a real error")
    assert [record.getMessage() for record in caplog.records if record.name == pool.name] == [
        "a real error"
    ]


class Doomed:
    """Calls a function when it is deleted."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


class Referent:
    """Something that a weak reference may refer to."""


def in_del(call: Callable[[], object]) -> None:
    """Call in a finalizer."""
    Doomed(call)


def in_weakref_callback(call: Callable[[], object]) -> None:
    """Call where a weak reference's object is deleted."""
    referent = Referent()
    reference = weakref.ref(referent, lambda _: call())
    del referent
    assert reference() is None


DROPPED = pytest.mark.parametrize("where", [in_del, in_weakref_callback])
Where = Callable[[Callable[[], object]], None]


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list to which the hook of before adds what it is given."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: found.append(unraisable.exc_type))
    return found


@DROPPED
@pytest.mark.parametrize("number", INTERRUPTS, ids=lambda number: number.name)
def test_a_dropped_interrupt_ends_a_command(
    number: int, where: Where, passed_on: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    went_on = []

    def body(_: object) -> None:
        where(lambda: signal.raise_signal(number))
        went_on.append(1)
        time.sleep(10)
        went_on.append(2)

    hook = sys.unraisablehook
    assert run(body) == INTERRUPTED
    assert went_on == [1], "it was dropped, and sent again"
    assert passed_on == []
    assert sys.unraisablehook is hook
    assert "Traceback" not in capfd.readouterr().err


@DROPPED
def test_a_dropped_interrupt_ends_a_search_and_is_no_second_one(
    where: Where, passed_on: list[Any], said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    hook, times = sys.unraisablehook, []

    def drop() -> None:
        times.append(1)
        signal.raise_signal(signal.SIGTERM)

    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            where(drop)
            time.sleep(10)
            times.append(2)

    assert run(body) == INTERRUPTED
    assert times == [1]
    assert passed_on == []
    assert sys.unraisablehook is hook
    assert "rerun the same command to resume" in said
    printed = capfd.readouterr().err
    assert printed.count("stopping") == 1
    assert "Traceback" not in printed


def test_an_interrupt_that_is_dropped_again_is_sent_again(passed_on: list[Any]) -> None:
    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            in_del(lambda: signal.raise_signal(signal.SIGINT))
            in_del(lambda: time.sleep(0.5))  # the next one arrives in a finalizer too
            time.sleep(10)

    begun = time.monotonic()
    assert run(body) == INTERRUPTED
    assert time.monotonic() - begun < 5
    assert passed_on == []


def test_one_that_another_handler_took_is_not_the_next_one() -> None:
    """Else the user's second interrupt would not stop the search at once."""
    dropped = DroppedInterrupts()
    dropped.resent += [(signal.SIGINT, time.monotonic() - ARRIVAL_SECONDS)]
    assert not dropped.was_resent(signal.SIGINT)
    dropped.resent += [(signal.SIGTERM, time.monotonic())]
    assert not dropped.was_resent(signal.SIGINT)
    assert dropped.was_resent(signal.SIGTERM)
    assert not dropped.was_resent(signal.SIGTERM)


def test_an_interrupt_dropped_just_before_the_end_is_not_lost() -> None:
    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            in_del(lambda: signal.raise_signal(signal.SIGINT))

    assert run(body) == INTERRUPTED
    assert run(lambda _: in_del(lambda: signal.raise_signal(signal.SIGINT))) == INTERRUPTED
    time.sleep(0.2)  # nothing arrives any more


def test_other_errors_of_finalizers_are_passed_on(passed_on: list[Any]) -> None:
    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            in_del(lambda: [][0])

    assert run(body) == 0
    assert passed_on == [IndexError]


def test_an_error_leaves_the_hook_as_it_was() -> None:
    hooks = [sys.unraisablehook]

    def fail() -> None:
        with dropped_interrupts_resent():
            hooks.append(sys.unraisablehook)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert hooks[1] is not hooks[0]
    assert sys.unraisablehook is hooks[0]


SECOND = """
import signal, time
from resp_tune.harness.signals import handle_interrupts

class Doomed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

with handle_interrupts("rerun it"):
    Doomed()
    try:
        time.sleep(10)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)
"""


def test_a_second_interrupt_after_a_dropped_one_stops_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SECOND], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == INTERRUPTED
    assert re.fullmatch(r"stopping: .*\nstopped at once; rerun it\n", done.stderr)


def test_a_terminal_that_is_ignored_stays_so() -> None:
    """As `nohup` asks for."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def body(_: object) -> None:
        with handle_interrupts("rerun the same command to resume"):
            os.kill(os.getpid(), signal.SIGHUP)

    assert run(body) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def in_a_thread(call: Callable[[], object]) -> object:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0] if results else "it raised"


def test_a_command_runs_in_a_thread() -> None:
    started = []

    def body(_: object) -> None:
        with (
            handle_interrupts("rerun the same command to resume"),
            run_in_thread(lambda: started.append(1), lambda: started.append(2)),
        ):
            pass

    assert in_a_thread(lambda: run(body)) == 0
    assert started == [1, 2]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_wrong_flag_in_a_thread_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_a_thread(lambda: run(search.main, ["--trails", "3"])) == 2
    assert capsys.readouterr().err.count("\n") == 1

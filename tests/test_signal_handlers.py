"""The end of a terminal is an interrupt, and commands run in any thread."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from resp_tune import search
from resp_tune.cli import run
from resp_tune.cluster.ray_thread import run_in_thread
from resp_tune.common.signal_handlers import INTERRUPTS
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

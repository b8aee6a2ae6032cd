"""Rows that take turns, each in a process of its own, so that the machine's drift hits them all."""

from __future__ import annotations

import multiprocessing
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from resp_tune.errors import RunError

Figures = dict[str, float]
JOIN_SECONDS = 20.0


class Runner:
    """A process that holds an iterator and takes its next value when it is asked to.

    Its own process, because threads, allocator settings and freed memory of one row would
    otherwise show in the next. While it is not asked it sleeps.
    """

    def __init__(self, begin: Callable[..., Iterator[Figures]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, begin, args))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._pipe.close()  # what it waits for
        self.process.join(JOIN_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def next(self) -> Figures:
        """The next value; `RunError` when the process has failed."""
        try:
            self._pipe.send(None)
            said = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RunError("a measuring process ended: out of memory?") from error
        if isinstance(said, str):
            raise RunError(f"a measuring process failed: {said}")
        figures: Figures = said
        return figures


def _serve(pipe: Connection, begin: Callable[..., Iterator[Figures]], args: Sequence[Any]) -> None:
    try:
        values = begin(*args)
        while True:
            pipe.recv()
            pipe.send(next(values))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")


def take_turns(
    rows: Mapping[str, Callable[[], Figures]], rounds: int, warm_up: int = 1
) -> dict[str, list[Figures]]:
    """`rounds` values of each row, one of each in turn; `warm_up` rounds before are dropped."""
    taken: dict[str, list[Figures]] = {name: [] for name in rows}
    for n in range(warm_up + rounds):
        for name, take in rows.items():
            figures = take()
            if n >= warm_up:
                taken[name].append(figures)
    return taken


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of `above` ÷ `below` of the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))

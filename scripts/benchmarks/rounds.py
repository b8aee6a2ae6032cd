"""Measure rows in turn, each in its own process, so that drift of the machine affects all alike."""

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


class IteratorProcess:
    """A process that creates an iterator and computes its next value on request.

    A process of its own keeps the threads, allocator settings and freed memory of one row from
    affecting the next. Between requests it sleeps.
    """

    def __init__(self, begin: Callable[..., Iterator[Figures]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, begin, args))
        self.process.start()
        child.close()

    def __enter__(self) -> IteratorProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._pipe.close()  # ends the process's wait
        self.process.join(JOIN_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def next(self) -> Figures:
        """Return the next value; raise `RunError` if the process has failed."""
        try:
            self._pipe.send(None)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RunError("a measuring process ended: out of memory?") from error
        if isinstance(answer, str):
            raise RunError(f"a measuring process failed: {answer}")
        figures: Figures = answer
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
    """Return `rounds` figures of each row, measured in turn after `warm_up` dropped rounds."""
    figures: dict[str, list[Figures]] = {name: [] for name in rows}
    for n in range(warm_up + rounds):
        for name, measure in rows.items():
            measured = measure()
            if n >= warm_up:
                figures[name].append(measured)
    return figures


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median over rounds of the ratio within the same round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))

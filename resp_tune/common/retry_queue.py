"""Run tasks in order on one thread, retrying them through an outage."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between attempts; each is twice the last one

Task = Callable[[], object]
SKIPPED = object()  # what a task may return to say that it had nothing to do


class _Entry(NamedTuple):
    name: str
    task: Task
    due: float  # by the monotonic clock


class RetryQueue:
    """A queue of idempotent tasks that never blocks the caller: each is retried until it succeeds.

    With `ordered`, a task that fails stays first. Without, it goes to the end of the queue, and a
    task replaces a waiting one of the same name. `on_outage(error)` is called at the first of a
    series of failures, `on_recovery(waiting)` at the success that ends it. A task is dropped, and
    `on_refusal(name, error)` called, if `is_permanent(error)`.
    """

    def __init__(
        self,
        thread: str,
        *,
        ordered: bool = False,
        on_outage: Callable[[Exception], None] = lambda error: None,
        on_recovery: Callable[[int], None] = lambda waiting: None,
        is_permanent: Callable[[Exception], bool] = lambda error: False,
        on_refusal: Callable[[str, Exception], None] = lambda name, error: None,
    ) -> None:
        self._ordered = ordered
        self._on_outage, self._on_recovery = on_outage, on_recovery
        self._is_permanent, self._on_refusal = is_permanent, on_refusal
        self.done = 0  # tasks that succeeded
        self.failure: Exception | None = None  # of the outage that lasts
        self._entries: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._closed = self._skip_pause = self._busy = False
        self._flushing = 0  # callers in `flush`
        self._attempts = 0  # that began
        self._last_failed = 0  # the number of the attempt that failed last
        self._thread = threading.Thread(target=self._work, name=thread, daemon=True)
        self._thread.start()

    def put(self, name: str, task: Task, *, linger: float = 0.0) -> None:
        """Queue `task` and return at once.

        Neither it nor what follows begins before `linger` seconds have passed, unless a caller
        waits in `flush`.
        """
        with self._changed:
            if not self._ordered:
                self._entries = deque(e for e in self._entries if e.name != name)
            self._entries.append(_Entry(name, task, time.monotonic() + linger))
            self._changed.notify_all()

    def flush(self, seconds: float, *, until_failure: bool = False) -> int:
        """Wait at most `seconds` for all tasks to succeed; return how many have not.

        With `until_failure`, return as soon as an attempt fails that began after this call.
        """
        with self._changed:
            self._skip_pause = True  # the outage may be over
            self._flushing += 1
            since = self._attempts
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self._waiting() or (until_failure and self._last_failed > since),
                timeout=seconds,
            )
            self._flushing -= 1
            return self._waiting()

    def close(self, seconds: float = 0.0) -> None:
        """Begin no further task, and wait at most `seconds` for one that runs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=seconds)

    def _waiting(self) -> int:
        return len(self._entries) + self._busy

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while (entry := self._next()) is not None:
            try:
                skipped = entry.task() is SKIPPED
            except Exception as error:  # whatever it is: the thread must live
                if self._is_permanent(error):
                    self._on_refusal(entry.name, error)
                    self._finish(entry)
                    continue
                if self.failure is None:
                    self._on_outage(error)
                self._finish(entry, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._skip_pause or self._closed, pause)
                    self._skip_pause = False
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if not skipped:
                if self.failure is not None:
                    self.failure = None
                    self._on_recovery(len(self._entries))
                self.done += 1
                pause = FIRST_PAUSE
            self._finish(entry)

    def _next(self) -> _Entry | None:
        with self._changed:
            while not self._closed:
                rest = self._entries[0].due - time.monotonic() if self._entries else None
                if rest is not None and (rest <= 0 or self._flushing):
                    self._busy, self._attempts = True, self._attempts + 1
                    return self._entries.popleft()
                self._changed.wait(rest)
            return None

    def _finish(self, entry: _Entry, error: Exception | None = None) -> None:
        with self._changed:
            self._busy = False
            if error is not None:
                self.failure, self._last_failed = error, self._attempts
                if self._ordered:
                    self._entries.appendleft(entry)
                elif all(waiting.name != entry.name for waiting in self._entries):
                    self._entries.append(entry)
            self._changed.notify_all()

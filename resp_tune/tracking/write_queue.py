"""Writes to MLflow in order, on one thread, off the search's critical path.

A store that does not answer stops nobody: entries wait in memory, in order, and are tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from resp_tune.tracking.uri import redact, root_cause, scrub

log = logging.getLogger(__name__)


_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
# What the store refuses for good; anything else may pass when it is tried again.
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


@dataclass(frozen=True)
class _Entry:
    what: str
    write: Callable[[], object]
    due: float  # of the monotonic clock


class WriteQueue:
    """An ordered queue of writes. A write may be tried several times: it must be idempotent."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._entries: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._closing = self._hurry = False
        self._flushing = 0  # who waits for the queue to be empty
        self._outage: str | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, what: str, write: Callable[[], object], *, linger: float = 0.0) -> None:
        """Queue `write`; returns at once. `what` names it in messages.

        It is not begun before `linger` seconds have passed, nor is what comes after it, unless
        somebody waits in `flush`.
        """
        with self._changed:
            self._entries.append(_Entry(what, write, time.monotonic() + linger))
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until the queue is empty, `seconds` at most; whether it is."""
        with self._changed:
            self._hurry = True  # an outage's pause is cut short: it may be over
            self._flushing += 1
            self._changed.notify_all()
            empty = self._changed.wait_for(lambda: not self._entries, timeout=seconds)
            self._flushing -= 1
            return empty

    def close(self, seconds: float) -> int:
        """`flush`, end the thread, and say what could not be written; how many entries that is."""
        self.flush(seconds)
        with self._changed:
            self._closing = True
            left, reason = len(self._entries), self._outage or "it is slow"
            self._changed.notify_all()
        if left:
            log.warning(
                f"{left} entries could not be written to MLflow at '{redact(self._uri)}' "
                f"({reason}); nothing of the search is lost: the same command writes them again"
            )
        else:
            self._thread.join(timeout=5)
        return left

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while (entry := self._next()) is not None:
            failure = _attempt(entry)
            if failure is None:
                self._recovered()
                pause = _FIRST_PAUSE
            elif is_permanent(failure):
                log.warning(f"MLflow refused the {entry.what}: {self._reason(failure)}")
            else:
                self._suffer(self._reason(failure))
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            with self._changed:
                self._entries.popleft()
                self._changed.notify_all()

    def _next(self) -> _Entry | None:
        with self._changed:
            while not self._closing:
                rest = self._entries[0].due - time.monotonic() if self._entries else None
                if rest is not None and (rest <= 0 or self._flushing):
                    return self._entries[0]
                self._changed.wait(rest)
            return None

    def _suffer(self, reason: str) -> None:
        if self._outage is None:
            log.warning(
                f"MLflow at '{redact(self._uri)}' cannot be written to ({reason}): "
                "the search goes on, its entries are kept and written when it is back"
            )
        self._outage = reason

    def _recovered(self) -> None:
        if self._outage is not None:
            self._outage = None
            log.info(f"MLflow is back: writing the {len(self._entries)} entries that waited")

    def _reason(self, error: Exception) -> str:
        if not is_permanent(error):
            return root_cause(error, self._uri)
        said = str(error).strip().splitlines() or [type(error).__name__]
        return scrub(said[0], self._uri)[:300]

    def _rest(self, pause: float) -> None:
        until = time.monotonic() + pause
        with self._changed:
            self._hurry = False
            while not (self._hurry or self._closing) and (rest := until - time.monotonic()) > 0:
                self._changed.wait(rest)


def _attempt(entry: _Entry) -> Exception | None:
    try:
        entry.write()
    except Exception as error:  # handled by the caller, whatever it is: the thread must live
        return error
    return None


def is_permanent(error: Exception) -> bool:
    """Whether a write that failed with `error` is given up."""
    code = getattr(error, "error_code", None)
    # Not mlflow's own exception and not a network's: a mistake in this program, so no retrying.
    return code in _PERMANENT if code is not None else not isinstance(error, OSError)

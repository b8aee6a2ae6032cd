"""Files on their way to an object store, on a thread of their own.

A store that is away stops nobody: what is due is remembered by name, and tried again. A file that
has changed meanwhile goes up once, as it is then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from resp_tune.storage.object_store import ObjectPath, StorageError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0

Content = Callable[[], bytes | None]  # None: there is nothing to send any more


class Uploader:
    """What of `place` is due. `outage` and `back` are called when the store goes and comes."""

    def __init__(
        self,
        place: ObjectPath,
        *,
        outage: Callable[[str], None] = lambda reason: None,
        back: Callable[[], None] = lambda: None,
    ) -> None:
        self.place = place
        self._outage, self._back = outage, back
        self.sent = 0  # files in all
        self._due: dict[str, Content] = {}
        self._changed = threading.Condition()
        self._ending = self._hurry = self._busy = False
        self._failed: str | None = None
        self._attempts = 0  # that began
        self._failures_of = 0  # the attempt that failed last
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def add(self, name: str, content: Content | Path) -> None:
        """Send a file, or what `content` gives when its turn comes; returns at once."""
        with self._changed:
            self._due.pop(name, None)  # to the end of the line
            self._due[name] = content if callable(content) else _reader(content)
            self._changed.notify_all()

    def flush(self, seconds: float) -> str | None:
        """Wait until nothing is due; else the reason, of an attempt that began after the call.

        `seconds` at most.
        """
        with self._changed:
            self._hurry = True  # an outage's pause is cut short: it may be over
            since = self._attempts
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not (self._due or self._busy) or self._failures_of > since, seconds
            )
            if not (self._due or self._busy):
                return None
            return self._failed or f"it has not taken all within {seconds:g} s"

    def close(self) -> None:
        """End the thread; what is due then is not sent."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while (next_one := self._next()) is not None:
            name, content = next_one
            before = self._failed
            sent, reason = self._send(name, content)
            with self._changed:
                self._busy = False
                if reason is not None:
                    self._due.setdefault(name, content)
                    self._failures_of = self._attempts
                    self._failed = reason
                elif sent:
                    self._failed = None
                    self.sent += 1
                self._changed.notify_all()
            if reason is not None:
                if before is None:
                    self._outage(reason)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            elif sent:
                pause = _FIRST_PAUSE
                if before is not None:
                    self._back()

    def _send(self, name: str, content: Content) -> tuple[bool, str | None]:
        """Whether something was sent, and why it was not."""
        try:
            data = content()
            if data is None:
                return False, None
            self.place.write(data, name)
        except StorageError as error:
            return False, str(error)
        except Exception as error:  # a disk, a database: the thread must live, and try again
            return False, " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return True, None

    def _next(self) -> tuple[str, Content] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._due or self._ending)
            if self._ending:
                return None
            name = next(iter(self._due))
            self._busy, self._attempts = True, self._attempts + 1
            return name, self._due.pop(name)

    def _rest(self, pause: float) -> None:
        until = time.monotonic() + pause
        with self._changed:
            while not (self._hurry or self._ending) and (rest := until - time.monotonic()) > 0:
                self._changed.wait(rest)
            self._hurry = False


def _reader(path: Path) -> Content:
    def read() -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:  # made and taken away again
            return None

    return read

"""End a trial that takes too long, even if it hangs inside a call that never returns."""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path

STACK_FILE = "timeout.txt"  # in a trial's folder: its stack when it was ended
MARGIN_SECONDS = 10.0  # a trial that still responds ends by itself after an epoch; that costs less


class TrialWatchdog:
    """Watch one attempt at a trial, and end its process `MARGIN_SECONDS` after `seconds`.

    `attempt` is the driver's name for it. With `seconds` None nothing is watched. A process watches
    one trial at a time.
    """

    def __init__(self, folder: Path, attempt: str, seconds: float | None) -> None:
        self.path, self.attempt, self.seconds = folder / STACK_FILE, attempt, seconds
        self.expired_before = self._has_ended_this_attempt()
        self._file = None
        if seconds is None or self.expired_before:
            return
        self._started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        self._file.write(f"{attempt}\n")
        self._file.flush()
        # It runs in a thread of the C library, which no call that holds the GIL can block.
        faulthandler.dump_traceback_later(seconds + MARGIN_SECONDS, exit=True, file=self._file)

    def _has_ended_this_attempt(self) -> bool:
        """Return whether the file shows that this attempt was ended: Ray retries it elsewhere."""
        try:
            lines = self.path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return len(lines) > 1 and lines[0] == self.attempt

    @property
    def expired(self) -> bool:
        """Return whether the time is up."""
        if self.expired_before:
            return True
        return self._file is not None and time.monotonic() - self._started > (self.seconds or 0.0)

    def stop(self) -> None:
        """Stop watching, when the trial has ended or another one begins."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        where = f" inside one epoch; its stack: {self.path.name}" if self.expired_before else ""
        return f"it took longer than --trial-timeout ({self.seconds:g} s){where}"

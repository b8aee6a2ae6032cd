"""Ends a trial that takes too long, also one that hangs inside a call that never returns."""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path

TRACE = "timeout.txt"  # in a trial's folder: where it stood when its time was up
MARGIN_SECONDS = 10.0  # a trial that still answers ends by itself after an epoch; that costs less


class TrialWatchdog:
    """Watches one attempt at a trial; `attempt` names it, as the driver handed it out.

    `seconds` None: nothing is watched. A process watches one trial at a time.
    """

    def __init__(self, folder: Path, attempt: str, seconds: float | None) -> None:
        self.path, self.attempt, self.seconds = folder / TRACE, attempt, seconds
        self.ended_before = self._found()
        self._file = None
        if seconds is None or self.ended_before:
            return
        self._started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        self._file.write(f"{attempt}\n")
        self._file.flush()
        # It watches from a thread of the C library, which no call can keep waiting for the GIL.
        faulthandler.dump_traceback_later(seconds + MARGIN_SECONDS, exit=True, file=self._file)

    def _found(self) -> bool:
        """Whether this attempt has ended a process: Ray tries it again in another."""
        try:
            lines = self.path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return len(lines) > 1 and lines[0] == self.attempt

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        if self.ended_before:
            return True
        return self._file is not None and time.monotonic() - self._started > (self.seconds or 0.0)

    def stop(self) -> None:
        """The trial has ended, or another one begins."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        where = f" inside one epoch; where it stood: {self.path.name}" if self.ended_before else ""
        return f"it took longer than --trial-timeout ({self.seconds:g} s){where}"

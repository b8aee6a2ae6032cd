"""The two ways a command ends badly, as exceptions that carry one line for the user."""

from __future__ import annotations

import atexit
import difflib
import os
import sys
from collections.abc import Iterable

INTERRUPTED = 130  # the exit code of a command that Ctrl-C or SIGTERM has ended


class RespTuneError(Exception):
    """Base of the errors shown to a user as one line instead of a traceback."""

    exit_code = 1


class UserError(RespTuneError):
    """Wrong input, or something outside that cannot be reached: exit 2, nothing was written.

    The message says what was given, why it is wrong and what to type instead.
    """

    exit_code = 2


class RunError(RespTuneError):
    """The command ran and failed: exit 1."""


def leave_at_exit(exit_code: int) -> None:
    """When all else is done, end the process before it waits for threads that hang."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            print(end="", file=stream, flush=True)
        os._exit(exit_code)

    atexit.register(leave)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'lr'?` when a known word is close to `word`, else the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"

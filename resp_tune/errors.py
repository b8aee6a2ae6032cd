"""The errors that are shown to the user as one line, and the exit codes of commands."""

from __future__ import annotations

import atexit
import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

INTERRUPTED = 130  # the exit code of a command that Ctrl-C or SIGTERM has ended


class RespTuneError(Exception):
    """Base of the errors shown to a user as one line instead of a traceback."""

    exit_code = 1


class UserError(RespTuneError):
    """A wrong input, or a service that cannot be reached: exit code 2, nothing was written.

    The message says what was given, why it is wrong and what to type instead. `reason` is the
    message without what was found in the data before.
    """

    exit_code = 2

    def __init__(self, message: object = "", reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = str(message) if reason is None else reason


class RunError(RespTuneError):
    """A failure while running: exit code 1."""


@contextmanager
def named_in_errors(variable: str | None) -> Iterator[None]:
    """Put `$VARIABLE: ` before the message of a `UserError` raised inside; None: change nothing.

    For a value that comes from an environment variable, which the user may not remember.
    """
    try:
        yield
    except UserError as error:
        if variable is None or str(error).startswith(f"${variable}"):
            raise
        raise UserError(f"${variable}: {error}") from error


def leave_at_exit(exit_code: int) -> None:
    """Exit after the other atexit handlers, so that hanging threads cannot block it."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            print(end="", file=stream, flush=True)
        os._exit(exit_code)

    atexit.register(leave)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'lr'?` if a known word is close to `word`, else all known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def choose_from(word: str, known: Sequence[str]) -> str:
    """Return `choose asha or none`, after `did you mean 'asha'?` if one is close to `word`."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choose {', '.join(known[:-1])} or {known[-1]}"

"""Send the messages of the logger `resp_tune` to stderr, so that stdout holds results only."""

from __future__ import annotations

import io
import logging
import os
import sys


class _Formatter(logging.Formatter):
    """Print information as it is, and everything above with its level in front."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return level + super().format(record)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic in its stub
    """Write to what `sys.stderr` is at the moment, which tests and notebooks replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_Formatter())

    @property
    def stream(self) -> object:
        return sys.stderr


def fill_closed_streams() -> None:
    """Open the null device as stdin, stdout or stderr where the shell has closed it (`2>&-`).

    A file that gets such a number, such as a database, would hold what C libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def never_fail_to_encode() -> None:
    """Let stdout and stderr print `?` for characters that their encoding does not have.

    As of a terminal that is not UTF-8, or of a file name that is not.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def configure(*, quiet: bool = False, verbose: bool = False) -> None:
    """Print messages of `resp_tune` on stderr: warnings and above if `quiet`, all if `verbose`."""
    logger = logging.getLogger("resp_tune")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    logger.propagate = False  # libraries add handlers to the root logger
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    # Optuna imports it and we draw nothing with it; it warns of a home folder that is read-only.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)

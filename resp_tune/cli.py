"""What all commands share: one-line errors, exit codes, messages on stderr, types of flags."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from resp_tune.common.fault_points import read_environment
from resp_tune.common.log import configure
from resp_tune.common.paths import full_disk, user_path
from resp_tune.common.text import one_line
from resp_tune.errors import INTERRUPTED, RespTuneError, UserError, nearest

log = logging.getLogger("resp_tune.cli")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest known flag."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(
            prog=f"python -m resp_tune.{module}",
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a wrong argument."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """`parse_args`, with a hint for an unknown flag."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            word = unknown[0].split("=")[0]
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            hint = nearest(word, flags) if word.startswith("-") else f"see {self.prog} --help"
            raise UserError(f"unknown argument '{word}': {hint}")
        return args


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help  # `(default: None)` says nothing
        return super()._get_help_string(action)


def run(body: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 failed, 2 wrong input, 130 interrupted."""
    # A polite SIGTERM is a Ctrl-C, also before a command has anything to leave in order.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure()
    try:
        read_environment()
        body(argv)
        print(end="", flush=True)  # heeds a stdout that the shell has closed (`>&-`)
    except RespTuneError as error:
        log.error(one_line(error))
        return error.exit_code
    except KeyboardInterrupt:
        log.info("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout (`| head`) has gone; Python's exit would flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        found = _in_one_line(error)
        if found is None:
            raise
        log.error(f"{one_line(found)}, then type the same command again: it goes on")
        return 1
    return 0


def _in_one_line(error: OSError) -> str | None:
    """What a file or its disk needs, up to what to do; None where no file is to blame."""
    path = error.filename2 or error.filename
    if full_disk(error):
        where = f" to write '{path}'" if path else ""
        return f"no space left{where}: free some"
    if path is None:
        return None
    if isinstance(error, IsADirectoryError):
        return f"'{path}' is a folder, where a file should be: move it away"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"'{path}' is no folder, which it should be: move the file that is in its place away"
    return f"'{path}' cannot be used ({error.strerror}): make it readable and writable"


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    return _integer(text, 1)


def natural_int(text: str) -> int:
    """An integer of at least 0."""
    return _integer(text, 0)


def count_or_auto(text: str) -> int | None:
    """An integer of at least 1, or `auto`, which is None: a program chooses."""
    if text.strip() == "auto":
        return None
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def _integer(text: str, least: int) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip(), re.ASCII) or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def duration(text: str) -> float:
    """`90`, `90s`, `30m`, `2h` as seconds, above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration such as 90s, 30m or 2h")
    return seconds


def existing_folder(text: str) -> Path:
    """A folder that exists; the same words for every command that takes one."""
    path = user_path(text)
    if not path.is_dir():
        kind = "a file, not a folder" if path.exists() else "not there"
        raise UserError(f"'{text}' is {kind}: give a folder")
    return path

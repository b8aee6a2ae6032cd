"""What all commands share: flags from option fields, one-line errors, exit codes, messages."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from resp_tune import __version__
from resp_tune.common import timeline
from resp_tune.common.fault_points import read_environment
from resp_tune.common.log import configure, fill_closed_streams, never_fail_to_encode
from resp_tune.common.paths import describe_file_error, user_path
from resp_tune.common.signal_handlers import dropped_interrupts_resent, interrupt_by_signals
from resp_tune.common.text import one_line
from resp_tune.errors import INTERRUPTED, RespTuneError, UserError, nearest

log = logging.getLogger("resp_tune.cli")

MAX_INTEGER = 10**18  # of a flag


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest known flag."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(
            prog=f"python -m resp_tune.{module}",
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "-q", "--quiet", action="store_true", help="print warnings and errors only"
        )
        self.add_argument("-v", "--verbose", action="store_true", help="print details as well")
        self.add_argument("--version", action="version", version=f"resp-tune {__version__}")

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` for a wrong argument; argparse calls this."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse like `parse_args`, with a hint for an unknown flag, and set the log level."""
        args, unknown = self.parse_known_args(argv)
        try:
            Path.cwd()
        except OSError as error:
            raise UserError(
                f"the current folder cannot be used ({error.strerror}): cd to another one"
            ) from error
        if unknown:
            word = unknown[0].split("=")[0]
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            hint = nearest(word, flags) if word.startswith("-") else f"see {self.prog} --help"
            raise UserError(f"unknown argument '{word}': {hint}")
        configure(quiet=args.quiet, verbose=args.verbose)
        return args


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help  # `(default: None)` says nothing
        return super()._get_help_string(action)


def add_fields(
    parser: argparse.ArgumentParser,
    owner: type,
    *,
    groups: Sequence[str] = (),
    unset: Mapping[str, str | None] | None = None,
) -> None:
    """Add a flag for each field of the dataclass `owner` that has a help text.

    A field's metadata holds `help` and, if they apply, `metavar`, `choices` (for completion),
    `low`, `group` (a title in `groups`; fields without one follow in the first group), `auto` (the
    word `auto` is typed for None) and `duration` (seconds, typed as 90s, 30m or 2h).
    With `unset`, only the fields in it get a flag, whose default is None; a value in it tells what
    then takes effect, if the help text does not.
    """
    fields = [f for f in dataclasses.fields(owner) if "help" in f.metadata]
    hints = get_type_hints(owner)
    titles = {title: parser.add_argument_group(title) for title in groups}
    for field in sorted(fields, key=lambda f: "group" not in f.metadata):
        meta, default, text = field.metadata, field.default, field.metadata["help"]
        if unset is not None:
            if field.name not in unset:
                continue
            default, value = None, unset[field.name]
            if value is not None:
                text = f"{text.split(' (default: ')[0]} (default: {value})"
        group = titles.get(meta.get("group") or next(iter(groups), ""), parser)
        flag, hint = f"--{field.name.replace('_', '-')}", hints[field.name]
        kinds = get_args(hint) or (hint,)
        if bool in kinds:
            group.add_argument(flag, action="store_true", help=text)
            continue
        how = {"type": _reader(kinds, meta), "metavar": meta.get("metavar"), "help": text}
        if get_origin(hint) is tuple:  # may be given several times
            action = group.add_argument(flag, action="append", **how)
        else:
            action = group.add_argument(flag, default=default, **how)
        action.known = meta.get("choices")  # type: ignore[attr-defined]  # for shell completion


def _reader(kinds: tuple[Any, ...], meta: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return the function that reads the text of a flag."""
    if int in kinds:
        number = partial(integer, least=meta.get("low", 0), most=meta.get("high", MAX_INTEGER))
        return partial(_or_auto, number) if meta.get("auto") else number
    if float in kinds:
        return duration if meta.get("duration") else positive_float
    return str


def run(body: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 failed, 2 wrong input, 130 interrupted."""
    timeline.restart()
    # OpenBLAS's own threads are ended by a fork, such as those of Ray's start, and a thread that is
    # multiplying then waits for them forever. What runs in parallel here has threads of its own.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    fill_closed_streams()
    interrupt_by_signals()
    never_fail_to_encode()
    configure()
    try:
        with dropped_interrupts_resent():
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
    except ImportError as error:
        if "failed to map segment" not in str(error):
            raise
        log.error(
            f"this process may have too little memory for its libraries ({one_line(error)}): raise "
            "the limit on its address space (ulimit -v)"
        )
        return UserError.exit_code
    except OSError as error:
        message = describe_file_error(error)
        if message is None:
            raise
        log.error(f"{one_line(message)}, then rerun the same command to resume")
        return 1
    return 0


def read_mapping(flag: str, path: str) -> dict[str, Any]:
    """Return the mapping in the YAML file that `flag` names; else raise `UserError`."""
    from resp_tune.common.yaml_files import read_yaml

    content = read_yaml(f"{flag} '{path}'", user_path(path))
    if not isinstance(content, dict):
        raise UserError(f"{flag} '{path}' is not a mapping of name to value")
    return {str(key): value for key, value in content.items()}


def _or_auto(read: Callable[[str], int], text: str) -> int | None:
    """Read an integer, or the word `auto` as None."""
    if text.strip() == "auto":
        return None
    try:
        return read(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def integer(text: str, least: int = 0, most: int = MAX_INTEGER) -> int:
    """Read an integer from `least` to `most`."""
    is_integer = re.fullmatch(r"[+-]?\d{1,18}", text.strip(), re.ASCII)
    if not is_integer or not least <= int(text) <= most:
        bounds = f"from {least} to {most}" if most < MAX_INTEGER else f"of at least {least}"
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {bounds}")
    return int(text)


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def duration(text: str) -> float:
    """Read `90`, `90s`, `30m` or `2h` as seconds, above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration such as 90s, 30m or 2h")
    return seconds


def existing_folder(text: str) -> Path:
    """Return the path of a folder that exists; else raise `UserError`."""
    path = user_path(text)
    if not path.is_dir():
        kind = "a file, not a folder" if path.exists() else "not there"
        raise UserError(f"'{text}' is {kind}: give a folder")
    return path

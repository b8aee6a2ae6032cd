"""Terminals that are not UTF-8: what they cannot show is a question mark, never a traceback."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from resp_tune import __main__, evaluate, predict, report, search, synth, train, ui
from resp_tune.cli import run

COMMANDS = [evaluate, predict, report, search, synth, train, ui]
LINE = "−0.1 → ✓ Müller \udce9 名"


class Terminal:
    """Streams of an encoding, in which a command writes."""

    def __init__(self, encoding: str, patch: pytest.MonkeyPatch) -> None:
        self.out, self.err = io.BytesIO(), io.BytesIO()
        patch.setattr(sys, "stdout", io.TextIOWrapper(self.out, encoding=encoding))
        patch.setattr(sys, "stderr", io.TextIOWrapper(self.err, encoding=encoding))
        self.encoding = encoding

    def shown(self) -> tuple[str, str]:
        sys.stdout.flush()
        sys.stderr.flush()
        return self.out.getvalue().decode(self.encoding), self.err.getvalue().decode(self.encoding)


ENCODINGS = pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])


def end(main: Callable[[Sequence[str] | None], None], argv: Sequence[str]) -> object:
    try:
        return run(main, argv)
    except SystemExit as ended:
        return ended.code


@ENCODINGS
@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__.split(".")[-1])
def test_help(command: object, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding, monkeypatch)
    assert end(command.main, ["--help"]) == 0  # type: ignore[attr-defined]  # each is a command
    assert "--help" in terminal.shown()[0]


@ENCODINGS
def test_the_list_of_commands(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["resp-tune", "--help"])
    assert __main__.main() == 0
    assert "usage: resp-tune VERB ?" in terminal.shown()[0].replace("…", "?")


@ENCODINGS
def test_everything_that_is_printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding, monkeypatch)

    def body(_: object) -> None:
        print(LINE)
        # pytest-xdist cannot send a captured record with a lone surrogate.
        logging.getLogger("resp_tune.test").warning(LINE.replace("\udce9", ""))
        table = Table("split")
        table.add_row(LINE)
        Console(file=sys.stdout, width=60).print(table)

    assert run(body) == 0
    out, err = terminal.shown()
    assert out.startswith("?0.1 ? ? M")
    assert "split" in out
    assert err.startswith("warning: ?0.1 ? ? M")
    assert "Traceback" not in err


def test_a_name_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("utf-8", monkeypatch)
    assert run(lambda _: print("Müller", Path("donn\udce9es"))) == 0
    assert terminal.shown()[0] == "Müller donn?es\n"


@ENCODINGS
@pytest.mark.parametrize("arguments", [["--trails", "−1"], ["--name", "é名"], ["--task", "→"]])
def test_a_refusal(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding, monkeypatch)
    assert end(search.main, ["--dry-run", *arguments]) == 2
    err = terminal.shown()[1]
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_no_file_takes_the_place_of_a_closed_stream(closed: tuple[int, ...]) -> None:
    """What a C library prints would then be written into it."""
    code = (
        f"import os\nfor number in {closed}: os.close(number)\n"
        "from resp_tune.common.log import fill_closed_streams\n"
        "fill_closed_streams()\nos._exit(os.open(os.devnull, os.O_RDONLY))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3

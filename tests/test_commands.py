"""What all commands share: flags made of option fields, -q, -v, --version, completion."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import subprocess
import sys

import pytest

from resp_tune import __main__, __version__
from resp_tune.cli import Parser, add_fields, run
from resp_tune.config import setting
from resp_tune.errors import UserError
from resp_tune.harness.options import SearchOptions
from resp_tune.search import parser, read_options


def test_every_option_of_a_search_is_a_flag() -> None:
    fields = [f for f in dataclasses.fields(SearchOptions) if f.name != "test_fold"]
    flags = {a.dest: a for a in parser()._actions}
    assert {f.name for f in fields} <= flags.keys()
    assert all(f.metadata["help"] == flags[f.name].help for f in fields)
    assert read_options([]) == SearchOptions()


@dataclasses.dataclass(frozen=True)
class _Options:
    trials: int = setting(3, "trials", low=1, metavar="N")
    per_gpu: int | None = setting(1, "trials per GPU", low=1, auto=True)
    budget: float | None = setting(None, "time (default: none)", duration=True)
    share: float = setting(0.5, "share")
    dry: bool = setting(False, "only look")
    name: str | None = setting(None, "name")
    hidden: int = 0


def test_flags_follow_from_types_and_metadata() -> None:
    p = Parser("any", "")
    add_fields(p, _Options, groups=["all"])
    args = p.parse(["--per-gpu", "auto", "--budget=30m", "--share", "2", "--dry", "--trials=9"])
    assert (args.per_gpu, args.budget, args.share, args.dry, args.trials) == (
        None, 1800.0, 2.0, True, 9,
    )  # fmt: skip
    assert not hasattr(args, "hidden")
    for wrong in (["--trials", "0"], ["--per-gpu", "many"], ["--budget", "soon"], ["--share=nan"]):
        with pytest.raises(UserError, match=f"argument {wrong[0].split('=')[0]}"):
            p.parse(wrong)


def test_unset_flags_tell_what_takes_effect() -> None:
    p = Parser("any", "")
    add_fields(p, _Options, unset={"trials": "from the config", "budget": None, "dry": None})
    args = p.parse([])
    assert (args.trials, args.budget, args.dry) == (None, None, False)
    assert not hasattr(args, "share")
    text = " ".join(p.format_help().split())
    assert "trials (default: from the config)" in text
    assert "time (default: none)" in text


@pytest.mark.parametrize("verb", __main__.VERBS)
def test_every_command_has_the_common_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    p = importlib.import_module(f"resp_tune.{verb}").parser()
    assert {"-q", "--quiet", "-v", "--verbose", "--version"} <= p._option_string_actions.keys()
    with pytest.raises(SystemExit) as end:
        p.parse(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"resp-tune {__version__}\n"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], ["information", "warning: a warning"]),
        (["-q"], ["warning: a warning"]),
        (["-v"], ["detail", "information", "warning: a warning"]),
    ],
)
def test_quiet_and_verbose(
    flags: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def body(argv: object) -> None:
        Parser("any", "").parse(flags)
        log = logging.getLogger("resp_tune.any")
        log.debug("detail")
        log.info("information")
        log.warning("a warning")

    assert run(body, flags) == 0
    assert capsys.readouterr().err.splitlines() == shown


@pytest.mark.parametrize("shell", __main__.SHELLS)
def test_completion(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resp-tune", "completion", shell])
    assert __main__.main() == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("resp-tune", "trials-per-gpu", "icbhi_score"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, f"resp-tune {__version__}"),
        (["--help"], 0, "completion"),
        (["serach"], 2, "did you mean 'search'?"),
        (["completion", "fish"], 2, "'bash', 'zsh', 'tcsh'"),
        (["search", "--outer-fold", "5"], 2, "unknown argument '--outer-fold': did you mean"),
    ],
)
def test_the_program_itself(
    arguments: list[str],
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["resp-tune", *arguments])
    assert __main__.main() == code
    printed = capsys.readouterr()
    assert text in (printed.out if code == 0 else printed.err)


def test_too_little_address_space_for_a_library_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def body(_: object) -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    assert run(body) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "libtorch_cpu.so" in line
    assert "ulimit -v" in line
    with pytest.raises(ImportError, match="another cause"):
        run(lambda _: (_ for _ in ()).throw(ImportError("another cause")))

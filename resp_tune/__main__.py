"""`resp-tune VERB …` is `python -m resp_tune.VERB …`; `completion` prints a shell's completions."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from resp_tune import __version__
from resp_tune.cli import Parser, run
from resp_tune.common.log import configure, never_fail_to_encode
from resp_tune.common.text import one_line
from resp_tune.errors import nearest

log = logging.getLogger("resp_tune.__main__")

VERBS = {
    "search": "find the best trial config",
    "train": "run one training without Ray",
    "evaluate": "audit a data set, and a model on its test split",
    "predict": "classify recordings with a trained model",
    "report": "write a search's report page again",
    "synth": "make a synthetic data set",
    "ui": "open MLflow's pages on a search",
}
SHELLS = ("bash", "zsh", "tcsh")


def main() -> int:
    """Run the verb that is the first argument."""
    never_fail_to_encode()
    configure()
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        shown = {**VERBS, "completion": f"print shell completions: {', '.join(SHELLS)}"}
        print("usage: resp-tune VERB …     (resp-tune VERB --help for its flags)\n")
        print("\n".join(f"  {name:<12}{text}" for name, text in shown.items()))
        print("\n  --version   print the version")
        return 0
    if verb == "--version":
        print(f"resp-tune {__version__}")
        return 0
    if verb == "completion":
        return run(_print_completion, rest)
    if verb not in VERBS:
        log.error(f"unknown verb '{one_line(verb)}': {nearest(verb, [*VERBS, 'completion'])}")
        return 2
    return run(importlib.import_module(f"resp_tune.{verb}").main, rest)


def _print_completion(argv: Sequence[str] | None) -> None:
    """Print a shell's completion script, for `eval "$(resp-tune completion bash)"`."""
    import shtab

    p = Parser("completion", f"{_print_completion.__doc__}")
    p.prog = "resp-tune completion"
    p.add_argument("shell", choices=SHELLS, help="the shell")
    shell = p.parse(argv).shell
    whole = argparse.ArgumentParser("resp-tune", allow_abbrev=False)
    verbs = whole.add_subparsers()
    verbs.add_parser("completion", parents=[p], add_help=False)
    for verb, text in VERBS.items():
        flags = importlib.import_module(f"resp_tune.{verb}").parser()
        for action in flags._actions:
            action.choices = action.choices or getattr(action, "known", None)
            words = str(action.metavar).split()
            if {"FILE", "PATH", "DIR"} & set(words):
                action.complete = shtab.FILE if "FILE" in words else shtab.DIRECTORY
        verbs.add_parser(verb, parents=[flags], add_help=False, help=text)
    print(shtab.complete(whole, shell))


if __name__ == "__main__":
    sys.exit(main())

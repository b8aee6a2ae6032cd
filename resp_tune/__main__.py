"""`resp-tune VERB …`, the same as `python -m resp_tune.VERB …`."""

from __future__ import annotations

import importlib
import logging
import sys

from resp_tune.cli import run
from resp_tune.common.text import one_line
from resp_tune.errors import nearest

log = logging.getLogger("resp_tune.__main__")

VERBS = {
    "search": "find the best trial config",
    "train": "one training run, without Ray",
    "evaluate": "audit a data set, and a model on its test side",
    "predict": "diagnose recordings with a winner",
    "report": "make a search's report page again",
    "synth": "make a synthetic data set",
    "ui": "open MLflow's pages on a search",
}


def main() -> int:
    """Run the verb that is the first argument."""
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: resp-tune VERB …     (resp-tune VERB --help says more)\n")
        print("\n".join(f"  {name:<9}{text}" for name, text in VERBS.items()))
        return 0
    if verb not in VERBS:
        log.error(f"unknown verb '{one_line(verb)}': {nearest(verb, VERBS)}")
        return 2
    return run(importlib.import_module(f"resp_tune.{verb}").main, rest)


if __name__ == "__main__":
    sys.exit(main())

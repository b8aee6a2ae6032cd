"""Which searches of a nested search are complete, and how its time budget is divided.

A round is what one command asks for. It is on record in the study of the last search, so that the
same command, after a kill, goes on with the search that was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from resp_tune.harness.options import SearchOptions

COMPLETE = "resp_tune.outer_folds_complete"  # what was asked for, by outer fold


def asked_for(options: SearchOptions) -> dict[str, Any]:
    """Return the options that tell how much a search is to do; with others it is another round."""
    names = ("budget", "time_budget", "stop", "replicates")
    values = {name: getattr(options, name) for name in names}
    ensemble = {"ensemble": options.ensemble} if options.ensemble > 1 else {}
    return {**values, "stop": list(options.stop), **ensemble}


def is_complete(study: optuna.Study, fold: int, folder: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether the outer fold's search, in `folder`, has done what is asked for."""
    files = (folder / "summary.json", folder / "winner" / "predictions.csv")
    on_record = study.user_attrs.get(COMPLETE, {}).get(str(fold)) == asked
    return on_record and all(file.is_file() for file in files)


def set_complete(study: optuna.Study, fold: int, asked: Mapping[str, Any]) -> None:
    """Put it on record that the outer fold's search has done what is asked for."""
    study.set_user_attr(COMPLETE, {**study.user_attrs.get(COMPLETE, {}), str(fold): dict(asked)})


def begin_next_round(study: optuna.Study, options: SearchOptions) -> None:
    """Forget what is complete if the same command is to go on: each adds a whole time budget."""
    if options.time_budget is not None:
        study.set_user_attr(COMPLETE, {})


class TimeShares:
    """Divides a time budget, in s, over the searches that remain.

    A search that ends early leaves time to the others; one that ends late, because of its
    replicates, takes none of theirs.
    """

    def __init__(self, budget: float | None, searches: int) -> None:
        self.left, self.searches = budget, searches

    def share(self, options: SearchOptions) -> SearchOptions:
        """Return the options of the next search, with its share of the time."""
        if self.left is None:
            return options
        return dataclasses.replace(options, time_budget=self.left / self.searches)

    def spend(self, seconds: float) -> None:
        """Subtract what the search has taken."""
        if self.left is not None:
            self.left -= min(seconds, self.left / self.searches)
        self.searches -= 1

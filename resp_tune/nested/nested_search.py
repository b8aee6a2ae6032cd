"""Run a nested search: a search for each outer fold, then one over all patients.

The searches run one after the other, in one process with one Ray. Each keeps its files and its
study where a search of its own would; what one command has completed is on record in the study of
the last search, so the same command resumes or extends all of them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from resp_tune.common.fault_points import fault_point
from resp_tune.common.text import plural
from resp_tune.errors import RunError
from resp_tune.harness.background import run_params, search_ref
from resp_tune.harness.failures import Failures, IncompleteError
from resp_tune.harness.lock import exclusive_lock
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.result_files import write_csv
from resp_tune.harness.run import prepare_study, run_locked, run_search
from resp_tune.harness.spec import Compute, SearchSpec
from resp_tune.harness.stages import RayBackend, choose_trials_per_gpu
from resp_tune.nested.pooled import add_outer, pool_predictions, read_outer_result
from resp_tune.nested.rounds import (
    TimeShares,
    asked_for,
    begin_next_round,
    is_complete,
    set_complete,
)
from resp_tune.nested.shared_ray import MakeBackend, share_ray
from resp_tune.study.study import STUDY_ID, read_study, study_in_one_line
from resp_tune.tracking.parent_run import nested_run

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"  # the pooled test predictions, in the folder of the nested search
FLOAT32_DIGITS = 9


@dataclass(frozen=True)
class NestedSearch:
    """A nested search. `backend` makes what runs trials: Ray Tune, or a stand-in without it."""

    spec: SearchSpec
    console: Console
    backend: MakeBackend = RayBackend

    def run(self) -> Path:
        """Run, resume or extend all searches; return the path of `summary.json`.

        Raises `IncompleteError` as `run_search` does, after all searches.
        """
        location, failures = self.spec.location, Failures(self.spec.location)
        location.folder.mkdir(parents=True, exist_ok=True)
        with (
            failures,
            exclusive_lock(location.folder),
            study_in_one_line(location.study_file),
            share_ray(self.backend) as backend,
        ):
            study = prepare_study(self.spec)
            ref = search_ref(location, self.spec.options.objective, study.user_attrs[STUDY_ID])
            params = run_params(self.spec.options, self.spec.data.datamodule, self.spec.space)
            with nested_run(location.tracking_uri, location.storage, ref, params) as run_id:
                summary = self._run_all(study, run_id, backend, failures)
        failures.raise_if_any(summary)
        return summary

    def _run_all(
        self, study: optuna.Study, run_id: str, backend: MakeBackend, failures: Failures
    ) -> Path:
        """Run the searches that are not complete, and the last one; collect what they lack."""
        location, asked = self.spec.location, asked_for(self.spec.options)
        remaining = [
            number
            for number, search in enumerate(self.spec.outer)
            if not is_complete(study, number, search.location.folder, asked)
        ]
        times = TimeShares(self.spec.options.time_budget, len(remaining) + 1)
        spec = self.spec
        if remaining:  # before Ray holds the GPUs
            spec = choose_trials_per_gpu(spec)
        for number in remaining:
            search, begun = self.spec.outer[number], time.monotonic()
            split = search.data.datamodule.split
            self._announce(
                f"outer fold {number} of 0 to {len(self.spec.outer) - 1}, to be tested on "
                f"{plural(len(split.test or ()), 'recording')}"
            )
            own = dataclasses.replace(
                search,
                options=_settled(times.share(search.options), spec.compute),
                location=dataclasses.replace(search.location, parent_run=run_id),
                compute=spec.compute,
            )
            try:
                run_search(own, self.console, backend)
            except IncompleteError as error:
                failures.add(f"outer fold {number}: {error.failure}")
            except RunError as error:
                raise RunError(f"outer fold {number}: {error}") from error
            else:
                fault_point("outer-fold-ends", str(number))
                set_complete(study, number, asked)
            times.spend(time.monotonic() - begun)
            fault_point("outer-fold-ended", str(number))
        self._announce("last search, over all patients, for the model that is registered")
        options = times.share(spec.options)
        if remaining:  # else Ray has not started, and the last search measures for itself
            options = _settled(options, spec.compute)
        last = dataclasses.replace(spec, options=options, outer=())
        try:
            summary = run_locked(
                last, self.console, backend, lambda found: self._complete(found, failures)
            )
        except IncompleteError as error:
            failures.add(error.failure)
            return error.summary
        begin_next_round(read_study(location.study_file, location.name), self.spec.options)
        return summary

    def _announce(self, text: str) -> None:
        log.info(f"search '{self.spec.location.name}': {text}")

    def _complete(self, summary: Mapping[str, Any], failures: Failures) -> Mapping[str, Any]:
        """Add what the outer folds have found, and write their pooled predictions."""
        results = [
            read_outer_result(search.location.folder, number, search.data.datamodule)
            for number, search in enumerate(self.spec.outer)
        ]
        table = pool_predictions(results)
        write_csv(self.spec.location.folder / PREDICTIONS, table, digits=FLOAT32_DIGITS)
        return add_outer(summary, results, self.spec.data.datamodule, failures)


def _settled(options: SearchOptions, compute: Compute) -> SearchOptions:
    """Return the options with the trials per GPU that were measured for all searches."""
    gpus = compute.slots.gpus
    trials = round(1 / gpus) if 0 < gpus < 1 else 1
    return dataclasses.replace(options, trials_per_gpu=options.trials_per_gpu or trials)

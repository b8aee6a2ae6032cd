"""One search, from prepared settings to its files. Continuing and extending are the same act."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from resp_tune.data.sides import save_sides
from resp_tune.features.store import Filled
from resp_tune.learning.metrics import METRICS
from resp_tune.learning.precision import settle_precision
from resp_tune.learning.problem import fill_stores
from resp_tune.learning.seeds import mix_seed
from resp_tune.searching import files
from resp_tune.searching.finish import finish
from resp_tune.searching.holding import held
from resp_tune.searching.known_baselines import baselines_of
from resp_tune.searching.prepare import Prepared
from resp_tune.searching.table import TrialTable
from resp_tune.searching.tracked import TrackedTrials
from resp_tune.tracking.runs import SearchRuns
from resp_tune.tuning.cluster import local_ray
from resp_tune.tuning.recorder import Recorder
from resp_tune.tuning.run import check_some_finished, run_trials
from resp_tune.tuning.samplers import make_sampler
from resp_tune.tuning.schedulers import make_scheduler, milestones
from resp_tune.tuning.study import (
    SECONDS,
    STUDY_ID,
    TrialRecord,
    bind_settings,
    open_study,
    records,
)
from resp_tune.tuning.trainable import Work

Say = Callable[[str], None]
RECORDED = (
    "task",
    "protocol",
    "metric",
    "folds",
    "split_seed",
    "hold_out_device",
    "drop_shared_patients",
    "epochs",
    "seed",
    "scheduler",
    "sampler",
)


def run_search(prepared: Prepared, say: Say, console: Console) -> Path:
    """Run, continue or extend a search; the path of its `summary.json`."""
    clock = time.monotonic()
    prepared.folder.mkdir(parents=True, exist_ok=True)
    with held(prepared.folder), ThreadPoolExecutor(3) as pool:
        study = _open(prepared)
        before = records(study, prepared.space)
        _say_continuing(before, say)
        # Recordings, MLflow's database and Ray keep one waiting in different ways: all at once.
        filling = pool.submit(_fill, prepared, console)
        baselines = pool.submit(baselines_of, prepared.problem, prepared.machine.cpus)
        with _tracked(prepared, study) as runs:
            tracked = TrackedTrials(runs, prepared.settings.metric, prepared.trial_tags)
            tracked.replay(before)
            if _wants_more(study, prepared):
                _run_trials(prepared, study, before, tracked, filling, console)
            trials = records(study, prepared.space)
            seconds = study.user_attrs.get(SECONDS, 0.0) + time.monotonic() - clock
            study.set_user_attr(SECONDS, seconds)
            files.write_trials(prepared.folder / "trials.csv", trials, runs.run_ids())
            files.write_epochs(prepared.folder / "epochs.csv", trials)
            check_some_finished(trials)
            return finish(prepared, study, runs, filling.result(), baselines.result())


def _open(prepared: Prepared) -> optuna.Study:
    """The search's study and sides on disk, bound to what its trials mean."""
    settings, path = prepared.settings, prepared.folder / "study.db"
    study = open_study(path, prepared.name, settings.metric, make_sampler(settings.sampler, 0))
    bind_settings(study, prepared.meaning())
    trials = study.get_trials(deepcopy=False)
    # A sampler that was seeded alike would suggest to a continued search what it did at first.
    seed = mix_seed(settings.seed, len(trials)) % 2**32
    study.sampler = make_sampler(settings.sampler, seed)
    if STUDY_ID not in study.user_attrs:
        study.set_user_attr(STUDY_ID, uuid.uuid4().hex)
    if not (prepared.folder / "split.json").exists():
        save_sides(prepared.problem.sides, prepared.folder / "split.json")
    return study


def _say_continuing(before: Sequence[TrialRecord], say: Say) -> None:
    if before:
        ended = sum(t.state is not None for t in before)
        cut_off = len(before) - ended
        also = f", {cut_off} cut off and taken up again" if cut_off else ""
        say(f"continuing: {ended} trials have ended already{also}")


def _wants_more(study: optuna.Study, prepared: Prepared) -> bool:
    trials = study.get_trials(deepcopy=False)
    if any(t.state == TrialState.RUNNING for t in trials):
        return True
    handed_out = sum(t.state != TrialState.WAITING for t in trials)
    budget = prepared.settings.budget
    return budget is None or handed_out < budget


@contextmanager
def _tracked(prepared: Prepared, study: optuna.Study) -> Iterator[SearchRuns]:
    """The search's runs in MLflow, ended in the state that the search ends in."""
    settings = prepared.settings
    runs = SearchRuns(
        prepared.tracking_uri,
        prepared.folder.parent,
        prepared.name,
        metric=settings.metric,
        mode=METRICS[settings.metric].mode,
        params={
            **{k: getattr(settings, k) for k in RECORDED},
            "space": prepared.space.name,
            "split_sha256": prepared.problem.sides.digest,
            "data": prepared.problem.dataset.root,
            "synthetic": prepared.problem.dataset.synthetic,
        },
        tags={},
        study_id=study.user_attrs[STUDY_ID],
        columns=list(prepared.space.parameters),
    )
    status: Any = "FAILED"
    try:
        yield runs
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        runs.close(status)


def _fill(prepared: Prepared, console: Console) -> Filled:
    """The feature stores of every front end that the space has, with a bar while they are made."""
    columns = (TextColumn("log-mel frames"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("fill", total=None, visible=False)
        return fill_stores(
            prepared.problem,
            prepared.problem.search_stems,
            prepared.front_ends,
            workers=prepared.machine.cpus,
            progress=lambda done, total: bar.update(
                task, completed=done, total=total, visible=True
            ),
        )


def _run_trials(
    prepared: Prepared,
    study: optuna.Study,
    before: Sequence[TrialRecord],
    tracked: TrackedTrials,
    filling: Future[Filled],
    console: Console,
) -> None:
    settings = prepared.settings
    table = TrialTable(console, settings.metric, settings.epochs, settings.budget)
    table.seed(before)
    with local_ray(prepared.machine, prepared.gpus):
        filled = filling.result()
        deadline = None
        if settings.time_budget is not None:
            deadline = time.monotonic() + settings.time_budget
        recorder = Recorder(
            study,
            prepared.space,
            metric=settings.metric,
            epochs=settings.epochs,
            seed=settings.seed,
            budget=settings.budget,
            deadline=deadline,
            listeners=[tracked, table],
            settle=lambda config: settle_precision(config, prepared.device_type),
        )
        work = Work(
            folds=prepared.problem.folds(),
            stores=filled.folders,
            trials_folder=prepared.folder / "trials",
            metric=settings.metric,
            milestones=milestones(settings.scheduler, settings.epochs),
            threads=prepared.slots.threads,
            wants_gpu=prepared.slots.gpus > 0,
        )
        scheduler = make_scheduler(
            settings.scheduler, epochs=settings.epochs, metric=settings.metric, past=before
        )
        with table:
            run_trials(recorder, work, prepared.slots, scheduler)

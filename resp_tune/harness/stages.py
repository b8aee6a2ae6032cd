"""The two rounds of a search: its trials, then the best of them again on fresh seeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial

import optuna
from optuna.trial import TrialState
from rich.console import Console

from resp_tune.cluster.capacity import Room, TypedRoom
from resp_tune.cluster.local import local_ray
from resp_tune.cluster.node_requirements import Membership
from resp_tune.execution.sanity_check import check_baseline
from resp_tune.execution.schedulers import make_scheduler, milestones
from resp_tune.execution.searcher import HandOutAnewError
from resp_tune.execution.trainable import Work
from resp_tune.execution.tuner import run_trials
from resp_tune.harness.live_table import TrialTable
from resp_tune.harness.lock import HELD_BY
from resp_tune.harness.readiness import made_ready
from resp_tune.harness.remote_sync import NoMirror
from resp_tune.harness.spec import Prepared
from resp_tune.harness.tracking_listener import TrackedTrials
from resp_tune.study.replicate_queue import ReplicateRecorder
from resp_tune.study.replicates import replicates
from resp_tune.study.study import STUDY_ID, records
from resp_tune.study.trial_queue import Listener, Recorder
from resp_tune.training.compute_device import settle_precision
from resp_tune.training.datamodule import Stores

Say = Callable[[str], None]


def run_rounds(
    prepared: Prepared,
    study: optuna.Study,
    mirror: NoMirror,
    tracking: Future[TrackedTrials],
    filling: Future[Stores],
    console: Console,
    say: Say,
) -> None:
    """Run what the study still lacks; without anything to run, Ray is not started."""
    new_trials = wants_trials(study, prepared)
    if not new_trials and not _replicates(prepared, study, say).left():
        return
    settings = prepared.settings
    cluster = prepared.cluster
    with local_ray(prepared.machine, prepared.gpus) if cluster is None else nullcontext():
        stores, tracked = filling.result(), tracking.result()
        if cluster is not None:
            stores = made_ready(prepared, cluster, stores, say)
        work = Work(
            folds=prepared.problem.folds(),
            stores=stores,
            trials_folder=prepared.trials.folder,
            remote=prepared.trials.remote,
            study=study.user_attrs[STUDY_ID],
            metric=settings.metric,
            milestones=milestones(settings.scheduler, settings.epochs),
            threads=prepared.slots.threads,
            gpus=prepared.slots.gpus,
            timeout=settings.trial_timeout,
            membership=None if cluster is None else _membership(prepared),
        )
        baseline = settle_precision(prepared.space.baseline(), prepared.device)
        check_baseline(work, prepared.slots, baseline, prepared.folder, here=cluster is None)
        room, limit = _room(prepared, say), settings.time_budget
        deadline = None if limit is None else time.monotonic() + limit
        listeners: list[Listener] = [mirror, tracked]
        given = (prepared, study, work, room, listeners, console, say)
        if new_trials:
            _to_the_end(partial(_run_trials, *given, deadline=deadline), say)
        _to_the_end(partial(_run_replicates, *given), say)


def _to_the_end(run: Callable[[], None], say: Say) -> None:
    """`run`, and again, from what the study then holds, each time that Ray cannot go on."""
    while True:
        try:
            return run()
        except HandOutAnewError as cause:
            say(str(cause))


def _membership(prepared: Prepared) -> Membership:
    shared = None if prepared.remote is not None else prepared.folder / HELD_BY
    return Membership.of_driver(shared)


def wants_trials(study: optuna.Study, prepared: Prepared) -> bool:
    """Whether a trial was cut off, or the budget is not met."""
    trials = study.get_trials(deepcopy=False)
    if any(t.state == TrialState.RUNNING for t in trials):
        return True
    handed_out = sum(t.state != TrialState.WAITING for t in trials)
    budget = prepared.settings.budget
    return budget is None or handed_out < budget


def _run_trials(
    prepared: Prepared,
    study: optuna.Study,
    work: Work,
    room: Room | TypedRoom | None,
    listeners: Sequence[Listener],
    console: Console,
    say: Say,
    *,
    deadline: float | None,
) -> None:
    settings, before = prepared.settings, records(study, prepared.space)
    table = TrialTable(console, settings.metric, settings.epochs, settings.budget)
    table.seed(before)
    recorder = Recorder(
        study,
        prepared.space,
        metric=settings.metric,
        epochs=settings.epochs,
        seed=settings.seed,
        budget=settings.budget,
        deadline=deadline,
        listeners=[*listeners, table],
        settle=lambda config: settle_precision(config, prepared.device),
    )
    scheduler = make_scheduler(
        settings.scheduler, epochs=settings.epochs, metric=settings.metric, past=before
    )
    with table:
        run_trials(recorder, work, prepared.slots, scheduler, say, room=room)


def _run_replicates(
    prepared: Prepared,
    study: optuna.Study,
    work: Work,
    room: Room | TypedRoom | None,
    listeners: Sequence[Listener],
    console: Console,
    say: Say,
) -> None:
    """The time budget is for the trials: a winner is chosen when all rivals have their seeds."""
    recorder = _replicates(prepared, study, say)
    if not (left := recorder.left()):
        return
    settings = prepared.settings
    done = [r for r in replicates(study, recorder.trials) if r.state is not None]
    total = len(done) + len(left)
    table = TrialTable(console, settings.metric, settings.epochs, total, what="replicates")
    table.seed(done)
    recorder.listeners += [*listeners, table]
    # Nobody compares replicates halfway, so nothing needs reports at milestones.
    scheduler = make_scheduler("none", epochs=settings.epochs, metric=settings.metric, past=())
    work = dataclasses.replace(work, milestones=())
    with table:
        run_trials(recorder, work, prepared.slots, scheduler, say, room=room)


def _room(prepared: Prepared, say: Say) -> Room | TypedRoom | None:
    """How many trials a cluster has room for, which changes; None where that is known."""
    if prepared.typed is not None:
        settings = prepared.settings
        return TypedRoom(
            prepared.typed, prepared.slots, say, gpus=settings.gpus, most=settings.concurrency
        )
    return None if prepared.cluster is None else Room(prepared.slots, prepared.most_at_once)


def _replicates(prepared: Prepared, study: optuna.Study, say: Say) -> ReplicateRecorder:
    settings = prepared.settings
    return ReplicateRecorder(
        study,
        records(study, prepared.space),
        metric=settings.metric,
        epochs=settings.epochs,
        seed=settings.seed,
        count=settings.replicates,
        say=say,
    )

"""The two rounds of a search: its trials, then the best of them again on fresh seeds."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial

import optuna
from optuna.trial import TrialState
from rich.console import Console

from resp_tune.cluster.capacity import ClusterCapacity, TypedRoom
from resp_tune.cluster.local import local_ray
from resp_tune.cluster.node_requirements import NodeRequirements
from resp_tune.execution.sanity_check import check_baseline
from resp_tune.execution.schedulers import make_scheduler, milestones
from resp_tune.execution.searcher import RestartTrialsError
from resp_tune.execution.trainable import TrialContext
from resp_tune.execution.tuner import run_trials
from resp_tune.harness.live_table import LiveTable
from resp_tune.harness.lock import HELD_BY
from resp_tune.harness.readiness import made_ready
from resp_tune.harness.remote_sync import NullSync
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.tracking_listener import TrackingListener
from resp_tune.study.replicate_queue import ReplicateQueue
from resp_tune.study.replicates import replicates
from resp_tune.study.study import STUDY_ID, records
from resp_tune.study.trial_queue import Listener, TrialQueue
from resp_tune.training.compute_device import settle_precision
from resp_tune.training.datamodule import FeatureCaches

log = logging.getLogger(__name__)


def run_rounds(
    prepared: SearchSpec,
    study: optuna.Study,
    mirror: NullSync,
    tracking: Future[TrackingListener],
    filling: Future[FeatureCaches],
    console: Console,
) -> None:
    """Run what the study still lacks; without anything to run, Ray is not started."""
    new_trials = wants_trials(study, prepared)
    if not new_trials and not _replicates(prepared, study).left():
        return
    settings = prepared.settings
    cluster = prepared.cluster
    with local_ray(prepared.machine, prepared.gpus) if cluster is None else nullcontext():
        stores, tracked = filling.result(), tracking.result()
        if cluster is not None:
            stores = made_ready(prepared, cluster, stores)
        work = TrialContext(
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
        room, limit = _room(prepared), settings.time_budget
        deadline = None if limit is None else time.monotonic() + limit
        listeners: list[Listener] = [mirror, tracked]
        given = (prepared, study, work, room, listeners, console)
        if new_trials:
            _to_the_end(partial(_run_trials, *given, deadline=deadline))
        _to_the_end(partial(_run_replicates, *given))


def _to_the_end(run: Callable[[], None]) -> None:
    """`run`, and again, from what the study then holds, each time that Ray cannot go on."""
    while True:
        try:
            return run()
        except RestartTrialsError as cause:
            log.info(str(cause))


def _membership(prepared: SearchSpec) -> NodeRequirements:
    shared = None if prepared.remote is not None else prepared.folder / HELD_BY
    return NodeRequirements.of_driver(shared)


def wants_trials(study: optuna.Study, prepared: SearchSpec) -> bool:
    """Whether a trial was cut off, or the budget is not met."""
    trials = study.get_trials(deepcopy=False)
    if any(t.state == TrialState.RUNNING for t in trials):
        return True
    handed_out = sum(t.state != TrialState.WAITING for t in trials)
    budget = prepared.settings.budget
    return budget is None or handed_out < budget


def _run_trials(
    prepared: SearchSpec,
    study: optuna.Study,
    work: TrialContext,
    room: ClusterCapacity | TypedRoom | None,
    listeners: Sequence[Listener],
    console: Console,
    *,
    deadline: float | None,
) -> None:
    settings, before = prepared.settings, records(study, prepared.space)
    table = LiveTable(console, settings.metric, settings.epochs, settings.budget)
    table.seed(before)
    recorder = TrialQueue(
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
        run_trials(recorder, work, prepared.slots, scheduler, room=room)


def _run_replicates(
    prepared: SearchSpec,
    study: optuna.Study,
    work: TrialContext,
    room: ClusterCapacity | TypedRoom | None,
    listeners: Sequence[Listener],
    console: Console,
) -> None:
    """The time budget is for the trials: a winner is chosen when all rivals have their seeds."""
    recorder = _replicates(prepared, study)
    if not (left := recorder.left()):
        return
    settings = prepared.settings
    done = [r for r in replicates(study, recorder.trials) if r.state is not None]
    total = len(done) + len(left)
    table = LiveTable(console, settings.metric, settings.epochs, total, what="replicates")
    table.seed(done)
    recorder.listeners += [*listeners, table]
    # Nobody compares replicates halfway, so nothing needs reports at milestones.
    scheduler = make_scheduler("none", epochs=settings.epochs, metric=settings.metric, past=())
    work = dataclasses.replace(work, milestones=())
    with table:
        run_trials(recorder, work, prepared.slots, scheduler, room=room)


def _room(prepared: SearchSpec) -> ClusterCapacity | TypedRoom | None:
    """How many trials a cluster has room for, which changes; None where that is known."""
    if prepared.typed is not None:
        settings = prepared.settings
        return TypedRoom(
            prepared.typed, prepared.slots, gpus=settings.gpus, most=settings.concurrency
        )
    return (
        None if prepared.cluster is None else ClusterCapacity(prepared.slots, prepared.most_at_once)
    )


def _replicates(prepared: SearchSpec, study: optuna.Study) -> ReplicateQueue:
    settings = prepared.settings
    return ReplicateQueue(
        study,
        records(study, prepared.space),
        metric=settings.metric,
        epochs=settings.epochs,
        seed=settings.seed,
        count=settings.replicates,
    )

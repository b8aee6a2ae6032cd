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

from resp_tune.cluster.capacity import cluster_capacity
from resp_tune.cluster.local import local_ray
from resp_tune.cluster.node_requirements import NodeRequirements
from resp_tune.execution.sanity_check import check_baseline
from resp_tune.execution.schedulers import make_scheduler, milestones
from resp_tune.execution.searcher import RestartTrialsError
from resp_tune.execution.trainable import TrialContext
from resp_tune.execution.trials_per_gpu import Workload, benchmark_slots
from resp_tune.execution.tuner import run_trials
from resp_tune.harness.live_table import LiveTable
from resp_tune.harness.lock import HELD_BY
from resp_tune.harness.readiness import warm_up_nodes
from resp_tune.harness.remote_sync import NullSync
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.tracking_listener import TrackingListener
from resp_tune.harness.validate import resource_request
from resp_tune.study.replicate_queue import ReplicateQueue
from resp_tune.study.replicates import replicates
from resp_tune.study.study import STUDY_ID, records
from resp_tune.study.trial_queue import Listener, TrialQueue
from resp_tune.training.compute_device import resolve_precision
from resp_tune.training.datamodule import FeatureCaches

log = logging.getLogger(__name__)


def run_rounds(
    spec: SearchSpec,
    study: optuna.Study,
    sync: NullSync,
    tracking: Future[TrackingListener],
    filling: Future[FeatureCaches],
    console: Console,
) -> None:
    """Run what the study still lacks; without anything to run, Ray is not started."""
    new_trials = wants_trials(study, spec)
    if not new_trials and not _replicates(spec, study).left():
        return
    options = spec.options
    cluster = spec.cluster
    with local_ray(spec.machine, spec.gpus) if cluster is None else nullcontext():
        caches, tracked = filling.result(), tracking.result()
        if cluster is not None:
            caches = warm_up_nodes(spec, cluster, caches)
        work = TrialContext(
            folds=spec.datamodule.folds(),
            caches=caches,
            trials_folder=spec.trials.folder,
            remote=spec.trials.remote,
            study=study.user_attrs[STUDY_ID],
            metric=options.metric,
            milestones=milestones(options.scheduler, options.epochs),
            threads=spec.slots.threads,
            gpus=spec.slots.gpus,
            timeout=options.trial_timeout,
            membership=None if cluster is None else _membership(spec),
        )
        baseline = resolve_precision(spec.space.baseline(), spec.device)
        check_baseline(work, spec.slots, baseline, spec.folder, here=cluster is None)
        capacity, limit = _capacity(spec), options.time_budget
        deadline = None if limit is None else time.monotonic() + limit
        listeners: list[Listener] = [sync, tracked]
        given = (spec, study, work, capacity, listeners, console)
        if new_trials:
            _to_the_end(partial(_run_trials, *given, deadline=deadline))
        _to_the_end(partial(_run_replicates, *given))


def choose_trials_per_gpu(spec: SearchSpec) -> SearchSpec:
    """Return `spec` with the number of trials per GPU measured, when it was left to `auto`."""
    if spec.options.trials_per_gpu is not None:
        return spec
    if not uses_gpus(spec):
        log.info("trials per GPU: 1 (auto measures on a GPU, and trials here run on the CPU)")
        return spec
    fold = spec.datamodule.folds()[0]
    load = Workload(
        train=len(fold.train.label),
        validation=len(fold.validation.label),
        classes=len(fold.classes),
        folds=spec.options.folds,
    )
    config = resolve_precision(spec.space.baseline(), spec.device)
    pool = spec.cluster or spec.machine
    slots = benchmark_slots(resource_request(spec.options), pool, config, load)
    return dataclasses.replace(spec, slots=slots)


def uses_gpus(spec: SearchSpec) -> bool:
    """Return whether trials run on real GPUs."""
    return spec.device_type == "cuda"


def _to_the_end(run: Callable[[], None]) -> None:
    """`run`, and again, from what the study then holds, each time that Ray cannot go on."""
    while True:
        try:
            return run()
        except RestartTrialsError as cause:
            log.info(str(cause))


def _membership(spec: SearchSpec) -> NodeRequirements:
    shared = None if spec.remote is not None else spec.folder / HELD_BY
    return NodeRequirements.of_driver(shared)


def wants_trials(study: optuna.Study, spec: SearchSpec) -> bool:
    """Whether a trial was cut off, or the budget is not met."""
    trials = study.get_trials(deepcopy=False)
    if any(t.state == TrialState.RUNNING for t in trials):
        return True
    handed_out = sum(t.state != TrialState.WAITING for t in trials)
    budget = spec.options.budget
    return budget is None or handed_out < budget


def _run_trials(
    spec: SearchSpec,
    study: optuna.Study,
    work: TrialContext,
    capacity: Callable[[], int] | None,
    listeners: Sequence[Listener],
    console: Console,
    *,
    deadline: float | None,
) -> None:
    options, before = spec.options, records(study, spec.space)
    table = LiveTable(console, options.metric, options.epochs, options.budget)
    table.seed(before)
    recorder = TrialQueue(
        study,
        spec.space,
        metric=options.metric,
        epochs=options.epochs,
        seed=options.seed,
        budget=options.budget,
        deadline=deadline,
        listeners=[*listeners, table],
        settle=lambda config: resolve_precision(config, spec.device),
    )
    scheduler = make_scheduler(
        options.scheduler, epochs=options.epochs, metric=options.metric, past=before
    )
    with table:
        run_trials(recorder, work, spec.slots, scheduler, capacity=capacity)


def _run_replicates(
    spec: SearchSpec,
    study: optuna.Study,
    work: TrialContext,
    capacity: Callable[[], int] | None,
    listeners: Sequence[Listener],
    console: Console,
) -> None:
    """The time budget is for the trials: a winner is chosen when all rivals have their seeds."""
    recorder = _replicates(spec, study)
    if not (left := recorder.left()):
        return
    options = spec.options
    done = [r for r in replicates(study, recorder.trials) if r.state is not None]
    total = len(done) + len(left)
    table = LiveTable(console, options.metric, options.epochs, total, what="replicates")
    table.seed(done)
    recorder.listeners += [*listeners, table]
    # Nobody compares replicates halfway, so nothing needs reports at milestones.
    scheduler = make_scheduler("none", epochs=options.epochs, metric=options.metric, past=())
    work = dataclasses.replace(work, milestones=())
    with table:
        run_trials(recorder, work, spec.slots, scheduler, capacity=capacity)


def _capacity(spec: SearchSpec) -> Callable[[], int] | None:
    """Return how to count the trials that a cluster can hold; None on this machine alone."""
    return None if spec.cluster is None else cluster_capacity(spec.slots, spec.most_at_once)


def _replicates(spec: SearchSpec, study: optuna.Study) -> ReplicateQueue:
    options = spec.options
    return ReplicateQueue(
        study,
        records(study, spec.space),
        metric=options.metric,
        epochs=options.epochs,
        seed=options.seed,
        count=options.replicates,
    )

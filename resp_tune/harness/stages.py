"""The stages of a search: its trials, then replicates of the best trials on new seeds."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console

from resp_tune.cluster.connect import Node, cluster_capacity
from resp_tune.cluster.local_ray import local_ray
from resp_tune.cluster.node_probe import NodeRequirements
from resp_tune.cluster.node_setup import RecordingServer, fill_caches
from resp_tune.cluster.resources import trial_capacity
from resp_tune.common.deadline import call_in_thread
from resp_tune.common.fault_points import fault_point
from resp_tune.common.timeline import span
from resp_tune.config import TrialConfig
from resp_tune.execution.sanity_check import check_baseline
from resp_tune.execution.searcher import RestartTrialsError
from resp_tune.execution.trial_context import TrialContext
from resp_tune.execution.trials_per_gpu import Workload, benchmark_slots
from resp_tune.execution.tuner import run_trials
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.background import BackgroundSetup
from resp_tune.harness.listeners import LiveTable
from resp_tune.harness.lock import HELD_BY
from resp_tune.harness.remote_sync import StorageSync
from resp_tune.harness.spec import Compute, SearchData, SearchSpec
from resp_tune.study.replicates import ReplicateSource, replicates
from resp_tune.study.schedulers import Steps, decision_steps
from resp_tune.study.study import STUDY_ID, records, stopped_by
from resp_tune.study.trial_queue import Listener, Rules, SamplerSource, TrialQueue, TrialSettings
from resp_tune.training.compute_device import resolve_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayBackend:
    """What runs trials: Ray Tune, on a private Ray of this machine or the cluster of `compute`."""

    compute: Compute

    def started(self) -> AbstractContextManager[None]:
        """Return a context with a private Ray, unless a cluster is connected."""
        machine, gpus = self.compute.machine, self.compute.request.gpus
        if self.compute.cluster is not None:
            return nullcontext()
        return local_ray(machine, machine.gpus if gpus is None else gpus)

    @property
    def checks_here(self) -> bool:
        """Return whether the sanity check needs no Ray: trials run on this machine's CPUs."""
        return self.compute.cluster is None and not self.compute.slots.gpus

    def check(self, context: TrialContext, config: TrialConfig, folder: Path) -> None:
        """Raise `RunError` if one batch of `config` fails; the traceback goes to `folder`."""
        here = self.compute.cluster is None
        check_baseline(context, self.compute.slots, config, folder, here=here)

    def run(self, queue: TrialQueue, context: TrialContext) -> None:
        """Run trials until the queue is empty, as `run_trials` does."""
        slots, capacity = self.compute.slots, None
        if self.compute.cluster is not None:
            capacity = cluster_capacity(slots, self.compute.max_concurrent)
        run_trials(queue, context, slots, capacity=capacity)


def choose_trials_per_gpu(spec: SearchSpec) -> SearchSpec:
    """Return `spec` with the number of trials per GPU measured, when it was left to `auto`."""
    compute, datamodule = spec.compute, spec.data.datamodule
    if spec.options.trials_per_gpu is not None:
        return spec
    if compute.device_type != "cuda":
        log.info("trials per GPU: 1 (auto measures on a GPU, and trials here run on the CPU)")
        return spec
    fold = datamodule.folds()[0]
    load = Workload(
        train=len(fold.train.label),
        validation=len(fold.validation.label),
        classes=len(fold.classes),
        folds=1 if spec.options.in_sequence else spec.options.folds,
    )
    config = resolve_precision(spec.space.baseline(), compute.device)
    pool = compute.cluster or compute.machine
    return spec.with_compute(slots=benchmark_slots(compute.request, pool, config, load))


def run_stages(
    spec: SearchSpec,
    study: optuna.Study,
    backend: RayBackend,
    sync: StorageSync,
    setup: BackgroundSetup,
    console: Console,
) -> None:
    """Run the trials and replicates that the study still lacks; without any, start nothing."""
    stages = _Stages(spec, study, backend, console)
    new_trials = needs_trials(study, spec.budget, spec.options.stop)
    if not new_trials and not stages.replicate_source().missing():
        return
    study_id = study.user_attrs[STUDY_ID]
    examples = spec.space.examples("network")

    @span("sanity check")
    def check(caches: FeatureCaches) -> None:
        context = stages.trial_context(study_id, caches)
        for example in examples:
            config = resolve_precision(example, spec.compute.device)
            backend.check(context, config, spec.location.folder)

    # Where it needs no Ray, it runs while Ray starts; but not against the clock, beside imports.
    can_be_early = backend.checks_here and spec.options.trial_timeout is None
    early = call_in_thread(lambda: check(setup.caches.result())) if can_be_early else None
    with backend.started():
        with span("caches and MLflow are awaited"):
            caches, tracking = setup.caches.result(), setup.tracking.result()
        if spec.compute.cluster is not None:
            nodes, slots = spec.compute.cluster.nodes, spec.compute.slots
            used = [node for node in nodes if trial_capacity(slots, [node.machine])]
            caches = _warm_up_nodes(spec.data, used, caches)
        context = stages.trial_context(study_id, caches)
        with span("sanity check is awaited"):
            check(caches) if early is None else early.result()
        fault_point("sanity-checked")
        limit = spec.options.time_budget
        deadline = None if limit is None else time.monotonic() + limit
        listeners = (sync, tracking)
        if new_trials:
            _run_until_complete(partial(stages.run_trials, context, listeners, deadline))
        _run_until_complete(partial(stages.run_replicates, context, listeners))


def _warm_up_nodes(data: SearchData, used: Sequence[Node], caches: FeatureCaches) -> FeatureCaches:
    """Return caches usable from any node, after filling those of the nodes in use.

    A node that joins later fetches and computes what its first trial needs.
    """
    recordings = {s.digest: data.paths[s.stem] for s in data.sources}
    server = RecordingServer({**recordings, **{e.sha256: e.path for e in data.encoders}})
    caches = server.serve(caches)
    if data.prefilled:
        fill_caches(used, caches, data.prefilled)
        if sent := server.bytes_sent():
            log.info(f"recordings: {sent / 1e6:,.1f} MB sent to nodes that cannot read them")
    return caches


def needs_trials(study: optuna.Study, budget: int | None, stop: Collection[str] = ()) -> bool:
    """Return whether a trial was interrupted, or neither the budget nor a rule ended the search."""
    states = [t.state for t in study.get_trials(deepcopy=False)]
    if TrialState.RUNNING in states:
        return True
    if stopped_by(study, stop) is not None:
        return False
    return budget is None or sum(state != TrialState.WAITING for state in states) < budget


def _run_until_complete(stage: Callable[[], None]) -> None:
    """Run `stage`, again from what the study then holds each time that Ray has to be restarted."""
    while True:
        try:
            return stage()
        except RestartTrialsError as cause:
            log.info(str(cause))


@dataclass(frozen=True)
class _Stages:
    """The two stages, each of which starts from what the study holds."""

    spec: SearchSpec
    study: optuna.Study
    backend: RayBackend
    console: Console

    def trial_context(self, study_id: str, caches: FeatureCaches) -> TrialContext:
        """Return what every trial needs beside its config."""
        options, location, compute = self.spec.options, self.spec.location, self.spec.compute
        datamodule, steps = self.spec.data.datamodule, (options.epochs, options.folds_in_sequence)
        shared_file = None if location.remote is not None else location.folder / HELD_BY
        requirements = None
        if compute.cluster is not None:
            requirements = NodeRequirements.of_driver(shared_file, self.spec.packages)
        return TrialContext(
            folds=datamodule.folds(),
            caches=caches,
            artifacts=location.trials,
            study=study_id,
            metric=options.objective,
            rungs=decision_steps(options.scheduler, Steps(*steps)),
            fold_order=options.order,
            reshuffle=datamodule.reshuffle() if options.reshuffle else None,
            threads=compute.slots.threads,
            gpus=compute.slots.gpus,
            timeout=options.trial_timeout,
            requirements=requirements,
        )

    def replicate_source(self) -> ReplicateSource:
        """Return what proposes the replicates that are missing."""
        trials, count = records(self.study, self.spec.space), self.spec.options.replicates
        return ReplicateSource(self.study, trials, self._settings, count)

    @property
    def _settings(self) -> TrialSettings:
        options, precision = self.spec.options, self.spec.compute.device.precision
        how = (options.objective, options.epochs, options.seed, precision)
        return TrialSettings(*how, options.folds, options.order)

    def run_trials(
        self, context: TrialContext, listeners: Sequence[Listener], deadline: float | None
    ) -> None:
        """Run trials until the budget is met or `deadline` has passed."""
        options, space = self.spec.options, self.spec.space
        past = records(self.study, space)
        source = SamplerSource(
            self.study,
            space,
            self._settings,
            budget=self.spec.budget,
            deadline=deadline,
            rules=Rules(options.scheduler, options.rule_between_folds, options.stop),
        )
        table = LiveTable(self.console, options, "trials", self.spec.budget, past)
        queue = TrialQueue(source, [*listeners, table])
        with table.live, span("trials"):
            self.backend.run(queue, context)

    def run_replicates(self, context: TrialContext, listeners: Sequence[Listener]) -> None:
        """Run what is missing of the replicates; the time budget does not limit them.

        A winner is chosen only once all candidates have their seeds.
        """
        source = self.replicate_source()
        if not (missing := source.missing()):
            return
        done = [r for r in replicates(self.study, source.trials) if r.state is not None]
        total = len(done) + len(missing)
        table = LiveTable(self.console, self.spec.options, "replicates", total, done)
        queue = TrialQueue(source, [*listeners, table])
        # Replicates are not compared before their end, so they need no reports at rungs.
        context = dataclasses.replace(context, rungs=())
        with table.live, span("replicates"):
            self.backend.run(queue, context)

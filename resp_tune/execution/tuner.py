"""The trials of a search, run by Ray Tune until the recorder has no more."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ray import tune
from ray.tune.schedulers import TrialScheduler

from resp_tune.cluster.resources import TrialResources
from resp_tune.common.paths import full_disk_in_one_line
from resp_tune.errors import RunError
from resp_tune.execution.searcher import (
    WORKER_LOSSES,
    StudySearcher,
    StudyStopper,
    TrialSource,
    WorkerFailureCallback,
)
from resp_tune.execution.trainable import TrialContext, TrialTrainable
from resp_tune.study.study import TrialRecord

MANY = 100_000


def run_trials(
    runs: TrialSource,
    work: TrialContext,
    slots: TrialResources,
    scheduler: TrialScheduler,
    *,
    capacity: Callable[[], int] | None = None,
    trainable: type[tune.Trainable] = TrialTrainable,
) -> None:
    """Run trials until the recorder `runs` has no more; what became of them is in its study.

    Raises what stopped them all before: a full disk, a changed recording, a study that cannot be
    written. Trials that ran then go on with the next command. After a `RestartTrialsError`, a new
    recorder over the same study goes on with them.

    `capacity`: how many may run at once on a cluster, which changes; else `slots` says it.
    `trainable`: what runs a trial; benchmarks put one here that only pretends to train.
    """
    searcher = StudySearcher(runs, capacity or (lambda: slots.concurrency))
    # Its errors are tracebacks of workers that died, which `WorkerFailureCallback` says in a line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with_work = tune.with_resources(
        tune.with_parameters(trainable, work=work),
        {"cpu": slots.cpus, "gpu": slots.gpus},
    )
    # Ray wants a folder for its own state; ours is the study, so this one is thrown away.
    with (
        full_disk_in_one_line(Path(tempfile.gettempdir()), ", or set TMPDIR to another disk's"),
        tempfile.TemporaryDirectory(prefix="resp_tune_ray_") as folder,
    ):
        tuner = tune.Tuner(
            with_work,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                # Without it Ray asks for one trial at a time; the searcher keeps to the capacity.
                max_concurrent_trials=MANY if capacity else slots.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                stop=StudyStopper(searcher),
                callbacks=[WorkerFailureCallback(searcher)],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=WORKER_LOSSES),
                # A trial's own checkpoint is written when it ends: Ray need not ask for another.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if searcher.halted is not None:
        raise searcher.halted


def check_some_finished(trials: Sequence[TrialRecord]) -> None:
    """Raise `RunError` with the first cause when no trial has finished."""
    if any(t.state == "finished" for t in trials):
        return
    failed = [t for t in trials if t.state == "failed"]
    if failed:
        first = failed[0]
        raise RunError(
            f"no trial finished; trial {first.number} failed with: {first.error} "
            f"(whole traceback: trials/{first.number}/error.txt)"
        )
    states = ", ".join(f"trial {t.number} {t.state}" for t in trials[:3])
    raise RunError(f"no trial finished ({states}): give more time or trials, or a lower lr")

"""Run the trials of a queue with Ray Tune."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from ray import tune

from resp_tune.cluster.resources import TrialResources
from resp_tune.common.paths import full_disk_in_one_line
from resp_tune.execution.searcher import (
    WORKER_RETRIES,
    StudySearcher,
    StudyStopper,
    WorkerFailureCallback,
)
from resp_tune.execution.trainable import TrialTrainable
from resp_tune.execution.trial_context import TrialContext
from resp_tune.study.trial_queue import TrialQueue

UNLIMITED = 100_000


def run_trials(
    queue: TrialQueue,
    context: TrialContext,
    slots: TrialResources,
    *,
    capacity: Callable[[], int] | None = None,
    trainable: type[tune.Trainable] = TrialTrainable,
) -> None:
    """Run trials until the queue is empty; its study records them, and its rules stop them.

    `capacity` returns how many may run at once on a cluster, where that changes; otherwise `slots`
    holds the number. `trainable` runs a trial; benchmarks pass one that only pretends to train.

    Raises what stopped the search early (a full disk, a changed recording, a study that cannot be
    written); the next command resumes the trials that ran. After a `RestartTrialsError`, a new
    queue over the same study resumes them.
    """
    searcher = StudySearcher(queue, capacity or (lambda: slots.concurrency))
    # Tracebacks of workers that died, which `WorkerFailureCallback` reports in one line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with_context = tune.with_resources(
        tune.with_parameters(trainable, context=context), {"cpu": slots.cpus, "gpu": slots.gpus}
    )
    # Ray wants a folder for its own state; ours is the study, so this one is thrown away.
    with (
        full_disk_in_one_line(Path(tempfile.gettempdir()), ", or set TMPDIR to another disk's"),
        tempfile.TemporaryDirectory(prefix="resp_tune_ray_") as folder,
    ):
        tuner = tune.Tuner(
            with_context,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                # Without it Ray asks for one trial at a time; the searcher keeps to the capacity.
                max_concurrent_trials=UNLIMITED if capacity else slots.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                stop=StudyStopper(searcher),
                callbacks=[WorkerFailureCallback(searcher)],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                # A trial's own checkpoint is written when it ends: Ray need not ask for another.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if searcher.fatal_error is not None:
        raise searcher.fatal_error

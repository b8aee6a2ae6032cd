"""`--trials-per-gpu auto`: as many trials on a GPU as pay, measured before the first one."""

from __future__ import annotations

import dataclasses
import math

from resp_tune.cli import say
from resp_tune.errors import RunError
from resp_tune.learning.packing import COUNTS, Load, Packed, choose, measure
from resp_tune.learning.precision import settle_precision
from resp_tune.searching.prepare import slots_of
from resp_tune.searching.prepared import Prepared

EPOCHS = 3  # of each trial that is measured


def packed(prepared: Prepared) -> Prepared:
    """The search with its slots divided anew where that was left to measuring."""
    settings, machine = prepared.settings, prepared.machine
    if settings.trials_per_gpu is not None:
        return prepared
    if prepared.device_type != "cuda":
        say("trials per GPU: 1 (auto measures on a GPU, and trials here run on the CPU)")
        return prepared
    config = settle_precision(prepared.space.baseline(), prepared.device)
    measured: list[Packed] = []
    try:
        for count in COUNTS:
            if count > most_on_a_gpu(prepared):
                break
            slots = slots_of(settings, [machine], trials_per_gpu=count)
            found = measure(
                config, _load(prepared), "cuda", count, epochs=EPOCHS, threads=slots.threads
            )
            if found is None:
                break
            measured.append(found)
    except Exception as error:  # a bug of the config's, or of the driver's: nothing has begun
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(
            f"trials per GPU could not be measured, so none was started: {cause}"
        ) from error
    chosen = choose(measured)
    seen = ", ".join(f"{p.trials}: {p.epochs_per_second:.2f}" for p in measured)
    say(f"trials per GPU: {chosen} (epochs a second of so many at once: {seen or 'none fitted'})")
    return dataclasses.replace(prepared, slots=slots_of(settings, [machine], trials_per_gpu=chosen))


def most_on_a_gpu(prepared: Prepared) -> int:
    """What `--cpus-per-trial` and `--concurrency` leave room for on each GPU."""
    settings, gpus = prepared.settings, prepared.gpus
    cpus = prepared.machine.cpus / (settings.cpus_per_trial or 1.0)
    at_once = math.inf if settings.concurrency is None else settings.concurrency
    return max(1, min(math.floor(cpus / gpus), math.ceil(min(at_once, 1e9) / gpus)))


def _load(prepared: Prepared) -> Load:
    fold = prepared.problem.folds()[0]
    return Load(
        train=len(fold.train.label),
        validation=len(fold.validation.label),
        classes=len(fold.classes),
        folds=prepared.settings.folds,
    )

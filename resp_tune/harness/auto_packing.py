"""`--trials-per-gpu auto`: as many trials on a GPU as pay, measured before the first one."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence

from resp_tune.cluster.connect import Cluster
from resp_tune.cluster.gpu_types import called
from resp_tune.cluster.resources import THIS_MACHINE, Machine, TrialResources, room_for
from resp_tune.errors import RunError
from resp_tune.execution.packing_benchmark import measure_types
from resp_tune.execution.trials_per_gpu import COUNTS, PackingResult, Workload, choose, measure_all
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.validate import slots_of
from resp_tune.training.compute_device import resolve_precision

log = logging.getLogger(__name__)

EPOCHS = 3  # of each trial that is measured


def choose_trials_per_gpu(spec: SearchSpec) -> SearchSpec:
    """The search with its slots divided anew where that was left to measuring."""
    if spec.options.trials_per_gpu is not None:
        return spec
    if not measurable(spec):
        log.info("trials per GPU: 1 (auto measures on a GPU, and trials here run on the CPU)")
        return spec
    if spec.cluster is not None:
        return _packed_by_type(spec, spec.cluster)
    config = resolve_precision(spec.space.baseline(), spec.device)
    options, machine = spec.options, spec.machine
    most = most_on_a_gpu(options, machine.cpus / spec.gpus, spec.gpus)
    divided = _divided(options, [machine], THIS_MACHINE, most)
    threads = {n: slots.threads for n, slots in divided.items()}
    measured: list[PackingResult] = []
    try:
        measured += measure_all(config, _load(spec), "cuda", threads=threads, epochs=EPOCHS)
    except Exception as error:  # a bug of the config's, or of the driver's: nothing has begun
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(
            f"trials per GPU could not be measured, so none was started: {cause}"
        ) from error
    _say_chosen(measured)
    return dataclasses.replace(spec, slots=divided[choose(measured)])


def measurable(spec: SearchSpec) -> bool:
    """Whether trials have real GPUs."""
    return spec.device_type == "cuda"


def _packed_by_type(spec: SearchSpec, cluster: Cluster) -> SearchSpec:
    """Every type of GPU is measured; a trial keeps to a type only where their numbers differ."""
    options, machines = spec.options, _machines_by_type(spec, cluster)
    gpus = options.gpus or sum(machine.gpus for found in machines.values() for machine in found)
    divided: dict[str, dict[int, TrialResources]] = {}
    for name, found in machines.items():
        most = most_on_a_gpu(options, min(m.cpus / m.gpus for m in found), gpus)
        at_once = options.concurrency and min(
            options.concurrency, most * room_for(spec.slots, found)
        )
        # --gpus is a cap for all types together: each is divided as a whole.
        own = dataclasses.replace(options, gpus=None, concurrency=at_once)
        divided[name] = _divided(own, found, str(cluster), most)
    config = resolve_precision(spec.space.baseline(), spec.device)
    measured = measure_types(divided, config, _load(spec), epochs=EPOCHS)
    for name, told in measured.items():
        _say_chosen(told, f" on {called(name)}")
    chosen = {name: choose(told) for name, told in measured.items()}
    if len(set(chosen.values())) == 1:
        count = next(iter(chosen.values()))
        slots = slots_of(options, cluster.machines, str(cluster), trials_per_gpu=count)
        return dataclasses.replace(spec, slots=slots)
    typed = {name: divided[name][count] for name, count in chosen.items()}
    # As many threads on every type, or what a trial computes would depend on where it ran.
    threads = min(slots.threads for slots in typed.values())
    slots = dataclasses.replace(spec.slots, threads=threads)
    return dataclasses.replace(spec, slots=slots, typed=typed)


def _machines_by_type(spec: SearchSpec, cluster: Cluster) -> dict[str, list[Machine]]:
    """Those that have room for trials on GPUs."""
    found: dict[str, list[Machine]] = {}
    for node in cluster.nodes:
        if node.machine.gpus and room_for(spec.slots, [node.machine]):
            found.setdefault(node.gpu_type, []).append(node.machine)
    return dict(sorted(found.items()))


def _divided(
    options: SearchOptions, machines: Sequence[Machine], where: str, most: int
) -> dict[int, TrialResources]:
    """`machines` with 1, 2, 4 … trials on each GPU, `most` at most."""
    return {
        count: slots_of(options, machines, where, trials_per_gpu=count)
        for count in COUNTS
        if count <= most
    }


def most_on_a_gpu(options: SearchOptions, cpus: float, gpus: int) -> int:
    """What `--cpus-per-trial` and `--concurrency` leave room for on each of `gpus`.

    `cpus`: the cores that belong to a GPU.
    """
    fitting = math.floor(cpus / (options.cpus_per_trial or 1.0))
    at_once = math.inf if options.concurrency is None else options.concurrency
    return max(1, min(fitting, math.ceil(min(at_once, 1e9) / gpus)))


def _say_chosen(measured: Sequence[PackingResult], on: str = "") -> None:
    seen = ", ".join(f"{p.trials}: {p.epochs_per_second:.2f}" for p in measured)
    log.info(
        f"trials per GPU: {choose(measured)}{on} (epochs a second of so many at once: "
        f"{seen or 'none fitted'})"
    )


def _load(spec: SearchSpec) -> Workload:
    fold = spec.datamodule.folds()[0]
    return Workload(
        train=len(fold.train.label),
        validation=len(fold.validation.label),
        classes=len(fold.classes),
        folds=spec.options.folds,
    )

"""Everything that can be wrong with a search, checked before anything is started or written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resp_tune.config import FrontEnd
from resp_tune.data.baselines import check_enough
from resp_tune.data.recordings import Dataset, load_dataset
from resp_tune.data.sides import Sides, load_sides
from resp_tune.data.splits import make_sides
from resp_tune.data.synthetic import default_synthetic
from resp_tune.data.task_files import find_task
from resp_tune.data.tasks import TASKS, Task, make_clips
from resp_tune.errors import UserError
from resp_tune.features.logmel import check_filters
from resp_tune.features.store import Source
from resp_tune.learning.metrics import are_cycles
from resp_tune.learning.precision import Device, this_device
from resp_tune.learning.problem import Problem
from resp_tune.paths import cache_folder, folder_to_write, user_path
from resp_tune.searching.copies import current
from resp_tune.searching.recordings import changes, contents, data_digest, listed
from resp_tune.searching.settings import SearchSettings
from resp_tune.storage.place import Place, is_uri
from resp_tune.storage.probe import check_place
from resp_tune.storage.recordings import fetched
from resp_tune.tracking.lookup import DEVICE, THREADS
from resp_tune.tracking.store import probe
from resp_tune.tracking.uri import redact, resolve_uri, sqlite_file
from resp_tune.tuning.conditions import APART
from resp_tune.tuning.joining import Cluster, await_gpus, settled
from resp_tune.tuning.plan import THIS_MACHINE, Machine, Slots, plan_slots, this_machine
from resp_tune.tuning.replicates import check_count
from resp_tune.tuning.seclusion import check_closed, rays_folder
from resp_tune.tuning.space import SearchSpace, load_space
from resp_tune.tuning.study import RECORDINGS, SPLIT, check_settings, read_study
from resp_tune.tuning.trainable import LOGICAL_GPUS
from resp_tune.tuning.trial_files import TrialFiles

Say = Callable[[str], None]
Join = Callable[[str], Cluster]


@dataclass(frozen=True)
class Prepared:
    """A search that can start."""

    settings: SearchSettings
    name: str
    folder: Path
    remote: Place | None  # what `folder` is this machine's copy of, where that is an object store
    tracking_uri: str
    problem: Problem
    space: SearchSpace
    front_ends: tuple[FrontEnd, ...]
    machine: Machine  # the driver's own
    slots: Slots
    sources: tuple[Source, ...]  # the recordings that the search reads, with hashes of them
    arguments: tuple[str, ...]  # as typed
    cluster: Cluster | None = None  # None: a Ray of our own, on this machine
    nodes_device: Device | None = None  # what a trial gets on the cluster

    @property
    def trials(self) -> TrialFiles:
        """Where the trials keep their files."""
        return TrialFiles(self.folder / "trials", self.remote and self.remote / "trials")

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Where the recordings that the search reads lie, by stem."""
        everywhere = {r.stem: r.path.absolute() for r in self.problem.dataset.recordings}
        return {source.stem: everywhere[source.stem] for source in self.sources}

    @property
    def gpus(self) -> int:
        """GPUs that a Ray of our own is started with."""
        asked = self.settings.gpus
        return self.machine.gpus if asked is None else asked

    @property
    def most_at_once(self) -> int | None:
        """Trials that may run at once, however large a cluster grows; None: as many as it holds."""
        asked = [] if self.settings.concurrency is None else [self.settings.concurrency]
        if self.settings.gpus:
            asked.append(round(self.settings.gpus / self.slots.gpus))
        return min(asked, default=None)

    @property
    def data_name(self) -> str:
        """What files call the data: not its path, which says whose machine it was."""
        root = self.problem.dataset.root.absolute()
        built_in = root.is_relative_to(cache_folder() / "synthetic")
        return "built-in synthetic set" if built_in else root.name

    @property
    def device_type(self) -> str:
        """Where trials compute: `cuda`, or `cpu` also for logical GPUs."""
        real = self.slots.gpus > 0 and os.environ.get(LOGICAL_GPUS) != "1"
        return "cuda" if real else "cpu"

    @cached_property
    def device(self) -> Device:
        """What trials compute on."""
        return self.nodes_device or this_device(self.device_type)

    @property
    def own_device(self) -> str:
        """What this process computes on: the driver of a cluster may have no GPU."""
        import torch

        return self.device_type if torch.cuda.is_available() else "cpu"

    @property
    def trial_tags(self) -> dict[str, str]:
        """What MLflow says of every trial: the device, and the threads that its bits depend on."""
        rehearsed = self.slots.gpus > 0 and self.device_type == "cpu"
        return {
            DEVICE: f"{self.device.name}{' (logical GPU)' * rehearsed}",
            THREADS: str(self.slots.threads),
        }

    def meaning(self) -> dict[str, Any]:
        """What makes a trial of this search comparable with another: bound to its study."""
        return _meaning(self.settings, self.space, self.problem, self.sources)


def _meaning(
    settings: SearchSettings, space: SearchSpace, problem: Problem, sources: Sequence[Source]
) -> dict[str, Any]:
    """The base config's fields stand by name, so that a difference can be named."""
    fixed = {
        f"field {k}": v
        for k, v in space.base.as_dict().items()
        if k not in space.parameters and k not in ("seed", "epochs")
    }
    ranges = {f"parameter {k}": p.model_dump() for k, p in space.parameters.items()}
    return {
        **_task_meaning(problem.clips.task),
        "protocol": settings.protocol,
        "metric": settings.metric,
        "folds": settings.folds,
        "split seed": settings.split_seed,
        "epochs": settings.epochs,
        "seed": settings.seed,
        RECORDINGS: data_digest(problem, sources),
        "searched fields": sorted(space.parameters),
        **ranges,
        **fixed,
    }


def _task_meaning(task: Task) -> dict[str, Any]:
    """What binds a study to a task: of one from a file, which may be edited, also its classes."""
    if task.name in TASKS:
        return {"task": task.name}
    classes = [f"{name}: {', '.join(group)}" for name, group in task.grouping.items()]
    return {"task": task.name, "task classes": classes}


def prepare(
    settings: SearchSettings,
    say: Say,
    arguments: Sequence[str] = (),
    join: Join | None = None,
) -> Prepared:
    """Check the settings against space, machine, data, storage and tracking; writes nothing.

    Only the default synthetic data set is made, in the cache folder, when no data is given.
    The cluster of the settings is joined, by `join` with its HOST:PORT, when nothing else is
    wrong; without `join` the search is for this machine alone.
    """
    elsewhere = settled(settings.address) if join is not None else None
    if settings.trials_per_gpu is None and elsewhere:
        raise UserError("--trials-per-gpu auto is not built for clusters yet: give a number")
    task = find_task(settings.task)
    space, front_ends = _space(settings.space)
    machine = this_machine()
    if not elsewhere:
        slots_of(settings, [machine])  # a wish that cannot be met is told at once
    storage, remote = _storage(settings)
    tracking_uri = resolve_uri(settings.tracking_uri, storage)
    probe(tracking_uri)
    if not elsewhere:
        check_closed(rays_folder())
    dataset = load_dataset(data_folder(settings.data, say))
    name = settings.named
    check_name(name, storage, tracking_uri)
    with current(remote and remote / name, storage / name) as kept:
        problem, sources = _agreed(kept, settings, space, task, dataset, machine.cpus)
    cluster: Cluster | None = None
    machines: Sequence[Machine] = [machine]
    if elsewhere and join:
        cluster = await_gpus(join(elsewhere), settings.gpus, settings.wait_for_gpus, say)
        machines = cluster.machines
    if any(redact(text) != text for text in arguments):
        say(
            "note: what is secret in these arguments is seen in the machine's list of processes "
            "while the search runs; $MLFLOW_TRACKING_URI is not"
        )
    return Prepared(
        settings=settings,
        name=name,
        folder=storage / name,
        remote=remote and remote / name,
        tracking_uri=tracking_uri,
        problem=problem,
        space=space,
        front_ends=front_ends,
        machine=machine,
        slots=slots_of(settings, machines, str(cluster or THIS_MACHINE)),
        sources=sources,
        arguments=tuple(arguments),
        cluster=cluster,
    )


def _space(given: str) -> tuple[SearchSpace, tuple[FrontEnd, ...]]:
    space = load_space(given)
    front_ends = space.front_ends()
    try:
        for front_end in front_ends:
            check_filters(front_end)
    except UserError as error:
        raise UserError(f"space '{given}': {error}. To keep values apart: {APART}") from error
    return space, front_ends


def _agreed(
    kept: Path,
    settings: SearchSettings,
    space: SearchSpace,
    task: Task,
    dataset: Dataset,
    processes: int,
) -> tuple[Problem, tuple[Source, ...]]:
    """The problem and its recordings; they are those of the study, where `kept` has one."""
    study = read_study(kept / "study.db", settings.named) if (kept / "study.db").exists() else None
    if study is not None:  # before the sides: they differ too, and cannot say by what
        check_settings(study, _task_meaning(task))
    known = None if study is None else study.user_attrs.get(SPLIT)
    problem = make_problem(dataset, task, settings, kept / "split.json", known)
    check_enough(dataset, problem.clips)
    if settings.metric == "icbhi_score" and not are_cycles(problem.sides.classes):
        raise UserError("--metric icbhi_score needs normal cycles, and this data has too few")
    sources = tuple(problem.sources(problem.search_stems, processes))
    if study is not None:
        changed = changes(kept, contents(problem, sources))
        check_settings(study, _meaning(settings, space, problem, sources), changed)
        check_count(study, settings.replicates)
    return problem, sources


def _storage(settings: SearchSettings) -> tuple[Path, Place | None]:
    """The folder that searches are kept in, and the place that it is a copy of, if it is one.

    A place is tried with a small object that is removed at once.
    """
    if not is_uri(settings.storage):
        return folder_to_write("--storage", str(settings.storage)), None
    place = Place.parse("--storage", settings.storage)
    if not (settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise UserError(
            f"--storage '{place}' has no room for MLflow's database: give --tracking-uri "
            "http://… or postgresql://… (sqlite:///FILE serves while one machine runs the search)"
        )
    folder = folder_to_write("the cache folder for --storage", str(place.copy))
    check_place("--storage", place)
    return folder, place


def slots_of(
    settings: SearchSettings,
    machines: Sequence[Machine],
    where: str = THIS_MACHINE,
    *,
    trials_per_gpu: int | None = None,
) -> Slots:
    """How `machines`, together `where`, are divided among trials.

    `trials_per_gpu`: where that is not in the settings, because it was measured.
    """
    return plan_slots(
        machines,
        where,
        gpus=settings.gpus,
        trials_per_gpu=trials_per_gpu or settings.trials_per_gpu or 1,
        concurrency=settings.concurrency,
        cpus_per_trial=settings.cpus_per_trial,
        logical_gpus=os.environ.get(LOGICAL_GPUS) == "1",
    )


def data_folder(given: str | None, say: Say) -> Path:
    """`--data`, else `$RESP_TUNE_DATA`, else the synthetic set in the cache folder."""
    if given == "":  # an unset variable of the shell: nobody types it
        raise UserError("--data '': give the folder with the recordings")
    chosen = given or os.environ.get("RESP_TUNE_DATA")
    if not chosen:
        folder = default_synthetic(cache_folder())
        say(f"data: no --data given: a small SYNTHETIC set, made by this program, in {folder}")
        return folder
    if is_uri(chosen):
        return fetched(chosen, say)
    return user_path(chosen)


def make_problem(
    dataset: Dataset,
    task: Task,
    settings: SearchSettings,
    saved: Path | None,
    known: str | None = None,
) -> Problem:
    """The clips of the task, the sides of the settings; those a search has in `saved` stand.

    Where that file is damaged, sides of the digest `known` are what it held.
    """
    clips = make_clips(task, dataset)
    sides = make_sides(
        dataset,
        clips,
        settings.protocol,
        split_seed=settings.split_seed,
        folds=settings.folds,
        hold_out_device=settings.hold_out_device,
        drop_shared_patients=settings.drop_shared_patients,
    )
    if saved is not None and saved.exists():
        sides = _same_sides(_saved_sides(saved, sides, known), sides, saved)
    return Problem(dataset, clips, sides)


def _saved_sides(path: Path, now: Sides, known: str | None) -> Sides:
    try:
        return load_sides(path)
    except UserError:
        if now.digest != known or not path.is_file():
            raise
        return now


def _same_sides(old: Sides, new: Sides, path: Path) -> Sides:
    if old.digest != new.digest:
        raise UserError(
            f"the sides of this search ({path}) are not those of this data, task and protocol: "
            f"{_difference(old, new)}. Give the old settings, or another --name"
        )
    return old


def _difference(old: Sides, new: Sides) -> str:
    for what in ("task", "protocol", "split_seed", "classes"):
        if getattr(old, what) != getattr(new, what):
            return f"{what.replace('_', ' ')} was {getattr(old, what)}, now {getattr(new, what)}"
    if len(old.folds) != len(new.folds):
        return f"--folds was {len(old.folds)}, now {len(new.folds)}"
    before, now = (
        {s for f in x.folds for s in (*f.train, *f.validation)} | set(x.test or ())
        for x in (old, new)
    )
    if before == now:
        return "the same recordings stand on other sides"
    kinds = {"gone": before - now, "new": now - before}
    return "recordings are " + "; ".join(f"{k}: {listed(v)}" for k, v in kinds.items() if v)


def check_name(name: str, storage: Path, tracking_uri: str) -> None:
    """Raise `UserError` when the search's folder would be a file, or MLflow's."""
    folder = storage / name
    taken = {sqlite_file(tracking_uri), storage / "mlflow.db", storage / "mlartifacts"}
    if folder in taken or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--name '{name}': '{folder}' is or will be something else: give another")
    folder_to_write("--name", str(folder))

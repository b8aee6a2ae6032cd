"""Everything that can be wrong with a search, checked before anything is started or written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from resp_tune.cluster.connect import Cluster, resolve_address, wait_for_gpus
from resp_tune.cluster.private_ray import check_private, ray_folder
from resp_tune.cluster.resources import (
    LOGICAL_GPUS,
    THIS_MACHINE,
    Machine,
    ResourceRequest,
    allocate,
    this_machine,
)
from resp_tune.common.paths import cache_folder, folder_to_write, user_path
from resp_tune.config import FrontEnd
from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.synthetic.write import default_synthetic
from resp_tune.data.task_files import find_task
from resp_tune.data.tasks import Task
from resp_tune.errors import UserError
from resp_tune.evaluation.baselines import check_enough
from resp_tune.features.cache import AudioSource
from resp_tune.features.logmel import check_filters
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.reconcile import search_state
from resp_tune.harness.saved_split import make_datamodule
from resp_tune.harness.spec import (
    Compute,
    SearchData,
    SearchLocation,
    SearchSpec,
    task_identity,
    trial_identity,
)
from resp_tune.space.conditions import APART
from resp_tune.space.search_space import SearchSpace, load_space
from resp_tune.storage.object_store import ObjectPath, is_uri
from resp_tune.storage.remote_datasets import fetched
from resp_tune.storage.storage_probe import check_store
from resp_tune.study.replicates import check_count
from resp_tune.study.study import SPLIT, check_settings, read_study
from resp_tune.tracking.store_probe import probe
from resp_tune.tracking.uri import redact, resolve_uri, sqlite_file
from resp_tune.training.datamodule import DataModule
from resp_tune.training.fingerprint import changed_recordings, recording_hashes
from resp_tune.training.metrics import are_cycles

log = logging.getLogger(__name__)

Join = Callable[[str], Cluster]


def validate(
    options: SearchOptions,
    arguments: Sequence[str] = (),
    join: Join | None = None,
) -> SearchSpec:
    """Check the settings against space, machine, data, storage and tracking; writes nothing.

    Only the default synthetic data set is made, in the cache folder, when no data is given.
    The cluster of the settings is joined, by `join` with its HOST:PORT, when nothing else is
    wrong; without `join` the search is for this machine alone.
    """
    elsewhere = resolve_address(options.ray_address) if join is not None else None
    task = find_task(options.task)
    space, front_ends = _space(options.space)
    machine, request = this_machine(), resource_request(options)
    if not elsewhere:
        allocate([machine], request)  # a wish that cannot be met is told at once
    storage, remote = _storage(options)
    tracking_uri = resolve_uri(options.tracking_uri, storage)
    probe(tracking_uri)
    if not elsewhere:
        check_private(ray_folder())
    dataset = load_dataset(data_folder(options.data))
    name = options.search_name
    check_name(name, storage, tracking_uri)
    with search_state(remote and remote / name, storage / name) as kept:
        datamodule, sources = _agreed(kept, options, space, task, dataset, machine.cpus)
    cluster: Cluster | None = None
    machines: Sequence[Machine] = [machine]
    if elsewhere and join:
        cluster = wait_for_gpus(join(elsewhere), options.gpus, options.wait_for_gpus)
        machines = cluster.machines
    if any(redact(text) != text for text in arguments):
        log.info(
            "note: what is secret in these arguments is seen in the machine's list of processes "
            "while the search runs; $MLFLOW_TRACKING_URI is not"
        )
    slots = allocate(machines, request, str(cluster or THIS_MACHINE))
    return SearchSpec(
        options=options,
        location=SearchLocation(name, storage / name, remote and remote / name, tracking_uri),
        data=SearchData(datamodule, sources, front_ends),
        space=space,
        compute=Compute(machine, request, slots, cluster),
        arguments=tuple(arguments),
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
    options: SearchOptions,
    space: SearchSpace,
    task: Task,
    dataset: Dataset,
    processes: int,
) -> tuple[DataModule, tuple[AudioSource, ...]]:
    """The problem and its recordings; they are those of the study, where `kept` has one."""
    study = read_study(kept / "study.db", name) if (kept / "study.db").exists() else None
    if study is not None:  # before the sides: they differ too, and cannot say by what
        check_settings(study, task_identity(task))
    known = None if study is None else study.user_attrs.get(SPLIT)
    datamodule = make_datamodule(dataset, task, options.split_spec, kept / "split.json", known)
    check_enough(dataset, datamodule.clips)
    if options.metric == "icbhi_score" and not are_cycles(datamodule.split.classes):
        raise UserError("--metric icbhi_score needs normal cycles, and this data has too few")
    sources = tuple(datamodule.audio_sources(datamodule.search_stems, processes))
    if study is not None:
        changed = changed_recordings(kept, recording_hashes(datamodule, sources))
        check_settings(study, trial_identity(options, space, datamodule, sources), changed)
        check_count(study, options.replicates)
    return datamodule, sources


def _storage(options: SearchOptions) -> tuple[Path, ObjectPath | None]:
    """The folder that searches are kept in, and the place that it is a copy of, if it is one.

    A place is tried with a small object that is removed at once.
    """
    if not is_uri(options.storage):
        return folder_to_write("--storage", str(options.storage)), None
    place = ObjectPath.parse("--storage", options.storage)
    if not (options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise UserError(
            f"--storage '{place}' has no room for MLflow's database: give --tracking-uri "
            "http://… or postgresql://… (sqlite:///FILE serves while one machine runs the search)"
        )
    folder = folder_to_write("the cache folder for --storage", str(place.local_copy))
    check_store("--storage", place)
    return folder, place


def resource_request(options: SearchOptions) -> ResourceRequest:
    """Return what the options ask for; one trial per GPU until `auto` has been measured."""
    return ResourceRequest(
        gpus=options.gpus,
        trials_per_gpu=options.trials_per_gpu or 1,
        concurrency=options.concurrency,
        cpus_per_trial=options.cpus_per_trial,
        logical_gpus=os.environ.get(LOGICAL_GPUS) == "1",
    )


def data_folder(given: str | None) -> Path:
    """`--data`, else `$RESP_TUNE_DATA`, else the synthetic set in the cache folder."""
    if given == "":  # an unset variable of the shell: nobody types it
        raise UserError("--data '': give the folder with the recordings")
    chosen = given or os.environ.get("RESP_TUNE_DATA")
    if not chosen:
        folder = default_synthetic(cache_folder())
        log.info(f"data: no --data given: a small SYNTHETIC set, made by this program, in {folder}")
        return folder
    if is_uri(chosen):
        return fetched(chosen)
    return user_path(chosen)


def check_name(name: str, storage: Path, tracking_uri: str) -> None:
    """Raise `UserError` when the search's folder would be a file, or MLflow's."""
    folder = storage / name
    taken = {sqlite_file(tracking_uri), storage / "mlflow.db", storage / "mlartifacts"}
    if folder in taken or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--name '{name}': '{folder}' is or will be something else: give another")
    folder_to_write("--name", str(folder))

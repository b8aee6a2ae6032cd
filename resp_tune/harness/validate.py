"""Check everything that can be wrong with a search before anything is started or written."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from resp_tune.cluster.connect import connect, resolve_address, wait_for_gpus
from resp_tune.cluster.local_ray import check_private, ray_folder
from resp_tune.cluster.resources import (
    LOGICAL_GPUS,
    THIS_MACHINE,
    ResourceRequest,
    allocate,
    this_machine,
)
from resp_tune.common.paths import cache_folder, folder_to_write, user_path
from resp_tune.config import FrontEnd
from resp_tune.data.dataset import load_dataset
from resp_tune.data.split import load_same_split
from resp_tune.data.synthetic.write import default_synthetic
from resp_tune.data.task_files import find_task
from resp_tune.errors import UserError
from resp_tune.evaluation.baselines import check_enough
from resp_tune.features.logmel import check_filters
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.reconcile import search_state
from resp_tune.harness.spec import (
    Compute,
    SearchData,
    SearchLocation,
    SearchSpec,
    task_identity,
    trial_identity,
)
from resp_tune.space.search_space import APART, SearchSpace, load_space
from resp_tune.storage.object_store import ObjectPath, check_store, is_uri
from resp_tune.storage.remote_datasets import fetch_dataset
from resp_tune.study.replicates import check_count
from resp_tune.study.study import SPLIT, check_settings, read_study
from resp_tune.tracking.store_probe import probe
from resp_tune.tracking.uri import redact, resolve_uri, sqlite_file
from resp_tune.training.datamodule import make_datamodule
from resp_tune.training.fingerprint import changed_recordings, recording_hashes
from resp_tune.training.metrics import are_cycles

log = logging.getLogger(__name__)


def validate(
    options: SearchOptions, arguments: Sequence[str] = (), connection: ExitStack | None = None
) -> SearchSpec:
    """Check the options against space, machine, data, storage and tracking; write nothing.

    Without a data set, the default synthetic one is made in the cache folder. When all else is
    right, it connects to the cluster of `--address`, for as long as `connection` is open; without
    that the search is for this machine alone.
    """
    local = connection is None or options.ray_address == "local"
    address = None if local else resolve_address(options.ray_address)
    task = find_task(options.task)
    space, front_ends = _load_space(options.space)
    machine = this_machine()
    request = ResourceRequest(
        gpus=options.gpus,
        trials_per_gpu=options.trials_per_gpu or 1,  # until `auto` has been measured
        concurrency=options.concurrency,
        cpus_per_trial=options.cpus_per_trial,
        logical_gpus=os.environ.get(LOGICAL_GPUS) == "1",
    )
    if not address:
        allocate([machine], request)  # fails before the slower checks
    location = _locate(options)
    probe(location.tracking_uri)
    if not address:
        check_private(ray_folder())
    dataset = load_dataset(data_folder(options.data))
    _check_name(location)
    with search_state(location.remote, location.folder) as folder:
        path = folder / "study.db"
        study = read_study(path, location.name) if path.exists() else None
        if study is not None:  # before the splits, which differ too, but cannot tell why
            check_settings(study, task_identity(task))
        datamodule = make_datamodule(dataset, task, options.split_spec)
        saved = folder / "split.json"
        if saved.exists():
            digest = None if study is None else study.user_attrs.get(SPLIT)
            split = load_same_split(saved, datamodule.split, digest)
            datamodule = dataclasses.replace(datamodule, split=split)
        check_enough(datamodule.clips)
        if options.metric == "icbhi_score" and not are_cycles(datamodule.split.classes):
            raise UserError("--metric icbhi_score needs normal cycles, and this data has too few")
        sources = tuple(datamodule.audio_sources(datamodule.search_stems, machine.cpus))
        data = SearchData(datamodule, sources, front_ends)
        if study is not None:
            changed = changed_recordings(folder, recording_hashes(datamodule, sources))
            check_settings(study, trial_identity(options, space, data), changed)
            check_count(study, options.replicates)
    cluster, machines = None, [machine]
    if address and connection:
        cluster = connection.enter_context(connect(address))
        cluster = wait_for_gpus(cluster, options.gpus, options.wait_for_gpus)
        machines = list(cluster.machines)
    slots = allocate(machines, request, str(cluster or THIS_MACHINE))
    compute = Compute(machine, request, slots, cluster)
    if any(redact(text) != text for text in arguments):
        log.warning(
            "the password in these arguments is visible in this machine's list of processes while "
            "the search runs; in $MLFLOW_TRACKING_URI it is not"
        )
    return SearchSpec(options, location, data, space, compute, tuple(arguments))


def _load_space(name: str) -> tuple[SearchSpace, tuple[FrontEnd, ...]]:
    space = load_space(name)
    front_ends = space.front_ends()
    try:
        for front_end in front_ends:
            check_filters(front_end)
    except UserError as error:
        raise UserError(f"space '{name}': {error}. To keep values apart: {APART}") from error
    return space, front_ends


def _locate(options: SearchOptions) -> SearchLocation:
    """Return where the search is kept. An object store is tried with a small object."""
    name, remote = options.search_name, None
    if is_uri(options.storage):
        store = ObjectPath.parse("--storage", options.storage)
        if not (options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise UserError(
                f"--storage '{store}' cannot hold MLflow's database: give --tracking-uri http://… "
                "or postgresql://… (sqlite:///FILE works if one machine runs the search)"
            )
        storage = folder_to_write("the cache folder for --storage", str(store.local_copy))
        check_store("--storage", store)
        remote = store / name
    else:
        storage = folder_to_write("--storage", options.storage)
    return SearchLocation(name, storage / name, remote, resolve_uri(options.tracking_uri, storage))


def data_folder(path: str | None) -> Path:
    """Return the folder of `--data`, of `$RESP_TUNE_DATA`, or of the default synthetic set."""
    if path == "":  # from an unset variable of the shell
        raise UserError("--data '': give the folder with the recordings")
    chosen = path or os.environ.get("RESP_TUNE_DATA")
    if not chosen:
        folder = default_synthetic(cache_folder())
        log.info(f"data: no --data given: using a small SYNTHETIC set in {folder}")
        return folder
    if is_uri(chosen):
        return fetch_dataset(chosen)
    return user_path(chosen)


def _check_name(location: SearchLocation) -> None:
    """Raise `UserError` if the search's folder is a file, or MLflow's."""
    folder, storage = location.folder, location.storage
    reserved = {sqlite_file(location.tracking_uri), storage / "mlflow.db", storage / "mlartifacts"}
    if folder in reserved or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"--name '{location.name}' clashes with '{folder}', which is a file or belongs to "
            "MLflow: give another name"
        )
    folder_to_write("--name", str(folder))

"""Check everything that can be wrong with a search before anything is started or written."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from resp_tune.cluster.connect import connect, resolve_address, variable_in_errors, wait_for_gpus
from resp_tune.cluster.resources import (
    LOGICAL_GPUS,
    THIS_MACHINE,
    ResourceRequest,
    allocate,
    this_machine,
)
from resp_tune.common.paths import cache_folder, user_path
from resp_tune.config import AnyFrontEnd, FrontEnd
from resp_tune.data.dataset import Dataset, load_dataset, refusal
from resp_tune.data.split import load_same_split
from resp_tune.data.synthetic.write import default_synthetic
from resp_tune.data.task_files import find_task
from resp_tune.data.tasks import Task, check_enough
from resp_tune.encoders.encoder_file import Encoder, open_encoders
from resp_tune.errors import UserError, named_in_errors
from resp_tune.features.cache import AudioSource
from resp_tune.features.logmel import check_filters
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.preflight_checks import Start, run_checks
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
from resp_tune.storage.object_store import ObjectPath, is_uri
from resp_tune.storage.remote_datasets import fetch_dataset
from resp_tune.study.replicates import check_count
from resp_tune.study.study import OUTER_FOLDS, SPLIT, check_settings, fold_order, read_study
from resp_tune.tracking.uri import redact, resolve_uri
from resp_tune.training.datamodule import changed_recordings, make_datamodule, recording_hashes
from resp_tune.training.metrics import are_cycles
from resp_tune.training.networks.network_registry import check_network, network_origin

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
    space, front_ends, encoders = _load_space(options.space)
    linear = any(
        config.has_encoder and config.head == "linear" for config in space.examples("head")
    )
    if options.fold_rule == "wilcoxon" and linear:
        raise UserError(
            "--fold-rule wilcoxon pairs epochs, and all epochs of a linear head are one: give "
            "--fold-rule forgiving, or a space with the head mlp alone"
        )
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
    location, store = _locate(options)
    start = Start(location, store, machine, private_ray=not address)
    run_checks(start)
    dataset = open_dataset(options.data, keep=not options.dry_run)
    given = _Given(dataset, task, space, front_ends, encoders)
    options, data = _read_data(options, given, start)
    cluster, machines = None, [machine]
    if address and connection:
        with variable_in_errors(options.ray_address):
            cluster = connection.enter_context(connect(address))
        cluster = wait_for_gpus(cluster, options.gpus, options.wait_for_gpus)
        machines = list(cluster.machines)
    slots = allocate(machines, request, str(cluster or THIS_MACHINE))
    compute = Compute(machine, request, slots, cluster)
    _warn_of_passwords(arguments)
    spec = SearchSpec(options, location, data, space, compute, tuple(arguments))
    shared, outer = dataclasses.replace(given, sources=data.sources), []
    for number in range(options.outer_folds if options.outer_folds > 1 else 0):
        own = dataclasses.replace(start, location=location.of_outer_fold(number))
        its_options, its_data = _read_data(options.of_outer_fold(number), shared, own)
        search = dataclasses.replace(spec, options=its_options, location=own.location)
        outer.append(dataclasses.replace(search, data=its_data))
    return dataclasses.replace(spec, outer=tuple(outer))


@dataclass(frozen=True)
class _Given:
    """What the searches of one command have in common."""

    dataset: Dataset
    task: Task
    space: SearchSpace
    front_ends: tuple[AnyFrontEnd, ...]
    encoders: tuple[Encoder, ...]
    sources: tuple[AudioSource, ...] | None = None


def _read_data(
    options: SearchOptions, given: _Given, start: Start
) -> tuple[SearchOptions, SearchData]:
    """Return the data of a search, and its options as its study completes them.

    Raises `UserError` if the study has other settings, or if the data cannot be scored.
    """
    location, dataset = start.location, given.dataset
    with search_state(location.remote, location.folder) as folder:
        path = folder / "study.db"
        study = read_study(path, location.name) if path.exists() else None
        if study is not None:  # before the splits, which differ too, but cannot tell why
            outer = {OUTER_FOLDS: options.outer_folds}
            check_settings(study, task_identity(given.task) | outer)
            if options.fold_order is None:
                options = dataclasses.replace(options, fold_order=fold_order(study))
        datamodule = make_datamodule(dataset, given.task, options.split_spec)
        saved = folder / "split.json"
        if saved.exists():
            digest = None if study is None else study.user_attrs.get(SPLIT)
            split = load_same_split(saved, datamodule.split, digest, dataset)
            datamodule = dataclasses.replace(datamodule, split=split)
        check_enough(datamodule.clips, dataset.problems)
        if options.metric == "icbhi_score" and not are_cycles(datamodule.split.classes):
            few = "--metric icbhi_score needs normal cycles, and this data has too few"
            raise refusal(few, dataset.problems, "annotation")
        for config in given.space.examples("network"):
            check_network(config, len(datamodule.split.classes))
        sources = given.sources
        if sources is None:
            stems = datamodule.cached_stems
            sources = tuple(datamodule.audio_sources(stems, start.machine.cpus))
        data = SearchData(datamodule, sources, given.front_ends, given.encoders)
        run_checks(dataclasses.replace(start, data=data))
        if study is not None:
            changed = changed_recordings(folder, recording_hashes(datamodule, sources))
            check_settings(study, trial_identity(options, given.space, data), changed)
            check_count(study, options.replicates)
    return options, data


def _warn_of_passwords(arguments: Sequence[str]) -> None:
    if any(redact(text) != text for text in arguments):
        log.warning(
            "the password in these arguments is visible in this machine's list of processes while "
            "the search runs; in $MLFLOW_TRACKING_URI it is not"
        )


def _load_space(name: str) -> tuple[SearchSpace, tuple[AnyFrontEnd, ...], tuple[Encoder, ...]]:
    space = load_space(name)
    front_ends = space.front_ends()
    try:
        encoders = open_encoders(front_ends)
    except UserError as error:
        raise UserError(f"space '{name}': {error}") from error
    try:
        for front_end in front_ends:
            if isinstance(front_end, FrontEnd):
                check_filters(front_end)
    except UserError as error:
        raise UserError(f"space '{name}': {error}. To keep values apart: {APART}") from error
    for config in space.examples("network"):
        try:
            network_origin(config.network)
        except UserError as error:
            raise UserError(f"space '{name}': network: {error}") from error
    return space, front_ends, encoders


def _locate(options: SearchOptions) -> tuple[SearchLocation, ObjectPath | None]:
    """Return where the search is kept, and the object store of `--storage` if it is one."""
    name, store = options.search_name, None
    if options.storage == "":  # from an unset variable of the shell
        raise UserError("--storage '': give a folder")
    if is_uri(options.storage):
        store = ObjectPath.parse("--storage", options.storage)
        if not (options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise UserError(
                f"--storage '{store}' cannot hold MLflow's database: give --tracking-uri http://… "
                "or postgresql://… (sqlite:///FILE works if one machine runs the search)"
            )
    storage = user_path(options.storage).absolute() if store is None else store.local_copy
    uri = resolve_uri(options.tracking_uri, storage)
    return SearchLocation(name, storage / name, store and store / name, uri), store


def open_dataset(path: str | None, *, keep: bool = True) -> Dataset:
    """Return the data set of `--data`, of `$RESP_TUNE_DATA`, or the default synthetic one.

    `keep`: what is found in its sounds is kept in the cache folder.
    """
    from_variable = path is None and os.environ.get("RESP_TUNE_DATA")
    with named_in_errors("RESP_TUNE_DATA" if from_variable else None):
        return load_dataset(_data_folder(path), keep=keep)


def _data_folder(path: str | None) -> Path:
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

"""Run one training without Ray.

python -m resp_tune.train --preset notebook --data ICBHI      the notebook, on its random split
python -m resp_tune.train --config mine.yaml --data ICBHI --out model
python -m resp_tune.train --run MLFLOW_RUN_ID --data ICBHI    repeat a trial of a search
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.cli import Parser, add_fields, integer, read_mapping, run
from resp_tune.common.paths import folder_to_write
from resp_tune.common.text import one_line
from resp_tune.config import TrialConfig, preset
from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import RunError, UserError
from resp_tune.harness.options import SearchOptions

if TYPE_CHECKING:
    from resp_tune.data.tasks import Task
    from resp_tune.encoders.encoder_file import Encoder
    from resp_tune.training.datamodule import DataModule, FoldTables
    from resp_tune.training.loop import Training

log = logging.getLogger("resp_tune.train")

COLUMNS = ("train_loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "lr")


def parser() -> Parser:
    """Return the parser; flags that are not given follow from the preset or the repeated trial."""
    p = Parser("train", __doc__ or "")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", metavar="NAME", help="baseline or notebook")
    source.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of trial config fields, over the preset baseline",
    )
    source.add_argument(
        "--run", metavar="ID", help="MLflow run of a trial: repeat its config, split and seed"
    )
    add_fields(
        p,
        SearchOptions,
        unset={
            "data": None,
            "task": "diagnosis; diagnosis-8 with --preset notebook",
            "protocol": "patient; recording with --preset notebook",
            "split_seed": "0",
            "hold_out_device": None,
            "drop_shared_patients": None,
        },
    )
    add_fields(p, TrialConfig, unset={"seed": "from the config", "epochs": "from the config"})
    p.add_argument(
        "--threads",
        type=partial(integer, least=1),
        metavar="N",
        help="CPU threads (default: all cores; with --run those of the trial)",
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store of --run (default: $MLFLOW_TRACKING_URI, else results/mlflow.db)",
    )
    p.add_argument("--out", metavar="DIR", help="folder for the trained model and epochs.csv")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Train and print every epoch; with `--out` the last line on stdout is the model's folder."""
    args = parser().parse(argv)
    from resp_tune.data.dataset import refusal
    from resp_tune.data.sounds.waveforms import describe_uneven_bands
    from resp_tune.harness.preflight_checks import check_cache_folder
    from resp_tune.harness.validate import open_dataset
    from resp_tune.training.datamodule import make_datamodule
    from resp_tune.training.networks.network_registry import check_network

    request = read_arguments(args)
    encoder = _check_front_end(request.config)
    if encoder is not None and request.encoder_sha256 not in (None, encoder.sha256):
        raise UserError(
            f"--run {args.run}: the encoder '{encoder.given}' has changed since the trial: restore "
            f"the file with the SHA-256 {request.encoder_sha256}"
        )
    if encoder is not None and request.encoder_settings_sha256 not in (
        None, encoder.settings_sha256
    ):  # fmt: skip
        raise UserError(
            f"--run {args.run}: the settings of the encoder '{encoder.given}' have changed since "
            "the trial: restore the YAML beside the file"
        )
    out = None if args.out is None else _empty_folder(args.out)
    check_cache_folder()
    dataset = open_dataset(args.data)
    datamodule = make_datamodule(dataset, request.task, request.split_spec)
    if request.split_sha256 not in (None, datamodule.split.digest):
        raise refusal(
            f"--run {args.run}: the split of this data is not that of the trial: give the "
            "--data of its search, and the same task, protocol and --split-seed",
            dataset.problems,
        )
    bands = describe_uneven_bands(dataset.recordings, request.config.front_ends)
    notes = (*dataset.problems, *datamodule.clips.dropped, bands, *datamodule.split.notes)
    for note in filter(None, notes):
        log.info(f"note: {note}")
    check_network(request.config, len(datamodule.split.classes))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails before the training, not after it
    folds = datamodule.folds()
    if request.own_folds is not None:
        folds = datamodule.reshuffle().folds_of(request.own_folds)
    training = _train(request, datamodule, folds)
    _print_result(training, datamodule, folds)
    if out is not None:
        print(_save(out, training, datamodule, request.split_spec, encoder))


@dataclass(frozen=True)
class TrainRequest:
    """What to train, and on which split.

    `threads`: of torch, None for all cores. `split_sha256` is the digest of the split that a
    repeated trial had; `on_cpu` tells that it was trained on the CPU; `own_folds` is its number if
    it had inner folds of its own; `encoder_sha256` is the hash of its encoder's file,
    and `encoder_settings_sha256` that of the settings it was used with.
    """

    config: TrialConfig
    task: Task
    split_spec: SplitSpec
    threads: int | None
    split_sha256: str | None = None
    on_cpu: bool = False
    own_folds: int | None = None
    encoder_sha256: str | None = None
    encoder_settings_sha256: str | None = None


def read_arguments(args: Namespace) -> TrainRequest:
    """Return the request of the flags, over what follows from a preset or a trial's run."""
    from resp_tune.data.task_files import find_task, task_from_classes
    from resp_tune.data.tasks import get_task

    task, split_spec = get_task("diagnosis"), SplitSpec()
    repeated: dict[str, Any] = {}
    threads = args.threads
    if args.preset is not None:
        config = preset(args.preset)
        if args.preset == "notebook":
            task, split_spec = get_task("diagnosis-8"), SplitSpec("recording")
    elif args.config is not None:
        values = read_mapping("--config", args.config)
        try:
            config = TrialConfig().replace(values)
        except UserError as error:
            raise UserError(f"--config '{args.config}': {error}") from error
    else:
        from resp_tune.tracking.load_trial import load_trial_run
        from resp_tune.tracking.uri import resolve_uri

        uri = resolve_uri(args.tracking_uri, Path("results").absolute())
        trial = load_trial_run(uri, args.run)
        config, split_spec = TrialConfig.from_saved(trial.config), trial.split_spec
        task = task_from_classes(trial.task, trial.task_classes)
        threads = threads or trial.threads
        names = ("split_sha256", "on_cpu", "own_folds", "encoder_sha256", "encoder_settings_sha256")
        repeated = {name: getattr(trial, name) for name in names}
    if args.task is not None:
        task = find_task(args.task)
    overrides = {k: getattr(args, k) for k in ("seed", "epochs") if getattr(args, k) is not None}
    return TrainRequest(
        config.replace(overrides), task, split_spec.replace(vars(args)), threads, **repeated
    )


def _empty_folder(path: str) -> Path:
    folder = folder_to_write("--out", path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out '{path}' exists and is not an empty folder: give another")
    return folder


def _check_front_end(config: TrialConfig) -> Encoder | None:
    """Return the config's encoder; raise `UserError` for one or for filters that cannot be used."""
    from resp_tune.encoders.encoder_file import merge_encoders, open_encoders
    from resp_tune.features.logmel import check_filters

    if config.has_encoder:
        return merge_encoders(open_encoders(config.front_ends))
    check_filters(config.front_end)
    return None


def _train(request: TrainRequest, datamodule: DataModule, folds: Sequence[FoldTables]) -> Training:
    import torch

    from resp_tune.cluster.resources import this_machine
    from resp_tune.training.compute_device import detect_compute_device, resolve_precision
    from resp_tune.training.datamodule import make_feature_caches
    from resp_tune.training.loop import Training
    from resp_tune.training.memory import keep_freed_memory

    config = request.config
    device = "cuda" if torch.cuda.is_available() and not request.on_cpu else "cpu"
    workers = this_machine().cpus
    caches = make_feature_caches(datamodule, datamodule.cached_stems, workers)
    data = [fold.load(caches, config, workers=workers) for fold in folds]
    torch.set_num_threads(request.threads or workers)
    keep_freed_memory()
    config = resolve_precision(config, detect_compute_device(device))
    precision = "float32" if config.has_encoder else config.precision  # heads know no other
    log.info(f"training on {device}, {precision}, {torch.get_num_threads()} threads")
    training = Training(config, data, device)
    print("epoch", *COLUMNS, "seconds", sep="\t")
    while not training.done:
        epoch = training.run_epoch()
        row = epoch.row()
        values = (f"{row[c]:.4g}" for c in COLUMNS)
        print(epoch.epoch, *values, f"{epoch.seconds:.2f}", sep="\t", flush=True)
    if not training.history[-1].finite:
        raise RunError(f"the loss of epoch {len(training.history)} is not finite: lower lr")
    return training


def _print_result(training: Training, datamodule: DataModule, folds: Sequence[FoldTables]) -> None:
    from resp_tune.training.metrics import majority_accuracy

    last = training.history[-1].metrics
    rates = [majority_accuracy(f.validation.label) for f in folds]
    print(
        f"validation after epoch {len(training.history)}: accuracy {last['accuracy']:.4f}, "
        f"majority rate {sum(rates) / len(rates):.4f}, balanced accuracy "
        f"{last['balanced_accuracy']:.4f}, macro_f1 {last['macro_f1']:.4f}"
    )
    if line := datamodule.split.leaks(datamodule.dataset).line:
        print(line)
    if datamodule.dataset.synthetic:
        print("the data is SYNTHETIC: these scores say nothing about patients")


def _save(
    folder: Path,
    training: Training,
    datamodule: DataModule,
    split_spec: SplitSpec,
    encoder: Encoder | None,
) -> Path:
    import pandas as pd

    from resp_tune.harness.result_files import model_details, write_csv
    from resp_tune.training.model_bundle import Bundle, save_bundle

    name, validation = one_line(datamodule.dataset.root.name), training.history[-1].metrics
    details = model_details(datamodule, split_spec, name, {"validation": validation})
    classes, networks = datamodule.split.classes, tuple(training.networks())
    save_bundle(folder, Bundle(training.config, classes, networks, {}, encoder), details)
    write_csv(folder / "epochs.csv", pd.DataFrame([e.row() for e in training.history]))
    return folder


if __name__ == "__main__":
    sys.exit(run(main))

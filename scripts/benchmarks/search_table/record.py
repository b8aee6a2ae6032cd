"""Record real trials: random points of a space, each trained to its end on every fold."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from benchmarks.search_table.table import read_frame, write_frame
from benchmarks.tables import hardware, versions
from resp_tune.common.paths import write_atomically
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.task_files import find_task
from resp_tune.errors import UserError
from resp_tune.execution.trainable import start_training
from resp_tune.execution.trial_context import TrialArtifacts, TrialContext
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.validate import open_dataset
from resp_tune.space.search_space import SearchSpace, load_space
from resp_tune.study.schedulers import Steps
from resp_tune.study.study import trial_seed
from resp_tune.training.compute_device import detect_compute_device, resolve_precision
from resp_tune.training.datamodule import (
    ClipLabels,
    DataModule,
    data_digest,
    make_datamodule,
    make_feature_caches,
)
from resp_tune.training.loop import Training
from resp_tune.training.memory import keep_freed_memory
from resp_tune.training.metrics import all_metrics
from resp_tune.training.model_bundle import Bundle
from resp_tune.training.seeds import mix_seed

# Not the default of a search: its test side is no search's own.
SPLIT_SEED = 100


@dataclass(frozen=True)
class RecordOptions:
    """What is recorded: `trials` random points of `space`, as trials of a search with `seed`."""

    data: str
    space: str
    task: str
    trials: int
    epochs: int
    folds: int
    seed: int = 0
    split_seed: int = SPLIT_SEED
    workers: int = 2


@dataclass(frozen=True)
class Recorder:
    """Trains one trial in a worker process; `unseen` are the clips of the test side."""

    context: TrialContext
    caches: FeatureCaches
    unseen: ClipLabels
    classes: tuple[str, ...]

    def record(self, number: int, config: TrialConfig) -> list[dict[str, float]]:
        """Return the rows of a trial but for its parameters, without epochs after a divergence."""
        training = start_training(self.context, config, TrialKey(number))
        seconds = []
        while not training.done:
            start = time.process_time()
            training.run_epoch()
            seconds.append(time.process_time() - start)
        rows = fold_rows(training, seconds)
        if training.history[-1].finite:
            for fold, metrics in enumerate(self._score_unseen(training)):
                rows[(fold + 1) * config.epochs - 1] |= metrics
        return [{"trial": number, **row} for row in rows]

    def _score_unseen(self, training: Training) -> Iterator[dict[str, float]]:
        """Yield the metrics of each fold's network on the test side."""
        config = training.config
        frames = self.caches.frames(config.front_end, workers=1)
        split = self.unseen.tensors(frames, config.front_end)
        for network in training.networks():
            bundle = Bundle(config, self.classes, (network,), {})
            probabilities = bundle.predict_clips(lambda _: split.clips)
            metrics = all_metrics(split.labels.numpy(), probabilities, self.classes, split.groups)
            yield {f"unseen_{name}": value for name, value in metrics.items()}


def fold_rows(training: Training, seconds: Sequence[float]) -> list[dict[str, float]]:
    """Return a row for each epoch of each fold, with that fold's own metrics.

    `seconds` are the CPU seconds of each step: with one thread they are the time that the step
    takes on a free core, also where other work delayed it.
    """
    history, epochs = [result.row() for result in training.history], training.config.epochs
    steps = Steps(epochs, len(training.folds))
    names = [name for name in history[0] if name.startswith("val_")]
    own = {name: steps.own_scores(history, name.removeprefix("val_")) for name in names}
    return [
        {
            "fold": step // epochs,
            "epoch": step % epochs + 1,
            "seconds": seconds[step],
            **{name: scores[step] for name, scores in own.items()},
        }
        for step in range(len(history))
    ]


def random_params(space: SearchSpace, seed: int, number: int) -> dict[str, Any]:
    """Return the parameters of trial `number`, the same whatever was recorded before.

    Trial 0 is the baseline, as in a search.
    """
    if number == 0:
        return space.baseline_params()
    sampler = optuna.samplers.RandomSampler(seed=mix_seed(seed, number) % 2**32)
    study = optuna.create_study()
    trial = study.ask()

    def draw(name: str, distribution: optuna.distributions.BaseDistribution) -> Any:
        return sampler.sample_independent(
            study, study._storage.get_trial(trial._trial_id), name, distribution
        )

    return space.draw_params(draw)


def record(options: RecordOptions, path: Path, command: list[str]) -> int:
    """Add the trials that the table at `path` lacks; return how many were trained.

    Killed at any time, it continues with the next call. Raises `UserError` if the table is of
    another space, task, split, seed, length or data.
    """
    space, task = load_space(options.space), find_task(options.task)
    spec = SplitSpec(folds=options.folds, split_seed=options.split_seed)
    datamodule = make_datamodule(open_dataset(options.data), task, spec)
    recorder, identity = _prepare(options, space, datamodule)
    facts_path = path.with_name(path.name.removesuffix(".csv.gz") + ".json")
    facts = _facts(facts_path, identity, command)
    frame = read_frame(path) if path.exists() else pd.DataFrame(columns=["trial"])
    known = set(frame["trial"])
    missing = [n for n in range(options.trials) if n not in known]
    if not missing:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(facts_path, (json.dumps(facts, indent=1) + "\n").encode())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    jobs = {n: random_params(space, options.seed, n) for n in missing}
    for rows in _train(options, space, recorder, jobs):
        rows["params"] = json.dumps(jobs[int(rows["trial"].iloc[0])])
        frame = rows if frame.empty else pd.concat([frame, rows], ignore_index=True)
        write_frame(path, frame)
        number, seconds = int(rows["trial"].iloc[0]), rows["seconds"].sum()
        print(f"trial {number}: {len(rows)} epochs, {seconds:.1f} s", flush=True)
    return len(missing)


def _train(
    options: RecordOptions, space: SearchSpace, recorder: Recorder, jobs: Mapping[int, Any]
) -> Iterator[pd.DataFrame]:
    """Yield the rows of each trial when it ends; one worker is this process."""
    device, configs = detect_compute_device("cpu"), dict[int, TrialConfig]()
    for number, params in jobs.items():
        values = space.suggest_values(optuna.trial.FixedTrial(params))  # type: ignore[arg-type]
        values |= {"seed": trial_seed(options.seed, number), "epochs": options.epochs}
        configs[number] = resolve_precision(space.base.replace(values), device)
    if options.workers == 1:
        for number, config in configs.items():
            yield pd.DataFrame(recorder.record(number, config))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, spawn, _join, (recorder,)) as pool:
        running = [pool.submit(_record, *each) for each in configs.items()]
        for done in as_completed(running):
            yield pd.DataFrame(done.result())


def _prepare(
    options: RecordOptions, space: SearchSpace, datamodule: DataModule
) -> tuple[Recorder, dict[str, Any]]:
    """Return what trains the trials, and what a table must agree on to get more of them."""
    workers, test = options.workers, datamodule.split.test or ()
    caches = make_feature_caches(datamodule, datamodule.search_stems, workers)
    unseen = make_feature_caches(datamodule, test, workers)
    for front_end in space.front_ends():  # filled once, here
        for each in (caches, unseen):
            each.frames(front_end, workers=workers)
    context = TrialContext(
        folds=datamodule.folds(),
        caches=caches,
        artifacts=TrialArtifacts(Path()),  # nothing is saved
        metric="",
        rungs=(),
        threads=1,
        gpus=0.0,
        fold_order="sequence",
    )
    clips = datamodule.clip_labels(test, test)
    identity = {
        "space": Path(options.space).name,
        "parameters": {name: p.model_dump() for name, p in space.parameters.items()},
        "base": space.base.replace({"epochs": options.epochs}).as_dict(),
        "task": options.task,
        "folds": options.folds,
        "seed": options.seed,
        "split_seed": options.split_seed,
        "recordings": data_digest(datamodule, caches.sources),
    }
    return Recorder(context, unseen, clips, datamodule.split.classes), identity


def _facts(path: Path, identity: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    """Return what the JSON beside the table holds after this command."""
    facts: dict[str, Any] = {"commands": [], "identity": json.loads(json.dumps(identity))}
    if path.exists():
        facts = json.loads(path.read_bytes())
        other = [
            k for k, v in json.loads(json.dumps(identity)).items() if facts["identity"][k] != v
        ]
        if other:
            raise UserError(
                f"'{path}' is of another {', '.join(other)}: give the options it was recorded with "
                f"({facts['commands'][0]['command']}), or another --out"
            )
    time = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    own = {"command": shlex.join(command), "time": time, "hardware": hardware()}
    facts["commands"].append({**own, "versions": versions()})
    return facts


_recorder: Recorder | None = None


def _join(recorder: Recorder) -> None:
    """Keep what a worker process trains with."""
    global _recorder  # the way in which a pool's processes get what they share
    keep_freed_memory()
    _recorder = recorder


def _record(number: int, config: TrialConfig) -> list[dict[str, float]]:
    if _recorder is None:
        raise RuntimeError("runs in a process of `record` only")
    return _recorder.record(number, config)

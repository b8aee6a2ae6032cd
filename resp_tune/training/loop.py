"""Train epoch by epoch; usable without Ray: `for epoch in fit(config, folds): …`.

A checkpoint is one file that appears whole or not at all. Beside the training's state it names its
trial: the config, and the study's id. Trial numbers are used again, by a new search under an old
name and by a trial that another machine had to propose again, and a checkpoint of the other trial
must not be resumed.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resp_tune.common.choices import FIRST_METRICS, FoldOrder
from resp_tune.common.paths import write_atomically
from resp_tune.config import TrialConfig
from resp_tune.features.batches import (
    AugmentParams,
    ClipIndex,
    augment_params,
    band_statistics,
    eval_params,
    make_batch,
)
from resp_tune.features.logmel import Frames
from resp_tune.training.fold_training import (
    FoldTraining,
    GradientFold,
    SplitTensors,
    TrainingData,
    mixed,
)
from resp_tune.training.heads.head_fold import head_folds
from resp_tune.training.networks.network_registry import build_network, set_band_statistics
from resp_tune.training.regularization import draw_weights
from resp_tune.training.seeds import mix_seed

EVALUATION_BATCH = 64
CHECKPOINT = "checkpoint.pt"  # in a trial's folder


@dataclass(frozen=True)
class EpochResult:
    """Losses and metrics of one epoch.

    `epoch` counts from 1, over all folds if these are trained in sequence; `fold` is then the one
    that was trained, from 0. Metrics are means over the folds until then. `seconds` is the time for
    training and validation.
    """

    epoch: int
    train_loss: float
    val_loss: float
    metrics: dict[str, float]
    lr: float
    seconds: float
    fold: int | None = None

    @property
    def finite(self) -> bool:
        """Return False if the training has diverged."""
        return math.isfinite(self.train_loss) and math.isfinite(self.val_loss)

    def row(self) -> dict[str, float]:
        """Return a flat row, with the column names of MLflow and `epochs.csv`."""
        first = {"epoch": self.epoch, "train_loss": self.train_loss, "val_loss": self.val_loss}
        values = {f"val_{name}": value for name, value in self.metrics.items()}
        # Columns that were added later follow those that others read by their place.
        own = {key: values.pop(key) for name in FIRST_METRICS if (key := f"val_{name}") in values}
        fold = {} if self.fold is None else {"fold": self.fold}
        return {**first, **own, "lr": self.lr, "seconds": self.seconds, **fold, **values}

    @classmethod
    def from_row(cls, row: Mapping[str, float]) -> EpochResult:
        """Return the result that `row()` has described."""
        others = {"epoch", "train_loss", "val_loss", "lr", "seconds", "fold"}
        metrics = {k.removeprefix("val_"): v for k, v in row.items() if k not in others}
        losses, fold = (row["train_loss"], row["val_loss"]), row.get("fold")
        return cls(
            int(row["epoch"]),
            *losses,
            metrics,
            row["lr"],
            row["seconds"],
            None if fold is None else int(fold),
        )


def fit(
    config: TrialConfig, folds: Sequence[TrainingData], device: str | torch.device = "cpu"
) -> Iterator[EpochResult]:
    """Train a network for each fold and yield the results of `config.epochs` epochs.

    Stops after the first epoch whose loss is not finite.
    """
    training = Training(config, folds, device)
    while not training.done:
        yield training.run_epoch()


class Training:
    """Training that can stop after any epoch and resume from `state()`, with the same bits.

    With the `order` `together` an epoch is one of every fold; with `sequence` a fold is trained to
    its end before the next one. The networks at the end are the same, to the last bit.
    """

    def __init__(
        self,
        config: TrialConfig,
        folds: Sequence[TrainingData],
        device: str | torch.device = "cpu",
        order: FoldOrder = "together",
    ) -> None:
        self.config = config
        self.in_sequence = order == "sequence" and len(folds) > 1
        self.history: list[EpochResult] = []
        make_folds = head_folds if config.has_encoder else network_folds
        self.folds = make_folds(config, folds, torch.device(device))

    @property
    def done(self) -> bool:
        """Return True after the last epoch, and after one whose loss is not finite."""
        if not self.history:
            return False
        return len(self.history) == self.epochs or not self.history[-1].finite

    @property
    def epochs(self) -> int:
        """Return the number of epochs of the whole training."""
        return self.config.epochs * (len(self.folds) if self.in_sequence else 1)

    def run_epoch(self) -> EpochResult:
        """Train and validate for an epoch; append the result to `history` and return it."""
        started = time.perf_counter()
        folds, epoch, earlier = self.folds, len(self.history) + 1, 0
        if self.in_sequence:
            earlier, epoch = divmod(len(self.history), self.config.epochs)
            folds, epoch = self.folds[earlier : earlier + 1], epoch + 1
        train_loss = float(np.mean([fold.train(epoch) for fold in folds]))
        # A network with infinite weights gives NaN probabilities, which no metric accepts.
        finite = math.isfinite(train_loss)
        metrics = [fold.validate(epoch) if finite else {} for fold in folds]
        # A tiny fold may lack what a metric needs.
        shared = [name for name in metrics[0] if all(name in m for m in metrics)]
        means = {name: float(np.mean([m[name] for m in metrics])) for name in shared}
        if earlier:
            before = self.history[earlier * self.config.epochs - 1].metrics
            means = {
                name: (before[name] * earlier + value) / (earlier + 1)
                for name, value in means.items()
                if name in before
            }
        result = EpochResult(
            len(self.history) + 1,
            train_loss,
            means.get("log_loss", math.nan),
            means,
            folds[0].lr,
            time.perf_counter() - started,
            earlier if self.in_sequence else None,
        )
        self.history.append(result)
        return result

    def try_one_batch(self) -> None:
        """Train and validate one batch of each fold as a check; do not train on afterwards."""
        for fold in self.folds:
            fold.try_one_batch()

    def predict_validation(self) -> list[npt.NDArray[np.float32]]:
        """Return the probabilities of each fold's network for its own validation split.

        The training must be done if folds are trained in sequence.
        """
        epochs = self.config.epochs if self.in_sequence else len(self.history)
        return [fold.predict_validation(epochs) for fold in self.folds]

    def networks(self) -> list[nn.Module]:
        """Return the trained networks, one a fold, ready to predict."""
        return [fold.trained_network() for fold in self.folds]

    def state(self) -> dict[str, Any]:
        """Return what is needed to resume: tensors and plain values, safe for `torch.save`.

        It has no random state, because each epoch is seeded by the config's seed and its number.
        """
        history, folds = [e.row() for e in self.history], [fold.state() for fold in self.folds]
        return {"history": history, "folds": folds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which must come from the same config and folds."""
        self.history = [EpochResult.from_row(row) for row in state["history"]]
        for fold, saved in zip(self.folds, state["folds"], strict=True):
            fold.load_state(saved)


def save_checkpoint(path: Path, training: Training, study: str | None = None) -> None:
    """Write the training's state to `path`, and make its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = {"config": training.config.as_dict(), "study": study}
    state = io.BytesIO()
    torch.save({**training.state(), **identity}, state)
    write_atomically(path, state.getbuffer())


def resume(training: Training, path: Path, study: str | None = None) -> str | None:
    """Resume a new training from the checkpoint `path`; return what is wrong with the file, if any.

    Without a usable file it starts over; its seed makes it the same again.
    """
    if not path.exists():
        return None
    beginning = copy.deepcopy(training.state())
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not _is_of(state, training.config, study):
            return "is of another trial"
        training.load_state(state)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch's reader raises many kinds for a damaged file
        training.load_state(beginning)
        # Its message is left out: it advises to load the file unsafely.
        return f"is damaged ({type(error).__name__})"
    return None


def epochs_in(path: Path, config: TrialConfig, study: str | None = None) -> int:
    """Return the number of epochs in the checkpoint `path` of this trial, 0 if unusable."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        return len(state["history"]) if _is_of(state, config, study) else 0
    except MemoryError:
        raise
    except Exception:  # missing or damaged: `resume` reports it
        return 0


def _is_of(state: Mapping[str, Any], config: TrialConfig, study: str | None) -> bool:
    """Return whether the checkpoint is of this trial; those of release 0.1 do not say."""
    if study is not None and state.get("study") not in (None, study):
        return False
    saved, now = state.get("config") or {}, config.as_dict()
    # A trial that ran out of memory has resumed with a smaller micro-batch.
    return all(now[k] == v for k, v in saved.items() if k in now and k != "micro_batch")


def network_folds(
    config: TrialConfig, folds: Sequence[TrainingData], device: torch.device
) -> Sequence[FoldTraining]:
    """Return the training of a network on each fold; all folds are clips of the same frames."""
    splits = [framed(split) for data in folds for split in (data.train, data.validation)]
    shared = splits[0].frames
    if any(clips.frames is not shared for clips in splits):
        raise ValueError("all splits of all folds must be clips of the same frames")
    frames = shared.to(device)  # once for all folds
    return [_NetworkFold(config, data, frames, n) for n, data in enumerate(folds)]


class _NetworkFold(GradientFold[AugmentParams]):
    """One network, trained and validated on the frames of one fold."""

    def __init__(self, config: TrialConfig, data: TrainingData, frames: Frames, fold: int) -> None:
        train, validation = framed(data.train), framed(data.validation)
        self.counts = (train.count, validation.count)
        self.clips = tuple(c.with_level(config).over(frames) for c in (train, validation))
        super().__init__(config, data, frames.values.device, fold)

    def make_network(self, data: TrainingData) -> nn.Module:
        network = build_network(self.config, len(data.classes))
        if self.config.normalise == "band":
            statistics = band_statistics(framed(data.train), self.config.top_db)
            set_band_statistics(network, *statistics)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def try_one_batch(self) -> None:
        clip = torch.arange(self.batches[0][1])
        draws = self.draw(clip, torch.Generator().manual_seed(0))
        self.network.train()
        self._step(draws, draw_weights(len(clip), self.config.mixup, 0, self.device))
        plain = eval_params(self.counts[1], self.config)[:EVALUATION_BATCH]
        predict(self.evaluated, self.clips[1], plain, self.config)

    def draw(self, clip: torch.Tensor, generator: torch.Generator) -> AugmentParams:
        return augment_params(clip, self.counts[0], self.config, generator).to(self.device)

    def logits(self, draws: AugmentParams, mix: torch.Tensor | None) -> torch.Tensor:
        x = mixed(make_batch(self.clips[0], draws, self.config), mix)
        with autocast(self.config, self.device):
            return self.network(x).float()  # type: ignore[no-any-return]  # torch types modules as Any

    def predict_validation(self, epoch: int) -> npt.NDArray[np.float32]:
        config, count = self.config, self.counts[1]
        draws = eval_params(count, config)
        if config.augment_validation:
            generator = torch.Generator().manual_seed(mix_seed(config.seed, self.fold, -epoch))
            draws = augment_params(torch.arange(len(count)), count, config, generator)
        return predict(self.evaluated, self.clips[1], draws, config)


def framed(split: SplitTensors) -> ClipIndex:
    """Return the clips of a split as rows of frames; raises `TypeError` for pooled features."""
    if not isinstance(split.clips, ClipIndex):
        raise TypeError("a network needs frames, and these clips are pooled features")
    return split.clips


def predict(
    network: nn.Module, clips: ClipIndex, draws: AugmentParams, config: TrialConfig
) -> npt.NDArray[np.float32]:
    """Return class probabilities `[clips, classes]`, means over each clip's items in `draws`."""
    network.eval()
    n_clips = len(clips.count)
    device = clips.frames.values.device
    draws = draws.to(device)
    parts = []
    with torch.inference_mode(), autocast(config, device):
        size = min(EVALUATION_BATCH, config.micro_batch or EVALUATION_BATCH)
        for start in range(0, len(draws), size):
            x = make_batch(clips, draws[start : start + size], config)
            parts.append(network(x).float().softmax(1))
        items = torch.cat(parts)
        sums = torch.zeros(n_clips, items.shape[1], device=device).index_add_(0, draws.clip, items)
        counts = torch.bincount(draws.clip, minlength=n_clips)
        mean: npt.NDArray[np.float32] = (sums / counts[:, None]).cpu().numpy()
    return mean


def autocast(config: TrialConfig, device: torch.device) -> torch.autocast:
    """Return autocast to the dtype of `config.precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")

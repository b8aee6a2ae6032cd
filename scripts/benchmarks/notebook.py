"""Row A: the notebook's loop as its article describes it, without any resp_tune code.

Every epoch decodes, resamples, transforms and augments every recording again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import soundfile
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchaudio import transforms

RATE, MILLISECONDS = 44_100, 20_000
N_FFT, HOP, TOP_DB = 1024, 512, 80
BATCH = 128

Items = Sequence[tuple[str, int]]  # path and class number of each recording


@dataclass(frozen=True)
class Settings:
    """The settings that the notebook's search varies, with its defaults."""

    n_mels: int = 64
    max_mask_pct: float = 0.1
    time_shift: float = 0.4
    dropout: float = 0.25
    lr: float = 1e-3


class Recordings(Dataset[tuple[torch.Tensor, int]]):
    """Items `[2, n_mels, 1719]` in dB and their labels, computed from the files at every access."""

    def __init__(self, items: Items, settings: Settings) -> None:
        self.items, self.settings = items, settings

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[index]
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = torch.from_numpy(samples.T)
        if rate != RATE:
            wave = transforms.Resample(rate, RATE)(wave)
        wave = torch.cat([wave[:1], wave[:1]])
        wave = _shift(_pad(wave), self.settings.time_shift)
        return _mask(_spectrogram(wave, self.settings.n_mels), self.settings.max_mask_pct), label


def _pad(wave: torch.Tensor) -> torch.Tensor:
    length = RATE // 1000 * MILLISECONDS
    missing = length - wave.shape[1]
    if missing <= 0:
        return wave[:, :length]
    before = random.randint(0, missing)  # noqa: S311  # an augmentation
    return nn.functional.pad(wave, (before, missing - before))


def _shift(wave: torch.Tensor, max_share: float) -> torch.Tensor:
    return wave.roll(int(random.random() * max_share * wave.shape[1]))  # noqa: S311  # an augmentation


def _spectrogram(wave: torch.Tensor, n_mels: int) -> torch.Tensor:
    mel = transforms.MelSpectrogram(RATE, n_fft=N_FFT, hop_length=HOP, n_mels=n_mels)(wave)
    decibels: torch.Tensor = transforms.AmplitudeToDB(top_db=TOP_DB)(mel)
    return decibels


def _mask(spectrogram: torch.Tensor, pct: float) -> torch.Tensor:
    _, n_mels, frames = spectrogram.shape
    fill = float(spectrogram.mean())
    spectrogram = transforms.FrequencyMasking(pct * n_mels)(spectrogram, fill)
    for _ in range(2):
        spectrogram = transforms.TimeMasking(pct * frames)(spectrogram, fill)
    return spectrogram


class Network(nn.Module):
    """Four strided convolutions, two global pooling layers and three linear layers."""

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        sizes, kernels = [2, 8, 16, 32, 64], [5, 3, 3, 3]
        blocks: list[nn.Module] = []
        for i, k in enumerate(kernels):
            conv = nn.Conv2d(sizes[i], sizes[i + 1], k, stride=2, padding=k // 2)
            blocks += [conv, nn.ReLU(), nn.BatchNorm2d(sizes[i + 1])]
        self.blocks = nn.Sequential(*blocks)
        self.max_pool, self.mean_pool = nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1)
        layers: list[nn.Module] = []
        for n_in, n_out in ((128, 256), (256, 128), (128, classes)):
            layers += [nn.BatchNorm1d(n_in), nn.Dropout(dropout), nn.Linear(n_in, n_out)]
        self.head = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[items, classes]`."""
        x = self.blocks(x)
        pooled = torch.cat([self.max_pool(x), self.mean_pool(x)], dim=1).flatten(1)
        logits: torch.Tensor = self.head(pooled)
        return logits


def train(
    train_items: Items, validation_items: Items, classes: int, epochs: int, settings: Settings
) -> Iterator[dict[str, float]]:
    """Train; yield the losses, the validation accuracy and the seconds of each epoch."""
    loader = DataLoader(
        Recordings(train_items, settings),
        batch_size=BATCH,
        sampler=_sampler(train_items, validation_items),
        num_workers=2,
    )
    validation = DataLoader(Recordings(validation_items, settings), BATCH, num_workers=2)
    network = Network(classes, settings.dropout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, steps_per_epoch=len(loader), epochs=epochs
    )
    cross_entropy = nn.CrossEntropyLoss()
    for _ in range(epochs):
        started = time.perf_counter()
        network.train()
        losses = []
        for x, y in loader:
            optimizer.zero_grad()
            loss = cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        yield {
            "train_loss": sum(losses) / len(losses),
            **_validate(network, validation),
            "seconds": time.perf_counter() - started,
        }


def _sampler(train_items: Items, validation_items: Items) -> WeightedRandomSampler:
    labels = torch.tensor([label for _, label in [*train_items, *validation_items]])
    weights = 1.0 / torch.bincount(labels)[labels[: len(train_items)]].double()
    return WeightedRandomSampler(weights.tolist(), len(train_items))


def _validate(network: nn.Module, loader: DataLoader[Any]) -> dict[str, float]:
    network.eval()
    losses, correct, items = [], 0, 0
    with torch.no_grad():
        for x, y in loader:
            logits = network(x)
            losses.append(nn.functional.cross_entropy(logits, y).item())
            correct += int((logits.argmax(1) == y).sum())
            items += len(y)
    return {"val_loss": sum(losses) / len(losses), "accuracy": correct / items}

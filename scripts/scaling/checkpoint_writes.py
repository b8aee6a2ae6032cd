"""Measure the storage: checkpoints written and flushed to the disk by one and by many writers."""

from __future__ import annotations

import io
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from resp_tune.common.paths import write_atomically
from resp_tune.config import TrialConfig, preset
from resp_tune.training.networks.network_registry import build_network
from scaling.sizes import Sizes

CLASSES = 6
WRITERS = (1, 4, 16)
LARGE_WIDTH = 64  # channels of the first block: 16 times the baseline's weights
MAX_BYTES = 1e9  # written by each number of writers


@dataclass(frozen=True)
class WriteCosts:
    """Costs of files of `size` bytes: seconds of a single writer per file; files per second by
    number of writers.
    """

    name: str
    size: int
    alone: float
    rates: dict[int, float]

    @property
    def best(self) -> float:
        """The highest rate, files per second."""
        return max(self.rates.values())


def measure(folder: Path, sizes: Sizes) -> list[WriteCosts]:
    """Measure the baseline's checkpoint and that of a network with 16 times its weights."""
    baseline = preset("baseline")
    configs = {"baseline": baseline, "large": baseline.replace({"width": LARGE_WIDTH})}
    with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=folder) as temporary:
        return [
            _measure_writes(name, checkpoint_bytes(config), Path(temporary), sizes.writes)
            for name, config in configs.items()
        ]


def _measure_writes(name: str, size: int, folder: Path, writes: int) -> WriteCosts:
    data = os.urandom(size)
    writes = max(max(WRITERS), min(writes, int(MAX_BYTES / size)))

    def write(number: int) -> None:
        write_atomically(folder / f"{name}-{number}", data)

    write(0)
    rates = {}
    for writers in WRITERS:
        started = time.perf_counter()
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writes)))
        rates[writers] = writes / (time.perf_counter() - started)
    return WriteCosts(name, size, 1 / rates[1], rates)


def checkpoint_bytes(config: TrialConfig) -> int:
    """Return the size of a trial's checkpoint: the network and AdamW's two moments."""
    network = build_network(config, CLASSES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, state)
    return state.tell()

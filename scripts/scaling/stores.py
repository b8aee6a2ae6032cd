"""The storage: checkpoints written and flushed to the disk, by one and by many at once."""

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
from resp_tune.training.loop import build_network
from scaling.sizes import Sizes

CLASSES = 6
WRITERS = (1, 4, 16)
LARGE_WIDTH = 64  # channels of the first block: 16 times the baseline's weights
MOST_BYTES = 1e9  # written at each number of writers


@dataclass(frozen=True)
class StoreCost:
    """Files of `size` bytes: seconds that a lone one takes, and files a second, by writers."""

    name: str
    size: int
    alone: float
    rates: dict[int, float]

    @property
    def best(self) -> float:
        """The most files a second."""
        return max(self.rates.values())


def measure(folder: Path, sizes: Sizes) -> list[StoreCost]:
    """The baseline's checkpoint, and one of a network sixteen times as large."""
    baseline = preset("baseline")
    with tempfile.TemporaryDirectory(prefix="stored-", dir=folder) as place:
        return [
            _cost(name, checkpoint_bytes(config), Path(place), sizes.writes)
            for name, config in (
                ("baseline", baseline),
                ("large", baseline.replace({"width": LARGE_WIDTH})),
            )
        ]


def _cost(name: str, size: int, folder: Path, writes: int) -> StoreCost:
    data = os.urandom(size)
    writes = max(max(WRITERS), min(writes, int(MOST_BYTES / size)))

    def write(number: int) -> None:
        write_atomically(folder / f"{name}-{number}", data)

    write(0)
    rates = {}
    for writers in WRITERS:
        started = time.perf_counter()
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writes)))
        rates[writers] = writes / (time.perf_counter() - started)
    return StoreCost(name, size, 1 / rates[1], rates)


def checkpoint_bytes(config: TrialConfig) -> int:
    """Of a trial's checkpoint: the network with AdamW's two moments, as the training writes it."""
    network = build_network(config, CLASSES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, state)
    return state.tell()

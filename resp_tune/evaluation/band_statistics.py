"""Band statistics: what the log-mel frames of a clip are like on average, whatever its length.

They say how loud, how variable and how noisy each band is, and nothing about the order in which
sounds occur. A network that is no better than a linear model of them has learnt no more than that.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch

from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.common.text import one_line, plural
from resp_tune.config import TrialConfig
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.tasks import Clip
from resp_tune.errors import RunError
from resp_tune.features.batches import cut_clips
from resp_tune.features.logmel import join_frames, log_mels
from resp_tune.features.parallel import recording_pool
from resp_tune.training.datamodule import load_unchanged
from resp_tune.training.metrics import Floats

log = logging.getLogger(__name__)

FORMAT = 1  # changes with what is computed
# The preset's front end, but for a bank that ends where resampled recordings and those made at
# 4 kHz are alike: the baseline must not read the stethoscope from the last bands either.
FRONT_END = TrialConfig(n_mels=32, f_max=1900.0).front_end
QUANTILES = (0.1, 0.9)
# The envelope is that of `GROUPS` groups of bands; its changes are over 64 ms to 1 s, which even
# most breathing cycles last.
GROUPS, LAGS = 4, (2, 4, 8, 16, 32)
COUNT = (3 + len(QUANTILES)) * FRONT_END.n_mels + GROUPS * len(LAGS)
Spans = list[tuple[float, float]]  # start and end of clips, in s
# By the stem of a recording, and the start and end of a clip in it.
BandStatistics = Mapping[tuple[str, float, float], npt.NDArray[np.float32]]


def band_statistics(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the statistics `[COUNT]` of the log-mel frames `[frames, n_mels]` of a clip, in dB.

    For each band mean, standard deviation, quantiles and flux (mean absolute change from a frame
    to the next); for each group of bands the root mean square change of its mean over each lag.
    None depends on the number of frames; a lag beyond the clip's length is cut to it.
    """
    envelopes = frames.reshape(len(frames), GROUPS, -1).mean(2)
    modulation = [np.sqrt((_changes(envelopes, lag) ** 2).mean(0)) for lag in LAGS]
    quantiles = np.quantile(frames, QUANTILES, axis=0)
    flux = np.abs(_changes(frames, 1)).mean(0)
    parts = [frames.mean(0), frames.std(0), *quantiles, flux, *modulation]
    return np.concatenate(parts).astype(np.float32)


def _changes(values: npt.NDArray[np.float32], lag: int) -> npt.NDArray[np.float32]:
    lag = min(lag, len(values) - 1)
    return values[lag:] - values[: len(values) - lag]


def select(statistics: BandStatistics, clips: Sequence[Clip]) -> Floats:
    """Return the statistics of `clips`, float64 `[clips, COUNT]`."""
    return np.stack([statistics[c.recording.stem, c.start, c.end] for c in clips]).astype(
        np.float64
    )


def load_band_statistics(
    dataset: Dataset, unit: str, workers: int, report: Callable[[], None] = lambda: None
) -> BandStatistics:
    """Return the statistics of every recording, or of every breathing cycle if that is the `unit`.

    They are computed once for each content of the recordings and kept in the cache folder.
    `report` is called after each recording; if it raises, nothing is kept. Raises `RunError` if a
    recording has changed since it was checked.
    """
    parts = list(_parts(dataset, unit))
    keys = [(recording.stem, *span) for recording, spans in parts for span in spans]
    path = cache_folder() / "baselines" / f"{statistics_key(dataset, unit)}.f32"
    with suppress(OSError, ValueError):  # missing or damaged
        kept = np.frombuffer(path.read_bytes(), np.float32).reshape(len(keys), COUNT)
        if np.isfinite(kept).all():
            return dict(zip(keys, kept, strict=True))
    log.info(f"band statistics of {plural(len(parts), 'recording')}")
    computed = []
    with recording_pool(workers) as pool:
        for rows in pool.map(_compute, parts):
            computed.append(rows)
            report()
    statistics = np.concatenate(computed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, statistics.tobytes())
    except (OSError, RunError) as error:
        log.warning(f"band statistics could not be kept in the cache: {one_line(error)}")
    return dict(zip(keys, statistics, strict=True))


def statistics_key(dataset: Dataset, unit: str) -> str:
    """Return 24 hex digits that change with the recordings' bytes, the clips and the method."""
    parts = [[recording.digest, spans] for recording, spans in _parts(dataset, unit)]
    content = [FORMAT, asdict(FRONT_END), QUANTILES, GROUPS, LAGS, parts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _parts(dataset: Dataset, unit: str) -> Iterator[tuple[Recording, Spans]]:
    """Yield each recording that has clips, and their spans."""
    for r in dataset.recordings:
        spans = [(c.start, c.end) for c in r.cycles] if unit == "cycle" else [(0.0, r.seconds)]
        if spans:
            yield r, spans


def _compute(part: tuple[Recording, Spans]) -> npt.NDArray[np.float32]:
    """Return the statistics `[clips, COUNT]`, of the same frames that a network would get."""
    recording, spans = part
    rate, resampling = FRONT_END.sample_rate, FRONT_END.resampling
    with torch.inference_mode():
        waveform = load_unchanged(recording.path, recording.digest, rate, resampling)
        frames = join_frames(log_mels(waveform, [FRONT_END]))
        start, end = torch.tensor(spans, dtype=torch.float64).T
        cut = cut_clips(frames, FRONT_END, torch.zeros(len(spans), dtype=torch.int64), start, end)
        values = frames.values.float().numpy()
    ranges = zip(cut.first.tolist(), cut.count.tolist(), strict=True)
    return np.stack([band_statistics(values[first : first + count]) for first, count in ranges])

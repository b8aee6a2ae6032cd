"""Front ends of the tests, and torchaudio's answer to them."""

from __future__ import annotations

from typing import Any

import torch
import torchaudio

from resp_tune.config import FrontEnd

SMALL = FrontEnd(4000, 256, 128, 48, 50.0, 2000.0)


# torchaudio's options for each value of `resampling`.
FILTERS: dict[str, dict[str, Any]] = {
    "hann": {},
    "kaiser": {
        "resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 128, "rolloff": 0.97,
        "beta": 10.0,
    },
}  # fmt: skip


def torchaudios(waveform: torch.Tensor, f: FrontEnd) -> torch.Tensor:
    """`[frames, n_mels]`, by the transforms that the notebook uses."""
    mel = torchaudio.transforms.MelSpectrogram(
        f.sample_rate,
        f.n_fft,
        hop_length=f.hop_length,
        n_mels=f.n_mels,
        f_min=f.f_min,
        f_max=f.f_max,
    )
    decibels: torch.Tensor = torchaudio.transforms.AmplitudeToDB(top_db=None)(mel(waveform)).T
    return decibels

"""The four stethoscopes of the data set: sample rate, formats, frequency response and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Subtype = Literal["PCM_16", "PCM_24", "PCM_32"]


@dataclass(frozen=True)
class Stethoscope:
    """One stethoscope.

    `response`: knots (Hz, dB), interpolated linearly over octaves. `noise`: the recorder's white
    noise in dB of full scale. `offset`: DC, as a fraction of full scale. `bursts`: handling noises
    per minute.
    """

    rate: int
    mode: Literal["sc", "mc"]
    response: tuple[tuple[float, float], ...]
    noise: float
    subtypes: tuple[Subtype, ...] = ("PCM_16", "PCM_24")
    subtype_shares: tuple[float, ...] = (0.6, 0.4)
    offset: float = 0.0
    bursts: float = 0.0

    def gain(self, frequencies: Floats) -> Floats:
        """Return the amplitude gain at `frequencies` in Hz, of the same shape."""
        hz, db = np.array(self.response).T
        octave = np.log2(np.maximum(frequencies, 1.0))
        return np.asarray(10 ** (np.interp(octave, np.log2(hz), db) / 20))


DEVICES: dict[str, Stethoscope] = {
    "AKGC417L": Stethoscope(
        44_100,
        "mc",
        ((5, -40), (20, -14), (60, -6), (150, 0), (1000, 0), (3000, 4), (12_000, 2)),
        noise=-66,
    ),
    "LittC2SE": Stethoscope(
        44_100,
        "mc",
        ((5, -40), (20, -12), (60, -3), (110, 5), (220, 8), (420, 5), (800, -3), (3000, -12)),
        noise=-70,
    ),
    "Litt3200": Stethoscope(
        4_000,
        "sc",
        ((5, -40), (20, -12), (80, -2), (150, 0), (1000, 0), (1200, -3), (1500, -24), (2000, -48)),
        noise=-90,
        subtypes=("PCM_16",),
        subtype_shares=(1.0,),
        offset=0.006,
        bursts=6.0,
    ),
    "Meditron": Stethoscope(
        44_100,
        "sc",
        ((5, -20), (20, 4), (60, 3), (150, 0), (1000, -1), (3000, -4), (12_000, -8)),
        noise=-74,
        subtypes=("PCM_16", "PCM_24", "PCM_32"),
        subtype_shares=(0.6, 0.25, 0.15),
    ),
}


def patient_gain(rng: Generator, frequencies: Floats) -> Floats:
    """Draw a smooth amplitude gain of one chest: knots an octave apart, sd 3 to 6 dB."""
    knots = np.arange(np.log2(50), np.log2(6000))
    decibels = rng.normal(0, rng.uniform(3, 6), knots.size)
    octave = np.log2(np.maximum(frequencies, 1.0))
    return np.asarray(10 ** (np.interp(octave, knots, decibels) / 20))

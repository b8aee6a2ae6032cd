"""The building blocks of a respiratory sound: breath noise, crackle, wheeze, heart beat.

Waveforms are float64 arrays `[samples]` at a rate in Hz; times are seconds. The models and their
ranges are the usual ones of the lung-sound literature: band-shaped noise under a flow envelope, the
chirped transient for crackles (initial deflection width IDW, two-cycle duration 2CD), a wandering
harmonic tone for wheezes, decaying low tones for the heart.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from resp_tune.data.synthetic.stethoscopes import Floats


def breath_spectrum(
    frequencies: Floats, cutoff: float, slope: float, scale: float, tracheal: bool
) -> Floats:
    """Return the amplitude of breath noise at `frequencies` Hz.

    Over the chest flat from 80 to 150 Hz, then `slope` dB an octave (negative) up to 1 kHz and -20
    beyond, with a first-order low pass at `cutoff` Hz; over the trachea flat up to `cutoff`, then
    -20. `scale` stretches the frequency axis (infants 1.3 to 1.6).
    """
    octave = np.log2(np.maximum(frequencies / scale, 1.0))
    low, flat, kilo = np.log2(80.0), np.log2(150.0), np.log2(1000.0)
    level = -12.0 * np.maximum(low - octave, 0)
    if tracheal:
        level -= 20.0 * np.maximum(octave - np.log2(cutoff), 0)
    else:
        level += slope * (np.clip(octave, flat, kilo) - flat)
        level -= 20.0 * np.maximum(octave - kilo, 0)
        level -= 10 * np.log10(1 + (frequencies / scale / cutoff) ** 2)
    return np.asarray(10 ** (level / 20))


def shaped_noise(rng: Generator, amplitude: Floats, samples: int) -> Floats:
    """Draw Gaussian noise `[samples]` of RMS 1 with the spectrum `amplitude [samples // 2 + 1]`."""
    parts = rng.standard_normal((2, amplitude.size))
    noise = np.fft.irfft((parts[0] + 1j * parts[1]) * amplitude, samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def crackle(rate: int, idw: float, two_cycles: float) -> Floats:
    """Return one crackle of peak 1 and positive first deflection.

    `sin(4π t^α) · ½(1 + cos 2π(√t − ½))` over t in [0, 1], the time in units of `two_cycles` (2CD,
    s); α puts the first zero crossing at `idw` s.
    """
    alpha = math.log(0.25) / math.log(idw / two_cycles)
    t = np.arange(math.ceil(two_cycles * rate)) / (two_cycles * rate)
    wave = np.sin(4 * np.pi * t**alpha) * 0.5 * (1 + np.cos(2 * np.pi * (np.sqrt(t) - 0.5)))
    return np.asarray(wave / np.abs(wave).max())


def wheeze(
    rng: Generator, rate: int, seconds: float, pitch: float, harmonics: int, decay: float
) -> Floats:
    """Return a wheeze of RMS about 1 starting at `pitch` Hz.

    `harmonics` partials, each `decay` times the one before; glide -180 to 60 Hz (never below 60 %
    of the pitch), jitter 6 to 18 Hz, amplitude modulation .2 to .45 at 2 to 6 Hz.
    """
    samples = max(int(seconds * rate), 16)
    t = np.arange(samples) / rate
    end = max(pitch + rng.uniform(-180, 60) * min(1.0, seconds), 0.6 * pitch)
    knots = np.linspace(0, seconds, max(int(seconds * 12), 2) + 1)
    jitter = np.interp(t, knots, rng.normal(0, rng.uniform(6, 18), knots.size))
    jitter *= min(1.0, pitch / 200)  # a low rhonchus stays a tone
    phase = 2 * np.pi * np.cumsum(np.linspace(pitch, end, samples) + jitter) / rate
    tone = np.zeros(samples)
    for h in range(1, harmonics + 1):
        if h * pitch < 0.45 * rate:
            tone += decay ** (h - 1) * np.sin(h * phase + rng.uniform(0, 2 * np.pi))
    depth = rng.uniform(0.2, 0.45)
    tone *= 1 + depth * np.sin(2 * np.pi * rng.uniform(2, 6) * t + rng.uniform(0, 2 * np.pi))
    ramp = max(samples // 8, 1)
    fade = np.minimum(1.0, np.minimum(np.arange(samples), np.arange(samples)[::-1]) / ramp)
    tone *= np.sin(np.pi / 2 * fade)
    return np.asarray(tone / np.sqrt(np.mean(tone**2)))


def heart(rng: Generator, rate: int, samples: int, per_minute: float) -> Floats:
    """Return a heart beating `per_minute` times, RMS 1: S1 of 50 and 150 Hz, S2 of 60 to 180 Hz."""
    out = np.zeros(samples)
    first = _thump(rate, rng.uniform(0.10, 0.14), ((50.0, 1.0), (150.0, 0.12)))
    second = _thump(rate, rng.uniform(0.06, 0.10), ((60.0, 0.6), (rng.uniform(100, 180), 0.1)))
    gap = rng.uniform(0.30, 0.38)
    at = -rng.uniform(0, 1)
    while at * rate < samples:
        beat = 60 / per_minute * rng.normal(1, 0.04)
        add(out, first, round(at * rate))
        add(out, second, round((at + gap * beat) * rate))
        at += max(beat, 0.2)
    return np.asarray(out / max(float(np.sqrt(np.mean(out**2))), 1e-9))


def _thump(rate: int, seconds: float, tones: tuple[tuple[float, float], ...]) -> Floats:
    t = np.arange(int(seconds * rate)) / rate
    decay = np.exp(-5 * t / seconds) * np.minimum(1.0, t / 0.01)
    return np.asarray(decay * sum(a * np.sin(2 * np.pi * f * t) for f, a in tones))


def add(out: Floats, wave: Floats, start: int) -> None:
    """Add `wave` to `out` in place from sample `start`, cut at its ends."""
    first, last = max(start, 0), min(start + wave.size, out.size)
    if first < last:
        out[first:last] += wave[first - start : last - start]

"""Render one recording: breathing cycles with their sounds, heard through chest and stethoscope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from resp_tune.data.synthetic.cohort import Patient, RecordingPlan
from resp_tune.data.synthetic.profiles import PROFILES, Profile
from resp_tune.data.synthetic.sounds import (
    add,
    breath_spectrum,
    crackle,
    heart,
    shaped_noise,
    wheeze,
)
from resp_tune.data.synthetic.stethoscopes import DEVICES, Floats, patient_gain

# Sounds are made at a fifth of 44.1 kHz: nothing in a lung reaches half of that, and one inverse
# FFT of another length then gives either of the devices' rates.
RATE = 8_820
_GRID = 20  # both rates and this one have whole samples in a twentieth of a second

_PATIENT, _BREATHS, _SOUND = 2, 3, 4  # streams of random numbers; the cohort's is 1


@dataclass(frozen=True)
class SyntheticCycle:
    """A breathing cycle in seconds from the start, with the flags of its annotation."""

    start: float
    inspiration_end: float
    expiration_start: float
    end: float
    crackle: bool
    wheeze: bool

    def phase(self, expiration: bool) -> tuple[float, float]:
        """Return start and end of the inspiration or the expiration, in seconds."""
        if expiration:
            return self.expiration_start, self.end
        return self.start, self.inspiration_end


@dataclass(frozen=True)
class Chest:
    """What all recordings of a patient have in common, drawn once."""

    severity: float  # of the disease, in logits
    cycle_seconds: float
    scale: float  # of the frequency axis of the breath noise
    pitch: float  # of wheezes, Hz
    heart_rate: float  # a minute
    eq_seed: int


def make_recording(
    plan: RecordingPlan, seed: int, seconds: float
) -> tuple[NDArray[np.float32], list[SyntheticCycle]]:
    """Return the waveform `[round(seconds · rate)]` at the device's rate, and its annotated cycles.

    Files of a simultaneous (mc) session hold the same breaths; only the place, the chest wall's
    noise and the recorder's differ.
    """
    patient, profile = plan.patient, PROFILES[plan.patient.diagnosis]
    chest = make_chest(patient, seed)
    place = ord(plan.location[0]) * 256 + ord(plan.location[1])
    shared = [seed, _BREATHS, patient.number, plan.session]
    breaths = np.random.default_rng(shared if plan.mode == "mc" else [*shared, place])
    rng = np.random.default_rng([seed, _SOUND, patient.number, plan.session, place])

    cycles = _breathe(breaths, chest, profile, seconds)
    samples = math.ceil(seconds * _GRID) * RATE // _GRID
    signal = _lungs(breaths, rng, cycles, chest, plan, samples)
    wave = _record(rng, signal, chest, plan)[: round(seconds * DEVICES[plan.device].rate)]
    return wave, [cycle for cycle in cycles if cycle.end <= seconds]


def make_chest(patient: Patient, seed: int) -> Chest:
    """Draw the constants of a patient, seeded by the patient's number and the set's seed."""
    rng = np.random.default_rng([seed, _PATIENT, patient.number])
    profile, infant = PROFILES[patient.diagnosis], patient.age <= 3
    grown = min(patient.age / 16, 1.0)
    return Chest(
        severity=float(rng.normal(0, 0.5)),
        cycle_seconds=float(rng.uniform(1.3, 1.8) + 1.4 * grown),
        scale=float(rng.uniform(1.3, 1.6) if infant else rng.uniform(0.92, 1.1)),
        pitch=float(rng.uniform(*profile.pitch) * (1.25 if infant else 1.0)),
        heart_rate=float(rng.uniform(100, 150) if patient.age < 8 else rng.uniform(60, 100)),
        eq_seed=int(rng.integers(2**31)),
    )


def _breathe(
    rng: Generator, chest: Chest, profile: Profile, seconds: float
) -> list[SyntheticCycle]:
    """Draw cycles until the recording is full; one that does not end in it has no sounds."""
    cycles: list[SyntheticCycle] = []
    start = round(float(rng.uniform(0.03, 0.12)), 3)
    # The probabilities of the diagnosis, shifted by the patient's severity in logits.
    shift = math.exp(-chest.severity)
    crackles, wheezes = (1 / (1 + (1 - p) / p * shift) for p in (profile.crackle, profile.wheeze))
    while start < seconds:
        length = float(np.clip(chest.cycle_seconds * rng.lognormal(0, 0.1), 1.0, 4.5))
        if not cycles:  # even the shortest recording has one whole cycle
            length = min(length, seconds - start)
        inspired = length * float(rng.uniform(0.35, 0.45))
        gap = length * float(rng.uniform(0.0, 0.08))
        flags = rng.random(2) < (crackles, wheezes)
        # Downwards to a millisecond, as annotations are written: never past the recording's end.
        end = math.floor((start + length) * 1000) / 1000
        flags &= end <= seconds
        turn = start + inspired
        cycles.append(SyntheticCycle(start, turn, turn + gap, end, bool(flags[0]), bool(flags[1])))
        start = end
    return cycles


def _lungs(
    breaths: Generator,
    rng: Generator,
    cycles: list[SyntheticCycle],
    chest: Chest,
    plan: RecordingPlan,
    samples: int,
) -> Floats:
    """Return breath noise, adventitious sounds, heart and rumble, `[samples]` at `RATE`.

    Inspiratory breath noise over the chest has RMS about 1 where the flow is highest.
    """
    profile = PROFILES[plan.patient.diagnosis]
    tracheal = plan.location == "Tc"
    frequencies = np.fft.rfftfreq(samples, 1 / RATE)
    slope = rng.uniform(-14, -9)
    out = np.zeros(samples)
    for expiration in (False, True):
        bright = tracheal or (profile.bronchial and expiration)
        low, high = (850, 1600) if bright else (280, 400) if expiration else (400, 600)
        spectrum = breath_spectrum(frequencies, rng.uniform(low, high), slope, chest.scale, bright)
        noise = shaped_noise(rng, spectrum, samples)
        level = rng.uniform(0.8, 1.1) if bright else rng.uniform(0.3, 0.7) * profile.expiration
        level = profile.breath * (level if expiration else 1.0)
        envelope = np.full(samples, 0.02)
        power = rng.uniform(0.7, 1.5) * rng.uniform(1.5, 2.0)
        for cycle in cycles:
            start, end = (round(t * RATE) for t in cycle.phase(expiration))
            flow = np.sin(np.pi * (np.arange(end - start) + 0.5) / max(end - start, 1))
            add(envelope, level * flow**power, start)
        out += noise * envelope

    _adventitious(breaths, out, cycles, chest, profile)
    rumble = 1 / (1 + (frequencies / 60) ** 8) / (1 + (20 / (frequencies + 1)) ** 4)  # 20 to 60 Hz
    low_band = shaped_noise(rng, rumble, samples)
    beat = heart(rng, RATE, samples, chest.heart_rate)
    # 20-60 Hz is 10 to 25 dB above 60-300 Hz, where most of the breath noise is.
    floor = 0.35 * 10 ** (rng.uniform(10, 20) / 20)
    return np.asarray(out + floor * (0.5 * low_band + (0.4 if tracheal else 0.8) * beat))


def _adventitious(
    rng: Generator, out: Floats, cycles: list[SyntheticCycle], chest: Chest, profile: Profile
) -> None:
    """Add the crackles and wheezes of the cycles' flags."""
    fine = profile.texture == "fine"
    # A patient's crackles come back at the same moments of each breath.
    habit = np.sort(rng.uniform(0.55, 0.98, 16) if fine else rng.beta(1.2, 1.6, 16))
    coarse_expiration = rng.random(16) < 0.4
    for cycle in cycles:
        if cycle.crackle:
            count = int(rng.integers(profile.crackles[0], profile.crackles[1] + 1))
            for k in rng.permutation(16)[:count].tolist():
                expiration = not fine and bool(coarse_expiration[k])
                _one_crackle(rng, out, cycle, expiration, float(habit[k]), fine)
        if cycle.wheeze:
            for voice in range(profile.voices):
                _one_wheeze(rng, out, cycle, chest.pitch * (1 + 0.37 * voice), profile)


def _one_crackle(
    rng: Generator, out: Floats, cycle: SyntheticCycle, expiration: bool, habit: float, fine: bool
) -> None:
    start, end = cycle.phase(expiration)
    at = start + habit * (end - start) + float(rng.uniform(-0.03, 0.03))
    idw = rng.uniform(0.4, 0.8) if fine else rng.uniform(1.0, 2.2)
    two_cycles = rng.uniform(max(3, 4.5 * idw), 6) if fine else rng.uniform(max(8, 4.5 * idw), 15)
    wave = crackle(RATE, idw / 1000, two_cycles / 1000)
    sign = -1 if rng.random() < (0.3 if expiration else 0.75) else 1
    peak = _local_rms(out, at, 0.05) * 10 ** (rng.uniform(15, 20) / 20)
    add(out, sign * peak * wave, round(min(max(at, start), end - 0.02) * RATE))


def _one_wheeze(
    rng: Generator, out: Floats, cycle: SyntheticCycle, pitch: float, profile: Profile
) -> None:
    start, end = cycle.phase(expiration=bool(rng.random() < 0.75))
    seconds = max((end - start) * float(rng.uniform(0.45, 0.8)), 0.1)
    at = start + float(rng.uniform(0.1, 0.9)) * max(end - start - seconds, 0)
    tone = wheeze(
        rng,
        RATE,
        seconds,
        pitch * float(rng.normal(1, 0.04)),
        harmonics=int(rng.integers(4, 9) if profile.rhonchus else rng.integers(1, 5)),
        decay=float(rng.uniform(0.6, 0.8) if profile.rhonchus else rng.uniform(0.3, 0.6)),
    )
    level = _local_rms(out, at + seconds / 2, seconds) * 10 ** (rng.uniform(5, 15) / 20)
    add(out, level / math.sqrt(profile.voices) * tone, round(at * RATE))


def _local_rms(wave: Floats, at: float, seconds: float) -> float:
    """Return the RMS of `seconds` around `at`, at least that of a quiet breath."""
    first = max(round((at - seconds / 2) * RATE), 0)
    piece = wave[first : first + max(round(seconds * RATE), 1)]
    return max(float(np.sqrt(np.mean(piece**2))) if piece.size else 0.0, 0.1)


def _record(
    rng: Generator, signal: Floats, chest: Chest, plan: RecordingPlan
) -> NDArray[np.float32]:
    """Apply chest wall, stethoscope and recorder; `[samples]` at its rate, within full scale."""
    device = DEVICES[plan.device]
    frequencies = np.fft.rfftfreq(signal.size, 1 / RATE)
    wall = patient_gain(np.random.default_rng(chest.eq_seed), frequencies)
    spectrum = np.fft.rfft(signal) * device.gain(frequencies) * wall
    spectrum[0] = 0
    samples = signal.size * device.rate // RATE
    bins = samples // 2 + 1
    # A longer or shorter inverse transform is the band-limited change of rate.
    resampled = np.fft.irfft(spectrum[:bins].astype(np.complex64), samples).astype(np.float32)
    for _ in range(int(rng.poisson(device.bursts * signal.size / RATE / 60))):
        seconds = float(rng.uniform(0.03, 0.12))
        burst = rng.standard_normal(int(seconds * device.rate)) * float(rng.uniform(1, 2))
        burst = np.convolve(burst, np.full(8, 0.125), "same") * np.hanning(burst.size)
        at = int(rng.integers(max(samples - burst.size, 1)))
        room = min(burst.size, samples - at)
        resampled[at : at + room] += burst[:room].astype(np.float32) * np.abs(resampled).max() * 0.5
    resampled *= np.float32(rng.uniform(0.1, 0.9)) / np.abs(resampled).max()
    hiss = rng.standard_normal(samples, dtype=np.float32) * np.float32(10 ** (device.noise / 20))
    return np.clip(resampled + hiss + np.float32(device.offset), -1, 1)

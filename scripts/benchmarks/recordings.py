"""Make the benchmark's recordings: synthetic tones in noise, with the layout of the ICBHI data."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.sizes import RATE, SECONDS
from resp_tune.errors import UserError

DIAGNOSES = ("COPD", "Healthy", "URTI", "Bronchiectasis", "Pneumonia", "Bronchiolitis")
PATIENTS = 30  # five per diagnosis
LOCATIONS = ("Tc", "Al", "Ar", "Pl", "Pr", "Ll", "Lr")
STETHOSCOPES = ("AKGC417L", "Meditron")
SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4}


def make_recordings(folder: Path, recordings: int, seconds: float = SECONDS) -> None:
    """Write `recordings` wav files of `seconds` at 44.1 kHz, a third each with 16, 24 and 32 bits.

    Raise `UserError` if the disk is too full.
    """
    audio = folder / "audio_and_txt_files"
    audio.mkdir(parents=True)
    samples = round(seconds * RATE)
    need = recordings * samples * sum(SAMPLE_BYTES.values()) // len(SAMPLE_BYTES)
    if (free := shutil.disk_usage(folder).free) < 1.5 * need:
        raise UserError(
            f"{recordings} recordings need {need / 1e9:.1f} GB and half as much for features, but "
            f"the temporary folder has {free / 1e9:.1f} GB free: set TMPDIR to another disk"
        )

    def write(number: int) -> None:
        stem = _stem(number)
        path = audio / f"{stem}.wav"
        wave = _make_wave(number, samples)
        soundfile.write(path, wave, RATE, subtype=list(SAMPLE_BYTES)[number % len(SAMPLE_BYTES)])
        (audio / f"{stem}.txt").write_text(f"0.000\t{seconds:.3f}\t0\t0\n")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(recordings)))
    table = [f"{101 + p},{DIAGNOSES[p % len(DIAGNOSES)]}" for p in range(PATIENTS)]
    (folder / "patient_diagnosis.csv").write_text("\r\n".join(table))
    (folder / "SYNTHETIC.txt").write_text("Synthetic tones in noise, for measuring speed.\n")


def _stem(number: int) -> str:
    """Return the file stem; consecutive numbers belong to different patients, for balance."""
    patient, nth = number % PATIENTS, number // PATIENTS
    session, location = nth // len(LOCATIONS), LOCATIONS[nth % len(LOCATIONS)]
    return f"{101 + patient}_{session + 1}b1_{location}_mc_{STETHOSCOPES[patient // 6 % 2]}"


def _make_wave(number: int, samples: int) -> npt.NDArray[np.float32]:
    """Return a tone of the diagnosis in noise, float32 `[samples]`."""
    rng = np.random.default_rng(number)
    hertz = 200.0 * (1 + number % PATIENTS % len(DIAGNOSES)) * rng.uniform(0.9, 1.1)
    noise = rng.standard_normal(samples, dtype=np.float32)
    tone = np.sin(2 * np.pi * hertz / RATE * np.arange(samples, dtype=np.float32))
    wave: npt.NDArray[np.float32] = (0.05 * noise + 0.1 * tone).astype(np.float32)
    return wave

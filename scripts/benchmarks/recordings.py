"""The benchmark's own recordings: synthetic tones in noise, in the layout of the ICBHI data set."""

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
PATIENTS = 30  # five a diagnosis
LOCATIONS = ("Tc", "Al", "Ar", "Pl", "Pr", "Ll", "Lr")
DEVICES = ("AKGC417L", "Meditron")
BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4}  # of a sample


def make_recordings(folder: Path, recordings: int, seconds: float = SECONDS) -> None:
    """Write `recordings` wav files of `seconds` at 44.1 kHz, a third each in 16, 24 and 32 bit.

    `UserError` when the disk has no room for them.
    """
    audio = folder / "audio_and_txt_files"
    audio.mkdir(parents=True)
    samples = round(seconds * RATE)
    need = recordings * samples * sum(BYTES.values()) // len(BYTES)
    if (free := shutil.disk_usage(folder).free) < 1.5 * need:
        raise UserError(
            f"{recordings} recordings need {need / 1e9:.1f} GB and room for their features, and "
            f"the temporary folder has {free / 1e9:.1f} GB: set TMPDIR to another disk"
        )

    def write(number: int) -> None:
        stem = _stem(number)
        path = audio / f"{stem}.wav"
        wave = _sound(number, samples)
        soundfile.write(path, wave, RATE, subtype=list(BYTES)[number % len(BYTES)])
        (audio / f"{stem}.txt").write_text(f"0.000\t{seconds:.3f}\t0\t0\n")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(recordings)))
    table = [f"{101 + p},{DIAGNOSES[p % len(DIAGNOSES)]}" for p in range(PATIENTS)]
    (folder / "patient_diagnosis.csv").write_text("\r\n".join(table))
    (folder / "SYNTHETIC.txt").write_text("Synthetic tones in noise, made to measure speed.\n")


def _stem(number: int) -> str:
    """Patient by patient, so that each diagnosis has equally many recordings."""
    patient, nth = number % PATIENTS, number // PATIENTS
    session, location = nth // len(LOCATIONS), LOCATIONS[nth % len(LOCATIONS)]
    return f"{101 + patient}_{session + 1}b1_{location}_mc_{DEVICES[patient // 6 % 2]}"


def _sound(number: int, samples: int) -> npt.NDArray[np.float32]:
    """A tone of the diagnosis in noise, float32 `[samples]`."""
    rng = np.random.default_rng(number)
    hertz = 200.0 * (1 + number % PATIENTS % len(DIAGNOSES)) * rng.uniform(0.9, 1.1)
    noise = rng.standard_normal(samples, dtype=np.float32)
    tone = np.sin(2 * np.pi * hertz / RATE * np.arange(samples, dtype=np.float32))
    wave: npt.NDArray[np.float32] = (0.05 * noise + 0.1 * tone).astype(np.float32)
    return wave

"""Data sets of a few short recordings, written by hand for the tests of the data layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from resp_tune.data.annotations import Cycle
from resp_tune.data.dataset import Dataset, Recording


def real_set() -> Path:
    """The folder of the real recordings, or skip."""
    folder = os.environ.get("RESP_TUNE_TEST_DATA")
    if not folder:
        pytest.skip("RESP_TUNE_TEST_DATA is not set")
    return Path(folder)


def originals() -> Path:
    folder = real_set().parent / "icbhi-originals"
    if not folder.is_dir():
        pytest.skip("no icbhi-originals beside RESP_TUNE_TEST_DATA")
    return folder


def write_audio(
    path: Path,
    *,
    seconds: float = 1.0,
    rate: int = 4000,
    channels: int = 1,
    subtype: str = "PCM_16",
    seed: int = 0,
) -> np.ndarray:
    """Noise in a file; returns what was written, `[samples, channels]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate, subtype=subtype)
    return samples


def write_set(
    root: Path, diagnoses: Mapping[str, str], *, audio: str = "audio_and_txt_files"
) -> Path:
    """One recording of a second for each stem, with two cycles, and the table of diagnoses."""
    for seed, stem in enumerate(diagnoses):
        write_audio(root / audio / f"{stem}.wav", seed=seed)
        (root / audio / f"{stem}.txt").write_text("0.0\t0.5\t0\t0\n0.5\t1.0\t1\t0\n")
    rows = sorted({(stem.split("_")[0], diagnosis) for stem, diagnosis in diagnoses.items()})
    table = "\r\n".join(f"{patient},{diagnosis}" for patient, diagnosis in rows)
    (root / "patient_diagnosis.csv").write_text(table)
    return root


def imagined(
    recordings: Sequence[tuple[str, str]], *, cycles: Sequence[tuple[bool, bool]] = ()
) -> Dataset:
    """A data set of `(stem, diagnosis)` without any files behind it."""
    listed = []
    for stem, diagnosis in sorted(recordings):
        patient, index, location, mode, device = stem.split("_")
        listed.append(
            Recording(
                stem=stem,
                path=Path("nowhere") / f"{stem}.wav",
                patient=patient,
                person=patient,
                session=f"{patient}_{index}",
                location=location,
                mode=mode,
                device=device,
                diagnosis=diagnosis,
                age=40.0,
                sex="F",
                official=None,
                sample_rate=4000,
                channels=1,
                samples=80_000,
                digest=stem,
                cycles=tuple(Cycle(i, i + 1.0, c, w) for i, (c, w) in enumerate(cycles)),
            )
        )
    return Dataset(Path("nowhere"), tuple(listed), (), True)

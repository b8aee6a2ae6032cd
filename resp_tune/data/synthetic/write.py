"""Write a synthetic data set, in the layout and formats of the real one, within seconds.

It replaces the real recordings when they are not available. Its sounds are generated from a seed;
no score on it says anything about patients.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import filelock
import soundfile

from resp_tune.data.discovery import SYNTHETIC_NAME
from resp_tune.data.synthetic.cohort import RecordingPlan, make_cohort, patients_of
from resp_tune.data.synthetic.render import make_recording
from resp_tune.data.synthetic.settings import GENERATOR_VERSION, SynthSettings
from resp_tune.data.synthetic.stethoscopes import DEVICES
from resp_tune.errors import UserError

Progress = Callable[[int, int], None]  # of recordings made, of all


def make_synthetic(
    folder: Path,
    settings: SynthSettings,
    progress: Progress | None = None,
    workers: int | None = None,
) -> None:
    """Write the set of `settings` as `folder`, which must be absent or empty.

    The bytes of the files depend on the settings only, not on `workers` (threads; default: one per
    core, at most 8). The folder appears complete or not at all. Raises `UserError` for a folder
    that is not empty or cannot be made.
    """
    folder = folder.resolve()
    _check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to '{folder.parent}' ({error.strerror}): give a folder you may write to"
        ) from error
    try:
        beside.chmod(0o755)  # mkdtemp's folders are closed to others
        _write(beside, settings, progress, workers)
        try:
            beside.rename(folder)  # over an empty folder too; fails if one was filled meanwhile
        except OSError:
            _check_free(folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _sync(folder.parent)


def default_synthetic(cache: Path) -> Path:
    """Return the folder of the default set, which is made under `cache` at first use."""
    settings = SynthSettings()
    words = f"{settings!r} {GENERATOR_VERSION}"
    folder = cache / "synthetic" / hashlib.sha256(words.encode()).hexdigest()[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                make_synthetic(folder, settings)
    return folder


def _check_free(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file: give a folder that is absent or empty")
    if next(folder.iterdir(), None) is not None:
        raise UserError(f"'{folder}' is not empty: give a folder that is absent or empty")


def _write(
    folder: Path, settings: SynthSettings, progress: Progress | None, workers: int | None
) -> None:
    plans = make_cohort(settings)
    audio = folder / "audio_and_txt_files"
    audio.mkdir()

    def make(plan: RecordingPlan) -> None:
        wave, cycles = make_recording(plan, settings.seed, settings.seconds)
        path = audio / f"{plan.stem}.wav"
        soundfile.write(path, wave, DEVICES[plan.device].rate, subtype=plan.subtype)
        _sync(path)
        lines = [f"{c.start:.3f}\t{c.end:.3f}\t{c.crackle:d}\t{c.wheeze:d}\n" for c in cycles]
        _write_text(path.with_suffix(".txt"), "".join(lines))

    # NumPy's transforms and libsndfile release the interpreter lock.
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    try:
        for done, _ in enumerate(pool.map(make, plans), start=1):
            if progress is not None:
                progress(done, len(plans))
    finally:
        pool.shutdown(cancel_futures=True)
    for name, text in _tables(plans, settings).items():
        _write_text(folder / name, text)


def _tables(plans: Sequence[RecordingPlan], settings: SynthSettings) -> dict[str, str]:
    """Return the text of the files beside the audio, with the line ends of the real ones."""
    patients = patients_of(plans)
    values = {**asdict(settings), "seconds": f"{settings.seconds:g}"}
    flags = " ".join(f"--{name} {value}" for name, value in values.items())
    return {
        "patient_diagnosis.csv": "\r\n".join(f"{p.number},{p.diagnosis}" for p in patients),
        "demographic_info.txt": "\r\n".join(["", *(p.demographics for p in patients)]),
        "ICBHI_challenge_train_test.txt": "".join(
            f"{plan.stem}\t{'train' if plan.patient.train else 'test'}\r\n" for plan in plans
        ),
        SYNTHETIC_NAME: (
            "Synthetic respiratory sounds, made by rule: no patient was recorded.\n"
            "Crackles, wheezes and breath noise follow published models, with rates raised so that"
            "\na small set can be learnt. Scores on it say nothing about real recordings.\n\n"
            f"python -m resp_tune.synth DIR {flags}\n"
            f"generator version {GENERATOR_VERSION}, {len(plans)} recordings,"
            f" {len(patients)} patients\n"
        ),
    }


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("ascii"))
    _sync(path)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, before anything is renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

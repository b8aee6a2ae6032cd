"""The search of release 0.1.0 in `tests/data`, and the recordings that it was made from."""

from __future__ import annotations

import array
import wave
from pathlib import Path

OLD = Path(__file__).parents[1] / "data" / "release-0.1.0"
ARGS = (
    "--space", str(OLD / "space.yaml"), "--gpus", "0", "--scheduler", "none", "--epochs", "2",
    "--name", "old", "--cpus-per-trial", "1",
)  # fmt: skip


def make_recordings(root: Path) -> Path:
    """24 recordings of 12 patients, 2 s each, a sawtooth whose pitch tells the class a little."""
    audio = root / "audio_and_txt_files"
    audio.mkdir(parents=True)
    rows = []
    for patient in range(101, 113):
        diagnosis = "COPD" if patient % 2 else "Healthy"
        rows.append(f"{patient},{diagnosis}")
        for site in ("Al", "Ar"):
            stem = f"{patient}_1b1_{site}_sc_Meditron"
            step = 97 + 60 * (patient % 2) + patient % 7
            values = array.array("h", [(i * step * 31) % 40_009 - 20_004 for i in range(8000)])
            with wave.open(str(audio / f"{stem}.wav"), "wb") as file:
                file.setparams((1, 2, 4000, 0, "NONE", ""))
                file.writeframes(values.tobytes())
            (audio / f"{stem}.txt").write_text("0.0\t1.0\t0\t0\n1.0\t2.0\t1\t0\n")
    (root / "patient_diagnosis.csv").write_text("\n".join(rows) + "\n")
    return root

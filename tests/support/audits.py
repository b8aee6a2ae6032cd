"""What the tests of the audit share: two synthetic sets, a model, sets without sounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from resp_tune import train
from resp_tune.audit import shortcuts
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.synthetic.cohort import make_cohort
from resp_tune.data.synthetic.settings import SynthSettings
from resp_tune.data.synthetic.write import make_synthetic
from resp_tune.evaluation import baselines
from resp_tune.evaluation.band_statistics import COUNT, BandStatistics
from support.small_sets import imagined

TINY = {"clip_seconds": 1.0, "n_mels": 16, "width": 4, "epochs": 1, "batch_size": 16}


@contextmanager
def few_trees() -> Iterator[None]:
    """Forests of two trees in this process: what they score is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 2)
        patch.setattr(shortcuts, "PERMUTATIONS", 3000)
        yield


def make_sets(folder: Path) -> dict[str, Path]:
    """Real files: one set whose devices tell the diagnosis, one whose devices do not."""
    for confound in ("icbhi", "none"):
        make_synthetic(folder / confound, SynthSettings(90, 1.0, 3, confound))  # type: ignore[arg-type]  # a literal
    return {confound: folder / confound for confound in ("icbhi", "none")}


def trained(folder: Path, data: Path, *options: str) -> Path:
    """A bundle made by the command `train`, in a folder of its own."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train.main(
        ["--config", f"{folder}/tiny.yaml", "--data", f"{data}", "--threads", "1",
         "--out", f"{folder}/winner", *options]
    )  # fmt: skip
    return folder / "winner"


def in_memory(settings: SynthSettings) -> Dataset:
    """A synthetic set without its sounds."""
    recordings = []
    for plan in make_cohort(settings):
        who = plan.patient
        session = f"{who.number}_{plan.session_name}"
        recordings.append(
            Recording(
                stem=plan.stem,
                path=Path("nowhere"),
                patient=str(who.number),
                person=str(who.number),
                session=session,
                location=plan.location,
                mode=plan.mode,
                device=plan.device,
                diagnosis=who.diagnosis,
                age=who.age if who.known else None,
                sex=who.sex,
                official=None,
                sample_rate=4000,
                channels=1,
                samples=4000,
                digest=plan.stem,
                cycles=(),
            )
        )
    return Dataset(Path("nowhere"), tuple(recordings), (), True)


def of_devices(rows: Sequence[tuple[str, str]]) -> Dataset:
    """One recording a patient: (diagnosis, device)."""
    return imagined([(f"{100 + n}_1b1_Al_sc_{d}", name) for n, (name, d) in enumerate(rows)])


def imagined_statistics(dataset: Dataset, *_: object) -> BandStatistics:
    """Band statistics that say nothing, of all recordings and cycles of a set without sounds."""
    rng = np.random.default_rng(0)
    return {
        (r.stem, start, end): rng.normal(size=COUNT).astype(np.float32)
        for r in dataset.recordings
        for start, end in [(0.0, r.seconds), *((c.start, c.end) for c in r.cycles)]
    }

"""Predict audio files with a winner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.common.paths import user_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from resp_tune.training.model_bundle import Bundle

log = logging.getLogger(__name__)


def predict_file(bundle: Bundle, file: str) -> dict[str, Any]:
    """Return `{file, class, probabilities{class: p}}`; raises `UserError` if it is not audio.

    A winner of the task `cycles` predicts each breathing cycle listed in the `.txt` file of the
    same name: `cycles` holds `{start, end, class, probabilities}`, the file's own are their mean.
    """
    from resp_tune.data.waveforms import load_waveform

    path = user_path(file)
    waveform = load_waveform(path, bundle.sample_rate)
    cycles = []
    if bundle.details.get("task") == "cycles":
        cycles = _read_cycles(path, waveform.numel() / bundle.sample_rate)
        if not cycles:
            window = f"{bundle.config.clip_seconds:g} s"
            log.info(
                f"note: '{path}' has no breathing cycles in '{path.stem}.txt' beside it: "
                f"predicting in windows of {window}, which the winner was not trained on"
            )
    if not cycles:
        return {"file": file, **_prediction(bundle, bundle.predict_waveform(waveform))}
    each = bundle.predict_spans(waveform, cycles)
    return {
        "file": file,
        **_prediction(bundle, each.mean(axis=0)),
        "cycles": [
            {"start": start, "end": end, **_prediction(bundle, probabilities)}
            for (start, end), probabilities in zip(cycles, each, strict=True)
        ],
    }


def _read_cycles(path: Path, seconds: float) -> list[tuple[float, float]]:
    """Return start and end, in seconds, of the cycles in the annotation file of `path`."""
    from resp_tune.data.annotations import parse_cycles

    annotation = path.with_suffix(".txt")
    try:
        cycles, defects = parse_cycles(annotation.read_text(encoding="utf-8"), seconds)
    except (OSError, UnicodeDecodeError):
        return []
    for defect in defects:
        log.info(f"note: '{annotation}': {defect}")
    return [(cycle.start, cycle.end) for cycle in cycles]


def _prediction(bundle: Bundle, probabilities: npt.NDArray[np.float32]) -> dict[str, Any]:
    shares = (round(p, 6) for p in probabilities.tolist())
    by_class = dict(zip(bundle.classes, shares, strict=True))
    return {"class": max(by_class, key=by_class.__getitem__), "probabilities": by_class}

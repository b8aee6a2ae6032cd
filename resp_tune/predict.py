"""Predict recordings with a winner.

    python -m resp_tune.predict FILE…                              the champion of results/mlflow.db
    python -m resp_tune.predict --winner results/first/winner FILE…
    python -m resp_tune.predict --json FILE…

A research tool, not a medical device: it shows what a network learnt from one data set.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.cli import Parser, run
from resp_tune.common.paths import user_path
from resp_tune.common.text import one_line
from resp_tune.data.sounds.audio_files import Remark, remark_lines
from resp_tune.errors import RunError, UserError
from resp_tune.evaluation.open_winner import CHAMPION, open_winner

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from resp_tune.training.model_bundle import Bundle

log = logging.getLogger("resp_tune.predict")


def parser() -> Parser:
    """Return the parser of this command's flags."""
    p = Parser("predict", __doc__ or "")
    p.add_argument("files", nargs="+", metavar="FILE", help="wav or FLAC, any rate")
    p.add_argument(
        "--winner",
        metavar="DIR or URI",
        default=CHAMPION,
        help="a winner/ folder, here or at s3://…, gs://…, abfs://…, or models:/NAME@ALIAS",
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="where models:/… is looked up (default: $MLFLOW_TRACKING_URI, else results/mlflow.db)",
    )
    p.add_argument(
        "--json", action="store_true", help="print a list of {file, class, probabilities, warnings}"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Print the class probabilities of every file that can be read."""
    args = parser().parse(argv)
    bundle = open_winner(args.winner, args.tracking_uri)
    results: list[dict[str, Any]] = []
    remarks: dict[Path, tuple[Remark, ...]] = {}
    bad = 0
    for file in args.files:
        try:
            results.append(predict_file(bundle, file, remarks))
        except UserError as error:
            bad += 1
            log.error(f"{one_line(error)}")
    for line in remark_lines(remarks):
        log.warning(one_line(line))
    if not results:
        raise UserError("no file could be predicted: give wav or FLAC recordings with sound")
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        _print(results, bundle)
    if bad:
        raise RunError(f"{bad} of {len(args.files)} files could not be predicted")


def predict_file(
    bundle: Bundle, file: str, remarks: dict[Path, tuple[Remark, ...]]
) -> dict[str, Any]:
    """Return `{file, class, probabilities{class: p}, warnings}`.

    `warnings` describe defects of the file that do not prevent a prediction; they are added to
    `remarks` as well. Raises `UserError` if the file is not audio, or is silent or clipped
    throughout.

    A winner of the task `cycles` predicts each breathing cycle listed in the `.txt` file of the
    same name: `cycles` holds `{start, end, class, probabilities}`, the file's own are their mean.
    """
    from resp_tune.data.sounds.waveforms import read_sound, resample

    path = user_path(file)
    sound = read_sound(path)
    waveform = resample(sound, bundle.sample_rate, bundle.config.resampling)
    remarks[path] = sound.remarks
    warnings = [str(remark) for remark in sound.remarks]
    cycles = []
    if bundle.details.get("task") == "cycles":
        cycles = _read_cycles(path, waveform.numel() / bundle.sample_rate)
        if not cycles:
            lengths = sorted({m.config.clip_seconds for m in bundle.members})
            windows = f"in windows of {' or '.join(f'{length:g}' for length in lengths)} s"
            what = windows if bundle.encoder is None else "the whole of it"
            log.info(
                f"note: '{path}' has no breathing cycles in '{path.stem}.txt' beside it: "
                f"predicting {what}, which the winner was not trained on"
            )
    if not cycles:
        whole = _prediction(bundle, bundle.predict_waveform(waveform))
        return {"file": file, **whole, "warnings": warnings}
    each = bundle.predict_spans(waveform, cycles)
    return {
        "file": file,
        **_prediction(bundle, each.mean(axis=0)),
        "cycles": [
            {"start": start, "end": end, **_prediction(bundle, probabilities)}
            for (start, end), probabilities in zip(cycles, each, strict=True)
        ],
        "warnings": warnings,
    }


def _read_cycles(path: Path, seconds: float) -> list[tuple[float, float]]:
    """Return start and end, in seconds, of the cycles in the annotation file of `path`."""
    from resp_tune.data.annotations import join_notes, parse_cycles
    from resp_tune.data.discovery import find_annotation
    from resp_tune.data.tables import read_text

    annotation = find_annotation(path)
    if annotation is None:
        return []
    try:
        cycles, notes = parse_cycles(read_text(annotation), seconds)
    except OSError as error:
        log.info(f"note: '{annotation}' cannot be read: {error.strerror}")
        return []
    for line in join_notes({str(annotation): notes}):
        log.info(f"note: {one_line(line)}")
    return [(cycle.start, cycle.end) for cycle in cycles]


def _prediction(bundle: Bundle, probabilities: npt.NDArray[np.float32]) -> dict[str, Any]:
    shares = (round(p, 6) for p in probabilities.tolist())
    by_class = dict(zip(bundle.classes, shares, strict=True))
    return {"class": max(by_class, key=by_class.__getitem__), "probabilities": by_class}


def _print(results: list[dict[str, Any]], bundle: Bundle) -> None:
    if bundle.details.get("provenance", {}).get("synthetic"):
        log.info(
            "note: this winner was trained on SYNTHETIC sounds: it knows nothing about patients"
        )
    width = max(len(one_line(r["file"])) for r in results)
    print("file".ljust(width), "class".ljust(16), *bundle.classes, sep="  ")
    for r in results:
        _print_row(one_line(r["file"]).ljust(width), r)
        for cycle in r.get("cycles", []):
            _print_row(f"  {cycle['start']:.2f}–{cycle['end']:.2f} s".ljust(width), cycle)


def _print_row(first: str, prediction: dict[str, Any]) -> None:
    shares = (f"{p:.3f}".rjust(len(c)) for c, p in prediction["probabilities"].items())
    print(first, prediction["class"].ljust(16), *shares, sep="  ")


if __name__ == "__main__":
    sys.exit(run(main))

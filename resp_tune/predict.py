"""Diagnose recordings with a winner.

    python -m resp_tune.predict FILE…                              the champion of results/mlflow.db
    python -m resp_tune.predict --winner results/first/winner FILE…
    python -m resp_tune.predict --json FILE…

A research tool: it says what a network learnt from one data set, and is no medical device.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.cli import Parser, run, say
from resp_tune.errors import RunError, UserError

if TYPE_CHECKING:
    from resp_tune.learning.bundle import Bundle

CHAMPION = "models:/resp_tune@champion"


def parser() -> Parser:
    """All flags."""
    p = Parser("predict", __doc__ or "")
    p.add_argument("files", nargs="+", metavar="FILE", help="wav or FLAC, any rate")
    p.add_argument(
        "--winner", metavar="DIR", default=CHAMPION, help="a winner/ folder, or models:/NAME@ALIAS"
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="where models:/… is looked up (default: $MLFLOW_TRACKING_URI, else results/mlflow.db)",
    )
    p.add_argument(
        "--json", action="store_true", help="print a list of {file, class, probabilities}"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Print the class probabilities of every file that can be read."""
    args = parser().parse(argv)
    bundle = open_winner(args.winner, args.tracking_uri)
    results: list[dict[str, Any]] = []
    bad = 0
    for file in args.files:
        try:
            results.append(predict_file(bundle, file))
        except UserError as error:
            bad += 1
            say(f"error: {error}")
    if not results:
        raise UserError("none of the files could be read: give wav or FLAC recordings")
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        _print(results, bundle)
    if bad:
        raise RunError(f"{bad} of {len(args.files)} files could not be read")


def open_winner(winner: str, tracking_uri: str | None) -> Bundle:
    """The bundle in a folder or in MLflow's registry."""
    from resp_tune.learning.bundle import load_bundle

    if not winner.startswith("models:/"):
        return load_bundle(Path(winner).expanduser())
    from resp_tune.tracking.registry import fetch_bundle
    from resp_tune.tracking.uri import resolve_uri

    with tempfile.TemporaryDirectory(prefix="resp_tune_") as folder:
        uri = resolve_uri(tracking_uri, Path("results").absolute())
        return load_bundle(fetch_bundle(winner, uri, Path(folder)))


def predict_file(bundle: Bundle, file: str) -> dict[str, Any]:
    """`{file, class, probabilities{class: p}}`; raises `UserError` for a file that is no audio."""
    from resp_tune.data.audio import load_waveform

    path = Path(file).expanduser()
    probabilities = bundle.predict_waveform(load_waveform(path, bundle.sample_rate)).tolist()
    by_class = dict(zip(bundle.classes, (round(p, 6) for p in probabilities), strict=True))
    likeliest = max(by_class, key=by_class.__getitem__)
    return {"file": file, "class": likeliest, "probabilities": by_class}


def _print(results: list[dict[str, Any]], bundle: Bundle) -> None:
    if bundle.details.get("provenance", {}).get("synthetic"):
        say("note: this winner was trained on SYNTHETIC sounds: it knows nothing about patients")
    width = max(len(r["file"]) for r in results)
    print("file".ljust(width), "class".ljust(16), *bundle.classes, sep="  ")
    for r in results:
        shares = (f"{p:.3f}".rjust(len(c)) for c, p in r["probabilities"].items())
        print(r["file"].ljust(width), r["class"].ljust(16), *shares, sep="  ")


if __name__ == "__main__":
    sys.exit(run(main))

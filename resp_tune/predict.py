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
from typing import TYPE_CHECKING, Any

from resp_tune.cli import Parser, run
from resp_tune.common.text import one_line
from resp_tune.errors import RunError, UserError
from resp_tune.evaluation.inference import predict_file
from resp_tune.evaluation.open_winner import CHAMPION, open_winner

if TYPE_CHECKING:
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
            log.error(f"{one_line(error)}")
    if not results:
        raise UserError("none of the files could be read: give wav or FLAC recordings")
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        _print(results, bundle)
    if bad:
        raise RunError(f"{bad} of {len(args.files)} files could not be read")


def _print(results: list[dict[str, Any]], bundle: Bundle) -> None:
    if bundle.details.get("provenance", {}).get("synthetic"):
        log.info(
            "note: this winner was trained on SYNTHETIC sounds: it knows nothing about patients"
        )
    width = max(len(r["file"]) for r in results)
    print("file".ljust(width), "class".ljust(16), *bundle.classes, sep="  ")
    for r in results:
        _print_row(r["file"].ljust(width), r)
        for cycle in r.get("cycles", []):
            _print_row(f"  {cycle['start']:.2f}–{cycle['end']:.2f} s".ljust(width), cycle)


def _print_row(first: str, prediction: dict[str, Any]) -> None:
    shares = (f"{p:.3f}".rjust(len(c)) for c, p in prediction["probabilities"].items())
    print(first, prediction["class"].ljust(16), *shares, sep="  ")


if __name__ == "__main__":
    sys.exit(run(main))

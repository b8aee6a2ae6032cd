"""Audit a data set, and a model on its test side.

    python -m resp_tune.evaluate --data ICBHI                          what the data gives away
    python -m resp_tune.evaluate --data ICBHI --out audit              also audit.json, audit.html
    python -m resp_tune.evaluate --data ICBHI --winner results/first/winner

Counts, defects, leaks of each protocol, what can be had without any audio, and with --winner the
model's figures with intervals beside it. A model is scored only on the test side of the very sides
that it was trained with, and each such reading is declared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resp_tune.cli import Parser, run, say
from resp_tune.errors import UserError


def parser() -> Parser:
    """All flags."""
    p = Parser("evaluate", __doc__ or "")
    p.add_argument(
        "--data",
        metavar="PATH",
        help="folder with the recordings; default: $RESP_TUNE_DATA, else a small synthetic set",
    )
    p.add_argument(
        "--winner",
        metavar="DIR",
        help="a winner/ folder, or models:/NAME@ALIAS, to score on its test side too",
    )
    p.add_argument("--out", metavar="DIR", help="folder for audit.json and audit.html")
    p.add_argument("--json", action="store_true", help="print the audit as one JSON object")
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="where models:/… is looked up (default: $MLFLOW_TRACKING_URI, else results/mlflow.db)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Print the audit; with `--out` the last line is the path of the page."""
    args = parser().parse(argv)
    if args.tracking_uri and not (args.winner or "").startswith("models:/"):
        raise UserError("--tracking-uri says where --winner models:/NAME@ALIAS is: give both")
    out = None if args.out is None else _writable(args.out)
    found = _audit(args.data, args.winner, args.tracking_uri)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    if args.json:
        print(text)
    else:
        from resp_tune.auditing.show import show

        show(found)
    if out is not None:
        page = _write(out, text, found)
        if not args.json:
            print(page)


def _audit(data: str | None, winner: str | None, tracking_uri: str | None) -> dict[str, Any]:
    started = time.perf_counter()
    from resp_tune.auditing.audit import audit
    from resp_tune.data.recordings import load_dataset
    from resp_tune.searching.prepare import data_folder

    dataset = load_dataset(data_folder(data, say))
    if winner is None:
        found = audit(dataset, say=say)
    else:
        from resp_tune.auditing.model import audit_model, sides_of
        from resp_tune.predict import open_winner
        from resp_tune.tuning.plan import this_machine

        bundle = open_winner(winner, tracking_uri)
        problem = sides_of(bundle, dataset)
        found = audit(dataset, say=say)
        found["model"] = audit_model(bundle, problem, workers=this_machine().cpus, say=say)
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def _writable(given: str) -> Path:
    """The folder `--out`, which may not be there yet; `UserError` when it cannot be written."""
    folder = Path(given).expanduser().absolute()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not place.is_dir():
        raise UserError(f"--out '{given}': '{place}' is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--out '{given}': '{place}' may not be written: give another folder")
    return folder


def _write(folder: Path, text: str, found: dict[str, Any]) -> Path:
    from resp_tune.auditing.page import draw
    from resp_tune.paths import write_atomically

    page = draw(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.json", (text + "\n").encode())
    write_atomically(folder / "audit.html", page.encode())
    return folder / "audit.html"


if __name__ == "__main__":
    sys.exit(run(main))

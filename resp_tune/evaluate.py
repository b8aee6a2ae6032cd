"""Audit a data set, and a model on its test split.

    python -m resp_tune.evaluate --data ICBHI                          what the data gives away
    python -m resp_tune.evaluate --data ICBHI --out audit              also audit.json, audit.html
    python -m resp_tune.evaluate --data ICBHI --winner results/first/winner
    python -m resp_tune.evaluate --compare results/first results/second
    python -m resp_tune.evaluate --blend results/first results/second

Prints counts, defects, leaks of each protocol and baselines (without audio, and linear in band
statistics); with --winner also the model's metrics with intervals. A model is scored only on the
test split that belongs to its training split, and each test-set access is recorded: a search has
one record for all of its winners, each bundle of `train --out` its own. --compare reads no
recordings, only the predictions that two searches or trials have saved. --blend mixes those of two
winners, by a weight that their validation predictions choose.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.cli import Parser, run
from resp_tune.common.paths import folder_to_write, user_path
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath, is_uri

if TYPE_CHECKING:
    from resp_tune.config import FrontEnd
    from resp_tune.training.model_bundle import Bundle


def parser() -> Parser:
    """Return the parser of this command's flags."""
    p = Parser("evaluate", __doc__ or "")
    p.add_argument(
        "--data",
        metavar="PATH",
        help="folder with the recordings; default: $RESP_TUNE_DATA, else a small synthetic set",
    )
    p.add_argument(
        "--winner",
        metavar="DIR",
        help="a winner/ folder, or models:/NAME@ALIAS, to score on its test split too",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two folders, each of a search, its winner/, a trial (results/NAME/trials/N) or a "
        "replicate (trials/N/replicates/K): A - B on the same patients",
    )
    p.add_argument(
        "--blend",
        nargs=2,
        metavar=("A", "B"),
        help="the folders of two searches of one split: what the mean of their winners' "
        "predictions is worth, weighted by what validation says",
    )
    p.add_argument(
        "--space",
        metavar="FILE",
        help="search space whose front ends are tested for what they show of the device (default: "
        "search_spaces/default.yaml)",
    )
    p.add_argument("--out", metavar="DIR", help="folder for audit.json and audit.html")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="where models:/… is looked up (default: $MLFLOW_TRACKING_URI, else results/mlflow.db)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Print the audit; with `--out` the last line is the path of the page."""
    args = parser().parse(argv)
    given = {"--winner": [args.winner or ""], "--compare": args.compare, "--blend": args.blend}
    for flag, folders in given.items():
        for folder in folders or []:
            _check_local(flag, folder)
    out = None
    if args.compare is not None:
        found = _compare(args)
    elif args.blend is not None:
        found = _blend(args)
    elif args.tracking_uri and not (args.winner or "").startswith("models:/"):
        raise UserError("--tracking-uri says where --winner models:/NAME@ALIAS is: give both")
    else:
        out = None if args.out is None else folder_to_write("--out", args.out)
        found = _audit(args)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    if args.json:
        print(text)
    else:
        from resp_tune.audit.audit_console import show, show_blend, show_comparison

        if args.compare is not None:
            show_comparison(found)
        elif args.blend is not None:
            show_blend(found)
        else:
            show(found)
    if out is not None:
        page = _write(out, text, found)
        if not args.json:
            print(page)


def _check_local(flag: str, text: str) -> None:
    """Refuse a URI: a test-set access is recorded in the search's folder, under its lock."""
    if not text.startswith("models:/") and is_uri(text):
        uri = ObjectPath.parse(flag, text)
        raise UserError(
            f"{flag} '{uri}' must be a local folder: copy the search's folder first (aws s3 "
            "cp --recursive, gsutil cp -r, azcopy) and give the copy's"
        )


def _check_alone(mode: str, args: Namespace) -> None:
    """Refuse flags that a mode which reads saved predictions does not need."""
    for name in ("data", "winner", "space", "out", "tracking_uri", "blend"):
        flag = f"--{name.replace('_', '-')}"
        if getattr(args, name) and flag != mode:
            raise UserError(f"{mode} reads saved predictions and needs no {flag}: drop it")


def _blend(args: Namespace) -> dict[str, Any]:
    _check_alone("--blend", args)
    from resp_tune.evaluation.blend import blend

    a, b = args.blend
    return {"a": a, "b": b, **blend(a, b)}


def _compare(args: Namespace) -> dict[str, Any]:
    _check_alone("--compare", args)
    from resp_tune.evaluation.compare import compare, read_predictions

    a, b = args.compare
    return {"a": a, "b": b, **compare(read_predictions(a), read_predictions(b))}


def _mel_front_ends(space: str) -> list[FrontEnd]:
    """Return the log-mel front ends of a space; of one with encoders alone, the default space's."""
    from resp_tune.config import FrontEnd
    from resp_tune.space.search_space import load_space

    found = [f for f in load_space(space).front_ends() if isinstance(f, FrontEnd)]
    return found or _mel_front_ends("default.yaml")


def _audit(args: Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    from resp_tune.audit.audit import audit
    from resp_tune.cluster.resources import this_machine
    from resp_tune.harness.preflight_checks import check_cache_folder
    from resp_tune.harness.validate import open_dataset

    check_cache_folder()
    front_ends = _mel_front_ends(args.space or "default.yaml")
    dataset, workers = open_dataset(args.data), this_machine().cpus
    winner, tracking_uri, model = args.winner, args.tracking_uri, {}
    if winner is not None:
        from resp_tune.audit.model import audit_model, rebuild_datamodule
        from resp_tune.evaluation.open_winner import open_winner

        bundle = open_winner(winner, tracking_uri)
        datamodule = rebuild_datamodule(bundle, dataset)
        model["model"] = audit_model(
            bundle,
            datamodule,
            workers=workers,
            record=lambda access: _record(winner, tracking_uri, bundle, access),
        )
    found = audit(dataset, front_ends, workers)
    return {**found, **model, "seconds": round(time.perf_counter() - started, 1)}


def _record(
    winner: str, tracking_uri: str | None, bundle: Bundle, access: Mapping[str, Any]
) -> tuple[Mapping[str, Any], object]:
    """Record a test-set access where the winner came from."""
    if not winner.startswith("models:/"):
        from resp_tune.harness.test_access_log import record_test_access as record_in_folder

        return record_in_folder(user_path(winner), bundle, access)
    from resp_tune.tracking.registry import record_test_access
    from resp_tune.tracking.uri import resolve_uri

    return record_test_access(winner, resolve_uri(tracking_uri, Path("results").absolute()), access)


def _write(folder: Path, text: str, found: dict[str, Any]) -> Path:
    from resp_tune.audit.sections import audit_sections
    from resp_tune.common.paths import write_atomically
    from resp_tune.reporting.page_templates import render_page

    page = render_page("audit", "audit.html", **found, sections=audit_sections(found))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.json", (text + "\n").encode())
    write_atomically(folder / "audit.html", page.encode())
    return folder / "audit.html"


if __name__ == "__main__":
    sys.exit(run(main))

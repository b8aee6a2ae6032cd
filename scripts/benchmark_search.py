"""Benchmark the search itself: how good is what it chooses, for how much time?

    python scripts/benchmark_search.py record --data ICBHI --trials 300 --epochs 10 --folds 4
    python scripts/benchmark_search.py compare --seeds 30 --budgets 10m,60m
    python scripts/benchmark_search.py folds --data ICBHI --trials 40 --epochs 20

record   trains random configurations to their end on every fold and writes their figures to
         results/search_table.csv.gz; rerun it to continue, or with more --trials to extend it
compare  replays searches on that table in simulated time and writes results/SEARCH.md
folds    runs three real searches, of one fold and of four, and writes results/FOLDS.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from resp_tune.cli import duration, integer, run  # noqa: E402

RESULTS = ROOT / "results"
TABLE = "search_table.csv.gz"
SPACE = "default.yaml"


def record(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Record the trials that the table lacks."""
    from benchmarks.search_table.record import RecordOptions
    from benchmarks.search_table.record import record as record_trials

    names = ("data", "space", "task", "trials", "epochs", "folds", "seed", "split_seed", "workers")
    options = RecordOptions(**{name: getattr(args, name) for name in names})
    path = args.out / TABLE
    count = record_trials(options, path, _command(argv))
    print(f"{count} trials recorded in {path}")


def compare(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Compare all settings on the table."""
    from benchmarks.search_table.compare import compare as compare_settings
    from benchmarks.search_table.compare import page, write

    path = args.table or args.out / TABLE
    given = (path, args.space, args.metric, args.seeds, args.budgets, args.jobs)
    table, results = compare_settings(*given)
    text = page(table, results, _facts(argv), args.seeds)
    write(args.out, text, results)
    print(text)


def folds(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run the searches of one fold and of four."""
    from benchmarks.search_table.fold_costs import page, run_searches, write

    flags = ["--data", args.data, "--trials", str(args.trials), "--epochs", str(args.epochs)]
    flags += ["--space", args.space, "--task", args.task, "--seed", str(args.seed)]
    flags += ["--split-seed", str(args.split_seed), "--gpus", "0"]
    with tempfile.TemporaryDirectory(prefix="resp_tune_folds_") as folder:
        costs = run_searches(args.storage or Path(folder), flags)
    text = page(costs, _facts(argv))
    write(args.out, text)
    print(text)


def _facts(argv: Sequence[str]) -> dict[str, str]:
    from benchmarks.tables import hardware, versions

    return {
        "command": f"`{shlex.join(_command(argv))}`",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }


def _command(argv: Sequence[str]) -> list[str]:
    """Return the command without this machine's folders."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in argv]
    return ["python", "scripts/benchmark_search.py", *shown]


def _budgets(text: str) -> tuple[float, ...]:
    return tuple(duration(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(dest="command", required=True)
    whole = partial(integer, least=1)

    def add(name: str, function: Callable[..., None]) -> argparse.ArgumentParser:
        own = commands.add_parser(name)
        own.set_defaults(function=function)
        own.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="of the results")
        own.add_argument("--space", default=SPACE, metavar="FILE", help="search space")
        return own

    def add_training(own: argparse.ArgumentParser, trials: int, epochs: int, split: int) -> None:
        own.add_argument("--data", required=True, metavar="DIR", help="folder of recordings")
        own.add_argument("--task", default="diagnosis", metavar="NAME")
        own.add_argument("--trials", type=whole, default=trials, metavar="N")
        own.add_argument("--epochs", type=whole, default=epochs, metavar="E", help="of each fold")
        own.add_argument("--seed", type=integer, default=0, metavar="N")
        own.add_argument("--split-seed", type=integer, default=split, metavar="N")

    recording = add("record", record)
    add_training(recording, 300, 10, 100)
    recording.add_argument(
        "--folds", type=partial(integer, least=1, most=4), default=4, metavar="K"
    )
    recording.add_argument("--workers", type=whole, default=2, metavar="N", help="trials at once")
    comparing = add("compare", compare)
    comparing.add_argument("--table", type=Path, metavar="FILE", help=f"default: OUT/{TABLE}")
    comparing.add_argument("--metric", default="macro_f1", metavar="NAME")
    comparing.add_argument("--seeds", type=whole, default=30, metavar="N")
    comparing.add_argument(
        "--budgets", type=_budgets, default=(600.0, 3600.0), metavar="10m,60m",
        help="simulated time of a search",
    )  # fmt: skip
    comparing.add_argument("--jobs", type=whole, default=2, metavar="N", help="processes")
    costs = add("folds", folds)
    add_training(costs, 40, 20, 0)
    costs.add_argument("--storage", type=Path, metavar="DIR", help="keeps the searches there")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    args.function(args, given)


if __name__ == "__main__":
    sys.exit(run(main))

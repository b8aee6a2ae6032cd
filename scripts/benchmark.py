"""Measure how fast resp_tune is, beside the notebook and beside what the hardware allows.

    python scripts/benchmark.py                    everything, about 40 minutes on 2 cores
    python scripts/benchmark.py --quick            the same rows on less, under 10 minutes
    python scripts/benchmark.py --out DIR          writes there, nothing in the repository changes
    python scripts/benchmark.py --rows a_over_b,c_over_d     some rows; written only with --out
    python scripts/benchmark.py --profile          what an epoch of training spends its time in
    python scripts/benchmark.py --compile          what torch.compile would cost and save

Recordings are synthetic and made in a temporary folder (TMPDIR). Nothing else should be running.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.sizes import FULL, QUICK  # noqa: E402
from benchmarks.tables import TARGETS, Row, hardware, put_section, section, table, versions  # noqa: E402

from resp_tune.cli import run  # noqa: E402
from resp_tune.common.paths import write_atomically  # noqa: E402
from resp_tune.errors import RespTuneError, RunError, UserError, nearest  # noqa: E402

log = logging.getLogger("resp_tune")

RESULTS = ROOT / "results"


def groups() -> dict[tuple[str, ...], Callable[[Any], Any]]:
    """What measures which rows, imported late: `--help` needs no torch."""
    from benchmarks import epochs, filling, memory, overheads, searches, slots

    return {
        epochs.ROWS: epochs.measure,
        filling.ROWS: filling.measure,
        searches.ROWS: searches.measure,
        memory.ROWS: memory.measure,
        overheads.OVERHEAD_ROWS: overheads.overheads,
        overheads.GROWTH_ROWS: overheads.growth,
        slots.ROWS: slots.measure,
    }


def measure_all(place: Any, wanted: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """The wanted rows in the order of the table, and the figures behind them."""
    rows: dict[str, Row] = {}
    details: dict[str, Any] = {"sizes": vars(place.sizes)}
    for keys, measure in groups().items():
        chosen = [key for key in keys if key in wanted]
        if not chosen:
            continue
        log.info(f"measuring {', '.join(chosen)}")
        try:
            found = measure(place)
        except UserError:
            raise
        except Exception as error:  # the other rows are still worth having
            if not isinstance(error, RespTuneError):
                traceback.print_exc()
            cause = f"could not be measured: {error}"
            rows |= {key: Row(key, None, " ".join(cause.split())) for key in chosen}
            continue
        rows |= {key: Row(key, found.values[key], found.how[key]) for key in chosen}
        details |= found.details
    return [rows[key] for key in TARGETS if key in rows], details


def show_profile(place: Any) -> None:
    """Print what row C's epochs spend their time in."""
    from benchmarks import ours

    config = ours.fast(place.config(epochs=2))
    store, _ = place.fill(place.folder / "store", config.front_end)
    print(ours.profile(config, store, place.tables, place.machine.cpus))


def write(folder: Path, result: dict[str, Any], text: str) -> None:
    """`benchmark.json`, and the section of `BENCHMARKS.md`, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "BENCHMARKS.md"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    write_atomically(page, put_section(before, text).encode())
    data = json.dumps(result, indent=1, allow_nan=False)
    write_atomically(folder / "benchmark.json", (data + "\n").encode())


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="fewer recordings, epochs, trials, slots")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: results/)")
    p.add_argument("--rows", metavar="A,B", help=f"some of: {', '.join(TARGETS)}")
    p.add_argument("--profile", action="store_true", help="print the costliest operations, no rows")
    p.add_argument("--compile", action="store_true", help="print what compiling would save")
    return p


def rows_of(given: str | None) -> list[str]:
    """The rows that `--rows` names, all without it; an unknown one raises `UserError`."""
    if given is None:
        return list(TARGETS)
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in TARGETS:
            raise UserError(f"--rows '{name}': {nearest(name, TARGETS)}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write it."""
    args = parser().parse_args(argv)
    wanted = rows_of(args.rows)
    from benchmarks.workplace import Workplace

    sizes = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory(prefix="resp_tune_benchmark_") as folder:
        place = Workplace(Path(folder), sizes)
        if args.profile:
            show_profile(place)
            return
        if args.compile:
            from benchmarks import compiling

            print(compiling.measure(place))
            return
        rows, details = measure_all(place, wanted)
    print(table(rows, quick=args.quick))
    stack = versions()
    facts = {
        "command": " ".join(
            ["python scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(),
    }
    said = {
        **facts,
        "versions": ", ".join(f"{name} {number}" for name, number in stack.items()),
        "data": f"{sizes.recordings} synthetic recordings of 20 s, 44.1 kHz, 16, 24 and 32 bit",
    }
    result = {**facts, "versions": stack, "quick": args.quick}
    result |= {row.key: row.value for row in rows} | {"details": details}
    # A part of the rows never takes the place of all of them.
    target = args.out or (RESULTS if args.rows is None else None)
    if target is not None:
        write(target, result, section(rows, said, quick=args.quick))
    if failed := [row.key for row in rows if row.value is None]:
        raise RunError(f"could not be measured: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run(main))

"""Compare the speed of resp_tune with the notebook and with the limits of the hardware.

    python scripts/benchmark.py                    everything, about 40 minutes on 2 cores
    python scripts/benchmark.py --quick            the same rows, smaller counts, under 10 minutes
    python scripts/benchmark.py --out DIR          write to DIR instead of results/
    python scripts/benchmark.py --rows a_over_b,c_over_d     some rows; written only with --out
    python scripts/benchmark.py --profile          the costliest operations of a training epoch
    python scripts/benchmark.py --compile          what torch.compile would cost and save

The recordings are synthetic and made in a temporary folder (TMPDIR). Run nothing else meanwhile.
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
    """Return the functions that measure the rows; imported late, as `--help` needs no torch."""
    from benchmarks import epochs, filling, memory, overheads, searches, slots

    return {
        epochs.ROWS: epochs.measure,
        filling.ROWS: filling.measure,
        searches.ROWS: searches.measure,
        memory.ROWS: memory.measure,
        overheads.OVERHEAD_ROWS: overheads.measure_overheads,
        overheads.GROWTH_ROWS: overheads.measure_growth,
        slots.ROWS: slots.measure,
    }


def measure_all(workspace: Any, wanted: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """Return the wanted rows in the order of the table, and the raw figures behind them."""
    rows: dict[str, Row] = {}
    details: dict[str, Any] = {"sizes": vars(workspace.sizes)}
    for keys, measure in groups().items():
        chosen = [key for key in keys if key in wanted]
        if not chosen:
            continue
        log.info(f"measuring {', '.join(chosen)}")
        try:
            measurement = measure(workspace)
        except UserError:
            raise
        except Exception as error:  # measure the other rows all the same
            if not isinstance(error, RespTuneError):
                traceback.print_exc()
            cause = f"could not be measured: {error}"
            rows |= {key: Row(key, None, " ".join(cause.split())) for key in chosen}
            continue
        rows |= {key: Row(key, measurement.values[key], measurement.method[key]) for key in chosen}
        details |= measurement.details
    return [rows[key] for key in TARGETS if key in rows], details


def show_profile(workspace: Any) -> None:
    """Print the costliest operations of row C's epochs."""
    from benchmarks.resp_tune_training import fast, profile

    config = fast(workspace.config(epochs=2))
    store, _ = workspace.fill_cache(workspace.folder / "store", config.front_end)
    print(profile(config, store, workspace.tables, workspace.machine.cpus))


def write(folder: Path, result: dict[str, Any], page_section: str) -> None:
    """Write `benchmark.json`, and the section of `BENCHMARKS.md`, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "BENCHMARKS.md"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    write_atomically(page, put_section(before, page_section).encode())
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "benchmark.json", text.encode())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="fewer recordings, epochs, trials, slots")
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results (default: results/)"
    )
    p.add_argument("--rows", metavar="A,B", help=f"rows to measure: {', '.join(TARGETS)}")
    p.add_argument("--profile", action="store_true", help="only print the costliest operations")
    p.add_argument("--compile", action="store_true", help="only print what torch.compile saves")
    return p


def parse_rows(text: str | None) -> list[str]:
    """Return the rows named in `--rows`, all for None; raise `UserError` for an unknown one."""
    if text is None:
        return list(TARGETS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TARGETS:
            raise UserError(f"--rows '{name}': {nearest(name, TARGETS)}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print and write the table."""
    args = parser().parse_args(argv)
    wanted = parse_rows(args.rows)
    from benchmarks.workspace import Workspace

    sizes = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory(prefix="resp_tune_benchmark_") as folder:
        workspace = Workspace(Path(folder), sizes)
        if args.profile:
            show_profile(workspace)
            return
        if args.compile:
            from benchmarks import compiling

            print(compiling.measure(workspace))
            return
        rows, details = measure_all(workspace, wanted)
    print(table(rows, quick=args.quick))
    stack = versions()
    facts = {
        "command": " ".join(
            ["python scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(),
    }
    page_facts = {
        **facts,
        "versions": ", ".join(f"{name} {number}" for name, number in stack.items()),
        "data": f"{sizes.recordings} synthetic recordings of 20 s, 44.1 kHz; 16, 24 and 32 bits",
    }
    result = {**facts, "versions": stack, "quick": args.quick}
    result |= {row.key: row.value for row in rows} | {"details": details}
    # Some rows never replace the figures of all of them.
    target = args.out or (RESULTS if args.rows is None else None)
    if target is not None:
        write(target, result, section(rows, page_facts, quick=args.quick))
    if failed := [row.key for row in rows if row.value is None]:
        raise RunError(f"could not be measured: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run(main))

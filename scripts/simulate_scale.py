"""Predict a search on 1, 8, 64 and 512 GPUs, and which of its parts saturates first.

    python scripts/simulate_scale.py               everything, under 20 minutes on 2 cores
    python scripts/simulate_scale.py --quick       the same with smaller counts, under 2 minutes
    python scripts/simulate_scale.py --out DIR     write to DIR instead of results/
    python scripts/simulate_scale.py --measured results/scale.json --epoch-seconds 4 --epochs 30
                                                   simulate these trials from measured costs

The script first measures each part on this machine: the driver's loop (Ray, Optuna, MLflow), with
as many logical GPUs as memory allows and trials that train nothing; the study as it grows; MLflow
on sqlite and on a server with PostgreSQL; the storage. From these costs it then simulates thousands
of trials, and compares the simulation with the measured searches. Run nothing else meanwhile.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from resp_tune.cli import Parser, run  # noqa: E402
from resp_tune.common.paths import folder_to_write, write_atomically  # noqa: E402
from resp_tune.errors import UserError  # noqa: E402

RESULTS = ROOT / "results"
PAGE, DATA = "SCALE.md", "scale.json"
POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"


def parser() -> Parser:
    """Return the parser of the command line."""
    p = Parser("simulate_scale", __doc__ or "")
    p.prog = "python scripts/simulate_scale.py"
    p.add_argument("--quick", action="store_true", help="fewer slots, trials and writes")
    p.add_argument("--out", metavar="DIR", help="folder of the results (default: results/)")
    p.add_argument(
        "--postgres",
        metavar="URI",
        default=POSTGRES,
        help="PostgreSQL server for a temporary database of MLflow's server; none: skip the server",
    )
    p.add_argument(
        "--storage",
        metavar="DIR",
        help="folder for checkpoints, to measure a cluster's storage (default: TMPDIR)",
    )
    p.add_argument("--measured", metavar="FILE", help="simulate from the costs in this scale.json")
    p.add_argument(
        "--epoch-seconds",
        type=float,
        metavar="X",
        help="simulate only trials with epochs of X s (default: four usual lengths)",
    )
    p.add_argument("--epochs", type=int, default=20, metavar="N", help="epochs of such a trial")
    p.add_argument(
        "--pruned", type=float, metavar="P", default=0.5, help="share of trials that ASHA stops"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    return p


def check_flags(args: Namespace) -> None:
    """Raise `UserError` for a value out of range or a folder that cannot be written."""
    if args.epoch_seconds is not None and not 0.001 <= args.epoch_seconds < 1e6:
        raise UserError(f"--epoch-seconds {args.epoch_seconds:g}: give seconds from 0.001 up")
    if not 1 <= args.epochs <= 10_000:
        raise UserError(f"--epochs {args.epochs}: give 1 to 10000")
    if not 0 <= args.pruned <= 1:
        raise UserError(f"--pruned {args.pruned:g}: give a share from 0 to 1")
    for flag in ("out", "storage"):
        if (folder := getattr(args, flag)) is not None:
            setattr(args, flag, folder_to_write(f"--{flag}", folder))


def read_measured(path: Path) -> tuple[Any, bool, str]:
    """Return the `Measurements` in `path`, whether they are quick, and their origin in one line.

    Raise `UserError` for a file that cannot be read or is no scale.json.
    """
    from pydantic import TypeAdapter, ValidationError
    from scaling.measurements import Measurements

    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        measured = TypeAdapter(Measurements).validate_python(result["measured"])
        origin = ", ".join(result[name] for name in ("command", "date", "hardware", "load"))
        return measured, bool(result["quick"]), result.get("measured_by", origin)
    except OSError as error:
        raise UserError(f"--measured '{path}' cannot be read ({error.strerror})") from error
    except (ValueError, ValidationError, KeyError, TypeError) as error:
        raise UserError(
            f"--measured '{path}' is no scale.json of this version: run "
            "python scripts/simulate_scale.py --out DIR and give DIR/scale.json"
        ) from error


def measure_here(args: Namespace) -> Any:
    """Return the `Measurements` of this machine."""
    from scaling.measurements import measure
    from scaling.sizes import FULL, QUICK

    postgres = None if args.postgres == "none" else args.postgres
    # Signals raise, so that the server and its database are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="resp_tune_scale_") as folder:
        storage = args.storage or Path(folder)
        storage.mkdir(parents=True, exist_ok=True)
        return measure(Path(folder), storage, QUICK if args.quick else FULL, postgres)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, simulate, and print and write the tables."""
    args = parser().parse(argv)
    check_flags(args)
    load_before, origin = os.getloadavg()[0], ""
    if args.measured:
        measured, quick, origin = read_measured(Path(args.measured))
    else:
        measured, quick = measure_here(args), args.quick
    from benchmarks.tables import hardware, versions
    from rich.console import Console
    from scaling.scenarios import SCENARIOS, Scenario, check_simulation, simulate_scenario
    from scaling.sizes import FULL, QUICK
    from scaling.tables import measured_tables, section, simulated_tables

    sizes = QUICK if quick else FULL
    custom = args.epoch_seconds is not None
    scenarios = (
        [Scenario(args.epoch_seconds, args.epochs, args.pruned)]
        if custom
        else [dataclasses.replace(s, pruned=args.pruned) for s in SCENARIOS]
    )
    checks = [check_simulation(measured, loop, sizes, args.seed) for loop in measured.loops]
    results = [simulate_scenario(measured, scenario, sizes, args.seed) for scenario in scenarios]
    tables = [*measured_tables(measured), *simulated_tables(checks, results)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table.rich())
    # Only a whole run on this machine replaces the figures in results/.
    target = args.out or (None if custom or args.measured else RESULTS)
    if target is None:
        return
    facts: dict[str, Any] = {
        "command": " ".join(
            ["python scripts/simulate_scale.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(),
        "load": f"load average {load_before:.1f} at the start",
    }
    if origin:
        facts["measured_by"] = origin
    stack = versions()
    page_facts = {name.replace("_", " "): fact for name, fact in facts.items()}
    page_facts["versions"] = ", ".join(f"{name} {number}" for name, number in stack.items())
    data = {**facts, "versions": stack, "quick": quick, "seed": args.seed}
    data["measured"] = dataclasses.asdict(measured)
    data["checked"] = [dataclasses.asdict(check) for check in checks]
    data["simulated"] = [dataclasses.asdict(result) for result in results]
    write(target, data, section(tables, page_facts, quick=quick))


def write(folder: Path, data: Mapping[str, Any], page_section: str) -> None:
    """Write `scale.json`, and the section of `SCALE.md`, to `folder`."""
    from benchmarks.tables import put_section

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE
    before = page.read_text(encoding="utf-8") if page.exists() else "# Scale\n"
    write_atomically(page, put_section(before, page_section).encode())
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / DATA, text.encode())


if __name__ == "__main__":
    sys.exit(run(main))

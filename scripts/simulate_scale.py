"""What to expect of a search on 1, 8, 64 and 512 GPUs, and what saturates first.

    python scripts/simulate_scale.py               everything, under 20 minutes on 2 cores
    python scripts/simulate_scale.py --quick       the same on less, under 2 minutes
    python scripts/simulate_scale.py --out DIR     writes there, nothing in the repository changes
    python scripts/simulate_scale.py --measured results/scale.json --epoch-seconds 4 --epochs 30
                                                   simulates that; what was measured stands

First each part is really run on this machine: the driver's loop (Ray, Optuna, MLflow) with as many
logical GPUs as memory allows and trials that learn nothing, the study as it grows, MLflow on sqlite
and on a server with PostgreSQL, the storage. Then thousands of trials are simulated from these
costs, and the simulation is held to the real runs. Nothing else should be running.
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
    """The flags."""
    p = Parser("simulate_scale", __doc__ or "")
    p.prog = "python scripts/simulate_scale.py"
    p.add_argument("--quick", action="store_true", help="fewer slots, trials and writes")
    p.add_argument("--out", metavar="DIR", help="where to write, instead of results/")
    p.add_argument(
        "--postgres",
        metavar="URI",
        default=POSTGRES,
        help="where a database may be made for MLflow's server, and removed again; none: without",
    )
    p.add_argument(
        "--storage",
        metavar="DIR",
        help="where checkpoints are written, to measure a cluster's own; else in TMPDIR",
    )
    p.add_argument(
        "--measured", metavar="FILE", help="a scale.json: simulate from what it has measured"
    )
    p.add_argument(
        "--epoch-seconds", type=float, metavar="X", help="simulate epochs of X s, not the usual"
    )
    p.add_argument("--epochs", type=int, default=20, metavar="N", help="of them a trial")
    p.add_argument(
        "--pruned", type=float, metavar="P", default=0.5, help="share of trials that ASHA stops"
    )
    p.add_argument("--seed", type=int, default=0, help="of the simulated trials")
    return p


def check_flags(args: Namespace) -> None:
    """Raise `UserError` for what cannot be simulated, or where nothing can be written."""
    if args.epoch_seconds is not None and not 0.001 <= args.epoch_seconds < 1e6:
        raise UserError(f"--epoch-seconds {args.epoch_seconds:g}: give seconds from 0.001 up")
    if not 1 <= args.epochs <= 10_000:
        raise UserError(f"--epochs {args.epochs}: give 1 to 10000")
    if not 0 <= args.pruned <= 1:
        raise UserError(f"--pruned {args.pruned:g}: give a share from 0 to 1")
    for flag in ("out", "storage"):
        if (given := getattr(args, flag)) is not None:
            setattr(args, flag, folder_to_write(f"--{flag}", given))


def read_measured(path: Path) -> tuple[Any, bool, str]:
    """`Measured`, whether the run was a quick one, and where and when it was.

    `UserError` where the file has none.
    """
    from pydantic import TypeAdapter, ValidationError
    from scaling.measured import Measured

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        measured = TypeAdapter(Measured).validate_python(found["measured"])
        here = ", ".join(found[name] for name in ("command", "date", "hardware", "load"))
        return measured, bool(found["quick"]), found.get("measured_by", here)
    except OSError as error:
        raise UserError(f"--measured '{path}' cannot be read ({error.strerror})") from error
    except (ValueError, ValidationError, KeyError, TypeError) as error:
        raise UserError(
            f"--measured '{path}' is no scale.json of this version: run "
            "python scripts/simulate_scale.py --out DIR and give DIR/scale.json"
        ) from error


def measure_here(args: Namespace) -> Any:
    """Every part, on this machine."""
    from scaling.measured import measure
    from scaling.sizes import FULL, QUICK

    postgres = None if args.postgres == "none" else args.postgres
    # The server and its database are taken away however this ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="resp_tune_scale_") as folder:
        storage = args.storage or Path(folder)
        storage.mkdir(parents=True, exist_ok=True)
        return measure(Path(folder), storage, QUICK if args.quick else FULL, postgres)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, simulate, print the tables, write them."""
    args = parser().parse(argv)
    check_flags(args)
    before, earlier = os.getloadavg()[0], ""
    if args.measured:
        measured, quick, earlier = read_measured(Path(args.measured))
    else:
        measured, quick = measure_here(args), args.quick
    from benchmarks.tables import hardware, versions
    from rich.console import Console
    from scaling.scenarios import SCENARIOS, Scenario, check, scale
    from scaling.sizes import FULL, QUICK
    from scaling.tables import measured_tables, section, simulated_tables

    sizes = QUICK if quick else FULL
    own = args.epoch_seconds is not None
    scenarios = (
        [Scenario(args.epoch_seconds, args.epochs, args.pruned)]
        if own
        else [dataclasses.replace(s, pruned=args.pruned) for s in SCENARIOS]
    )
    checks = [check(measured, loop, sizes, args.seed) for loop in measured.loops]
    scaled = [scale(measured, scenario, sizes, args.seed) for scenario in scenarios]
    tables = [*measured_tables(measured), *simulated_tables(checks, scaled)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table.rich())
    # A part of it, or another machine's figures, never take the place of a whole run.
    target = args.out or (None if own or args.measured else RESULTS)
    if target is None:
        return
    facts: dict[str, Any] = {
        "command": " ".join(
            ["python scripts/simulate_scale.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(),
        "load": f"{before:.1f} of other work on these cores when it began",
    }
    if earlier:
        facts["measured_by"] = earlier
    stack = versions()
    said = {name.replace("_", " "): fact for name, fact in facts.items()}
    said |= {"versions": ", ".join(f"{name} {number}" for name, number in stack.items())}
    result = {**facts, "versions": stack, "quick": quick, "seed": args.seed}
    result["measured"] = dataclasses.asdict(measured)
    result["checked"] = [dataclasses.asdict(one) for one in checks]
    result["simulated"] = [dataclasses.asdict(one) for one in scaled]
    write(target, result, section(tables, said, quick=quick))


def write(folder: Path, result: Mapping[str, Any], text: str) -> None:
    """`scale.json`, and the section of `SCALE.md`, in `folder`."""
    from benchmarks.tables import put_section

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE
    before = page.read_text(encoding="utf-8") if page.exists() else "# Scale\n"
    write_atomically(page, put_section(before, text).encode())
    data = json.dumps(result, indent=1, allow_nan=False)
    write_atomically(folder / DATA, (data + "\n").encode())


if __name__ == "__main__":
    sys.exit(run(main))

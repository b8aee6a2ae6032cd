"""Measure what a search over heads on a frozen encoder costs in CPU seconds.

    python scripts/benchmark_encoder.py --data ICBHI              writes results/ENCODERS.md
    python scripts/benchmark_encoder.py --data ICBHI --out DIR    writes DIR/ENCODERS.md

Fills the feature caches of a space in an empty folder, then runs trials of its baseline on four
folds, in one thread: a linear head and an MLP, of one speed and of all, first in a process that has
seen nothing and then again, the linear head with C from 1e-2 to 1e-5. CPU seconds count all threads
of this process; run nothing else meanwhile.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resp_tune.cli import Parser, run  # noqa: E402
from resp_tune.common.paths import folder_to_write, write_atomically  # noqa: E402
from resp_tune.common.text import one_line, plural  # noqa: E402
from resp_tune.config import EncoderFrontEnd, TrialConfig  # noqa: E402
from resp_tune.errors import UserError  # noqa: E402

log = logging.getLogger("resp_tune")

PAGE = "ENCODERS.md"
FOLDS, EPOCHS, REPEATS = 4, 20, 5
CACHE_LIMIT_BYTES = 10**13  # nothing is evicted
LIMITS = {"fill": 360.0, "linear": 0.5, "mlp": 10.0}  # CPU s, of the issue


@dataclass(frozen=True)
class Row:
    """A line of the page: what was measured, its CPU and wall seconds, and the limit on CPU."""

    what: str
    cpu: float
    wall: float
    limit: float | None = None


def parser() -> Parser:
    """Return the parser of the command line."""
    p = Parser("benchmark_encoder", __doc__ or "")
    p.prog = "python scripts/benchmark_encoder.py"
    p.add_argument("--data", metavar="PATH", help="folder with the recordings")
    p.add_argument(
        "--space",
        metavar="FILE",
        default="encoder.yaml",
        help="search space with an encoder (default: search_spaces/encoder.yaml)",
    )
    p.add_argument("--out", metavar="DIR", help=f"folder of {PAGE} (default: results/)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the page and print its path."""
    args = parser().parse(argv)
    from resp_tune.cluster.resources import this_machine
    from resp_tune.data.split_spec import SplitSpec
    from resp_tune.data.tasks import get_task
    from resp_tune.encoders.encoder_file import open_encoders
    from resp_tune.features.cache import FeatureCaches
    from resp_tune.harness.validate import open_dataset
    from resp_tune.space.search_space import load_space
    from resp_tune.training.datamodule import make_datamodule

    out = folder_to_write("--out", args.out) if args.out else ROOT / "results"
    space = load_space(args.space)
    front_ends = [f for f in space.front_ends() if isinstance(f, EncoderFrontEnd)]
    if not front_ends:
        raise UserError(f"--space '{args.space}' has no encoder: give one that has")
    encoders, cpus = open_encoders(front_ends), this_machine().cpus
    datamodule = make_datamodule(
        open_dataset(args.data), get_task("diagnosis"), SplitSpec(folds=FOLDS)
    )
    stems = tuple(r.stem for r in datamodule.dataset.recordings)
    sources = tuple(datamodule.audio_sources(stems, cpus))
    with tempfile.TemporaryDirectory(prefix="resp_tune-encoder-") as scratch:
        caches = FeatureCaches(Path(scratch), sources, CACHE_LIMIT_BYTES, encoders=encoders)
        what = f"filling {plural(len(front_ends), 'cache')} of {plural(len(stems), 'recording')}"
        rows = [_timed(what, lambda: caches.fill(front_ends, workers=cpus), LIMITS["fill"])]
        full = dataclasses.replace(caches, filled=frozenset(front_ends))
        tables = [_over(stems, fold, datamodule) for fold in datamodule.folds()]
        rows += _trials(space.baseline(), tables, full, cpus)
    text = "\n".join(_page(rows, encoders[0].line, datamodule.dataset.root.name, cpus)) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PAGE, text.encode())
    print(out / PAGE)


def _over(stems: Sequence[str], fold: Any, datamodule: Any) -> Any:
    """Return `fold` over caches of all recordings `stems`."""
    labels = (
        datamodule.clip_labels(dict.fromkeys(t.stem.tolist()), stems)
        for t in (fold.train, fold.validation)
    )
    return type(fold)(*labels, fold.classes)


def _trials(baseline: TrialConfig, tables: Sequence[Any], caches: Any, cpus: int) -> Iterator[Row]:
    """Yield the rows of trials: the first with its features, and the median of the next ones."""
    import torch

    from resp_tune.training.loop import Training

    torch.set_num_threads(1)  # as a trial has in a search with a slot for each core

    def trial(config: TrialConfig) -> None:
        folds = [fold.load(caches, config, workers=cpus) for fold in tables]
        training = Training(config, folds, order="sequence")
        while not training.done:
            training.run_epoch()

    for speed in ("1", "1+2+4"):
        for head in ("linear", "mlp"):
            values = {"encoder_speed": speed, "head": head, "epochs": EPOCHS}
            config = baseline.replace(values)
            what = f"{head} trial, speed {speed}, layer {config.encoder_layer}"
            first = " (pools the clips)" * (head == "linear")
            yield _timed(f"first {what}{first}", lambda config=config: trial(config))
            # Other values of its own fields, as in a search.
            others = [
                config.replace({"head_c": 10.0 ** -(2 + 0.75 * n), "seed": n})
                for n in range(REPEATS)
            ]
            again = [_timed(what, lambda c=c: trial(c)) for c in others]
            yield Row(
                f"next {what}, median of {REPEATS}",
                statistics.median(row.cpu for row in again),
                statistics.median(row.wall for row in again),
                LIMITS[head],
            )


def _timed(what: str, work: Callable[[], object], limit: float | None = None) -> Row:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    row = Row(what, time.process_time() - cpu, time.perf_counter() - wall, limit)
    log.info(f"{row.what}: {row.cpu:.2f} s of CPU, {row.wall:.2f} s")
    return row


def _page(rows: Sequence[Row], encoder: str, data: str, cpus: int) -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Heads on a frozen encoder: CPU seconds"
    yield ""
    yield f"Written by `python scripts/benchmark_encoder.py`. Encoder: {one_line(encoder)}. Data:"
    yield f"{one_line(data)}, {FOLDS} folds, {plural(EPOCHS, 'epoch')}; {plural(cpus, 'core')}."
    yield "CPU seconds count all threads (a trial has one); wall seconds depend on other work."
    yield ""
    yield "| what | CPU s | wall s | limit, CPU s |"
    yield "|---|---|---|---|"
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:g}"
        yield f"| {row.what} | {row.cpu:.2f} | {row.wall:.2f} | {limit} |"


if __name__ == "__main__":
    sys.exit(run(main))

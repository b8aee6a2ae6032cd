"""Rows A to D: an epoch of the notebook's loop, of resp_tune, and of training from memory."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from benchmarks import notebook
from benchmarks.resp_tune_training import MATRIX_SIZE, fast, train, train_in_memory
from benchmarks.rounds import Figures, IteratorProcess, ratio, take_turns
from benchmarks.workspace import Measurement, Workspace

TRIAL_EPOCHS = 20  # of the notebook's trials
ROWS = ("a_over_b", "a_over_c", "total_a_over_c", "c_over_d", "d_peak_share")


def measure(workspace: Workspace) -> Measurement:
    """Measure epochs of A, B, C and D in turn, each with training and validation."""
    rounds = workspace.sizes.rounds
    config = workspace.config(epochs=rounds + 1)
    chosen = fast(config)
    store, fill_seconds = workspace.fill_cache(workspace.folder / "store", config.front_end)
    training_items, validation_items = workspace.items()
    classes, threads = len(workspace.tables.classes), workspace.machine.cpus
    with contextlib.ExitStack() as stack:
        plain = (training_items, validation_items, classes, rounds + 1, notebook.Settings())
        rest = (store, workspace.tables, threads)
        processes = {
            "A": IteratorProcess(notebook.train, *plain),
            "B": IteratorProcess(train, config, *rest),
            "C": IteratorProcess(train, chosen, *rest),
            "D": IteratorProcess(train_in_memory, chosen, *rest),
        }
        for process in processes.values():
            stack.enter_context(process)
        figures = take_turns({name: p.next for name, p in processes.items()}, rounds)
    settings = {"micro_batch": chosen.micro_batch, "precision": chosen.precision}
    items = (len(training_items), len(validation_items))
    return compare(figures, fill_seconds, items, settings)


def compare(
    figures: dict[str, list[Figures]],
    fill_seconds: float,
    items: tuple[int, int],
    chosen: dict[str, Any],
) -> Measurement:
    """Return the rows from the figures of each round.

    `items`: number of training and of validation items. `chosen`: settings of C and D.
    """
    a, b, c, d = ([f["seconds"] for f in figures[name]] for name in "ABCD")
    notebook_seconds = TRIAL_EPOCHS * statistics.median(a)
    cached_seconds = fill_seconds + TRIAL_EPOCHS * statistics.median(c)
    shares, flops = _peak_shares(figures["D"]), figures["D"][0]["flops"]
    epoch = (
        f"an epoch of {items[0]} training and {items[1]} validation items, "
        f"median of {len(a)} rounds"
    )
    medians = {name: statistics.median(s) for name, s in zip("ABCD", (a, b, c, d), strict=True)}
    text = {name: f"{name} {seconds:.2f} s" for name, seconds in medians.items()}
    peaks = ", ".join(f"{share:.0%} of the {name} peak" for name, share in shares.items())
    return Measurement(
        {
            "a_over_b": ratio(a, b),
            "a_over_c": ratio(a, c),
            "total_a_over_c": notebook_seconds / cached_seconds,
            "c_over_d": ratio(c, d),
            "d_peak_share": shares["float32"],
        },
        {
            "a_over_b": f"{epoch}: {text['A']}, {text['B']}",
            "a_over_c": f"{epoch}: {text['A']}, {text['C']} ({chosen['precision']})",
            "total_a_over_c": f"{TRIAL_EPOCHS} × the median epoch, for C plus {fill_seconds:.1f} s "
            f"to fill the cache: {notebook_seconds:.0f} s, {cached_seconds:.0f} s",
            "c_over_d": f"{epoch}: {text['C']}, {text['D']}",
            "d_peak_share": f"torch's flop counter on D's epoch, {flops / 1e9:.0f} GFLOP, "
            f"against a matrix product of size {MATRIX_SIZE} in the same process: {peaks}",
        },
        {
            "epochs": figures,
            "fill_seconds": fill_seconds,
            "median_seconds": medians,
            "d_peak_shares": shares,
            "chosen": chosen,
        },
    )


def _peak_shares(rounds: list[Figures]) -> dict[str, float]:
    """Return the FLOP/s of D's epoch over those of a matrix product, by dtype."""
    peaks = [key for key in rounds[0] if key.startswith("peak_")]
    return {
        key.removeprefix("peak_"): statistics.median(
            r["flops"] / r["seconds"] / r[key] for r in rounds
        )
        for key in peaks
    }

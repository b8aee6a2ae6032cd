"""Rows A to D: an epoch of the notebook's loop, of resp_tune, and of training alone."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from benchmarks import notebook, ours
from benchmarks.rounds import Figures, Runner, ratio, take_turns
from benchmarks.workplace import Findings, Workplace

TRIAL_EPOCHS = 20  # of the notebook's run
ROWS = ("a_over_b", "a_over_c", "total_a_over_c", "c_over_d", "d_peak_share")


def measure(place: Workplace) -> Findings:
    """Epochs of A, B, C and D in turn; training and validation in each."""
    rounds = place.sizes.rounds
    config = place.config(epochs=rounds + 1)
    chosen = ours.fast(config)
    store, fill_seconds = place.fill(place.folder / "store", config.front_end)
    train, validation = place.items()
    classes, threads = len(place.tables.classes), place.machine.cpus
    with contextlib.ExitStack() as stack:
        plain = (train, validation, classes, rounds + 1, notebook.Settings())
        rows = {
            "A": Runner(notebook.train, *plain),
            "B": Runner(ours.train, config, store, place.tables, threads),
            "C": Runner(ours.train, chosen, store, place.tables, threads),
            "D": Runner(ours.train_in_memory, chosen, store, place.tables, threads),
        }
        for runner in rows.values():
            stack.enter_context(runner)
        taken = take_turns({name: runner.next for name, runner in rows.items()}, rounds)
    named = {"micro_batch": chosen.micro_batch, "precision": chosen.precision}
    return compare(taken, fill_seconds, (len(train), len(validation)), named)


def compare(
    taken: dict[str, list[Figures]],
    fill_seconds: float,
    items: tuple[int, int],
    chosen: dict[str, Any],
) -> Findings:
    """The rows from the figures of each round."""
    a, b, c, d = ([figures["seconds"] for figures in taken[name]] for name in "ABCD")
    plain, cached = TRIAL_EPOCHS * statistics.median(a), TRIAL_EPOCHS * statistics.median(c)
    shares, flops = _peak_shares(taken["D"]), taken["D"][0]["flops"]
    of = (
        f"an epoch of {items[0]} training and {items[1]} validation items, median of {len(a)} turns"
    )
    seconds = {name: statistics.median(s) for name, s in zip("ABCD", (a, b, c, d), strict=True)}
    listed = {name: f"{name} {value:.2f} s" for name, value in seconds.items()}
    arithmetic = ", ".join(f"{share:.0%} of {name}'s peak" for name, share in shares.items())
    return Findings(
        {
            "a_over_b": ratio(a, b),
            "a_over_c": ratio(a, c),
            "total_a_over_c": plain / (fill_seconds + cached),
            "c_over_d": ratio(c, d),
            "d_peak_share": shares["float32"],
        },
        {
            "a_over_b": f"{of}: {listed['A']}, {listed['B']}",
            "a_over_c": f"{of}: {listed['A']}, {listed['C']} ({chosen['precision']})",
            "total_a_over_c": f"{TRIAL_EPOCHS} × the median epoch, C's with {fill_seconds:.1f} s "
            f"for a fresh cache: {plain:.0f} s, {fill_seconds + cached:.0f} s",
            "c_over_d": f"{of}: {listed['C']}, {listed['D']}",
            "d_peak_share": f"torch's flop counter on D's epoch, {flops / 1e9:.0f} GFLOP, "
            f"against a matrix product of {ours.MATRIX} in the same process: {arithmetic}",
        },
        {
            "epochs": taken,
            "fill_seconds": fill_seconds,
            "median_seconds": seconds,
            "d_peak_shares": shares,
            "chosen": chosen,
        },
    )


def _peak_shares(rounds: list[Figures]) -> dict[str, float]:
    """FLOP/s of D's epoch over those of a matrix product, for each precision that was measured."""
    peaks = [key for key in rounds[0] if key.startswith("peak_")]
    return {
        key.removeprefix("peak_"): statistics.median(
            r["flops"] / r["seconds"] / r[key] for r in rounds
        )
        for key in peaks
    }

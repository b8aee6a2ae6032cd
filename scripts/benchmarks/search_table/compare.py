"""Compare settings of a search over many seeds, and write what came of it."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.search_table.replay import MAX_SHARE, Choice, best_unseen, replay_seeds
from benchmarks.search_table.sampling import Grid
from benchmarks.search_table.settings import (
    OTHERS,
    SCHEDULERS,
    SLOW_SEEDS,
    SLOW_TRIALS,
    TODAY,
    Setting,
    grid,
)
from benchmarks.search_table.table import SearchTable, make_table, read_frame
from benchmarks.search_table.tools import quiet
from resp_tune.common import choices
from resp_tune.common.paths import write_atomically
from resp_tune.errors import RunError
from resp_tune.space.search_space import SearchSpace, load_space
from resp_tune.training.metrics import METRICS


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its standard error; NaN where nothing was measured."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of the finite values."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return cls(math.nan, math.nan)
        error = np.std(finite, ddof=1) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
        return cls(float(np.mean(finite)), float(error))

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        error = "" if math.isnan(self.error) else f" ± {self.error:.3f}"
        return f"{self.mean:.3f}{error}"


@dataclass(frozen=True)
class Result:
    """What a setting gave with one budget, over its seeds; `nothing` had finished in some."""

    setting: Setting
    budget: float
    unseen: Spread
    others: Spread
    price: Spread
    trials: float
    nothing: int

    @classmethod
    def of(cls, setting: Setting, budget: float, found: Sequence[Choice | None]) -> Result:
        """Return the result of the choices of all seeds."""
        made = [choice for choice in found if choice is not None]
        return cls(
            setting,
            budget,
            Spread.of([c.unseen for c in made]),
            Spread.of([c.others for c in made]),
            Spread.of([c.price for c in made]),
            float(np.mean([c.trials for c in made])) if made else 0.0,
            len(found) - len(made),
        )

    def row(self) -> dict[str, Any]:
        """Return a flat row."""
        spreads = {"unseen": self.unseen, "other_folds": self.others, "price": self.price}
        figures = {
            f"{name}{suffix}": value
            for name, spread in spreads.items()
            for suffix, value in (("", spread.mean), ("_se", spread.error))
        }
        own = self.setting
        named = {
            "tool": own.tool,
            "sampler": own.sampler,
            "scheduler": own.scheduler,
            "folds": own.folds,
            "fold_rule": own.fold_rule,
            "reshuffle": own.reshuffle,
        }
        return {
            "budget_seconds": self.budget,
            **named,
            **figures,
            "trials": self.trials,
            "seeds_without_choice": self.nothing,
        }


def compare(
    path: Path, space: str, metric: str, seeds: int, budgets: Sequence[float], jobs: int
) -> tuple[SearchTable, list[Result]]:
    """Return the table and the results of all settings, in order of settings and budgets."""
    table = make_table(read_frame(path), metric)
    settings = grid(table.folds)
    work = [
        (setting, range(start, min(start + 5, setting.seeds(seeds))))
        for setting in settings
        for start in range(0, setting.seeds(seeds), 5)
    ]
    work.sort(key=lambda entry: entry[0].sampler != "gp")  # the longest first
    shared = (table, space, tuple(budgets))
    if jobs == 1:
        _join(*shared)
        parts = [_replay(each) for each in work]
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, spawn, _join, shared) as pool:
            parts = list(pool.map(_replay, work))
    found: dict[Setting, list[list[Choice | None]]] = {s: [[] for _ in budgets] for s in settings}
    for (setting, _), part in zip(work, parts, strict=True):
        for own, new in zip(found[setting], part, strict=True):
            own += new
    return table, [
        Result.of(setting, budget, choices_of)
        for setting, of_budgets in found.items()
        for budget, choices_of in zip(budgets, of_budgets, strict=True)
    ]


_shared: tuple[SearchTable, tuple[SearchSpace, Grid], tuple[float, ...]] | None = None


def _join(table: SearchTable, space_name: str, budgets: tuple[float, ...]) -> None:
    global _shared  # the way in which a pool's processes get what they share
    import torch

    torch.set_num_threads(1)
    quiet()
    space = load_space(space_name)
    _shared = table, (space, Grid(space, table.params)), budgets


def _replay(work: tuple[Setting, range]) -> list[list[Choice | None]]:
    if _shared is None:
        raise RuntimeError("runs in a process of `compare` only")
    table, parts, budgets = _shared
    return replay_seeds(table, parts, work[0], work[1], budgets)


def best_of(results: Sequence[Result], metric: str) -> Result:
    """Return the result of resp_tune with the best unseen score of the longest budget."""
    longest = max(result.budget for result in results)
    own = [
        r
        for r in results
        if r.budget == longest and r.setting.tool == "resp_tune" and math.isfinite(r.unseen.mean)
    ]
    if not own:
        raise RunError(f"no search finished a trial within {longest:g} simulated seconds")
    sign = 1.0 if METRICS[metric].mode == "max" else -1.0
    return max(own, key=lambda r: sign * r.unseen.mean)


def page(
    table: SearchTable, results: Sequence[Result], facts: Mapping[str, str], seeds: int
) -> str:
    """Return the Markdown page of a comparison."""
    budgets = sorted({result.budget for result in results})
    best = best_of(results, table.metric)
    sign = 1.0 if METRICS[table.metric].mode == "max" else -1.0
    unseen = best_unseen(table)
    today = next(r for r in results if r.setting == TODAY and r.budget == best.budget)
    absent = [name for name in SCHEDULERS if name not in choices.SCHEDULERS]
    lines = [
        "# The search itself, compared",
        "",
        *(f"{name}: {text}  " for name, text in facts.items()),
        "",
        f"{len(table.params)} recorded trials × {table.epochs} epochs × {table.folds} folds, "
        f"{table.metric}; {np.nanmean(table.seconds):.2f} s an epoch, two trials at a time; "
        f"{seeds} seeds (gp: {min(seeds, SLOW_SEEDS)} seeds, {SLOW_TRIALS} trials at most).",
        "",
        "Each search is replayed on the recorded trials in simulated time. A sampler's suggestion "
        "is replaced by the nearest recorded configuration that was not tried yet, and the sampler "
        "learns from that. `unseen`: the score of the chosen configuration on the test side of the "
        "recording's split, whose patients are in no fold, mean over the networks of all folds. "
        "`other folds`: on recorded folds that the search did not use. `price`: how much more the "
        "choice leads the mean configuration in the search's own score than on unseen patients. "
        "With reshuffling a trial has its own of the recorded folds, and training the best four "
        "again on common folds is part of the time. A search tries at most "
        f"{MAX_SHARE:.0%} of the table, since what is left then is not what was suggested. "
        "± is the standard error over seeds, of one "
        "recording: the split of the patients is the same in all.",
        "",
        f"Mean configuration: {np.nanmean(unseen):.3f} unseen; the best of the table, which only "
        f"the unseen patients tell: {sign * np.nanmax(sign * unseen):.3f}.",
        "",
        f"**Best after {_minutes(best.budget)}:** {_describe(best.setting)}: unseen {best.unseen}, "
        f"price {best.price}. One fold with ASHA and TPE, as before: unseen {today.unseen}, price "
        f"{today.price}; the price is {best.price.mean / today.price.mean:.2f} of that.",
        "",
    ]
    if absent:
        lines += [
            f"{' and '.join(absent)}: Optuna's pruners of these names, with its defaults.",
            "",
        ]
    head = ["search", *(f"{what}, {_minutes(b)}" for b in budgets for what in _WHAT)]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    by_setting: dict[Setting, list[Result]] = {}
    for result in results:
        by_setting.setdefault(result.setting, []).append(result)
    ranked = sorted(by_setting.items(), key=lambda pair: _rank(pair[1], sign))
    for setting, own in ranked:
        cells = [
            cell
            for r in sorted(own, key=lambda r: r.budget)
            for cell in (str(r.unseen), str(r.others), str(r.price), f"{r.trials:.0f}")
        ]
        name = _describe(setting)
        shown = f"**{name}**" if setting in (*OTHERS, TODAY, best.setting) else name
        lines.append(f"| {' | '.join([shown, *cells])} |")
    return "\n".join(lines) + "\n"


_WHAT = ("unseen", "other folds", "price", "trials")


def _rank(results: Sequence[Result], sign: float) -> float:
    last = max(results, key=lambda r: r.budget).unseen.mean
    return math.inf if math.isnan(last) else -sign * last


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min"


def _describe(setting: Setting) -> str:
    if setting.tool != "resp_tune":
        return setting.tool
    parts = [setting.sampler, setting.scheduler, f"{setting.folds} fold{'s' * (setting.folds > 1)}"]
    if setting.folds > 1:
        parts.append(setting.fold_rule)
    return ", ".join(parts + ["reshuffle"] * setting.reshuffle)


def write(folder: Path, text: str, results: Sequence[Result]) -> None:
    """Write `SEARCH.md`, and every figure of it as `search_compare.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pd.DataFrame([result.row() for result in results]).to_json(orient="records")
    write_atomically(folder / "SEARCH.md", text.encode())
    content = json.dumps(json.loads(rows), indent=1) + "\n"
    write_atomically(folder / "search_compare.json", content.encode())

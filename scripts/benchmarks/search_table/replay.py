"""Replay a search on a table of trials, in simulated time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.search_table.sampling import Grid
from benchmarks.search_table.settings import RAY, Setting
from benchmarks.search_table.table import Floats, SearchTable
from benchmarks.search_table.tools import Tool, make_tool
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.replicates import MAX_CANDIDATES
from resp_tune.study.schedulers import Steps
from resp_tune.training.metrics import METRICS

# Of the table's points that a search may try: when most were tried, the nearest one that is left is
# not what the sampler has asked for, and every search ends with the same choice.
MAX_SHARE = 0.5
WORKERS = 2  # trials at once, as many as when the table was recorded


@dataclass(frozen=True)
class Ended:
    """A trial that ended at `time`, in seconds: its point, its last score and how it ended."""

    time: float
    point: int
    score: float
    finished: bool


@dataclass(frozen=True)
class Choice:
    """What a search had chosen when its budget was spent.

    `unseen`: the score on patients in no fold. `others`: on the folds that it did not use, NaN
    without any. `price`: how much more the choice leads the mean of the table in the search's own
    score than on unseen patients. `trials`: how many had ended.
    """

    point: int
    unseen: float
    others: float
    price: float
    trials: int


@dataclass
class _Running:
    """A trial that is being trained: the end of each step, and its rows."""

    point: int
    handle: Any
    rows: list[dict[str, float]]
    ends: Floats
    diverged: bool
    at: list[int] = field(default_factory=list)  # the steps that are still to be reached


@dataclass
class Replay:
    """One search with a setting and a seed on a table; `parts`: its space and points."""

    table: SearchTable
    parts: tuple[SearchSpace, Grid]
    setting: Setting
    seed: int
    ended: list[Ended] = field(default_factory=list)

    @property
    def common(self) -> list[int]:
        """Return the folds that every trial has, which differ by seed."""
        return [(self.seed + n) % self.table.folds for n in range(self.setting.folds)]

    def folds_of(self, trial: int) -> list[int]:
        """Return the folds of a trial; with reshuffling, its own draw from the recorded ones."""
        if not self.setting.reshuffle:
            return self.common
        draw = np.random.default_rng([self.seed, trial])
        return draw.permutation(self.table.folds)[: self.setting.folds].tolist()

    def run(self, budget: float) -> None:
        """Run trials for `budget` simulated seconds; what runs then does not count."""
        together = self.setting.fold_rule == "together"
        steps = Steps(self.table.epochs, 1 if together else self.setting.folds)
        tool = make_tool(self.setting, self.table.metric, steps, self.seed, self.parts)
        order, heap = count(), list[tuple[float, int, _Running]]()
        started = 0
        limit = math.ceil(MAX_SHARE * len(self.table.params))
        limit = min(limit, self.setting.max_trials or limit)

        def start(now: float) -> None:
            nonlocal started
            if now >= budget or started == limit:
                return
            handle = tool.ask()
            trial = self._trial(tool, handle, self.folds_of(started), now)
            started += 1
            heapq.heappush(heap, (trial.ends[trial.at[0] - 1], next(order), trial))

        for _ in range(WORKERS):
            start(0.0)
        while heap and heap[0][0] <= budget:
            now, _, trial = heapq.heappop(heap)
            if self._advance(tool, trial, now):
                heapq.heappush(heap, (trial.ends[trial.at[0] - 1], next(order), trial))
            else:
                start(now)

    def _trial(self, tool: Tool, handle: Any, folds: list[int], now: float) -> _Running:
        point, table = tool.sampler.last, self.table
        values, seconds = table.values[point, folds], table.seconds[point, folds]
        if tool.steps.folds == 1:  # of all folds together, if there are several
            means, taken = values.mean(axis=0), seconds.sum(axis=0)
        else:
            before = np.concatenate([[0.0], values[:-1, -1].cumsum()])
            divided = np.arange(1, len(folds) + 1)[:, None]
            means, taken = ((values + before[:, None]) / divided).ravel(), seconds.ravel()
        usable = np.isfinite(means) & np.isfinite(taken)
        end = len(means) if usable.all() else int(usable.argmin()) + 1
        name = f"val_{table.metric}"
        rows = [{"epoch": n, name: v} for n, v in enumerate(means[:end].tolist(), 1)]
        ends = now + np.nan_to_num(taken[:end]).cumsum()
        at = [step for step in tool.decisions if step < end]
        return _Running(point, handle, rows, ends, not usable.all(), [*at, end])

    def _advance(self, tool: Tool, trial: _Running, now: float) -> bool:
        """Let a trial reach its next step; return whether it continues from there."""
        step = trial.at.pop(0)
        rows, finished = trial.rows[:step], not trial.at and not trial.diverged
        if trial.at:
            if not tool.stops(trial.handle, rows):
                return True
            tool.end(trial.handle, "pruned", rows)
        else:
            tool.end(trial.handle, "diverged" if trial.diverged else "finished", rows)
        score = rows[-1][f"val_{self.table.metric}"]
        self.ended.append(Ended(now, trial.point, score, finished))
        return False

    def choose(self, budget: float) -> Choice | None:
        """Return the choice after `budget` seconds, None if nothing had finished.

        The best finished trial; Ray Tune takes the best last result of all trials. With
        reshuffling, the best four trials are trained again on common folds, as replicates are, and
        these have to end within the budget too.
        """
        table, sign = self.table, 1.0 if METRICS[self.table.metric].mode == "max" else -1.0
        limit = budget - self._selection_seconds()
        every = [e for e in self.ended if e.time <= limit]
        rivals = [e for e in every if e.finished or self.setting.tool == RAY]
        rivals = [e for e in rivals if np.isfinite(e.score)]
        if not rivals:
            return None
        rivals.sort(key=lambda e: -sign * e.score)
        final = table.values[:, self.common, -1].mean(axis=1)  # NaN after a divergence
        if self.setting.reshuffle:
            first = [e for e in rivals[:MAX_CANDIDATES] if np.isfinite(final[e.point])] or rivals[
                :1
            ]
            best = max(first, key=lambda e: sign * final[e.point])
            score = float(final[best.point])
        else:
            best = rivals[0]
            score = best.score
        unseen = table.unseen.mean(axis=1)
        gain = score - np.nanmean(final)
        kept = unseen[best.point] - np.nanmean(unseen)
        unused = [fold for fold in range(table.folds) if fold not in self.common]
        others = table.values[best.point, unused, -1].mean() if unused else np.nan
        price = sign * float(gain - kept)
        return Choice(best.point, float(unseen[best.point]), float(others), price, len(every))

    def _selection_seconds(self) -> float:
        """Return what training the candidates on common folds takes, with reshuffling."""
        if not self.setting.reshuffle:
            return 0.0
        whole = np.nanmean(self.table.seconds) * self.table.epochs * self.setting.folds
        return float(whole * MAX_CANDIDATES / WORKERS)


def replay_seeds(
    table: SearchTable,
    parts: tuple[SearchSpace, Grid],
    setting: Setting,
    seeds: Sequence[int],
    budgets: Sequence[float],
) -> list[list[Choice | None]]:
    """Return the choices `[budgets][seeds]` of one setting."""
    found = []
    for seed in seeds:
        search = Replay(table, parts, setting, seed)
        search.run(max(budgets))
        found.append([search.choose(budget) for budget in budgets])
    return [list(of_budget) for of_budget in zip(*found, strict=True)]


def best_unseen(table: SearchTable) -> npt.NDArray[np.float64]:
    """Return the unseen score of each point, the best of which no search can beat."""
    return table.unseen.mean(axis=1)

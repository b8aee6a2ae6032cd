"""The settings that are compared: a search of resp_tune, or what others use out of the box."""

from __future__ import annotations

from dataclasses import dataclass

from resp_tune.common import choices

# Rules that resp_tune does not have are Optuna's pruners, with its defaults.
SCHEDULERS = tuple(dict.fromkeys(("none", "asha", "hyperband", "median", *choices.SCHEDULERS)))
FOLD_RULES = (*choices.FOLD_RULES, "together")
OPTUNA, RAY, RANDOM = "plain Optuna", "plain Ray Tune", "random search"
# A suggestion of Optuna's Gaussian process takes 0.1 s and more: it gets fewer trials and seeds.
SLOW_SAMPLER, SLOW_TRIALS, SLOW_SEEDS = "gp", 60, 10


@dataclass(frozen=True)
class Setting:
    """How a search is run. `fold_rule` is `together` if all folds are trained together.

    `tool`: whose searcher and scheduler it is; those of others have one fold and no other choice.
    """

    sampler: str = "tpe"
    scheduler: str = "asha"
    folds: int = 1
    fold_rule: str = "none"
    reshuffle: bool = False
    tool: str = "resp_tune"

    @property
    def max_trials(self) -> int | None:
        """Return the most trials of a search."""
        return SLOW_TRIALS if self.sampler == SLOW_SAMPLER else None

    def seeds(self, count: int) -> int:
        """Return how many seeds it is run with where others have `count`."""
        return min(count, SLOW_SEEDS) if self.sampler == SLOW_SAMPLER else count


TODAY = Setting()  # of resp_tune before there were folds in sequence
OTHERS = (
    Setting(tool=OPTUNA, scheduler="median"),
    Setting(tool=RAY),
    Setting(tool=RANDOM, sampler="random", scheduler="none"),
)


def grid(max_folds: int, folds: tuple[int, ...] = (1, 3, 4)) -> list[Setting]:
    """Return the settings that are compared, those of other tools first.

    `tpe` and `random` have all that resp_tune accepts: schedulers × folds × fold rules ×
    reshuffling. Optuna's pruners and the other samplers have the default rule between folds alone,
    and other samplers no reshuffling, or the comparison would take hours. Drawing all recorded
    folds anew changes nothing and is left out.
    """
    found = dict.fromkeys(OTHERS)
    for sampler in choices.SAMPLERS:
        whole = sampler in ("tpe", "random")
        for scheduler in SCHEDULERS:
            if sampler == SLOW_SAMPLER and scheduler not in ("none", "asha"):
                continue
            for count in (n for n in folds if n <= max_folds):
                found |= dict.fromkeys(_of_folds(sampler, scheduler, count, max_folds, whole))
    return list(found)


def _of_folds(
    sampler: str, scheduler: str, folds: int, max_folds: int, whole: bool
) -> list[Setting]:
    every = whole and scheduler in ("none", "asha")
    rules = ("none",) if folds == 1 else FOLD_RULES if every else ("forgiving",)
    return [
        Setting(sampler, scheduler, folds, rule, reshuffle)
        for rule in rules
        for reshuffle in ((False, True) if whole and folds < max_folds else (False,))
        if not (reshuffle and rule == "wilcoxon")  # refused: it pairs common folds
    ]

"""How much the full and the quick benchmark measure."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS, RATE = 20, 44_100  # of every recording


@dataclass(frozen=True)
class Sizes:
    """Counts. `growth`: numbers of trials, early and late, at which a trial is timed."""

    quick: bool
    recordings: int  # four fifths are for training
    rounds: int  # of A, B, C and D
    fills: int
    search_trials: int
    search_epochs: int
    search_repeats: int  # of F, before and after E
    instant_trials: int
    reported_epochs: int  # per trial of `reporting_trials`
    reporting_trials: int
    growth: tuple[int, int]
    most_slots: int
    trials_a_slot: int
    epochs_a_slot_trial: int  # of 1 s


# The notebook has 736 + 184 recordings.
FULL = Sizes(
    quick=False,
    recordings=920,
    rounds=5,
    fills=5,
    search_trials=8,
    search_epochs=5,
    search_repeats=2,
    instant_trials=100,
    reported_epochs=50,
    reporting_trials=10,
    growth=(100, 1000),
    most_slots=64,
    trials_a_slot=16,
    epochs_a_slot_trial=20,
)
# With fewer than two training batches of 128, one of the notebook's two loaders would be idle.
QUICK = Sizes(
    quick=True,
    recordings=320,
    rounds=3,
    fills=3,
    search_trials=4,
    search_epochs=3,
    search_repeats=1,
    instant_trials=40,
    reported_epochs=30,
    reporting_trials=5,
    growth=(40, 200),
    most_slots=16,
    trials_a_slot=3,
    epochs_a_slot_trial=10,
)

"""How much the full and the quick run measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts. A pair `(a, b)` means `a` trials plus `b` more for each slot."""

    quick: bool
    slots: tuple[int, ...]  # reduced to what fits into memory
    short_trials: tuple[int, int]  # of one instant epoch
    long_trials: tuple[int, int]  # of `long_epochs` instant epochs
    long_epochs: int
    paced_trials: int  # per slot, of `paced_epochs` epochs of 1 s
    paced_epochs: int
    study: tuple[int, ...]  # numbers of trials in the study at which its costs are measured
    study_trials: int  # measured at each of them
    tracked_trials: int
    tracked_batches: int
    writes: int  # per checkpoint size and number of writers
    simulated_trials: int  # at least; and at least `simulated_a_slot` per slot
    simulated_a_slot: int = 6


FULL = Sizes(
    quick=False,
    slots=(4, 16, 64),
    short_trials=(300, 8),
    long_trials=(10, 2),
    long_epochs=20,
    paced_trials=4,
    paced_epochs=8,
    study=(100, 1000, 5000),
    study_trials=20,
    tracked_trials=60,
    tracked_batches=40,
    writes=64,
    simulated_trials=4000,
)
QUICK = Sizes(
    quick=True,
    slots=(8,),
    short_trials=(60, 4),
    long_trials=(6, 1),
    long_epochs=15,
    paced_trials=2,
    paced_epochs=4,
    study=(100, 500),
    study_trials=10,
    tracked_trials=20,
    tracked_batches=20,
    writes=24,
    simulated_trials=2000,
    simulated_a_slot=3,
)

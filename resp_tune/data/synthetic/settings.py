"""What a synthetic set is made from; the standard library only, so that commands start fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resp_tune.errors import UserError

# Part of a cached set's key: raise it whenever the same settings would give other files.
GENERATOR_VERSION = 2

MAX_RECORDINGS = 10_000
MIN_SECONDS, MAX_SECONDS = 1.0, 120.0

Confound = Literal["none", "icbhi"]
Prevalence = Literal["balanced", "icbhi"]


@dataclass(frozen=True)
class SynthSettings:
    """Everything that a synthetic set's bytes depend on; a bad value raises `UserError`.

    `confound` none: the device says nothing about the diagnosis. icbhi: devices and ages follow
    the real data set's table. `prevalence` balanced: six diagnoses, equally many recordings each.
    icbhi: all eight with the real imbalance.
    """

    recordings: int = 240
    seconds: float = 10.0
    seed: int = 0
    confound: Confound = "none"
    prevalence: Prevalence = "balanced"

    def __post_init__(self) -> None:
        if self.confound not in ("none", "icbhi"):
            raise UserError(f"confound '{self.confound}' is not one of none, icbhi")
        if self.prevalence not in ("balanced", "icbhi"):
            raise UserError(f"prevalence '{self.prevalence}' is not one of balanced, icbhi")
        if self.recordings < self.least_recordings:
            raise UserError(
                f"recordings {self.recordings} are too few for the {self.least_recordings} patients"
                f" that prevalence '{self.prevalence}' needs: give {self.least_recordings} or more"
            )
        if self.recordings > MAX_RECORDINGS:
            raise UserError(f"recordings {self.recordings}: at most {MAX_RECORDINGS}")
        if not (math.isfinite(self.seconds) and MIN_SECONDS <= self.seconds <= MAX_SECONDS):
            raise UserError(
                f"seconds {self.seconds:g} is outside {MIN_SECONDS:g} to {MAX_SECONDS:g}"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed {self.seed} is outside 0 to 2^63 - 1")

    @property
    def least_recordings(self) -> int:
        """One recording for each of the fewest patients that a set has.

        That is 5 in each of six classes; the real imbalance adds LRTI's two and one with Asthma.
        """
        return 30 if self.prevalence == "balanced" else 33

    @property
    def flags(self) -> str:
        """The command-line flags that give these settings."""
        return (
            f"--recordings {self.recordings} --seconds {self.seconds:g} --seed {self.seed}"
            f" --confound {self.confound} --prevalence {self.prevalence}"
        )

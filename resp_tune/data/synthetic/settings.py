"""The settings of a synthetic data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resp_tune.config import bounded, check_fields, setting
from resp_tune.errors import UserError

# Part of a cached set's key: raise it whenever the same settings would give other files.
GENERATOR_VERSION = 2


@dataclass(frozen=True)
class SynthSettings:
    """Everything that the bytes of a synthetic set depend on; a bad value raises `UserError`."""

    recordings: int = bounded(
        240,
        1,
        10_000,
        "files to make, at least 30: 5 patients in each of 6 classes; from 108 on a patient has 3",
        metavar="N",
    )
    seconds: float = bounded(10.0, 1.0, 120.0, "length of each, 1 to 120", metavar="S")
    seed: int = bounded(0, 0, 2**63 - 1, "seed of everything that is drawn", metavar="N")
    confound: Literal["none", "icbhi"] = setting(
        "none",
        "none: the stethoscope is independent of the diagnosis; icbhi: stethoscopes and ages depend"
        " on the diagnosis as in the real data, and the audit must find it",
        choices=("none", "icbhi"),
    )
    prevalence: Literal["balanced", "icbhi"] = setting(
        "balanced",
        "balanced: six diagnoses, equally frequent; icbhi: all eight with the real imbalance",
        choices=("balanced", "icbhi"),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        # 5 patients in each of six classes; the real imbalance adds two of LRTI, one of Asthma.
        least = 30 if self.prevalence == "balanced" else 33
        if self.recordings < least:
            raise UserError(
                f"recordings {self.recordings} are too few for the {least} patients"
                f" that prevalence '{self.prevalence}' needs: give {least} or more"
            )

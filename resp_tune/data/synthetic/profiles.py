"""The sounds and ages of each diagnosis, and the counts of the real data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Range = tuple[float, float]


class Real(NamedTuple):
    """What the real data set has of a diagnosis: patients, their ages, recordings by device."""

    patients: int
    ages: Range  # years
    devices: dict[str, int]


ICBHI: dict[str, Real] = {
    "COPD": Real(
        64, (45.0, 93.0), {"AKGC417L": 646, "Meditron": 36, "LittC2SE": 51, "Litt3200": 60}
    ),
    "Healthy": Real(26, (0.25, 16.0), {"Meditron": 35}),
    "URTI": Real(14, (0.7, 16.0), {"Meditron": 23}),
    "Bronchiectasis": Real(7, (19.0, 73.0), {"Meditron": 16}),
    "Pneumonia": Real(6, (60.0, 81.0), {"Meditron": 2, "LittC2SE": 35}),
    "Bronchiolitis": Real(6, (0.7, 3.0), {"Meditron": 13}),
    "LRTI": Real(2, (0.6, 3.0), {"Meditron": 2}),
    "Asthma": Real(1, (60.0, 75.0), {"LittC2SE": 1}),
}
SIX = tuple(ICBHI)[:6]  # those with enough patients

INFANT: Range = (0.3, 3.0)
CHILD: Range = (4.0, 15.0)
ADULT: Range = (20.0, 55.0)
ELDER: Range = (56.0, 90.0)
ALL_AGES = (INFANT, CHILD, ADULT, ELDER)


@dataclass(frozen=True)
class Profile:
    """The sounds of one diagnosis.

    `crackle`, `wheeze`: probability that a breathing cycle of a patient of medium severity has
    one. `crackles`: how many in such a cycle. `pitch`: Hz, of an adult's wheeze. `breath`: gain of
    the breath noise. `bronchial`: expiration as loud and as bright as over the trachea.
    `voices`: simultaneous wheezes. `ages`: age groups of the patients when nothing is
    confounded.
    """

    crackle: float
    wheeze: float
    texture: Literal["fine", "coarse"] = "coarse"
    crackles: tuple[int, int] = (2, 6)
    pitch: Range = (150.0, 600.0)
    rhonchus: bool = False
    voices: int = 1
    breath: float = 1.0
    bronchial: bool = False
    expiration: float = 1.0
    ages: tuple[Range, ...] = ALL_AGES


# Rates are higher and kinds are purer than in real patients: a small set has to be learnable.
PROFILES: dict[str, Profile] = {
    "COPD": Profile(0.35, 0.85, pitch=(170, 330), breath=0.7, expiration=1.25, ages=(ADULT, ELDER)),
    "Healthy": Profile(0.03, 0.01),
    "URTI": Profile(0.05, 0.85, rhonchus=True, pitch=(80, 140)),
    "Bronchiectasis": Profile(0.95, 0.10, crackles=(8, 14), pitch=(200, 450)),
    "Pneumonia": Profile(0.80, 0.04, texture="fine", crackles=(4, 12), bronchial=True),
    "Bronchiolitis": Profile(
        0.35, 0.85, texture="fine", crackles=(4, 8), pitch=(300, 600), ages=(INFANT,)
    ),
    "LRTI": Profile(0.10, 0.15, texture="fine", crackles=(3, 6), ages=(INFANT,)),
    "Asthma": Profile(0.01, 0.85, pitch=(250, 600), voices=2, expiration=1.15),
}

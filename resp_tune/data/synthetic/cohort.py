"""Draw the cohort of a synthetic set: patients, sessions, stethoscopes and recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from resp_tune.data.synthetic.profiles import ICBHI, PROFILES, SIX
from resp_tune.data.synthetic.settings import SynthSettings
from resp_tune.data.synthetic.stethoscopes import DEVICES, Subtype

LOCATIONS = ("Tc", "Al", "Ar", "Pl", "Pr", "Ll", "Lr")
FIRST_PATIENT = 101
MAX_PATIENTS = 894  # numbers stay three digits, as in the real set
MIN_PATIENTS = {**dict.fromkeys(SIX, 5), "LRTI": 2, "Asthma": 1}
ADULT_AGE = 18.0


@dataclass(frozen=True)
class Patient:
    """One synthetic patient, age in years; `known`: whether the demographics are known."""

    number: int
    diagnosis: str
    age: float
    sex: Literal["F", "M"]
    train: bool
    known: bool = True

    @property
    def demographics(self) -> str:
        """Return the line of `demographic_info.txt`: age, sex, BMI (kg/m²), kg, cm."""
        if not self.known:
            return f"{self.number} NA NA NA NA NA"
        # Any plausible value will do; it follows from the patient's number.
        factor = 1 + 0.04 * (self.number % 7 - 3)
        if self.age >= ADULT_AGE:
            return f"{self.number} {self.age:g} {self.sex} {26 * factor:.2f} NA NA"
        weight, height = (3.5 + 2.8 * self.age) * factor, 52 + 20 * self.age**0.62
        return f"{self.number} {self.age:g} {self.sex} NA {weight:.1f} {height:.0f}"


@dataclass(frozen=True)
class RecordingPlan:
    """One file to be made. `session` counts a patient's sessions from 0."""

    patient: Patient
    session: int
    session_name: str
    location: str
    device: str
    subtype: Subtype

    @property
    def mode(self) -> Literal["sc", "mc"]:
        """Return mc if the files of a session are the same breaths from several positions."""
        return DEVICES[self.device].mode

    @property
    def stem(self) -> str:
        """Return the file name without its suffix, as in the real set."""
        parts = (self.patient.number, self.session_name, self.location, self.mode, self.device)
        return "_".join(map(str, parts))


@dataclass(frozen=True)
class Session:
    """`size` recordings of a patient on one occasion; `number` counts from 0."""

    patient: Patient
    number: int
    size: int


def make_cohort(settings: SynthSettings) -> list[RecordingPlan]:
    """Return the plan of every recording, sorted by stem; a pure function of the settings."""
    rng = np.random.default_rng([settings.seed, 1])
    counts = _recordings(settings)
    patients = _patients(settings, counts, rng)
    sessions: list[Session] = []
    for name, count in counts.items():
        own = [patient for patient in patients if patient.diagnosis == name]
        for patient, share in zip(own, _spread(count, len(own)), strict=True):
            sizes = _spread(share, min(9, -(-share // 2)))
            sessions += [Session(patient, number, size) for number, size in enumerate(sizes)]
    plans: list[RecordingPlan] = []
    for session, device in _devices(settings, sessions, rng):
        plans += _recordings_of(session, device, rng)
    return sorted(plans, key=lambda plan: plan.stem)


def patients_of(plans: Sequence[RecordingPlan]) -> list[Patient]:
    """Return the patients of a cohort, sorted by number."""
    return sorted({plan.patient for plan in plans}, key=lambda patient: patient.number)


def _recordings(settings: SynthSettings) -> dict[str, int]:
    """Return the recordings per diagnosis: equal shares of six, or the real ones with a minimum."""
    if settings.prevalence == "balanced":
        return dict(zip(SIX, _spread(settings.recordings, len(SIX)), strict=True))
    real = {name: sum(of.devices.values()) for name, of in ICBHI.items()}
    total = sum(real.values())
    counts = {
        name: max(MIN_PATIENTS[name], round(settings.recordings * n / total))
        for name, n in real.items()
    }
    # The commonest diagnosis pays for minimums and rounding, as far as it can.
    while (excess := sum(counts.values()) - settings.recordings) != 0:
        payer = max(counts, key=lambda name: counts[name] - MIN_PATIENTS[name])
        counts[payer] -= min(excess, counts[payer] - MIN_PATIENTS[payer])
    return counts


def _patients(settings: SynthSettings, counts: Mapping[str, int], rng: Generator) -> list[Patient]:
    numbers: dict[str, int] = {}
    for name, count in counts.items():
        if settings.prevalence == "balanced":
            wanted = min(settings.recordings // (3 * len(SIX)), MAX_PATIENTS // len(SIX))
        else:
            wanted = round(min(settings.recordings, 6500) * ICBHI[name].patients / 920)
        numbers[name] = min(max(MIN_PATIENTS[name], wanted), count)
    order = iter(rng.permutation(sum(numbers.values())).tolist())
    patients: list[Patient] = []
    for name, n in numbers.items():
        for k, age in enumerate(_ages(name, n, settings, rng)):
            sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
            # As in the real set, nothing is known about one patient with COPD.
            known = not (name == "COPD" and k == 0)
            train = k % 5 < 3
            patients.append(Patient(FIRST_PATIENT + next(order), name, age, sex, train, known))
    return patients


def _ages(name: str, n: int, settings: SynthSettings, rng: Generator) -> list[float]:
    """Draw `n` ages; unconfounded ones cycle through the age groups of the diagnosis."""
    groups = (ICBHI[name].ages,) if settings.confound == "icbhi" else PROFILES[name].ages
    start = int(rng.integers(len(groups)))
    drawn = [rng.uniform(*groups[(start + k) % len(groups)]) for k in range(n)]
    return [round(age, 0 if age >= ADULT_AGE else 1) for age in rng.permutation(drawn).tolist()]


def _spread(total: int, parts: int) -> list[int]:
    """Divide `total` into `parts` whole numbers that differ by one at most."""
    return [total // parts + (k < total % parts) for k in range(parts)]


def _devices(
    settings: SynthSettings, sessions: Sequence[Session], rng: Generator
) -> Iterator[tuple[Session, str]]:
    """Choose a stethoscope per session: uniformly, or by the real shares of each diagnosis."""
    shuffled = [sessions[k] for k in rng.permutation(len(sessions)).tolist()]
    if settings.confound == "none":
        yield from _assign(shuffled, dict.fromkeys(DEVICES, 1), rng)
        return
    for name, real in ICBHI.items():
        yield from _assign([s for s in shuffled if s.patient.diagnosis == name], real.devices, rng)


def _assign(
    sessions: Sequence[Session], weights: Mapping[str, int], rng: Generator
) -> Iterator[tuple[Session, str]]:
    """Give each session to the stethoscope furthest behind its share of the recordings."""
    recordings, total = sum(s.size for s in sessions), sum(weights.values())
    names = [str(name) for name in rng.permutation(sorted(weights))]
    owed = {name: recordings * weights[name] / total for name in names}
    for session in sessions:
        device = max(names, key=lambda name: owed[name])
        owed[device] -= session.size
        yield session, device


def _recordings_of(session: Session, device: str, rng: Generator) -> Iterator[RecordingPlan]:
    name = f"{session.number + 1}{'bp'[int(rng.integers(2))]}{int(rng.integers(1, 7))}"
    model = DEVICES[device]
    for location in rng.permutation(LOCATIONS)[: session.size].tolist():
        subtype = model.subtypes[int(rng.choice(len(model.subtypes), p=model.subtype_shares))]
        yield RecordingPlan(session.patient, session.number, name, location, device, subtype)

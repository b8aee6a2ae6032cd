"""Tasks: the classes to tell apart, and the labelled clips of a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from resp_tune.common.text import amount, shorten
from resp_tune.data.annotations import Cycle
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.metadata import DIAGNOSES
from resp_tune.errors import UserError, nearest

ANY_OTHER = "*"


@dataclass(frozen=True)
class Clip:
    """A part of a recording with one label.

    `start` and `end` are seconds, `label` is an index into the classes.
    """

    recording: Recording
    start: float
    end: float
    label: int


@dataclass(frozen=True)
class Task:
    """A set of classes. `groups` are the diagnoses of each class; a cycle task has none.

    A group with `ANY_OTHER` takes every diagnosis that no group names. `unit` is what a clip is: a
    whole recording or one breathing cycle.
    """

    name: str
    classes: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    unit: Literal["recording", "cycle"]
    description: str

    def label(self, diagnosis: str) -> int | None:
        """Return the index of the class with this diagnosis, or None."""
        for wanted in (diagnosis, ANY_OTHER):
            for index, group in enumerate(self.groups):
                if wanted in group:
                    return index
        return None

    @property
    def grouping(self) -> dict[str, list[str]]:
        """Return the diagnoses of each class, as `task_from_classes` takes them."""
        return {name: list(g) for name, g in zip(self.classes, self.groups, strict=False)}


@dataclass(frozen=True)
class Clips:
    """The clips of a task in a data set, sorted by recording and start.

    `dropped` has a line for each group of recordings that the task leaves out.
    """

    task: Task
    clips: tuple[Clip, ...]
    dropped: tuple[str, ...]


_SCORABLE = tuple(name for name in DIAGNOSES if name not in ("Asthma", "LRTI"))
_CHRONIC = ("COPD", "Bronchiectasis", "Asthma")
_ACUTE = ("URTI", "LRTI", "Pneumonia", "Bronchiolitis")

# Classes named after diagnoses are in alphabetical order, others go from healthy to sick. Results
# are stored by class index, so the order never changes.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "diagnosis",
            _SCORABLE,
            tuple((name,) for name in _SCORABLE),
            "recording",
            "the six diagnoses with enough patients for a split by patient",
        ),
        Task(
            "diagnosis-8",
            DIAGNOSES,
            tuple((name,) for name in DIAGNOSES),
            "recording",
            "all eight diagnoses, as in the notebook; two cannot be scored by patient",
        ),
        Task(
            "healthy-sick",
            ("healthy", "sick"),
            (("Healthy",), tuple(name for name in DIAGNOSES if name != "Healthy")),
            "recording",
            "healthy against any diagnosis",
        ),
        Task(
            "chronic",
            ("healthy", "chronic", "non-chronic"),
            (("Healthy",), _CHRONIC, _ACUTE),
            "recording",
            "healthy, chronic (COPD, Bronchiectasis, Asthma) or an infection",
        ),
        Task(
            "copd",
            ("COPD", "other"),
            (("COPD",), tuple(name for name in DIAGNOSES if name != "COPD")),
            "recording",
            "COPD against everyone else",
        ),
        Task(
            "cycles",
            ("normal", "crackle", "wheeze", "both"),
            (),
            "cycle",
            "adventitious sounds of single breathing cycles, the ICBHI challenge's task",
        ),
    )
}


def get_task(name: str) -> Task:
    """Return the built-in task `name`; raise `UserError` for an unknown one."""
    if name not in TASKS:
        raise UserError(f"unknown task '{shorten(name)}': {nearest(name, TASKS)}")
    return TASKS[name]


def make_clips(task: Task, dataset: Dataset) -> Clips:
    """Return the labelled clips of `dataset`; raise `UserError` if the task has none in it."""
    _check_diagnoses(task, dataset)
    clips, dropped = _cycle_clips(dataset) if task.unit == "cycle" else _whole_clips(task, dataset)
    if not clips:
        needs = (
            "annotations (<recording>.txt beside each recording)"
            if task.unit == "cycle"
            else f"diagnoses among {', '.join(name for group in task.groups for name in group)}"
        )
        raise UserError(
            f"'{dataset.root}' has nothing for the task '{task.name}': it needs {needs}"
        )
    return Clips(task, tuple(clips), tuple(dropped))


def _check_diagnoses(task: Task, dataset: Dataset) -> None:
    """Check that each diagnosis of the task is one of ICBHI's or of the data set's own."""
    known = {*DIAGNOSES, *(recording.diagnosis for recording in dataset.recordings)}
    for name in sorted({name for group in task.groups for name in group} - known - {ANY_OTHER}):
        raise UserError(
            f"task '{task.name}': unknown diagnosis '{shorten(name)}', neither one of ICBHI's nor "
            f"in '{dataset.root}': {nearest(name, known)}"
        )


def _whole_clips(task: Task, dataset: Dataset) -> tuple[list[Clip], list[str]]:
    clips: list[Clip] = []
    counts: Counter[str] = Counter()
    patients: dict[str, set[str]] = {}
    for recording in dataset.recordings:
        label = task.label(recording.diagnosis)
        if label is None:
            counts[recording.diagnosis] += 1
            patients.setdefault(recording.diagnosis, set()).add(recording.patient)
        else:
            clips.append(Clip(recording, 0.0, recording.seconds, label))
    dropped = []
    for name, count in sorted(counts.items()):
        reason = (
            "too few patients for every split; the task diagnosis-8 keeps it"
            if task == TASKS["diagnosis"] and name in DIAGNOSES
            else f"the task '{task.name}' has no class for it"
        )
        of_whom = amount(count, "recording", len(patients[name]))
        dropped.append(f"{name}: {of_whom} left out: {reason}")
    return clips, dropped


def _cycle_clips(dataset: Dataset) -> tuple[list[Clip], list[str]]:
    clips = [
        Clip(recording, cycle.start, cycle.end, _cycle_label(cycle))
        for recording in dataset.recordings
        for cycle in recording.cycles
    ]
    without = [recording for recording in dataset.recordings if not recording.cycles]
    if not without:
        return clips, []
    of_whom = amount(len(without), "recording", len({r.patient for r in without}))
    return clips, [f"{of_whom} left out: no annotated cycles, e.g. {without[0].stem}"]


def _cycle_label(cycle: Cycle) -> int:
    return int(cycle.crackle) + 2 * int(cycle.wheeze)

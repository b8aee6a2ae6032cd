"""Tasks: the classes to tell apart, and the labelled clips of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from resp_tune.common.text import amount, plural, shorten
from resp_tune.data.dataset import Dataset, Recording, refusal
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
        indices = {name: index for index, group in enumerate(self.groups) for name in group}
        return indices.get(diagnosis, indices.get(ANY_OTHER))

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


def recording_task(name: str, description: str, groups: Mapping[str, tuple[str, ...]]) -> Task:
    """Return a task that classifies recordings; `groups` has the diagnoses of each class."""
    return Task(name, tuple(groups), tuple(groups.values()), "recording", description)


def _all_but(*left_out: str) -> tuple[str, ...]:
    return tuple(name for name in DIAGNOSES if name not in left_out)


# Classes named after diagnoses are in alphabetical order, others go from healthy to sick. Results
# are stored by class index, so the order never changes.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        recording_task(
            "diagnosis",
            "the six diagnoses with enough patients for a split by patient",
            {name: (name,) for name in _all_but("Asthma", "LRTI")},
        ),
        recording_task(
            "diagnosis-8",
            "all eight diagnoses, as in the notebook; two cannot be scored by patient",
            {name: (name,) for name in DIAGNOSES},
        ),
        recording_task(
            "healthy-sick",
            "healthy against any diagnosis",
            {"healthy": ("Healthy",), "sick": _all_but("Healthy")},
        ),
        recording_task(
            "chronic",
            "healthy, chronic (COPD, Bronchiectasis, Asthma) or an infection",
            {
                "healthy": ("Healthy",),
                "chronic": ("COPD", "Bronchiectasis", "Asthma"),
                "non-chronic": ("URTI", "LRTI", "Pneumonia", "Bronchiolitis"),
            },
        ),
        recording_task(
            "copd", "COPD against everyone else", {"COPD": ("COPD",), "other": _all_but("COPD")}
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
        needs = f"diagnoses among {', '.join(name for group in task.groups for name in group)}"
        if task.unit == "cycle":
            needs = "annotations (<recording>.txt beside each recording)"
        raise refusal(
            f"'{dataset.root}' has nothing for the task '{task.name}': it needs {needs}",
            dataset.problems,
            *(("annotation", ".txt") if task.unit == "cycle" else ()),
        )
    return Clips(task, tuple(clips), tuple(dropped))


def check_enough(clips: Clips, problems: Sequence[str] = ()) -> None:
    """Raise `UserError` for fewer than two patients, or no class with two clips."""
    patients = {clip.recording.person for clip in clips.clips}
    if len(patients) < 2:
        raise refusal(
            f"the task '{clips.task.name}' has the clips of {plural(len(patients), 'patient')} "
            "here, but the no-audio baselines need at least two patients: give more recordings",
            problems,
        )
    if max(Counter(clip.label for clip in clips.clips).values()) < 2:
        raise refusal(
            f"the task '{clips.task.name}' has one clip of each class here, but the no-audio "
            "baselines need a class with at least two clips: give more recordings",
            problems,
        )


def _check_diagnoses(task: Task, dataset: Dataset) -> None:
    """Check that each diagnosis of the task is one of ICBHI's or of the data set's own."""
    known = {*DIAGNOSES, *(recording.diagnosis for recording in dataset.recordings)}
    for name in sorted({name for group in task.groups for name in group} - known - {ANY_OTHER}):
        raise refusal(
            f"task '{task.name}': unknown diagnosis '{shorten(name)}', neither one of ICBHI's nor "
            f"in '{dataset.root}': {nearest(name, known)}",
            dataset.problems,
            "diagnosis",
        )


def _whole_clips(task: Task, dataset: Dataset) -> tuple[list[Clip], list[str]]:
    clips: list[Clip] = []
    left_out: dict[str, list[Recording]] = {}
    for recording in dataset.recordings:
        label = task.label(recording.diagnosis)
        if label is None:
            left_out.setdefault(recording.diagnosis, []).append(recording)
        else:
            clips.append(Clip(recording, 0.0, recording.seconds, label))
    dropped = []
    for name, recordings in sorted(left_out.items()):
        reason = f"the task '{task.name}' has no class for it"
        if task == TASKS["diagnosis"] and name in DIAGNOSES:
            reason = "too few patients for every split; the task diagnosis-8 keeps it"
        dropped.append(f"{name}: {_amount(recordings)} left out: {reason}")
    return clips, dropped


def _cycle_clips(dataset: Dataset) -> tuple[list[Clip], list[str]]:
    clips = [
        Clip(recording, cycle.start, cycle.end, int(cycle.crackle) + 2 * int(cycle.wheeze))
        for recording in dataset.recordings
        for cycle in recording.cycles
    ]
    without = [recording for recording in dataset.recordings if not recording.cycles]
    if not without:
        return clips, []
    return clips, [f"{_amount(without)} left out: no annotated cycles, e.g. {without[0].stem}"]


def _amount(recordings: Sequence[Recording]) -> str:
    return amount(len(recordings), "recording", len({r.patient for r in recordings}))

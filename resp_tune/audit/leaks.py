"""Find the leaks of each protocol, and the defects of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from resp_tune.audit.counts import count_by, group_recordings
from resp_tune.common.text import amount, plural
from resp_tune.data.dataset import Dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.split_spec import OUTER_FOLDS, SplitSpec
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.errors import UserError

_KEYS = ("patients", "sessions", "recording_share")
_TASKS = {"patient": "diagnosis", "official": "cycles", "recording": "diagnosis"}


def protocol_leaks(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Return `{protocol: {patients, sessions, recording_share, …}}` of a search's splits.

    `patients` and `sessions` occur in more than one split; `recording_share` of the held-out
    recordings have their patient in training. A protocol that this data set does not allow has
    None and the `reason`. `official` also has the leaks `without_shared_patients`, `device` those
    of each device `held_out`; its own are the largest of them.
    """
    found = {name: _leaks(dataset, SplitSpec(name), task) for name, task in _TASKS.items()}
    if found["official"]["patients"]:
        dropped = _leaks(dataset, SplitSpec("official", drop_shared_patients=True), "cycles")
        found["official"]["without_shared_patients"] = dropped
    devices = sorted({r.device for r in dataset.recordings})
    held_out = {
        d: _leaks(dataset, SplitSpec("device", hold_out_device=d), "diagnosis") for d in devices
    }
    scored = [one for one in held_out.values() if one["patients"] is not None]
    found["device"] = {
        **{key: max((one[key] for one in scored), default=None) for key in _KEYS},
        **({} if scored else {"reason": "no device leaves splits that can be scored"}),
        "held_out": held_out,
    }
    return found


def defects(dataset: Dataset) -> list[str]:
    """Return a line for each defect of the files, and for what a split must consider."""
    return [
        *dataset.problems,
        *_absent(dataset),
        *_rare(dataset),
        *_official_gaps(dataset),
        *_same_breaths(dataset),
    ]


def _leaks(dataset: Dataset, spec: SplitSpec, task: str) -> dict[str, Any]:
    try:
        split = make_split(dataset, make_clips(get_task(task), dataset), spec)
    except UserError as error:
        return {**dict.fromkeys(_KEYS), "reason": error.reason}
    fold = split.folds[0]
    test = {} if split.test is None else {"test": len(split.test)}
    return {
        **asdict(split.leaks(dataset)),
        "task": task,
        "recordings": {"train": len(fold.train), "validation": len(fold.validation), **test},
        "classes": list(split.classes),
    }


def _absent(dataset: Dataset) -> Iterator[str]:
    """Yield a line for what no recording has."""
    recordings = dataset.recordings
    if all(r.age is None and r.sex is None for r in recordings):
        yield (
            "no recording has age or sex (demographic_info.txt): the baseline 'device + location + "
            "age + sex' sees device and location alone"
        )
    if all(r.official is None for r in recordings):
        yield (
            "no recording has an official split (ICBHI_challenge_train_test.txt): --protocol "
            "official is not possible"
        )
    if not any(r.cycles for r in recordings):
        yield (
            "no recording has annotated breathing cycles (a .txt beside it): --task cycles is not "
            "possible"
        )


def _rare(dataset: Dataset) -> Iterator[str]:
    rare = [
        f"{name} ({plural(count['patients'], 'patient')})"
        for name, count in count_by(dataset.recordings, lambda r: r.diagnosis).items()
        if count["patients"] < OUTER_FOLDS
    ]
    if rare:
        names = ", ".join(rare)
        yield f"fewer than {OUTER_FOLDS} patients: {names}; no split by patient can score them"


def _official_gaps(dataset: Dataset) -> Iterator[str]:
    train, test = (
        {r.diagnosis for r in dataset.recordings if r.official == split}
        for split in ("train", "test")
    )
    for split, missing in (("test", train - test), ("train", test - train)):
        if train and test and missing:
            yield (
                f"the official {split} split has no {', '.join(sorted(missing))}: the official "
                "split cannot score a diagnosis"
            )


def _same_breaths(dataset: Dataset) -> Iterator[str]:
    simultaneous = group_recordings(
        (r for r in dataset.recordings if r.mode == "mc"), lambda r: r.session
    )
    several = [recordings for recordings in simultaneous.values() if len(recordings) > 1]
    if several:
        patients = {r.patient for recordings in several for r in recordings}
        files = amount(sum(map(len, several)), "recording", len(patients))
        yield (
            f"{plural(len(several), 'session')} ({files}) were recorded at several positions at "
            "once: nearly the same breaths, which only splits by patient or session keep together"
        )

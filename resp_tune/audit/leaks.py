"""Find the leaks of each protocol, and the defects of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resp_tune.common.text import amount, plural
from resp_tune.data.dataset import Dataset
from resp_tune.data.protocols import make_split
from resp_tune.data.split import Split
from resp_tune.data.split_spec import OUTER_FOLDS, SplitSpec
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.errors import UserError

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
    found["device"] = {**_largest(list(held_out.values())), "held_out": held_out}
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
        return {"patients": None, "sessions": None, "recording_share": None, "reason": str(error)}
    leaks = split.leaks(dataset)
    return {
        "patients": leaks.patients,
        "sessions": leaks.sessions,
        "recording_share": leaks.recording_share,
        "task": task,
        "recordings": _sizes(split),
        "classes": list(split.classes),
    }


def _sizes(split: Split) -> dict[str, int]:
    fold = split.folds[0]
    test = {} if split.test is None else {"test": len(split.test)}
    return {"train": len(fold.train), "validation": len(fold.validation), **test}


def _largest(held_out: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("patients", "sessions", "recording_share")
    made = [one for one in held_out if one["patients"] is not None]
    if not made:
        return {**dict.fromkeys(keys), "reason": "no device leaves splits that can be scored"}
    return {key: max(one[key] for one in made) for key in keys}


def _absent(dataset: Dataset) -> list[str]:
    """Return a line for what no recording has."""
    lines, recordings = [], dataset.recordings
    if all(r.age is None and r.sex is None for r in recordings):
        lines.append(
            "no recording has age or sex (demographic_info.txt): the baseline 'device + location + "
            "age + sex' sees device and location alone"
        )
    if all(r.official is None for r in recordings):
        lines.append(
            "no recording has an official split (ICBHI_challenge_train_test.txt): --protocol "
            "official is not possible"
        )
    if not any(r.cycles for r in recordings):
        lines.append(
            "no recording has annotated breathing cycles (a .txt beside it): --task cycles is not "
            "possible"
        )
    return lines


def _rare(dataset: Dataset) -> list[str]:
    patients: dict[str, set[str]] = {}
    for recording in dataset.recordings:
        patients.setdefault(recording.diagnosis, set()).add(recording.patient)
    rare = [
        f"{name} ({plural(len(who), 'patient')})"
        for name, who in sorted(patients.items())
        if len(who) < OUTER_FOLDS
    ]
    if not rare:
        return []
    return [
        f"fewer than {OUTER_FOLDS} patients: {', '.join(rare)}; no split by patient can score them"
    ]


def _official_gaps(dataset: Dataset) -> list[str]:
    there = {
        split: {r.diagnosis for r in dataset.recordings if r.official == split}
        for split in ("train", "test")
    }
    if not all(there.values()):
        return []
    lines = []
    for split, other in (("test", "train"), ("train", "test")):
        if absent := sorted(there[other] - there[split]):
            lines.append(
                f"the official {split} split has no {', '.join(absent)}: the official split cannot "
                "score a diagnosis"
            )
    return lines


def _same_breaths(dataset: Dataset) -> list[str]:
    sessions: dict[str, list[str]] = {}
    for recording in dataset.recordings:
        if recording.mode == "mc":
            sessions.setdefault(recording.session, []).append(recording.stem)
    several = {session: stems for session, stems in sessions.items() if len(stems) > 1}
    if not several:
        return []
    files = sum(len(stems) for stems in several.values())
    who = len({session.split("_")[0] for session in several})
    return [
        f"{plural(len(several), 'session')} ({amount(files, 'recording', who)}) were recorded at "
        "several positions at once: nearly the same breaths, which only splits by patient or "
        "session keep together"
    ]

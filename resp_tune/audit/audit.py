"""Audit a data set; the result can be printed, rendered and saved as JSON."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from resp_tune.audit.counts import counts, tables
from resp_tune.audit.front_end import front_end_giveaways, giveaway_warnings
from resp_tune.audit.leaks import defects, protocol_leaks
from resp_tune.audit.shortcuts import age_shortcut, device_shortcut
from resp_tune.common.text import one_line
from resp_tune.config import FrontEnd
from resp_tune.data.dataset import Dataset
from resp_tune.data.tasks import TASKS, Clips, get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.evaluation.baselines import (
    BASELINES,
    controlled_clips,
    load_baseline_scores,
    patient_lookup,
)

log = logging.getLogger(__name__)

LOOKUP_TASK = "diagnosis-8"
LOOKUP_KEYS = ("accuracy", "macro_f1", "balanced_accuracy")


def audit(dataset: Dataset, front_ends: Sequence[FrontEnd], workers: int) -> dict[str, Any]:
    """Return counts, defects, tables, leaks, shortcuts and baselines of a data set.

    `front_ends` are those whose last bands are tested as shortcuts, by `workers` threads. Shares
    and scores are in 0…1. What this data set does not allow is None, beside a `reason`.
    """
    found: dict[str, Any] = {
        "data": {"name": one_line(dataset.root.name), "synthetic": dataset.synthetic},
        "counts": counts(dataset),
        "defects": defects(dataset),
        "tables": tables(dataset),
        "leaks": protocol_leaks(dataset),
        "patient_lookup": _lookup(dataset),
    }
    found["baselines"] = {}
    for task in TASKS:
        log.info(f"baselines: {task}")
        found["baselines"][task] = _baselines(dataset, task)
    log.info("baselines: children on the Meditron")
    found["controlled"] = controlled(dataset)
    shortcuts = {"device": device_shortcut(dataset), "age": age_shortcut(dataset)}
    found["shortcuts"] = shortcuts
    found["front_end"] = front_end_giveaways(dataset, front_ends, workers)
    warnings = [s["warning"] for s in shortcuts.values() if s and s["found"]]
    found["warnings"] = [*warnings, *giveaway_warnings(found["front_end"])]
    return found


def controlled(dataset: Dataset) -> dict[str, Any]:
    """Return the number of healthy and sick children on the Meditron, and their baselines."""
    try:
        clips = controlled_clips(dataset)
    except UserError as error:
        return {"healthy": None, "sick": None, "baselines": None, "reason": error.reason}
    sizes = {}
    for label, name in enumerate(clips.task.classes):
        chosen = [c.recording for c in clips.clips if c.label == label]
        patients = {r.patient for r in chosen}
        sizes[name] = {"recordings": len(chosen), "patients": len(patients)}
    return {**sizes, "baselines": _baselines(dataset, clips)}


def _lookup(dataset: Dataset) -> dict[str, Any]:
    try:
        clips = make_clips(get_task(LOOKUP_TASK), dataset)
        return {"task": LOOKUP_TASK, **patient_lookup(dataset, clips)}
    except UserError as error:
        return {**dict.fromkeys(LOOKUP_KEYS), "task": LOOKUP_TASK, "reason": error.reason}


def _baselines(dataset: Dataset, task: str | Clips) -> dict[str, Any]:
    try:
        clips = make_clips(get_task(task), dataset) if isinstance(task, str) else task
        there = sorted({clip.label for clip in clips.clips})
        classes = [clips.task.classes[label] for label in there]
        if len(classes) < 2:
            names = ", ".join(classes) or "none"
            raise UserError(f"fewer than two classes are here ({names})")
        scores = load_baseline_scores(dataset, clips)
    except UserError as error:
        return {**dict.fromkeys(("majority_accuracy", *BASELINES)), "reason": error.reason}
    return {**scores, "classes": classes, "chance": 1 / len(classes), "clips": len(clips.clips)}

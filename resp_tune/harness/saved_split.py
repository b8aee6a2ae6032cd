"""The clips and sides of a search; those that it has once used stand."""

from __future__ import annotations

from pathlib import Path

from resp_tune.common.text import join_names
from resp_tune.data.dataset import Dataset
from resp_tune.data.protocols import make_split
from resp_tune.data.split import Split, load_split
from resp_tune.data.tasks import Task, make_clips
from resp_tune.errors import UserError
from resp_tune.harness.options import SearchOptions
from resp_tune.training.datamodule import DataModule
from resp_tune.training.fingerprint import NAMED


def make_datamodule(
    dataset: Dataset,
    task: Task,
    options: SearchOptions,
    saved: Path | None,
    known: str | None = None,
) -> DataModule:
    """The clips of the task, the sides of the settings; those a search has in `saved` stand.

    Where that file is damaged, sides of the digest `known` are what it held.
    """
    clips = make_clips(task, dataset)
    split = make_split(
        dataset,
        clips,
        options.protocol,
        split_seed=options.split_seed,
        folds=options.folds,
        hold_out_device=options.hold_out_device,
        drop_shared_patients=options.drop_shared_patients,
    )
    if saved is not None and saved.exists():
        split = _same_sides(_saved_sides(saved, split, known), split, saved)
    return DataModule(dataset, clips, split)


def _saved_sides(path: Path, now: Split, known: str | None) -> Split:
    try:
        return load_split(path)
    except UserError:
        if now.digest != known or not path.is_file():
            raise
        return now


def _same_sides(old: Split, new: Split, path: Path) -> Split:
    if old.digest != new.digest:
        raise UserError(
            f"the sides of this search ({path}) are not those of this data, task and protocol: "
            f"{_difference(old, new)}. Give the old settings, or another --name"
        )
    return old


def _difference(old: Split, new: Split) -> str:
    for what in ("task", "protocol", "split_seed", "classes"):
        if getattr(old, what) != getattr(new, what):
            return f"{what.replace('_', ' ')} was {getattr(old, what)}, now {getattr(new, what)}"
    if len(old.folds) != len(new.folds):
        return f"--folds was {len(old.folds)}, now {len(new.folds)}"
    before, now = (
        {s for f in x.folds for s in (*f.train, *f.validation)} | set(x.test or ())
        for x in (old, new)
    )
    if before == now:
        return "the same recordings stand on other sides"
    kinds = {"gone": before - now, "new": now - before}
    return "recordings are " + "; ".join(
        f"{k}: {join_names(sorted(v), NAMED)}" for k, v in kinds.items() if v
    )

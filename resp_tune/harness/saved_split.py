"""The data module of a search: the split that a search has saved is used again."""

from __future__ import annotations

from pathlib import Path

from resp_tune.common.text import join_names
from resp_tune.data.dataset import Dataset
from resp_tune.data.protocols import make_split
from resp_tune.data.split import Split, load_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Task, make_clips
from resp_tune.errors import UserError
from resp_tune.training.datamodule import DataModule
from resp_tune.training.fingerprint import NAMED


def make_datamodule(
    dataset: Dataset,
    task: Task,
    spec: SplitSpec,
    saved: Path | None = None,
    known: str | None = None,
) -> DataModule:
    """Return the clips of `task` in `dataset` and their split, which must equal that in `saved`.

    `known` is the digest of the split in the study: if `saved` is damaged and the split made now
    has this digest, it is used instead. Raises `UserError` where the two splits differ.
    """
    clips = make_clips(task, dataset)
    split = make_split(dataset, clips, spec)
    if saved is not None and saved.exists():
        split = _same_split(_saved_split(saved, split, known), split, saved)
    return DataModule(dataset, clips, split)


def _saved_split(path: Path, now: Split, known: str | None) -> Split:
    try:
        return load_split(path)
    except UserError:
        if now.digest != known or not path.is_file():
            raise
        return now


def _same_split(old: Split, new: Split, path: Path) -> Split:
    if old.digest != new.digest:
        raise UserError(
            f"the split of this search ({path}) is not that of this data, task and protocol: "
            f"{_difference(old, new)}. Give the old settings, or another --name"
        )
    return old


def _difference(old: Split, new: Split) -> str:
    for what in ("task", "protocol", "split_seed", "classes"):
        if getattr(old, what) != getattr(new, what):
            return f"{what.replace('_', ' ')} was {getattr(old, what)}, now {getattr(new, what)}"
    if len(old.folds) != len(new.folds):
        return f"folds was {len(old.folds)}, now {len(new.folds)}"
    before, now = (
        {s for f in x.folds for s in (*f.train, *f.validation)} | set(x.test or ())
        for x in (old, new)
    )
    if before == now:
        return "the same recordings are divided otherwise"
    kinds = {"gone": before - now, "new": now - before}
    return "recordings are " + "; ".join(
        f"{k}: {join_names(sorted(v), NAMED)}" for k, v in kinds.items() if v
    )

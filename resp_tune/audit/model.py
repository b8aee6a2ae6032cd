"""Audit a model: rebuild and verify its split, then score it on the test split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from resp_tune.common.text import amount
from resp_tune.data.dataset import Dataset, refusal
from resp_tune.data.make_split import make_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.task_files import task_from_classes
from resp_tune.data.tasks import make_clips
from resp_tune.errors import UserError
from resp_tune.evaluation.baselines import load_baseline_predictions
from resp_tune.evaluation.compare import baseline_differences
from resp_tune.evaluation.score import group_metrics, metrics_with_intervals, score_test_split
from resp_tune.harness.test_access_log import access_by
from resp_tune.training.datamodule import DataModule, data_digest, make_feature_caches
from resp_tune.training.model_bundle import Bundle

log = logging.getLogger(__name__)

OTHER_SPLIT = (
    "this data set does not give the split that the model was trained with, so its test split may "
    "hold patients that the model knows"
)

# Records a test-set access; returns the first one of these weights and recordings, and its place.
Record = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], object]]


def rebuild_datamodule(bundle: Bundle, dataset: Dataset) -> DataModule:
    """Return the data module that the model was trained on, rebuilt from `dataset`.

    Raises `UserError` if the digest of its split is not the one in the bundle: a model must not be
    scored on patients that it was trained on.
    """
    details, provenance = bundle.details, bundle.details.get("provenance", {})
    needed = {
        **{key: details.get(key) for key in ("task", "protocol")},
        "provenance.split_sha256": provenance.get("split_sha256"),
    }
    if missing := [key for key, value in needed.items() if not isinstance(value, str)]:
        raise UserError(
            f"the bundle's config.json has no {', '.join(missing)}, so it is unknown which "
            "patients it was trained on: give the winner/ folder of a search"
        )
    clips = make_clips(task_from_classes(details["task"], details.get("task_classes")), dataset)
    try:
        spec = SplitSpec.from_dict(
            {"folds": len(bundle.networks), **provenance, "protocol": details["protocol"]}
        )
        split = make_split(dataset, clips, spec)
    except UserError as error:
        raise UserError(f"{OTHER_SPLIT} ({error}): give the data set of its search") from error
    if split.digest != provenance["split_sha256"] or split.classes != bundle.classes:
        trained = provenance.get("data")
        of = f"its search had --data {trained}" if trained else "give the data set of its search"
        raise refusal(f"'{dataset.root}': {OTHER_SPLIT}; {of}", dataset.problems)
    return DataModule(dataset, clips, split)


def audit_model(
    bundle: Bundle, datamodule: DataModule, *, workers: int, record: Record
) -> dict[str, Any]:
    """Return metrics on the test split of `datamodule`, which comes from `rebuild_datamodule`.

    The access is recorded and logged before the test split is decoded, and returned as `reading`;
    `record` raises `UserError` if it cannot. A protocol without a test split gives None for `test`
    and `reading`.
    """
    split, details = datamodule.split, bundle.details
    provenance = details["provenance"]
    found: dict[str, Any] = {
        "task": split.task,
        "protocol": split.protocol,
        "classes": list(split.classes),
        "search": provenance.get("search"),
        "trial": provenance.get("trial"),
        "split_seed": split.split_seed,
        "split_sha256": split.digest,
        "weights_sha256": details["weights_sha256"],
        "notes": list(split.notes),
        "reading": None,
        "test": None,
    }
    if split.test is None:
        found["reason"] = f"the protocol '{split.protocol}' has no test split: nothing is scored"
        if provenance.get("outer_folds", 1) != 1:
            found["reason"] = (
                "it is the model of a nested search and was trained on all patients: nothing is "
                "scored; `pooled` in that search's summary.json estimates the procedure"
            )
        return found
    caches = make_feature_caches(datamodule, split.test, workers)
    access = access_by(bundle, data_digest(datamodule, caches.sources))
    found["reading"], where = record(access)
    patients = {r.patient for r in datamodule.dataset.recordings if r.stem in set(split.test)}
    size = amount(len(split.test), "recording", len(patients))
    since, again = found["reading"].get("time"), found["reading"] != access
    log.info(
        f"the test split is accessed {'again' if again else 'now'}: {size}, by weights "
        f"{details['weights_sha256'][:12]}, recorded in {where} at {since}. "
        "A model selected after seeing these metrics needs another test split"
    )
    table = score_test_split(bundle, datamodule, caches, workers=workers).predictions
    found["test"] = {
        "clips": len(table),
        "patients": table["patient"].nunique(),
        "by_clip": metrics_with_intervals(table, split.classes),
        **group_metrics(table, datamodule),
        "against": baseline_differences(table, datamodule),
        "baselines": load_baseline_predictions(datamodule).scores(),
    }
    return found

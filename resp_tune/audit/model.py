"""The audit of a model: its sides made again and proved, then its figures on the test side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from resp_tune.common.text import amount
from resp_tune.data.dataset import Dataset
from resp_tune.data.protocols import make_sides
from resp_tune.data.task_files import task_from_classes
from resp_tune.data.tasks import make_clips
from resp_tune.errors import UserError
from resp_tune.evaluation.baseline_cache import answers_of
from resp_tune.evaluation.baseline_difference import against
from resp_tune.evaluation.group_metrics import figures, side_figures
from resp_tune.evaluation.score import score_test
from resp_tune.harness.test_access_log import this_reading
from resp_tune.training.datamodule import DataModule, stores_of
from resp_tune.training.fingerprint import data_digest
from resp_tune.training.model_bundle import Bundle

log = logging.getLogger(__name__)

OTHER_SIDES = (
    "this data set does not give the sides that the model was trained with, so its test side may "
    "hold patients the model knows"
)

# Returns the reading that stands, the first of these weights and recordings, and where that is.
Record = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], object]]


def sides_of(bundle: Bundle, dataset: Dataset) -> DataModule:
    """The problem that the model was trained on, made again from `dataset`.

    Raises `UserError` when the digest of its sides is not the one in the bundle: a model must not
    be scored on patients that it was trained on.
    """
    details = bundle.details
    provenance = details.get("provenance")
    if not isinstance(provenance, Mapping):
        provenance = {}
    missing = [key for key in ("task", "protocol") if not isinstance(details.get(key), str)]
    if not isinstance(provenance.get("split_sha256"), str):
        missing.append("provenance.split_sha256")
    if missing:
        raise UserError(
            f"the bundle's config.json has no {', '.join(missing)}, so that nobody can say whom it "
            "was trained on: give the winner/ folder of a search"
        )
    clips = make_clips(task_from_classes(details["task"], details.get("task_classes")), dataset)
    try:
        sides = make_sides(
            dataset,
            clips,
            details["protocol"],
            split_seed=int(provenance.get("split_seed", 0)),
            folds=int(provenance.get("folds", len(bundle.networks))),
            hold_out_device=provenance.get("hold_out_device"),
            drop_shared_patients=bool(provenance.get("drop_shared_patients", False)),
        )
    except (UserError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{OTHER_SIDES} ({error}): give the data set of its search") from error
    if sides.digest != provenance["split_sha256"] or sides.classes != bundle.classes:
        trained = provenance.get("data")
        of = f"its search had --data {trained}" if trained else "give the data set of its search"
        raise UserError(f"'{dataset.root}': {OTHER_SIDES}; {of}")
    return DataModule(dataset, clips, sides)


def audit_model(
    bundle: Bundle, problem: DataModule, *, workers: int, record: Record
) -> dict[str, Any]:
    """Figures of the model on the test side of `problem`, which comes from `sides_of`.

    Each reading of a test side is put on record and said before the side is opened, and kept under
    `reading`; `record` raises `UserError` where it cannot. A protocol without a test side gives
    None for `test` and `reading`.
    """
    sides, details = problem.sides, bundle.details
    provenance = details["provenance"]
    found: dict[str, Any] = {
        "task": sides.task,
        "protocol": sides.protocol,
        "classes": list(sides.classes),
        "search": provenance.get("search"),
        "trial": provenance.get("trial"),
        "split_seed": sides.split_seed,
        "split_sha256": sides.digest,
        "weights_sha256": details["weights_sha256"],
        "notes": list(sides.notes),
        "reading": None,
        "test": None,
    }
    if sides.test is None:
        found["reason"] = f"the protocol '{sides.protocol}' has no test side: nothing is scored"
        return found
    stores = stores_of(problem, sides.test, workers)
    reading = this_reading(bundle, data_digest(problem, stores.sources))
    found["reading"], where = record(reading)
    patients = {r.patient for r in problem.dataset.recordings if r.stem in set(sides.test)}
    size = amount(len(sides.test), "recording", len(patients))
    since, again = found["reading"].get("time"), found["reading"] != reading
    log.info(
        f"the test side is read {'again' if again else 'now'}: {size}, by weights "
        f"{details['weights_sha256'][:12]}, on record in {where} since {since}. "
        "A model chosen after seeing these figures needs another test side"
    )
    frame = score_test(bundle, problem, sides.test, stores, workers=workers).predictions
    found["test"] = {
        "clips": len(frame),
        "patients": frame["patient"].nunique(),
        "by_clip": figures(frame, sides.classes),
        **side_figures(frame, problem),
        "against": against(frame, problem),
        "baselines": answers_of(problem).scores(),
    }
    return found

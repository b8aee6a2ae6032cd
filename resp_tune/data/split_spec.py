"""What makes a split of a data set: the protocol and its options, in one validated value.

Commands, provenance, MLflow's parameters and the model's audit take the fields from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from resp_tune.common.choices import PROTOCOLS
from resp_tune.common.text import shorten
from resp_tune.config import bounded, check_fields, setting
from resp_tune.errors import UserError, choose_from

OUTER_FOLDS = 5
INNER_FOLDS = 4


@dataclass(frozen=True)
class SplitSpec:
    """How the recordings of a task are divided into training, validation and test split.

    The same values give the same split of the same recordings. With several `outer_folds`, the test
    split is that of the outer fold `test_fold`, or there is none if that is None. A bad value
    raises `UserError`.
    """

    protocol: str = setting("patient", ", ".join(PROTOCOLS), choices=PROTOCOLS)
    folds: int = bounded(
        1, 1, INNER_FOLDS, f"inner folds that score a trial, 1 to {INNER_FOLDS}", metavar="K"
    )
    split_seed: int = bounded(
        0,
        0,
        2**32 - 1,
        "seed of the training, validation and test split (independent of --seed)",
        metavar="N",
    )
    outer_folds: int = bounded(
        1,
        1,
        OUTER_FOLDS,
        "nested search: run the search once for each of K outer test folds, pool their test "
        f"predictions, then search over all patients; {OUTER_FOLDS}: each patient is tested once; "
        "1: one test split",
        metavar="K",
    )
    test_fold: int | None = field(default=None)  # no flag: set for each search of a nested one
    hold_out_device: str | None = setting(
        None, "stethoscope whose recordings are the test split of --protocol device", metavar="NAME"
    )
    drop_shared_patients: bool = setting(
        False,
        "with --protocol official: leave patients of the test split out of the training split",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.protocol not in PROTOCOLS:
            hint = choose_from(self.protocol, PROTOCOLS)
            raise UserError(f"unknown protocol '{shorten(self.protocol)}': {hint}")
        if self.outer_folds > 1 and self.protocol != "patient":
            raise UserError(
                f"outer_folds {self.outer_folds} needs the protocol patient, not '{self.protocol}'"
            )
        if self.test_fold is not None and not 0 <= self.test_fold < self.outer_folds:
            raise UserError(
                f"test_fold: {self.test_fold} is not one of {self.outer_folds} outer folds"
            )
        if self.test_fold is not None and self.outer_folds == 1:
            raise UserError("test_fold needs outer_folds 2 or more")
        if self.hold_out_device is not None and self.protocol != "device":
            raise UserError(
                f"hold_out_device '{shorten(self.hold_out_device)}' needs the protocol device, "
                f"not '{self.protocol}'"
            )
        if self.drop_shared_patients and self.protocol != "official":
            raise UserError(
                f"drop_shared_patients needs the protocol official, not '{self.protocol}'"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SplitSpec:
        """Return the spec of the fields in `values`; a missing field has its default."""
        return SplitSpec(**{f.name: values[f.name] for f in fields(SplitSpec) if f.name in values})

    def replace(self, flags: Mapping[str, Any]) -> SplitSpec:
        """Return a copy with the `flags` that were given; those not given are None or False.

        Options that only some protocols have do not go with another protocol.
        """
        given = {k: v for k, v in flags.items() if v is not None and v is not False}
        kept = self.as_dict()
        if "protocol" in given:
            kept = {"folds": self.folds, "split_seed": self.split_seed}
        return SplitSpec.from_dict({**kept, **given})

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by field name; without those of outer folds if there is one."""
        values = asdict(self)
        if self.outer_folds == 1:
            del values["outer_folds"], values["test_fold"]
        return values

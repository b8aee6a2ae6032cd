"""`SplitSpec`: its checks, and that everything that spells its fields takes them from it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from resp_tune import search, train
from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import UserError
from resp_tune.harness.options import SearchOptions

NAMES = [field.name for field in fields(SplitSpec)]
SET_BY_A_NESTED_SEARCH = {"test_fold"}
OFFICIAL = SplitSpec("official", folds=2, split_seed=3, drop_shared_patients=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "patients"}, "unknown protocol 'patients': did you mean 'patient'"),
        ({"folds": 0}, "folds: 0 is outside 1 to 4"),
        ({"folds": "two"}, "folds: 'two' is not a whole number"),
        ({"split_seed": 2**32}, "split_seed: 4294967296 is outside 0 to 4294967295"),
        ({"hold_out_device": "Meditron"}, "hold_out_device 'Meditron' needs the protocol device"),
        ({"drop_shared_patients": True}, "drop_shared_patients needs the protocol official"),
    ],
)
def test_a_bad_value_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SplitSpec(**values)


def test_there_and_back() -> None:
    assert SplitSpec.from_dict({**OFFICIAL.as_dict(), "more": 1}) == OFFICIAL
    assert SplitSpec.from_dict({}) == SplitSpec()


def test_flags_replace_fields() -> None:
    unset = dict.fromkeys(NAMES) | {"drop_shared_patients": False}
    assert OFFICIAL.replace(unset) == OFFICIAL
    assert OFFICIAL.replace({**unset, "split_seed": 0}).split_seed == 0
    # An option of the official split does not go with another protocol.
    other = OFFICIAL.replace({**unset, "protocol": "recording"})
    assert other == SplitSpec("recording", folds=2, split_seed=3)


def test_every_field_is_a_flag_and_is_recorded() -> None:
    flags = {action.dest for action in search.parser()._actions}
    assert set(NAMES) - flags == SET_BY_A_NESTED_SEARCH
    of_searches = {"folds", "outer_folds", *SET_BY_A_NESTED_SEARCH}
    assert set(NAMES) - {action.dest for action in train.parser()._actions} == of_searches
    assert SearchOptions(folds=3).split_spec == SplitSpec(folds=3)
    assert set(NAMES) <= SearchOptions(outer_folds=2).recorded().keys()

"""Splits of outer folds: every patient is tested once, and never by a search that saw them."""

from __future__ import annotations

from typing import Any

import pytest
from support.small_sets import imagined, real_set

from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.split import Split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Clips, get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.harness.options import SearchOptions
from resp_tune.training.datamodule import DataModule


def small_set(patients: int = 12) -> Dataset:
    """Two recordings each of patients who are Healthy or have COPD, in turn."""
    return imagined(
        [(f"{100 + n}_{i}b1_Al_sc_Meditron", "COPD" if n % 2 else "Healthy")
         for n in range(patients) for i in (1, 2)]
    )  # fmt: skip


def splits(dataset: Dataset, clips: Clips, count: int, seed: int = 0) -> list[Split]:
    """The splits of the outer folds, then that of the last search."""
    specs = [SplitSpec(folds=4, split_seed=seed, outer_folds=count, test_fold=k)
             for k in (*range(count), None)]  # fmt: skip
    return [make_split(dataset, clips, spec) for spec in specs]


def persons(dataset: Dataset, stems: tuple[str, ...]) -> set[str]:
    person_of = {r.stem: r.person for r in dataset.recordings}
    return {person_of[stem] for stem in stems}


def searched(split: Split) -> tuple[str, ...]:
    return tuple(sorted({s for f in split.folds for s in (*f.train, *f.validation)}))


def check_tested_once(dataset: Dataset, clips: Clips, seed: int) -> None:
    *outer, last = splits(dataset, clips, 5, seed)
    tested = [persons(dataset, split.test or ()) for split in outer]
    everybody = set().union(*tested)
    assert sum(len(group) for group in tested) == len(everybody), "nobody is tested twice"
    assert everybody == persons(dataset, searched(last))
    assert last.test is None
    for split, group in zip(outer, tested, strict=True):
        assert not group & persons(dataset, searched(split))
        assert group | persons(dataset, searched(split)) == everybody
        assert split.leaks(dataset).patients == 0
        assert split.classes == last.classes
        assert len(split.folds) == 4
    assert len({split.digest for split in (*outer, last)}) == 6


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_each_patient_is_tested_once(seed: int) -> None:
    dataset = small_set()
    check_tested_once(dataset, make_clips(get_task("diagnosis"), dataset), seed)


@pytest.mark.parametrize("task", ["diagnosis", "cycles"])
def test_each_real_patient_is_tested_once_and_fold_0_is_the_test_split_of_a_search(
    task: str,
) -> None:
    dataset = load_dataset(real_set())
    clips = make_clips(get_task(task), dataset)
    check_tested_once(dataset, clips, 0)
    plain = make_split(dataset, clips, SplitSpec(folds=4))
    assert splits(dataset, clips, 5)[0].digest == plain.digest


def test_fewer_outer_folds_are_the_first_ones() -> None:
    dataset = small_set()
    clips = make_clips(get_task("diagnosis"), dataset)
    assert splits(dataset, clips, 2)[:2] == splits(dataset, clips, 5)[:2]


def test_a_class_that_no_division_has_in_every_test_fold_is_refused() -> None:
    """One patient has both classes, and the other classes' patients are too few without them."""
    dataset = small_set(8)  # four patients of each class: too few to be scored at all
    clips = make_clips(get_task("diagnosis"), dataset)
    with pytest.raises(UserError, match="cannot be scored"):
        splits(dataset, clips, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"outer_folds": 6}, "outer_folds: 6 is outside 1 to 5"),
        ({"outer_folds": 0}, "outer_folds: 0 is outside 1 to 5"),
        ({"outer_folds": 2, "protocol": "recording"}, "outer_folds 2 needs the protocol patient"),
        ({"outer_folds": 3, "test_fold": 3}, "test_fold: 3 is not one of 3 outer folds"),
        ({"test_fold": 0}, "test_fold needs outer_folds 2 or more"),
    ],
)
def test_a_bad_value_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SplitSpec(**values)


def test_one_outer_fold_is_recorded_as_before() -> None:
    assert not {"outer_folds", "test_fold"} & SplitSpec().as_dict().keys()
    spec = SplitSpec(outer_folds=3, test_fold=2)
    assert SplitSpec.from_dict(spec.as_dict()) == spec


def test_an_object_store_is_refused() -> None:
    with pytest.raises(UserError, match="give a folder to --storage"):
        SearchOptions(outer_folds=2, storage="s3://bucket/searches", name="x")


def test_seeds_follow_from_the_seed_and_the_fold() -> None:
    seeds = [SearchOptions(outer_folds=5, seed=s).of_outer_fold(k).seed
             for s in (0, 1) for k in range(5)]  # fmt: skip
    assert len(set(seeds)) == 10
    assert seeds == [SearchOptions(outer_folds=5, seed=s).of_outer_fold(k).seed
                     for s in (0, 1) for k in range(5)]  # fmt: skip


def test_all_searches_share_the_feature_caches() -> None:
    dataset = small_set()
    clips = make_clips(get_task("diagnosis"), dataset)
    modules = [DataModule(dataset, clips, split, shared_caches=True)
               for split in splits(dataset, clips, 5)]  # fmt: skip
    assert len({module.cached_stems for module in modules}) == 1
    for module in modules[:-1]:
        cached, tested = module.cached_stems, set(module.split.test or ())
        for fold in module.folds():
            for part in (fold.train, fold.validation):
                assert not tested & {cached[i] for i in part.cache_index}
                assert [cached[i] for i in part.cache_index] == list(part.stem)

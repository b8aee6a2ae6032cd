"""Bootstrap intervals: all draws at once against one draw after another."""

from __future__ import annotations

import time

import numpy as np
import pytest

from resp_tune.common.choices import METRIC_NAMES
from resp_tune.evaluation.bootstrap import DRAWS, bootstrap, intervals, paired_differences
from resp_tune.training.metrics import Labels, Probabilities, compute_metrics


def clips_of_patients(
    patients: int, clips: int, classes: int, seed: int
) -> tuple[Labels, Probabilities, list[str]]:
    """Clips of patients that have one class each; some classes have a single patient."""
    rng = np.random.default_rng(seed)
    of_clip = np.concatenate([np.arange(patients), rng.integers(patients, size=clips - patients)])
    of_patient = np.minimum(rng.geometric(0.5, patients) - 1, classes - 1)
    of_patient[:classes] = np.arange(classes)
    labels = of_patient[of_clip]
    p = rng.dirichlet(np.ones(classes), clips)
    p[np.arange(clips), labels] += 0.3
    p = np.round(p * 20) / 20 + 1e-3  # many ties
    return labels, (p / p.sum(1, keepdims=True)).astype(np.float32), [f"p{i}" for i in of_clip]


def one_by_one(
    labels: Labels, p: Probabilities, patients: list[str], draws: list[int], total: int, seed: int
) -> dict[str, list[float]]:
    """The metrics themselves, on the clips of the drawn patients put one after another."""
    names = sorted(set(patients))
    drawn = np.random.default_rng(seed).integers(len(names), size=(total, len(names)))
    found: dict[str, list[float]] = {name: [] for name in METRIC_NAMES}
    for draw in draws:
        clips = [i for n in drawn[draw] for i, of in enumerate(patients) if of == names[n]]
        for name, value in compute_metrics(labels[clips], p[clips], METRIC_NAMES).items():
            found[name].append(value)
    return found


@pytest.mark.parametrize(("patients", "clips", "classes"), [(12, 40, 4), (5, 9, 2), (30, 120, 6)])
def test_every_draw_of_every_metric(patients: int, clips: int, classes: int) -> None:
    labels, p, of = clips_of_patients(patients, clips, classes, seed=patients)
    samples = bootstrap(labels, p, of, draws=150, seed=3)
    expected = one_by_one(labels, p, of, list(range(150)), 150, 3)
    assert set(samples) == set(METRIC_NAMES)
    for name, values in samples.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=name)


def test_a_data_set_of_the_real_size() -> None:
    labels, p, of = clips_of_patients(126, 920, 6, seed=0)
    started = time.perf_counter()
    samples = bootstrap(labels, p, of)
    assert time.perf_counter() - started < 20
    assert all(v.shape == (DRAWS,) and np.isfinite(v).all() for v in samples.values())
    assert DRAWS >= 2000
    some = [0, 1000, 1999]
    for name, values in one_by_one(labels, p, of, some, DRAWS, 0).items():
        np.testing.assert_allclose(samples[name][some], values, atol=1e-6, err_msg=name)
    for name, (low, high) in intervals(samples).items():
        assert low < compute_metrics(labels, p, [name])[name] < high


def test_one_patient_gives_no_spread() -> None:
    labels, p, _ = clips_of_patients(4, 20, 3, seed=1)
    samples = bootstrap(labels, p, ["p"] * 20, draws=10)
    for name, values in samples.items():
        np.testing.assert_allclose(values, compute_metrics(labels, p, [name])[name], atol=1e-6)


def test_the_same_patients_and_seed_are_the_same_draws() -> None:
    """So that two models are compared draw by draw."""
    labels, p, of = clips_of_patients(12, 40, 4, seed=0)
    one, same, other = (bootstrap(labels, p, of, draws=20, seed=s) for s in (0, 0, 1))
    assert all((one[name] == same[name]).all() for name in one)
    assert (one["accuracy"] != other["accuracy"]).any()
    better = np.eye(4, dtype=np.float32)[labels]
    assert (bootstrap(labels, better, of, draws=20, seed=0)["accuracy"] >= one["accuracy"]).all()


def test_only_what_is_asked_for() -> None:
    labels, p, of = clips_of_patients(12, 40, 4, seed=0)
    everything = bootstrap(labels, p, of, draws=20)
    some = bootstrap(labels, p, of, draws=20, names=("auroc", "macro_f1"))
    assert list(some) == ["auroc", "macro_f1"]
    assert all((some[name] == everything[name]).all() for name in some)


def test_paired_differences_draw_by_draw() -> None:
    labels, p, of = clips_of_patients(12, 60, 4, seed=0)
    other = clips_of_patients(12, 60, 4, seed=1)[1]
    found = paired_differences(labels, p, [other], of, METRIC_NAMES)
    a, b = (one_by_one(labels, x, of, list(range(DRAWS)), DRAWS, 0) for x in (p, other))
    assert set(found) == set(METRIC_NAMES)
    of_p, of_other = (compute_metrics(labels, x, METRIC_NAMES) for x in (p, other))
    for name, pair in found.items():
        assert (pair["a"], pair["b"]) == (of_p[name], of_other[name])
        assert pair["difference"] == pytest.approx(of_p[name] - of_other[name])
        differences = np.array(a[name]) - np.array(b[name])
        spread = np.nanquantile(differences, (0.025, 0.975))
        np.testing.assert_allclose(pair["interval"], spread, atol=1e-6, err_msg=name)


def test_a_difference_has_an_interval_from_two_patients_on() -> None:
    labels, p, _ = clips_of_patients(4, 20, 3, seed=1)
    other = clips_of_patients(4, 20, 3, seed=2)[1]
    for of, known in ((["p"] * 20, False), (["p"] * 10 + ["q"] * 10, True)):
        found = paired_differences(labels, p, [other], of, ["accuracy", "mcc"])
        assert list(found) == ["accuracy", "mcc"]
        assert all((pair["interval"] is not None) == known for pair in found.values())


def test_pairing_is_sharper_than_two_intervals() -> None:
    """Two models that err on the same patients: what they share moves neither ahead."""
    labels, p, of = clips_of_patients(40, 160, 3, seed=2)
    slightly = p.copy()
    slightly[::10] = 1 / 3 + np.eye(3, dtype=np.float32)[labels[::10]] * 1e-3
    slightly /= slightly.sum(1, keepdims=True)
    names = ("accuracy", "macro_f1")
    pair = paired_differences(labels, slightly, [p], of, names)["accuracy"]
    difference, (low, high) = pair["difference"], pair["interval"]
    apart = [intervals(bootstrap(labels, x, of, names=("accuracy",))) for x in (slightly, p)]
    assert difference > 0
    assert high - low < 0.5 * min(one["accuracy"][1] - one["accuracy"][0] for one in apart)
    same = paired_differences(labels, p, [p], of, names)["macro_f1"]
    assert (same["difference"], same["interval"]) == (0, [0, 0])
    mirrored = paired_differences(labels, p, [slightly], of, names)["accuracy"]
    assert mirrored["difference"] == pytest.approx(-difference)
    assert mirrored["interval"] == pytest.approx([-high, -low])


def test_intervals_are_the_central_share() -> None:
    values = np.arange(1001) / 1000
    assert intervals({"x": values})["x"] == pytest.approx((0.025, 0.975))
    assert intervals({"x": values}, level=0.8)["x"] == pytest.approx((0.1, 0.9))


def test_95_of_100_intervals_hold_the_truth() -> None:
    """Of 300 samples of 60 patients whose clips are right together, with probability 0.7."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        right = np.repeat(rng.random(60) < 0.7, 3)
        labels = np.tile([0, 1], 90)
        p = np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
        of = np.repeat([f"p{i}" for i in range(60)], 3).tolist()
        samples = bootstrap(labels, p, of, draws=200, seed=int(rng.integers(2**31)))
        low, high = intervals({"accuracy": samples["accuracy"]})["accuracy"]
        held += low <= 0.7 <= high
    assert 0.90 <= held / 300 <= 0.98

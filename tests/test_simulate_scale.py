"""The simulation of many GPUs against cases that are worked out by hand. Nothing is timed."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import simulate_scale  # noqa: E402
from scaling.drivers import Loop, Seen, apart  # noqa: E402
from scaling.events import (  # noqa: E402
    DRIVER,
    MOST,
    STORAGE,
    Costs,
    Tracker,
    Workload,
    chunks,
    saturation,
    simulate,
)
from scaling.measured import Measured, line  # noqa: E402
from scaling.scenarios import check  # noqa: E402
from scaling.sizes import QUICK  # noqa: E402
from scaling.stores import StoreCost  # noqa: E402
from scaling.studies import StudyCost  # noqa: E402
from scaling.trackers import SQLITE  # noqa: E402

from resp_tune.cli import run  # noqa: E402

FREE = Costs()
LOAD = Workload(slots=1, trials=200, epochs=10, epoch_seconds=0.9, report_seconds=0.5)


def test_one_gpu_and_no_cost_is_always_busy() -> None:
    found = simulate(LOAD, FREE)
    assert found.busy == pytest.approx(1)
    assert found.seconds == pytest.approx(200 * 10 * 0.9)
    assert found.loads == {DRIVER: 0, STORAGE: 0}
    assert found.reports_per_second == pytest.approx(1 / 0.9)


def test_many_gpus_and_no_cost_are_as_many_times_as_fast() -> None:
    found = simulate(replace(LOAD, slots=64, trials=640), FREE)
    assert found.busy == pytest.approx(1)
    assert found.seconds == pytest.approx(10 * 10 * 0.9)


@pytest.mark.parametrize("slots", [1, 5, 10, 20, 40])
def test_a_driver_that_ten_gpus_saturate(slots: int) -> None:
    """Epochs of .9 s, .1 s a report: a slot needs the driver a tenth of its time."""
    found = simulate(replace(LOAD, slots=slots, trials=40 * slots), Costs(report=0.1))
    assert found.loads[DRIVER] == pytest.approx(min(1, slots / 10), rel=5e-3)
    assert found.busy == pytest.approx(0.9 * min(1, 10 / slots), rel=1e-2)
    assert found.reports_per_second == pytest.approx(min(10, slots), rel=5e-3)


def test_saturation_says_the_same() -> None:
    load = replace(LOAD, checkpoint_seconds=100.0)
    costs = Costs(report=0.1, write=0.009, trackers={"none": Tracker(), "slow": Tracker(trial=2.5)})

    def at(slots: int) -> Workload:
        return replace(load, slots=slots)

    found = saturation(at, lambda _: replace(costs, write=0.0))
    assert found == {DRIVER: 10, STORAGE: MOST, "none": MOST, "slow": 4}
    # Two files a trial of 10 s, .018 s of them: 10.018 / .018.
    assert saturation(at, lambda _: costs)[STORAGE] == 557
    # A report that gets dearer with the slots: slots * .01 * slots >= .9 + .01 * slots.
    assert saturation(at, lambda n: Costs(report=0.01 * n))[DRIVER] == 10


def test_each_further_epoch_in_a_report_costs_the_driver() -> None:
    """Five epochs of .18 s a report, .02 s each but the first: .08 s of the driver in .98 s."""
    load = replace(LOAD, slots=4, trials=400, epoch_seconds=0.18, report_seconds=0.9)
    found = simulate(load, Costs(epoch=0.02))
    assert found.busy == pytest.approx(0.9 / 0.98, rel=1e-2)
    assert found.loads[DRIVER] == pytest.approx(4 * 0.08 / 0.98, rel=1e-2)
    assert saturation(lambda n: replace(load, slots=n), lambda _: Costs(epoch=0.02))[DRIVER] == 13


def test_a_trial_costs_more_as_the_study_grows() -> None:
    costs = Costs(trial=lambda n: 0.01 * n)
    found = simulate(replace(LOAD, trials=3), costs)
    # Handed out when the study has 0, 1, 2 trials; the last end finds 3.
    assert found.seconds == pytest.approx(3 * 9 + 0.01 * (0 + 1 + 2 + 3))


def test_what_a_delay_costs_is_waited_for_by_one_slot_alone() -> None:
    found = simulate(replace(LOAD, slots=50, trials=500), Costs(report_delay=0.1))
    assert found.busy == pytest.approx(0.9, rel=1e-2)
    assert found.loads[DRIVER] == 0


def test_nobody_waits_for_the_tracker() -> None:
    """Twice as much as it can write: the search is as fast, half of it is written afterwards."""
    slow = Costs(trackers={"slow": Tracker(trial=9.0)})
    found = simulate(replace(LOAD, slots=2), slow)
    assert found.busy == pytest.approx(1)
    assert found.loads["slow"] == pytest.approx(1, rel=2e-2)
    assert found.backlog["slow"] == pytest.approx(found.seconds, rel=2e-2)


def test_a_tracker_gets_what_waits_in_one_batch() -> None:
    """A report each .9 s waits 3 s for others: three of them, or those before the trial's end."""
    load = replace(LOAD, slots=1, trials=100)
    found = simulate(load, Costs(trackers={"one": Tracker(batch=0.5, epoch=0.1)}))
    # Reports at .9 to 9: batches at 3.9, 7.5 and 11.1 take 4, 4, 2; 2 × .1 a second on average.
    assert found.loads["one"] == pytest.approx((3 * 0.5 + 10 * 0.1) / 9, rel=2e-2)
    assert found.backlog["one"] == pytest.approx(0.7, abs=1e-6)
    # One that is slower takes more at once, and is not behind for long.
    slower = simulate(load, Costs(trackers={"one": Tracker(batch=8.0)}))
    assert slower.backlog["one"] < 20


def test_reports_and_checkpoints_of_a_trial() -> None:
    load = Workload(
        slots=1, trials=2, epochs=20, epoch_seconds=0.085, rung=7, pruned=0.5, checkpoint_seconds=8
    )
    # A second has 12 epochs; the rung has a report of its own.
    assert [c.epochs for c in chunks(load, 0.085, pruned=False)] == [7, 12, 1]
    assert [c.writes for c in chunks(load, 0.085, pruned=False)] == [0, 0, 2]
    assert [(c.epochs, c.writes, c.last) for c in chunks(load, 0.085, pruned=True)] == [
        (7, 0, True)
    ]
    slow = [(c.epochs, c.writes) for c in chunks(replace(load, epochs=8), 3.0, pruned=False)]
    assert slow == [(1, 0), (1, 1), (1, 0), (1, 1), (1, 0), (1, 1), (1, 0), (1, 2)]
    assert [c.epochs for c in chunks(load, 1.0, pruned=False)] == [1] * 20


def test_pruned_trials_are_drawn_from_the_seed() -> None:
    load = replace(LOAD, slots=4, trials=2000, rung=4, pruned=0.5, spread=0.3)
    costs = Costs(report=0.05, trial=lambda n: 0.1)
    one, again, other = (simulate(load, costs, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    # Seven epochs a trial in the mean.
    assert simulate(load, FREE).seconds == pytest.approx(2000 * 7 * 0.9 / 4, rel=0.05)


def test_more_of_anything_is_never_better() -> None:
    load = Workload(
        slots=1, trials=2000, epochs=20, epoch_seconds=1.0, rung=7, pruned=0.5, spread=0.3
    )
    costs = Costs(
        report=0.01,
        report_delay=0.005,
        trial=lambda n: 0.1,
        write=0.004,
        trackers={"one": Tracker(0.01, 0.001, 0.05)},
    )
    sizes = [simulate(replace(load, slots=n), costs) for n in (1, 8, 64, 512)]
    busy = [found.busy for found in sizes]
    assert busy == sorted(busy, reverse=True)
    driver = [found.loads[DRIVER] for found in sizes]
    assert driver == sorted(driver)
    assert max(driver) <= 1 + 1e-9
    trials = [found.trials_per_second for found in sizes]
    assert trials[0] < trials[1] < trials[2]
    dearer = simulate(replace(load, slots=64), replace(costs, report=0.02))
    assert dearer.busy < sizes[2].busy
    rarer = simulate(replace(load, slots=512, report_seconds=20.0), costs)
    assert rarer.busy > sizes[3].busy


def test_as_many_slots_as_trials_measure_nothing() -> None:
    with pytest.raises(ValueError, match="none would be handed on"):
        simulate(replace(LOAD, slots=200), FREE)


# From what was measured to costs


def loop(slots: int, report: float, trial: float, busy: float = 1.0) -> Loop:
    seen = Seen(reports=100, trials=10, seconds=2.0, cpu_seconds=1.0, busy=busy, late=0.0)
    short = replace(seen, trials=400)
    return Loop(slots, report, trial, report / 2, trial / 2, short, seen, seen)


MEASURED = Measured(
    round_trip=0.016,
    loops=[loop(4, 0.012, 0.1), loop(16, 0.015, 0.1), loop(64, 0.027, 0.1)],
    study=[
        StudyCost(100, 0.02, 0.002, 0.001, 0.0005, 0.01),
        StudyCost(1100, 0.06, 0.002, 0.003, 0.0015, 0.01),
    ],
    trackers={SQLITE: Tracker(0.01, 0.001, 0.05)},
    left_out="",
    stores=[StoreCost("baseline", 10**6, 0.005, {1: 200.0, 4: 400.0})],
)


def test_reports_and_trials_are_told_apart() -> None:
    many = Seen(reports=300, trials=300, seconds=33.0, cpu_seconds=0, busy=0, late=0)
    few = Seen(reports=400, trials=20, seconds=6.0, cpu_seconds=0, busy=0, late=0)
    assert apart(many, few, 300 * 0.01 + 300 * 0.1, 400 * 0.01 + 20 * 0.1) == (
        pytest.approx(0.01),
        pytest.approx(0.1),
    )
    report, trial = apart(many, few, 3.0, 10.0)  # noise: a trial would have taken less than nothing
    assert (report, trial) == (10 / 400, 0.0)


def test_costs_go_on_in_a_line_and_never_fall() -> None:
    costs = MEASURED.costs(512)
    assert costs.report == pytest.approx(0.011 + 0.00025 * 512)
    assert costs.epoch == pytest.approx(0.002)
    computing = MEASURED.costs(512, computing_only=True)
    assert computing.report == pytest.approx(costs.report / 2)
    assert computing.epoch == pytest.approx(0.001)
    assert costs.report_delay == pytest.approx(0.016 - 0.01125)
    # Taken with 200 trials in the study in the mean, of 400: .024 s of it were the sampler's.
    assert costs.trial(200) == pytest.approx(0.1)
    assert costs.trial(1100) == costs.trial(9999) == pytest.approx(0.1 + 0.06 - 0.024)
    assert (costs.write, costs.write_delay) == (1 / 400, pytest.approx(0.0025))
    falling = line([(4, 0.3), (16, 0.1)])
    assert falling(4) == falling(512) == pytest.approx(0.2)


def test_a_real_run_beside_its_simulation() -> None:
    found = check(MEASURED, loop(4, 0.012, 0.1, busy=0.9), QUICK, seed=0)
    assert (found.busy[0], found.reports[0]) == (0.9, 50.0)
    # Two trials a slot of 4 reports; each waits for the worker, and a trial's end for the driver.
    assert 0.9 < found.busy[1] < 1
    assert 3 < found.reports[1] < 4


# The command


def test_measured_figures_are_simulated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "scale.json"
    facts = {"command": "typed", "date": "then", "hardware": "that", "load": "none"}
    measured = {"quick": True, "measured": dataclasses.asdict(MEASURED)}
    given.write_text(json.dumps({**facts, **measured}))
    flags = ["--measured", str(given), "--epoch-seconds", "1", "--epochs", "5"]
    before = simulate_scale.RESULTS.stat().st_mtime_ns
    simulate_scale.main([*flags, "--out", str(tmp_path / "a")])
    simulate_scale.main([*flags, "--out", str(tmp_path / "b")])
    assert "trials of 5 epochs of 1 s" in capsys.readouterr().out
    a, b = (json.loads((tmp_path / out / "scale.json").read_text()) for out in "ab")
    assert a["simulated"] == b["simulated"]
    assert a["measured"] == b["measured"]
    assert {"date", "hardware", "versions", "load", "command", "checked"} <= set(a)
    (scaled,) = a["simulated"]
    assert list(scaled["outcomes"]) == ["1", "8", "64", "512"]
    assert a["measured_by"] == "typed, then, that, none"
    page = (tmp_path / "a" / "SCALE.md").read_text()
    assert page.startswith("# Scale\n")
    assert "**GPUs at which each part has no second to spare**" in page
    assert simulate_scale.RESULTS.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epoch-seconds", "0"], "give seconds from 0.001 up"),
        (["--epochs", "0"], "give 1 to 10000"),
        (["--pruned", "2"], "give a share from 0 to 1"),
        (["--measured", "nowhere.json"], "cannot be read"),
        (["--measured", __file__], "is no scale.json"),
        (["--out", __file__], "is a file, not a folder"),
        (["--quik"], "did you mean '--quick'"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(simulate_scale.main, flags) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1

"""The simulation of many GPUs, against cases calculated by hand. Nothing is timed."""

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
from scaling.checkpoint_writes import WriteCosts  # noqa: E402
from scaling.driver_loop import LoopCosts, SearchWindow, solve_costs  # noqa: E402
from scaling.measurements import Measurements, fit_line  # noqa: E402
from scaling.scenarios import check_simulation  # noqa: E402
from scaling.simulation import (  # noqa: E402
    DRIVER,
    MAX_SLOTS,
    STORAGE,
    Costs,
    TrackerCosts,
    Workload,
    chunks,
    saturation,
    simulate,
)
from scaling.sizes import QUICK  # noqa: E402
from scaling.study_costs import StudyCosts  # noqa: E402
from scaling.tracker_costs import SQLITE  # noqa: E402

from resp_tune.cli import run  # noqa: E402

FREE = Costs()
LOAD = Workload(slots=1, trials=200, epochs=10, epoch_seconds=0.9, report_seconds=0.5)


def test_one_gpu_without_costs_is_always_busy() -> None:
    outcome = simulate(LOAD, FREE)
    assert outcome.busy == pytest.approx(1)
    assert outcome.seconds == pytest.approx(200 * 10 * 0.9)
    assert outcome.loads == {DRIVER: 0, STORAGE: 0}
    assert outcome.reports_per_second == pytest.approx(1 / 0.9)


def test_speed_grows_linearly_without_costs() -> None:
    outcome = simulate(replace(LOAD, slots=64, trials=640), FREE)
    assert outcome.busy == pytest.approx(1)
    assert outcome.seconds == pytest.approx(10 * 10 * 0.9)


@pytest.mark.parametrize("slots", [1, 5, 10, 20, 40])
def test_ten_gpus_saturate_the_driver(slots: int) -> None:
    """Epochs of 0.9 s and reports of 0.1 s: a slot needs the driver for a tenth of its time."""
    outcome = simulate(replace(LOAD, slots=slots, trials=40 * slots), Costs(report=0.1))
    assert outcome.loads[DRIVER] == pytest.approx(min(1, slots / 10), rel=5e-3)
    assert outcome.busy == pytest.approx(0.9 * min(1, 10 / slots), rel=1e-2)
    assert outcome.reports_per_second == pytest.approx(min(10, slots), rel=5e-3)


def test_saturation_agrees_with_the_simulation() -> None:
    load = replace(LOAD, checkpoint_seconds=100.0)
    costs = Costs(
        report=0.1, write=0.009, trackers={"none": TrackerCosts(), "slow": TrackerCosts(trial=2.5)}
    )

    def load_at(slots: int) -> Workload:
        return replace(load, slots=slots)

    fewest = saturation(load_at, lambda _: replace(costs, write=0.0))
    assert fewest == {DRIVER: 10, STORAGE: MAX_SLOTS, "none": MAX_SLOTS, "slow": 4}
    # Two files per trial of 10 s, 0.018 s together: 10.018 / 0.018.
    assert saturation(load_at, lambda _: costs)[STORAGE] == 557
    # The cost of a report grows with the slots: slots * 0.01 * slots >= 0.9 + 0.01 * slots.
    assert saturation(load_at, lambda n: Costs(report=0.01 * n))[DRIVER] == 10


def test_each_further_epoch_in_a_report_costs_the_driver() -> None:
    """A report has five epochs of 0.18 s and takes the driver 0.08 s, in 0.98 s in total."""
    load = replace(LOAD, slots=4, trials=400, epoch_seconds=0.18, report_seconds=0.9)
    outcome = simulate(load, Costs(epoch=0.02))
    assert outcome.busy == pytest.approx(0.9 / 0.98, rel=1e-2)
    assert outcome.loads[DRIVER] == pytest.approx(4 * 0.08 / 0.98, rel=1e-2)
    assert saturation(lambda n: replace(load, slots=n), lambda _: Costs(epoch=0.02))[DRIVER] == 13


def test_a_trial_costs_more_as_the_study_grows() -> None:
    costs = Costs(trial=lambda n: 0.01 * n)
    outcome = simulate(replace(LOAD, trials=3), costs)
    # Trials start in a study of 0, 1 and 2 trials; the last ends in one of 3.
    assert outcome.seconds == pytest.approx(3 * 9 + 0.01 * (0 + 1 + 2 + 3))


def test_a_delay_holds_up_one_slot_alone() -> None:
    outcome = simulate(replace(LOAD, slots=50, trials=500), Costs(report_delay=0.1))
    assert outcome.busy == pytest.approx(0.9, rel=1e-2)
    assert outcome.loads[DRIVER] == 0


def test_no_trial_waits_for_the_tracker() -> None:
    """With twice the load of the writer the search is as fast; half is written after its end."""
    slow = Costs(trackers={"slow": TrackerCosts(trial=9.0)})
    outcome = simulate(replace(LOAD, slots=2), slow)
    assert outcome.busy == pytest.approx(1)
    assert outcome.loads["slow"] == pytest.approx(1, rel=2e-2)
    assert outcome.backlog["slow"] == pytest.approx(outcome.seconds, rel=2e-2)


def test_waiting_reports_are_written_in_one_batch() -> None:
    """Reports come every 0.9 s, and the writer waits 3 s for more of the same trial."""
    load = replace(LOAD, slots=1, trials=100)
    outcome = simulate(load, Costs(trackers={"one": TrackerCosts(batch=0.5, epoch=0.1)}))
    # Reports at 0.9 to 9 s: the batches at 3.9, 7.5 and 11.1 s have 4, 4 and 2 of them.
    assert outcome.loads["one"] == pytest.approx((3 * 0.5 + 10 * 0.1) / 9, rel=2e-2)
    assert outcome.backlog["one"] == pytest.approx(0.7, abs=1e-6)
    # A slower writer takes more at once, and its backlog stays short.
    slower = simulate(load, Costs(trackers={"one": TrackerCosts(batch=8.0)}))
    assert slower.backlog["one"] < 20


def test_chunks_of_a_trial() -> None:
    load = Workload(
        slots=1, trials=2, epochs=20, epoch_seconds=0.085, rung=7, pruned=0.5, checkpoint_seconds=8
    )
    # 12 epochs take a second; the rung ends a report.
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
    # Seven epochs per trial on average.
    assert simulate(load, FREE).seconds == pytest.approx(2000 * 7 * 0.9 / 4, rel=0.05)


def test_higher_load_never_improves_utilization() -> None:
    load = Workload(
        slots=1, trials=2000, epochs=20, epoch_seconds=1.0, rung=7, pruned=0.5, spread=0.3
    )
    costs = Costs(
        report=0.01,
        report_delay=0.005,
        trial=lambda n: 0.1,
        write=0.004,
        trackers={"one": TrackerCosts(0.01, 0.001, 0.05)},
    )
    outcomes = [simulate(replace(load, slots=n), costs) for n in (1, 8, 64, 512)]
    busy = [outcome.busy for outcome in outcomes]
    assert busy == sorted(busy, reverse=True)
    driver = [outcome.loads[DRIVER] for outcome in outcomes]
    assert driver == sorted(driver)
    assert max(driver) <= 1 + 1e-9
    trials = [outcome.trials_per_second for outcome in outcomes]
    assert trials[0] < trials[1] < trials[2]
    costly_reports = simulate(replace(load, slots=64), replace(costs, report=0.02))
    assert costly_reports.busy < outcomes[2].busy
    rare_reports = simulate(replace(load, slots=512, report_seconds=20.0), costs)
    assert rare_reports.busy > outcomes[3].busy


def test_more_trials_than_slots_are_required() -> None:
    with pytest.raises(ValueError, match="no slot gets a second trial"):
        simulate(replace(LOAD, slots=200), FREE)


# Measured costs


def loop_costs(slots: int, report: float, trial: float, busy: float = 1.0) -> LoopCosts:
    window = SearchWindow(reports=100, trials=10, seconds=2.0, cpu_seconds=1.0, busy=busy, late=0.0)
    short = replace(window, trials=400)
    return LoopCosts(slots, report, trial, report / 2, trial / 2, short, window, window)


MEASURED = Measurements(
    round_trip=0.016,
    loops=[loop_costs(4, 0.012, 0.1), loop_costs(16, 0.015, 0.1), loop_costs(64, 0.027, 0.1)],
    study=[
        StudyCosts(100, 0.02, 0.002, 0.001, 0.0005, 0.01),
        StudyCosts(1100, 0.06, 0.002, 0.003, 0.0015, 0.01),
    ],
    trackers={SQLITE: TrackerCosts(0.01, 0.001, 0.05)},
    left_out="",
    stores=[WriteCosts("baseline", 10**6, 0.005, {1: 200.0, 4: 400.0})],
)


def test_costs_per_report_and_per_trial_are_solved() -> None:
    short = SearchWindow(reports=300, trials=300, seconds=33.0, cpu_seconds=0, busy=0, late=0)
    long = SearchWindow(reports=400, trials=20, seconds=6.0, cpu_seconds=0, busy=0, late=0)
    assert solve_costs(short, long, 300 * 0.01 + 300 * 0.1, 400 * 0.01 + 20 * 0.1) == (
        pytest.approx(0.01),
        pytest.approx(0.1),
    )
    report, trial = solve_costs(
        short, long, 3.0, 10.0
    )  # noise: the solution for a trial is negative
    assert (report, trial) == (10 / 400, 0.0)


def test_costs_are_extrapolated_linearly_and_never_fall() -> None:
    costs = MEASURED.costs(512)
    assert costs.report == pytest.approx(0.011 + 0.00025 * 512)
    assert costs.epoch == pytest.approx(0.002)
    computing = MEASURED.costs(512, computing_only=True)
    assert computing.report == pytest.approx(costs.report / 2)
    assert computing.epoch == pytest.approx(0.001)
    assert costs.report_delay == pytest.approx(0.016 - 0.01125)
    # Measured with 200 trials in the study on average; the study's part of it was 0.024 s.
    assert costs.trial(200) == pytest.approx(0.1)
    assert costs.trial(1100) == costs.trial(9999) == pytest.approx(0.1 + 0.06 - 0.024)
    assert (costs.write, costs.write_delay) == (1 / 400, pytest.approx(0.0025))
    falling = fit_line([(4, 0.3), (16, 0.1)])
    assert falling(4) == falling(512) == pytest.approx(0.2)


def test_a_real_search_is_compared_with_its_simulation() -> None:
    result = check_simulation(MEASURED, loop_costs(4, 0.012, 0.1, busy=0.9), QUICK, seed=0)
    assert (result.busy[0], result.reports[0]) == (0.9, 50.0)
    # Two trials per slot with 4 reports each. Reports wait for the round trip to the worker, the
    # end of a trial also for the driver.
    assert 0.9 < result.busy[1] < 1
    assert 3 < result.reports[1] < 4


# The command


def test_measured_costs_are_read_and_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_file = tmp_path / "scale.json"
    facts = {"command": "typed", "date": "then", "hardware": "that", "load": "none"}
    measured = {"quick": True, "measured": dataclasses.asdict(MEASURED)}
    measured_file.write_text(json.dumps({**facts, **measured}))
    flags = ["--measured", str(measured_file), "--epoch-seconds", "1", "--epochs", "5"]
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
    assert "**Number of GPUs that saturates each part**" in page
    assert simulate_scale.RESULTS.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "message"),
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
def test_wrong_input_is_reported_in_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(simulate_scale.main, flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

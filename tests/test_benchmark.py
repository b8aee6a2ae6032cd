"""The benchmark's arithmetic, and that the compared programs compute the same. Nothing is timed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import soundfile
import torch
from torch.func import stack_module_state

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402
from benchmarks import compiling, epochs, memory, notebook, rounds, simulated_trials, slots, tables  # noqa: E402
from benchmarks.fusing import FusedTraining  # noqa: E402
from benchmarks.in_memory import InMemoryTraining  # noqa: E402
from benchmarks.recordings import DIAGNOSES, make_recordings  # noqa: E402
from benchmarks.simulated_trials import METRICS, Instant  # noqa: E402
from benchmarks.sizes import FULL, QUICK, RATE  # noqa: E402

from resp_tune.config import TrialConfig, preset  # noqa: E402
from resp_tune.data.dataset import load_dataset  # noqa: E402
from resp_tune.data.sounds.waveforms import load_waveform  # noqa: E402
from resp_tune.errors import RunError, UserError  # noqa: E402
from resp_tune.execution.searcher import StudySearcher  # noqa: E402
from resp_tune.features.batches import ClipIndex, eval_params, make_batch  # noqa: E402
from resp_tune.features.logmel import join_frames, log_mels  # noqa: E402
from resp_tune.space.search_space import load_space  # noqa: E402
from resp_tune.study.study import read_epochs  # noqa: E402
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings  # noqa: E402
from resp_tune.training.fold_training import SplitTensors, TrainingData  # noqa: E402
from resp_tune.training.loop import Training, build_network  # noqa: E402

NOTEBOOK = preset("notebook")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_recordings(folder, 60, seconds=1.0)
    return folder


# The compared programs


def test_recordings_form_a_data_set(recordings: Path) -> None:
    dataset = load_dataset(recordings)
    assert len(dataset.recordings) == 60
    assert dataset.synthetic
    assert {r.sample_rate for r in dataset.recordings} == {RATE}
    for diagnosis in DIAGNOSES:
        patients = {r.patient for r in dataset.recordings if r.diagnosis == diagnosis}
        assert len(patients) >= 5, diagnosis
    subtypes = {soundfile.info(r.path).subtype for r in dataset.recordings}
    assert subtypes == {"PCM_16", "PCM_24", "PCM_32"}


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match="set TMPDIR to another disk"):
        make_recordings(tmp_path / "data", 920)


def test_both_loops_use_the_same_item(tmp_path: Path) -> None:
    """Without augmentation, row A's item equals resp_tune's clip except for its last frame."""
    path = tmp_path / "r.wav"
    noise = torch.randn(20 * RATE, generator=torch.Generator().manual_seed(0))
    swell = 10 ** (-3 * torch.linspace(0, 6, 20 * RATE).sin().square())
    soundfile.write(path, (0.1 * noise * swell).numpy(), RATE, subtype="PCM_24")
    plain = notebook.Settings(max_mask_pct=0.0, time_shift=0.0)
    expected, label = notebook.Recordings([(str(path), 3)], plain)[0]
    assert (label, expected.shape) == (3, (2, 64, 1719))
    assert torch.equal(expected[0], expected[1])
    mels = log_mels(load_waveform(path, RATE, NOTEBOOK.resampling), [NOTEBOOK.front_end])
    frames = join_frames(mels)
    clips = ClipIndex(frames, frames.first, frames.count)
    item = make_batch(clips, eval_params(frames.count, NOTEBOOK), NOTEBOOK)[0, 0].T
    assert item.shape == expected[0].shape
    # resp_tune has the audio after the clip; the notebook reflects the end of the clip instead.
    assert (item - expected[0])[:, :-1].abs().max() <= 0.05


def test_both_networks_have_the_same_shapes() -> None:
    def shapes(network: torch.nn.Module) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for p in network.parameters()]

    assert shapes(notebook.Network(8, 0.25)) == shapes(build_network(NOTEBOOK, 8))


def test_the_notebook_loop_trains(recordings: Path) -> None:
    files = sorted((recordings / "audio_and_txt_files").glob("*.wav"))
    items = [(str(path), n % 2) for n, path in enumerate(files)]
    results = list(notebook.train(items[:6], items[6:10], 2, 1, notebook.Settings(n_mels=16)))
    assert len(results) == 1
    assert math.isfinite(results[0]["train_loss"])
    assert 0 <= results[0]["accuracy"] <= 1


SMALL = NOTEBOOK.replace(
    {"clip_seconds": 1.0, "batch_size": 8, "micro_batch": 4, "epochs": 2, "n_mels": 16}
)


def small_training(config: TrialConfig) -> Training:
    """Return a training on 20 clips of noise, with 10 for validation."""
    noise = torch.Generator().manual_seed(0)
    mels = [-50 + 10 * torch.randn(100, 16, generator=noise) for _ in range(30)]
    frames = join_frames(mels)

    def split(first: int, last: int) -> SplitTensors:
        clips = ClipIndex(frames, frames.first[first:last], frames.count[first:last])
        return SplitTensors(clips, torch.arange(last - first) % 2)

    return Training(config, [TrainingData(split(0, 20), split(20, 30), ("a", "b"))])


def test_in_memory_training_takes_the_same_steps() -> None:
    """Row D's batches have the sizes of an epoch of row C, and all validation items."""
    training = small_training(SMALL)
    in_memory = InMemoryTraining(training)
    assert [[len(y) for _, y in step] for step in in_memory.steps] == [[4, 4], [4, 4], [4]]
    assert sum(len(y) for _, y in in_memory.validation) == 10
    before = [p.detach().clone() for p in training.networks()[0].parameters()]
    in_memory.epoch()
    after = list(training.networks()[0].parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_fused_networks_learn_what_each_learns_alone() -> None:
    """In float64: a bias before batch normalisation has no gradient, and in float32 AdamW would
    follow its rounding errors.
    """
    config = SMALL.replace({"dropout": 0.0, "precision": "float32"})
    trainings = [
        InMemoryTraining(small_training(config.replace({"seed": seed}))) for seed in range(3)
    ]
    for training in trainings:
        training.fold.network.double()
        training.steps = [[(x.double(), y) for x, y in step] for step in training.steps]
    fused = FusedTraining(trainings)
    before = {name: value.detach().clone() for name, value in fused.parameters.items()}
    for _ in range(2):
        fused.train()
        for training in trainings:
            training.train()
    parameters, buffers = stack_module_state([training.fold.network for training in trainings])
    torch.testing.assert_close(fused.parameters, parameters, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fused.buffers, buffers, rtol=1e-6, atol=1e-7)
    assert all(not torch.equal(before[name], value) for name, value in fused.parameters.items())


# Rounds


def test_rows_take_turns() -> None:
    calls: list[str] = []

    def row(name: str) -> dict[str, float]:
        calls.append(name)
        return {"seconds": float(len(calls))}

    figures = rounds.take_turns({name: partial(row, name) for name in "AB"}, rounds=2)
    assert calls == ["A", "B"] * 3
    assert figures == {"A": [{"seconds": 3}, {"seconds": 5}], "B": [{"seconds": 4}, {"seconds": 6}]}


def test_the_ratio_is_within_a_round() -> None:
    assert rounds.ratio([4, 40, 9], [2, 20, 3]) == 2  # a machine ten times slower in round 2


def counting(first: int) -> Iterator[dict[str, float]]:
    yield {"n": first, "pid": os.getpid()}
    raise ValueError("no more")


@pytest.mark.thorough
def test_an_iterator_process_computes_on_request() -> None:
    with rounds.IteratorProcess(counting, 5) as process:
        first = process.next()
        assert first == {"n": 5, "pid": process.process.pid}
        with pytest.raises(RunError, match="ValueError: no more"):
            process.next()
    assert process.process.exitcode is not None


def test_epoch_rows_are_computed_from_the_rounds() -> None:
    peaks = {"flops": 30e9, "peak_float32": 50e9}
    figures = {
        "A": [{"seconds": 12.0}] * 3,
        "B": [{"seconds": 4.0}] * 3,
        "C": [{"seconds": 2.0}] * 3,
        "D": [{"seconds": 1.0, **peaks}] * 3,
    }
    measurement = epochs.compare(figures, 8.0, (512, 128), {"precision": "float32"})
    assert measurement.values == {
        "a_over_b": 3,
        "a_over_c": 6,
        "total_a_over_c": 20 * 12 / (8 + 20 * 2),
        "c_over_d": 2,
        "d_peak_share": pytest.approx(0.6),
    }
    assert set(measurement.values) == set(measurement.method) == set(epochs.ROWS)


# Memory and slots

SMAPS = """\
7f00-7f10 r--p 00000000 fd:01 17                         /cache/features/ab/frames.f16
Rss:                 400 kB
Pss:                 100 kB
Pss_Dirty:            64 kB
7f10-7f20 r--p 00100000 fd:01 17                         /cache/features/ab/frames.f16
Pss:                  20 kB
7f20-7f30 r--p 00000000 fd:01 18                         /cache/features/abc/frames.f16
Pss:                   7 kB
7f30-7f40 rw-p 00000000 00:00 0                          [heap]
Pss:                   9 kB
7f40-7f50 rw-p 00000000 00:00 0
Pss:                  11 kB
"""


def test_pss_counts_the_mappings_of_a_folder() -> None:
    assert memory.mapped_pss(SMAPS, Path("/cache/features/ab")) == 120
    assert memory.mapped_pss(SMAPS, Path("/cache/features/none")) == 0


def test_busy_share_clips_steps_to_the_window() -> None:
    steps = [(0.0, 4.0), (4.0, 12.0), (2.0, 6.0)]  # the second ends after the window
    assert slots.busy_share(steps, slots=2, start=0.0, end=10.0) == (4 + 6 + 4) / 20


def test_simulated_trials_finish_in_the_study(tmp_path: Path) -> None:
    """The test replaces Ray Tune between the searcher and the trainable."""
    study = optuna.create_study(direction="maximize")
    space = load_space("search_spaces/notebook.yaml")
    settings = TrialSettings("macro_f1", epochs=3, seed=0)
    queue = TrialQueue(SamplerSource(study, space, settings, budget=2))
    searcher = StudySearcher(queue, lambda: 8)
    trial = object.__new__(Instant)  # Ray's constructor needs a cluster
    for name in ("first", "second"):
        config = searcher.suggest(name)
        assert isinstance(config, dict)
        if name == "first":
            trial.setup(config, SimpleNamespace(artifacts=SimpleNamespace(folder=tmp_path)))
        else:
            assert trial.reset_config(config)
        while not (result := trial.step())["done"]:
            searcher.on_trial_result(name, result)
        searcher.on_trial_complete(name, result)
    assert searcher.suggest("third") == StudySearcher.FINISHED
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]
    rows = read_epochs(study.trials[0].user_attrs)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {f"val_{name}" for name in METRICS} <= set(rows[0])
    (steps,) = tmp_path.glob("steps-*")
    assert len(steps.read_text().splitlines()) == 6


def test_simulated_processes_start_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_trials.wait_for_all(tmp_path)  # returns without the file
    (tmp_path / simulated_trials.START_TOGETHER).write_text("2")
    (tmp_path / "steps-1").touch()
    waiting = threading.Thread(target=simulated_trials.wait_for_all, args=(tmp_path,), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    (tmp_path / "steps-2").touch()
    waiting.join(30)
    assert not waiting.is_alive()
    (tmp_path / "steps-2").unlink()
    monkeypatch.setattr(simulated_trials, "TIMEOUT_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="fewer than 2 processes"):
        simulated_trials.wait_for_all(tmp_path)


def test_simulated_trials_need_no_torch() -> None:
    code = "import sys, benchmarks.simulated_trials; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "scripts"
    )
    assert done.stdout == "False\n", done.stderr


# Tables

ROWS = [
    tables.Row("a_over_b", 3.0, "A 3 s, B 1 s"),
    tables.Row("c_over_d", 1.2, "C 1.2 s, D 1 s"),
    tables.Row("slots_busy", None, "could not be measured: no memory"),
]


def test_targets_are_met_or_not() -> None:
    assert [row.verdict for row in ROWS] == ["met", "**not met**", "failed"]
    assert str(tables.TARGETS["a_over_b"]) == "≥ 3, aim 4.5"


def test_every_row_of_a_quick_table_is_marked() -> None:
    quick, full = (tables.table(ROWS, quick=q).splitlines()[2:] for q in (True, False))
    assert len(quick) == len(full) == 3
    assert all("quick" in line for line in quick)
    assert not any("quick" in line for line in full)


def test_a_section_is_appended_and_replaced() -> None:
    one, two = (tables.section(ROWS[:n], {"date": str(n)}, quick=False) for n in (1, 2))
    page = "# Measured\n\nby hand\n"
    once = tables.put_section(page, one)
    assert once == page + "\n" + one + "\n"
    around = once + "\n## After\n"
    again = tables.put_section(around, two)
    assert again == page + "\n" + two + "\n\n## After\n"
    assert tables.put_section(again, two) == again
    assert tables.put_section("", one) == one + "\n"


def test_every_row_has_a_target_and_a_measurement() -> None:
    measured = [key for keys in benchmark.groups() for key in keys]
    assert sorted(measured) == sorted(tables.TARGETS)


def test_rows_are_chosen_by_name() -> None:
    assert benchmark.parse_rows(None) == list(tables.TARGETS)
    assert benchmark.parse_rows("c_over_d, a_over_b") == ["c_over_d", "a_over_b"]
    with pytest.raises(UserError, match="did you mean 'a_over_b'"):
        benchmark.parse_rows("a_over_bb")


def test_quick_counts_are_smaller() -> None:
    for name, full in vars(FULL).items():
        if name not in ("quick", "growth"):
            assert getattr(QUICK, name) <= full, name


def test_results_are_written_to_the_chosen_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(workspace: object) -> object:
        return SimpleNamespace(
            values={"c_over_d": 1.05}, method={"c_over_d": "made up"}, details={}
        )

    def broken(workspace: object) -> object:
        raise OSError("no such thing")

    monkeypatch.setattr(
        benchmark, "groups", lambda: {("c_over_d",): measure, ("slots_busy",): broken}
    )
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    rows = ["--quick", "--rows", "c_over_d,slots_busy"]
    with pytest.raises(RunError, match="slots_busy"):
        benchmark.main(rows)
    assert not list(tmp_path.iterdir())  # some rows do not replace all of them
    with pytest.raises(RunError, match="slots_busy"):
        benchmark.main([*rows, "--out", str(tmp_path / "out")])
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["BENCHMARKS.md", "benchmark.json"]
    result = json.loads((out / "benchmark.json").read_text())
    assert (result["c_over_d"], result["slots_busy"], result["quick"]) == (1.05, None, True)
    assert {"date", "command", "hardware", "versions", "details"} <= set(result)
    assert "quick: made up" in (out / "BENCHMARKS.md").read_text()
    assert "no such thing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("compiled", "first", "first_cached", "text"),
    [
        (0.3, 30.3, 5.3, "compiling pays after 300 and 50 epochs of one shape"),
        (0.4, 30.0, 5.0, "compiling never pays on this machine"),
        (0.5, 30.0, 5.0, "compiling never pays on this machine"),
    ],
)
def test_when_compiling_pays(compiled: float, first: float, first_cached: float, text: str) -> None:
    epoch = {"plain": 0.4, "compiled": compiled}
    assert text in compiling.describe(epoch, first, first_cached)

"""What the report makes of the files: comparisons, seeds, parts of the test side, figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from optuna import visualization
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from support.report_folders import CLASSES, change, judge, make

from resp_tune.errors import RunError
from resp_tune.reporting import baseline_comparison, group_tables, replicate_table, search_plots
from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.report_html import Results, read_results, render


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "results" / "first")


@pytest.fixture
def judged(folder: Path) -> Results:
    judge(folder)
    return read_results(folder)


def kinds(line: Line) -> list[tuple[str, Any]]:
    return [(mark.kind, mark.value) for mark in line.marks]


def drawn(table: DotTable | None) -> dict[str, Line]:
    """The lines by label. Every cell has a head."""
    assert table is not None
    assert {len(line.cells) for line in table.lines} == {len(table.headers) - 2}
    return {line.label: line for line in table.lines}


def test_confusion_is_sklearns(folder: Path) -> None:
    results = read_results(folder)
    found = group_tables.confusion(results.summary, results.predictions)
    assert found is not None
    rows = [r for r in results.predictions if r["side"] == "test"]
    truth, answer = [r["label"] for r in rows], [r["predicted"] for r in rows]
    counts = [[count for count, _ in cells] for _, cells in found.rows]
    assert counts == confusion_matrix(truth, answer, labels=CLASSES).tolist()
    scored: dict[str, Any] = {"labels": CLASSES, "average": None, "zero_division": 0}
    assert [c.recall for c in found.per_class] == pytest.approx(
        recall_score(truth, answer, **scored)
    )
    precision = [c.precision or 0.0 for c in found.per_class]
    assert precision == pytest.approx(precision_score(truth, answer, **scored))
    assert sum(c.clips for c in found.per_class) == 14


def charts(results: Results, metric: str = "macro_f1") -> dict[str, search_plots.Chart]:
    found = search_plots.search_charts(results.trials, results.epochs, metric, "2", [])
    return {chart.id: chart for chart in found}


@pytest.mark.parametrize(
    ("metric", "best"), [("macro_f1", [0.30, 0.52, 0.52, 0.52]), ("log_loss", [0.30] * 4)]
)
def test_history_has_the_finished_trials_by_their_numbers(
    folder: Path, metric: str, best: list[float]
) -> None:
    points, line = charts(read_results(folder), metric)["history"].figure["data"]
    assert points["x"] == [0, 2, 4, 5]
    assert points["y"] == [0.30, 0.52, 0.41, 0.35]
    at = dict(zip(line["x"], line["y"], strict=True))
    assert [at[x] for x in points["x"]] == best


def test_learning_curves_show_pruned_trials_and_the_winner(folder: Path) -> None:
    lines = charts(read_results(folder))["curves"].figure["data"]
    assert [line["name"] for line in lines] == [f"trial {n}" for n in (0, 1, 2, 4, 5)]
    assert [line["line"]["width"] for line in lines] == [1.5, 1.5, 3.5, 1.5, 1.5]
    assert lines[2]["y"] == pytest.approx([0.13, 0.26, 0.39, 0.52])


def test_the_study_has_the_states_and_types_of_the_tables(folder: Path) -> None:
    results = read_results(folder)
    rows = [dict(row) for row in results.trials]
    rows[4] |= {"state": "diverged", "score": "0.0", "balance": ""}
    study = search_plots.make_study(rows, "macro_f1", results.epochs)
    assert [t.state.name for t in study.trials] == [
        "COMPLETE", "PRUNED", "COMPLETE", "FAIL", "FAIL", "COMPLETE"
    ]  # fmt: skip
    kinds = {name: type(d).__name__ for name, d in study.trials[0].distributions.items()}
    assert kinds == {
        "lr": "FloatDistribution", "n_mels": "IntDistribution", "balance": "CategoricalDistribution"
    }  # fmt: skip
    assert getattr(study.trials[0].distributions["lr"], "log")  # noqa: B009  # not of the base
    assert "balance" not in study.trials[4].params
    assert study.trials[1].intermediate_values == pytest.approx({1: 0.05, 2: 0.1, 3: 0.15, 4: 0.2})


@pytest.mark.parametrize(
    ("library", "name", "left_out"),
    [
        (visualization, "plot_parallel_coordinate", {"parallel"}),
        (visualization, "plot_optimization_history", {"history"}),
        (go.Figure, "add_scatter", {"losses"}),
        (search_plots, "make_study", {"history", "curves", "losses", "parallel", "slice0"}),
    ],
)
def test_a_figure_that_fails_is_named_and_the_others_are_drawn(
    library: object, name: str, left_out: set[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AttributeError("no such thing")

    drawn = set(charts(read_results(folder)))
    monkeypatch.setattr(library, name, fail)
    with pytest.raises(RunError, match=r"could not be drawn \(no such thing\)"):
        render(folder)
    page = (folder / "report.html").read_text()
    assert "could not be drawn (no such thing)" in page
    assert {chart for chart in drawn if f'id="plot-{chart}"' in page} == drawn - left_out


@pytest.mark.parametrize(("finished", "words"), [(19, None), (20, "unstable"), (50, "")])
def test_importances_need_enough_trials(folder: Path, finished: int, words: str | None) -> None:
    """`lr` is all that matters here; one trial in two has `n_mels`, which fANOVA leaves out."""
    rows = [
        {**row, "number": f"{n}", "state": "finished", "score": f"{n / 100}", "lr": f"{n + 1}",
         "n_mels": "32" if n % 2 else "", "balance": "ab"[n % 2]}
        for n, row in enumerate([read_results(folder).trials[0]] * finished)
    ]  # fmt: skip
    found = search_plots.search_charts(rows, [], "macro_f1", "0", [])
    chart = next((chart for chart in found if chart.id == "importances"), None)
    assert (chart is None) == (words is None)
    if chart is not None:
        bars = chart.figure["data"][0]
        assert bars["y"] == ["balance", "lr"]
        assert bars["x"][1] > 0.9
        assert ("unstable" in chart.text) == (words == "unstable")
        assert "not every trial has are left out" in chart.text


@pytest.mark.parametrize(("metric", "gap"), [("macro_f1", 0.07), ("log_loss", 0.07)])
def test_price_is_positive_where_validation_flatters(folder: Path, metric: str, gap: float) -> None:
    """The log loss is larger on the test side: flattered as well."""
    change(folder, metric=metric)
    price_of_searching = replicate_table.price_of_searching(read_results(folder).summary)
    assert price_of_searching is not None
    assert price_of_searching.gap == pytest.approx(gap)
    assert (
        "The winner does worse on the test split than the search's best trial"
        in price_of_searching.text
    )


def test_price_is_of_the_best_that_the_search_saw(judged: Results) -> None:
    price_of_searching = replicate_table.price_of_searching(judged.summary)
    assert price_of_searching is not None
    assert (price_of_searching.validation, price_of_searching.test) == (
        0.55,
        0.45,
    )  # not the winner's own mean, 0.52
    assert price_of_searching.gap == pytest.approx(0.10)
    assert "One seed of the winner, on average, does worse" in price_of_searching.text


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
@pytest.mark.parametrize(("difference", "words"), [(0.2, "does worse"), (-0.2, "does no worse")])
def test_the_sign_of_the_price_is_the_summary_s(
    judged: Results, metric: str, difference: float, words: str
) -> None:
    explain_candidates = {"best_validation": 0.5, "test": 0.7, "difference": difference}
    winner = {**judged.summary["winner"], "price_of_searching": explain_candidates}
    price_of_searching = replicate_table.price_of_searching(
        {**judged.summary, "metric": metric, "winner": winner}
    )
    assert price_of_searching is not None
    assert (price_of_searching.gap, price_of_searching.validation, price_of_searching.test) == (
        difference,
        0.5,
        0.7,
    )
    assert words in price_of_searching.text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.40, 0.50, "is above"), (0.10, 0.20, "is below"), (0.20, 0.40, "cannot show")],
)
def test_verdict(folder: Path, low: float, high: float, words: str) -> None:
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    winner["test"]["intervals"]["macro_f1"] = [low, high]
    change(folder, winner=winner)
    assert words in baseline_comparison.verdict(read_results(folder).summary)


def against(summary: dict[str, Any], **intervals: list[float]) -> dict[str, Any]:
    """The summary with other intervals of the differences; each is drawn about its middle."""
    test = {**summary["winner"]["test"]}
    test["against"] = {
        key: {
            "macro_f1": {
                "winner": 0.45,
                "baseline": 0.45 - sum(span) / 2,
                "difference": sum(span) / 2,
                "interval": span,
            }
        }
        for key, span in intervals.items()
    }
    return {**summary, "winner": {**summary["winner"], "test": test}}


@pytest.mark.parametrize(
    ("device", "everything", "words"),
    [
        ([0.1, 0.2], [0.05, 0.15], "is 0.100 above that of the metadata"),
        ([0.1, 0.2], [-0.1, 0.2], "better than the device alone, but whether"),
        ([-0.2, 0.1], [-0.1, 0.2], "Whether the sound has taught it more than"),
        ([0.1, 0.2], [-0.3, -0.1], "learnt less than the metadata"),
        ([-0.3, -0.2], [0.1, 0.2], "learnt less than the device alone"),
        (
            [-0.1, 0.5],
            [0.01, 0.09],
            "better than the metadata (device, location, age, sex), but whether",
        ),
        ([0.02, 0.38], [0.05, 0.15], "is 0.100 above that of the metadata"),
        ([-0.2, 0.1], [-0.15, -0.05], "learnt less than the metadata"),
    ],
)
def test_verdict_of_paired_differences(
    judged: Results, device: list[float], everything: list[float], words: str
) -> None:
    summary = against(dict(judged.summary), device=device, all=everything)
    said = baseline_comparison.verdict(summary)
    assert words in said
    better = min(*device, *everything) > 0
    assert ("has learnt from the sound" in said) == better


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        ([0.1, 0.2], "learnt more than averages of the sound: its macro-F1 is 0.150 above"),
        ([-0.3, -0.1], "learnt less from the sound than a linear model of band statistics: its"),
        ([-0.1, 0.2], "band statistics is inconclusive: the difference in macro-F1 is +0.050"),
    ],
)
def test_verdict_of_band_statistics_follows_that_of_the_metadata(
    judged: Results, audio: list[float], words: str
) -> None:
    metadata = {"device": [0.1, 0.2], "all": [-0.3, -0.1]}
    without = baseline_comparison.verdict(against(dict(judged.summary), **metadata))
    told = baseline_comparison.verdict(
        against(dict(judged.summary), **metadata, audio_linear=audio)
    )
    assert told.startswith(f"{without} ")
    assert words in told.removeprefix(without)


def test_a_summary_of_an_earlier_release_has_no_band_statistics(folder: Path) -> None:
    early = read_results(folder).summary
    judge(folder)
    judged = read_results(folder)
    assert baseline_comparison.known_baselines(early) == ["device", "all"]
    assert baseline_comparison.metric_rows(early)[0]["baselines"] == [0.25, 0.31]
    assert baseline_comparison.metric_rows(judged.summary)[0]["baselines"] == [0.30, 0.41, 0.52]
    lines = drawn(baseline_comparison.forest_plot(judged.summary))["Band statistics"]
    assert lines.cells == ("−0.070 [−0.120, −0.020]", "winner worse")


def test_forest_tells_apart_without_colour(judged: Results) -> None:
    summary = against(dict(judged.summary), device=[0.02, 0.28], all=[-0.05, 0.13])
    table = baseline_comparison.forest_plot(summary)
    lines = drawn(table)
    device, everything = lines["Device only"], lines["Device, location, age, sex"]
    assert kinds(device) == [("diamond", pytest.approx(0.15))]
    assert device.cells == ("+0.150 [+0.020, +0.280]", "winner better")
    assert kinds(everything) == [("ring", pytest.approx(0.04))]
    assert everything.cells == ("+0.040 [−0.050, +0.130]", "inconclusive")
    assert (device.tone, everything.tone) == ("better", "open")
    worse = drawn(baseline_comparison.forest_plot(against(summary, device=[-0.3, -0.1])))[
        "Device only"
    ]
    assert (worse.tone, worse.cells[1], worse.marks[0].kind) == ("worse", "winner worse", "diamond")
    assert table is not None
    assert table.zero
    assert 0 < table.position(0) < 1


def test_baselines_are_of_the_same_clips(judged: Results) -> None:
    lines = drawn(baseline_comparison.comparison_table(judged.summary))
    assert lines["Winner, test split"].cells == ("0.450 [0.330, 0.570]",)
    assert kinds(lines["Device only"]) == [("dot", 0.30)]  # 0.25 over all data
    assert kinds(lines["Device, location, age, sex"]) == [("dot", 0.41)]


def test_candidates(judged: Results) -> None:
    found = replicate_table.candidates(judged.summary)
    winner = judged.summary["winner"]
    lines = drawn(replicate_table.candidate_table(found, "macro_f1", winner))
    assert list(lines) == ["trial 2", "trial 4"]
    best, dropped = lines.values()
    assert kinds(best) == [
        ("dot", 0.46), ("dot", 0.48), ("dot", 0.47), ("bound", 0.464), ("ring", 0.52)
    ]  # fmt: skip
    assert best.cells == ("0.470 ± 0.010", "0.464", "0.520", "3")
    assert (best.tone, dropped.tone, dropped.note) == ("ours", "pale", "dropped early")
    explain_candidates = " ".join(replicate_table.explain_candidates(found, "macro_f1", winner))
    assert "up to 3 fresh seeds" in explain_candidates
    assert (
        "0.105 below their scores in the search: the best of many scores is partly luck"
        in explain_candidates
    )
    assert "One seed alone would have selected trial 4" in explain_candidates
    loss = " ".join(
        replicate_table.explain_candidates(found, "log_loss", winner)
    )  # a lower loss: better than it was
    assert "luck" not in loss
    assert "would have selected" not in loss


def test_no_candidates_no_words(folder: Path) -> None:
    found = replicate_table.candidates(read_results(folder).summary)
    assert (found, replicate_table.explain_candidates(found, "macro_f1", {"number": 2})) == ([], [])
    assert replicate_table.candidate_table(found, "macro_f1", {"number": 2}) is None


@pytest.mark.parametrize("run", [0, 1])
def test_a_winner_by_its_one_score(judged: Results, run: int) -> None:
    """The time was up before the seeds of any candidate were there."""
    found = [
        replace(c, scores=c.scores[:run], mean=None, sd=None, bound=None)
        for c in replicate_table.candidates(judged.summary)
    ]
    winner = {**judged.summary["winner"], "replicates": None}
    explain_candidates = " ".join(replicate_table.explain_candidates(found, "macro_f1", winner))
    assert "The winner was selected by its one score in the search" in explain_candidates
    assert "do not count" not in explain_candidates
    assert "would have selected" not in explain_candidates
    assert ("were rerun on 1 fresh seed each" in explain_candidates) == bool(run)
    bounded = replicate_table.candidates(judged.summary)
    for one, wins in ((winner, False), (judged.summary["winner"], True)):
        table = replicate_table.candidate_table(bounded, "macro_f1", one)
        assert table is not None
        assert ("the best one wins" in dict(table.legend)["bound"]) == wins


def cycles(folder: Path, **values: Any) -> Results:
    explain_candidates = json.loads((folder / "summary.json").read_text())
    explain_candidates["winner"]["test"] |= {
        "icbhi_score": 0.561,
        "intervals": {"icbhi_score": [0.51, 0.61]},
        "by_seed": {"icbhi_score": {"mean": 0.55, "sd": 0.01, "values": []}},
        "sensitivity": 0.37,
    }
    change(folder, **{**explain_candidates, "task": "cycles", "protocol": "official", **values})
    return read_results(folder)


def published(results: Results) -> Any:
    return baseline_comparison.published_table(results.summary, results.config)


def test_published_figures_stand_beside_real_cycles(folder: Path) -> None:
    table = published(cycles(folder))
    assert table is not None
    assert [(line.label, *line.cells) for line in table.lines] == [
        ("the winner", "56.10", "[51.0, 61.0]"),
        ("the winner", "55.00", "± 1.00"),
        ("CNN10", "55.60", "± 1.13"),
        ("CNN10", "55.13", "± 1.56"),
        ("CNN6", "53.92", "± 0.71"),
        ("always “normal”", "50.00", ""),
    ]
    assert table.lines[1].span == pytest.approx((54.0, 56.0))
    assert "<b>Sensitivity 0.370</b>: abnormal cycles" in render(folder).read_text()


@pytest.mark.parametrize(
    "values",
    [
        {"task": "diagnosis"},
        {"protocol": "patient"},
        {"data": {"synthetic": True}},
        {"winner": {"test": None}},
    ],
)
def test_published_figures_stand_beside_nothing_else(folder: Path, values: Any) -> None:
    assert published(cycles(folder, **values)) is None


def test_without_the_shared_patients_it_is_another_test_side(folder: Path) -> None:
    explain_candidates = {"provenance": {"drop_shared_patients": True}}
    (folder / "winner" / "config.json").write_text(json.dumps(explain_candidates))
    assert published(cycles(folder)) is None


def test_classes_by_clip_and_by_patient(judged: Results) -> None:
    rows = group_tables.class_rows(judged.summary)
    lines = drawn(group_tables.class_table(rows))
    assert list(lines) == CLASSES
    assert kinds(lines["COPD"]) == [("dot", 0.5), ("ring", 0.25)]
    assert lines["COPD"].cells == ("0.500", "0.250", "–", "5", "4")
    assert [line.tone for line in lines.values()] == ["pale", "", ""]  # of 4, 5 and 6 patients
    alone = group_tables.class_table([group_tables.ClassRow("COPD", 3, 9, 0.5, 0.25)])
    assert drawn(alone)["COPD"].cells == ("0.500", "0.250", "3", "9")


def test_views_of_the_same_answers(judged: Results) -> None:
    lines = drawn(group_tables.subgroups(judged.summary, judged.predictions))
    assert list(lines) == [
        "All clips", "By patient", "Only plain device", "Only lone", "Children on the Meditron"
    ]  # fmt: skip
    assert lines["All clips"].cells[1:] == ("15", "7")
    assert kinds(lines["By patient"]) == [("chance", pytest.approx(1 / 3)), ("dot", 0.42)]
    assert lines["By patient"].cells[0] == "0.420 [0.300, 0.550]"
    assert kinds(lines["Only lone"]) == [("dot", 0.42)]  # one class: nothing to guess
    assert lines["Only lone"].note == "COPD alone: its recall"
    assert lines["Only lone"].tone == "pale"
    assert kinds(lines["Children on the Meditron"])[0] == ("chance", 0.5)


@pytest.mark.parametrize("low", [-3.0, -0.07, 0.0, 0.4311, 51.0])
@pytest.mark.parametrize("width", [1e-6, 0.013, 0.25, 0.99, 7.0, 4e3])
def test_a_scale_has_round_ticks_between_its_ends(low: float, width: float) -> None:
    line = Line("x", (Mark(low, "dot"),), (), span=(low, low + width))
    table = dot_table(("", ""), [line], zero=True)
    assert table is not None
    assert table.low < min(low, 0)
    assert max(low + width, 0) < table.high
    assert 2 <= len(table.ticks) <= 7
    for value, text in table.ticks:
        assert 0 <= table.position(value) <= 1
        assert float(text.replace("−", "-")) == pytest.approx(value)
    assert table.position(table.low - 1) == 0
    assert table.position(table.high + 1) == 1

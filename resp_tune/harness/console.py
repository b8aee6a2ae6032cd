"""Print the plan of a search before it starts, and its result at the end."""

from __future__ import annotations

import json
import math
import shlex
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from resp_tune.cluster.connect import AUTO
from resp_tune.cluster.resources import TrialResources
from resp_tune.common.choices import LEVELS, at_level
from resp_tune.common.text import amount, join_names, plural, short
from resp_tune.config import EncoderFrontEnd
from resp_tune.data.sounds.waveforms import describe_uneven_bands
from resp_tune.data.split import Leaks
from resp_tune.encoders.encode import seconds_a_window
from resp_tune.encoders.encoder_file import Encoder
from resp_tune.encoders.layers import SHOWN
from resp_tune.features.encoder_frames import expected_windows
from resp_tune.harness.options import SearchOptions, in_ray_job
from resp_tune.harness.spec import OUTER, SearchData, SearchSpec
from resp_tune.reporting.format import ranged, spread
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.replicates import MAX_CANDIDATES
from resp_tune.study.samplers import unsupported_fields
from resp_tune.tracking.model_probe import tracking_notes
from resp_tune.tracking.uri import redact, sqlite_file
from resp_tune.training.datamodule import DataModule

SHOWN_METRICS = ("macro_f1", "balanced_accuracy", "accuracy")
_BASELINES = {
    "majority": "the most frequent class",
    "device": "the device alone",
    "all": "device, location, age and sex alone",
    "audio_linear": "band statistics",
}


def show_plan(plan: Iterable[tuple[str, str]], console: Console) -> None:
    """Print the topics and texts of `describe_plan`."""
    for topic, text in plan:
        console.print(f"[bold]{topic:<9}[/]{escape(text)}", highlight=False, soft_wrap=True)


def describe_plan(spec: SearchSpec) -> Iterator[tuple[str, str]]:
    """Yield the topics of the plan and a text on each."""
    options, location, compute = spec.options, spec.location, spec.compute
    datamodule, space = spec.data.datamodule, spec.space
    dataset, split = datamodule.dataset, datamodule.split
    folder = str(location.folder)
    if location.remote is not None:
        folder = f"{location.remote}, with a copy on this machine in {folder}"
    yield "search", f"{location.name} → {folder}"
    kind = "SYNTHETIC recording" if dataset.synthetic else "recording"
    patients = len({r.patient for r in dataset.recordings})
    yield "data", f"{dataset.root}: {amount(len(dataset.recordings), kind, patients)}"
    yield "task", f"{split.task}: {', '.join(split.classes)}"
    fold = split.folds[0]
    test = "no test" if split.test is None else f"{len(split.test)} test (for the winner only)"
    if spec.outer:
        test += " (of the last search)"
        yield "nested", _describe_outer(options, [s.data.datamodule for s in spec.outer])
    yield (
        "protocol",
        f"{options.protocol}, {plural(len(split.folds), 'inner fold')}: {len(fold.train)} "
        f"recordings train, {len(fold.validation)} validation, {test}",
    )
    prefilled = "before the search" if spec.data.prefilled else "when a trial first needs it"
    for encoder in spec.data.encoders:
        yield "encoder", f"{encoder.line}; {_filling(spec.data, encoder)}"
        yield "windows", _heard(encoder)
    front_ends = plural(len(spec.data.front_ends), "front end")
    points = "" if space.size == math.inf else f"{plural(int(space.size), 'point')}; "
    yield (
        "space",
        f"{options.space}: {', '.join(space.parameters)}; {points}{front_ends}, filled {prefilled}",
    )
    yield "budget", _describe_budget(options, spec.budget, compute.slots)
    of_each = "" if options.level == "recording" else f" of each {options.level}"
    yield "metric", f"{options.metric}{of_each} on the validation split"
    tracking = redact(location.tracking_uri)
    if compute.cluster is not None and sqlite_file(location.tracking_uri) is not None:
        tracking += f" on {socket.gethostname()}, written by this driver alone"
    yield "tracking", tracking
    if compute.cluster is not None:
        job = ", of this job" if in_ray_job() and options.ray_address == AUTO else ""
        yield "cluster", f"{compute.cluster}{job}: {plural(len(compute.cluster.nodes), 'node')}"
    notes = [*_notes(space, options), *tracking_notes(location.tracking_uri)]
    notes += [*dataset.problems, *datamodule.clips.dropped]
    bands = describe_uneven_bands(dataset.recordings, spec.data.front_ends)
    of_outer = [note for s in spec.outer for note in s.data.datamodule.split.notes]
    of_splits = (*split.notes, *of_outer, split.leaks(dataset).line)
    for note in filter(None, dict.fromkeys((*notes, bands, *of_splits))):
        yield "note", note


def _describe_budget(options: SearchOptions, trials: int | None, slots: TrialResources) -> str:
    budget = "trials until the time budget is spent" if trials is None else plural(trials, "trial")
    reruns = ""
    if options.replicates > 1:
        reruns = f"; then the best {MAX_CANDIDATES} on {options.replicates} seeds"
    if options.ensemble > 1:
        reruns += f"; the winner is the mean of the best {options.ensemble}"
    folds = ""
    if options.in_sequence:
        folds = f" on each of {options.folds} folds in sequence ({options.rule_between_folds})"
    elif options.folds > 1:
        folds = f" on {options.folds} folds together"
    return (
        f"{_each(options)}{budget} of {plural(options.epochs, 'epoch')}{folds}, "
        f"{options.sampler} and {options.scheduler}, {slots}{reruns}"
    )


def _describe_outer(options: SearchOptions, outer: Sequence[DataModule]) -> str:
    tested = [{c.recording.person for c in d.split.select_clips(d.clips, d.split.test or ())}
              for d in outer]  # fmt: skip
    sizes = ", ".join(str(len(persons)) for persons in tested)
    time = "; the time budget is divided among them" if options.time_budget is not None else ""
    return (
        f"{len(outer) + 1} searches: one for each of {len(outer)} outer folds, in {OUTER}/0 to "
        f"{OUTER}/{len(outer) - 1}, tested on {sizes} patients; then one over all patients, whose "
        f"winner is registered and has no test score{time}"
    )


def _each(options: SearchOptions) -> str:
    return f"in each of {options.outer_folds + 1} searches " if options.outer_folds > 1 else ""


def _filling(data: SearchData, encoder: Encoder) -> str:
    """Return how long it takes to fill the missing caches of an encoder."""
    own = [f for f in data.front_ends if isinstance(f, EncoderFrontEnd)]
    missing = [f for f in own if f.encoder == encoder.given and not data.caches.is_there(f)]
    if not missing:
        return "its caches are filled"
    windows = sum(
        expected_windows(seconds, speed, encoder)
        for speed in {f.speed for f in missing}
        for seconds in data.seconds
    )
    each = seconds_a_window(encoder)
    return (
        f"filling {plural(len(missing), 'cache')} takes {windows:,} windows of "
        f"{1000 * each:.2g} ms, about {windows * each:,.0f} s of one core"
    )


def _heard(encoder: Encoder) -> str:
    """Return what an encoder is given, and how the axes of its layers are read.

    Both follow from its YAML or from defaults, and a wrong one shows in nothing but the scores.
    """
    settings, layers = encoder.settings, {kept.layer: (text, kept) for text, kept in encoder.kept}
    level = "" if settings.level is None else f" at {settings.level:g} dB"
    shown = [
        f"{text}: {plural(kept.frames, 'frame')} × {plural(kept.bands, 'band')} × "
        f"{plural(kept.channels, 'channel')}"
        for text, kept in layers.values()
    ]
    return (
        f"{settings.input} of {settings.rate} Hz{level}, {settings.window / settings.rate:g} s "
        f"every {settings.hop / settings.rate:g} s; of each, layer {join_names(shown, SHOWN)}"
    )


def _notes(space: SearchSpace, options: SearchOptions) -> Iterator[str]:
    sampler, wanted = options.sampler, options.budget
    preset, first = space.base.as_dict(), space.baseline().as_dict()
    moved = [f"{k} {preset[k]} → {first[k]}" for k in preset if preset[k] != first[k]]
    if moved:
        yield f"trial 0 is the preset, moved into the space: {'; '.join(moved)}"
    if names := unsupported_fields(sampler, space):
        yield (
            f"TPE draws {', '.join(names)}, each alone: {sampler} models no conditional parameters"
            f"{' and no categorical ones' if sampler == 'cmaes' else ''}"
        )
    if space.size < (math.inf if wanted is None else wanted):
        more = "" if wanted is None else f" ({wanted} trials were asked for)"
        yield (
            f"the search ends when each of the {plural(int(space.size), 'point')} of the space was "
            f"tried once{more}; --replicates trains the best again with other seeds"
        )


def show_result(path: Path) -> None:
    """Print the result on stdout, the path of `summary.json` last."""
    print(*describe_result(json.loads(path.read_bytes()), path.parent), path, sep="\n")


def describe_result(summary: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield the winner's scores beside those of the baselines, a line each."""
    winner, metric = summary["winner"], at_level(summary["metric"], summary["level"])
    trials = ", ".join(f"{n} {state}" for state, n in summary["trials"].items() if n)
    yield f"{summary['name']}: {trials} in {summary['seconds']['total']:.0f} s"
    if "pooled" in summary:
        yield from _describe_pooled(summary, metric)
    params = ", ".join(f"{k} {short(v)}" for k, v in winner["params"].items())
    last = " of the last search, over all patients" if "pooled" in summary else ""
    of = "; the best is " if winner["ensemble"] is not None else ""
    best = f"trial {winner['number']}" if of else ""
    yield f"winner{last}: {_trials(winner)}{of}{best} ({params})"
    if (reruns := winner["replicates"]) is not None:
        yield (
            f"selected among {len(summary['candidates'])} by its bound over "
            f"{len(reruns['scores'])} seeds: {metric} {spread(reruns['mean'], reruns['sd'])}, "
            f"bound {reruns['bound']:.3f}; its score in the search was {reruns['search_score']:.3f}"
        )
    yield f"validation: {_scores(winner['validation'], metric)}"
    if "pooled" in summary:
        yield "test: none for this winner, which was trained on all patients"
    else:
        yield from _describe_test(winner, metric)
    if (base := summary["baselines"]) is not None:
        yield (
            "without audio (macro_f1 / balanced_accuracy, patient-wise): "
            f"device {_pair(base['device'])}, device + location + age + sex {_pair(base['all'])}; "
            f"majority accuracy {base['majority_accuracy']:.3f}; "
            f"from band statistics of the audio {_pair(base['audio_linear'])}"
        )
    yield from _describe_differences(winner["test"])
    if (times := len(summary["test_readings"])) > 1:
        yield (
            f"the test set was evaluated {times} times, by different weights or on changed "
            "recordings: each access after the first makes the result less reliable"
        )
    if line := Leaks(**summary["leaks"], recording_share=summary["leaked_recording_share"]).line:
        yield line
    if summary["data"]["synthetic"]:
        yield "the data is SYNTHETIC: these scores say nothing about patients"
    for name, link in summary["mlflow"]["links"].items():
        yield f"{name}: {link}"
    if not summary["mlflow"]["tracking_uri"].startswith("http"):
        serve = ["bash", "scripts/ui", summary["name"], "--storage", str(folder.parent)]
        yield f"(links work while `{shlex.join(serve)}` runs)"
    yield f"report: {folder / 'report.html'}"


def _trials(winner: dict[str, Any]) -> str:
    """Return which trial a winner is, or which trials make an ensemble."""
    if (members := winner.get("ensemble")) is None:  # older searches have none
        return f"trial {winner['number']}"
    return f"the mean of {len(members)} trials, {', '.join(str(m['number']) for m in members)}"


def _describe_pooled(summary: dict[str, Any], metric: str) -> Iterator[str]:
    """Yield what the outer folds say of the procedure: pooled, by fold, against baselines."""
    pooled, outer = summary["pooled"], summary["outer"]
    yield (
        f"pooled test of {len(outer)} outer folds, {pooled['patients']} patients, each predicted "
        f"by a search without them: {_scores(pooled, metric)}; majority "
        f"{pooled['majority_accuracy']:.3f}"
    )
    for level in LEVELS[1:]:
        if (values := pooled[f"by_{level}"]) is not None:
            yield f"pooled test, each {level}: {_scores(values, SHOWN_METRICS[0])}"
    for fold in outer:
        yield (
            f"outer fold {fold['fold']}: {_trials(fold['winner'])}, {metric} validation "
            f"{fold['winner']['validation'][metric]:.3f}, test {fold['test'][metric]:.3f} on "
            f"{plural(fold['patients'], 'patient')}"
        )
    if (price := pooled["price_of_searching"]) is not None:
        yield (
            f"best validation {price['best_validation']:.3f}, test {price['test']:.3f} on average: "
            f"the mean price of searching is {price['difference']:.3f}"
        )
    for baseline, rows in pooled["differences"].items():
        differences = ", ".join(
            f"{name} {value:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")
            for name, (value, low, high) in rows.items()
        )
        yield f"pooled − {_BASELINES[baseline]}, on the same patients: {differences}"


def _describe_test(winner: dict[str, Any], metric: str) -> Iterator[str]:
    test, price = winner["test"], winner["price_of_searching"]
    if test is None:
        yield "test: none, this protocol has no test split"
        return
    yield f"test: {_scores(test, metric)}; majority {test['majority_accuracy']:.3f}"
    for level in LEVELS[1:]:
        if (values := test[f"by_{level}"]) is not None:
            yield f"test, each {level}: {_scores(values, SHOWN_METRICS[0])}"
    if price is not None:
        seed = " (one seed on average)" if winner["replicates"] is not None else ""
        seed = " (its best trial alone)" if winner["ensemble"] is not None else seed
        yield (
            f"best validation {price['best_validation']:.3f}, test {price['test']:.3f}{seed}: the "
            f"price of searching is {price['difference']:.3f}"
        )
    if (seeds := test["by_seed"]) is not None:
        names = [name for name in dict.fromkeys((metric, *SHOWN_METRICS)) if name in seeds]
        rows = (f"{n} {spread(seeds[n]['mean'], seeds[n]['sd'])}" for n in names)
        yield f"test, each seed alone: {', '.join(rows)}"


def _describe_differences(test: dict[str, Any] | None) -> Iterator[str]:
    for baseline, rows in (test["against"] if test else {}).items():
        differences = ", ".join(f"{name} {_difference(row)}" for name, row in rows.items())
        yield f"winner − {_BASELINES[baseline]}, on the test patients: {differences}"
    if test and (controlled := test["controlled"]) is not None:
        yield (
            "healthy or sick among the children of the test split on the Meditron "
            f"({controlled['clips']} recordings of {controlled['patients']} patients): "
            f"{_scores(controlled, 'macro_f1')}; majority {controlled['majority_accuracy']:.3f}"
        )


def _difference(row: dict[str, Any]) -> str:
    interval = "" if row["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*row["interval"])
    return f"{row['difference']:+.3f}{interval}"


def _scores(values: dict[str, Any], metric: str) -> str:
    names = dict.fromkeys((metric, *SHOWN_METRICS))
    spans = values.get("intervals", {})
    return ", ".join(f"{n} {ranged(values[n], spans.get(n))}" for n in names)


def _pair(row: dict[str, float]) -> str:
    return f"{row['macro_f1']:.3f} / {row['balanced_accuracy']:.3f}"

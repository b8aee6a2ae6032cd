"""What a search says: its plan before it starts, its result at the end."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from resp_tune.cluster.connect import AUTO
from resp_tune.data.split import Leaks
from resp_tune.harness.options import in_ray_job
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.replicates import MAX_CANDIDATES
from resp_tune.study.samplers import blind_to
from resp_tune.tracking.uri import redact, sqlite_file

SHOWN_METRICS = ("macro_f1", "balanced_accuracy", "accuracy")
_COLUMNS = {"device": "the device", "all": "device, location, age and sex"}


def show_plan(spec: SearchSpec, console: Console) -> None:
    """The plan in a few lines, on the console."""
    for name, text in describe_plan(spec):
        line = f"[bold]{name:<9}[/]{escape(text)}"
        console.print(line, highlight=False, soft_wrap=True)


def describe_plan(spec: SearchSpec) -> list[tuple[str, str]]:
    """Topics and what the plan says of each."""
    s, datamodule = spec.options, spec.data.datamodule
    data, split = datamodule.dataset, datamodule.split
    patients = len({r.patient for r in data.recordings})
    kind = "SYNTHETIC recordings" if data.synthetic else "recordings"
    fold = split.folds[0]
    test = "no test side" if split.test is None else f"{len(split.test)} test (the winner's alone)"
    budget = "trials until the time is up" if s.budget is None else f"{s.budget} trials"
    lines = [
        ("search", f"{spec.location.name} → {_where(spec)}"),
        ("data", f"{data.root}: {len(data.recordings)} {kind} of {patients} patients"),
        ("task", f"{split.task}: {', '.join(split.classes)}"),
        (
            "protocol",
            f"{s.protocol}, {len(split.folds)} inner fold{'s' * (len(split.folds) > 1)}: "
            f"{len(fold.train)} recordings train, {len(fold.validation)} validation, {test}",
        ),
        (
            "space",
            f"{s.space}: {', '.join(spec.space.parameters)}; {_front_ends(spec)}",
        ),
        (
            "budget",
            f"{budget} of {s.epochs} epochs, {s.sampler} and {s.scheduler}, {spec.compute.slots}"
            + (f"; then the best {MAX_CANDIDATES} on {s.replicates} seeds" * (s.replicates > 1)),
        ),
        ("metric", f"{s.metric} on validation"),
        ("tracking", _tracking(spec)),
    ]
    if spec.compute.cluster is not None:
        nodes = len(spec.compute.cluster.nodes)
        auto = ", that this job is in" if in_ray_job() and s.ray_address == AUTO else ""
        where = f"{spec.compute.cluster}{auto}: {nodes} node{'s' * (nodes > 1)}"
        lines.append(("cluster", where))
    preset, first = (c.as_dict() for c in (spec.space.base, spec.space.baseline()))
    moved = [
        f"{name} {preset[name]} → {first[name]}" for name in preset if preset[name] != first[name]
    ]
    if moved:
        lines.append(("note", f"trial 0, the preset, is moved into the space: {'; '.join(moved)}"))
    if blind := blind_to(s.sampler, spec.space):
        lines.append(
            (
                "note",
                f"{s.sampler} draws {', '.join(blind)} at random: not numbers, or not asked for in "
                "every trial",
            )
        )
    leak = split.leaks(data).line
    notes = [*data.problems, *datamodule.clips.dropped, *split.notes, *([leak] if leak else [])]
    return [*lines, *(("note", note) for note in notes)]


def _tracking(spec: SearchSpec) -> str:
    uri = redact(spec.location.tracking_uri)
    if spec.compute.cluster is None or sqlite_file(spec.location.tracking_uri) is None:
        return uri
    return f"{uri} on {socket.gethostname()}, where this driver alone writes to it"


def _where(spec: SearchSpec) -> str:
    if spec.location.remote is None:
        return str(spec.location.folder)
    return f"{spec.location.remote}, with a copy on this machine in {spec.location.folder}"


def _front_ends(spec: SearchSpec) -> str:
    count = len(spec.data.front_ends)
    when = "filled before the search" if spec.data.prefilled else "each filled when first wanted"
    return f"{count} front end{'s' * (count > 1)}, {when}"


def show_result(path: Path) -> None:
    """The result in a few lines on stdout, the path of `summary.json` last."""
    summary = json.loads(path.read_bytes())
    for line in result_lines(summary, path.parent):
        print(line)
    print(path)


def result_lines(summary: dict[str, Any], folder: Path) -> list[str]:
    """The winner's figures beside what can be had without listening."""
    winner, metric = summary["winner"], summary["metric"]
    trials = ", ".join(f"{n} {state}" for state, n in summary["trials"].items() if n)
    params = ", ".join(f"{k} {_short(v)}" for k, v in winner["params"].items())
    lines = [
        f"{summary['name']}: {trials} in {summary['seconds']['total']:.0f} s",
        f"winner: trial {winner['number']} ({params})",
    ]
    if (again := winner["replicates"]) is not None:
        lines.append(
            f"chosen among {len(summary['candidates'])} by its bound over {len(again['scores'])} "
            f"seeds: {metric} {_spread(again)}, bound {again['bound']:.3f}; in the search it had "
            f"{again['search_score']:.3f}"
        )
    lines.append(f"validation: {_figures(winner['validation'], metric)}")
    lines += _test_lines(summary)
    if (times := len(summary["test_readings"])) > 1:
        lines.append(
            f"the test side was read {times} times, by different weights or on changed recordings: "
            "each reading after the first weakens what it says"
        )
    if line := Leaks(**summary["leaks"], recording_share=summary["leaked_recording_share"]).line:
        lines.append(line)
    if summary["data"]["synthetic"]:
        lines.append("the data is SYNTHETIC: these figures say nothing about patients")
    links = summary["mlflow"]["links"]
    lines += [f"{name}: {link}" for name, link in links.items()]
    if not summary["mlflow"]["tracking_uri"].startswith("http"):
        where = f"{summary['name']} --storage {folder.parent}"
        lines.append(f"(links work while `bash scripts/ui {where}` runs)")
    return [*lines, f"report: {folder / 'report.html'}"]


def _test_lines(summary: dict[str, Any]) -> list[str]:
    winner, metric, base = summary["winner"], summary["metric"], summary["baselines"]
    without_audio = (
        "without audio (macro_f1 / balanced_accuracy, patient-wise): "
        f"device {_pair(base['device'])}, device + location + age + sex {_pair(base['all'])}; "
        f"majority accuracy {base['majority_accuracy']:.3f}"
    )
    test = winner["test"]
    if test is None:
        none = f"test: none, the protocol {summary['protocol']} has no test side"
        return [none, without_audio]
    lines = [f"test: {_figures(test, metric)}; majority {test['majority_accuracy']:.3f}"]
    if (price := winner["price_of_searching"]) is not None:
        lines.append(
            f"best validation {price['best_validation']:.3f}, test {price['test']:.3f}"
            f"{' (one seed on average)' * (winner['replicates'] is not None)}: the price of "
            f"searching is {price['difference']:.3f}"
        )
    if (seeds := test["by_seed"]) is not None:
        names = dict.fromkeys((metric, *SHOWN_METRICS))
        each = ", ".join(f"{name} {_spread(seeds[name])}" for name in names if name in seeds)
        lines.append(f"test, each seed alone: {each}")
    lines.append(without_audio)
    for what, rows in test["against"].items():
        said = ", ".join(f"{name} {_difference(row)}" for name, row in rows.items())
        lines.append(f"winner − {_COLUMNS[what]} alone, on the test side's patients: {said}")
    if (controlled := test["controlled"]) is not None:
        lines.append(
            "healthy or sick among the test side's children on the Meditron "
            f"({controlled['clips']} recordings of {controlled['patients']} patients): "
            f"{_figures(controlled, 'macro_f1')}; majority {controlled['majority_accuracy']:.3f}"
        )
    return lines


def _spread(row: dict[str, Any]) -> str:
    return f"{row['mean']:.3f} ± {row['sd']:.3f}"


def _difference(row: dict[str, Any]) -> str:
    shown = f"{row['difference']:+.3f}"
    if row["interval"] is None:
        return shown
    low, high = row["interval"]
    return f"{shown} [{low:+.3f}, {high:+.3f}]"


def _figures(values: dict[str, Any], metric: str) -> str:
    names = dict.fromkeys((metric, *SHOWN_METRICS))
    spans = values.get("intervals", {})
    return ", ".join(
        f"{n} {values[n]:.3f}" + (f" [{spans[n][0]:.3f}, {spans[n][1]:.3f}]" if n in spans else "")
        for n in names
    )


def _pair(row: dict[str, float]) -> str:
    return f"{row['macro_f1']:.3f} / {row['balanced_accuracy']:.3f}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

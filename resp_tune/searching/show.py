"""What a search says: its plan before it starts, its result at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from resp_tune.searching.prepare import Prepared
from resp_tune.tracking.uri import redact
from resp_tune.tuning.samplers import blind_to

SHOWN_METRICS = ("macro_f1", "balanced_accuracy", "accuracy")


def show_plan(prepared: Prepared, console: Console) -> None:
    """The plan in a few lines, on the console."""
    for name, text in plan_lines(prepared):
        line = f"[bold]{name:<9}[/]{escape(text)}"
        console.print(line, highlight=False, soft_wrap=True)


def plan_lines(prepared: Prepared) -> list[tuple[str, str]]:
    """Topics and what the plan says of each."""
    s, problem = prepared.settings, prepared.problem
    data, sides = problem.dataset, problem.sides
    patients = len({r.patient for r in data.recordings})
    kind = "SYNTHETIC recordings" if data.synthetic else "recordings"
    fold = sides.folds[0]
    test = "no test side" if sides.test is None else f"{len(sides.test)} test (not read yet)"
    budget = "trials until the time is up" if s.budget is None else f"{s.budget} trials"
    lines = [
        ("search", f"{prepared.name} → {prepared.folder}"),
        ("data", f"{data.root}: {len(data.recordings)} {kind} of {patients} patients"),
        ("task", f"{s.task}: {', '.join(sides.classes)}"),
        (
            "protocol",
            f"{s.protocol}, {len(sides.folds)} inner fold{'s' * (len(sides.folds) > 1)}: "
            f"{len(fold.train)} recordings train, {len(fold.validation)} validation, {test}",
        ),
        (
            "space",
            f"{s.space}: {', '.join(prepared.space.parameters)}; "
            f"{len(prepared.front_ends)} front end{'s' * (len(prepared.front_ends) > 1)}",
        ),
        (
            "budget",
            f"{budget} of {s.epochs} epochs, {s.sampler} and {s.scheduler}, {prepared.slots}",
        ),
        ("metric", f"{s.metric} on validation"),
        ("tracking", redact(prepared.tracking_uri)),
    ]
    moved = [
        f"{name} {getattr(prepared.space.base, name)} → {getattr(prepared.space.baseline(), name)}"
        for name in prepared.space.parameters
        if getattr(prepared.space.base, name) != getattr(prepared.space.baseline(), name)
    ]
    if moved:
        lines.append(("note", f"trial 0, the preset, is moved into the space: {'; '.join(moved)}"))
    if blind := blind_to(s.sampler, prepared.space):
        lines.append(("note", f"{s.sampler} draws {', '.join(blind)} at random: not numbers"))
    notes = [*data.problems, *problem.clips.dropped, *sides.notes]
    return [*lines, *(("note", note) for note in notes)]


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
    validation = winner["validation"]
    lines = [
        f"{summary['name']}: {trials} in {summary['seconds']['total']:.0f} s",
        f"winner: trial {winner['number']} ({params})",
        f"validation: {_figures(validation, metric)}",
    ]
    if winner["test"] is None:
        lines.append(f"test: none, the protocol {summary['protocol']} has no test side")
    else:
        test = winner["test"]
        lines.append(f"test: {_figures(test, metric)}; majority {test['majority_accuracy']:.3f}")
    base = summary["baselines"]
    lines.append(
        "without audio (macro_f1 / balanced_accuracy, patient-wise): "
        f"device {_pair(base['device'])}, device + location + age + sex {_pair(base['all'])}; "
        f"majority accuracy {base['majority_accuracy']:.3f}"
    )
    leaks = summary["leaks"]
    if leaks["patients"]:
        lines.append(
            f"LEAK: {leaks['patients']} patients and {leaks['sessions']} sessions stand on more "
            "than one side: these figures do not say how a new patient would be judged"
        )
    if summary["data"]["synthetic"]:
        lines.append("the data is SYNTHETIC: these figures say nothing about patients")
    links = summary["mlflow"]["links"]
    lines += [f"{name}: {link}" for name, link in links.items()]
    if not summary["mlflow"]["tracking_uri"].startswith("http"):
        where = f"{summary['name']} --storage {folder.parent}"
        lines.append(f"(links work while `bash scripts/ui {where}` runs)")
    return [*lines, f"report: {folder / 'report.html'}"]


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

"""Write an audit as titled tables, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resp_tune.audit.counts import in_order
from resp_tune.common.choices import CYCLE_METRICS, LEVELS, METRIC_MODES
from resp_tune.common.text import amount
from resp_tune.reporting.format import NONE, figure, metric_name, ranged, signed
from resp_tune.training.metrics import CYCLE_CLASSES

CONTROLLED = "Children on the Meditron"
TABLES = {
    "diagnosis_by_device": "Diagnosis × device: recordings (patients)",
    "diagnosis_by_age": "Diagnosis × age in years: recordings (patients)",
    "device_by_age": "Device × age in years: recordings (patients)",
}
NAMES = {"device": "device", "all": "metadata", "audio_linear": "band statistics"}
_COLUMNS = ("device", "metadata", "bands")  # short, because the table is wide
Rows = list[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A titled table or list. `about` explains it on the page; `lines` follow it everywhere.

    `words` is the number of text columns at the right end of the table; `shades` are the cells'
    colours, in 0…1.
    """

    title: str
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    about: str = ""
    lines: Sequence[str] = ()
    words: int = 0
    shades: Sequence[Sequence[float]] = ()


def audit_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return the sections of an audit, without its counts and warnings."""
    model = _model_sections(found["model"]) if "model" in found else []
    tables = [_cross_table(title, found["tables"][name]) for name, title in TABLES.items()]
    return [
        *model,
        _baselines(found),
        _patient_lookup(found["patient_lookup"]),
        _leaks(found["leaks"]),
        *tables,
        _cycles(found["counts"]),
        Section("Defects", lines=found["defects"] or ["none found"]),
        _shortcuts(found["shortcuts"]),
        _front_end(found["front_end"]),
    ]


def compare_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return a section for each split on which two models are compared."""
    sections = []
    for split, compared in found["sides"].items():
        size = amount(compared["clips"], "clip", compared["patients"])
        note = (
            "runs are selected on this split, so the metrics of a selected one are too high here. "
            "All clips are pooled, a winner's after averaging over its seeds; a search's own "
            "scores are means over its folds and seeds, so they differ where it has several"
        )
        less = {name for name, mode in METRIC_MODES.items() if mode == "min"}
        rows = [
            (metric_name(name) + " (less is better)" * (name in less), *_paired(metric, "a", "b"))
            for name, metric in compared["metrics"].items()
        ]
        title = f"{split}: {size}, {', '.join(compared['classes'])}"
        headers = ("", "A", "B", "A - B", "95 % interval", "0 inside")
        lines = [note] if split == "validation" else []
        sections.append(Section(title, headers, rows, lines=lines))
    return sections


def blend_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return a section on validation, which chose the weights, and one for each level of test."""
    name = metric_name(found["metric"])
    rows = [(name, *(figure(found["validation"][key]) for key in ("a", "b", "blend")))]
    chosen = "the weights were chosen here, so the blend's metric is too high"
    sections = [Section("validation", ("", "A", "B", "blend"), rows, lines=[chosen])]
    headers = ("", "blend", "95 % interval", "blend - A", "95 % interval", "blend - B",
               "95 % interval")  # fmt: skip
    for level, scores in (found["test"] or {}).items():
        rows = [
            (
                metric_name(key),
                figure(scores[key]),
                _span(scores["intervals"].get(key)),
                *(cell for ab in ("a", "b") for cell in _difference(scores, ab, key)),
            )
            for key in scores["differences"]["a"]
        ]
        size = amount(scores["clips"], "clip", scores["patients"])
        sections.append(Section(f"test, by {level}: {size}", headers, rows))
    if found["test"] is None:
        sections.append(Section("test", lines=["the two have no test split in common"]))
    return sections


def _difference(scores: Mapping[str, Any], other: str, key: str) -> tuple[str, str]:
    value, *span = scores["differences"][other][key]
    return signed(value), _span(None if None in span else span)


def _span(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{figure(ends[0])} to {figure(ends[1])}"


def _model_sections(model: Mapping[str, Any]) -> list[Section]:
    search = f"{model['search']}, trial {model['trial']}, " if model["search"] else ""
    title = f"Model: {search}{model['task']}, {model['protocol']}, split seed {model['split_seed']}"
    test = model["test"]
    if test is None:
        return [Section(title, lines=[model["reason"], *model["notes"]])]
    cycles = [f"{metric_name(n)} {_ranged(test['by_clip'], n)}" for n in CYCLE_METRICS
              if n in test["by_clip"]]  # fmt: skip
    children = test["controlled"]
    controlled = children and (
        f"{CONTROLLED}, healthy or sick: balanced accuracy {_ranged(children, 'balanced_accuracy')}"
        f", AUROC {_ranged(children, 'auroc')} "
        f"({amount(children['clips'], 'clip', children['patients'])})"
    )
    keys = ("recall", "precision", "support", "patient_recall", "patients")
    return [
        Section(
            title,
            ("", "clips", "patients", "macro-F1", "balanced accuracy", "accuracy", "majority"),
            model_rows(model),
            "On the test split. In brackets the 95 % interval over resamples of the patients "
            "(bootstrap). By session and patient: the mean log-probability over the recordings. "
            "Within one device the stethoscope gives nothing away. The last four rows are "
            "baselines, fitted on the other splits; all but band statistics use no sound.",
            [line for line in (", ".join(cycles), controlled, *model["notes"]) if line],
        ),
        Section(
            "The model against the baselines",
            ("", "model", "baseline", "difference", "95 % interval", "0 inside"),
            [
                (f"{NAMES[baseline]}: {metric_name(name)}", *_paired(metric, "winner", "baseline"))
                for baseline, metrics in test["against"].items()
                for name, metric in metrics.items()
            ],
            "Both on the same resamples of the patients: where 0 is inside, other patients might "
            "reverse the difference.",
        ),
        Section(
            "Each class",
            ("class", "recall", "precision", "clips", "patients' recall", "patients"),
            [(name, *_cells(row, *keys)) for name, row in test["per_class"].items()],
        ),
    ]


def model_rows(model: Mapping[str, Any]) -> Rows:
    """Return the test split by clip, patient and device; then the baselines."""
    test = model["test"]
    unit = "cycle" if model["task"] == "cycles" else "recording"
    rows = [_metrics_row(f"by {unit}", test["by_clip"])]
    pooled = {level: test[f"by_{level}"] for level in LEVELS[1:]}
    rows += [_metrics_row(f"by {level}", found) for level, found in pooled.items() if found]
    for device, found in test["by_device"].items():
        classes = _classes(found["classes"], model["classes"])
        rows.append(_metrics_row(f"within {device}, {classes}", found))
    for key, name in NAMES.items():
        scores = _cells(test["baselines"][key], "macro_f1", "balanced_accuracy")
        rows.append((f"baseline: {name}", "", "", *scores, "", ""))
    majority = figure(test["baselines"]["majority_accuracy"])
    rows.append(("majority class of the training split", *[""] * 4, majority, ""))
    return rows


def _baselines(found: Mapping[str, Any]) -> Section:
    scored = {**found["baselines"], CONTROLLED: found["controlled"]["baselines"] or {}}
    rows = []
    for task, scores in scored.items():
        row = [task, *_cells(scores, "chance", "majority_accuracy")]
        for baseline in NAMES:
            row += _cells(scores.get(baseline) or {}, "balanced_accuracy", "macro_f1")
        rows.append(row)
    lines = [f"{task}: {scores['reason']}" for task, scores in scored.items() if "reason" in scores]
    healthy, sick = found["controlled"]["healthy"], found["controlled"]["sick"]
    if healthy:
        sizes = [amount(g["recordings"], "recording", g["patients"]) for g in (healthy, sick)]
        lines.append(
            f"{CONTROLLED}: healthy {sizes[0]}, sick {sizes[1]}; the same device and nearly the "
            "same age in both groups"
        )
    return Section(
        "Baselines, by patient (metadata: device, location, age, sex; bands: band statistics)",
        ("task", "chance", "majority", *(f"{w} {s}" for w in _COLUMNS for s in ("BA", "F1"))),
        rows,
        "Cross-validated by patient in 5 folds: random forests on the recordings' metadata, "
        "without audio, and a logistic regression on statistics of each clip's mel bands (mean, "
        "spread, quantiles, changes over time). BA is balanced accuracy, F1 is macro-F1. A model "
        "below the forests has learnt less than which stethoscope was used; one below the "
        "regression has learnt nothing beyond how loud each band is and how much it varies.",
        lines,
    )


def _patient_lookup(lookup: Mapping[str, Any]) -> Section:
    title = "Looking up the patient, without audio (random split by recording)"
    if "reason" in lookup:
        return Section(title, lines=[f"not possible for this set: {lookup['reason']}"])
    names = ("accuracy", "macro_f1", "balanced_accuracy")
    values = ", ".join(f"{metric_name(name)} {lookup[name]:.3f}" for name in names)
    return Section(title, lines=[f"{values}, task {lookup['task']}: what such a split rewards"])


def _leaks(leaks: Mapping[str, Mapping[str, Any]]) -> Section:
    rows: Rows = []
    for name, found in _protocols(leaks):
        if found["patients"] is None:
            rows.append((name, *[NONE] * 4, "see below"))
            continue
        leaked = f"{100 * found['recording_share']:.1f} %"
        sizes = " + ".join(str(n) for n in found.get("recordings", {}).values())
        classes = f"{found['task']}, {len(found['classes'])}" if sizes else ""
        rows.append((name, str(found["patients"]), str(found["sessions"]), leaked, classes, sizes))
    return Section(
        "Leaks: in more than one split; held-out recordings whose patient is in training",
        ("protocol", "patients", "sessions", "leaked", "task, classes", "recordings"),
        rows,
        "Recordings: training + validation + test.",
        [f"{name}: {one['reason']}" for name, one in _protocols(leaks) if "reason" in one],
        words=2,
    )


def _protocols(leaks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for protocol, found in leaks.items():
        held_out = found.get("held_out", {})
        if not held_out:
            yield protocol, found
        for device, one in held_out.items():
            yield f"{protocol}: {device}", one
        if dropped := found.get("without_shared_patients"):
            yield f"{protocol}, shared dropped", dropped


def _cross_table(title: str, table: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Section:
    columns = in_order(column for cells in table.values() for column in cells)
    most = max(cell["patients"] for cells in table.values() for cell in cells.values())
    rows, shades = [], []
    for name, cells in table.items():
        chosen = [cells.get(column) for column in columns]
        sizes = [f"{c['recordings']} ({c['patients']})" if c else NONE for c in chosen]
        rows.append((name, *sizes))
        shades.append([0.0, *(round(c["patients"] / most, 3) if c else 0.0 for c in chosen)])
    return Section(title, ("", *columns), rows, shades=shades)


def _cycles(counts: Mapping[str, Any]) -> Section:
    parts = {"all": counts, **{f"official {s}": part for s, part in counts["official"].items()}}
    keys = ("cycles", "recordings", "patients")
    return Section(
        "Breathing cycles",
        ("", *CYCLE_CLASSES, "all", *keys[1:]),
        [
            (name, *_cells(part["cycles_by_class"], *CYCLE_CLASSES), *_cells(part, *keys))
            for name, part in parts.items()
        ],
    )


def _shortcuts(shortcuts: Mapping[str, Mapping[str, Any] | None]) -> Section:
    rows = [
        (
            s["measure"],
            *_cells(s, "value", "by_chance", "limit"),
            f"{s['p_value']:.4f}",
            str(s["patients"]),
            "yes" if s["found"] else "no",
        )
        for s in shortcuts.values()
        if s
    ]
    return Section(
        "Shortcuts",
        ("measure", "here", "permuted: mean", "permuted: limit", "p", "patients", "warned"),
        rows,
        "The diagnoses are permuted among the patients ten thousand times. A shortcut is warned of "
        "if next to none of the permutations reaches the value of the data, and the difference is "
        "large.",
        [] if rows else ["none can be tested with so few patients"],
        words=1,
    )


def _front_end(found: Mapping[str, Any]) -> Section:
    targets = found["targets"]
    title = f"What the last {found['bands']} mel bands, or the length, show"
    headers = [f"{name} {metric}" for name in targets for metric in ("BA", "F1")]
    rows = [
        (_front_end_name(f), figure(f["native_minus_resampled_db"]), *_scored(f, targets))
        for f in found["front_ends"]
    ]
    if targets:
        rows.append(("the length alone", NONE, *_scored(found["length"], targets)))
        chance = [cell for t in targets.values() for cell in (figure(t["chance"]), NONE)]
        rows.append(("chance", NONE, *chance))
    return Section(
        title,
        ("front end", "native - resampled, dB", *headers),
        rows,
        "Random forests on nothing but the mean and standard deviation over time of the highest "
        "bands, or on the length, cross-validated by patient in 5 folds. BA is balanced accuracy, "
        "F1 is macro-F1. In dB: how much more the last band falls off in resampled recordings than "
        "in those made at the front end's rate.",
        [] if targets else ["no forest can be trained with so few patients"],
    )


def _front_end_name(fields: Mapping[str, Any]) -> str:
    band = f"{fields['f_min']:g} to {fields['f_max']:g} Hz"
    return f"{fields['sample_rate']} Hz, {fields['n_mels']} mels, {band}, {fields['compression']}"


def _scored(scores: Mapping[str, Any], targets: Mapping[str, Any]) -> list[str]:
    return [cell for name in targets for cell in _cells(scores[name], *_SCORES)]


_SCORES = ("balanced_accuracy", "macro_f1")


def _paired(found: Mapping[str, Any], one: str, other: str) -> Sequence[str]:
    interval, inside = NONE, NONE
    if found["interval"] is not None:
        low, high = found["interval"]
        interval, inside = f"[{signed(low)}, {signed(high)}]", "yes" if low <= 0 <= high else "no"
    return (*_cells(found, one, other), signed(found["difference"]), interval, inside)


def _ranged(metrics: Mapping[str, Any], name: str) -> str:
    return ranged(metrics[name], metrics["intervals"].get(name))


def _cells(values: Mapping[str, Any], *keys: str) -> list[str]:
    """Return metrics with three decimals, counts as they are, a dash for what is unknown."""
    chosen = [values.get(key) for key in keys]
    return [str(value) if isinstance(value, int) else figure(value) for value in chosen]


def _metrics_row(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    ranges = (_ranged(found, key) for key in ("macro_f1", "balanced_accuracy"))
    counts = _cells(found, "clips", "patients")
    return (name, *counts, *ranges, *_cells(found, "accuracy", "majority_accuracy"))


def _classes(there: Sequence[str], of: Sequence[str]) -> str:
    """Return `6 classes`, or the names of those that are, or are not, in the averages."""
    absent = [name for name in of if name not in there]
    if not absent:
        return f"{len(there)} classes"
    if len(absent) < len(there):
        return f"without {', '.join(absent)}"
    return f"{', '.join(there)} only"

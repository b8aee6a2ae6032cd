"""Result folders as a search leaves them, and a page taken apart."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CLASSES = ["COPD", "Healthy", "URTI"]
HOSTILE = '"></script><script>window.broken=1</script><img src=x onerror="window.broken=1">'
FILES = ["trials.csv", "epochs.csv", "winner/predictions.csv", "winner/config.json"]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def figures(value: float) -> dict[str, float]:
    return {"macro_f1": value, "balanced_accuracy": value + 0.01, "accuracy": value + 0.02,
            "log_loss": 1.5 - value}  # fmt: skip


def make(folder: Path, word: str = "plain") -> Path:
    """Six trials of four epochs: 4 finished, 1 pruned, 1 failed; `word` in every kind of text."""
    (folder / "winner").mkdir(parents=True)
    states = ["finished", "pruned", "finished", "failed", "finished", "finished"]
    scores = [0.30, None, 0.52, None, 0.41, 0.35]
    trials = [
        {"number": n, "state": state, "score": "" if score is None else score, "epochs": 4,
         "seconds": 9.5 - n, "seed": n, "mlflow_run_id": f"{n}" * 32, "lr": 10 ** (-4 + n / 3),
         "n_mels": 32 + n, "balance": word if n % 2 else "none"}
        for n, (state, score) in enumerate(zip(states, scores, strict=True))
    ]  # fmt: skip
    write(folder / "trials.csv", trials)
    epochs = [
        {"number": n, "epoch": e, "train_loss": 2 / e, "val_loss": 2.2 / e,
         "val_macro_f1": (scores[n] or 0.2) * e / 4, "lr": 0.01, "seconds": 1.0}
        for n in range(6) for e in range(1, 5)
    ]  # fmt: skip
    write(folder / "epochs.csv", epochs)
    predictions = [
        {"side": side, "recording": f"{word}_{i}", "patient": f"{word}{i // 2}",
         "device": f"{word} device", "label": CLASSES[i % 3], "predicted": CLASSES[i * i % 3],
         **{f"p_{c}": 1 / 3 for c in CLASSES}}
        for side in ("validation", "test") for i in range(14)
    ]  # fmt: skip
    write(folder / "winner" / "predictions.csv", predictions)
    config = {
        "classes": CLASSES,
        "trial_config": {"lr": 0.002, "balance": word},
        "provenance": {"command": f"python -m resp_tune.search --name {word}"},
    }
    (folder / "winner" / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary(folder.name, word)))
    return folder


def summary(name: str, word: str) -> dict[str, Any]:
    """What a search without replicates wrote before the winner's parts were in its summary."""
    test = {**figures(0.45), "majority_accuracy": 0.36}
    return {
        "name": word if word != "plain" else name,
        "task": "diagnosis",
        "protocol": "patient",
        "metric": "macro_f1",
        "data": {"name": word, "synthetic": False, "recordings": 60, "notes": [word]},
        "classes": CLASSES,
        "trials": {"finished": 4, "pruned": 1, "diverged": 0, "failed": 1},
        "winner": {
            "number": 2,
            "params": {"lr": 0.00046, "balance": word},
            "seeds": [2],
            "validation": figures(0.52),
            "test": {**test, "intervals": {"macro_f1": [0.33, 0.57], "log_loss": [0.9, 1.2]}},
        },
        "test_readings": [
            {"time": "2026-01-05T10:11:12Z", "winner_number": 2, "weights_sha256": "0a" * 32}
        ],
        "baselines": {
            "majority_accuracy": 0.36,
            "device": {"balanced_accuracy": 0.30, "macro_f1": 0.25},
            "all": {"balanced_accuracy": 0.35, "macro_f1": 0.31},
        },
        "leaks": {"patients": 0, "sessions": 0},
        "seconds": {"total": 60.0, "training": 50.0, "per_trial_overhead": 1.2},
        "mlflow": {
            "tracking_uri": f"sqlite:////tmp/{word}",
            "experiment_id": "1",
            "parent_run_id": "ab" * 16,
            "model": "resp_tune",
            "version": "3",
            "links": {"trials": "http://127.0.0.1:5000/#/experiments/1/runs?a=b&c=d"},
        },
        "versions": {"torch": "2.14.1"},
    }


def judge(folder: Path, word: str = "plain") -> None:
    """Add what a search with `--replicates 3` says more: candidates, seeds, parts, baselines."""
    told = json.loads((folder / "summary.json").read_text())
    seeds = [11, 12, 13]
    told["candidates"] = [
        {"number": 2, "search_score": 0.52, "seeds": seeds, "scores": [0.46, 0.48, 0.47],
         "mean": 0.47, "sd": 0.01, "bound": 0.464, "dropped": False},
        {"number": 4, "search_score": 0.55, "seeds": seeds[:2], "scores": [0.40, 0.38],
         "mean": 0.39, "sd": 0.014, "bound": 0.38, "dropped": True},
    ]  # fmt: skip
    part = {"clips": 8, "patients": 7, "classes": CLASSES, **figures(0.41),
            "intervals": {"balanced_accuracy": [0.30, 0.55]}}  # fmt: skip
    difference = {"winner": 0.45, "baseline": 0.30, "difference": 0.15, "interval": [0.02, 0.28]}
    near = {"winner": 0.45, "baseline": 0.41, "difference": 0.04, "interval": [-0.05, 0.13]}
    less = {"winner": 0.45, "baseline": 0.52, "difference": -0.07, "interval": [-0.12, -0.02]}
    told["winner"] |= {
        "seeds": seeds,
        "replicates": {"seeds": seeds, "scores": [0.46, 0.48, 0.47], "mean": 0.47, "sd": 0.01,
                       "bound": 0.464, "search_score": 0.52},
        "price_of_searching": {"best_validation": 0.55, "test": 0.45, "difference": 0.10},
    }  # fmt: skip
    told["winner"]["test"] |= {
        "by_seed": {"macro_f1": {"mean": 0.44, "sd": 0.02, "values": [0.42, 0.44, 0.46]}},
        "per_class": {
            name: {"recall": 0.5, "precision": None, "support": 5, "patients": 4 + i,
                   "patient_recall": 0.25}
            for i, name in enumerate(CLASSES)
        },
        "by_patient": part,
        "by_device": {f"{word} device": part, "lone": {**part, "classes": ["COPD"]}},
        "controlled": {**part, "classes": ["healthy", "sick"], "auroc": 0.66},
        "against": {"device": {"macro_f1": difference}, "all": {"macro_f1": near},
                    "audio_linear": {"macro_f1": less}},
    }  # fmt: skip
    told["baselines"]["audio_linear"] = {"balanced_accuracy": 0.50, "macro_f1": 0.48}
    change(folder, **told)


def change(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Page(HTMLParser):
    """Elements, attributes, and text outside of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += f" {' '.join(data.split())}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

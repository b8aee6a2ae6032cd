"""The rows as a table with their targets, as JSON, and as a section of a Markdown file."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
PACKAGES = ("torch", "torchaudio", "ray", "optuna", "mlflow", "numpy", "soundfile")
KILO = 1024.0


@dataclass(frozen=True)
class Target:
    """What a row must reach, and what it is meant to reach."""

    what: str
    sense: Literal["≥", "≤"]
    must: float
    aim: float | None = None

    def met(self, value: float) -> bool:
        """Whether `value` is as good as it must be."""
        return value >= self.must if self.sense == "≥" else value <= self.must

    def __str__(self) -> str:
        aim = "" if self.aim is None else f", aim {self.aim:g}"
        return f"{self.sense} {self.must:g}{aim}"


TARGETS: dict[str, Target] = {
    "a_over_b": Target("epoch, notebook ÷ resp_tune with its very settings", "≥", 3, 4.5),
    "a_over_c": Target("epoch, notebook ÷ resp_tune with what it chooses for speed", "≥", 7, 10),
    "total_a_over_c": Target("20 epochs with filling the cache, A ÷ C", "≥", 5, 7),
    "c_over_d": Target("what the data path adds to pure training, C ÷ D", "≤", 1.10),
    "f_over_e": Target("whole search, notebook under Ray Tune ÷ resp_tune.search", "≥", 7, 10),
    "overhead_per_trial_s": Target("Ray, Optuna and MLflow, seconds a trial", "≤", 0.25),
    "overhead_per_epoch_ms": Target("the same, ms a reported epoch", "≤", 10),
    "memory_share": Target("memory of the features, 4 trials ÷ 1", "≤", 1.05),
    "growth_1000": Target("time a trial late in a long search ÷ early", "≤", 1.3),
    "slots_busy": Target("share of many slots at work", "≥", 0.9),
    "fill_all_over_one": Target("filling the cache, all mel sizes ÷ one", "≤", 1.3),
    "d_peak_share": Target("pure training, share of the float32 peak", "≥", 0.35),
}


@dataclass(frozen=True)
class Row:
    """One figure; `value` is None where it could not be measured, and `how` says why."""

    key: str
    value: float | None
    how: str

    @property
    def verdict(self) -> str:
        """Whether the target was met."""
        if self.value is None:
            return "failed"
        return "met" if TARGETS[self.key].met(self.value) else "**not met**"


def table(rows: list[Row], *, quick: bool) -> str:
    """The rows in Markdown, every one of a quick run marked as such."""
    lines = ["| row | value | target | | how it was measured |", "|---|---|---|---|---|"]
    for row in rows:
        target = TARGETS[row.key]
        value = "–" if row.value is None else f"{row.value:.3g}"
        how = f"quick: {row.how}" if quick else row.how
        name = f"{target.what} (`{row.key}`)"
        lines.append(f"| {name} | {value} | {target} | {row.verdict} | {how} |")
    return "\n".join(lines)


def section(rows: list[Row], facts: Mapping[str, str], *, quick: bool) -> str:
    """The benchmark's own section, between its markers."""
    title = "## Speed, quick run" if quick else "## Speed"
    head = "\n".join(f"{name}: {text}  " for name, text in facts.items())
    return "\n".join([BEGIN, title, "", head, "", table(rows, quick=quick), END])


def put_section(text: str, new: str) -> str:
    """`text` with the benchmark's section replaced by `new`, or `new` at its end; no other byte."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        return text.rstrip("\n") + "\n\n" * bool(text.strip()) + new + "\n"
    return text[:begin] + new + text[end + len(END) :]


def hardware() -> str:
    """The processor, the cores that this process may use, the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / KILO**3
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Python and the packages that the figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}

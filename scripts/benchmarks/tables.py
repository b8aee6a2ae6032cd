"""Format the rows with their targets as a table and as a section of a Markdown file."""

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
GIBIBYTE = 1024.0**3


@dataclass(frozen=True)
class Target:
    """The value that a row must reach, and the value it should reach."""

    description: str
    comparison: Literal["≥", "≤"]
    must: float
    aim: float | None = None

    def met(self, value: float) -> bool:
        """Return whether `value` reaches the required value."""
        return value >= self.must if self.comparison == "≥" else value <= self.must

    def __str__(self) -> str:
        aim = "" if self.aim is None else f", aim {self.aim:g}"
        return f"{self.comparison} {self.must:g}{aim}"


TARGETS: dict[str, Target] = {
    "a_over_b": Target("epoch, notebook ÷ resp_tune with the same settings", "≥", 3, 4.5),
    "a_over_c": Target("epoch, notebook ÷ resp_tune with automatic precision", "≥", 7, 10),
    "total_a_over_c": Target("20 epochs and filling the cache, A ÷ C", "≥", 5, 7),
    "c_over_d": Target("epoch, with the data path ÷ from memory, C ÷ D", "≤", 1.10),
    "f_over_e": Target("whole search, notebook under Ray Tune ÷ resp_tune.search", "≥", 7, 10),
    "overhead_per_trial_s": Target("overhead of Ray, Optuna and MLflow, s per trial", "≤", 0.25),
    "overhead_per_epoch_ms": Target(
        "overhead of Ray, Optuna and MLflow, ms per reported epoch", "≤", 10
    ),
    "memory_share": Target("memory of the features, 4 trials ÷ 1 trial", "≤", 1.05),
    "growth_1000": Target("time per trial, late ÷ early in a long search", "≤", 1.3),
    "slots_busy": Target("share of busy slots, many slots", "≥", 0.9),
    "fill_all_over_one": Target("filling the cache, all mel sizes ÷ one size", "≤", 1.3),
    "d_peak_share": Target("training from memory, share of the float32 peak", "≥", 0.35),
}


@dataclass(frozen=True)
class Row:
    """One figure and its method; `value` is None if it could not be measured, `method` says why."""

    key: str
    value: float | None
    method: str

    @property
    def verdict(self) -> str:
        """Return whether the target was met, for the table."""
        if self.value is None:
            return "failed"
        return "met" if TARGETS[self.key].met(self.value) else "**not met**"


def table(rows: list[Row], *, quick: bool) -> str:
    """Return the rows as a Markdown table; `quick` marks each of them."""
    lines = ["| row | value | target | | method |", "|---|---|---|---|---|"]
    for row in rows:
        target = TARGETS[row.key]
        value = "–" if row.value is None else f"{row.value:.3g}"
        method = f"quick: {row.method}" if quick else row.method
        name = f"{target.description} (`{row.key}`)"
        lines.append(f"| {name} | {value} | {target} | {row.verdict} | {method} |")
    return "\n".join(lines)


def section(rows: list[Row], facts: Mapping[str, str], *, quick: bool) -> str:
    """Return the benchmark's section of the page, between its markers."""
    title = "## Speed, quick run" if quick else "## Speed"
    head = "\n".join(f"{name}: {text}  " for name, text in facts.items())
    return "\n".join([BEGIN, title, "", head, "", table(rows, quick=quick), END])


def put_section(text: str, new: str) -> str:
    """Return `text` with the section between the markers replaced by `new`, or `new` appended."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        return text.rstrip("\n") + "\n\n" * bool(text.strip()) + new + "\n"
    return text[:begin] + new + text[end + len(END) :]


def hardware() -> str:
    """Return the processor, the cores that this process may use, and the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / GIBIBYTE
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which the figures depend."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}

"""Identify a run of a trial config within its search."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple


class TrialKey(NamedTuple):
    """The number of a trial in the study, and the replicate: from 1, or 0 for the trial itself."""

    number: int
    replicate: int = 0

    @property
    def label(self) -> str:
        """The name in tables and messages: `7`, or `7/2` for the second replicate of trial 7."""
        return f"{self.number}/{self.replicate}" if self.replicate else str(self.number)

    @property
    def folder(self) -> Path:
        """The folder of the run's files, relative to the search's `trials/`."""
        own = Path(str(self.number))
        return own / "replicates" / str(self.replicate) if self.replicate else own

    @property
    def kind(self) -> Literal["trial", "replicate"]:
        """The kind of MLflow run, as its tag `resp_tune.kind` has it."""
        return "replicate" if self.replicate else "trial"

"""Where the files of trials are: a folder that every node sees, or an object store.

With an object store each node has its own copy of the folder, and uploads what must outlive it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resp_tune.config import TrialConfig
from resp_tune.storage.object_store import ObjectPath, StorageError


@dataclass(frozen=True)
class TrialArtifacts:
    """The folder `trials/` of a search; `remote` is the object store that holds it, if any does."""

    folder: Path
    remote: ObjectPath | None = None

    @property
    def local_folder(self) -> Path:
        """Return the folder on this machine."""
        return self.folder if self.remote is None else self.remote.local_copy

    def fetch_newer_checkpoint(
        self, run_folder: Path | str, config: TrialConfig, study: str | None
    ) -> str | None:
        """Replace the local checkpoint of a run by the remote one if that has more epochs.

        Returns the reason if the store does not answer: the run may then repeat epochs that it has
        had elsewhere, with the same result.
        """
        if self.remote is None:
            return None
        from resp_tune.training.checkpoint import CHECKPOINT, epochs_in

        path = self.local_folder / run_folder / CHECKPOINT
        if (local_epochs := epochs_in(path, config, study)) == config.epochs:
            return None
        fetched = path.with_name(f".{CHECKPOINT}.fetched.part")
        try:
            if not (self.remote / run_folder).fetch(CHECKPOINT, fetched):
                return None
        except StorageError as error:
            return str(error)
        if epochs_in(fetched, config, study) > local_epochs:
            fetched.replace(path)
        fetched.unlink(missing_ok=True)
        return None

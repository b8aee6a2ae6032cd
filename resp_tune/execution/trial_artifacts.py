"""Where the files of trials are: a folder that every node sees, or a place in an object store.

In the second case each node has a copy of its own, and what must outlive the node goes up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from resp_tune.config import TrialConfig
from resp_tune.storage.object_store import ObjectPath, StorageError
from resp_tune.storage.uploader import Uploader

# A trial that ends waits so long for its last files, and in an outage for one attempt alone.
LAST_SECONDS = 20.0


@dataclass(frozen=True)
class TrialArtifacts:
    """The folder `trials/` of a search. `remote`: the object store that holds it, if any does."""

    folder: Path
    remote: ObjectPath | None = None

    @property
    def here(self) -> Path:
        """The folder on this machine."""
        return self.folder if self.remote is None else self.remote.local_copy

    def newest_checkpoint(
        self, trial: Path | str, config: TrialConfig, study: str | None
    ) -> str | None:
        """Let the checkpoint of `trial` here be the one with the most epochs of here and there.

        The reason where the store could not be asked: a trial may then repeat what it had done
        elsewhere, and comes to the same.
        """
        if self.remote is None:
            return None
        from resp_tune.training.checkpoint import CHECKPOINT, epochs_in

        path = self.here / trial / CHECKPOINT
        if (own := epochs_in(path, config, study)) == config.epochs:
            return None
        beside = path.with_name(f".{CHECKPOINT}.fetched.part")
        try:
            if not (self.remote / trial).fetch(CHECKPOINT, beside):
                return None
        except StorageError as error:
            return str(error)
        if epochs_in(beside, config, study) > own:
            beside.replace(path)
        beside.unlink(missing_ok=True)
        return None


class Sender:
    """Sends a worker's files up, if they go anywhere; never fails and never waits for long."""

    def __init__(self, files: TrialArtifacts) -> None:
        self.files = files

    @cached_property
    def _uploads(self) -> Uploader | None:
        return None if self.files.remote is None else Uploader(self.files.remote)

    def send(self, path: Path) -> None:
        """A file below `files.here`; what cannot be sent now is tried again with the next one."""
        if self._uploads is not None:
            self._uploads.add(path.relative_to(self.files.here).as_posix(), path)

    def finish(self) -> None:
        """Wait for what is due."""
        if self._uploads is not None:
            self._uploads.flush(LAST_SECONDS)

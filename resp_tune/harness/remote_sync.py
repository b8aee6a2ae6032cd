"""A search whose storage is an object store: kept on this disk, mirrored there as it goes.

The study and the files are read and written in the search's folder below the cache. A snapshot of
the study goes up whenever a trial begins or ends, and everything at the end; trials' checkpoints go
up from the workers. While the store is away the search goes on.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

import optuna

from resp_tune.errors import RunError, UserError
from resp_tune.harness.reconcile import STUDY, download_search
from resp_tune.harness.spec import SearchLocation
from resp_tune.storage.lease import Lease
from resp_tune.storage.object_store import StorageError
from resp_tune.storage.uploader import Uploader
from resp_tune.study.study import DRIVERS, TrialRecord

log = logging.getLogger(__name__)


PATIENCE_SECONDS = 60.0  # with a store that is away when all else is done
LEAVING_SECONDS = 15.0  # the same of somebody who has interrupted


class StorageUnreachableError(RunError):
    """The store was waited for, in vain: to ask it once more is of no use."""


class NullSync:
    """Of a search in a folder: that is all there is to it."""

    def opened(self, study: optuna.Study) -> None:
        """The study is there, and what a continued search is held against."""

    def started(self, trial: TrialRecord, seed: int) -> None:
        """A trial was handed out."""

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """A trial has new epochs: its checkpoint has them too, so they need not go up."""

    def ended(self, trial: TrialRecord) -> None:
        """A trial is over."""

    def record(self, what: str) -> None:
        """Let the study be in the storage as it is now, before `what` is done; else `RunError`."""

    def complete(self) -> None:
        """Let the storage hold all the files; else `RunError`."""


class RemoteSync(NullSync):
    """Sends a search's files from its folder to its place in the object store."""

    def __init__(self, location: SearchLocation, lease: Lease) -> None:
        if location.remote is None:
            raise ValueError("a search in a folder has no mirror")
        self.place, self.folder, self.lease = location.remote, location.folder, lease
        self.uploads = Uploader(self.place, on_outage=self._outage, on_recovery=self._back)

    def _outage(self, reason: str) -> None:
        log.warning(
            f"the storage '{self.place}' cannot be written to ({reason}): the search goes "
            "on, and what is missing there goes up when it is back"
        )

    def _back(self) -> None:
        log.info("the storage is back")

    def opened(self, study: optuna.Study) -> None:
        """Add this process to those that have run the search, and send what there is."""
        study.set_user_attr(DRIVERS, [*study.user_attrs.get(DRIVERS, []), uuid.uuid4().hex[:12]])
        self._send_study()
        for path in self.folder.iterdir():
            if path.suffix == ".json":
                self.uploads.add(path.name, path)

    def started(self, trial: TrialRecord, seed: int) -> None:
        """Another machine must not give its number to other parameters."""
        self._send_study()

    def ended(self, trial: TrialRecord) -> None:
        """Its end, in the study."""
        self._send_study()

    def record(self, what: str) -> None:
        """Wait until the study is there."""
        self._send_study()
        if (reason := self._patiently(PATIENCE_SECONDS)) is not None:
            raise StorageUnreachableError(
                f"the storage '{self.place}' is away ({reason}), and nothing goes on record before "
                f"{what}: everything is kept in '{self.folder}'; type the same command again when "
                "it is back"
            )

    def complete(self) -> None:
        """Send every file that is the search's, and wait until it is there."""
        self._send_study()
        try:
            there = self.place.list_sizes()
        except StorageError:
            there = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if not path.is_file() or any(part.startswith(".") for part in name.parts):
                continue
            trials = name.parts[0] == "trials"
            sent = trials and there.get(name.as_posix()) == path.stat().st_size
            if not sent and not name.name.startswith(STUDY):
                self.uploads.add(name.as_posix(), path)
        if (reason := self._patiently(PATIENCE_SECONDS)) is not None:
            raise StorageUnreachableError(
                f"the storage '{self.place}' is away ({reason}): the search is complete in "
                f"'{self.folder}'; type the same command again when it is back: it sends the rest"
            )
        log.info(f"everything is at {self.place}, and on this machine in {self.folder}")

    def leave(self) -> None:
        """Send what is due, but not for long: the search has ended early."""
        self._send_study()
        if (reason := self.uploads.flush(LEAVING_SECONDS)) is not None:
            log.warning(
                f"not all is at '{self.place}' ({reason}): this machine has it in "
                f"'{self.folder}', and the same command sends it"
            )

    def _send_study(self) -> None:
        self.uploads.add(STUDY, self._snapshot)

    def _snapshot(self) -> bytes:
        """The study as one consistent file, while others write it."""
        self.lease.confirm()
        copy = self.folder / f".{STUDY}.snapshot.part"
        with (
            closing(sqlite3.connect(self.folder / STUDY, timeout=60)) as now,
            closing(sqlite3.connect(copy)) as then,
        ):
            now.backup(then)
        content = copy.read_bytes()
        copy.unlink()
        return content

    def _patiently(self, seconds: float) -> str | None:
        """`flush` again and again; the reason, where nothing went up for so long."""
        deadline, sent = time.monotonic() + seconds, self.uploads.uploaded
        while (reason := self.uploads.flush(seconds)) is not None:
            if self.uploads.uploaded > sent:
                deadline, sent = time.monotonic() + seconds, self.uploads.uploaded
            elif time.monotonic() > deadline:
                return reason
            time.sleep(1.0)
        return None


@contextmanager
def synchronize_storage(location: SearchLocation) -> Iterator[NullSync]:
    """The search in its folder as it stands in its storage, and nobody else's while this lasts.

    The caller holds the folder's lock. `UserError` says who else runs the search. Where somebody
    takes it over in the end (we must have been silent for a minute), this process is interrupted.
    """
    if location.remote is None:
        yield NullSync()
        return
    lost = threading.Event()
    sync: RemoteSync | None = None

    def lose(holder: str) -> None:
        lost.set()
        if sync is not None:
            sync.uploads.close()
        log.info(f"search '{location.remote}' was taken over by {holder} while it was silent here")
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGTERM)

    lease = Lease(location.remote, location.folder, lose)
    try:
        lease.take()
    except StorageError as error:
        raise UserError(f"--storage '{location.remote}' cannot be used ({error})") from error
    try:
        download_search(location.remote, location.folder)
        sync = RemoteSync(location, lease)
        yield sync
    except StorageUnreachableError:
        raise
    except BaseException:
        if sync is not None and not lost.is_set() and (location.folder / STUDY).exists():
            sync.leave()
        raise
    finally:
        if sync is not None:
            sync.uploads.close()
        lease.release()

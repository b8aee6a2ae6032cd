"""Keep a search in this disk's folder in sync with its object store.

The study and the files are read and written in the search's folder below the cache. A snapshot of
the study is uploaded whenever a trial starts or ends, and everything at the end; workers upload
their trials' checkpoints. The search continues while the store cannot be reached.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import optuna

from resp_tune.common.text import one_line
from resp_tune.errors import RunError, UserError
from resp_tune.harness.reconcile import STUDY, download_search
from resp_tune.harness.spec import SearchLocation
from resp_tune.storage.lease import Lease
from resp_tune.storage.object_store import StorageError
from resp_tune.storage.uploader import Uploader
from resp_tune.study.study import DRIVERS, TrialRecord
from resp_tune.study.trial_queue import Listener

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # how long to wait for the store when all else is done
LEAVING_SECONDS = 15.0  # the same after an interruption


class StorageUnreachableError(RunError):
    """The store could not be reached for `PATIENCE_SECONDS`; do not wait for it once more."""


class StorageSync(Listener):
    """Follow a search and keep its storage up to date: nothing to do if that is a folder.

    Epochs need no upload: a trial's checkpoint, which its worker uploads, has them too.
    """

    def opened(self, study: optuna.Study) -> None:
        """Handle the opened study, beside the files that a resumed search is compared with."""

    def record(self, step: str) -> None:
        """Store the study as it is now, before `step`; raise `RunError` if that fails."""

    def complete(self) -> None:
        """Store all files; raise `RunError` if that fails."""


class RemoteSync(StorageSync):
    """Upload a search's files from its folder to the object store."""

    def __init__(self, location: SearchLocation, lease: Lease) -> None:
        if location.remote is None:
            raise ValueError("the search has no object store")
        self.store, self.folder, self.lease = location.remote, location.folder, lease
        self.uploads = Uploader(
            self.store,
            on_outage=lambda error: log.warning(
                f"the storage '{self.store}' cannot be written to ({one_line(error)}): the search "
                "continues, and what is missing there is uploaded when it is back"
            ),
            on_recovery=lambda _: log.info("the storage is back"),
        )

    def opened(self, study: optuna.Study) -> None:
        """Add this process to the study's drivers, and upload what there is."""
        study.set_user_attr(DRIVERS, [*study.user_attrs.get(DRIVERS, []), uuid.uuid4().hex[:12]])
        self._send_study()
        for path in self.folder.iterdir():
            if path.suffix == ".json":
                self.uploads.add(path.name, path)

    def started(self, trial: TrialRecord) -> None:
        """Upload the study: another machine must not give the number to other parameters."""
        self._send_study()

    ended = started

    def record(self, step: str) -> None:
        """Wait until the study is uploaded."""
        self._send_study()
        self._flush(
            f", and the search must be recorded there before {step}: everything is kept in "
            f"'{self.folder}'; rerun the same command to resume when it is back"
        )

    def complete(self) -> None:
        """Upload every file of the search, and wait until it is stored."""
        self._send_study()
        try:
            stored = self.store.list_sizes()
        except StorageError:
            stored = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if not path.is_file() or any(part.startswith(".") for part in name.parts):
                continue
            is_trial = name.parts[0] == "trials"
            is_stored = is_trial and stored.get(name.as_posix()) == path.stat().st_size
            if not is_stored and not name.name.startswith(STUDY):
                self.uploads.add(name.as_posix(), path)
        self._flush(", so not every file of the search is there")
        log.info(f"everything is at {self.store}, and on this machine in {self.folder}")

    def leave(self) -> None:
        """Upload what is pending, but not for long: the search has ended early."""
        self._send_study()
        if (reason := self.uploads.wait(LEAVING_SECONDS)) is not None:
            log.warning(
                f"not everything is at '{self.store}' ({reason}): it is in '{self.folder}' on this "
                "machine; rerun the same command to upload it"
            )

    def _send_study(self) -> None:
        self.uploads.add(STUDY, self._snapshot)

    def _snapshot(self) -> bytes:
        """Return the study as one consistent file, while other threads write it."""
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

    def _flush(self, consequence: str) -> None:
        """Wait for all uploads; raise if there was none for `PATIENCE_SECONDS`."""
        deadline, uploaded = time.monotonic() + PATIENCE_SECONDS, self.uploads.done
        while (reason := self.uploads.wait(PATIENCE_SECONDS)) is not None:
            if self.uploads.done > uploaded:
                deadline, uploaded = time.monotonic() + PATIENCE_SECONDS, self.uploads.done
            elif time.monotonic() > deadline:
                raise StorageUnreachableError(
                    f"the storage '{self.store}' cannot be reached ({reason}){consequence}"
                )
            time.sleep(1.0)


@contextmanager
def synchronize_storage(location: SearchLocation) -> Iterator[StorageSync]:
    """Make the folder the search's current state and, inside, this process its only driver.

    The caller holds the folder's lock. Raises `UserError` that names another driver of the search.
    If another one takes over (after this process was silent for a minute), this one is interrupted.
    """
    if location.remote is None:
        yield StorageSync()
        return
    lost = threading.Event()
    sync: RemoteSync | None = None

    def on_lost(holder: str) -> None:
        lost.set()
        if sync is not None:
            sync.uploads.close()
        log.warning(
            f"search '{location.remote}' was taken over by {holder}: this driver was silent"
        )
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGTERM)

    lease = Lease(location.remote, location.folder, on_lost)
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

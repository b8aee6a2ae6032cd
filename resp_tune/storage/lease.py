"""A lease that lets one driver at a time run a search in an object store.

Every write is conditional: the first one on the lease's absence, each later one on the version read
before. So the store itself decides between two drivers, however close they come.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from resp_tune.common.paths import write_atomically
from resp_tune.common.text import shorten
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath, StorageError, Version

log = logging.getLogger(__name__)

LEASE = ".lease"  # in the search's prefix, and in the local folder of the holder
BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
POLL_SECONDS = 1.0


class LeaseLostError(Exception):
    """Another process holds the lease now; the message names it."""


@dataclass(frozen=True)
class LeaseRecord:
    """The content of the lease. `beat` grows while its holder lives, so no content repeats."""

    id: str
    holder: str
    beat: int
    released: bool = False


class Lease:
    """The lease of this process on the search at `store`, whose local copy is `folder`.

    A lease that was not renewed for `EXPIRE_SECONDS`, by the store's clock, has expired and may be
    taken over. One last taken from `folder` may be taken over at once: its holder is dead, since
    the caller holds the folder's lock. `on_lost(holder)` is called, once, when another process
    took the lease over.
    """

    def __init__(self, store: ObjectPath, folder: Path, on_lost: Callable[[str], None]) -> None:
        self.store, self.folder, self._on_lost = store, folder, on_lost
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._mine = LeaseRecord(uuid.uuid4().hex, holder, 0)
        self._version: Version | None = None  # that we wrote last
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._confirmed = time.monotonic()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def take(self) -> None:
        """Take the lease and renew it in the background.

        Raises `UserError` naming the holder if another process has it, `StorageError` if the store
        fails.
        """
        record, self._version = self._read()
        last_taken_here = None
        with suppress(OSError):
            last_taken_here = (self.folder / LEASE).read_text(errors="replace") or None
        if record is not None and not record.released and record.id != last_taken_here:
            self._version = self._await_expiry(record, self._version)
        if not self._write(self._mine):
            raise self._held_by(self._read()[0])
        write_atomically(self.folder / LEASE, self._mine.id.encode())
        self._confirmed = time.monotonic()
        self._thread.start()

    def _await_expiry(self, record: LeaseRecord, version: Version | None) -> Version | None:
        """Wait until `record` has expired; return its version, or None if it is gone.

        Raises `UserError` as soon as it is renewed.
        """
        remaining = EXPIRE_SECONDS - self._age()
        if remaining <= 0:
            return version
        log.info(
            f"'{self.store}' was held by {record.holder} a moment ago: waiting up to "
            f"{remaining:.0f} s to see whether it is alive"
        )
        deadline = time.monotonic() + remaining
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            current, current_version = self._read()
            if current is None or current.released:
                return current_version
            if current != record:
                raise self._held_by(current)
        return version

    def _age(self) -> float:
        """Return the seconds since the lease was renewed, by the store's clock."""
        clock = f"{LEASE}-{self._mine.id}"
        self.store.write(b"", clock)
        now, lease = self.store.read_version(clock), self.store.read_version(LEASE)
        self.store.remove(clock)
        return (now.modified_at - lease.modified_at).total_seconds() if now and lease else 0.0

    def _held_by(self, record: LeaseRecord | None) -> UserError:
        holder = "another process" if record is None else record.holder
        return UserError(
            f"search '{self.store}' is being run by {holder}: wait until it ends, or choose "
            "another --name"
        )

    def confirm(self) -> None:
        """Raise `LeaseLostError` if the lease is lost, renewing it first if that is overdue."""
        if time.monotonic() - self._confirmed > 2 * BEAT_SECONDS:
            self._renew()
        if self._ended.is_set():
            raise LeaseLostError("the lease is lost")

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(StorageError, LeaseLostError):  # an outage may be over at the next beat
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            if not self._write(replace(self._mine, beat=self._mine.beat + 1)):
                self._ended.set()
                holder = "another process"
                with suppress(StorageError):
                    holder = getattr(self._read()[0], "holder", holder)
                self._on_lost(holder)
                raise LeaseLostError(holder)
            self._confirmed = time.monotonic()

    def release(self) -> None:
        """Mark the lease as released if it is still ours and the store answers.

        The object stays: a store cannot delete one version only, and the lease may be another's by
        the time that a deletion arrives.
        """
        with self._lock:
            ours = not self._ended.is_set()
            self._ended.set()
        if ours and self._version is not None:
            with suppress(StorageError):
                self._write(replace(self._mine, beat=self._mine.beat + 1, released=True))
        if self._thread.ident is not None:
            self._thread.join(timeout=1)

    def _read(self) -> tuple[LeaseRecord | None, Version | None]:
        """Return the lease with its version; None and None if there is no lease."""
        versioned = self.store.read_version(LEASE)
        if versioned is None:
            return None, None
        try:
            values = json.loads(versioned.content)
            holder = shorten(str(values["holder"]), 100)  # printed, and possibly foreign
            released = values.get("released") is True
            record = LeaseRecord(str(values["id"]), holder, int(values["beat"]), released)
        except (ValueError, TypeError, KeyError, AttributeError):
            record = LeaseRecord("", "a process that wrote an unreadable lease", 0)
        return record, versioned.version

    def _write(self, record: LeaseRecord) -> bool:
        """Write `record` over `self._version`; return whether the store accepted it."""
        for _ in range(2):
            content = json.dumps(asdict(record)).encode()
            if (written := self.store.replace(content, LEASE, self._version)) is not None:
                self._version, self._mine = written, record
                return True
            current, version = self._read()
            if current is not None:  # ours if an earlier write arrived, and its answer was lost
                if current.id != self._mine.id:
                    return False
                record = replace(record, beat=current.beat + 1)
            self._version = version  # None if the lease was deleted by hand
        return False

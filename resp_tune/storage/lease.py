"""One driver at a time runs a search in an object store: a lease, renewed by a living holder."""

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
from dataclasses import asdict, dataclass
from pathlib import Path

from resp_tune.common.paths import write_atomically
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath, StorageError

log = logging.getLogger(__name__)

LEASE = ".lease"  # in the search's place, and in the folder of whoever holds it
BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
SETTLE_SECONDS = 1.5
LOOK_SECONDS = 1.0


class LeaseLostError(Exception):
    """Somebody else holds the search now; the message says who."""


@dataclass(frozen=True)
class LeaseRecord:
    """What stands in the lease: `beat` moves while its holder lives."""

    id: str
    holder: str
    beat: int


class Lease:
    """The claim of this process on the search in `place`, whose copy here is `folder`.

    A claim that was not renewed for `EXPIRE_SECONDS`, by the store's own clock, is dead and may be
    taken over; so may at once one that was made in `folder`, whose lock the caller holds.

    What this cannot do: object stores by way of pyarrow have no put that is refused where an object
    exists, so a claim is written, left to settle, and read back: of two that come at once, the last
    one written stands. A process that is stopped between looking and writing for longer than that
    may still put its claim over a good one; whichever of the two holders does not find its own at
    its next beat ends. Until then, `BEAT_SECONDS`, both may run, and the study that is written
    last stands.
    """

    def __init__(self, place: ObjectPath, folder: Path, lost: Callable[[str], None]) -> None:
        self.place, self.folder, self._lost = place, folder, lost
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._mine = LeaseRecord(uuid.uuid4().hex, holder, 0)
        self._one_at_a_time = threading.Lock()
        self._over = threading.Event()
        self._confirmed = time.monotonic()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)

    def take(self) -> None:
        """Take the lease and keep it alive; `UserError` says who else holds it.

        Raises `StorageError` where the store cannot be asked.
        """
        found = self._read()
        if found is not None and found.id != self._kept():
            self._await_end(found)
        self._write()
        write_atomically(self.folder / LEASE, self._mine.id.encode())
        time.sleep(SETTLE_SECONDS)
        now = self._read()
        if now is None or now.id != self._mine.id:
            raise self._held_by(now)
        self._confirmed = time.monotonic()
        self._thread.start()

    def _kept(self) -> str | None:
        """The claim that was last made in this folder: its holder is gone, or we had no lock."""
        with suppress(OSError, UnicodeDecodeError):
            return (self.folder / LEASE).read_text()
        return None

    def _await_end(self, found: LeaseRecord) -> None:
        """Wait until `found` is dead, or refuse because it beats."""
        left = EXPIRE_SECONDS - self._age()
        if left <= 0:
            return
        log.info(
            f"'{self.place}' was held by {found.holder} a moment ago: waiting {left:.0f} s at most "
            "to see whether it lives"
        )
        deadline = time.monotonic() + left
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise self._held_by(now)

    def _age(self) -> float:
        """Seconds since the lease was renewed, both ends by the store's clock."""
        clock = f"{LEASE}-{self._mine.id}"
        self.place.write(b"", clock)
        now, then = self.place.written(clock), self.place.written(LEASE)
        self.place.remove(clock)
        return 0.0 if now is None or then is None else (now - then).total_seconds()

    def _held_by(self, claim: LeaseRecord | None) -> UserError:
        who = "another process" if claim is None else claim.holder
        return UserError(
            f"search '{self.place}' is being run by {who}: wait for it, or give another --name"
        )

    def confirm(self) -> None:
        """Raise `LeaseLostError` where somebody else holds the lease; asks when it was long ago."""
        if time.monotonic() - self._confirmed > 2 * BEAT_SECONDS:
            self._beat()
        if self._over.is_set():
            raise LeaseLostError("the lease is lost")

    def _live(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(StorageError, LeaseLostError):  # away: the next beat may get through
                self._beat()

    def _beat(self) -> None:
        with self._one_at_a_time:
            now = self._read()
            if self._over.is_set():
                return
            if now is not None and now.id != self._mine.id:
                self._over.set()
                self._lost(now.holder)
                raise LeaseLostError(now.holder)
            self._mine = LeaseRecord(self._mine.id, self._mine.holder, self._mine.beat + 1)
            self._write()
            self._confirmed = time.monotonic()

    def release(self) -> None:
        """Give it back, if it is still ours and the store can be asked."""
        with self._one_at_a_time:
            held = not self._over.is_set()
            self._over.set()
        if held:
            with suppress(StorageError):
                now = self._read()
                if now is not None and now.id == self._mine.id:
                    self.place.remove(LEASE)
        if self._thread.ident is not None:
            self._thread.join(timeout=1)

    def _read(self) -> LeaseRecord | None:
        content = self.place.read(LEASE)
        if content is None:
            return None
        try:
            claim = json.loads(content)
            # It is shown on a terminal, and may be anybody's.
            holder = "".join(c for c in str(claim["holder"]) if c.isprintable())[:100]
            return LeaseRecord(str(claim["id"]), holder, int(claim["beat"]))
        except (ValueError, TypeError, KeyError):
            return LeaseRecord("", "a process that wrote no claim that can be read", 0)

    def _write(self) -> None:
        self.place.write(json.dumps(asdict(self._mine)).encode(), LEASE)

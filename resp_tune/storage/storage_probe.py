"""Whether an object store can hold a search, before anything depends on it."""

from __future__ import annotations

import threading
import uuid

from resp_tune.errors import UserError, leave_at_exit
from resp_tune.storage.object_store import ObjectPath, StorageError

PROBE_SECONDS = 10.0
_HINTS = {
    "NO_SUCH_BUCKET": "make that bucket, or give another {flag}",
    "ACCESS_DENIED": "give credentials that may read, write and delete there",
    "INVALID_ACCESS_KEY_ID": "set AWS_ACCESS_KEY_ID to a key that the store knows",
    "SIGNATURE_DOES_NOT_MATCH": "set AWS_SECRET_ACCESS_KEY to the key's own",
    "INVALID_CLIENT_TOKEN_ID": "set AWS_ACCESS_KEY_ID to a key that the store knows",
    "NETWORK_CONNECTION": "start it, or give another {flag}",
}


def check_place(flag: str, place: ObjectPath, *, write: bool = True) -> None:
    """Raise `UserError` where `place` cannot be read and, with `write`, written and deleted.

    It is tried with a small object, which is removed at once: rights cannot be asked for. Takes
    `PROBE_SECONDS` at most, also for a host that never answers.
    """
    failures: list[BaseException] = []

    def body() -> None:
        try:
            _try(place, write)
        except BaseException as error:  # carried to the caller's thread, raised there
            failures.append(error)

    import pyarrow.fs  # noqa: F401  # its import is not the store's time

    thread = threading.Thread(target=body, name="storage-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if thread.is_alive():
        leave_at_exit(UserError.exit_code)  # the store's client waits for a minute or more
        raise UserError(
            f"{flag} '{place}' did not answer within {PROBE_SECONDS:g} s: check the network, or "
            f"give another {flag}"
        )
    if failures:
        raise _in_one_line(flag, place, failures[0]) from None


def _try(place: ObjectPath, write: bool) -> None:
    if not write:
        place.read(".resp_tune_probe")
        return
    name = f".resp_tune_probe-{uuid.uuid4().hex}"
    place.write(b"may be removed\n", name)
    if place.read(name) is None:
        raise StorageError("what was just written there is not there")
    place.remove(name)


def _in_one_line(flag: str, place: ObjectPath, error: BaseException) -> BaseException:
    if not isinstance(error, StorageError):
        return error
    found = (hint for key, hint in _HINTS.items() if key in str(error))
    hint = next(found, "give another {flag}").format(flag=flag)
    return UserError(f"{flag} '{place}' cannot be used ({error}): {hint}")

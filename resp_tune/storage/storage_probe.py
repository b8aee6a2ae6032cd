"""Check that an object store can hold a search, before anything depends on it."""

from __future__ import annotations

import uuid

from resp_tune.common.deadline import finishes_within
from resp_tune.errors import UserError, leave_at_exit
from resp_tune.storage.object_store import ObjectPath, StorageError

PROBE_SECONDS = 10.0
_HINTS = {
    "NoSuchBucket": "create that bucket, or give another {flag}",
    "AccessDenied": "set credentials that may read, write and delete there",
    "InvalidAccessKeyId": "set AWS_ACCESS_KEY_ID to a key that the store knows",
    "InvalidClientTokenId": "set AWS_ACCESS_KEY_ID to a key that the store knows",
    "SignatureDoesNotMatch": "set AWS_SECRET_ACCESS_KEY to the secret of that key",
    "status 403": "set credentials that may read, write and delete there",
    "Account must be specified": "set AZURE_STORAGE_ACCOUNT_NAME",
    "redirect": "set AWS_DEFAULT_REGION to the region of the bucket",
    "no connection": "start it, or give another {flag}",
}


def check_store(flag: str, store: ObjectPath, *, write: bool = True) -> None:
    """Raise `UserError` if `store` cannot be read and, with `write`, written and deleted.

    A small object is written and removed at once, because rights cannot be queried. Takes at most
    `PROBE_SECONDS`, also if a host never answers.
    """
    import obstore  # noqa: F401  # its import does not count as the store's time

    try:
        if finishes_within(PROBE_SECONDS, lambda: _try(store, write)):
            return
    except StorageError as error:
        hints = (hint for key, hint in _HINTS.items() if key in str(error))
        hint = next(hints, "give another {flag}").format(flag=flag)
        raise UserError(f"{flag} '{store}' cannot be used ({error}): {hint}") from None
    leave_at_exit(UserError.exit_code)  # the client may wait for a minute
    raise UserError(
        f"{flag} '{store}' did not answer within {PROBE_SECONDS:g} s: check the network "
        f"and the credentials, or give another {flag}"
    )


def _try(store: ObjectPath, write: bool) -> None:
    if not write:
        store.read(".resp_tune_probe")
        return
    name = f".resp_tune_probe-{uuid.uuid4().hex}"
    store.read(name)  # its refusal tells more than that of a write: of a missing bucket, say
    store.create(b"may be removed\n", name)
    try:
        if store.read(name) is None:
            raise StorageError("an object that was just written is missing")
        if store.create(b"may be removed too\n", name) is not None:
            raise StorageError(
                "it ignores If-None-Match, by which two drivers are kept apart; update its server"
            )
    finally:
        store.remove(name)

"""Upload files to an object store in the background, through outages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resp_tune.common.retry_queue import Outcome, RetryQueue
from resp_tune.storage.object_store import ObjectPath

Content = Callable[[], bytes | None]  # None: there is nothing to upload any more


class Uploader:
    """Uploads files below `store`. A file that changed while it waited goes up once, as it is then.

    `on_outage(reason)` and `on_recovery()` are called when the store stops answering, and when it
    answers again.
    """

    def __init__(
        self,
        store: ObjectPath,
        *,
        on_outage: Callable[[str], None] = lambda reason: None,
        on_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self._queue = RetryQueue(
            "uploads",
            on_outage=lambda error: on_outage(_reason(error)),
            on_recovery=lambda waiting: on_recovery(),
        )

    @property
    def uploaded(self) -> int:
        """Return the number of files uploaded so far."""
        return self._queue.done

    def add(self, name: str, content: Content | Path) -> None:
        """Queue a file, or what `content()` returns when its turn comes; return at once."""

        def upload() -> object:
            try:
                data = content() if callable(content) else content.read_bytes()
            except FileNotFoundError:  # removed meanwhile
                data = None
            if data is None:
                return Outcome.SKIPPED
            self.store.write(data, name)
            return None

        self._queue.put(name, upload)

    def flush(self, seconds: float) -> str | None:
        """Wait at most `seconds` until all is uploaded; return the reason if it is not.

        Returns as soon as an attempt fails that began after this call.
        """
        if not self._queue.flush(seconds, until_failure=True):
            return None
        failure = self._queue.failure
        return _reason(failure) if failure else f"it did not take everything within {seconds:g} s"

    def close(self) -> None:
        """Stop; what still waits is not uploaded."""
        self._queue.close()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

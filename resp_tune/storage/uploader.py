"""Upload files to an object store in the background, through outages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from resp_tune.common.retry_queue import SKIPPED, RetryQueue
from resp_tune.common.text import shorten
from resp_tune.storage.object_store import ObjectPath


class Uploader(RetryQueue):
    """Uploads files below `store`. A file that changed while it waited goes up once, as it is then.

    `done` counts the files uploaded so far; `callbacks` are those of `RetryQueue`.
    """

    def __init__(self, store: ObjectPath, **callbacks: Any) -> None:
        super().__init__("uploads", **callbacks)
        self.store = store

    def add(self, name: str, content: Callable[[], bytes] | Path) -> None:
        """Queue a file, or what `content()` returns when its turn comes; return at once."""

        def upload() -> object:
            try:
                data = content() if callable(content) else content.read_bytes()
            except FileNotFoundError:  # removed meanwhile
                return SKIPPED
            self.store.write(data, name)
            return None

        self.put(name, upload)

    def wait(self, seconds: float) -> str | None:
        """Wait at most `seconds` until all is uploaded; return the reason if it is not.

        Returns as soon as an attempt fails that began after this call.
        """
        if not self.flush(seconds, until_failure=True):
            return None
        if (failure := self.failure) is None:
            return f"it did not take everything within {seconds:g} s"
        return shorten(str(failure) or type(failure).__name__, 300)

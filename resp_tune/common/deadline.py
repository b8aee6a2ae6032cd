"""Bound the time of calls that no timeout of their own bounds, such as the look-up of a host."""

from __future__ import annotations

import threading
from collections.abc import Callable


def finishes_within(seconds: float | None, call: Callable[[], object]) -> bool:
    """Return whether `call` returns within `seconds` (None: at any time), and raise what it raises.

    It runs in a daemon thread, which is abandoned if the time is over.
    """
    errors: list[BaseException] = []

    def body() -> None:
        try:
            call()
        except BaseException as error:  # raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="bounded-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return not thread.is_alive()

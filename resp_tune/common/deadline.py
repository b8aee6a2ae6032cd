"""Run calls in daemon threads, which a command that ends does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


def finishes_within(seconds: float | None, call: Callable[[], object]) -> bool:
    """Return whether `call` returns within `seconds` (None: at any time), and raise what it raises.

    For calls that no timeout of their own bounds, such as the look-up of a host.

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


def call_in_thread(call: Callable[[], object]) -> Future[None]:
    """Return a future of `call`, which runs at once in a daemon thread.

    Unlike an executor's, the thread is abandoned if the process exits first.
    """
    future: Future[None] = Future()

    def body() -> None:
        try:
            call()
        except BaseException as error:  # raised by `Future.result`
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=body, name="called", daemon=True).start()
    return future

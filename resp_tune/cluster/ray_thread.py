"""Ray on a thread of its own, so that signals are heard while it starts."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

from resp_tune.cluster.processes import descendants, kill
from resp_tune.errors import INTERRUPTED, leave_at_exit


@contextlib.contextmanager
def on_its_own_thread(begin: Callable[[], object], end: Callable[[], None]) -> Iterator[None]:
    """Ray, begun and ended on a thread which lives as long as Ray does; raises what `begin` does.

    On the main thread no signal would be heard while Ray waits, a minute or more, for processes
    that the same signal has ended. The thread lives on because they end with the thread that
    started them.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # it remarks on the thread
    begun: Future[None] = Future()
    over = threading.Event()

    def body() -> None:
        try:
            begin()
        except Exception as error:  # raised again on the main thread
            begun.set_exception(error)
            return
        begun.set_result(None)
        over.wait()
        end()

    thread = threading.Thread(target=body, name="ray", daemon=True)
    try:
        thread.start()
        _await_with_our_handler(begun)
    except KeyboardInterrupt:
        # Ray would tell, with tracebacks, that its start has been cut off.
        logging.disable()
        threading.excepthook = lambda _: None
        # Half begun, it is not waited for; what it has started by then is ended.
        leave_at_exit(INTERRUPTED)
        atexit.register(lambda: kill(descendants()))
        raise
    try:
        yield
    finally:
        over.set()
        thread.join()


def _await_with_our_handler(begun: Future[None]) -> None:
    """Wait for Ray, which at some moment puts a handler of SIGTERM in place that aborts."""
    ours = signal.getsignal(signal.SIGTERM)
    while not begun.done():
        signal.signal(signal.SIGTERM, ours)
        wait([begun], timeout=0.005)
    signal.signal(signal.SIGTERM, ours)
    begun.result()

"""Start Ray in a thread, so that the main thread can handle signals meanwhile."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

from resp_tune.cluster.processes import descendants, kill
from resp_tune.common.signal_handlers import set_handler
from resp_tune.errors import INTERRUPTED, leave_at_exit


@contextlib.contextmanager
def run_in_thread(begin: Callable[[], object], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin` and, after the body, `end` in a thread that lives as long as Ray does.

    On the main thread no signal would be handled while Ray waits, for a minute or more, for
    processes that the same signal has ended. The thread lives on because Ray's processes end with
    the thread that started them. Raises what `begin` raises.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # it warns about the thread
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
        handler = signal.getsignal(signal.SIGTERM)
        while not begun.done():  # Ray installs a handler of SIGTERM that aborts the process
            set_handler(signal.SIGTERM, handler)
            wait([begun], timeout=0.005)
        set_handler(signal.SIGTERM, handler)
        begun.result()
    except KeyboardInterrupt:
        # Ray would report, with tracebacks, that its start was interrupted. Its logger alone is
        # silenced: this program still tells how to resume.
        ray_log = logging.getLogger("ray")
        ray_log.setLevel(logging.CRITICAL + 1)
        ray_log.handlers, ray_log.propagate = [logging.NullHandler()], False
        threading.excepthook = lambda _: None
        # Half started, Ray is not waited for; what it has started by then is ended.
        leave_at_exit(INTERRUPTED)
        atexit.register(lambda: kill(descendants()))
        raise
    try:
        yield
    finally:
        over.set()
        thread.join()

"""Handle interrupts of a search: the first ends it in order, the second at once."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from resp_tune.cluster.processes import descendants, kill
from resp_tune.common.signal_handlers import INTERRUPTS, dropped_interrupts_resent, set_handler
from resp_tune.errors import INTERRUPTED

log = logging.getLogger(__name__)


@contextmanager
def handle_interrupts(how_to_resume: str) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first SIGINT, SIGTERM or SIGHUP; end at once at the second.

    At once means that this process and its descendants are killed, as by a power cut, which a
    search survives. An interrupt that Python drops is sent again, which is no second one. Signals
    that are ignored (`nohup … &`) stay ignored. In another thread than the main one, no handler can
    be set, and signals do what they did before.
    """
    signals = 0
    # It logs a query that the signal interrupts, with a traceback.
    sqlalchemy = logging.getLogger("sqlalchemy.pool")
    level = sqlalchemy.level

    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    try:
        with dropped_interrupts_resent() as dropped:

            def stop(number: int, _frame: FrameType | None) -> None:
                nonlocal signals
                if dropped.was_resent(number):  # it has been counted, and the user has been told
                    raise KeyboardInterrupt
                signals += 1
                if signals > 1:
                    _write(f"stopped at once; {how_to_resume}")
                    kill(descendants())
                    os._exit(INTERRUPTED)
                sqlalchemy.setLevel(logging.CRITICAL)
                _write("stopping: this takes a few seconds; interrupt once more to stop at once")
                raise KeyboardInterrupt

            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    set_handler(number, stop)
            yield
    except KeyboardInterrupt:
        log.info(how_to_resume)
        raise
    finally:
        sqlalchemy.setLevel(level)
        for number, handler in before.items():
            set_handler(number, handler)


def _write(line: str) -> None:
    # Not `print`: the signal may have come in the middle of one, which allows no second.
    try:
        os.write(sys.stderr.fileno(), f"{line}\n".encode())
    except OSError as error:
        if error.errno == errno.EIO:  # the terminal is gone: whatever else is printed would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in (1, 2):
                os.dup2(nowhere, number)

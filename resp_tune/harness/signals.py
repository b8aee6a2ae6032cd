"""What Ctrl-C and a polite SIGTERM do to a search: end it in order, and the second time at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from resp_tune.cluster.processes import descendants, kill
from resp_tune.errors import INTERRUPTED

log = logging.getLogger(__name__)


@contextmanager
def handle_interrupts(how_to_go_on: str) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises `KeyboardInterrupt`, and the second ends at once.

    At once is: this process and all that it has started are killed, as by a power cut, which a
    search survives. A SIGINT that is ignored (`nohup … &`) stays ignored.
    """
    asked = 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            _write(f"stopped at once; {how_to_go_on}")
            kill(descendants())
            os._exit(INTERRUPTED)
        _write("stopping: a few seconds to leave everything in order; once more stops at once")
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        log.info(how_to_go_on)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(line: str) -> None:
    # Not `print`: the signal may have come in the middle of one, which allows no second.
    os.write(sys.stderr.fileno(), f"{line}\n".encode())

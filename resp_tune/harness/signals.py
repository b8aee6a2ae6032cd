"""Handle Ctrl-C and SIGTERM during a search: the first ends it in order, the second at once."""

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
def handle_interrupts(how_to_resume: str) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first SIGINT or SIGTERM; end at once at the second.

    At once means that this process and its descendants are killed, as by a power cut, which a
    search survives. A SIGINT that is ignored (`nohup … &`) stays ignored.
    """
    signals = 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            _write(f"stopped at once; {how_to_resume}")
            kill(descendants())
            os._exit(INTERRUPTED)
        _write("stopping: this takes a few seconds; interrupt once more to stop at once")
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        log.info(how_to_resume)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(line: str) -> None:
    # Not `print`: the signal may have come in the middle of one, which allows no second.
    os.write(sys.stderr.fileno(), f"{line}\n".encode())

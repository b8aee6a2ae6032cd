"""Handle signals where that is possible: only the main thread of a process may set handlers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, the polite request to end, and the end of the terminal or the ssh connection.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


def set_handler(number: int, handler: Handler) -> None:
    """Set the handler of a signal; in another thread than the main one, do nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def interrupt_by_signals() -> None:
    """Raise `KeyboardInterrupt` at SIGTERM and SIGHUP, unless they are handled or ignored."""
    for number in INTERRUPTS:
        if signal.getsignal(number) is signal.SIG_DFL:
            set_handler(number, signal.default_int_handler)


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Add the interrupts that arrive inside to the list that is yielded, and go on.

    For steps that must not be left half done. Programs that are started inside do not inherit it.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            set_handler(number, lambda n, _: noted.append(n))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            set_handler(number, handler)

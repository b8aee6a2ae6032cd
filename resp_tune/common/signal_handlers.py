"""Handle signals where that is possible: only the main thread of a process may set handlers."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Ctrl-C, the polite request to end, and the end of the terminal or the ssh connection.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

RESEND_SECONDS = 0.05  # after which the finalizer that dropped an interrupt has returned
ARRIVAL_SECONDS = 5.0  # within which a signal that was sent again reaches a handler

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


class DroppedInterrupts:
    """Send interrupts again shortly after Python has dropped them.

    Lists are changed by single operations, which no other thread can interrupt: code that the main
    thread runs in a finalizer must not wait for a lock.
    """

    def __init__(self) -> None:
        self.passed_on = sys.unraisablehook
        self.unsent: list[None] = []  # one for each that was dropped and not yet sent again
        self.resent: list[tuple[int, float]] = []  # number and time of what no handler has taken
        self.sending = threading.Lock()
        self.ended = False

    def hook(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Note a `KeyboardInterrupt` of the main thread; pass anything else on."""
        is_main = threading.get_ident() == threading.main_thread().ident
        if not (is_main and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            self.passed_on(unraisable)
            return
        self.unsent.append(None)
        with suppress(RuntimeError):  # no more threads: it is raised at the end
            # Not a `threading.Timer`, whose start takes a lock that the code which the finalizer
            # interrupted may hold.
            _thread.start_new_thread(self._resend, ())

    def _resend(self) -> None:
        time.sleep(RESEND_SECONDS)
        with self.sending:
            # Not always SIGINT, which `nohup … &` ignores.
            handled = [n for n in INTERRUPTS if callable(signal.getsignal(n))]
            main = threading.main_thread().ident
            if self.ended or not handled or main is None:
                return
            self.unsent.pop()
            self.resent.append((handled[0], time.monotonic()))
            signal.pthread_kill(main, handled[0])

    def was_resent(self, number: int) -> bool:
        """Return whether the signal that a handler gets was sent again, once for each that was."""
        # Another handler may have taken one: it must not stand for the user's next interrupt.
        oldest = time.monotonic() - ARRIVAL_SECONDS
        for sent in [sent for sent in self.resent if sent[0] == number]:
            self.resent.remove(sent)
            if sent[1] > oldest:
                return True
        return False

    def end(self) -> None:
        """Send nothing from now on; what is being sent arrives before this returns."""
        self.ended = True
        with self.sending:
            pass


@contextmanager
def dropped_interrupts_resent() -> Iterator[DroppedInterrupts]:
    """Send an interrupt again shortly after Python has dropped it inside, and print nothing.

    Python passes what a handler raises in `__del__` or in the callback of a weak reference to
    `sys.unraisablehook`, which prints it, and goes on as if there had been no interrupt. If the
    block ends without an error before one was sent again, `KeyboardInterrupt` is raised there. In
    any thread but the main one, do nothing.
    """
    dropped = DroppedInterrupts()
    if threading.current_thread() is not threading.main_thread():
        yield dropped
        return
    sys.unraisablehook = dropped.hook
    try:
        yield dropped
        if dropped.unsent:
            raise KeyboardInterrupt
    finally:
        sys.unraisablehook = dropped.passed_on
        dropped.end()

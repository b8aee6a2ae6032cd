"""Runs a command on an input that nobody should give, and looks at what it leaves."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from resp_tune.cli import run
from support.fault_log import survived


class HangsError(BaseException):
    """Not an `Exception`: no command can take it for one of its own."""


LONGEST = 60  # seconds, beyond which an input hangs; a busy machine is ten times slower
NOTICES = ("note:", "data:", "warning:")  # what may stand beside the error


@contextlib.contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """Inside, what takes longer is a `HangsError` where it stands."""

    def late(_number: int, frame: FrameType | None) -> None:
        raise HangsError("\n" + "".join(traceback.format_stack(frame)[-8:]))

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with its content, every folder with None."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def check(
    main: Callable[[Sequence[str] | None], None],
    argv: Sequence[str],
    place: Path,
    *,
    lines: int = 1,
) -> tuple[int, str]:
    """Run `main`; it must end in time, in one line where it refuses, and change nothing in `place`.

    Returns its exit code and its error. `lines`: of its errors, where each bad file has one.
    """
    survived("a bad input")
    before = tree(place)
    out, err = io.StringIO(), io.StringIO()
    with bounded(LONGEST), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(main, list(argv))
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    assert code in (0, 1, 2), err.getvalue()
    said = [line for line in err.getvalue().split("\n") if line]
    errors = [line for line in said if line.startswith("error:")]
    assert len(errors) == lines * (code != 0), err.getvalue()
    others = [line for line in said if not line.startswith(("error:", *NOTICES))]
    assert not others, "beside the error there stands something else:\n" + err.getvalue()
    assert tree(place) == before, "something was written"
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "a cluster was started"
    return code, "\n".join(errors)

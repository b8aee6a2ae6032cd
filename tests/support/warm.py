"""Commands in forks of a process that has imported the libraries: a start takes no 6 s of CPU.

The process is multiprocessing's fork server, one of each process that runs tests. It has imported
and done nothing else, so a fork of it is as good as a new Python. What differs is what a process
tells of itself from outside: its command line and its first environment are the server's.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import process
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = [
    "mlflow.pyfunc", "ray.tune", "sklearn.ensemble", "torchaudio", "resp_tune.evaluate",
    "resp_tune.harness.console", "resp_tune.harness.preflight", "resp_tune.harness.run",
    "resp_tune.harness.validate", "resp_tune.predict", "resp_tune.report", "resp_tune.search",
    "resp_tune.train",
]  # fmt: skip
# Read when Python starts or a library is imported, so that a fork would not heed them.
READ_AT_START = ("PYTHON", "OMP_", "LD_")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(MODULES)
_running: set[WarmProcess] = set()


class WarmProcess:
    """A command in a process group of its own, with the methods of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        out: str = os.devnull,
        err: str = os.devnull,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start `resp_tune.MODULE ARGS`; `prepare`, a module's function, is called before it."""
        self.args = ["python", "-m", f"resp_tune.{module}", *args]
        everything = {**os.environ, **(env or {})}
        for path in (out, err):
            # Here, not in the fork: what a command before wrote must not be taken for this one's.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        told = (module, list(args), everything, str(cwd or Path.cwd()), (out, err), prepare)
        self._process = _context.Process(target=_run, args=told, daemon=True)
        _start(self._process)
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        _running.add(self)

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal's number; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        if self.returncode is not None:
            _running.discard(self)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; `TimeoutExpired` when the command still runs after `timeout`."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the command, not to its group."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def can_be_warm(env: Mapping[str, str]) -> bool:
    """Return whether a fork heeds every variable of `env`."""
    return not any(name.startswith(READ_AT_START) for name in env)


def _start(started: process.BaseProcess) -> None:
    """Start the process, and before the first one the server, with what it needs to import."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}:{before or ''}"
    try:
        started.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(
    module: str,
    args: list[str],
    env: dict[str, str],
    cwd: str,
    files: tuple[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    """Become the command, in the fork."""
    os.setsid()
    for number, path in enumerate((os.devnull, *files)):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None
    sys.argv = [str(ROOT / "resp_tune" / f"{module}.py"), *args]
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from resp_tune.cli import run

    if module == "search":
        grow_few_trees()
    if prepare is not None:
        prepare()
    code = run(importlib.import_module(f"resp_tune.{module}").main, args)
    atexit._run_exitfuncs()
    sys.exit(code)


def grow_few_trees() -> None:
    """Let the forests of a search's baselines take no seconds; their scores have other tests."""
    from resp_tune.evaluation import baselines

    baselines.TREES = 2


@atexit.register
def _end_what_runs() -> None:
    for left in list(_running):
        left.kill()

"""Whole searches in one process: a back end that runs real trials one step after another.

`search_inline` is the real command in a fork, from its arguments to its exit code, but for Ray: it
takes 2 to 5 s of CPU, and a kill of it ends everything that the search has started.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

from ray import tune

from resp_tune.config import TrialConfig
from resp_tune.execution.sanity_check import check_baseline
from resp_tune.execution.searcher import StudySearcher, StudyStopper
from resp_tune.execution.trainable import TrialTrainable
from resp_tune.execution.trial_context import TrialContext
from resp_tune.harness.stages import RayBackend
from resp_tune.study.trial_queue import TrialQueue
from support.searches import Outcome, give_mlflow_store
from support.warm import WarmProcess


class InlineBackend(RayBackend):
    """Drives the searcher as Ray Tune does; trials that would run at once take turns.

    `trainable`: what runs a trial.
    """

    trainable: type[tune.Trainable] = TrialTrainable

    def started(self) -> AbstractContextManager[None]:
        return nullcontext()

    def check(self, context: TrialContext, config: TrialConfig, folder: Path) -> None:
        check_baseline(context, self.compute.slots, config, folder)

    def run(self, queue: TrialQueue, context: TrialContext) -> None:
        searcher = StudySearcher(queue, lambda: self.compute.slots.concurrency)
        stop = StudyStopper(searcher)
        idle: list[Any] = []
        running: dict[str, Any] = {}
        identifiers = map(str, count())
        while True:
            identifier = next(identifiers)
            while isinstance(config := searcher.suggest(identifier), dict):
                running[identifier] = self._worker(config, context, idle)
                identifier = next(identifiers)
            if searcher.fatal_error is not None:
                raise searcher.fatal_error
            if not running:
                return
            for identifier, worker in list(running.items()):
                result = worker.step()
                if result["done"] or stop(identifier, result):
                    searcher.on_trial_complete(identifier, result)
                    idle.append(running.pop(identifier))
                else:
                    searcher.on_trial_result(identifier, result)
                if searcher.fatal_error is not None:
                    raise searcher.fatal_error

    def _worker(self, config: dict[str, Any], context: TrialContext, idle: list[Any]) -> Any:
        if idle:
            worker = idle.pop()
            worker.reset_config(config)
            return worker
        worker = self.trainable.__new__(self.trainable)  # without Ray around it
        worker.setup(config, context)  # type: ignore[call-arg]  # ours takes the context
        return worker


def use_inline_backend() -> None:
    """Let `resp_tune.search` of this process, a fork, run its trials in itself."""
    import resp_tune.search as command
    from resp_tune.execution import trainable

    trainable.REPORT_SECONDS = 0.0  # a turn is one epoch, also where a test holds an epoch back
    command.main = functools.partial(command.main, backend=InlineBackend)


def start_inline(
    storage: Path,
    *args: str,
    env: dict[str, str] | None = None,
    out: Path | None = None,
    err: Path | None = None,
    prepare: Callable[[], None] = use_inline_backend,
) -> WarmProcess:
    """Start a search in a fork."""
    give_mlflow_store(["--storage", str(storage), *args], env or {})
    return WarmProcess(
        "search", ["--storage", str(storage), *args], env=env, out=str(out or os.devnull),
        err=str(err or os.devnull), prepare=prepare,
    )  # fmt: skip


def search_inline(
    storage: Path,
    *args: str,
    env: dict[str, str] | None = None,
    timeout: float = 200,
    prepare: Callable[[], None] = use_inline_backend,
) -> Outcome:
    """Run a search in a fork to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        running = start_inline(storage, *args, env=env, out=out, err=err, prepare=prepare)
        try:
            code = running.wait(timeout)
        finally:
            running.kill()
        return Outcome(code, out.read_text(), err.read_text())

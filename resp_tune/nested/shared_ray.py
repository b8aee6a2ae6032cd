"""Let several searches of one command share one Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from resp_tune.config import TrialConfig
from resp_tune.execution.trial_context import TrialContext
from resp_tune.harness.spec import Compute
from resp_tune.harness.stages import RayBackend
from resp_tune.study.trial_queue import TrialQueue

MakeBackend = Callable[[Compute], RayBackend]


@contextmanager
def share_ray(make: MakeBackend) -> Iterator[MakeBackend]:
    """Yield what makes back ends that share what the first one of them starts.

    Nothing is started by searches that have nothing to train.
    """
    with ExitStack() as stack:
        running: list[RayBackend] = []

        def start(backend: RayBackend) -> None:
            if not running:
                stack.enter_context(backend.started())
                running.append(backend)

        yield lambda compute: _Shared(compute, make(compute), start)


@dataclass(frozen=True)
class _Shared(RayBackend):
    """A back end that runs trials by `own`, in a Ray that outlives the search."""

    own: RayBackend
    start: Callable[[RayBackend], None]

    def started(self) -> AbstractContextManager[None]:
        """Start what is not running yet; return a context that ends nothing."""
        self.start(self.own)
        return nullcontext()

    def check(self, context: TrialContext, config: TrialConfig, folder: Path) -> None:
        """Check as `own` does."""
        self.own.check(context, config, folder)

    def run(self, queue: TrialQueue, context: TrialContext) -> None:
        """Run trials as `own` does."""
        self.own.run(queue, context)

"""What every test stands on: a cache folder of the session's own, and no settings of the user's."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples in every run: a test that fails for one of them fails for everyone. The run of
# the night draws new ones.
settings.register_profile("same examples", derandomize=True, deadline=None)
if os.environ.get("RESP_TUNE_THOROUGH") != "1":
    settings.load_profile("same examples")

if "PYTEST_XDIST_WORKER" in os.environ:  # threads that spin would take the other workers' cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["support.fault_log", "support.object_store"]  # the latter has the fixture `store`

_USERS_OWN = (
    "RESP_TUNE_DATA",
    "RESP_TUNE_CACHE_GB",
    "RESP_TUNE_LOGICAL_GPUS",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
)
# Folders of the cache that take 20 s of CPU to fill, and that all workers may fill together.
_MADE_ONCE = ("baselines", "sounds", "synthetic")


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that tests start inherit it; a test that needs another sets its own."""
    # Ignored in a shell's background jobs, and then in all that these start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path_factory.getbasetemp()
        parallel = "PYTEST_XDIST_WORKER" in os.environ  # workers have folders in one folder
        shared, cache = own.parent if parallel else own, tmp_path_factory.mktemp("cache")
        for name in _MADE_ONCE:
            (shared / name).mkdir(exist_ok=True)
            (cache / name).symlink_to(shared / name)
        patch.setenv("RESP_TUNE_CACHE", str(cache))
        patch.setenv("RESP_TUNE_TEST_SHARED", str(shared))
        for name in _USERS_OWN:
            patch.delenv(name, raising=False)
        yield


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The messages that `resp_tune` logs during the test, also where a command has set it up."""
    logger, handler = logging.getLogger("resp_tune"), _Messages()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.texts
    logger.removeHandler(handler)
    logger.setLevel(level)

"""Compute something of many recordings at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in this process: for many small tensors, more of them only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def recording_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `workers` threads in each of which torch uses one thread.

    Recordings in parallel beat threads within one. After an error pending work is cancelled, which
    leaving a plain pool would complete.
    """
    with one_thread():
        pool = ThreadPoolExecutor(workers)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

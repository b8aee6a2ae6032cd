"""Compute something of many recordings at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


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


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield `function` of each item, in order, with at most `ahead` results begun or waiting.

    `pool.map` begins all of them: behind one slow recording, the frames of all others would wait
    in memory.
    """
    waiting = deque[Future[R]]()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

"""The feature store under several processes, each forked from a server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from support.front_ends import SMALL
from support.toy_stores import (
    COARSE,
    OTHER_STFT,
    PLENTY,
    SAME_SIZE,
    aged,
    check,
    fill,
    limit_for,
    noise,
    one,
    recordings,
)

from resp_tune.config import FrontEnd
from resp_tune.features import cache, cache_files
from resp_tune.features.cache import open_cache

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["resp_tune.features.cache"])


def fill_and_tell(root: Path, front_ends: Sequence[FrontEnd], tell: Connection) -> None:
    """Fill slowly; sends the number of recordings done after each, at last what was computed."""

    def slowly(seed: int, rate: int, resampling: str) -> torch.Tensor:
        time.sleep(0.01)
        return noise(seed, rate)

    tell.send(0)
    progress = lambda done, _total: tell.send(done)  # noqa: E731  # a line is enough
    filled = fill(root, recordings(10, slowly), front_ends, limit_bytes=PLENTY, progress=progress)
    tell.send(filled.computed)


def hold_open(folder: Path, tell: Connection) -> None:
    open_cache(folder)
    tell.send("held")
    tell.recv()


def hold_filled(folder: Path, tell: Connection) -> None:
    """Like the driver of a search, which fills and leaves the opening to its workers."""
    assert one(folder.parent, SAME_SIZE[0]).folders == {SAME_SIZE[0]: folder}
    os.utime(folder / "index.json", (0, 0))
    tell.send("held")
    tell.recv()


def start(target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    return process, ours


def test_killed_at_any_moment_it_is_whole_or_not_there(tmp_path: Path) -> None:
    chance = random.Random(0)  # noqa: S311  # no secret
    for attempt in range(12):
        root = tmp_path / str(attempt % 3)  # most attempts start from what an earlier one left
        process, news = start(fill_and_tell, root, [SMALL, COARSE])
        moment = chance.randrange(12)
        while (told := news.recv()) != moment and not isinstance(told, tuple):
            pass
        time.sleep(chance.random() * 0.01)
        process.kill()
        process.join()
        for folder in root.glob("*/"):
            assert folder.suffix == ".part" or cache_files.is_valid(folder)
    # What a killed process had begun is removed with the next fill, of whatever.
    for attempt in range(3):
        one(tmp_path / str(attempt), OTHER_STFT)
        assert not list((tmp_path / str(attempt)).glob("*.part"))
    for attempt in range(3):
        filled = fill(tmp_path / str(attempt), recordings(10), [SMALL, COARSE], limit_bytes=PLENTY)
        check(filled, SMALL, 10)
        check(filled, COARSE, 10)


def test_two_at_once_compute_once(tmp_path: Path) -> None:
    """Also when they ask in another order, which must not lock them up."""
    asked = ([SMALL, COARSE, OTHER_STFT], [OTHER_STFT, COARSE, SMALL])
    started = [start(fill_and_tell, tmp_path, front_ends) for front_ends in asked]
    computed: list[FrontEnd] = []
    for process, news in started:
        while not isinstance(told := news.recv(), tuple):
            pass
        computed += told
        process.join()
        assert process.exitcode == 0
    assert len(computed) == 3
    assert set(computed) == set(asked[0])


HOLDERS = {"opened": hold_open, "filled": hold_filled}


@pytest.mark.parametrize("holds", HOLDERS)
def test_a_store_that_another_process_has_open_stays(tmp_path: Path, holds: str) -> None:
    old, middle, recent = aged(tmp_path, SAME_SIZE[:3])
    process, news = start(HOLDERS[holds], old)
    assert news.recv() == "held"
    fill(tmp_path, recordings(), [SAME_SIZE[2]], limit_bytes=limit_for(1))
    assert [p.exists() for p in (old, middle, recent)] == [True, False, True]
    news.send("enough")
    process.join()
    fill(tmp_path, recordings(), [SAME_SIZE[2]], limit_bytes=limit_for(1))
    assert [p.exists() for p in (old, middle, recent)] == [False, False, True]


def fill_without_room(root: Path, turn: int, tell: Connection) -> None:
    for i in range(8):
        front_end = SAME_SIZE[(i + turn) % len(SAME_SIZE)]
        filled = fill(root, recordings(2), [front_end], limit_bytes=0)
        assert cache_files.is_valid(filled.folders[front_end])
        cache._PINNED.clear()
    tell.send("done")


def test_processes_that_evict_each_others_stores(tmp_path: Path) -> None:
    started = [start(fill_without_room, tmp_path, turn) for turn in range(3)]
    for process, news in started:
        assert news.recv() == "done"
        process.join()

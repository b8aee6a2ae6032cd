"""The frames of encoders on disk, and clips pooled from them."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from support.encoders import caches_of, ramp, real_encoder, save_encoder

from resp_tune.cluster.node_setup import _use_or_fetch
from resp_tune.config import EncoderFrontEnd, TrialConfig
from resp_tune.encoders import onnx_runtime
from resp_tune.encoders.encoder_file import open_encoders, read_unchanged
from resp_tune.errors import RunError
from resp_tune.features import cache, pooled_clips
from resp_tune.features.cache import open_encoder_cache
from resp_tune.features.cache_files import is_valid
from resp_tune.features.encoder_frames import (
    EncoderFrames,
    encode_waveform,
    expected_rows,
    expected_windows,
)
from resp_tune.features.parallel import in_order, recording_pool
from resp_tune.features.pooled_clips import clip_rows, pool_frames

SECONDS = (1.0, 0.35, 0.8)  # of three recordings: 10, 3.5 and 8 windows of the tiny encoder


@pytest.fixture(autouse=True)
def _stores_of_this_test() -> Iterator[None]:
    """`open_encoder_cache` remembers stores for as long as a process lives."""
    yield
    open_encoder_cache.cache_clear()
    cache._PINNED.clear()
    pooled_clips._POOLS.clear()


@pytest.fixture
def config(tmp_path: Path) -> TrialConfig:
    path = save_encoder(tmp_path / "tiny.onnx")
    path.with_suffix(".yaml").write_text("hop: 0.1\nlicence: MIT")
    return TrialConfig().replace({"encoder": str(path), "encoder_layer": "map"})


def only(config: TrialConfig, **values: Any) -> EncoderFrontEnd:
    (front_end,) = config.replace(values).front_ends
    assert isinstance(front_end, EncoderFrontEnd)
    return front_end


def test_all_layers_and_speeds_are_filled_in_one_pass(
    tmp_path: Path, config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    session = onnx_runtime.session

    def counted(*args: Any) -> Callable[[Any], list[Any]]:
        run = session(*args)
        return lambda values: runs.append(1) or run(values)

    monkeypatch.setattr(onnx_runtime, "session", counted)
    loads: list[float] = []

    def load(seconds: float, rate: int, resampling: str) -> torch.Tensor:
        loads.append(seconds)
        return ramp(seconds, rate)

    caches = caches_of(tmp_path / "store", *SECONDS, load=load)
    fields = [{"encoder_layer": layer, "encoder_speed": "1+2"} for layer in ("map", "last")]
    front_ends = [f for values in fields for f in config.replace(values).front_ends]
    opened = open_encoders(front_ends)
    caches = dataclasses.replace(caches, encoders=opened)
    runs.clear()
    seen: list[tuple[int, int]] = []
    filled = caches.fill(front_ends, progress=lambda *counts: seen.append(counts))
    assert filled == tuple(front_ends)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(loads) == sorted(SECONDS)
    windows = sum(expected_windows(s, speed, opened[0]) for s in SECONDS for speed in (1, 2))
    assert windows == 10 + 4 + 8 + 5 + 2 + 4
    assert len(runs) == windows
    frames = open_encoder_cache(caches.folder(front_ends[0]))
    assert frames.count.tolist() == [40, 14, 32]
    for i, seconds in enumerate(SECONDS):
        own = frames.values[frames.first[i] :][: frames.count[i]]
        assert torch.equal(own[0].float(), ramp(seconds, 16_000)[:400])
    assert caches.fill(front_ends) == ()
    assert len(loads) == 3
    for front_end in front_ends:
        rows = sum(expected_rows(s, front_end, opened[0]) for s in SECONDS)
        size = sum(p.stat().st_size for p in caches.folder(front_end).glob("*.f*"))
        assert caches.is_there(front_end)
        assert rows * 4 <= caches.expected_bytes(SECONDS, front_end)
        assert abs(caches.expected_bytes(SECONDS, front_end) - size) <= 0.15 * size


def test_few_recordings_wait_behind_a_slow_one() -> None:
    """Or the frames of all others would be in memory."""
    first, begun = threading.Event(), list[int]()

    def one(i: int) -> int:
        begun.append(i)
        if i == 0:
            assert first.wait(30)
        return i

    with recording_pool(3) as pool:
        results = in_order(pool, one, range(100), ahead=5)
        seen = [pool.submit(next, results)]
        while len(begun) < 5:
            assert not seen[0].done()
            time.sleep(0.001)
        time.sleep(0.05)
        assert sorted(begun) == [0, 1, 2, 3, 4]
        first.set()
        assert [seen[0].result(), *results] == list(range(100))


def test_several_workers_write_the_same_bytes(tmp_path: Path, config: TrialConfig) -> None:
    found = []
    for workers in (1, 3):
        caches = caches_of(tmp_path / str(workers), *SECONDS)
        caches.fill(config.front_ends, workers=workers)
        (folder,) = (caches.folder(f) for f in config.front_ends)
        found.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert found[0] == found[1]
    assert set(found[0]) == {"frames.f16", "centres.f32", "index.json"}
    about = json.loads(found[0]["index.json"].splitlines()[1])["about"]
    assert about.startswith("tiny, SHA-256 ")
    assert about.endswith("licence: MIT")


def test_the_key_holds_the_content_and_not_the_path(tmp_path: Path, config: TrialConfig) -> None:
    caches = caches_of(tmp_path / "store", *SECONDS)
    first = only(config)
    moved = tmp_path / "elsewhere" / "other.onnx"
    moved.parent.mkdir()
    for suffix in (".onnx", ".yaml"):
        shutil.copy(Path(config.encoder).with_suffix(suffix), moved.with_suffix(suffix))
    same = [first, only(config, encoder_layer=3), only(config, encoder=str(moved))]
    assert len({caches.folder(f) for f in same}) == 1
    caches.fill(same)
    assert caches.fill([only(config, encoder_pool="max", pca=3)]) == ()
    others = [
        {"encoder_layer": "hidden"}, {"encoder_speed": "2"}, {"f_max": 1900.0},
        {"resampling": "hann"}, {"encoder": str(save_encoder(tmp_path / "b.onnx", seed=1))},
    ]  # fmt: skip
    keys = {caches.folder(f) for f in (first, *(only(config, **values) for values in others))}
    assert len(keys) == 1 + len(others)
    moved.with_suffix(".yaml").write_text("hop: 0.05")
    os.utime(moved.with_suffix(".yaml"), ns=(1, 1))
    assert caches.folder(only(config, encoder=str(moved))) not in keys


def test_workers_need_neither_the_path_nor_the_library(tmp_path: Path, config: TrialConfig) -> None:
    """What the driver has opened is sent along; the file is read where a cache is missing."""
    caches = caches_of(tmp_path / "store", *SECONDS)
    opened = dataclasses.replace(caches, encoders=open_encoders(config.front_ends))
    opened.fill(config.front_ends)
    Path(config.encoder).unlink()
    sent = pickle.loads(pickle.dumps(opened))  # noqa: S301  # as Ray sends it
    assert sent.fill(config.front_ends) == ()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(RunError, match=r"encoder '.*tiny.onnx' cannot be read"):
        sent.fill(config.front_ends)


def test_a_node_without_the_file_fetches_it_from_the_driver(
    tmp_path: Path, config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does recordings: by content, into its cache, and only if the bytes are right."""
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    (encoder,) = open_encoders(config.front_ends)
    path, content, asked = encoder.path, encoder.read(), list[str]()

    def read(digest: str) -> bytes:
        asked.append(digest)
        return content if len(asked) > 1 else b"other bytes"

    actor = SimpleNamespace(read=SimpleNamespace(remote=read))
    fetch = partial(_use_or_fetch, path, encoder.sha256, actor, read_unchanged)
    assert fetch() == content
    assert asked == []
    path.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        fetch()
    assert fetch() == fetch() == content
    assert asked == [encoder.sha256] * 2


DAMAGE: dict[str, Callable[[Path], object]] = {
    "frames": lambda folder: os.truncate(folder / "frames.f16", 100),
    "centres cut": lambda folder: os.truncate(folder / "centres.f32", 100),
    "centres gone": lambda folder: (folder / "centres.f32").unlink(),
    "centres changed": lambda folder: (folder / "centres.f32").write_bytes(
        bytes((folder / "centres.f32").stat().st_size)
    ),
    "index": lambda folder: (folder / "index.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended(tmp_path: Path, config: TrialConfig, damage: str) -> None:
    caches, front_end = caches_of(tmp_path / "store", *SECONDS), only(config)
    caches.fill([front_end])
    folder = caches.folder(front_end)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    DAMAGE[damage](folder)
    assert not is_valid(folder)
    assert caches.fill([front_end]) == (front_end,)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def frames_of(*counts: int, spacing: float = 0.5, size: int = 3) -> EncoderFrames:
    """Random frames, `spacing` s apart, of recordings with so many."""
    count = torch.tensor(counts)
    generator = torch.Generator().manual_seed(sum(counts))
    values = torch.randn(int(count.sum()), size, generator=generator).half()
    centre = torch.cat([(torch.arange(n) + 0.5) * spacing for n in counts])
    return EncoderFrames(values, count.cumsum(0) - count, count, centre)


@pytest.mark.parametrize(
    ("clip", "rows"),
    [
        ((0, 0.0, 2.0), (0, 4)),  # the whole of the first recording
        ((1, 0.0, 1.5), (4, 7)),
        ((1, 0.5, 1.0), (5, 6)),  # centres at .25, .75 and 1.25
        ((1, 0.3, 0.9), (5, 6)),
        ((1, 0.8, 1.2), (5, 6)),  # holds no centre: .75 is as near to its middle as 1.25
        ((1, 0.85, 1.2), (6, 7)),
        ((1, 0.0, 0.1), (4, 5)),  # before the first
        ((1, 1.4, 1.5), (6, 7)),  # after the last, not of the next recording
        ((2, 0.0, 9.0), (7, 8)),  # beyond the end
        ((2, 5.0, 9.0), (7, 8)),
        ((0, 1.9, 2.0), (3, 4)),
    ],
)
def test_frames_are_cut_at_the_clips(clip: tuple[int, float, float], rows: tuple[int, int]) -> None:
    frames = frames_of(4, 3, 1)
    index, start, end = (torch.tensor([x]) for x in clip)
    found = clip_rows(frames, index, start.double(), end.double())
    if clip[1:] == (0.8, 1.2):
        assert found[0, 0] in (5, 6)
        assert found[0, 1] == found[0, 0] + 1
    else:
        assert tuple(found[0].tolist()) == rows


def test_pooling_keeps_each_column(tmp_path: Path) -> None:
    frames = frames_of(4, 3, 1)
    index = torch.tensor([1, 0, 2])
    start, end = torch.tensor([0.0, 0.5, 0.0]).double(), torch.tensor([1.5, 1.5, 0.5]).double()
    parts = [frames.values[a:b].float().numpy() for a, b in ((4, 7), (1, 3), (7, 8))]
    expected = {
        "mean": [x.mean(0) for x in parts],
        "max": [x.max(0) for x in parts],
        "mean+sd": [np.concatenate([x.mean(0), x.std(0)]) for x in parts],
    }
    for pool, theirs in expected.items():
        ours = pool_frames(frames, pool, index, start, end)  # type: ignore[arg-type]
        assert ours.numpy() == pytest.approx(np.stack(theirs), abs=1e-6)
    assert (ours[2, 3:] == 0).all()  # one frame has no spread


def test_a_clip_is_pooled_once_in_a_process(
    tmp_path: Path, config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = caches_of(tmp_path / "store", *SECONDS)
    config = config.replace({"encoder_speed": "1+2", "encoder_layer": "hidden"})
    pooled: list[int] = []
    pool = pooled_clips.pool_frames

    def counted(frames: EncoderFrames, kind: Any, index: torch.Tensor, *times: Any) -> torch.Tensor:
        pooled.append(len(index))
        return pool(frames, kind, index, *times)

    monkeypatch.setattr(pooled_clips, "pool_frames", counted)

    def clips(*which: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ends = torch.tensor([SECONDS[i] for i in which], dtype=torch.float64)
        return torch.tensor(which), torch.zeros(len(which), dtype=torch.float64), ends

    first = pooled_clips.pooled_clips(caches, config, clips(0, 1), workers=1)
    assert first.values.shape == (2, 2 * 2 * 6)  # speeds, mean and sd, channels
    assert pooled == [2, 2]
    again = pooled_clips.pooled_clips(caches, config, clips(1, 2, 1), workers=1)
    assert pooled == [2, 2, 1, 1]
    assert torch.equal(again.values[0], first.values[1])
    assert torch.equal(again.values[0], again.values[2])
    slow, fast = (open_encoder_cache(caches.folder(f)) for f in config.front_ends)
    for columns, frames in ((slice(0, 12), slow), (slice(12, 24), fast)):
        assert torch.equal(first.values[:, columns], pool(frames, "mean+sd", *clips(0, 1)))
    keys = {
        pooled_clips.pooled_clips(caches, config.replace(values), which, workers=1).key
        for values in ({}, {"encoder_pool": "mean"}, {"encoder_speed": "2"})
        for which in (clips(0, 1), clips(1, 0))
    }
    assert len(keys) == 6
    assert first.key in keys


def test_one_recording_alone_gives_the_same_frames(tmp_path: Path, config: TrialConfig) -> None:
    config = config.replace({"encoder_speed": "1+4", "f_max": 3000.0})
    caches = caches_of(tmp_path / "store", *SECONDS)
    caches.fill(config.front_ends)
    front_ends = [f for f in config.front_ends if isinstance(f, EncoderFrontEnd)]
    (encoder,) = open_encoders(front_ends)
    alone = encode_waveform(front_ends, encoder, lambda rate, _: ramp(SECONDS[0], rate))
    for frames, front_end in zip(alone, front_ends, strict=True):
        cached = open_encoder_cache(caches.folder(front_end))
        n = len(frames.values)
        assert n == cached.count[0] == frames.count[0]
        assert torch.equal(frames.values, cached.values[:n])
        assert torch.equal(frames.centre, cached.centre[:n])


def test_yamnet_fills_a_cache(tmp_path: Path) -> None:
    fields = {"encoder": str(real_encoder()), "encoder_layer": 108, "encoder_speed": [1, 2, 4]}
    config = TrialConfig().replace({**fields, "f_max": 1900.0})
    caches = caches_of(tmp_path / "store", 5.0, 0.4)
    clips = torch.tensor([0, 0, 1]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([5.0, 1.5, 0.4])
    found = pooled_clips.pooled_clips(
        caches, config, (clips[0], clips[1].double(), clips[2].double()), workers=2
    )
    assert found.values.shape == (3, 3 * 2 * 4 * 512)
    assert torch.isfinite(found.values).all()
    assert (found.values.std(dim=1) > 0).all()

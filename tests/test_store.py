"""The feature store: its figures, its damage, its processes, its size."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from support.front_ends import FILTERS, SMALL, torchaudios
from support.small_sets import originals
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

from resp_tune.config import preset
from resp_tune.data.sounds.waveforms import load_waveform
from resp_tune.errors import RunError, UserError
from resp_tune.features import cache, cache_files, logmel
from resp_tune.features.cache import AudioSource, cache_key, open_cache
from resp_tune.features.logmel import SILENCE_DB


@pytest.fixture(autouse=True)
def _stores_of_this_test() -> Iterator[None]:
    """`open_cache` remembers stores for as long as a process lives."""
    yield
    open_cache.cache_clear()
    cache._PINNED.clear()


def test_frames_of_several_front_ends_from_one_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    spectrogram = logmel._power_spectrogram

    def counted(*args: Any) -> torch.Tensor:
        passes.append(1)
        return spectrogram(*args)

    monkeypatch.setattr(logmel, "_power_spectrogram", counted)
    loads: list[int] = []

    def load(seed: int, rate: int, resampling: str) -> torch.Tensor:
        loads.append(rate)
        return noise(seed, rate)

    front_ends = [SMALL, COARSE, OTHER_STFT]
    filled = fill(tmp_path, recordings(4, load), front_ends, limit_bytes=PLENTY)
    assert filled.computed == tuple(front_ends)
    assert len(passes) == len(loads) == 2 * 4  # one pass for both mel sizes, one for the other
    for front_end in front_ends:
        check(filled, front_end)
        frames = open_cache(filled.folders[front_end])
        assert len(frames.count) == 4
        assert (frames.values[frames.silence] == SILENCE_DB).all()
        for i in range(4):
            rows = frames.values[frames.first[i] :][: frames.count[i]]
            theirs = torchaudios(noise(i, 4000), front_end)
            assert (rows.float() - theirs).abs().max() <= 0.05
    again = fill(tmp_path, recordings(4, load), front_ends, limit_bytes=PLENTY)
    assert (again.folders, again.computed) == (filled.folders, ())
    assert len(loads) == 8


def test_several_workers_write_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 3):
        check(
            fill(
                tmp_path / str(workers), recordings(), [SMALL], limit_bytes=PLENTY, workers=workers
            )
        )


def test_real_formats_equal_torchaudio(tmp_path: Path) -> None:
    """44.1, 10 and 4 kHz in 16, 24 and 32 bit, under several front ends from one fill."""
    chosen: dict[tuple[int, str], Path] = {}
    for path in sorted((originals() / "audio_and_txt_files").glob("*.wav")):
        info = soundfile.info(path)
        chosen.setdefault((info.samplerate, info.subtype), path)
    assert {rate for rate, _ in chosen} == {44_100, 10_000, 4000}
    paths = list(chosen.values())
    sources = [AudioSource(p.stem, p.stem, partial(load_waveform, p)) for p in paths]
    notebook = preset("notebook").front_end
    front_ends = [SMALL, COARSE, notebook, dataclasses.replace(notebook, n_mels=32)]
    filled = fill(tmp_path, sources, front_ends, limit_bytes=PLENTY)
    for front_end in front_ends:
        frames = open_cache(filled.folders[front_end])
        for i, path in enumerate(paths):
            samples, rate = soundfile.read(path, dtype="float32")
            resample = torch.nn.Identity()
            if rate != front_end.sample_rate:
                import torchaudio

                options = FILTERS[front_end.resampling]
                resample = torchaudio.transforms.Resample(rate, front_end.sample_rate, **options)
            theirs = torchaudios(resample(torch.from_numpy(samples)), front_end)
            ours = frames.values[frames.first[i] :][: frames.count[i]].float()
            assert (ours - theirs).abs().max() <= 0.05, (path.name, front_end)


def test_frames_are_mapped_not_copied(tmp_path: Path) -> None:
    folder = one(tmp_path).folders[SMALL]
    frames = open_cache(folder)
    assert str(folder / "frames.f16") in Path("/proc/self/maps").read_text()
    assert open_cache(folder) is frames


def test_the_key_changes_with_all_that_matters() -> None:
    sources = recordings()
    variants = [
        (sources, SMALL),
        (sources[::-1], SMALL),
        (sources[:3], SMALL),
        ([dataclasses.replace(sources[0], digest="changed"), *sources[1:]], SMALL),
        ([dataclasses.replace(sources[0], stem="renamed"), *sources[1:]], SMALL),
        *(
            (sources, dataclasses.replace(SMALL, **{name: value + 1}))
            for name, value in dataclasses.asdict(SMALL).items()
            if not isinstance(value, str)
        ),
        (sources, dataclasses.replace(SMALL, compression="pcen")),
        (sources, dataclasses.replace(SMALL, resampling="hann")),
    ]
    keys = [cache_key(s, f) for s, f in variants]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache_key(recordings(), dataclasses.replace(SMALL))
    assert all(len(key) == 24 and int(key, 16) for key in keys)


def test_progress_counts_every_pass(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    asked = [SMALL, COARSE, OTHER_STFT]
    for _ in range(2):
        fill(
            tmp_path,
            recordings(3),
            asked,
            limit_bytes=PLENTY,
            progress=lambda *counts: seen.append(counts),
        )
    assert seen == [(i, 6) for i in range(1, 7)]  # two passes, and nothing the second time


def _flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def _of_another_version(index: Path) -> None:
    body = json.dumps(json.loads(index.read_text().splitlines()[1]) | {"format": -1})
    index.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n")


DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "first byte flipped": lambda frames, _: _flip(frames, 0),
    "middle byte flipped": lambda frames, _: _flip(frames, 0.5),
    "last byte flipped": lambda frames, _: _flip(frames, 1),
    "frames cut": lambda frames, _: os.truncate(frames, frames.stat().st_size - 2),
    "frames longer": lambda frames, _: frames.write_bytes(frames.read_bytes() + b"\0\0"),
    "frames empty": lambda frames, _: frames.write_bytes(b""),
    "frames gone": lambda frames, _: frames.unlink(),
    "index gone": lambda _, index: index.unlink(),
    "index empty": lambda _, index: index.write_bytes(b""),
    "index cut": lambda _, index: os.truncate(index, index.stat().st_size // 2),
    "index flipped": lambda _, index: _flip(index, 0.6),
    "index is garbage": lambda _, index: index.write_bytes(b"{]\n\xff\n"),
    "index without its hash": lambda _, index: index.write_text(index.read_text().split("\n")[1]),
    "index of another version": lambda _, index: _of_another_version(index),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended(tmp_path: Path, damage: str) -> None:
    filled = one(tmp_path)
    folder = filled.folders[SMALL]
    DAMAGE[damage](folder / "frames.f16", folder / "index.json")
    if "index" in damage:
        with pytest.raises(RunError, match="is not readable: rerun the same command"):
            open_cache(folder)
    mended = one(tmp_path)
    assert mended.computed == (SMALL,)
    check(mended)
    assert one(tmp_path).computed == ()


def test_a_recording_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    def fails(seed: int, rate: int, resampling: str) -> torch.Tensor:
        if seed == 2:
            raise UserError("recording 'r2' cannot be read")
        return noise(seed, rate)

    with pytest.raises(UserError, match="r2"):
        fill(tmp_path, recordings(4, fails), [SMALL, COARSE], limit_bytes=PLENTY)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".lock"}
    check(one(tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("n", [1, 30])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """Writes to /dev/full fail as on a full disk: while recordings come, or only at the end."""
    open_writer = cache_files.CacheWriter.__init__

    def onto_a_full_disk(writer: Any, stack: ExitStack, *args: Any) -> None:
        open_writer(writer, stack, *args)
        writer.file = stack.enter_context(Path("/dev/full").open("wb"))  # noqa: SIM115

    with monkeypatch.context() as patch:
        patch.setattr(cache_files.CacheWriter, "__init__", onto_a_full_disk)
        with pytest.raises(RunError) as caught:
            fill(tmp_path, recordings(n), [SMALL, COARSE], limit_bytes=PLENTY)
    assert str(caught.value) == (
        f"disk full while writing '{tmp_path}': free some space, or set RESP_TUNE_CACHE to a "
        "folder on another disk, then rerun the same command to resume"
    )
    assert {p.suffix for p in tmp_path.iterdir()} <= {".lock"}
    check(one(tmp_path, n=n), n=n)


def test_the_least_recently_used_store_goes_first(tmp_path: Path) -> None:
    old, middle, recent = aged(tmp_path, SAME_SIZE[:3])
    fill(tmp_path, recordings(), [SAME_SIZE[0]], limit_bytes=PLENTY)  # used again: now the newest
    cache._PINNED.clear()
    fill(tmp_path, recordings(), [SAME_SIZE[3]], limit_bytes=limit_for(3))
    assert [p.exists() for p in (old, middle, recent)] == [True, False, True]
    fill(tmp_path, recordings(), [SAME_SIZE[3]], limit_bytes=limit_for(2))
    assert [p.exists() for p in (old, middle, recent)] == [True, False, False]
    cache._PINNED.clear()
    check(fill(tmp_path, recordings(), [SMALL, COARSE], limit_bytes=0))  # what is asked for stays
    assert len(list(tmp_path.glob("*/index.json"))) == 2

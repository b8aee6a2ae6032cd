"""The feature store: its figures, its damage, its processes, its size."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_sets import originals
from test_logmel import SMALL, torchaudios

from resp_tune.config import FrontEnd, preset
from resp_tune.data.audio import load_waveform
from resp_tune.errors import RunError, UserError
from resp_tune.features import store
from resp_tune.features.logmel import SILENCE_DB, log_mels
from resp_tune.features.store import Filled, Source, fill, open_store, store_key

COARSE = dataclasses.replace(SMALL, n_mels=16)
OTHER_STFT = dataclasses.replace(SMALL, n_fft=512)
PLENTY = 10**9


def noise(seed: int, rate: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(rate // 2 + 100 * seed, generator=generator)


def recordings(n: int = 4, load: Callable[[int, int], torch.Tensor] = noise) -> list[Source]:
    return [Source(f"r{i}", f"digest{i}", partial(load, i)) for i in range(n)]


def expected(n: int, front_end: FrontEnd) -> torch.Tensor:
    mels = [log_mels(noise(i, front_end.sample_rate), [front_end])[0].half() for i in range(n)]
    silence = torch.full((1, front_end.n_mels), SILENCE_DB, dtype=torch.float16)
    return torch.cat([*mels, silence])


def one(root: Path, front_end: FrontEnd = SMALL, n: int = 4) -> Filled:
    return fill(root, recordings(n), [front_end], limit_bytes=PLENTY)


def check(filled: Filled, front_end: FrontEnd = SMALL, n: int = 4) -> None:
    """What is on disk is what was asked for, and nothing lies beside it."""
    folder = filled.folders[front_end]
    on_disk = torch.from_numpy(np.fromfile(folder / "frames.f16", dtype=np.float16))
    assert torch.equal(on_disk.view(-1, front_end.n_mels), expected(n, front_end))
    assert not list(folder.parent.glob("*.part"))
    assert sorted(p.name for p in folder.iterdir()) == ["frames.f16", "index.json"]


@pytest.fixture(autouse=True)
def _stores_of_this_test() -> Iterator[None]:
    """`open_store` remembers stores for as long as a process lives."""
    yield
    open_store.cache_clear()
    store._HELD.clear()


def test_frames_of_several_front_ends_from_one_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    stft = torch.stft
    monkeypatch.setattr(torch, "stft", lambda *a, **k: passes.append(1) or stft(*a, **k))
    loads: list[int] = []

    def load(seed: int, rate: int) -> torch.Tensor:
        loads.append(rate)
        return noise(seed, rate)

    front_ends = [SMALL, COARSE, OTHER_STFT]
    filled = fill(tmp_path, recordings(4, load), front_ends, limit_bytes=PLENTY)
    assert filled.computed == tuple(front_ends)
    assert len(passes) == len(loads) == 2 * 4  # one pass for both mel sizes, one for the other
    for front_end in front_ends:
        check(filled, front_end)
        frames = open_store(filled.folders[front_end])
        assert frames.stems == ("r0", "r1", "r2", "r3")
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
    sources = [Source(p.stem, p.stem, partial(load_waveform, p)) for p in paths]
    notebook = preset("notebook").front_end
    front_ends = [SMALL, COARSE, notebook, dataclasses.replace(notebook, n_mels=32)]
    filled = fill(tmp_path, sources, front_ends, limit_bytes=PLENTY)
    for front_end in front_ends:
        frames = open_store(filled.folders[front_end])
        for i, path in enumerate(paths):
            samples, rate = soundfile.read(path, dtype="float32")
            resample = torch.nn.Identity()
            if rate != front_end.sample_rate:
                import torchaudio

                resample = torchaudio.transforms.Resample(rate, front_end.sample_rate)
            theirs = torchaudios(resample(torch.from_numpy(samples)), front_end)
            ours = frames.values[frames.first[i] :][: frames.count[i]].float()
            assert (ours - theirs).abs().max() <= 0.05, (path.name, front_end)


def test_frames_are_mapped_not_copied(tmp_path: Path) -> None:
    folder = one(tmp_path).folders[SMALL]
    frames = open_store(folder)
    assert str(folder / "frames.f16") in Path("/proc/self/maps").read_text()
    assert open_store(folder) is frames


def test_the_key_changes_with_all_that_matters() -> None:
    sources = recordings()
    variants = [
        (sources, SMALL),
        (sources[::-1], SMALL),
        (sources[:3], SMALL),
        ([dataclasses.replace(sources[0], digest="changed"), *sources[1:]], SMALL),
        ([dataclasses.replace(sources[0], stem="renamed"), *sources[1:]], SMALL),
        *(
            (sources, dataclasses.replace(SMALL, **{f.name: getattr(SMALL, f.name) + 1}))
            for f in dataclasses.fields(SMALL)
        ),
    ]
    keys = [store_key(s, f) for s, f in variants]
    assert len(set(keys)) == len(keys)
    assert keys[0] == store_key(recordings(), dataclasses.replace(SMALL))
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
        with pytest.raises(RunError, match="is not readable: run the same command again"):
            open_store(folder)
    mended = one(tmp_path)
    assert mended.computed == (SMALL,)
    check(mended)
    assert one(tmp_path).computed == ()


def test_a_recording_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    def fails(seed: int, rate: int) -> torch.Tensor:
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

    def onto_a_full_disk(writer: Any) -> Any:
        writer.file = open("/dev/full", "wb")  # noqa: SIM115, PTH123  # closed by the writer
        return writer

    with monkeypatch.context() as patch:
        patch.setattr(store._Writer, "__enter__", onto_a_full_disk)
        with pytest.raises(RunError) as caught:
            fill(tmp_path, recordings(n), [SMALL, COARSE], limit_bytes=PLENTY)
    assert str(caught.value) == (
        f"no space left for the feature store under {tmp_path}: free some, or set RESP_TUNE_CACHE "
        "to a folder on another disk"
    )
    assert {p.suffix for p in tmp_path.iterdir()} <= {".lock"}
    check(one(tmp_path, n=n), n=n)


def aged(root: Path, front_ends: Sequence[FrontEnd]) -> list[Path]:
    """Stores of these front ends, the first used longest ago, made by a process that is gone."""
    folders = [one(root, f).folders[f] for f in front_ends]
    store._HELD.clear()
    for age, folder in zip(range(len(folders), 0, -1), folders, strict=True):
        os.utime(folder / "index.json", (time.time() - 3600 * age,) * 2)
    return folders


SAME_SIZE = [dataclasses.replace(SMALL, f_min=f) for f in (10.0, 20.0, 30.0, 40.0)]


def limit_for(stores: int) -> int:
    return stores * expected(4, SMALL).numel() * 2


def test_the_least_recently_used_store_goes_first(tmp_path: Path) -> None:
    old, middle, recent = aged(tmp_path, SAME_SIZE[:3])
    fill(tmp_path, recordings(), [SAME_SIZE[0]], limit_bytes=PLENTY)  # used again: now the newest
    store._HELD.clear()
    fill(tmp_path, recordings(), [SAME_SIZE[3]], limit_bytes=limit_for(3))
    assert [p.exists() for p in (old, middle, recent)] == [True, False, True]
    fill(tmp_path, recordings(), [SAME_SIZE[3]], limit_bytes=limit_for(2))
    assert [p.exists() for p in (old, middle, recent)] == [True, False, False]
    store._HELD.clear()
    check(fill(tmp_path, recordings(), [SMALL, COARSE], limit_bytes=0))  # what is asked for stays
    assert len(list(tmp_path.glob("*/index.json"))) == 2


# --- Other processes. Each is forked from a server that has torch loaded and no threads.

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["resp_tune.features.store"])


def fill_and_tell(root: Path, front_ends: Sequence[FrontEnd], tell: Connection) -> None:
    """Fill slowly; sends the number of recordings done after each, at last what was computed."""

    def slowly(seed: int, rate: int) -> torch.Tensor:
        time.sleep(0.01)
        return noise(seed, rate)

    tell.send(0)
    progress = lambda done, _total: tell.send(done)  # noqa: E731  # a line is enough
    filled = fill(root, recordings(10, slowly), front_ends, limit_bytes=PLENTY, progress=progress)
    tell.send(filled.computed)


def hold_open(folder: Path, tell: Connection) -> None:
    open_store(folder)
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
            assert folder.suffix == ".part" or store._sound(folder)
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
        assert store._sound(filled.folders[front_end])
        store._HELD.clear()
    tell.send("done")


def test_processes_that_evict_each_others_stores(tmp_path: Path) -> None:
    started = [start(fill_without_room, tmp_path, turn) for turn in range(3)]
    for process, news in started:
        assert news.recv() == "done"
        process.join()

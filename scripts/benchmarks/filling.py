"""Measure filling the cache: all mel sizes of the notebook's space in one pass, and only one."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence

from benchmarks.rounds import ratio, take_turns
from benchmarks.workspace import CACHE_LIMIT_BYTES, Measurement, Workspace
from resp_tune.config import FrontEnd
from resp_tune.features.cache import FeatureCaches
from resp_tune.space.search_space import load_space

ROWS = ("fill_all_over_one",)


def measure(workspace: Workspace) -> Measurement:
    """Fill empty caches in turn; the recordings are hashed before, as both need the hashes."""
    all_front_ends = load_space("search_spaces/notebook.yaml").front_ends()
    front_end = workspace.config(epochs=1).front_end
    cpus = workspace.machine.cpus
    sources = tuple(workspace.datamodule.audio_sources(workspace.datamodule.search_stems, cpus))

    def seconds(front_ends: Sequence[FrontEnd]) -> dict[str, float]:
        root = workspace.folder / "fresh"
        started = time.perf_counter()
        FeatureCaches(root, sources, CACHE_LIMIT_BYTES).fill(front_ends, workers=cpus)
        elapsed = time.perf_counter() - started
        shutil.rmtree(root)
        return {"seconds": elapsed}

    rows = {"all": lambda: seconds(all_front_ends), "one": lambda: seconds([front_end])}
    # The first round, which is dropped, brings the recordings into the page cache.
    figures = take_turns(rows, workspace.sizes.fills)
    all_seconds, one_seconds = ([f["seconds"] for f in figures[name]] for name in ("all", "one"))
    return Measurement(
        {"fill_all_over_one": ratio(all_seconds, one_seconds)},
        {
            "fill_all_over_one": f"{len(sources)} recordings, {len(all_front_ends)} mel sizes "
            f"{statistics.median(all_seconds):.1f} s, one {statistics.median(one_seconds):.1f} s, "
            f"median of {len(one_seconds)} rounds"
        },
        {"fill": {"all": all_seconds, "one": one_seconds}},
    )

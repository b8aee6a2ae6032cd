"""Filling the cache: every mel size of the notebook's space in one pass against one alone."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence

from benchmarks.rounds import ratio, take_turns
from benchmarks.workplace import PLENTY, Findings, Workplace
from resp_tune.config import FrontEnd
from resp_tune.features.cache import fill
from resp_tune.space.search_space import load_space

ROWS = ("fill_all_over_one",)


def measure(place: Workplace) -> Findings:
    """Fresh caches, in turn; the hashes of the recordings, which both need, stand before."""
    every = load_space("search_spaces/notebook.yaml").front_ends()
    one = place.config(epochs=1).front_end
    cpus = place.machine.cpus
    sources = place.datamodule.audio_sources(place.datamodule.search_stems, cpus)

    def seconds(front_ends: Sequence[FrontEnd]) -> dict[str, float]:
        root = place.folder / "fresh"
        started = time.perf_counter()
        fill(root, sources, front_ends, limit_bytes=PLENTY, workers=cpus)
        took = time.perf_counter() - started
        shutil.rmtree(root)
        return {"seconds": took}

    rows = {"all": lambda: seconds(every), "one": lambda: seconds([one])}
    # The first turn is dropped: in it the row that comes first waits for the disk, for both.
    taken = take_turns(rows, place.sizes.fills)
    together, alone = ([figures["seconds"] for figures in taken[k]] for k in ("all", "one"))
    return Findings(
        {"fill_all_over_one": ratio(together, alone)},
        {
            "fill_all_over_one": f"{len(sources)} recordings, {len(every)} mel sizes "
            f"{statistics.median(together):.1f} s, one {statistics.median(alone):.1f} s, "
            f"median of {len(alone)} turns"
        },
        {"fill": {"all": together, "one": alone}},
    )

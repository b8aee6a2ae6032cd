"""The nodes of a cluster, made ready for the first trial: recordings and filled caches."""

from __future__ import annotations

from collections.abc import Callable

from resp_tune.learning.problem import FILLED_FIRST, Stores
from resp_tune.searching.prepare import Prepared
from resp_tune.tuning.joining import Cluster
from resp_tune.tuning.plan import room_for
from resp_tune.tuning.supply import fill_caches, hand_out

Say = Callable[[str], None]


def make_ready(prepared: Prepared, cluster: Cluster, stores: Stores, say: Say) -> None:
    """Hand out what nodes cannot see, fill the cache of each, say what that took.

    Only nodes that have room for a trial now; one that joins later fills its cache when its first
    trial wants it.
    """
    if prepared.unseen:
        digests = {s.stem: s.digest for s in prepared.sources}
        paths = {r.stem: r.path for r in prepared.problem.dataset.recordings}
        sent = hand_out(prepared.unseen, {d: paths[stem] for stem, d in digests.items()})
        say(f"recordings: {sent / 1e6:,.0f} MB handed out to {len(prepared.unseen)} nodes")
    if len(prepared.front_ends) > FILLED_FIRST:
        return
    nodes = [n for n in cluster.nodes if room_for(prepared.slots, [n.machine])]
    for done in fill_caches(nodes, stores, prepared.front_ends):
        what = f"{done.computed} front ends computed" if done.computed else "was full"
        say(f"cache of {done.node}: {what}, {done.seconds:.1f} s")

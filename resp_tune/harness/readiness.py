"""The nodes of a cluster, made ready for the first trial: recordings and filled caches."""

from __future__ import annotations

from collections.abc import Callable

from resp_tune.cluster.connect import Cluster
from resp_tune.cluster.node_setup import Library, fill_caches
from resp_tune.cluster.resources import room_for
from resp_tune.harness.spec import Prepared
from resp_tune.training.datamodule import FILLED_FIRST, Stores

Say = Callable[[str], None]


def made_ready(prepared: Prepared, cluster: Cluster, stores: Stores, say: Say) -> Stores:
    """The stores as trials on any node can use them, those of today's nodes filled; says how long.

    A node that joins later borrows and computes what its first trial wants.
    """
    recordings = {s.digest: prepared.paths[s.stem] for s in prepared.sources}
    library = Library(recordings)
    stores = library.lending(stores, recordings)
    if len(prepared.front_ends) > FILLED_FIRST:
        return stores
    nodes = [n for n in cluster.nodes if room_for(prepared.slots, [n.machine])]
    for done in fill_caches(nodes, stores, prepared.front_ends):
        what = f"{done.computed} front ends computed" if done.computed else "was full"
        say(f"cache of {done.node}: {what}, {done.seconds:.1f} s")
    if lent := library.lent():
        say(f"recordings: {lent / 1e6:,.1f} MB lent to nodes that do not see them")
    return stores

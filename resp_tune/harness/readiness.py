"""The nodes of a cluster, made ready for the first trial: recordings and filled caches."""

from __future__ import annotations

import logging

from resp_tune.cluster.connect import Cluster
from resp_tune.cluster.node_setup import RecordingServer, fill_caches
from resp_tune.cluster.resources import trial_capacity
from resp_tune.harness.spec import SearchSpec
from resp_tune.training.datamodule import FILLED_FIRST, FeatureCaches

log = logging.getLogger(__name__)


def warm_up_nodes(spec: SearchSpec, cluster: Cluster, caches: FeatureCaches) -> FeatureCaches:
    """The stores as trials on any node can use them, those of today's nodes filled; says how long.

    A node that joins later borrows and computes what its first trial wants.
    """
    recordings = {s.digest: spec.paths[s.stem] for s in spec.sources}
    library = RecordingServer(recordings)
    caches = library.lending(caches, recordings)
    if len(spec.front_ends) > FILLED_FIRST:
        return caches
    nodes = [n for n in cluster.nodes if trial_capacity(spec.slots, [n.machine])]
    for done in fill_caches(nodes, caches, spec.front_ends):
        what = f"{done.computed} front ends computed" if done.computed else "was full"
        log.info(f"cache of {done.node}: {what}, {done.seconds:.1f} s")
    if lent := library.lent():
        log.info(f"recordings: {lent / 1e6:,.1f} MB lent to nodes that do not see them")
    return caches

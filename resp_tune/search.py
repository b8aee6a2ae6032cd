"""Search for the best trial config.

    python -m resp_tune.search                                    a small synthetic set, 20 trials
    python -m resp_tune.search --data ICBHI --gpus 4 --name first  real recordings on four GPUs
    python -m resp_tune.search --data ICBHI --gpus 4 --name first --trials 60    goes on to 60

The same --name continues a search that was cut off and extends one that is done.
"""

from __future__ import annotations

import sys
from argparse import _ArgumentGroup as Group  # argparse has no public name for it
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from resp_tune.cli import (
    Parser,
    count_or_auto,
    duration,
    natural_int,
    positive_float,
    positive_int,
    run,
)
from resp_tune.common import choices
from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import full_disk_in_one_line, user_path
from resp_tune.errors import UserError, nearest
from resp_tune.harness import options as known
from resp_tune.harness.options import SearchOptions

if TYPE_CHECKING:
    from resp_tune.cluster.connect import Cluster
    from resp_tune.harness.spec import Compute
    from resp_tune.harness.stages import Backend

DEFAULTS = SearchOptions()


def parser() -> Parser:
    """All flags; their defaults are those of `SearchOptions`."""
    p = Parser("search", __doc__ or "")
    _data_flags(p.add_argument_group("what is learnt, and how it is judged"))
    _trial_flags(p.add_argument_group("what is tried"))
    _place_flags(p.add_argument_group("where it runs"))
    _result_flags(p.add_argument_group("where results go"))
    return p


def _data_flags(data: Group) -> None:
    data.add_argument(
        "--data",
        metavar="PATH",
        help="folder with the recordings; default: $RESP_TUNE_DATA, else a small synthetic set",
    )
    data.add_argument(
        "--task",
        metavar="NAME or FILE",
        default=DEFAULTS.task,
        help=f"{_one_of(choices.TASKS)}, or a YAML file that groups diagnoses into other classes",
    )
    data.add_argument("--protocol", default=DEFAULTS.protocol, help=_one_of(choices.PROTOCOLS))
    data.add_argument("--metric", default=DEFAULTS.metric, help=_one_of(choices.METRICS))
    data.add_argument(
        "--folds",
        type=positive_int,
        metavar="K",
        default=DEFAULTS.folds,
        help="inner folds that a trial is scored on, 1 to 4",
    )
    data.add_argument(
        "--split-seed",
        type=natural_int,
        metavar="N",
        default=DEFAULTS.split_seed,
        help="of the sides; --seed does not move them",
    )
    data.add_argument(
        "--hold-out-device", metavar="NAME", help="the test side of --protocol device"
    )
    data.add_argument(
        "--drop-shared-patients",
        action="store_true",
        help="of --protocol official: leave out patients who stand on both of its sides",
    )


def _trial_flags(what: Group) -> None:
    what.add_argument("--space", metavar="FILE", default=DEFAULTS.space, help="search space, YAML")
    what.add_argument(
        "--trials",
        type=positive_int,
        metavar="N",
        help="in all, earlier runs of this name included (default: 20; none with --time-budget)",
    )
    what.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        default=DEFAULTS.epochs,
        help="of every trial; the length of its OneCycle schedule",
    )
    what.add_argument(
        "--time-budget",
        type=duration,
        metavar="30m",
        help="no trial starts after it, and running ones are pruned; replicates follow after it",
    )
    what.add_argument(
        "--trial-timeout",
        type=duration,
        metavar="10m",
        help="a trial that takes longer, or hangs, fails; the search goes on",
    )
    what.add_argument("--scheduler", default=DEFAULTS.scheduler, help=_one_of(choices.SCHEDULERS))
    what.add_argument("--sampler", default=DEFAULTS.sampler, help=_one_of(choices.SAMPLERS))
    what.add_argument(
        "--replicates",
        type=positive_int,
        metavar="R",
        default=DEFAULTS.replicates,
        help="the best four are run again on R new seeds, and the best mean minus standard error "
        "wins; 1: no replicates",
    )
    what.add_argument(
        "--seed",
        type=natural_int,
        metavar="N",
        default=DEFAULTS.seed,
        help="of the sampler and of every trial",
    )


def _place_flags(where: Group) -> None:
    where.add_argument(
        "--gpus",
        type=natural_int,
        metavar="N",
        help="GPUs that trials may hold at once, 0: CPU (default: all there are)",
    )
    where.add_argument(
        "--trials-per-gpu",
        type=count_or_auto,
        metavar="K",
        default=DEFAULTS.trials_per_gpu,
        help="trials that share a GPU; auto: measured before the search, as many as pay, on a "
        "cluster for each type of GPU",
    )
    where.add_argument(
        "--concurrency",
        type=positive_int,
        metavar="N",
        help="trials at once (default: from the machine)",
    )
    where.add_argument(
        "--cpus-per-trial",
        type=positive_float,
        metavar="X",
        help="may be a fraction (default: from the machine)",
    )
    where.add_argument(
        "--address",
        metavar="local, auto or HOST:PORT",
        help="of a Ray cluster that runs; auto: the one that this machine belongs to "
        "(default: local, a Ray of its own; inside a Ray job auto)",
    )
    where.add_argument(
        "--wait-for-gpus",
        type=duration,
        metavar="10m",
        help="for a cluster that has fewer than --gpus yet",
    )


def _result_flags(keep: Group) -> None:
    keep.add_argument("--name", help="of the search (default: a timestamp)")
    keep.add_argument(
        "--storage",
        metavar="PATH or URI",
        default=DEFAULTS.storage,
        help="folder that the folder NAME goes into, or s3://BUCKET/PREFIX, gs://…, abfs://…: "
        "docs/storage.md",
    )
    keep.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow's (default: $MLFLOW_TRACKING_URI, else sqlite:///STORAGE/mlflow.db)",
    )
    keep.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan, start and write nothing",
    )
    keep.add_argument(
        "--config", metavar="FILE", help="YAML file of these settings; flags override it"
    )


def _one_of(names: Sequence[str]) -> str:
    return ", ".join(names)


def read_options(argv: Sequence[str] | None) -> SearchOptions:
    """Settings from flags, over those of `--config`; raises `UserError` for what is wrong."""
    p = parser()
    given = list(sys.argv[1:] if argv is None else argv)
    args = vars(p.parse(given))
    if args["config"] is not None:
        args = vars(p.parse([*_flags_of(args["config"], set(args)), *given]))
    if args["address"] is None:
        args["address"] = "auto" if known.in_a_job() else "local"
    fields = SearchOptions.__dataclass_fields__
    return SearchOptions(**{name: value for name, value in args.items() if name in fields})


def _flags_of(path: str, names: set[str]) -> list[str]:
    """The settings of a YAML file as flags, so that both are read and checked by the same code."""
    from resp_tune.common.yaml_files import read_yaml

    content = read_yaml(f"--config '{path}'", user_path(path))
    if not isinstance(content, dict):
        raise UserError(f"--config '{path}' is not a mapping of setting to value")
    known_names = {name.replace("_", "-") for name in names} - {"config"}
    flags = []
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if name not in known_names:
            hint = nearest(name, known_names)
            raise UserError(f"--config '{path}': unknown setting '{key}': {hint}")
        if isinstance(value, dict | list):
            raise UserError(f"--config '{path}': {key} is not a single value")
        if value is True:
            flags.append(f"--{name}")
        elif value is not False and value is not None:
            flags.append(f"--{name}={value}")
    return flags


def main(
    argv: Sequence[str] | None = None, backend: Callable[[Compute], Backend] | None = None
) -> None:
    """Run a search; the last line on stdout is the path of its `summary.json`.

    `backend` makes what runs the trials; the default is Ray Tune.
    """
    options = read_options(argv)
    from rich.console import Console

    from resp_tune.harness.console import show_plan, show_result
    from resp_tune.harness.validate import validate

    with ExitStack() as joining:
        join = None
        if options.address != "local":
            from resp_tune.cluster.connect import connect

            def join(address: str) -> Cluster:
                return joining.enter_context(connect(address))

        fault_point("search-starts")
        spec = validate(options, sys.argv[1:] if argv is None else argv, join)
        # The plan is what a dry run is for; else it is a message, as stdout is for results.
        console = Console(stderr=not options.dry_run)
        show_plan(spec, console)
        if join is not None:
            from resp_tune.harness.preflight import check_nodes

            spec = check_nodes(spec, console)
        if options.dry_run:
            return
        from resp_tune.harness.run import run_search
        from resp_tune.harness.signals import handle_interrupts

        go_on = f"everything is kept; to go on: the same command with --name {spec.location.name}"
        # Most writers name their file; what is left does not say where there was no room.
        room = full_disk_in_one_line(
            spec.location.folder, ", there, in $TMPDIR and in the cache folder, whichever is full"
        )
        with handle_interrupts(go_on), room:
            summary = run_search(spec, console, backend)
    show_result(summary)


if __name__ == "__main__":
    sys.exit(run(main))

"""Search for the best trial config.

    python -m resp_tune.search                                    a small synthetic set, 20 trials
    python -m resp_tune.search --data ICBHI --gpus 4 --name first  real recordings on four GPUs
    python -m resp_tune.search --data ICBHI --gpus 4 --name first --trials 60    extend it to 60

The same --name resumes a search that was interrupted and extends one that is complete.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from resp_tune.cli import Parser, add_fields, read_mapping, run
from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import full_disk_in_one_line
from resp_tune.common.timeline import span
from resp_tune.errors import UserError, nearest
from resp_tune.harness.options import GROUPS, SearchOptions

if TYPE_CHECKING:
    from resp_tune.harness.spec import Compute
    from resp_tune.harness.stages import RayBackend

log = logging.getLogger("resp_tune.search")

FIELDS = [f.name for f in dataclasses.fields(SearchOptions) if "help" in f.metadata]
SEVERAL = {f.name for f in dataclasses.fields(SearchOptions) if f.default == ()}


def parser() -> Parser:
    """Return the parser of all flags."""
    p = Parser("search", __doc__ or "")
    add_fields(p, SearchOptions, groups=GROUPS)
    p.add_argument("--config", metavar="FILE", help="YAML file of these options; flags override it")
    return p


def read_options(argv: Sequence[str] | None) -> SearchOptions:
    """Return the options of the flags, over those of `--config`; raise `UserError` if wrong."""
    p = parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    args = vars(p.parse(argv))
    if args["config"] is not None:
        lists = {name for name, value in args.items() if isinstance(value, list)}
        args = vars(p.parse([*_read_config(args["config"], lists), *argv]))
    values = args | {name: tuple(args[name] or ()) for name in SEVERAL}
    return SearchOptions(**{name: values[name] for name in FIELDS})


def _read_config(path: str, overridden: Collection[str]) -> list[str]:
    """Return the options of a YAML file as flags, so that the same code reads and checks both.

    `overridden` are options of several values that the command line has as well.
    """
    known = {name.replace("_", "-") for name in FIELDS}
    flags = []
    for key, value in read_mapping("--config", path).items():
        name = key.replace("_", "-")
        if name not in known:
            raise UserError(f"--config '{path}': unknown option '{key}': {nearest(name, known)}")
        field = name.replace("-", "_")
        if isinstance(value, dict) or (isinstance(value, list) and field not in SEVERAL):
            raise UserError(f"--config '{path}': {key} is not a single value")
        if field in overridden:
            continue
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                flags.append(f"--{name}")
            elif one is not False and one is not None:
                flags.append(f"--{name}={one}")
    return flags


def main(
    argv: Sequence[str] | None = None, backend: Callable[[Compute], RayBackend] | None = None
) -> None:
    """Run a search; the last line on stdout is the path of its `summary.json`.

    `backend` makes what runs the trials; the default is Ray Tune.
    """
    options = read_options(argv)
    with span("imports of the plan"):
        from rich.console import Console

        from resp_tune.harness.console import describe_plan, show_plan, show_result
        from resp_tune.harness.validate import validate

    with ExitStack() as connection:
        fault_point("search-starts")
        with span("checks"):
            spec = validate(options, sys.argv[1:] if argv is None else argv, connection)
        # The plan is the result of a dry run, and else a message: stdout is for results.
        is_quiet = not (options.dry_run or log.isEnabledFor(logging.INFO))
        console = Console(stderr=not options.dry_run, quiet=is_quiet)
        with span("plan"):
            show_plan(describe_plan(spec), console)
        if spec.compute.cluster is not None:
            from resp_tune.harness.preflight import check_nodes

            spec = check_nodes(spec, console)
        if options.dry_run:
            return
        from resp_tune.cluster.local_ray import give_ray_a_home
        from resp_tune.harness.failures import IncompleteError

        give_ray_a_home()
        with span("imports of the search"):
            from resp_tune.harness.run import run_search
            from resp_tune.harness.signals import handle_interrupts
            from resp_tune.harness.stages import RayBackend
            from resp_tune.nested.nested_search import NestedSearch

        location = spec.location
        resume = f"everything is kept; rerun the same command with --name {location.name} to resume"
        # Most writers name the file; other errors do not say which disk is full.
        disks = ", there, in $TMPDIR and in the cache folder, whichever is full"
        with handle_interrupts(resume), full_disk_in_one_line(location.folder, disks):
            try:
                if spec.outer:
                    summary = NestedSearch(spec, console, backend or RayBackend).run()
                else:
                    summary = run_search(spec, console, backend)
            except IncompleteError as error:
                show_result(error.summary)
                raise
    show_result(summary)


if __name__ == "__main__":
    sys.exit(run(main))

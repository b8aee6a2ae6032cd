"""Make a synthetic data set in the layout and the formats of the ICBHI 2017 database.

python -m resp_tune.synth /tmp/breaths
python -m resp_tune.synth /tmp/shortcut --confound icbhi     # the device gives the diagnosis away
python -m resp_tune.synth /tmp/tiny --recordings 30 --seconds 2
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from resp_tune.cli import Parser, natural_int, positive_float, positive_int, run
from resp_tune.common.paths import user_path
from resp_tune.data.synthetic.settings import SynthSettings

log = logging.getLogger("resp_tune.synth")


def parser() -> Parser:
    """The flags of this command."""
    usual = SynthSettings()
    parser = Parser("synth", __doc__ or "")
    parser.add_argument("folder", metavar="DIR", help="where to make it; absent or empty")
    parser.add_argument(
        "--recordings",
        type=positive_int,
        default=usual.recordings,
        metavar="N",
        help=f"files to make, at least {usual.least_recordings}: 5 patients in each of 6 classes;"
        " from 108 on a patient has 3",
    )
    parser.add_argument(
        "--seconds",
        type=positive_float,
        default=usual.seconds,
        metavar="S",
        help="length of each, 1 to 120",
    )
    parser.add_argument(
        "--seed", type=natural_int, default=usual.seed, metavar="N", help="of everything drawn"
    )
    parser.add_argument(
        "--confound",
        choices=("none", "icbhi"),
        default=usual.confound,
        help="none: the device says nothing about the diagnosis; icbhi: devices and ages go with"
        " the diagnosis as in the real data, and the audit must find it",
    )
    parser.add_argument(
        "--prevalence",
        choices=("balanced", "icbhi"),
        default=usual.prevalence,
        help="balanced: six diagnoses, equally many each; icbhi: all eight with the real imbalance",
    )
    return parser


def main(argv: Sequence[str] | None) -> None:
    """Make the set and print its folder."""
    args = parser().parse(argv)
    settings = SynthSettings(
        args.recordings, args.seconds, args.seed, args.confound, args.prevalence
    )
    from resp_tune.data.synthetic.write import make_synthetic

    started = time.perf_counter()
    folder = user_path(args.folder)
    make_synthetic(folder, settings, _progress if sys.stderr.isatty() else None)
    log.info(
        f"{settings.recordings} synthetic recordings of {settings.seconds:g} s"
        f" in {time.perf_counter() - started:.1f} s; no patient was recorded"
    )
    print(folder)


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done}/{total} recordings", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(main))

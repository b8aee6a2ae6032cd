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
from dataclasses import fields

from resp_tune.cli import Parser, add_fields, run
from resp_tune.common.paths import user_path
from resp_tune.data.synthetic.settings import SynthSettings

log = logging.getLogger("resp_tune.synth")


def parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser("synth", __doc__ or "")
    parser.add_argument("folder", metavar="DIR", help="folder to make; absent or empty")
    add_fields(parser, SynthSettings)
    return parser


def main(argv: Sequence[str] | None) -> None:
    """Make the data set and print its folder."""
    args = parser().parse(argv)
    settings = SynthSettings(**{f.name: getattr(args, f.name) for f in fields(SynthSettings)})
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

"""Make a search's report page again from the files in its folder.

python -m resp_tune.report first
python -m resp_tune.report first --storage /data/searches
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from resp_tune.cli import Parser, existing_folder, run
from resp_tune.errors import UserError, nearest


def parser() -> Parser:
    """The flags of this command."""
    parser = Parser("report", __doc__ or "")
    parser.add_argument("name", metavar="NAME", help="a search")
    parser.add_argument(
        "--storage", default="results", metavar="PATH", help="the folder that searches are in"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write `report.html` and print its path."""
    args = parser().parse(argv)
    if "://" in args.storage:
        raise UserError(f"--storage '{args.storage}': only folders are built so far, not URIs")
    folder = search_folder(existing_folder(args.storage), args.name)
    from resp_tune.reporting.page import render

    print(render(folder))


def search_folder(storage: Path, name: str) -> Path:
    """The folder of the search `name`; an unknown one raises `UserError` with the nearest."""
    known = [
        folder.name
        for folder in storage.iterdir()
        if (folder / "study.db").is_file() or (folder / "summary.json").is_file()
    ]
    if name not in known:
        hint = nearest(name, known) if known else "there is none yet"
        raise UserError(f"no search {name[:80]!r} in '{storage}': {hint}")
    return storage / name


if __name__ == "__main__":
    sys.exit(run(main))

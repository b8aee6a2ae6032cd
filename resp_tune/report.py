"""Write a search's report page again from the files in its folder.

python -m resp_tune.report first
python -m resp_tune.report first --storage /data/searches
python -m resp_tune.report first --storage s3://bucket/searches
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from resp_tune.cli import Parser, existing_folder, run
from resp_tune.errors import RunError, UserError, nearest
from resp_tune.storage.object_store import ObjectPath, StorageError, check_store, is_uri

log = logging.getLogger("resp_tune.report")


def parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser("report", __doc__ or "")
    parser.add_argument("name", metavar="NAME", help="name of a search")
    parser.add_argument(
        "--storage",
        default="results",
        metavar="PATH or URI",
        help="where searches are: a folder, or s3://BUCKET/PREFIX, gs://…, abfs://…",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write `report.html` and print its path."""
    args = parser().parse(argv)
    if is_uri(args.storage):
        print(_in_store(ObjectPath.parse("--storage", args.storage), args.name))
        return
    folder = search_folder(existing_folder(args.storage), args.name)
    print(_render(folder))


def _render(folder: Path) -> Path:
    """Write the page of a search's folder there, or here if the folder is read-only."""
    from resp_tune.common.paths import can_write
    from resp_tune.reporting.report_html import render

    if can_write(folder):
        return render(folder)
    page = Path(f"{folder.name}-report.html").absolute()
    log.info(f"'{folder}' is read-only: the page is written to the current folder")
    return render(folder, page)


def _in_store(storage: ObjectPath, name: str) -> ObjectPath:
    """Write the page from the files in an object store, beside them."""
    from resp_tune.harness.options import check_search_name
    from resp_tune.reporting.report_html import render

    check_search_name(name)
    check_store("--storage", storage, write=False)
    source = storage / name
    files = ("trials.csv", "epochs.csv", "winner/config.json", "winner/predictions.csv")
    with tempfile.TemporaryDirectory(prefix="resp_tune_") as scratch:
        folder = Path(scratch) / name
        try:
            if not source.fetch("summary.json", folder / "summary.json"):
                raise UserError(
                    f"'{source}' has no summary.json: no search of that name has finished"
                )
            for file in files:
                source.fetch(file, folder / file)
            page = render(folder)
            source.write(page.read_bytes(), page.name)
        except StorageError as error:
            raise RunError(f"'{source}' cannot be used ({error})") from error
    return source / page.name


def search_folder(storage: Path, name: str) -> Path:
    """Return the folder of the search `name`; raises `UserError` with the nearest name."""
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

"""Open MLflow's pages of the searches on this machine.

bash scripts/ui            # all searches, newest first
bash scripts/ui first      # the search `first`; runs until Ctrl-C
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from resp_tune.cli import Parser, integer, run
from resp_tune.cluster.processes import kill, process_tree
from resp_tune.common.choices import LINK_TEXTS, MLFLOW_PORT
from resp_tune.common.paths import user_path
from resp_tune.common.signal_handlers import interrupts_noted
from resp_tune.errors import RunError, UserError, nearest
from resp_tune.storage.object_store import ObjectPath, is_uri

if TYPE_CHECKING:
    from resp_tune.tracking.ui_links import SearchEntry

log = logging.getLogger("resp_tune.ui")

START_SECONDS = 180.0
END_SECONDS = 10.0  # that each process of the server has to end
_PORTS_TRIED = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Print the links, and serve them until Ctrl-C if the store is a database."""
    args = parser().parse(argv)
    from resp_tune.tracking.moved_store import readable
    from resp_tune.tracking.store_probe import check_there, probe
    from resp_tune.tracking.uri import is_server, resolve_uri, sqlite_file

    if is_uri(args.storage) and not (args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        storage = ObjectPath.parse("--storage", args.storage)
        raise UserError(f"--storage '{storage}' holds no MLflow store: give the --tracking-uri")
    uri = resolve_uri(args.tracking_uri, user_path(args.storage))
    check_there(uri)
    file = sqlite_file(uri)
    with readable(uri) as opened:
        probe(opened, write=False)
        searches = _chosen(opened, args.name)
        if is_server(uri):
            _print(searches, uri)
            return
        if opened != uri:
            log.info(f"'{file}' is read-only: these pages show a copy of what it holds now")
        _serve(opened, None if file is None else file.parent, searches, args)


def _serve(uri: str, folder: Path | None, searches: Sequence[SearchEntry], args: Namespace) -> None:
    """Serve MLflow's pages of a database until Ctrl-C; `folder` is where an sqlite store is."""
    from resp_tune.tracking.moved_store import relocate
    from resp_tune.tracking.uri import redact

    if (old := relocate(uri, folder)) is not None:
        log.info(
            f"the store was moved: its artifacts were at '{old}' and are shown from '{folder}'"
        )
    port = _choose_port(args.host, args.port)
    log.info(f"starting MLflow's pages of {redact(uri)} …")
    with _server(uri, folder, args.host, port) as process, suppress(KeyboardInterrupt):
        # Whoever has read the last link may press Ctrl-C.
        _print(searches, f"http://{_address(args.host)}:{port}")
        log.info("Ctrl-C ends it")
        process.wait()
        raise RunError(f"MLflow's server ended by itself (status {process.returncode})")
    log.info("ended")


def parser() -> Parser:
    """Return the parser of all flags."""
    parser = Parser("ui", "Open MLflow's pages of the searches, best trials first.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a search; left out: all of them")
    parser.add_argument("--storage", default="results", metavar="PATH", help="where searches are")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="$MLFLOW_TRACKING_URI, else sqlite:///<storage>/mlflow.db; "
        "for a server's http:// address only the links are printed",
    )
    port = partial(integer, least=1, most=65_535)
    parser.add_argument(
        "--port", type=port, metavar="N", help=f"{MLFLOW_PORT}, or the next free one"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any but the default shows the store to the network",
    )
    return parser


def _chosen(uri: str, name: str | None) -> list[SearchEntry]:
    from resp_tune.tracking.ui_links import list_searches
    from resp_tune.tracking.uri import redact

    entries = list_searches(uri)
    if not entries:
        raise UserError(
            f"there is no search in '{redact(uri)}' yet: run one first (bash scripts/search)"
        )
    if name is None:
        return entries
    chosen = [entry for entry in entries if entry.search.name == name]
    if not chosen:
        known = {entry.search.name for entry in entries}
        raise UserError(f"no search '{name}' in '{redact(uri)}': {nearest(name, known)}")
    # A nested search first, then its outer folds in their order.
    return sorted(chosen, key=lambda e: (e.search.outer_fold is not None, e.search.outer_fold or 0))


def _print(entries: Sequence[SearchEntry], base: str) -> None:
    for entry in entries:
        score = "" if entry.score is None else f", best {entry.search.metric} {entry.score:.4f}"
        fold = entry.search.outer_fold
        which = "" if fold is None else f", outer fold {fold}"
        print(f"{entry.search.name}{which}: {entry.state}{score}")
        for key, link in entry.links(base).items():
            print(f"  {LINK_TEXTS[key]}:\n    {link}")
    sys.stdout.flush()


def _choose_port(host: str, flag: int | None) -> int:
    if flag is not None:
        if not _is_free(host, flag):
            raise UserError(f"port {flag} of {host} is in use: give another --port, or none")
        return flag
    for port in range(MLFLOW_PORT, MLFLOW_PORT + _PORTS_TRIED):
        if _is_free(host, port):
            return port
    raise UserError(f"no free port from {MLFLOW_PORT} on: give one with --port")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # As the server itself binds: a port that lingers after its last owner is free.
        with socket.create_server((host, port), family=family):
            return True
    except socket.gaierror:
        raise UserError(f"--host '{host}' is not an address of this machine") from None
    except PermissionError:
        raise UserError(f"port {port} is reserved: give a --port above 1023") from None
    except OSError:
        return False


def _address(host: str) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # for links, not to listen on
    return everywhere.get(host, f"[{host}]" if ":" in host else host)


@contextmanager
def _server(
    uri: str, folder: Path | None, host: str, port: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server of the database `uri`, and end it with its children.

    `folder`: where the artifacts are, if it is an sqlite store.
    """
    from resp_tune.tracking.mlflow_internals import SERVER_JOBS, SERVER_STORE, quiet
    from resp_tune.tracking.uri import scrub

    quiet()
    with tempfile.TemporaryDirectory(prefix="resp_tune-ui-") as scratch:
        artifacts = (folder or Path(scratch)) / "mlartifacts"
        command = [sys.executable, "-m", "mlflow", "server"]
        command += ["--artifacts-destination", artifacts.as_uri()]
        command += ["--host", host, "--port", str(port), "--workers", "1"]
        output = Path(scratch) / "output"
        with output.open("wb") as file_handle, interrupts_noted() as noted:
            process = subprocess.Popen(  # noqa: S603  # our own arguments, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=file_handle,
                stderr=subprocess.STDOUT,
                # The store is not an argument, which every user of the machine can see.
                env={**os.environ, SERVER_JOBS: "false", SERVER_STORE: uri},
                cwd=scratch,
                start_new_session=True,  # so that Ctrl-C reaches only us
            )
        try:
            if noted:
                raise KeyboardInterrupt
            _await_answer(process, f"{_address(host)}:{port}")
            yield process
        except RunError as error:
            lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise RunError(f"{error}: {scrub(lines[-1].strip(), uri)}") from None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and all it has started, whatever signals arrive meanwhile.

    Those at the bottom are asked first and waited for: MLflow's command ends at once and leaves
    the server that it has started, which would be killed in the middle of its end. When this
    returns, none of them lives, so that what they use may be removed.
    """
    with interrupts_noted():
        tree = [] if process.poll() is not None else process_tree(psutil.Process(process.pid))
        for one in reversed(tree):  # a process stands before its children
            with suppress(psutil.NoSuchProcess):
                one.terminate()
            _wait_for([one], END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        kill(tree)
        _wait_for(tree, END_SECONDS)
        process.wait()


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until all have ended; those that nobody has waited for have ended too."""
    deadline = time.monotonic() + seconds
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _await_answer(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (status := process.poll()) is not None:
            raise RunError(f"MLflow's server did not start ({status})")
        with suppress(OSError, HTTPException):
            connection = HTTPConnection(address, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise RunError(f"MLflow's server did not answer within {START_SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(run(main))

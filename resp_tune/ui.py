"""MLflow's pages of the searches on this machine.

bash scripts/ui            # every search, newest first
bash scripts/ui first      # the search `first`; stays until Ctrl-C
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn

from resp_tune.cli import Parser, natural_int, run
from resp_tune.common.choices import LINK_TEXTS, MLFLOW_PORT
from resp_tune.common.paths import user_path
from resp_tune.errors import RunError, UserError, nearest
from resp_tune.storage.object_store import ObjectPath, is_uri

if TYPE_CHECKING:
    from resp_tune.tracking.list_searches import SearchEntry

log = logging.getLogger("resp_tune.ui")

START_SECONDS = 180.0
_PORTS_TRIED = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Print the links; serve them where the store is a database, until Ctrl-C."""
    args = parser().parse(argv)
    from resp_tune.tracking.store_probe import check_there, probe, resolve_uri
    from resp_tune.tracking.uri import is_server, redact

    if is_uri(args.storage) and not (args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        place = ObjectPath.parse("--storage", args.storage)
        raise UserError(f"--storage '{place}' holds no MLflow store: give the --tracking-uri")
    uri = resolve_uri(args.tracking_uri, user_path(args.storage))
    check_there(uri)
    probe(uri)
    if is_server(uri):
        _print(_chosen(uri, args.name), uri)
        return
    port = _port(args.host, args.port)
    searches = _chosen(uri, args.name)
    log.info(f"starting MLflow's pages of {redact(uri)} …")
    with _interruptible(), _server(uri, args.host, port) as server:
        _await_answer(server, args.host, port)
        _print(searches, f"http://{_shown(args.host)}:{port}")
        log.info("Ctrl-C ends it")
        try:
            status = server.process.wait()
        except KeyboardInterrupt:
            log.info("ended")
            return
        raise RunError(f"MLflow's server ended by itself (status {status}): {server.last_line()}")


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
    parser.add_argument(
        "--port", type=_port_number, metavar="N", help=f"{MLFLOW_PORT}, or the next free one"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any but the default shows the store to the network",
    )
    return parser


def _port_number(text: str) -> int:
    port = natural_int(text)
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port from 1 to 65535")
    return port


def _chosen(uri: str, name: str | None) -> list[SearchEntry]:
    from resp_tune.tracking.list_searches import list_searches
    from resp_tune.tracking.uri import redact

    searches = list_searches(uri)
    if not searches:
        raise UserError(
            f"there is no search in '{redact(uri)}' yet: run one first (bash scripts/search)"
        )
    if name is None:
        return searches
    chosen = [search for search in searches if search.name == name]
    if not chosen:
        known = {search.name for search in searches}
        raise UserError(f"no search '{name}' in '{redact(uri)}': {nearest(name, known)}")
    return chosen


def _print(searches: Sequence[SearchEntry], base: str) -> None:
    for search in searches:
        score = "" if search.score is None else f", best {search.metric} {search.score:.4f}"
        print(f"{search.name}: {search.state}{score}")
        for key, link in search.links(base).items():
            print(f"  {LINK_TEXTS[key]}:\n    {link}")
    sys.stdout.flush()


def _port(host: str, given: int | None) -> int:
    if given is not None:
        if not _is_free(host, given):
            raise UserError(f"port {given} of {host} is taken: give another --port, or none")
        return given
    for port in range(MLFLOW_PORT, MLFLOW_PORT + _PORTS_TRIED):
        if _is_free(host, port):
            return port
    raise UserError(f"no free port from {MLFLOW_PORT} on: give one with --port")


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself binds: a port that lingers after its last owner is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise UserError(f"--host '{host}' is not an address of this machine") from None
    except PermissionError:
        raise UserError(f"port {port} is reserved: give a --port above 1023") from None
    except OSError:
        return False
    return True


def _shown(host: str) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # for links, not to listen on
    return everywhere.get(host, f"[{host}]" if ":" in host else host)


class _Server:
    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], uri: str) -> None:
        self.process, self._log, self._uri = process, log, uri

    def last_line(self) -> str:
        from resp_tune.tracking.uri import scrub

        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return scrub(lines[-1].strip(), self._uri) if lines else "it said nothing"


@contextmanager
def _server(uri: str, host: str, port: int) -> Iterator[_Server]:
    from resp_tune.tracking.client import quiet
    from resp_tune.tracking.uri import sqlite_file

    quiet()
    file = sqlite_file(uri)
    with tempfile.TemporaryDirectory(prefix="resp_tune-ui-") as scratch:
        folder = Path(scratch) if file is None else file.parent
        command = [sys.executable, "-m", "mlflow", "server"]
        command += ["--artifacts-destination", (folder / "mlartifacts").as_uri()]
        command += ["--host", host, "--port", str(port), "--workers", "1"]
        # Without it seven more processes start, for jobs that a search has none of.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # Not as an argument: those are shown to everybody on the machine.
        environment["MLFLOW_BACKEND_STORE_URI"] = uri
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(  # noqa: S603  # our own arguments, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=scratch,
                start_new_session=True,  # its own children end with it, and not by our Ctrl-C
            )
            try:
                yield _Server(process, log, uri)
            finally:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue


def _await_answer(server: _Server, host: str, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (status := server.process.poll()) is not None:
            raise RunError(f"MLflow's server did not start ({status}): {server.last_line()}")
        if _answers(f"http://{_shown(host)}:{port}/health"):
            return
        time.sleep(0.2)
    raise RunError(f"MLflow's server did not answer in {START_SECONDS:g} s: {server.last_line()}")


def _answers(address: str) -> bool:
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a closed terminal and `kill` end it like Ctrl-C does, the server with it."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run(main))

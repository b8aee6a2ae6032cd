"""The address of a tracking store, the probe before anything is started, links to its pages."""

from __future__ import annotations

import http.server
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from support.ports import free_port

from resp_tune.errors import UserError
from resp_tune.tracking.registry import fetch_bundle
from resp_tune.tracking.store_probe import check_there, probe
from resp_tune.tracking.tags import SearchRef
from resp_tune.tracking.ui_links import search_links
from resp_tune.tracking.uri import redact, resolve_uri


def test_resolve_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None, Path("results")) == f"sqlite:///{tmp_path}/results/mlflow.db"
    assert resolve_uri("sqlite:///x.db", Path("results")) == f"sqlite:///{tmp_path}/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert resolve_uri(None, Path("results")) == "http://host:5000"
    assert resolve_uri("https://other", Path("results")) == "https://other"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:s3cret@db/x", "postgresql://me:***@db/x"),
        ("https://t0ken@host/a", "https://***@host/a"),
        ("https://host/a?token=s3cret&b=1", "https://host/a?token=***&b=***"),
        ("https://me:s3@cret@host", "https://me:***@host"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_redact(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@contextmanager
def web_server(
    status: int, body: bytes, kind: str = "text/html", others: int | None = None
) -> Iterator[str]:
    """Answer every request so, but those that are no search with the status `others`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the base class's name
            search = others is None or self.path.endswith("/search")
            self.send_response(status if search else others or 0)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "--allowed-hosts"),
        (401, "MLFLOW_TRACKING_TOKEN"),
        (200, "not an MLflow"),
        (500, "500"),
    ],
)
def test_probe_refuses_what_answers_wrongly(status: int, words: str, tmp_path: Path) -> None:
    with web_server(status, b"<html>") as address:
        with pytest.raises(UserError, match=words):
            probe(address)
        with pytest.raises(UserError, match=words):  # so do other commands
            fetch_bundle("models:/resp_tune@champion", address, tmp_path)


EXPERIMENT = {"experiment_id": "7", "name": "resp_tune", "lifecycle_stage": "active"}


@pytest.mark.parametrize("found", [[], [EXPERIMENT]], ids=["new", "known"])
def test_a_server_that_may_only_be_read_is_refused(found: list[dict[str, str]]) -> None:
    body = json.dumps({"experiments": found}).encode()
    with web_server(200, body, "application/json", others=403) as address:
        probe(address, write=False)
        with pytest.raises(UserError, match="lets this user read and not write") as caught:
            probe(address)
    assert "ask for the right to edit the experiment 'resp_tune'" in str(caught.value)


def test_a_server_that_refuses_incomplete_writes_may_be_written() -> None:
    body = json.dumps({"experiments": [EXPERIMENT]}).encode()
    with web_server(200, body, "application/json", others=400) as address:
        probe(address)


def test_a_deleted_experiment_is_refused_before_the_start() -> None:
    body = json.dumps({"experiments": [{**EXPERIMENT, "lifecycle_stage": "deleted"}]}).encode()
    with (
        web_server(200, body, "application/json", others=400) as address,
        pytest.raises(UserError, match="mlflow experiments restore -x 7"),
    ):
        probe(address)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("localhost:5000", "give http://localhost:5000, or https://localhost:5000"),
        ("10.0.0.7:5000/mlflow", "give http://10.0.0.7:5000/mlflow"),
        ("mlflow.example.org", "give http://mlflow.example.org"),
        ("[::1]:5000", "give http://[::1]:5000"),
        ("http:/localhost:5000", "give http://localhost:5000"),
        ("me:s3cret@host:5000", "give http://me:***@host:5000"),
        ("mlflow.db", "/mlflow.db or the http:// address"),
        ("results/mlflow.sqlite", "results/mlflow.db or the http:// address"),
        ("file:/data/mlruns", "give sqlite:////data/mlruns.db"),
    ],
)
def test_an_address_without_a_scheme_is_no_path(given: str, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        probe(given)
    assert advice in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("http_proxy", "http://host.invalid:5000"),
        ("HTTPS_PROXY", "https://host.invalid"),
        ("ALL_PROXY", "http://host.invalid:5000"),
    ],
)
def test_a_dead_proxy_is_named(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://me:s3cret@127.0.0.1:{free_port()}")
    with pytest.raises(UserError) as caught:
        probe(address)
    message = str(caught.value)
    assert "the request goes through the proxy '127.0.0.1:" in message
    assert f"of ${variable}: unset it, or set NO_PROXY=host.invalid" in message
    assert "s3cret" not in message


def test_a_proxy_that_is_not_used_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError) as caught:
        probe(f"http://127.0.0.1:{free_port()}")
    assert "proxy" not in str(caught.value)


@pytest.mark.parametrize("given", ["localhost:5000", "sqlite:///there/is/nothing.db"])
def test_the_variable_that_the_address_comes_from_is_named(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message() -> str:
        check, uri = (check_there if "sqlite" in given else probe), resolve_uri(given, Path())
        with pytest.raises(UserError) as caught:
            check(uri)
        return str(caught.value)

    assert not message().startswith("$MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert message().startswith("$MLFLOW_TRACKING_URI: ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("http://127.0.0.1:{port}", "Connection refused"),
        ("http://me:s3cret@no-such-host.invalid:5000", "no-such-host"),
        ("postgresql://me:s3cret@127.0.0.1:{port}/x", "cannot be reached"),
        ("file:///tmp/mlruns", "sqlite:////tmp/mlruns.db"),
        ("./mlruns", "no longer writes folders"),
        ("databricks://x", "not supported"),
        ("sqlite:///{tmp}/blocked/mlflow.db", "cannot be written"),
        ("sqlite:////proc/x.db", "folder '/proc' cannot be written to"),
        ("sqlite:///{tmp}", "is a folder"),
        ("sqlite:///{tmp}/a%20b.db", "does not fit"),
        ("sqlite:///{tmp}/study.db", "something else"),
        ("sqlite:///{tmp}/blocked", "cannot be read"),
    ],
)
def test_probe_refuses(given: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file that is not a database, where a folder should be")
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("CREATE TABLE studies (x)")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=words) as caught:
        probe(given.format(port=free_port(), tmp=tmp_path))
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_probe_of_a_silent_host_takes_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"answer"):
            probe(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 6.5


def test_probe_accepts_a_store_to_be_made_and_makes_nothing(tmp_path: Path) -> None:
    probe(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert list(tmp_path.iterdir()) == []


CUT_OFF = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.executescript("CREATE TABLE experiments (x); CREATE TABLE alembic_version (version_num)")
database.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the commit
database.execute("BEGIN")
database.executemany("INSERT INTO experiments VALUES (?)", [("x" * 1000,)] * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_probe_accepts_a_store_whose_writer_was_killed(tmp_path: Path) -> None:
    """What it left has to be rolled back, which a reader alone may not do."""
    file = tmp_path / "mlflow.db"
    subprocess.run([sys.executable, "-c", CUT_OFF, str(file)], check=False)
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    probe(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT COUNT(*) FROM experiments").fetchone() == (0,)


def test_links() -> None:
    links = search_links(
        "https://me:s3cret@host/", "3", SearchRef("first", "log_loss", "min"), ["a", "b"]
    )
    assert all(link.startswith("https://host/#/") for link in links.values())
    assert not any(set(link) & set(" '`\"[]") for link in links.values())
    page, _, query = links["trials"].partition("?")
    assert page == "https://host/#/experiments/3/runs"
    wanted = parse_qs(query)
    assert wanted["searchFilter"] == [
        "tags.`resp_tune.search` = 'first' and tags.`resp_tune.kind` = 'trial'"
    ]
    assert (wanted["orderByKey"], wanted["orderByAsc"]) == (["metrics.`log_loss`"], ["true"])
    compared = parse_qs(links["compare"].partition("?")[2])
    assert json.loads(compared["runs"][0]) == ["a", "b"]
    assert json.loads(compared["experiments"][0]) == ["3"]
    assert all("workflowType=machine_learning" in link for link in links.values())
    local = search_links("sqlite:////x.db", "3", SearchRef("first", "macro_f1", "max"), ["a"])
    assert local["trials"].startswith("http://127.0.0.1:5000/#/")
    assert "compare" not in local


def test_addresses_need_no_mlflow() -> None:
    code = "import sys, resp_tune.tracking.store_probe, resp_tune.tracking.ui_links as l; "
    code += "print('mlflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, check=True
    )
    assert answer.stdout.split() == [b"False"]


def test_a_database_that_another_program_holds(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE experiments (name TEXT)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="is locked by another program: close it"):
            probe(f"sqlite:///{file}")

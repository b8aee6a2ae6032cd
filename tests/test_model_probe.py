"""What the plan says of a tracking store that will not take the winner, or was moved."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.mlflow_stores import with_mlflow_store
from support.ports import free_port

from resp_tune.tracking.client import connect, experiment_id
from resp_tune.tracking.model_probe import tracking_notes

WILL_NOT = "the winner will not be registered: "


@contextmanager
def server(statuses: Mapping[str, int], location: str, *, has_experiment: bool) -> Iterator[str]:
    """Answer MLflow's requests with 200, or with the status of `statuses` for a path."""
    experiment = {"experiment_id": "7", "artifact_location": location}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("/mlflow/")[2].partition("?")[0]
            content: dict[str, object] = {}
            if path == "experiments/search" and has_experiment:
                content = {"experiments": [experiment]}
            elif path == "experiments/get":
                content = {"experiment": {**experiment, "experiment_id": "0"}}
            body = json.dumps(content).encode()
            self.send_response(statuses.get(path, 200))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = answer  # noqa: N815  # prescribed names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize(
    ("statuses", "location", "words"),
    [
        ({}, "mlflow-artifacts:/7", None),
        ({}, "file://{here}/not/yet/made", None),
        ({}, "wasbs://container@account/x", "need the module azure.storage.blob"),
        ({}, "file://{here}/a_file/x", "cannot write to '{here}/a_file'"),
        ({}, "{here}/a_file", "cannot write to '{here}/a_file'"),
        ({"logged-models/search": 404}, "mlflow-artifacts:/7", "no logged models"),
        ({"logged-models/search": 403}, "mlflow-artifacts:/7", "refuses logged models"),
        ({"registered-models/search": 403}, "mlflow-artifacts:/7", "refuses its model registry"),
        ({"model-versions/update": 403}, "mlflow-artifacts:/7", "may not add versions"),
        ({"model-versions/update": 404}, "mlflow-artifacts:/7", None),
        ({"registered-models/get": 404, "model-versions/update": 403}, "mlflow-artifacts:/7", None),
    ],
)
@pytest.mark.parametrize("has_experiment", [True, False])
def test_the_plan_says_why_a_server_will_not_take_the_winner(
    statuses: Mapping[str, int],
    location: str,
    words: str | None,
    has_experiment: bool,
    tmp_path: Path,
) -> None:
    (tmp_path / "a_file").touch()
    with server(statuses, location.format(here=tmp_path), has_experiment=has_experiment) as uri:
        notes = list(tracking_notes(uri))
    if words is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith(WILL_NOT)
        assert words.format(here=tmp_path) in note
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_file"], "nothing is made"


def test_a_server_that_is_away_is_left_to_the_probe() -> None:
    assert list(tracking_notes(f"http://127.0.0.1:{free_port()}")) == []


def test_a_new_or_empty_database_has_no_notes(tmp_path: Path) -> None:
    assert list(tracking_notes(f"sqlite:///{tmp_path}/new.db")) == []
    (tmp_path / "empty.db").touch()
    assert list(tracking_notes(f"sqlite:///{tmp_path}/empty.db")) == []


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///old/mlartifacts", ["was moved", "now in {here}/mlartifacts"]),
        ("file:///proc/mine", [f"{WILL_NOT}its artifacts go to '/proc/mine'"]),
        ("file://{here}/mlartifacts", []),
    ],
)
def test_the_plan_says_that_a_database_was_moved(
    location: str, words: list[str], tmp_path: Path
) -> None:
    file = with_mlflow_store(tmp_path) / "mlflow.db"
    experiment_id(connect(f"sqlite:///{file}"), f"sqlite:///{file}", tmp_path)
    with closing(sqlite3.connect(file)) as database, database:
        place = location.format(here=tmp_path)
        database.execute("UPDATE experiments SET artifact_location = ?", (place,))
    before = file.read_bytes()
    notes = " ".join(tracking_notes(f"sqlite:///{file}"))
    assert bool(notes) == bool(words)
    assert all(part.format(here=tmp_path) in notes for part in words)
    assert file.read_bytes() == before

"""A whole search against a server whose address holds a password: where else that can be found."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from support.mlflow_stores import mlflow_server
from support.ports import free_port
from support.searches import command, start, study, summary

pytestmark = pytest.mark.slow
SECRETS = (b"s3cretW", b"W%2Frd", b"W/rd")


def shown_by(process: psutil.Process, own: list[str]) -> set[str]:
    """Command lines of what it has started, at whatever remove, but those that are its own."""
    lines = set()
    for child in process.children(recursive=True):
        try:
            if (shown := child.cmdline()) != own:  # else forked just now
                lines.add(" ".join(shown))
        except psutil.NoSuchProcess:
            continue
    return lines


def test_the_password_is_found_nowhere(tmp_path: Path) -> None:
    port, storage = free_port(), tmp_path / "r"
    uri = f"http://me:s3cretW%2Frd@127.0.0.1:{port}"
    place = Path(tempfile.mkdtemp(prefix="ray"))  # short, for Ray's sockets
    args = ["--storage", str(storage), "--name", "quiet", "--gpus", "0", "--epochs", "1"]
    args += ["--space", "search_spaces/smoke.yaml", "--trials", "2", "--sampler", "cmaes"]
    args += ["--tracking-uri", uri]  # seen of the command itself, of which it says so
    (server := tmp_path / "server").mkdir()
    try:
        with mlflow_server(server, port):
            running = start("search", *args, env={"RAY_TMPDIR": str(place)}, err=tmp_path / "err")
            process, seen = psutil.Process(running.pid), set[str]()
            typed = process.cmdline()
            while running.poll() is None:
                seen |= shown_by(process, typed)
                time.sleep(0.2)
            said = (tmp_path / "err").read_text()
            assert running.returncode == 0, said
            own = ["--winner", "models:/resp_tune@champion", "--tracking-uri", uri, "--json"]
            cache = Path(os.environ["RESP_TUNE_CACHE"])
            wav = next((cache / "synthetic").resolve().rglob("*.wav"))  # a link: workers share it
            told = command("predict", str(wav), *own, env={"PYTHONUNBUFFERED": "1"})
            assert told.code == 0, told.err
        assert any("raylet" in line for line in seen)
        assert not [line for line in seen if any(s.decode() in line for s in SECRETS)]
        assert "the password in these arguments is visible" in said
        files = [p for folder in (storage, place, server) for p in folder.rglob("*")]
        read = {str(p): p.read_bytes() for p in files if p.is_file()}
        assert {"summary.json", "server.db", "report.html"} <= {Path(p).name for p in read}
        assert any("/logs/" in path for path in read), "Ray's own"
        read |= {"said": said.encode(), "told": (told.out + told.err).encode()}
        assert not [p for p, text in read.items() if any(secret in text for secret in SECRETS)]
        assert summary(storage, "quiet")["mlflow"]["tracking_uri"].startswith("http://me:***@")
        assert len(study(storage, "quiet").get_trials()) == 2
    finally:
        shutil.rmtree(place)

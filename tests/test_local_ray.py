"""Our own Ray is its owner's alone: what it listens on, whom it lets in, where its files are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray  # before any of our settings, as a program that uses us may have done

from resp_tune import search
from resp_tune.cli import run
from resp_tune.cluster.connect import _list_nodes
from resp_tune.cluster.local_ray import (
    check_private,
    local_ray,
    make_ray_folder,
    private_ray_env,
    ray_folder,
)
from resp_tune.cluster.resources import Machine
from resp_tune.errors import UserError

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
JOIN = """
import logging, sys, ray
ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
print("let in", ray.get(ray.put(1)))
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ("token", 64, None)),
        ({"RAY_AUTH_MODE": "disabled"}, ("disabled", 64, None)),
        ({"RAY_AUTH_TOKEN": "f" * 40}, ("token", 40, None)),
        ({"RAY_AUTH_TOKEN_PATH": "/a/token"}, ("token", 0, "/a/token")),
    ],
    ids=["nothing", "mode", "token", "file"],
)
def test_what_the_user_has_set_stays(
    given: dict[str, str],
    found: tuple[str, int, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a Ray's surroundings; none is started."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with private_ray_env():
        mode, token, file = map(os.environ.get, AUTH)
        assert (mode, len(token or ""), file) == found
        assert token == given.get("RAY_AUTH_TOKEN", token)
    assert dict(os.environ) == before


@dataclass(frozen=True)
class Running:
    """A Ray that was started by `local_ray`, as seen from outside."""

    address: str
    token: str
    folder: Path
    home: Path
    processes: list[psutil.Process]


@pytest.fixture(scope="module")
def own_ray() -> Iterator[Running]:
    """With one actor; Ray was imported long before."""

    class Actor:
        def here(self) -> bool:
            return True

    machine = Machine(cpus=2, gpus=0, memory=10**9)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as place:
        home = Path(place) / "home"
        home.mkdir()
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_TMPDIR", place)
        for name in AUTH:
            patch.delenv(name, raising=False)
        with local_ray(machine, 0):
            held = ray.remote(num_cpus=0.1)(Actor).remote()
            assert ray.get(held.here.remote())
            yield Running(
                ray.get_runtime_context().gcs_address,
                os.environ["RAY_AUTH_TOKEN"],
                ray_folder(),
                home,
                [psutil.Process(), *psutil.Process().children(recursive=True)],
            )
        assert not set(AUTH) & set(os.environ), "it was for that Ray alone"


def test_ray_listens_on_loopback_alone(own_ray: Running) -> None:
    heard: dict[str, set[str]] = {}
    for process in own_ray.processes:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                heard.setdefault(process.name(), set()).add(connection.laddr.ip)
    assert {"gcs_server", "raylet"} <= set(heard), heard
    assert any(name.startswith("ray::") for name in heard), heard
    assert set.union(*heard.values()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, heard


def join(own: Running, **auth: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in AUTH} | auth
    environment["RAY_NUM_REDIS_GET_RETRIES"] = "1"  # else it asks again for 20 s
    return subprocess.run(
        [sys.executable, "-c", JOIN, own.address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_who_has_the_token_is_let_in(own_ray: Running) -> None:
    joined = join(own_ray, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=own_ray.token)
    assert joined.stdout == "let in 1\n", joined.stderr


def test_its_nodes_are_listed(own_ray: Running) -> None:
    assert _list_nodes(own_ray.address) == ["127.0.0.1"]


@pytest.mark.parametrize(
    "auth",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
    ids=["no token", "another token"],
)
def test_who_has_not_is_refused(own_ray: Running, auth: dict[str, str]) -> None:
    refused = join(own_ray, **auth)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "AuthenticationError" in refused.stderr


def test_its_web_server_wants_the_token_too(own_ray: Running) -> None:
    agent = next(p for p in own_ray.processes if "RuntimeEnvAgent" in p.name())
    (heard,) = (c.laddr for c in agent.net_connections("inet") if c.status == psutil.CONN_LISTEN)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        opener.open(f"http://{heard.ip}:{heard.port}/", timeout=10)


def test_the_token_is_seen_by_nobody(own_ray: Running) -> None:
    for process in own_ray.processes:
        assert own_ray.token not in " ".join(process.cmdline())
    files = [p for p in own_ray.folder.parent.rglob("*") if p.is_file()]
    assert any(p.name.startswith("raylet") for p in files), "its logs are there"
    for path in files:
        assert own_ray.token.encode() not in path.read_bytes(), path
    assert list(own_ray.home.iterdir()) == [], "nothing is left in ~/.ray"


def test_rays_files_are_behind_a_closed_door(own_ray: Running) -> None:
    assert list(own_ray.folder.glob("ray/session_*/sockets/raylet"))
    assert stat.S_IMODE(own_ray.folder.stat().st_mode) == 0o700
    assert {p.name for p in own_ray.folder.parent.iterdir()} == {"home", own_ray.folder.name}


def test_a_folder_of_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = make_ray_folder()
    assert folder == tmp_path / f"resp_tune-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert make_ray_folder() == folder, "it is used again"
    refusals = []
    for mode in (0o770, 0o701, 0o1777):
        folder.chmod(mode)
        refusals.append(refusal(folder))
    folder.rmdir()
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    folder.symlink_to(target)
    refusals.append(refusal(folder))
    folder.unlink()
    folder.write_text("")
    refusals.append(refusal(folder))
    assert len(set(refusals)) == 5
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with pytest.raises(UserError, match="cannot be created"):
        make_ray_folder()
    folder.unlink()
    if os.geteuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 12345, 12345)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        assert "owned by user 12345" in refusal(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_private(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert "set RAY_TMPDIR to" in message
    with pytest.raises(UserError):
        make_ray_folder()
    return message


def test_a_search_says_it_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "tmp"
    (place / f"resp_tune-{os.geteuid()}").mkdir(parents=True)
    (place / f"resp_tune-{os.geteuid()}").chmod(0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    assert run(search.main, ["--gpus", "0", "--storage", str(tmp_path / "r")]) == 2
    assert "is open to others (mode 755)" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "r").exists()


TWICE = """
import os
import ray
from resp_tune.cluster.local_ray import local_ray
from resp_tune.cluster.resources import Machine
tokens = set()
for _ in range(2):
    with local_ray(Machine(cpus=1, gpus=0, memory=10**9), 0):
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
        print(ray.get(ray.remote(num_cpus=0.1)(lambda: "worked").remote()))
print(len(tokens), "RAY_AUTH_TOKEN" in os.environ)
"""


@pytest.mark.slow
def test_one_after_another_in_one_process() -> None:
    """Each with a token of its own, though Ray keeps the first that it reads."""
    environment = {k: v for k, v in os.environ.items() if k not in AUTH}
    done = subprocess.run(
        [sys.executable, "-c", TWICE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["worked", "worked", "2", "False"], done.stderr

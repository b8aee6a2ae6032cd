"""The parts of a search in an object store, against a real S3 server: places, leases, uploads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
import torch
from support.object_store import BUCKET, ENVIRONMENT, ObjectStore, request
from support.searches import command
from support.toy import CLASSES, toy_config

from resp_tune.cluster import node_probe
from resp_tune.errors import UserError
from resp_tune.evaluation.open_winner import open_winner
from resp_tune.execution.trial_context import TrialArtifacts
from resp_tune.harness.reconcile import download_search, search_state
from resp_tune.storage import lease as leases
from resp_tune.storage import object_store
from resp_tune.storage.lease import LEASE, Lease, LeaseLostError
from resp_tune.storage.object_store import ObjectPath, StorageError, check_store
from resp_tune.storage.uploader import Uploader
from resp_tune.study.study import DRIVERS, READINGS, STUDY_ID, read_study
from resp_tune.training.model_bundle import Bundle, Member, load_bundle, save_bundle
from resp_tune.training.networks.network_registry import build_network


@pytest.fixture
def prefix_path(store: ObjectStore, tmp_path: Path) -> ObjectPath:
    return store.prefix_path / tmp_path.name


# --- objects


def test_an_object_is_written_read_listed_fetched_and_removed(
    prefix_path: ObjectPath, tmp_path: Path
) -> None:
    assert prefix_path.read("a/b") is None
    assert prefix_path.read_version("a/b") is None
    assert prefix_path.list_sizes() == {}
    prefix_path.write(b"four", "a/b")
    (prefix_path / "a").write(b"x" * 7_000_000, "large")
    assert prefix_path.read("a/b") == b"four"
    assert (prefix_path / "a" / "b").read() == b"four"
    assert prefix_path.list_sizes() == {"a/b": 4, "a/large": 7_000_000}
    assert prefix_path.fetch("a/b", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"four"
    assert not prefix_path.fetch("a/c", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(StorageError, match="more than any search file"):
        prefix_path.fetch("a/large", tmp_path / "large", most=1000)
    assert not (tmp_path / "large").exists()
    prefix_path.remove("a/b")
    prefix_path.remove("a/b")
    assert prefix_path.list_sizes() == {"a/large": 7_000_000}


def test_a_slash_at_the_end_means_nothing(store: ObjectStore, prefix_path: ObjectPath) -> None:
    other = ObjectPath.parse("--storage", store.uri.replace("?", "/?")) / prefix_path.prefix
    other.write(b"1", "a")
    assert prefix_path.read("a") == b"1"
    assert (str(other), other.local_copy) == (str(prefix_path), prefix_path.local_copy)


def test_an_ensemble_is_read_from_a_store(
    store: ObjectStore, prefix_path: ObjectPath, tmp_path: Path
) -> None:
    config = toy_config()
    best, *others = (Member(config, (build_network(config, 3),)) for _ in range(3))
    made = Bundle(config, CLASSES, best.networks, {}, others=tuple(others))
    save_bundle(tmp_path / "winner", made, {})
    files = {path.name: path.read_bytes() for path in (tmp_path / "winner").iterdir()}
    for name, data in files.items():
        prefix_path.write(data, name)
    uri = store.uri.replace("?", f"/{tmp_path.name}?")
    found = open_winner(uri, None)
    waveform = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(
        found.predict_waveform(waveform),
        load_bundle(tmp_path / "winner").predict_waveform(waveform),
    )
    assert len(found.members) == 3
    prefix_path.remove("member2.safetensors")
    with pytest.raises(UserError, match=r"member2\.safetensors' cannot be read"):
        open_winner(uri, None)


SECRET = "wJalrXUtnFEMI"  # noqa: S105  # made up


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://", "names no bucket"),
        ("s3:/bucket/x", "names no bucket"),
        ("ftp://host/x", "not the URI of a supported object store"),
        ("hdfs://host/x", "not the URI of a supported object store"),
        ("s3://bucket/a b", "give a plainer one"),
        ("s3://bucket/a/../b", "give a plainer one"),
        (f"s3://AKIA:{SECRET}/x@bucket/p", "%2F"),
        (f"s3://AKIA:{SECRET}?x@bucket/p", "%2F"),
        (f"s3://AKIA:{SECRET}@/p", "names no bucket"),
        (f"s3://[{SECRET}", "not a URI"),
    ],
)
def test_a_wrong_uri_is_refused_without_its_secrets(uri: str, said: str) -> None:
    with pytest.raises(UserError, match="--storage") as caught:
        ObjectPath.parse("--storage", uri)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_path_is_printed_without_secrets(store: ObjectStore) -> None:
    uri = f"s3://AKIA:{SECRET}@{BUCKET}/p?endpoint_override={store.endpoint}"
    prefix_path = ObjectPath.parse("--storage", uri) / "first"
    assert str(prefix_path) == f"s3://{BUCKET}/p/first"
    assert SECRET not in repr(prefix_path)
    assert prefix_path.local_copy == (ObjectPath(uri.replace(SECRET, "other")) / "first").local_copy
    assert (
        prefix_path.local_copy
        != (ObjectPath(uri.replace(store.endpoint, "http://h")) / "first").local_copy
    )
    with pytest.raises(StorageError) as caught:
        ObjectPath(uri.replace(BUCKET, "nobodys") + f"&bad={SECRET}").read("x")
    assert SECRET not in str(caught.value)
    assert str(ObjectPath("abfs://container@account.dfs.core.windows.net/p")) == (
        "abfs://container@account.dfs.core.windows.net/p"
    )


def test_a_profile_of_the_aws_tools_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert object_store._aws_profile() == {}
    (tmp_path / "config").write_text("[profile work]\nregion = eu-north-1\noutput = json\n")
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = other\n"
        "[work]\naws_access_key_id = AKIA\naws_secret_access_key = s%cret\n"
    )
    wanted = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s%cret"}
    assert object_store._aws_profile() == {**wanted, "region": "eu-north-1"}
    client: Any = object_store._open("s3://of-a-profile/p")
    assert client.config["region"] == "eu-north-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert object_store._aws_profile() == wanted
    (tmp_path / "credentials").write_text("no section")
    assert object_store._aws_profile() == {}


def test_a_store_is_probed_and_left_as_it_was(prefix_path: ObjectPath) -> None:
    check_store("--storage", prefix_path)
    assert prefix_path.list_sizes() == {}


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://nobodys/p?endpoint_override={}", "create that bucket"),
        ("s3://sounds/p?endpoint_override={}&regoin=x", "'regoin' is not valid"),
        ("s3://sounds/p?endpoint_override=no:address", "the endpoint is not an address"),
        ("s3://sounds/p?endpoint_override=http://127.0.0.1:9", "start it"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(store: ObjectStore, uri: str, said: str) -> None:
    with pytest.raises(UserError, match="--storage 's3://") as caught:
        check_store("--storage", ObjectPath.parse("--storage", uri.format(store.endpoint)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "endpoint_override=" not in str(caught.value)


class _Refusing(BaseHTTPRequestHandler):
    """A store with nothing in it that refuses to be written to."""

    def do_GET(self) -> None:
        self._refuse(404, "NoSuchKey", "The specified key does not exist.")

    def do_PUT(self) -> None:
        self._refuse(403, "AccessDenied", "Access Denied")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Ignorant(_Refusing):
    """A store that knows no conditional writes."""

    contents: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        if self.path not in self.contents:
            return super().do_GET()
        return self._refuse(200, "", "")

    def do_PUT(self) -> None:
        self.contents[self.path] = b""
        self._refuse(200, "", "")

    def do_DELETE(self) -> None:
        self.contents.pop(self.path, None)
        self._refuse(200, "", "")

    def end_headers(self) -> None:
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
        super().end_headers()


@contextmanager
def served_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[ObjectPath]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield ObjectPath(f"s3://b/p?endpoint_override=http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


@pytest.mark.usefixtures("store")  # its keys
def test_no_right_to_write_is_one_line() -> None:
    with served_by(_Refusing) as path:
        with pytest.raises(UserError, match="cannot be used") as caught:
            check_store("--storage", path)
        assert str(caught.value) == (
            "--storage 's3://b/p' cannot be used (AccessDenied: Access Denied): set credentials "
            "that may read, write and delete there"
        )
        check_store("--storage", path, write=False)


@pytest.mark.usefixtures("store")
def test_a_store_without_conditional_writes_is_refused() -> None:
    with served_by(_Ignorant) as path, pytest.raises(UserError, match="If-None-Match"):
        check_store("--storage", path)


@pytest.mark.slow
def test_a_store_that_never_answers_is_one_line_soon(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        uri = f"s3://b/p?region=x&endpoint_override=http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        outcome = command(
            "search", "--storage", uri, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db",
            "--space", "search_spaces/smoke.yaml", "--gpus", "0", env=ENVIRONMENT,
        )  # fmt: skip
    assert outcome.code == 2
    assert outcome.err.count("error:") == 1
    assert "did not answer within 10 s" in outcome.err
    assert time.monotonic() - began < 60, "its client's threads must not hold the process"
    assert list(tmp_path.iterdir()) == []


def test_a_node_says_whether_it_can_use_the_store(prefix_path: ObjectPath) -> None:
    """As the preflight asks each node of a cluster."""
    assert (
        node_probe._try_object_store(prefix_path.uri, prefix_path.prefix, "node")
        == "is not the driver's"
    )
    prefix_path.write(b"secret", "driver")
    assert node_probe._try_object_store(prefix_path.uri, prefix_path.prefix, "node") is None
    assert prefix_path.read("node") == hashlib.sha256(b"secret").hexdigest().encode()
    wrong = prefix_path.uri + "&bad=option"
    assert "cannot be used (" in str(
        node_probe._try_object_store(wrong, prefix_path.prefix, "node")
    )


# --- leases


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 6.0)  # the store's clock counts whole seconds
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.3)


def machine(prefix_path: ObjectPath, folder: Path, lost: list[str] | None = None) -> Lease:
    folder.mkdir(exist_ok=True)
    return Lease(prefix_path, folder, (lost if lost is not None else []).append)


@pytest.mark.usefixtures("quick")
def test_a_second_machine_learns_who_holds_the_lease(
    prefix_path: ObjectPath, tmp_path: Path
) -> None:
    first, second = machine(prefix_path, tmp_path / "a"), machine(prefix_path, tmp_path / "b")
    first.take()
    with pytest.raises(UserError, match=f"is being run by process {os.getpid()} on "):
        second.take()
    first.confirm()
    first.release()
    second.take()
    assert set(prefix_path.list_sizes()) == {LEASE}
    second.release()


def dead_claim(prefix_path: ObjectPath, name: str = "dead") -> None:
    prefix_path.write(
        json.dumps({"id": name, "holder": "process 7 on gone", "beat": 3}).encode(), LEASE
    )


@pytest.mark.usefixtures("quick")
def test_an_expired_lease_is_awaited_only_on_another_machine(
    said: list[str], prefix_path: ObjectPath, tmp_path: Path
) -> None:
    dead_claim(prefix_path)
    began = time.monotonic()
    other = machine(prefix_path, tmp_path / "other")
    other.take()
    assert time.monotonic() - began > 3
    assert "was held by process 7 on gone a moment ago" in said[0]
    other.release()
    dead_claim(prefix_path)
    same = machine(prefix_path, tmp_path / "same")
    (tmp_path / "same" / LEASE).write_text("dead")
    same.take()
    assert len(said) == 1
    same.release()


@pytest.mark.usefixtures("quick")
def test_a_holder_that_is_taken_over_notices(prefix_path: ObjectPath, tmp_path: Path) -> None:
    lost: list[str] = []
    first = machine(prefix_path, tmp_path / "a", lost)
    first.take()
    dead_claim(prefix_path, "somebody else's")
    deadline = time.monotonic() + 20
    while not lost and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lost == ["process 7 on gone"]
    with pytest.raises(LeaseLostError):
        first.confirm()
    first.release()
    assert json.loads(prefix_path.read(LEASE) or b"{}")["id"] == "somebody else's"


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_of_two_simultaneous_starts_one_holds_the_lease(
    prefix_path: ObjectPath, tmp_path: Path
) -> None:
    """Two machines start within a millisecond, 200 times, and never do both hold the lease."""
    random, gate = np.random.default_rng(0), threading.Barrier(2)

    def take(lease: Lease, delay: float) -> tuple[float, Lease | None]:
        gate.wait()
        time.sleep(delay)
        began = time.perf_counter()
        try:
            lease.take()
        except UserError:
            return began, None
        return began, lease

    close = attempts = 0
    with ThreadPoolExecutor(2) as pool:
        while close < 200:
            attempts += 1
            assert attempts < 1000, "this machine cannot start two threads within a millisecond"
            search = prefix_path / str(attempts)
            rivals = [machine(search, folder) for folder in (tmp_path / "a", tmp_path / "b")]
            delays = random.permutation([0.0, random.uniform(0, 0.0005)])
            (first, one), (second, other) = pool.map(take, rivals, delays)
            (holder,) = [lease for lease in (one, other) if lease is not None]
            assert json.loads(search.read(LEASE) or b"{}")["id"] == holder._mine.id
            holder.release()
            close += abs(first - second) < 0.001


def test_of_two_simultaneous_takeovers_one_succeeds(
    prefix_path: ObjectPath, tmp_path: Path
) -> None:
    for attempt in range(20):
        search = prefix_path / f"{attempt}"
        dead_claim(search)
        rivals = [machine(search, tmp_path / name) for name in "ab"]
        for lease in rivals:
            lease._version = lease._read()[1]  # both have read the expired lease
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(lambda lease: lease._write(lease._mine), rivals)) == [
                False,
                True,
            ]


def test_a_lost_answer_does_not_lose_the_lease(
    prefix_path: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    lease = machine(prefix_path, tmp_path / "a", lost)
    lease.take()
    arrived = ObjectPath.replace

    def lose_the_answer(*args: Any) -> None:
        arrived(*args)
        raise StorageError("timeout")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "replace", lose_the_answer)
        with pytest.raises(StorageError):
            lease._renew()
    lease._renew()
    assert lost == []
    prefix_path.remove(LEASE)  # by hand
    lease._renew()
    assert lost == []
    lease.release()
    assert json.loads(prefix_path.read(LEASE) or b"{}")["released"]


# --- uploads


def test_uploads_outlive_an_outage(
    store: ObjectStore, prefix_path: ObjectPath, tmp_path: Path
) -> None:
    outages: list[Exception] = []
    back: list[int] = []
    broken = dataclasses.replace(prefix_path, uri=prefix_path.uri.replace(str(store.port), "9"))
    uploads = Uploader(broken, on_outage=outages.append, on_recovery=back.append)
    (tmp_path / "a").write_bytes(b"old")
    uploads.add("a", tmp_path / "a")
    uploads.add("gone", tmp_path / "gone")
    assert "no connection" in str(uploads.wait(60))
    (tmp_path / "a").write_bytes(b"new")
    uploads.add("a", tmp_path / "a")  # an attempt that runs may have read it before
    uploads.add("b", lambda: b"made when its turn comes")
    uploads.store = prefix_path
    assert uploads.wait(60) is None
    assert (prefix_path.read("a"), prefix_path.read("b")) == (b"new", b"made when its turn comes")
    assert set(prefix_path.list_sizes()) == {"a", "b"}
    assert (len(outages), len(back)) == (1, 1)
    uploads.close()


# --- two copies of a search


def write_study(folder: Path, drivers: list[str], study_id: str = "s", readings: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name=folder.name, load_if_exists=True)
    study.set_user_attr(STUDY_ID, study_id)
    study.set_user_attr(DRIVERS, drivers)
    study.set_user_attr(READINGS, [{"weights_sha256": str(i)} for i in range(readings)])


def there(prefix_path: ObjectPath, folder: Path, drivers: list[str], **values: str | int) -> None:
    """A search in the store, as a machine elsewhere has left it."""
    elsewhere = folder.parent / "elsewhere" / folder.name
    write_study(elsewhere, drivers, **values)  # type: ignore[arg-type]
    prefix_path.write((elsewhere / "study.db").read_bytes(), "study.db")
    prefix_path.write(b"{}", "split.json")
    prefix_path.write(b"theirs", "winner/config.json")
    prefix_path.write(b"theirs", "trials/0/checkpoint.pt")
    prefix_path.write(b"hidden", ".lock")


def drivers_of(folder: Path) -> list[str]:
    found: list[str] = read_study(folder / "study.db", folder.name).user_attrs[DRIVERS]
    return found


@pytest.mark.parametrize(
    ("here", "remote", "stays"),
    [
        (["a"], ["a"], True),  # killed here, before all had gone up
        (["a", "b"], ["a"], True),  # killed here before anything had
        (["a"], ["a", "b"], False),  # gone on elsewhere
        (["a", "b"], ["a", "c"], False),  # both: what is there was there first
        ([], [], True),
    ],
)
def test_which_copy_counts(
    said: list[str],
    prefix_path: ObjectPath,
    tmp_path: Path,
    here: list[str],
    remote: list[str],
    stays: bool,
) -> None:
    folder = tmp_path / "copies" / "first"
    write_study(folder, here, readings=2)
    (folder / "study.db-journal").write_bytes(b"")
    (folder / "trials").mkdir()
    there(prefix_path, folder, remote, readings=1)
    with search_state(prefix_path, folder) as found:
        assert (found == folder) == stays
        assert drivers_of(found) == (here if stays else remote)
    assert drivers_of(folder) == here
    download_search(prefix_path, folder)
    assert drivers_of(folder) == (here if stays else remote)
    assert len(read_study(folder / "study.db", "first").user_attrs[READINGS]) == 2
    assert (folder / "winner" / "config.json").exists() == (not stays)
    assert (folder / "trials").exists()
    assert not (folder / "trials" / "0").exists(), "fetched when it is wanted"
    assert not [p for p in tmp_path.rglob("*") if p.name == ".lock"]
    assert said == []


def test_a_copy_of_another_search_or_a_damaged_one_is_moved_away(
    said: list[str], prefix_path: ObjectPath, tmp_path: Path
) -> None:
    folder = tmp_path / "copies" / "first"
    write_study(folder, ["a", "b"], study_id="an older one")
    (folder / "trials" / "0").mkdir(parents=True)
    there(prefix_path, folder, ["c"])
    download_search(prefix_path, folder)
    assert drivers_of(folder) == ["c"]
    assert not (folder / "trials").exists()
    (moved,) = (folder.parent / ".replaced").iterdir()
    assert {p.name for p in moved.iterdir()} == {"study.db", "trials"}
    assert str(moved) in said[0]
    (folder / "study.db").write_bytes(b"damaged" * 1000)
    download_search(prefix_path, folder)
    assert drivers_of(folder) == ["c"]


def test_a_store_that_was_emptied_gets_the_copy_again(
    said: list[str], prefix_path: ObjectPath, tmp_path: Path
) -> None:
    folder = tmp_path / "copies" / "first"
    download_search(prefix_path, folder)
    assert said == []
    write_study(folder, ["a"])
    download_search(prefix_path, folder)
    assert drivers_of(folder) == ["a"]
    assert "to start over, remove that folder" in said[0]


def test_an_object_whose_name_leaves_the_folder_is_refused(
    store: ObjectStore, prefix_path: ObjectPath, tmp_path: Path
) -> None:
    folder = tmp_path / "copies" / "first"
    folder.mkdir(parents=True)
    there(prefix_path, folder, ["a"])
    request(
        "PUT", store.address, store.port, f"/{BUCKET}/searches/{prefix_path.prefix}/winner/../../x"
    )
    with pytest.raises(UserError, match=r'cannot be .*"\.\."'):
        download_search(prefix_path, folder)
    assert not list(tmp_path.rglob("x"))


def test_a_damaged_study_there_is_one_line(prefix_path: ObjectPath, tmp_path: Path) -> None:
    prefix_path.write(b"damaged" * 1000, "study.db")
    with pytest.raises(UserError, match=f"'{prefix_path}/study.db' cannot be read"):
        download_search(prefix_path, tmp_path / "copies" / "first")


# --- trials' files


def test_the_newest_checkpoint_of_the_same_trial_is_taken(
    prefix_path: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.toy import toy_config, toy_folds

    from resp_tune.training.loop import Training, epochs_in, save_checkpoint

    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    files = TrialArtifacts(tmp_path, prefix_path / "trials")
    assert files.local_folder == prefix_path.local_copy / "trials"
    config = toy_config()
    fresh = Training(config, toy_folds(config, 1))
    path = files.local_folder / "4" / "checkpoint.pt"

    def send(epochs: int, study: str = "s", **values: float) -> None:
        other = toy_config(**values)
        training = Training(other, toy_folds(other, 1))
        for _ in range(epochs):
            training.run_epoch()
        save_checkpoint(tmp_path / "checkpoint.pt", training, study)
        prefix_path.write((tmp_path / "checkpoint.pt").read_bytes(), "trials/4/checkpoint.pt")

    def epochs_after_asking() -> int:
        assert files.fetch_newer_checkpoint("4", fresh, "s") is None
        assert [p.name for p in path.parent.glob("*")] in ([], ["checkpoint.pt"])
        return epochs_in(path, config, "s")

    assert epochs_after_asking() == 0
    send(1)
    assert epochs_after_asking() == 1
    send(2)
    assert epochs_after_asking() == 2
    send(1)
    assert epochs_after_asking() == 2, "the one here has more"
    path.unlink()
    for mistaken in ({"lr": 0.02}, {"study": "another"}):
        send(2, **mistaken)  # type: ignore[arg-type]
        assert epochs_after_asking() == 0
    send(2, micro_batch=4)
    assert epochs_after_asking() == 2
    away = TrialArtifacts(
        tmp_path, ObjectPath(prefix_path.uri.replace("127.0.0.1:", "127.0.0.1:9&x="))
    )
    assert away.fetch_newer_checkpoint("4", fresh, "s") is not None

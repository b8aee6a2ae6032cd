"""The parts of a search in an object store, against a real S3 server: places, leases, uploads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from support.object_store import BUCKET, ENVIRONMENT, ObjectStore, object_store
from support.searches import command

from resp_tune.cluster import node_probe
from resp_tune.errors import UserError
from resp_tune.execution.trial_artifacts import TrialArtifacts
from resp_tune.harness.reconcile import bring, search_state
from resp_tune.storage import lease as leases
from resp_tune.storage.lease import LEASE, Lease, LeaseLostError
from resp_tune.storage.object_store import ObjectPath, StorageError
from resp_tune.storage.storage_probe import check_store
from resp_tune.storage.uploader import Uploader
from resp_tune.study.study import DRIVERS, READINGS, STUDY_ID, read_study


@pytest.fixture
def place(store: ObjectStore, tmp_path: Path) -> ObjectPath:
    return store.place / tmp_path.name


# --- places


def test_an_object_is_written_read_listed_fetched_and_removed(
    place: ObjectPath, tmp_path: Path
) -> None:
    assert place.read("a/b") is None
    assert place.modified_at("a/b") is None
    assert place.list_sizes() == {}
    place.write(b"four", "a/b")
    (place / "a").write(b"x" * 7_000_000, "large")
    assert place.read("a/b") == b"four"
    assert (place / "a" / "b").read() == b"four"
    assert place.list_sizes() == {"a/b": 4, "a/large": 7_000_000}
    assert place.fetch("a/b", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"four"
    assert not place.fetch("a/c", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(StorageError, match="more than any file"):
        place.fetch("a/large", tmp_path / "large", most=1000)
    assert not (tmp_path / "large").exists()
    place.remove("a/b")
    place.remove("a/b")
    assert place.list_sizes() == {"a/large": 7_000_000}


def test_a_slash_at_the_end_means_nothing(store: ObjectStore, place: ObjectPath) -> None:
    other = ObjectPath.parse("--storage", store.uri.replace("?", "/?")) / place.prefix
    other.write(b"1", "a")
    assert place.read("a") == b"1"
    assert (str(other), other.local_copy) == (str(place), place.local_copy)


def test_other_file_systems_show_a_file_whole_too(tmp_path: Path) -> None:
    place = ObjectPath(f"file://{tmp_path}") / "first"
    place.write(b"1", "a/b")
    place.write(b"22", "a/b")
    assert place.list_sizes() == {"a/b": 2}
    assert {p.name for p in tmp_path.rglob("*")} == {"first", "a", "b"}


SECRET = "wJalrXUtnFEMI"  # noqa: S105  # made up


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://", "names no bucket"),
        ("s3:/bucket/x", "names no bucket"),
        ("ftp://host/x", "not the URI of an object store"),
        ("hdfs://host/x", "not the URI of an object store"),
        ("s3://bucket/a b", "give a plainer one"),
        ("s3://bucket/a/../b", "give a plainer one"),
        (f"s3://AKIA:{SECRET}/x@bucket/p", "%2F"),
        (f"s3://AKIA:{SECRET}?x@bucket/p", "%2F"),
        (f"s3://AKIA:{SECRET}@/p", "names no bucket"),
        (f"s3://[{SECRET}", "not a URI"),
    ],
)
def test_what_is_no_place_is_refused_without_its_secrets(uri: str, said: str) -> None:
    with pytest.raises(UserError, match="--storage") as caught:
        ObjectPath.parse("--storage", uri)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_place_is_shown_without_what_is_secret(store: ObjectStore) -> None:
    uri = f"s3://AKIA:{SECRET}@{BUCKET}/p?endpoint_override={store.endpoint}"
    place = ObjectPath.parse("--storage", uri) / "first"
    assert str(place) == f"s3://{BUCKET}/p/first"
    assert SECRET not in repr(place)
    assert place.local_copy == (ObjectPath(uri.replace(SECRET, "other")) / "first").local_copy
    assert (
        place.local_copy
        != (ObjectPath(uri.replace(store.endpoint, "http://h")) / "first").local_copy
    )
    with pytest.raises(StorageError) as caught:
        ObjectPath(uri.replace(BUCKET, "nobodys") + f"&bad={SECRET}").read("x")
    assert SECRET not in str(caught.value)
    assert str(ObjectPath("abfs://container@account.dfs.core.windows.net/p")) == (
        "abfs://container@account.dfs.core.windows.net/p"
    )


def test_a_store_is_probed_and_left_as_it_was(place: ObjectPath) -> None:
    check_store("--storage", place)
    assert place.list_sizes() == {}


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://nobodys/p?endpoint_override={}", "make that bucket"),
        ("s3://sounds/p?endpoint_override={}&regoin=x", "Unexpected query parameter"),
        ("s3://sounds/p?endpoint_override=http://127.0.0.1:9", "start it"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(store: ObjectStore, uri: str, said: str) -> None:
    with pytest.raises(UserError, match="--storage 's3://") as caught:
        check_store("--storage", ObjectPath.parse("--storage", uri.format(store.endpoint)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "endpoint_override=" not in str(caught.value)


def test_no_right_to_write_is_one_line() -> None:
    # The fourth request on, moto asks for credentials: here they are none that it knows.
    with object_store(INITIAL_NO_AUTH_ACTION_COUNT="2") as strict:
        with pytest.raises(UserError, match="cannot be used") as caught:
            check_store("--storage", strict.place)
        assert "\n" not in str(caught.value)
        assert "AWS_ACCESS_KEY_ID" in str(caught.value) or "credentials" in str(caught.value)


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


def test_a_node_says_whether_it_can_use_the_store(place: ObjectPath) -> None:
    """As the preflight asks each node of a cluster."""
    assert node_probe._place(place.uri, place.prefix, "node") == "is not the driver's"
    place.write(b"secret", "driver")
    assert node_probe._place(place.uri, place.prefix, "node") is None
    assert place.read("node") == hashlib.sha256(b"secret").hexdigest().encode()
    wrong = place.uri + "&bad=option"
    assert "cannot be used (" in str(node_probe._place(wrong, place.prefix, "node"))


# --- leases


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 6.0)  # the store's clock counts whole seconds
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.3)


def machine(place: ObjectPath, folder: Path, lost: list[str] | None = None) -> Lease:
    folder.mkdir(exist_ok=True)
    return Lease(place, folder, (lost if lost is not None else []).append)


@pytest.mark.usefixtures("quick")
def test_a_second_machine_is_told_who_holds_it(place: ObjectPath, tmp_path: Path) -> None:
    first, second = machine(place, tmp_path / "a"), machine(place, tmp_path / "b")
    first.take()
    with pytest.raises(UserError, match=f"is being run by process {os.getpid()} on "):
        second.take()
    first.confirm()
    first.release()
    assert place.list_sizes() == {}
    second.take()
    second.release()


def dead_claim(place: ObjectPath, name: str = "dead") -> None:
    place.write(json.dumps({"id": name, "holder": "process 7 on gone", "beat": 3}).encode(), LEASE)


@pytest.mark.usefixtures("quick")
def test_a_dead_holder_is_waited_out_elsewhere_and_not_on_its_own_machine(
    said: list[str], place: ObjectPath, tmp_path: Path
) -> None:
    dead_claim(place)
    began = time.monotonic()
    other = machine(place, tmp_path / "other")
    other.take()
    assert time.monotonic() - began > 3
    assert "was held by process 7 on gone a moment ago" in said[0]
    other.release()
    dead_claim(place)
    same = machine(place, tmp_path / "same")
    (tmp_path / "same" / LEASE).write_text("dead")
    same.take()
    assert len(said) == 1
    same.release()


@pytest.mark.usefixtures("quick")
def test_whoever_is_taken_over_notices(place: ObjectPath, tmp_path: Path) -> None:
    lost: list[str] = []
    first = machine(place, tmp_path / "a", lost)
    first.take()
    dead_claim(place, "somebody else's")
    deadline = time.monotonic() + 20
    while not lost and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lost == ["process 7 on gone"]
    with pytest.raises(LeaseLostError):
        first.confirm()
    first.release()
    assert json.loads(place.read(LEASE) or b"{}")["id"] == "somebody else's"


@pytest.mark.usefixtures("quick")
def test_of_two_at_once_one_holds_it(place: ObjectPath, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from resp_tune.storage import lease;"
        "from resp_tune.storage.object_store import ObjectPath;"
        "from resp_tune.errors import UserError\n"
        "lease.BEAT_SECONDS = 1\n"
        "l = lease.Lease(ObjectPath(sys.argv[1], sys.argv[2]), Path(sys.argv[3]), print)\n"
        "try:\n l.take(); print('holds', flush=True)\n"
        "except UserError:\n print('refused', flush=True)\n"
        "sys.stdin.read()"
    )
    for name in "ab":
        (tmp_path / name).mkdir()
    both = []
    for name in "ab":
        given = [sys.executable, "-c", code, place.uri, place.prefix, str(tmp_path / name)]
        pipe = subprocess.PIPE
        both.append(subprocess.Popen(given, stdin=pipe, stdout=pipe, text=True))
    try:
        said = sorted(p.stdout.readline().strip() for p in both if p.stdout)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert said == ["holds", "refused"]


# --- uploads


def test_uploads_outlive_an_outage(store: ObjectStore, place: ObjectPath, tmp_path: Path) -> None:
    outages: list[str] = []
    back: list[bool] = []
    broken = dataclasses.replace(place, uri=place.uri.replace(str(store.port), "9"))
    uploads = Uploader(broken, outage=outages.append, back=lambda: back.append(True))
    (tmp_path / "a").write_bytes(b"old")
    uploads.add("a", tmp_path / "a")
    uploads.add("gone", tmp_path / "gone")
    assert "NETWORK_CONNECTION" in str(uploads.flush(60))
    (tmp_path / "a").write_bytes(b"new")
    uploads.add("a", tmp_path / "a")  # an attempt that runs may have read it before
    uploads.add("b", lambda: b"made when its turn comes")
    uploads.place = place
    assert uploads.flush(60) is None
    assert (place.read("a"), place.read("b")) == (b"new", b"made when its turn comes")
    assert set(place.list_sizes()) == {"a", "b"}
    assert (len(outages), back) == (1, [True])
    uploads.close()


# --- two copies of a search


def write_study(folder: Path, drivers: list[str], study_id: str = "s", readings: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name=folder.name, load_if_exists=True)
    study.set_user_attr(STUDY_ID, study_id)
    study.set_user_attr(DRIVERS, drivers)
    study.set_user_attr(READINGS, [{"weights_sha256": str(i)} for i in range(readings)])


def there(place: ObjectPath, folder: Path, drivers: list[str], **values: str | int) -> None:
    """A search in the store, as a machine elsewhere has left it."""
    elsewhere = folder.parent / "elsewhere" / folder.name
    write_study(elsewhere, drivers, **values)  # type: ignore[arg-type]
    place.write((elsewhere / "study.db").read_bytes(), "study.db")
    place.write(b"{}", "split.json")
    place.write(b"theirs", "winner/config.json")
    place.write(b"theirs", "trials/0/checkpoint.pt")
    place.write(b"out of the folder", "winner/../../../escaped")
    place.write(b"hidden", ".lock")


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
def test_which_copy_goes_on(
    said: list[str],
    place: ObjectPath,
    tmp_path: Path,
    here: list[str],
    remote: list[str],
    stays: bool,
) -> None:
    folder = tmp_path / "copies" / "first"
    write_study(folder, here, readings=2)
    (folder / "study.db-journal").write_bytes(b"")
    (folder / "trials").mkdir()
    there(place, folder, remote, readings=1)
    with search_state(place, folder) as found:
        assert (found == folder) == stays
        assert drivers_of(found) == (here if stays else remote)
    assert drivers_of(folder) == here
    bring(place, folder)
    assert drivers_of(folder) == (here if stays else remote)
    assert len(read_study(folder / "study.db", "first").user_attrs[READINGS]) == 2
    assert (folder / "winner" / "config.json").exists() == (not stays)
    assert (folder / "trials").exists()
    assert not (folder / "trials" / "0").exists(), "fetched when it is wanted"
    assert not [p for p in tmp_path.rglob("*") if p.name in ("escaped", ".lock")]
    assert said == []


def test_a_copy_of_another_search_or_a_damaged_one_is_moved_away(
    said: list[str], place: ObjectPath, tmp_path: Path
) -> None:
    folder = tmp_path / "copies" / "first"
    write_study(folder, ["a", "b"], study_id="an older one")
    (folder / "trials" / "0").mkdir(parents=True)
    there(place, folder, ["c"])
    bring(place, folder)
    assert drivers_of(folder) == ["c"]
    assert not (folder / "trials").exists()
    (moved,) = (folder.parent / ".replaced").iterdir()
    assert {p.name for p in moved.iterdir()} == {"study.db", "trials"}
    assert str(moved) in said[0]
    (folder / "study.db").write_bytes(b"damaged" * 1000)
    bring(place, folder)
    assert drivers_of(folder) == ["c"]


def test_a_store_that_was_emptied_gets_the_copy_again(
    said: list[str], place: ObjectPath, tmp_path: Path
) -> None:
    folder = tmp_path / "copies" / "first"
    bring(place, folder)
    assert said == []
    write_study(folder, ["a"])
    bring(place, folder)
    assert drivers_of(folder) == ["a"]
    assert "to begin anew, remove that folder" in said[0]


def test_a_damaged_study_there_is_one_line(place: ObjectPath, tmp_path: Path) -> None:
    place.write(b"damaged" * 1000, "study.db")
    with pytest.raises(UserError, match=f"'{place}/study.db' cannot be read"):
        bring(place, tmp_path / "copies" / "first")


# --- trials' files


def test_the_newest_checkpoint_of_the_same_trial_is_taken(
    place: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.toy import toy_config, toy_folds

    from resp_tune.training.checkpoint import epochs_in, save_checkpoint
    from resp_tune.training.loop import Training

    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    files = TrialArtifacts(tmp_path, place / "trials")
    assert files.here == place.local_copy / "trials"
    config = toy_config()
    path = files.here / "4" / "checkpoint.pt"

    def send(epochs: int, study: str = "s", **values: float) -> None:
        other = toy_config(**values)
        training = Training(other, toy_folds(other, 1))
        for _ in range(epochs):
            training.run_epoch()
        save_checkpoint(tmp_path / "checkpoint.pt", training, study)
        place.write((tmp_path / "checkpoint.pt").read_bytes(), "trials/4/checkpoint.pt")

    def epochs_after_asking() -> int:
        assert files.newest_checkpoint("4", config, "s") is None
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
    away = TrialArtifacts(tmp_path, ObjectPath(place.uri.replace("127.0.0.1:", "127.0.0.1:9&x=")))
    assert away.newest_checkpoint("4", config, "s") is not None

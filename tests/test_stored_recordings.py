"""Recordings in an object store: fetched once, and again where they have changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.object_store import ObjectStore

from resp_tune.data.dataset import load_dataset
from resp_tune.data.synthetic.write import SynthSettings, make_synthetic
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath
from resp_tune.storage.remote_datasets import fetch_dataset


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_data_set_is_fetched_once_and_what_changes_again(
    said: list[str], store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    make_synthetic(tmp_path / "set", SynthSettings(recordings=30, seconds=2.0))
    original = contents(tmp_path / "set")
    uri = f"s3://sounds/sets/lungs?endpoint_override={store.endpoint}"
    prefix_path = ObjectPath(uri)
    for name, content in original.items():
        prefix_path.write(content, name)
    count = len(original)
    folder = fetch_dataset(uri)
    assert folder.name == "lungs"
    assert contents(folder) == original
    assert f"{count} of {count} files fetched from s3://sounds/sets/lungs" in said[0]
    assert len(load_dataset(folder).recordings) == 30
    assert fetch_dataset(uri) == folder
    assert f" 0 of {count} files" in said[1]
    gone, changed = sorted(n for n in original if n.endswith(".txt"))[:2]
    prefix_path.remove(gone)
    prefix_path.write(b"0.0\t1.0\t0\t0\n", changed)
    fetch_dataset(uri)
    assert f" 1 of {count - 1} files" in said[2]
    wanted = {**original, changed: b"0.0\t1.0\t0\t0\n"}
    del wanted[gone]
    assert contents(folder) == wanted


def test_names_in_a_store_never_leave_the_folder(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    hostile = {"../../../out.txt": (3, 1), "good.txt": (3, 1)}
    monkeypatch.setattr(ObjectPath, "list_objects", lambda _: hostile)
    uri = f"s3://sounds/hostile?endpoint_override={store.endpoint}"
    ObjectPath(uri).write(b"yes", "good.txt")
    folder = fetch_dataset(uri)
    assert set(contents(folder)) == {"good.txt"}
    assert not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://sounds/nothing-there{at}", "has no objects"),
        ("s3://no-such-bucket-here/x{at}", "no-such-bucket-here"),
        ("ftp://host/set", "not the URI of a supported object store"),
        ("s3:///set", "names no bucket"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    uri: str, said: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=said) as caught:
        fetch_dataset(uri.format(at=f"?endpoint_override={store.endpoint}"))
    assert "--data" in str(caught.value)
    assert "\n" not in str(caught.value)

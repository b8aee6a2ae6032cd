"""From outside: secrets are not shown, text stays text, paths lead nowhere, damage is one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bundles import save_networks
from support.ports import free_port
from support.report_folders import HOSTILE, Page, judge, make
from support.searches import command
from support.toy import CLASSES, toy_config, toy_folds

import resp_tune
from resp_tune import train
from resp_tune.cli import run
from resp_tune.errors import UserError
from resp_tune.reporting.report_html import render
from resp_tune.tracking.client import connect
from resp_tune.tracking.load_trial import load_trial_run
from resp_tune.tracking.store_probe import probe
from resp_tune.tracking.tags import SearchRef
from resp_tune.tracking.ui_links import search_links
from resp_tune.tracking.uri import public_base, redact, root_cause, scrub
from resp_tune.training.loop import Training, resume
from resp_tune.training.model_bundle import load_bundle

# Secrets

PASSWORDS = [
    "s3cret", "pa/s3cret", "s3cret?x", "s3#cret", "s3@cret", "[s3cret]", "s3:cret/", "s3cret@h/[#?",
    "s3%2Fcret", "//s3cret//", "@@s3cret", "s3cret&t=1", "s3 cret", "s3’cret",
]  # fmt: skip
PIECES = ("s3", "cret")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "https", "mssql+pyodbc"])
def test_no_password_is_shown(scheme: str, password: str) -> None:
    shown = redact(f"{scheme}://me:{password}@host:5432/db?sslmode=s3cret&x#cret")
    assert not any(piece in shown for piece in PIECES), shown
    assert shown.endswith("@host:5432/db?sslmode=***&***")
    token = redact(f"{scheme}://{password}@host/db")
    assert not any(piece in token for piece in PIECES if ":" not in password), token


def test_a_uri_without_secrets_is_shown_whole() -> None:
    for uri in ("sqlite:////home/me@work/a:b.db", "http://host:5000/mlflow", "postgresql://h/d"):
        assert redact(uri) == uri


@pytest.mark.parametrize("password", PASSWORDS)
def test_refusals_do_not_show_it(password: str) -> None:
    """What MLflow, SQLAlchemy, psycopg and requests say of addresses where nothing listens."""
    port = free_port()
    for scheme in ("http", "postgresql+psycopg", "mssql"):
        uri = f"{scheme}://me:{password}@127.0.0.1:{port}/x?key=s3cret"
        for refuse in (probe, connect) if scheme == "http" else (probe,):
            with pytest.raises(UserError) as caught:
                refuse(uri)
            said = str(caught.value)
            assert not any(piece in said for piece in PIECES), said
            assert "\n" not in said


def test_an_exception_is_scrubbed_of_the_parts_too() -> None:
    uri = "postgresql://me:s3cret%2Fw0rd@host/db?token=t0ken%2Fmore"
    told = ValueError("no host 's3cret', no database w0rd@host; token t0ken/more, s3cret/w0rd")
    assert root_cause(told, uri) == "no host '***', no database ***@host; token ***, ***"
    assert "%2F" in root_cause(told, "postgresql://me:s3/cret@host/db"), "how to write it"
    assert scrub("see http://you:other@there/?k=v", uri) == "see http://you:***@there/?k=***"


def test_links_have_neither_login_nor_query() -> None:
    uri = "https://me:s3/cret@host/mlflow/?token=s3cret#x"
    assert public_base(uri) == "https://host/mlflow"
    for link in search_links(uri, "3", SearchRef("first", "macro_f1", "max"), ["a", "b"]).values():
        assert link.startswith("https://host/mlflow/#/")
        assert "cret" not in link


# Files

BAD = [
    1e308, -1.5, float("inf"), float("nan"), 10**400, 0, True, None, "", "text", HOSTILE,
    [], {}, [[]], [None], {"a": 1},
]  # fmt: skip


def refusal_of(bundle: Path) -> str | None:
    try:
        load_bundle(bundle)
    except UserError as error:
        return str(error)
    return None


def test_a_bundle_of_anybodys(tmp_path: Path) -> None:
    """Every value of its config.json replaced by every kind of value: read, or one line."""
    config = toy_config(epochs=1)
    training = Training(config, toy_folds(config, 1))
    provenance = {"search": "first", "trial": 3, "split_sha256": "x", "folds": 1}
    details = {"task": "tones", "protocol": "patient", "provenance": provenance}
    save_networks(tmp_path, config, CLASSES, training.networks(), details)
    path = tmp_path / "config.json"
    sound = path.read_text()
    refused = 0
    for key in (*json.loads(sound), *(("trial_config", k) for k in config.as_dict())):
        for value in BAD:
            content = json.loads(sound)
            if isinstance(key, tuple):
                content[key[0]][key[1]] = value
            else:
                content[key] = value
            path.write_text(json.dumps(content))
            said = refusal_of(tmp_path)
            refused += said is not None
            assert "\n" not in (said or "")
    assert refused > 300
    huge = json.loads(sound)
    huge["trial_config"] |= {"width": 256, "depth": 7}  # of 19 GB
    path.write_text(json.dumps(huge))
    with pytest.raises(UserError, match="do not fit"):
        load_bundle(tmp_path)


def test_text_where_a_trials_number_stands(tmp_path: Path) -> None:
    folder = make(tmp_path / "first")
    for name in ("trials.csv", "epochs.csv"):
        table = folder / name
        head, first, *rest = table.read_text().splitlines()
        rows = [head, f"one{first[1:]}", f"1e308{first[1:]}", f"9{'9' * 400}{first[1:]}", *rest]
        table.write_text("\n".join(rows))
    assert "trials" in Page(render(folder)).text
    summary = json.loads((folder / "summary.json").read_text())
    for key, value in (("metric", []), ("seconds", {"total": 10**400}), ("winner", "7")):
        (folder / "summary.json").write_text(json.dumps({**summary, key: value}))
        render(folder)


def test_a_mistyped_store_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlfow.db"
    with pytest.raises(UserError, match="there is no MLflow store") as caught:
        load_trial_run(uri, "ab12")
    assert "\n" not in str(caught.value)
    given = ["--run", "ab12", "--tracking-uri", uri, "--out", f"{tmp_path}/out"]
    assert run(train.main, given) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_hostile_labels_stay_text(tmp_path: Path) -> None:
    folder = make(tmp_path / "first", HOSTILE)
    judge(folder, HOSTILE)
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace("COPD", json.dumps(HOSTILE)[1:-1]))
    for path in folder.rglob("*.csv"):
        path.write_text(path.read_text().replace("COPD", HOSTILE.replace('"', '""')))
    page = Page(render(folder))
    assert (page.tags["script"], page.tags["img"]) == (3, 0)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "window.broken=1" in page.text


OPENED = """
import os, sys
from pathlib import Path
opened = set()
root = Path(sys.argv[1])
from resp_tune.data.dataset import load_dataset
import resp_tune.data.make_split, soundfile, numpy
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
data = load_dataset(root)
print(len(data.recordings))
print(*sorted(p for p in opened if "outsider" in p), sep="\\n")
"""


def test_tables_lead_to_no_file_outside(tmp_path: Path) -> None:
    """Names in tables that are paths; every file that is opened meanwhile is looked at."""
    data = tmp_path / "data"
    made = command("synth", str(data), "--recordings", "30", "--seconds", "2")
    assert made.code == 0, made.err
    (tmp_path / "outsider.wav").write_bytes(b"")
    (tmp_path / "outsider.txt").write_text("0\t1\t0\t0\n")
    outside = [
        "../outsider",
        str(tmp_path / "outsider"),
        "..\\outsider",
        "%2e%2e/outsider",
        "../outsider.wav",
    ]
    rows = "".join(f"{name},URTI\n" for name in outside)
    table = data / "patient_diagnosis.csv"
    table.write_text(f"{table.read_text()}\n{rows}")
    sides = "".join(f"{name}\ttrain\n" for name in outside)
    (data / "ICBHI_challenge_train_test.txt").write_text(sides)
    told = subprocess.run(
        [sys.executable, "-c", OPENED, str(data)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["30"]


def test_no_pickle_is_read_but_where_it_is_said() -> None:
    """`docs/safety.md` names the place."""
    for path in Path(resp_tune.__file__).parent.rglob("*.py"):
        text = path.read_text()
        if "import pickle" in text or "joblib.load" in text:
            assert path.name == "safe_cmaes.py"
        assert text.count("torch.load(") == text.count("weights_only=True"), path


def test_a_checkpoint_of_a_strangers_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "harmed",)

    torch.save({"harm": Harm()}, tmp_path / "checkpoint.pt")
    config = toy_config(epochs=1)
    training = Training(config, toy_folds(config, 1))
    wrong = resume(training, tmp_path / "checkpoint.pt")
    assert training.history == []
    assert wrong is not None
    assert "UnpicklingError" in wrong
    assert not (tmp_path / "harmed").exists()


def test_every_exception_from_the_safety_rules_has_a_reason() -> None:
    root = Path(__file__).parents[1]
    sources = [p for f in ("resp_tune", "scripts", "tests") for p in (root / f).rglob("*.py")]
    lines = [line for path in sources for line in path.read_text().splitlines()]
    exceptions = [line for line in lines if re.search(r"# noqa: [A-Z0-9, ]*\bS\d{3}", line)]
    assert len(exceptions) > 8
    assert not [line for line in exceptions if not re.search(r"noqa: [A-Z0-9, ]+# \w{2,}", line)]

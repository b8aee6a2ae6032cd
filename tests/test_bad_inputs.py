"""Inputs that nobody should give, by the hundred: a line, in time, and nothing is left of them."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bad_inputs import check
from support.fault_log import THOROUGH, survived
from support.old_release import ARGS, make_recordings
from support.searches import study
from support.small_sets import write_set

from resp_tune import evaluate, predict, report, search, synth, train
from resp_tune.config import FIELDS
from resp_tune.data.split import load_split, save_split
from resp_tune.errors import UserError
from resp_tune.study.study import SPLIT

OLD = Path(__file__).parent / "data" / "release-0.1.0" / "results"
EXAMPLES = int(os.environ.get("RESP_TUNE_BAD_INPUTS", "25"))  # of each kind
MANY = 400 if THOROUGH else 100

few = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)

DIAGNOSES = {
    f"{100 + n}_1b1_{place}_sc_{device}": ("COPD", "Healthy", "URTI")[n % 3]
    for n in range(12)
    for place, device in (("Al", "Meditron"), ("Pr", "LittC2SE"))
}

# What is typed by mistake or malice, for every flag.
WORDS = st.one_of(
    st.sampled_from([
        "", " ", "0", "-1", "1", "2", "3.5", "1e9", "1e400", "nan", "inf", "-inf", "٣", "1_000",
        "99999999999999999999", "none", "null", "true", "auto", "../..", "/", "/dev/null", "~", ".",
        "~nobody_of_that_name/x", "a/b", "a b", "é", "名", "\u202e", "\x00", "\n", "'", '"', "%s",
        "{x}", "<script>", "x" * 300, "x" * 5000, "http://127.0.0.1:9", "http://", "file:///x",
        "sqlite://", "sqlite:////dev/null/x.db", "postgresql://u:p@127.0.0.1:9/x", "s3://b/k",
        "diagnosis", "cycles", "patient", "official", "device", "recording", "macro_f1", "10m",
        "0s",
    ]),
    st.text(max_size=12),
)  # fmt: skip
FLAGS = sorted(
    flag
    for flag in search.parser()._option_string_actions
    if flag.startswith("--") and flag not in ("--help", "--dry-run", "--data", "--config")
)

# YAML: whatever can stand in it, and text that is hardly any.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4)
)
KEYS = st.one_of(
    st.sampled_from([
        "parameters", "fixed", "preset", "description", "constraints", "lr", "dropout", "n_mels",
        "type", "low", "high", "log", "step", "values", "when", "float", "int", "ordinal",
        "categorical", "notebook", "learning_rate", "trials", "epochs", "name", "classes", "COPD",
    ]),
    st.text(max_size=6),
)  # fmt: skip
TREES = st.recursive(
    st.one_of(SCALARS, KEYS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
RAW = [
    BOMB,
    BOMB + "parameters: *a8\n",
    "parameters: {lr: {type: ordinal, values: *x}}",
    "[" * 3000,
    "{a: " * 2000,
    "parameters: &p {lr: *p}",
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "parameters:\n\tlr: 1",
    "\ufeffparameters: {}",
    "parameters: {lr: {type: float, low: 0.1, high: 0.01}}",
    "parameters: {lr: {type: float, low: .nan, high: 1.0}}",
    "parameters: {lr: {type: int, low: 1, high: 2}}",
    "parameters: {dropout: {type: float, low: 0, high: 0.5, step: 0}}",
    "parameters: {n_mels: {type: ordinal, values: []}}",
    "parameters: {n_mels: {type: int, low: 1, high: 99999999999999999999}}",
    "? [a, b]\n: c",
    "---\na: 1\n---\nb: 2",
]
FILES = st.one_of(
    TREES.map(lambda tree: yaml.dump(tree, allow_unicode=True).encode()),
    st.sampled_from(RAW).map(str.encode),
    st.binary(max_size=60),
)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """What takes seconds to import on a busy machine is no input's own time."""
    for name in (
        "harness.validate",
        "training.model_bundle",
        "audit.audit",
        "reporting.report_html",
    ):
        importlib.import_module(f"resp_tune.{name}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound data set."""
    return write_set(tmp_path_factory.mktemp("bad") / "data", DIAGNOSES)


@pytest.fixture
def place(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands are run in."""
    shutil.copytree(data, tmp_path / "data")
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return tmp_path


def dry(place: Path, *more: str, data: Path | None = None) -> tuple[int, str]:
    argv = ["--dry-run", "--data", str(data or place / "data")]
    return check(search.main, [*argv, *more], place)


@given(flags=st.lists(st.tuples(st.sampled_from(FLAGS), WORDS), min_size=1, max_size=4))
@few
def test_flags(flags: list[tuple[str, str]], place: Path) -> None:
    dry(place, *(f"{flag}={word}" for flag, word in flags))


@given(words=st.lists(st.one_of(WORDS, st.sampled_from(FLAGS)), max_size=4))
@few
def test_words(words: list[str], place: Path) -> None:
    dry(place, *words)


@given(name=st.one_of(WORDS, st.text(max_size=80)))
@few
def test_names(name: str, place: Path) -> None:
    dry(place, f"--name={name}")


COMMANDS: list[tuple[Callable[..., None], list[str]]] = [
    (train.main, ["--data", "{data}", "--epochs", "0"]),
    (evaluate.main, ["--data", "{data}", "--winner", "nowhere"]),
    (predict.main, ["--winner", "nowhere"]),
    (report.main, []),
    (synth.main, ["{data}"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0].__module__.split(".")[1])
@given(words=st.lists(WORDS, max_size=3))
@few
def test_other_commands(
    command: tuple[Callable[..., None], list[str]], words: list[str], place: Path
) -> None:
    """Each is given something wrong beside the words, so that none of them works for long."""
    main, wrong = command
    argv = [w.format(data=place / "data") for w in wrong]
    assert check(main, [*argv, *words], place)[0] == 2


@pytest.mark.parametrize("flag", ["--space", "--config", "--task"])
@given(content=FILES)
@few
def test_yaml(flag: str, content: bytes, place: Path) -> None:
    file = place / "given.yaml"
    file.write_bytes(content)
    dry(place, flag, str(file))


def train_by(file: Path, place: Path) -> tuple[int, str]:
    """`train --config`, with a task that is not there, so that nothing is trained for long."""
    argv = ["--config", str(file), "--data", str(place / "data"), "--task", "nowhere"]
    return check(train.main, argv, place)


VALUES = st.one_of(TREES, st.sampled_from([-1, 0, 10**30, 1e308, float("nan"), "", "x" * 300]))


@given(content=FILES)
@few
def test_a_config_to_train_by(content: bytes, place: Path) -> None:
    file = place / "given.yaml"
    file.write_bytes(content)
    assert train_by(file, place)[0] == 2


@given(fields=st.dictionaries(st.one_of(st.sampled_from(sorted(FIELDS)), KEYS), VALUES, max_size=4))
@few
def test_values_of_a_config(fields: dict[str, Any], place: Path) -> None:
    file = place / "given.yaml"
    file.write_text(yaml.dump(fields))
    code, error = train_by(file, place)
    assert code == 2
    assert "--config" in error or "nowhere" in error


CONFIGS = [
    ("learning_rate: 0.1", "unknown field 'learning_rate': "),
    ("n_mel: 32", "unknown field 'n_mel': did you mean 'n_mels'?"),
    ("dropuot: 0.1", "did you mean 'dropout'?"),
    ("lr: fast", "lr: 'fast' is not a number"),
    ("lr: true", "lr: true is not a number"),
    ("lr: .nan", "lr: nan is outside"),
    ("n_mels: 32.5", "n_mels: 32.5 is not a whole number"),
    ("n_mels: [32]", "n_mels: [32] is not a whole number"),
    ("epochs: 0", "epochs: 0 is outside"),
    ("balance: sometimes", "balance: 'sometimes' is not one of"),
    ("[lr, 0.1]", "is not a mapping"),
    ("lr: [0.1", "is not YAML"),
    ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ("lr: 0.1\nlr: 0.2", "'lr' is given twice"),
]


@pytest.mark.parametrize(("text", "said"), CONFIGS)
def test_what_is_wrong_with_a_config(text: str, said: str, place: Path) -> None:
    file = place / "given.yaml"
    file.write_text(text)
    code, error = train_by(file, place)
    assert code == 2
    assert f"--config '{file}'" in error
    assert said in error


SPACE = (
    "description: d\npreset: baseline\nparameters: {lr: {type: float, low: 0.001, high: 0.01}}\n"
)
TASK = "name: mine\ndescription: d\nclasses: {a: [COPD], b: ['*']}\n"
NEARLY = [
    ("flag", "--trails", "did you mean '--trials'?"),
    ("flag", "--schedular", "did you mean '--scheduler'?"),
    ("--space", SPACE.replace("lr:", "dropuot:"), "did you mean 'dropout'?"),
    ("--space", SPACE.replace("parameters", "paramters"), "did you mean 'parameters'?"),
    ("--space", SPACE.replace("high", "hihg"), "did you mean 'high'?"),
    ("--space", SPACE.replace("float", "flaot"), "did you mean 'float'?"),
    ("--space", SPACE.replace("baseline", "basline"), "did you mean 'baseline'?"),
    ("--config", "trails: 3", "did you mean 'trials'?"),
    ("--task", TASK.replace("classes", "clases"), "did you mean 'classes'?"),
    ("--task", TASK.replace("COPD", "COPDD"), "did you mean 'COPD'?"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "text", "said"), NEARLY)
def test_what_was_nearly_right_is_named(where: str, text: str, said: str, place: Path) -> None:
    if where == "flag":
        code, error = dry(place, text, "3")
    else:
        file = place / "given.yaml"
        file.write_text(text)
        code, error = dry(place, where, str(file))
    assert code == 2
    assert said in error


@given(
    where=st.integers(0, 60),
    put=st.binary(min_size=1, max_size=8),
    length=st.one_of(st.none(), st.integers(0, 9000)),
)
@few
def test_wav(where: int, put: bytes, length: int | None, place: Path) -> None:
    path = next((place / "data").rglob("*.wav"))
    sound = path.read_bytes()
    bad = (sound[:where] + put + sound[where + len(put) :])[:length]
    path.write_bytes(bad)
    try:
        dry(place)
        argv = [str(path), "--winner", str(OLD / "winner"), "--json"]
        check(predict.main, argv, place, lines=2)  # the file's own, and that there is no other
    finally:
        path.write_bytes(sound)


def damaged(file: Path, content: bytes, place: Path, *more: str) -> None:
    """A dry run with `content` in `file`, which is then as it was."""
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(content)
    try:
        dry(place, *more)
    finally:
        file.unlink()
        if before is not None:
            file.write_bytes(before)


LINES = st.lists(
    st.lists(
        st.one_of(
            st.sampled_from(["0.0", "0.5", "1.0", "1", "0", "-1", "nan", "inf", "1e400", "2", ""]),
            st.text(max_size=5),
        ),
        max_size=6,
    ).map("\t".join),
    max_size=5,
).map("\n".join)


@given(text=LINES, encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1"]))
@few
def test_annotations(text: str, encoding: str, place: Path) -> None:
    file = next((place / "data").rglob("*_Al_*.txt"))
    damaged(file, text.encode(encoding, "replace"), place, "--task", "cycles")


ROWS = st.lists(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*map(str, range(100, 112)), "COPD", "Healthy", "URTI", "nan", "F", ""]
            ),
            st.text(max_size=6),
        ),
        max_size=6,
    ),
    max_size=14,
)
TABLES = st.builds(
    lambda rows, separator, end, encoding: end.join(separator.join(r) for r in rows).encode(
        encoding, "replace"
    ),
    ROWS,
    st.sampled_from([",", "\t", " ", ";"]),
    st.sampled_from(["\n", "\r\n", "\r", "\x00"]),
    st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1", "cp1252", "utf-32"]),
)


@pytest.mark.parametrize(
    "name", ["patient_diagnosis.csv", "demographic_info.txt", "ICBHI_challenge_train_test.txt"]
)
@given(content=st.one_of(TABLES, st.binary(max_size=80)))
@few
def test_tables(name: str, content: bytes, place: Path) -> None:
    more = ("--task", "cycles", "--protocol", "official") if "challenge" in name else ()
    damaged(place / "data" / name, content, place, *more)


@given(
    content=st.one_of(TREES.map(repr).map(str.encode), st.binary(max_size=80)),
    cut=st.integers(0, 1100),
)
@few
def test_saved_sides(content: bytes, cut: int, place: Path) -> None:
    whole = (OLD / "split.json").read_bytes()
    for given_bytes in (content, whole[:cut], whole[:cut] + content + whole[cut:]):
        survived("a bad input")
        path = place / "split.json"
        path.write_bytes(given_bytes)
        try:
            found = load_split(path).digest
        except UserError as error:
            found = str(error)
        if found != load_split(OLD / "split.json").digest:  # notes may differ: they are for readers
            assert "\n" not in found
            assert given_bytes.strip() != whole.strip()
            assert str(path) in found


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search of an older release in `r/old`, on the recordings in `data`."""
    shutil.copytree(OLD, tmp_path / "r" / "old")
    make_recordings(tmp_path / "data")
    split = load_split(OLD / "split.json")
    study(tmp_path / "r", "old").set_user_attr(SPLIT, split.digest)  # as it is written since
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go_on(begun: Path) -> tuple[int, str]:
    """What one more trial would come to, without a start."""
    argv = (*ARGS, "--storage", str(begun / "r"), "--trials", "3")
    return dry(begun, *argv)


@given(
    content=st.one_of(TREES.map(repr).map(str.encode), st.binary(max_size=80)),
    cut=st.integers(0, 1100),
    kind=st.sampled_from(["other", "cut", "put in"]),
)
@few
def test_damaged_sides_of_a_search(content: bytes, cut: int, kind: str, begun: Path) -> None:
    """The study has their digest, and they follow from the data: they would be made again."""
    path = begun / "r" / "old" / "split.json"
    whole = path.read_bytes()
    try:
        damaged = {"other": content, "cut": whole[:cut]}
        path.write_bytes(damaged.get(kind, whole[:cut] + content + whole[cut:]))
        assert go_on(begun) == (0, "")
    finally:
        path.write_bytes(whole)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def of_other_recordings(path: Path) -> None:
    """Sound in itself, as of another search."""
    split = load_split(path)
    save_split(replace(split, test=split.folds[0].train), path)


@pytest.mark.parametrize("damage", [a_folder, a_loop, of_other_recordings])
def test_no_sides_at_all(damage: Callable[[Path], None], begun: Path) -> None:
    path = begun / "r" / "old" / "split.json"
    damage(path)
    code, error = go_on(begun)
    assert (code, str(path) in error) == ((0, False) if damage is a_loop else (2, True)), error


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_many_more() -> None:
    """All of the above with many more examples, in a process of its own."""
    import subprocess
    import sys

    env: dict[str, Any] = {**os.environ, "RESP_TUNE_BAD_INPUTS": str(MANY)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    (tried,) = re.findall(r"^\| a bad input \| ([\d,]+) ", done.stdout, re.MULTILINE)
    survived("a bad input", times=int(tried.replace(",", "")))

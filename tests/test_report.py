"""The report page: what it says, what it does with damaged or hostile files; its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.read_only import mounted_read_only
from support.report_folders import FILES, HOSTILE, Page, change, judge, make

from resp_tune import report
from resp_tune.cli import run
from resp_tune.errors import UserError
from resp_tune.reporting.report_html import render
from resp_tune.reporting.search_plots import Chart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "results" / "first")


def test_page_says_what_the_files_say(folder: Path) -> None:
    path = render(folder)
    assert path == folder / "report.html"
    page = Page(path)
    for words in (
        "Test macro-F1 0.450 95 % interval 0.330 to 0.570",
        "Validation macro-F1 0.520",
        "Price of searching +0.070",
        "4 finished, 1 pruned, 1 failed",
        "The whole 95 % interval is above the best baseline without audio (0.310)",
        "Device only 0.250",
        "Device, location, age, sex 0.310",
        "0 patients and 0 sessions occur in more than one split",
        "The test split was evaluated once, after the search",
        "python -m resp_tune.search --name plain",
        f"python -m resp_tune.predict --winner {folder / 'winner'} FILE…",
        "while bash scripts/ui first runs",
        "resp_tune, version 3",
        "torch 2.14.1",
    ):
        assert words in page.words
    assert "Synthetic data." not in page.words
    assert "Leak." not in page.words
    address = f"http://127.0.0.1:5000/#/experiments/1/runs/{'2' * 32}"
    assert ("href", address) in page.attributes
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_page_of_a_search_with_replicates(folder: Path) -> None:
    old = Page(render(folder))
    judge(folder)
    page = Page(render(folder))
    for words in (
        "Test macro-F1 0.450 95 % interval 0.330 to 0.570",
        "Validation macro-F1 0.470 ± 0.010 mean ± sd over 3 fresh seeds",
        "Price of searching +0.100 best validation 0.550 → test 0.450 , one seed on average",
        "The model is better than the device alone, but whether",
        "Device only macro-F1: 0.450 − 0.300 +0.150 [+0.020, +0.280] winner better",
        "Band statistics macro-F1: 0.450 − 0.520 −0.070 [−0.120, −0.020] winner worse",
        "It has learnt less from the sound than a linear model of band statistics",
        "only that of band statistics, a logistic regression, sees averages",
        "trial 4 dropped early 0.390 ± 0.014 0.380 0.550 2",
        "macro-F1 0.520 0.450 0.330 to 0.570 0.440 ± 0.020",
        "By patient from all recordings of a patient 0.420 [0.300, 0.550] 8 7",
        "healthy or sick: AUROC 0.660 on 8 clips of 7 patients",
        "COPD 0.500 0.250 – 5 4",
    ):
        assert words in page.words
    headings = ("Was the choice luck?", "Does it hold in every group?")
    assert [h in page.words for h in headings] == [True, True]
    assert [h in old.words for h in headings] == [False, False]
    assert "band statistics" not in old.words.lower()
    assert "Beside published results" not in page.words


def test_every_access_to_the_test_split_is_listed(folder: Path) -> None:
    first = json.loads((folder / "summary.json").read_text())["test_readings"]
    second = {"time": "2026-02-03T01:02:03Z", "winner_number": 8, "weights_sha256": "0b" * 32}
    change(folder, test_readings=[*first, second])
    page = Page(render(folder))
    assert "the test split was accessed 2 times" in page.words
    assert "2026-01-05T10:11:12Z 2 0a0a0a0a0a0a 2026-02-03T01:02:03Z 8 0b0b0b0b0b0b" in page.words


def test_page_is_alone_and_the_same_again(folder: Path) -> None:
    first = render(folder).read_bytes()
    assert render(folder).read_bytes() == first
    drawn: list[Chart] = []
    for _ in range(2):  # the second time with the figures of the first
        assert render(folder, drawn=drawn).read_bytes() == first
    assert drawn
    page = Page(folder / "report.html")
    loading = ("src", "srcset", "poster", "action", "data")
    assert not [a for a in page.attributes if a[0] in loading]
    assert page.tags["link"] == page.tags["iframe"] == 0
    assert page.tags["script"] == 3
    policy = next(v for n, v in page.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    scripts = next(p for p in policy.split("; ") if p.startswith("script-src"))
    assert scripts.count("'sha256-") == 2
    assert "unsafe" not in scripts
    drawn = json.loads(page.scripts[0])
    assert set(drawn) == {"history", "curves", "losses", "parallel", "slice0"}


def test_banners(folder: Path) -> None:
    data = {"name": "x", "synthetic": True, "recordings": 60, "notes": []}
    change(folder, data=data, leaks={"patients": 9, "sessions": 12})
    page = Page(render(folder))
    assert "Synthetic data." in page.words
    assert "9 patients and 12 sessions occur in more than one split" in page.words


def test_without_a_test_split(folder: Path) -> None:
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    change(folder, winner={**winner, "test": None}, test_readings=[], protocol="recording")
    path = folder / "winner" / "predictions.csv"
    path.write_text("".join(x for x in path.open() if not x.startswith("test")))
    page = Page(render(folder))
    assert "no test split was evaluated" in page.words
    assert "the protocol recording has no test split" in page.words
    assert "No test split was evaluated. The search selected by" in page.words
    assert "Confusions on the validation split" in page.words


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "bytes", "empty", "quote"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    if damage == "missing":
        path.unlink()
    elif damage == "quote":
        path.write_text(path.read_text()[:-20] + '"')
    else:
        path.write_bytes(b"\xff\xfe\x00" if damage == "bytes" else b"")
    page = Page(render(folder))
    assert f"{name} {'is missing' if damage == 'missing' else 'cannot be read'}" in page.words
    assert "Test macro-F1 0.450" in page.words


def test_summary_alone_is_enough(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink()
    (folder / "summary.json").write_text('{"name": "first", "winner": {"test": null}}')
    assert "There are no figures of the search" in Page(render(folder)).words


@pytest.mark.parametrize("value", [None, [], 3, "x", {"macro_f1": [1]}, {"macro_f1": None}])
@pytest.mark.parametrize(
    "key", ["winner", "baselines", "leaks", "mlflow", "seconds", "data", "candidates"]
)
def test_odd_values_in_the_summary(folder: Path, key: str, value: object) -> None:
    change(folder, **{key: value})
    assert Page(render(folder)).tags["main"] == 1


@pytest.mark.parametrize("value", [None, [], 3, "x", {"x": 1}, {"x": {"macro_f1": None}}, [[]]])
def test_odd_values_of_the_test_split(folder: Path, value: object) -> None:
    judge(folder)
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    parts = ("against", "by_seed", "per_class", "by_patient", "by_device", "controlled")
    test = {**winner["test"], **dict.fromkeys(parts, value)}
    change(folder, winner={**winner, "test": test, "replicates": value}, candidates=[value])
    assert "Test macro-F1 0.450" in Page(render(folder)).words


@pytest.mark.parametrize(("content", "words"), [(None, "has no summary.json"), ("{", "cannot be")])
def test_no_summary_no_page(folder: Path, content: str | None, words: str) -> None:
    (folder / "summary.json").unlink()
    if content:
        (folder / "summary.json").write_text(content)
    with pytest.raises(UserError, match=words):
        render(folder)
    assert not (folder / "report.html").exists()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = make(tmp_path / "first", HOSTILE)
    judge(folder, HOSTILE)
    links = {"trials": "javascript:window.broken=1", "view": "http://ok/?x=1", "odd": "http://no/"}
    change(folder, mlflow={"tracking_uri": "javascript:1", "links": links, "experiment_id": "1"})
    page = Page(render(folder))
    assert page.tags["script"] == 3
    assert page.tags["img"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    targets = [value for name, value in page.attributes if name == "href"]
    assert targets == ["http://ok/?x=1"]
    assert "window.broken=1" in page.text
    labels = json.dumps(json.loads(page.scripts[0]))
    assert "<script" not in labels
    assert "&lt;" in labels


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = str(folder.parent)
    assert run(report.main, ["first", "--storage", storage]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    assert (folder / "report.html").exists()


def test_of_read_only_results_the_page_is_written_to_the_current_folder(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with mounted_read_only(folder):
        report.main([folder.name, "--storage", str(folder.parent)])
    assert capsys.readouterr().out.strip() == str(here / f"{folder.name}-report.html")
    assert "</html>" in (here / f"{folder.name}-report.html").read_text()


@pytest.mark.parametrize(
    ("name", "storage", "words"),
    [
        ("frist", "results", "did you mean 'first'?"),
        ("../results/first", "results", "no search"),
        ("winner", "results/first", "there is none yet"),
        ("first", "nowhere", "is not there"),
        ("first", "ftp://bucket", "not the URI of a supported object store"),
    ],
)
def test_command_refuses(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    storage: str,
    words: str,
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert run(report.main, [name, "--storage", storage]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert not (folder / "report.html").exists()

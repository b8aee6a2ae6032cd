"""The report page: what it says, what it does with damaged or hostile files, how it is drawn."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from resp_tune import report
from resp_tune.cli import run
from resp_tune.errors import UserError
from resp_tune.reporting import facts, plots
from resp_tune.reporting.files import read_results
from resp_tune.reporting.page import render

CLASSES = ["COPD", "Healthy", "URTI"]
HOSTILE = '"></script><script>window.broken=1</script><img src=x onerror="window.broken=1">'
FILES = ["trials.csv", "epochs.csv", "winner/predictions.csv", "winner/config.json"]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def figures(value: float) -> dict[str, float]:
    return {"macro_f1": value, "balanced_accuracy": value + 0.01, "accuracy": value + 0.02,
            "log_loss": 1.5 - value}  # fmt: skip


def make(folder: Path, word: str = "plain") -> Path:
    """Six trials of four epochs: 4 finished, 1 pruned, 1 failed; `word` in every kind of text."""
    (folder / "winner").mkdir(parents=True)
    states = ["finished", "pruned", "finished", "failed", "finished", "finished"]
    scores = [0.30, None, 0.52, None, 0.41, 0.35]
    trials = [
        {"number": n, "state": state, "score": "" if score is None else score, "epochs": 4,
         "seconds": 9.5 - n, "seed": n, "mlflow_run_id": f"{n}" * 32, "lr": 10 ** (-4 + n / 3),
         "n_mels": 32 + n, "balance": word if n % 2 else "none"}
        for n, (state, score) in enumerate(zip(states, scores, strict=True))
    ]  # fmt: skip
    write(folder / "trials.csv", trials)
    epochs = [
        {"number": n, "epoch": e, "train_loss": 2 / e, "val_loss": 2.2 / e,
         "val_macro_f1": (scores[n] or 0.2) * e / 4, "lr": 0.01, "seconds": 1.0}
        for n in range(6) for e in range(1, 5)
    ]  # fmt: skip
    write(folder / "epochs.csv", epochs)
    predictions = [
        {"side": side, "recording": f"{word}_{i}", "patient": f"{word}{i // 2}",
         "device": f"{word} device", "label": CLASSES[i % 3], "predicted": CLASSES[i * i % 3],
         **{f"p_{c}": 1 / 3 for c in CLASSES}}
        for side in ("validation", "test") for i in range(14)
    ]  # fmt: skip
    write(folder / "winner" / "predictions.csv", predictions)
    config = {
        "classes": CLASSES,
        "trial_config": {"lr": 0.002, "balance": word},
        "provenance": {"command": f"python -m resp_tune.search --name {word}"},
    }
    (folder / "winner" / "config.json").write_text(json.dumps(config))
    test = {**figures(0.45), "majority_accuracy": 0.36}
    summary = {
        "name": word if word != "plain" else folder.name,
        "task": "diagnosis",
        "protocol": "patient",
        "metric": "macro_f1",
        "data": {"name": word, "synthetic": False, "recordings": 60, "notes": [word]},
        "classes": CLASSES,
        "trials": {"finished": 4, "pruned": 1, "diverged": 0, "failed": 1},
        "winner": {
            "number": 2,
            "params": {"lr": 0.00046, "balance": word},
            "seeds": [2],
            "validation": figures(0.52),
            "test": {**test, "intervals": {"macro_f1": [0.33, 0.57], "log_loss": [0.9, 1.2]}},
        },
        "test_readings": [
            {"time": "2026-01-05T10:11:12Z", "winner_number": 2, "weights_sha256": "0a" * 32}
        ],
        "baselines": {
            "majority_accuracy": 0.36,
            "device": {"balanced_accuracy": 0.30, "macro_f1": 0.25},
            "all": {"balanced_accuracy": 0.35, "macro_f1": 0.31},
        },
        "leaks": {"patients": 0, "sessions": 0},
        "seconds": {"total": 60.0, "training": 50.0, "per_trial_overhead": 1.2},
        "mlflow": {
            "tracking_uri": f"sqlite:////tmp/{word}",
            "experiment_id": "1",
            "parent_run_id": "ab" * 16,
            "model": "resp_tune",
            "version": "3",
            "links": {"trials": "http://127.0.0.1:5000/#/experiments/1/runs?a=b&c=d"},
        },
        "versions": {"torch": "2.14.1"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def change(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Page(HTMLParser):
    """Elements, attributes, and text outside of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += f" {' '.join(data.split())}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


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
        "The whole 95 % interval lies above the best baseline without audio (0.310)",
        "Device only 0.250",
        "Device, place, age, sex only 0.310",
        "0 patients and 0 sessions stand on more than one side",
        "It was read once, after the search",
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


def test_page_is_alone_and_the_same_again(folder: Path) -> None:
    first = render(folder).read_bytes()
    assert render(folder).read_bytes() == first
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
    assert {"history", "curves", "losses", "parallel", "slice0"} <= set(drawn)


def test_banners(folder: Path) -> None:
    data = {"name": "x", "synthetic": True, "recordings": 60, "notes": []}
    change(folder, data=data, leaks={"patients": 9, "sessions": 12})
    page = Page(render(folder))
    assert "Synthetic data." in page.words
    assert "9 patients and 12 sessions stand on more than one side" in page.words


def test_without_a_test_side(folder: Path) -> None:
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    change(folder, winner={**winner, "test": None}, test_readings=[], protocol="recording")
    path = folder / "winner" / "predictions.csv"
    path.write_text("".join(x for x in path.open() if not x.startswith("test")))
    page = Page(render(folder))
    assert "no test side was read" in page.words
    assert "the protocol recording has no test side" in page.words
    assert "There is no reading of a test side" in page.words
    assert "What it takes for what, on the validation side" in page.words


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "bytes", "empty", "quote"])
def test_one_file_less_is_said_and_survived(folder: Path, name: str, damage: str) -> None:
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
@pytest.mark.parametrize("key", ["winner", "baselines", "leaks", "mlflow", "seconds", "data"])
def test_odd_values_in_the_summary(folder: Path, key: str, value: object) -> None:
    change(folder, **{key: value})
    assert Page(render(folder)).tags["main"] == 1


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


def test_confusion_is_sklearns(folder: Path) -> None:
    results = read_results(folder)
    found = facts.confusion(results)
    assert found is not None
    rows = [r for r in results.predictions if r["side"] == "test"]
    truth, answer = [r["label"] for r in rows], [r["predicted"] for r in rows]
    counts = [[count for count, _ in cells] for _, cells in found.rows]
    assert counts == confusion_matrix(truth, answer, labels=CLASSES).tolist()
    scored: dict[str, Any] = {"labels": CLASSES, "average": None, "zero_division": 0}
    assert [c.recall for c in found.per_class] == pytest.approx(
        recall_score(truth, answer, **scored)
    )
    precision = [c.precision or 0.0 for c in found.per_class]
    assert precision == pytest.approx(precision_score(truth, answer, **scored))
    assert sum(c.clips for c in found.per_class) == 14


def test_history_and_the_direction_of_the_metric(folder: Path) -> None:
    results = read_results(folder)
    for metric, best in (("macro_f1", [0.30, 0.52, 0.52, 0.52]), ("log_loss", [0.30] * 4)):
        chart = plots.history(results.trials, results.epochs, metric)
        assert chart is not None
        line, *groups = chart.plot["data"]
        assert line["y"] == best
        assert [g["name"] for g in groups] == ["finished", "pruned", "failed"]
    summary = results.summary
    assert facts.price(summary) == (pytest.approx(0.07), facts.price(summary)[1])  # type: ignore[index]  # known not to be None
    loss = facts.price({**summary, "metric": "log_loss"})
    assert loss is not None
    assert loss[0] == pytest.approx(0.07)  # a larger loss on the test side: flattered as well


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.40, 0.50, "lies above"), (0.10, 0.20, "lies below"), (0.20, 0.40, "cannot be told")],
)
def test_verdict(folder: Path, low: float, high: float, words: str) -> None:
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    winner["test"]["intervals"]["macro_f1"] = [low, high]
    change(folder, winner=winner)
    assert words in facts.verdict(read_results(folder).summary)


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = str(folder.parent)
    assert run(report.main, ["first", "--storage", storage]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "storage", "words"),
    [
        ("frist", "results", "did you mean 'first'?"),
        ("../results/first", "results", "no search"),
        ("winner", "results/first", "there is none yet"),
        ("first", "nowhere", "is not there"),
        ("first", "s3://bucket", "only folders"),
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


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium and chromedriver are not installed")
    options = Options()
    options.binary_location = binary
    for flag in (
        "headless=new no-sandbox disable-gpu no-first-run disable-sync disable-dev-shm-usage "
        f"disable-background-networking disable-component-update user-data-dir={tmp_path / 'p'}"
    ).split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(tmp_path: Path, browser: webdriver.Chrome, width: int) -> None:
    path = render(make(tmp_path / "first", HOSTILE))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    drawn = "return document.querySelectorAll('.plot .main-svg').length"
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn) > 0)
    assert browser.execute_script("return window.broken") is None
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    too_wide = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => "
        "p.querySelector('.main-svg').getBoundingClientRect().width > p.clientWidth + 1).length"
    )
    assert too_wide == 0
    assert browser.execute_script("return document.querySelectorAll('.plot a[*|href]').length") == 0

    header = browser.find_element(By.XPATH, "//th[button='score']")
    for order, scores in (("ascending", [0.3, 0.35, 0.41, 0.52]), ("descending", [0.52, 0.41])):
        browser.execute_script("arguments[0].click()", header.find_element(By.TAG_NAME, "button"))
        assert header.get_attribute("aria-sort") == order
        cells = browser.execute_script(
            "return [...document.querySelectorAll('#trials ~ .card tbody tr')]"
            ".map(row => row.cells[2].dataset.key)"
        )
        assert [float(c) for c in cells[: len(scores)]] == scores
        assert cells[-2:] == ["", ""]  # what has no score stands last both ways
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]

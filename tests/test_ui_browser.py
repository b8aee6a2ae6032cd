"""The command `ui`, and the pages behind its links in a real browser."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from resp_tune.tracking.runs import SearchRuns

ROOT = Path(__file__).parents[1]
# (end, score): best first is 4, 1, 0, 2, 5, and 3 without a score last
ENDS = [("finished", 0.5), ("finished", 0.6), ("pruned", 0.4), ("diverged", None)]
ENDS += [("finished", 0.7), ("finished", 0.3)]
BEST_FIRST = [4, 1, 0, 2, 5, 3]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@dataclass(frozen=True)
class Store:
    folder: Path
    ids: dict[int, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder, draw = tmp_path_factory.mktemp("results"), random.Random(0)  # noqa: S311
    runs = SearchRuns(
        f"sqlite:///{folder}/mlflow.db",
        folder,
        "first",
        metric="macro_f1",
        mode="max",
        params={"trials": 6},
        tags={},
        study_id="a1",
        columns=["lr", "dropout", "n_mels"],
    )
    for number, (state, score) in enumerate(ENDS):
        searched = {"lr": 10 ** draw.uniform(-4, -2), "dropout": draw.random() / 2}
        searched["n_mels"] = draw.choice([32, 48, 64])
        runs.start_trial(number, params={**searched, "hop_length": 64}, seed=number)
        top = score or 0.2
        for e in range(1, 9):
            value = top * (1 - math.exp(-e / 2)) / (1 - math.exp(-4))
            losses = {"train_loss": 2 - value, "val_loss": 2.1 - value}
            runs.log_epochs(number, [{"epoch": e, **losses, "val_macro_f1": value}])
        runs.end_trial(number, state, score=score, seconds=2.0)  # type: ignore[arg-type]  # a literal
    runs.best(0.7, 4)
    ids = runs.run_ids()
    runs.close("FINISHED")
    return Store(folder, ids)


def ui(arguments: Sequence[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.Popen(
        [sys.executable, "-m", "resp_tune.ui", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(arguments: Sequence[str]) -> str:
    process = ui(arguments)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, ""), errors
    assert errors.count("\n") == 1, errors
    return errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_wrong_input_is_refused(store: Store, tmp_path: Path) -> None:
    assert "run a search first" in refused(["--storage", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    assert "did you mean 'first'" in refused(["frist", "--storage", str(store.folder)])
    assert "not a port" in refused(["--port", "70000"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "is taken" in refused(["--port", port, "--storage", str(store.folder)])
    address = f"http://127.0.0.1:{free_port()}"
    assert "Connection refused" in refused(["--tracking-uri", address])


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    links: dict[str, str]


@pytest.fixture(scope="module")
def served(store: Store) -> Iterator[Served]:
    process = ui(["first", "--storage", str(store.folder), "--port", str(free_port())])
    try:
        assert process.stdout is not None
        lines = list[str]()
        while not lines or "compare-runs" not in lines[-1]:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            lines.append(line.strip())
        assert lines[0] == "first: finished, best macro_f1 0.7000"
        texts = [line.removesuffix(":") for line in lines[1::2]]
        yield Served(process, dict(zip(texts, lines[2::2], strict=True)))
    finally:
        process.kill()
        process.communicate()


def server_processes(port: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked
        if port in words and any("mlflow" in word for word in words):
            found.append(folder.name)
    return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("Chromium and chromedriver are not installed")
    options = Options()
    options.binary_location = BROWSER
    for flag in (
        "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-sync "
        "disable-background-networking disable-component-update disable-dev-shm-usage "
        f"window-size=1700,1100 user-data-dir={tmp_path / 'profile'}"
    ).split():
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def text_of(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.body.innerText"))  # type: ignore[no-untyped-call]  # selenium's


def wait_for(browser: webdriver.Chrome, seen: Callable[[str], bool], what: str) -> str:
    WebDriverWait(browser, 60).until(lambda driver: seen(text_of(driver)), what)
    if folder := os.environ.get("RESP_TUNE_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{re.sub('[^a-z]+', '-', what)}.png")
    return text_of(browser)


def trials_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^trial-(\d+)$", text, re.MULTILINE)]


@pytest.mark.browser
def test_trials_stand_best_first(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links["trials, best first"])
    wait_for(browser, lambda text: trials_in(text) == BEST_FIRST, "trials best first")


@pytest.mark.browser
def test_the_view_has_columns(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links["trials, best first, with columns"])
    text = wait_for(
        browser,
        lambda text: trials_in(text) == BEST_FIRST and "pruned" in text,
        "view with columns",
    )
    heads = ["resp_tune.state", "macro_f1", "val_macro_f1", "lr", "dropout", "n_mels"]
    positions = [re.search(rf"^{re.escape(head)}$", text, re.MULTILINE) for head in heads]
    assert all(positions), text
    starts = [found.start() for found in positions if found]
    assert starts == sorted(starts), "the columns' order"
    assert "diverged" in text


@pytest.mark.browser
def test_runs_stand_below_their_search(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links["the search and what it tried"])
    text = wait_for(browser, lambda text: bool(re.search(r"^first$", text, re.M)), "the search")
    assert trials_in(text) == []
    expand = "button[data-testid*='expander'], .mlflow-ui-expander, [data-testid='expander-icon']"
    WebDriverWait(browser, 30).until(lambda d: d.find_elements(By.CSS_SELECTOR, expand))
    browser.find_elements(By.CSS_SELECTOR, expand)[0].click()
    wait_for(browser, lambda text: sorted(trials_in(text)) == list(range(6)), "nested below it")


@pytest.mark.browser
def test_the_best_are_compared(served: Served, browser: webdriver.Chrome) -> None:
    link = served.links["the best compared"]
    browser.get(link)
    text = wait_for(
        browser,
        lambda text: "Parallel Coordinates Plot" in text and "Run details" in text,
        "compared",
    )
    assert "Comparing 4 Runs" in text
    WebDriverWait(browser, 60).until(
        lambda d: len(d.find_elements(By.CSS_SELECTOR, ".parcoords g.y-axis")) >= 3,
        "parallel coordinates with an axis for each parameter",
    )
    axes = [a.text for a in browser.find_elements(By.CSS_SELECTOR, ".parcoords .axis-title")]
    assert "val_macro_f1" in axes, axes
    assert {"lr", "dropout"} <= set(axes)


@pytest.mark.browser
def test_curves_of_the_metrics(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links["curves"])
    wait_for(browser, lambda text: "Model metrics" in text and "val_loss" in text, "curves")
    WebDriverWait(browser, 60).until(
        lambda d: (
            len(d.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer .trace")) >= 6
        ),
        "a curve for each trial",
    )
    run = served.links["trials, best first"].split("/runs?")[0]
    browser.get("about:blank")
    browser.get(f"{run}/runs/{best_id(served)}/model-metrics?workflowType=machine_learning")
    WebDriverWait(browser, 60).until(
        lambda d: (
            len(d.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer .trace")) >= 3
        ),
        "curves of one trial",
    )
    wait_for(browser, lambda text: "val_macro_f1" in text, "one trial")


def best_id(served: Served) -> str:
    found = re.search(r"[0-9a-f]{32}", served.links["the best compared"])
    assert found is not None
    return found[0]


def test_ctrl_c_ends_the_server_as_well(served: Served) -> None:
    """Last in this file: it ends what the others look at."""
    port = re.search(r":(\d+)/", served.links["curves"])
    assert port is not None
    assert server_processes(port[1])
    served.process.send_signal(signal.SIGINT)
    _, errors = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, errors
    assert "Traceback" not in errors
    assert server_processes(port[1]) == []

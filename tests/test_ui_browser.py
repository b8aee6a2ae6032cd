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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from support.mlflow_stores import with_mlflow_store
from support.searches import command

from resp_tune.common.choices import LINK_TEXTS
from resp_tune.common.trial_key import TrialKey
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef

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
    ids: dict[TrialKey, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder, draw = tmp_path_factory.mktemp("results"), random.Random(0)  # noqa: S311  # no secret
    runs = SearchRuns(
        f"sqlite:///{with_mlflow_store(folder)}/mlflow.db",
        folder,
        SearchRef("first", "macro_f1", "max", "a1"),
        params={"trials": 6},
        columns=["lr", "dropout", "n_mels"],
    )
    for number, (state, score) in enumerate(ENDS):
        searched = {"lr": 10 ** draw.uniform(-4, -2), "dropout": draw.random() / 2}
        searched["n_mels"] = draw.choice([32, 48, 64])
        runs.trials.start_trial(
            TrialKey(number), params={**searched, "hop_length": 64}, seed=number
        )
        top = score or 0.2
        for e in range(1, 9):
            value = top * (1 - math.exp(-e / 2)) / (1 - math.exp(-4))
            losses = {"train_loss": 2 - value, "val_loss": 2.1 - value}
            runs.trials.log_epochs(
                TrialKey(number), [{"epoch": e, **losses, "val_macro_f1": value}]
            )
        runs.trials.end_trial(TrialKey(number), state, score=score, seconds=2.0)  # type: ignore[arg-type]  # a literal
    runs.log_best(0.7, 4)
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
    outcome = command("ui", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    return outcome.err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_wrong_input_is_refused(store: Store, tmp_path: Path) -> None:
    assert "run a search first" in refused(["--storage", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    assert "did you mean 'first'" in refused(["frist", "--storage", str(store.folder)])
    assert "whole number from 1 to 65535" in refused(["--port", "70000"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "is in use" in refused(["--port", port, "--storage", str(store.folder)])
    address = f"http://127.0.0.1:{free_port()}"
    assert "Connection refused" in refused(["--tracking-uri", address])


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    links: dict[str, str]


@contextmanager
def serving(store: Store) -> Iterator[Served]:
    """Run the command `ui` until the end of the block, if it runs as long."""
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
        process.terminate()  # not killed: it ends the server with it
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def served(store: Store) -> Iterator[Served]:
    with serving(store) as found:
        yield found


def test_the_store_is_not_in_the_list_of_processes(served: Served, store: Store) -> None:
    """Its URI may hold a password; and what serves it listens on loopback alone."""
    below = psutil.Process(served.process.pid).children(recursive=True)
    shown = [" ".join(process.cmdline()) for process in below]
    assert any("mlflow" in line for line in shown)
    assert not [line for line in shown if "mlflow.db" in line or "sqlite:" in line]
    heard = {
        connection.laddr.ip
        for process in below
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert heard == {"127.0.0.1"}


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
    return str(browser.execute_script("return document.body.innerText"))


def wait_for(browser: webdriver.Chrome, seen: Callable[[str], bool], what: str) -> str:
    WebDriverWait(browser, 60).until(lambda driver: seen(text_of(driver)), what)
    keep(browser, what)
    return text_of(browser)


def wait_for_elements(browser: webdriver.Chrome, css: str, count: int, what: str) -> None:
    WebDriverWait(browser, 60).until(
        lambda driver: len(driver.find_elements(By.CSS_SELECTOR, css)) >= count, what
    )
    keep(browser, what)


def keep(browser: webdriver.Chrome, what: str) -> None:
    """For a person to look at: RESP_TUNE_SCREENSHOTS names the folder."""
    if folder := os.environ.get("RESP_TUNE_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{what.replace(' ', '-')}.png")


def trials_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^trial-(\d+)$", text, re.MULTILINE)]


@pytest.mark.browser
def test_trials_stand_best_first(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links[LINK_TEXTS["trials"]])
    wait_for(browser, lambda text: trials_in(text) == BEST_FIRST, "trials best first")


@pytest.mark.browser
def test_the_view_has_columns(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links[LINK_TEXTS["view"]])
    shown = "diverged"  # in the column of the states
    text = wait_for(
        browser, lambda text: trials_in(text) == BEST_FIRST and shown in text, "saved view"
    )
    assert "pruned" in text
    columns = ["tags.`resp_tune.state`", "metrics.`macro_f1`", "metrics.`val_macro_f1`"]
    columns += [f"params.`{name}`" for name in ("lr", "dropout", "n_mels")]

    def stand_in_order(driver: webdriver.Chrome) -> bool:
        heads = [
            driver.find_element(By.CSS_SELECTOR, f'.ag-header-cell[col-id="{name}"]')
            for name in columns
        ]
        lefts = [head.rect["x"] for head in heads]
        return lefts == sorted(lefts)

    WebDriverWait(browser, 30).until(stand_in_order, "the columns' order")


@pytest.mark.browser
def test_runs_stand_below_their_search(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links[LINK_TEXTS["search"]])
    text = wait_for(browser, lambda text: "\nfirst\n" in text, "the search alone")
    assert trials_in(text) == []
    browser.find_element(By.CSS_SELECTOR, ".ag-row [col-id*='Run Name'] button").click()
    wait_for(browser, lambda text: sorted(trials_in(text)) == list(range(6)), "nested below it")


@pytest.mark.thorough
@pytest.mark.browser
def test_the_best_are_compared(served: Served, browser: webdriver.Chrome) -> None:
    browser.get(served.links[LINK_TEXTS["compare"]])
    text = wait_for(browser, lambda text: "Run details" in text, "best compared")
    assert "Comparing 4 Runs" in text
    wait_for_elements(browser, ".js-plotly-plot .parcoords g.y-axis", 4, "parallel coordinates")
    titles = browser.find_elements(By.CSS_SELECTOR, ".parcoords .axis-title")
    assert {title.text for title in titles} == {"dropout", "lr", "n_mels", "val_macro_f1"}


@pytest.mark.thorough
@pytest.mark.browser
def test_curves_of_the_metrics(served: Served, browser: webdriver.Chrome, store: Store) -> None:
    browser.get(served.links[LINK_TEXTS["charts"]])
    wait_for_elements(browser, ".js-plotly-plot .scatterlayer .trace", 6, "curves of all trials")
    assert "val_loss" in text_of(browser)
    experiment = served.links[LINK_TEXTS["charts"]].split("/runs?")[0]
    query = "model-metrics?workflowType=machine_learning"
    browser.get("about:blank")
    browser.get(f"{experiment}/runs/{store.ids[TrialKey(4)]}/{query}")
    wait_for_elements(browser, ".js-plotly-plot .scatterlayer .trace", 3, "curves of one trial")
    assert "val_macro_f1" in text_of(browser)


def test_ctrl_c_ends_the_server_as_well(store: Store) -> None:
    with serving(store) as served:
        port = re.search(r":(\d+)/", served.links[LINK_TEXTS["charts"]])
        assert port is not None
        assert server_processes(port[1])
        served.process.send_signal(signal.SIGINT)
        _, errors = served.process.communicate(timeout=60)
        assert served.process.returncode == 0, errors
        assert "Traceback" not in errors
        assert server_processes(port[1]) == []

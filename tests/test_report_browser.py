"""The report page in a real browser, narrow and wide, with hostile text in every place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from support.report_folders import HOSTILE, judge, make

from resp_tune.reporting.report_html import render


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
@pytest.mark.parametrize("width", [400, 700, 1280])
def test_in_a_browser(tmp_path: Path, browser: webdriver.Chrome, width: int) -> None:
    folder = make(tmp_path / "first", HOSTILE)
    judge(folder, HOSTILE)
    path = render(folder)
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

    marks = browser.execute_script(
        "return [...document.querySelectorAll('.strip > .mark, .strip > u')].map(m => {"
        "const own = m.getBoundingClientRect(), strip = m.parentElement.getBoundingClientRect();"
        "const card = m.closest('.card').getBoundingClientRect();"
        "const at = Number(m.style.getPropertyValue(m.matches('u') ? '--low' : '--at'));"
        "const left = m.matches('u') ? own.left : own.left + own.width / 2;"
        "return [left - strip.left, at * strip.width, own.left - card.left, card.right - own.right,"
        " strip.width]})"
    )
    assert len(marks) > 20
    for left, meant, *inside, room in marks:
        assert left == pytest.approx(meant, abs=1.6)  # pixels
        assert min(inside) >= 0
        assert room >= 140

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

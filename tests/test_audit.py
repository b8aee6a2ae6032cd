"""The command `evaluate`: the audit of a data set, printed, as JSON and as a page."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from support.audits import few_trees, in_memory, make_sets
from support.searches import command, files_below
from support.small_sets import imagined, real_set, write_set

from resp_tune import evaluate
from resp_tune.audit.counts import AGE_GROUPS, age_group, counts, tables
from resp_tune.audit.leaks import defects, protocol_leaks
from resp_tune.audit.shortcuts import age_shortcut, device_shortcut
from resp_tune.cli import run
from resp_tune.data.dataset import load_dataset
from resp_tune.data.synthetic.settings import SynthSettings

PROMISED = {"counts", "defects", "leaks", "patient_lookup", "baselines", "warnings"}
BUILT_IN_TASKS = {"diagnosis", "diagnosis-8", "healthy-sick", "chronic", "copd", "cycles"}
EVIL = "<script>alert('x')</script>"
# majority accuracy, then balanced accuracy and macro-F1 of device only and of the whole sheet
TABLE = {
    "diagnosis-8": (0.862, 0.256, 0.232, 0.417, 0.367),
    "diagnosis": (0.865, 0.477, 0.363, 0.595, 0.505),
    "chronic": (0.880, 0.652, 0.473, 0.627, 0.634),
    "healthy-sick": (0.962, 0.948, 0.689, 0.890, 0.772),
    "copd": (0.862, 0.836, 0.836, 0.823, 0.867),
}


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    with few_trees():
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sets(tmp_path_factory.mktemp("sets"))


# The command


@pytest.fixture(scope="module")
def audited(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "a" / "b"
    assert run(evaluate.main, ["--data", str(sets["icbhi"]), "--out", str(out), "--json"]) == 0
    return out


def test_the_promised_object(
    sets: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(evaluate.main, ["--data", str(sets["none"]), "--json", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert json.loads((tmp_path / "audit.json").read_text()) == found
    assert files_below(tmp_path) == {"audit.json", "audit.html"}
    assert found.keys() >= PROMISED
    assert "model" not in found
    stems = [p.stem for p in sets["none"].rglob("*.wav")]
    cycles = [line for p in sets["none"].rglob("*_*_*_*_*.txt") for line in p.open() if line.strip()
              and p.stem in stems]  # fmt: skip
    assert (
        found["counts"].items()
        >= {
            "recordings": len(stems),
            "patients": len({s.split("_")[0] for s in stems}),
            "sessions": len({tuple(s.split("_")[:2]) for s in stems}),
            "cycles": len(cycles),
        }.items()
    )
    assert found["leaks"].keys() == {"patient", "official", "recording", "device"}
    for leaks in found["leaks"].values():
        assert leaks.keys() >= {"patients", "sessions"}
    assert found["leaks"]["recording"]["patients"] > 0
    assert found["leaks"]["patient"]["patients"] == found["leaks"]["device"]["patients"] == 0
    assert found["patient_lookup"].keys() >= {"accuracy", "macro_f1", "balanced_accuracy"}
    assert found["baselines"].keys() == BUILT_IN_TASKS
    for scores in found["baselines"].values():
        for baseline in ("device", "all", "audio_linear"):
            assert scores[baseline].keys() == {"balanced_accuracy", "macro_f1"}
        assert 0 < scores["majority_accuracy"] < 1
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("*demographic_info.txt", "sees device and location alone"),
        ("*train_test.txt", "--protocol official is not possible"),
        ("audio_and_txt_files/*.txt", "--task cycles is not possible"),
    ],
)
def test_a_table_that_is_not_there_is_a_defect(
    sets: dict[str, Path], tmp_path: Path, lost: str, said: str
) -> None:
    folder = Path(shutil.copytree(sets["none"], tmp_path / "set"))
    assert said not in "\n".join(defects(load_dataset(folder)))
    files = list(folder.rglob(lost))
    assert files
    for path in files:
        path.unlink()
    assert said in "\n".join(defects(load_dataset(folder)))


def test_the_confounded_set_is_warned_of(audited: Path) -> None:
    warnings = json.loads((audited / "audit.json").read_text())["warnings"]
    assert len(warnings) == 2
    assert all(w.startswith("shortcut: ") for w in warnings)
    assert "device" in warnings[0]
    assert "age" in warnings[1]
    page = (audited / "audit.html").read_text()
    assert page.count('class="banner"') == 3  # and the one that says it is synthetic


def test_the_report_for_people(sets: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(evaluate.main, ["--data", str(sets["icbhi"])]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^icbhi: 90 SYNTHETIC recordings of 30 patients", printed.out)
    for words in (
        "Defects",
        "Diagnosis × device",
        "Leaks",
        "Baselines",
        "bands F1",
        "healthy-sick",
    ):
        assert words in printed.out
    assert "shortcut: the device" in printed.out
    assert "baselines: copd" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "{here}/absent"], "absent"),
        (["--data", "{here}"], "no recordings in"),
        (["--data", "{here}", "--outt", "x"], "did you mean '--out'"),
        (["--data", "{set}", "--out", "{here}/file"], "is a file, not a folder"),
        (["--data", "{set}", "--out", "{here}/file/below"], "is a file, not a folder"),
        (["--data", "{set}", "--winner", "{here}"], "is not a bundle"),
        (["--compare", "{here}", "{here}"], "no predictions.csv there"),
        (["--compare", "{here}"], "expected 2 arguments"),
        (["--compare", "{here}", "{here}", "--data", "{set}"], "needs no --data"),
        (["--compare", "{here}", "{here}", "--winner", "{here}"], "needs no --winner"),
        (["--data", "{set}", "--tracking-uri", "sqlite:///x.db"], "give both"),
        (["--data", "{set}", "--winner", "models:/resp_tune@champion",
          "--tracking-uri", "sqlite:///{here}/none.db"], "none.db"),
    ],
)  # fmt: skip
def test_wrong_input(
    arguments: list[str],
    words: str,
    sets: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    filled = [a.format(here=tmp_path, set=sets["none"]) for a in arguments]
    assert run(evaluate.main, filled) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1
    assert files_below(tmp_path) == {"file"}


def test_a_folder_that_may_not_be_written(tmp_path: Path, sets: dict[str, Path]) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert run(evaluate.main, ["--data", str(sets["none"]), "--out", f"{tmp_path}/closed/x"]) == 2


def test_a_set_that_can_hardly_be_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two patients of one diagnosis: nearly everything is a reason instead of a figure."""
    diagnoses = {f"{n}_1b1_Al_sc_Meditron": "COPD" for n in (101, 102)}
    write_set(tmp_path / "set", diagnoses)
    out = tmp_path / "out"
    assert run(evaluate.main, ["--data", f"{tmp_path}/set", "--json", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["leaks"]["patient"]["patients"] is None
    assert "fewer than two classes" in found["leaks"]["patient"]["reason"]
    assert "no official split" in found["leaks"]["official"]["reason"]
    assert found["patient_lookup"]["accuracy"] is None
    for baseline in ("device", "all", "audio_linear"):
        assert found["baselines"]["copd"][baseline] is None
    assert found["shortcuts"] == {"device": None, "age": None}
    assert found["warnings"] == []
    assert "fewer than two classes" in (out / "audit.html").read_text()
    assert run(evaluate.main, ["--data", f"{tmp_path}/set"]) == 0
    assert "fewer than two classes" in capsys.readouterr().out


# Counts, leaks, defects


def test_age_groups_end_where_the_next_begins() -> None:
    one = imagined([("101_1b1_Al_sc_Meditron", "COPD")]).recordings[0]
    for (least, name), (_, before) in zip(AGE_GROUPS[1:], AGE_GROUPS, strict=False):
        assert age_group(dataclasses.replace(one, age=least)) == name
        assert age_group(dataclasses.replace(one, age=least - 0.01)) == before
    assert age_group(dataclasses.replace(one, age=0.0)) == "under 3"
    assert age_group(dataclasses.replace(one, age=None)) == "unknown"


def test_tables_add_up() -> None:
    dataset = in_memory(SynthSettings(120, 1.0, 0))
    frame = dataset.table()
    found = tables(dataset)["diagnosis_by_device"]
    for diagnosis, cells in found.items():
        for device, cell in cells.items():
            own = frame[(frame["diagnosis"] == diagnosis) & (frame["device"] == device)]
            assert cell == {"recordings": len(own), "patients": own["patient"].nunique()}
    assert sum(c["recordings"] for cells in found.values() for c in cells.values()) == 120


def test_the_real_set_is_counted() -> None:
    dataset = load_dataset(real_set())
    found = counts(dataset)
    amounts = {"recordings": 920, "patients": 126, "sessions": 256, "cycles": 6898}
    assert found.items() >= amounts.items()
    assert found["cycles_by_class"] == {"normal": 3642, "crackle": 1864, "wheeze": 886, "both": 506}
    assert found["official"]["train"]["cycles"] == 4142
    assert found["official"]["test"]["cycles"] == 2756
    by_device = tables(dataset)["diagnosis_by_device"]
    assert by_device["COPD"]["AKGC417L"]["recordings"] == 646
    assert by_device["Pneumonia"].keys() == {"LittC2SE", "Meditron"}
    text = "\n".join(defects(dataset))
    for words in ("156, 218", "226_1b1_Pl_sc_Meditron", "Asthma (1 patient), LRTI (2 patients)",
                  "official test split has no Asthma, LRTI, Pneumonia", "at once"):  # fmt: skip
        assert words in text


def test_the_real_set_leaks_and_has_shortcuts() -> None:
    dataset = load_dataset(real_set())
    leaks = protocol_leaks(dataset)
    assert (leaks["official"]["patients"], leaks["official"]["sessions"]) == (2, 5)
    assert leaks["official"]["without_shared_patients"]["patients"] == 0
    assert leaks["patient"]["recording_share"] == 0
    assert leaks["recording"]["recording_share"] == pytest.approx(0.948, abs=0.02)
    held_out = leaks["device"]["held_out"]
    assert held_out["Meditron"]["classes"] == ["COPD", "Pneumonia"]
    assert "fewer than two classes" in held_out["AKGC417L"]["reason"]
    device, age = device_shortcut(dataset), age_shortcut(dataset)
    assert device is not None
    assert device["found"]
    assert age is not None
    assert age["found"]
    assert age["value"] == 1


@pytest.mark.thorough
def test_the_whole_audit_of_the_real_set(tmp_path: Path) -> None:
    done = command("evaluate", "--data", str(real_set()), "--json", "--out", str(tmp_path))
    assert done.code == 0
    found = json.loads(done.out)
    for task, row in TABLE.items():
        scores = found["baselines"][task]
        cells = [scores[c][m] for c in ("device", "all") for m in ("balanced_accuracy", "macro_f1")]
        np.testing.assert_allclose([scores["majority_accuracy"], *cells], row, atol=0.02)
    lookup = found["patient_lookup"]
    assert lookup["accuracy"] == pytest.approx(0.957, abs=0.015)
    assert lookup["macro_f1"] == pytest.approx(0.77, abs=0.02)
    assert lookup["balanced_accuracy"] == pytest.approx(0.72, abs=0.02)
    controlled = found["controlled"]
    assert controlled["healthy"] == {"recordings": 35, "patients": 26}
    assert controlled["sick"] == {"recordings": 40, "patients": 23}
    all_columns = controlled["baselines"]["all"]
    assert all_columns["balanced_accuracy"] == pytest.approx(0.655, abs=0.02)
    said = (
        "shortcut: the device alone predicts the diagnosis well",
        "shortcut: age alone separates COPD from Healthy",
        "shortcut: the last 2 of ",  # mel bands
        "shortcut: the length alone predicts the diagnosis",
    )
    assert len(found["warnings"]) == len(said), found["warnings"]
    for warning, beginning in zip(found["warnings"], said, strict=True):
        assert warning.startswith(beginning)


# The page


class _Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


def test_text_from_files_is_text(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A diagnosis, a broken annotation and a folder whose names would like to be markup."""
    evil = shutil.copytree(sets["none"], tmp_path / "[red]<img src=x onerror=alert(1)>")
    table = next(evil.rglob("patient_diagnosis.csv"))
    table.write_text(table.read_text().replace("URTI", EVIL))
    annotation = next(evil.rglob("*_*_*_*_*.txt"))
    annotation.write_text("<b onclick=alert(1)>\x1b[31m\t1\t0\t0\n")
    assert run(evaluate.main, ["--data", str(evil), "--out", f"{tmp_path}/out"]) == 0
    printed = capsys.readouterr()
    assert "[red]<img src=x onerror=alert(1)>" in printed.out
    assert EVIL in printed.out
    assert "\x1b" not in printed.out
    page = _parsed((tmp_path / "out" / "audit.html").read_text())
    assert EVIL in page.text
    assert "<img src=x" in page.text
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "iframe"})
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]


def test_the_page_needs_nothing_else(audited: Path) -> None:
    text = (audited / "audit.html").read_text()
    page = _parsed(text)
    assert not [a for _, a in page.elements if "src" in a or "href" in a]
    assert "url(" not in text
    assert "@import" not in text
    policies = [a["content"] for _, a in page.elements if "http-equiv" in a]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits(audited: Path, width: int) -> None:
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        pytest.skip("no Chromium with its driver on this machine")
    options = Options()
    options.binary_location = chrome
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((audited / "audit.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert "Audit of icbhi" in browser.title
        assert not browser.get_log("browser")
    finally:
        browser.quit()

"""The command `evaluate`: the audit of a data set, and of a model on its test side."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from searches import command, files_below
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from small_sets import imagined, real_set, write_set

from resp_tune import evaluate, train
from resp_tune.auditing import shortcuts
from resp_tune.auditing.counts import AGE_GROUPS, age_group, counts, tables
from resp_tune.auditing.leaks import defects, protocol_leaks
from resp_tune.auditing.model import audit_model, sides_of
from resp_tune.auditing.page import draw
from resp_tune.auditing.shortcuts import age_shortcut, device_shortcut
from resp_tune.auditing.show import show
from resp_tune.cli import run
from resp_tune.data import baselines
from resp_tune.data.audio import load_waveform
from resp_tune.data.recordings import Dataset, Recording, load_dataset
from resp_tune.data.splits import make_sides
from resp_tune.data.synthesis.cohort import make_cohort
from resp_tune.data.synthesis.settings import SynthSettings
from resp_tune.data.synthetic import make_synthetic
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.learning.bundle import load_bundle

PROMISED = {"counts", "defects", "leaks", "patient_lookup", "baselines", "warnings"}
RECORDING_TASKS = {"diagnosis", "diagnosis-8", "healthy-sick", "chronic", "copd"}
EVIL = "<script>alert('x')</script>"
TINY = {"clip_seconds": 1.0, "n_mels": 16, "width": 4, "epochs": 1, "batch_size": 16}
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
    """Forests of two trees in this process: what they score is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_TREES", 2)
        patch.setattr(baselines, "cpu_count", lambda: 1)
        patch.setattr(shortcuts, "PERMUTATIONS", 3000)
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real files: one set whose devices tell the diagnosis, one whose devices do not."""
    folder = tmp_path_factory.mktemp("sets")
    for confound in ("icbhi", "none"):
        make_synthetic(folder / confound, SynthSettings(90, 1.0, 3, confound))  # type: ignore[arg-type]  # a literal
    return {confound: folder / confound for confound in ("icbhi", "none")}


@pytest.fixture(scope="module")
def bundle(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train.main(
        ["--config", f"{folder}/tiny.yaml", "--data", f"{sets['none']}", "--threads", "1",
         "--out", f"{folder}/winner"]
    )  # fmt: skip
    return folder / "winner"


def in_memory(settings: SynthSettings) -> Dataset:
    """A synthetic set without its sounds."""
    recordings = []
    for plan in make_cohort(settings):
        who = plan.patient
        session = f"{who.number}_{plan.session_name}"
        recordings.append(
            Recording(
                stem=plan.stem,
                path=Path("nowhere"),
                patient=str(who.number),
                session=session,
                location=plan.location,
                mode=plan.mode,
                device=plan.device,
                diagnosis=who.diagnosis,
                age=who.age if who.known else None,
                sex=who.sex,
                official=None,
                sample_rate=4000,
                channels=1,
                samples=4000,
                cycles=(),
            )
        )
    return Dataset(Path("nowhere"), tuple(recordings), (), True)


def of_devices(rows: Sequence[tuple[str, str]]) -> Dataset:
    """One recording a patient: (diagnosis, device)."""
    return imagined([(f"{100 + n}_1b1_Al_sc_{d}", name) for n, (name, d) in enumerate(rows)])


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
    assert found["baselines"].keys() == RECORDING_TASKS
    for scores in found["baselines"].values():
        for columns in ("device", "all"):
            assert scores[columns].keys() == {"balanced_accuracy", "macro_f1"}
        assert 0 < scores["majority_accuracy"] < 1
    assert found["warnings"] == []


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
    for words in ("Defects", "Diagnosis × device", "Leaks", "Without any audio", "healthy-sick"):
        assert words in printed.out
    assert "shortcut: the device" in printed.out
    assert "no-audio baselines: copd" in printed.err
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
    assert found["baselines"]["copd"]["device"] is None
    assert found["shortcuts"] == {"device": None, "age": None}
    assert found["warnings"] == []
    assert "fewer than two classes" in (out / "audit.html").read_text()
    assert run(evaluate.main, ["--data", f"{tmp_path}/set"]) == 0
    assert "fewer than two classes" in capsys.readouterr().out


# Shortcuts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("recordings", "prevalence"), [(36, "balanced"), (150, "icbhi")])
def test_shortcuts_of_synthetic_sets(seed: int, recordings: int, prevalence: Any) -> None:
    for confound in ("icbhi", "none"):
        dataset = in_memory(SynthSettings(recordings, 1.0, seed, confound, prevalence))
        found = device_shortcut(dataset), age_shortcut(dataset)
        assert [s is not None and s.found for s in found] == [confound == "icbhi"] * 2
        assert [s is not None and s.warning is not None for s in found] == [confound == "icbhi"] * 2


def test_the_best_guess_by_device() -> None:
    """Four in five COPD patients on one device, all Healthy on another: (0.8 + 0.2 + 1) / 2."""
    rows = [("COPD", "Litt3200")] * 16 + [("COPD", "AKGC417L")] * 4 + [("Healthy", "Meditron")] * 20
    found = device_shortcut(of_devices(rows))
    assert found is not None
    assert found.value == pytest.approx(1.0)
    assert found.found
    assert found.patients == 40
    mixed = [(name, d) for name in ("COPD", "Healthy") for d in ("Litt3200", "Meditron") * 5]
    even = device_shortcut(of_devices(mixed))
    assert even is not None
    assert even.value == pytest.approx(0.5)
    assert even.p_value == 1
    assert not even.found


def test_a_device_shortcut_against_a_plain_loop() -> None:
    dataset = in_memory(SynthSettings(120, 1.0, 7))
    found = device_shortcut(dataset)
    assert found is not None
    used: dict[str, list[str]] = {}
    diagnosis = {r.patient: r.diagnosis for r in dataset.recordings}
    for r in dataset.recordings:
        used.setdefault(r.patient, []).append(r.device)
    low, high = 0.0, 0.0
    for device in {r.device for r in dataset.recordings}:
        sure = [p for p in used if used[p].count(device) * 2 > len(used[p])]
        perhaps = [p for p in used if used[p].count(device) * 2 >= len(used[p])]
        for patients, name in ((sure, "low"), (perhaps, "high")):
            shares = [
                sum(diagnosis[p] == c for p in patients) / sum(d == c for d in diagnosis.values())
                for c in set(diagnosis.values())
            ]
            if name == "low":
                low += max(shares) / 6
            else:
                high += max(shares) / 6
    assert low <= found.value <= high


def test_one_device_is_no_shortcut() -> None:
    rows = [("COPD", "Meditron")] * 6 + [("Healthy", "Meditron")] * 6
    found = device_shortcut(of_devices(rows))
    assert found is not None
    assert (found.value, found.p_value, found.found) == (0.5, 1.0, False)


def test_too_few_patients_for_a_shortcut() -> None:
    assert (
        device_shortcut(of_devices([("COPD", "Litt3200")] * 4 + [("URTI", "Meditron")] * 9)) is None
    )
    assert age_shortcut(of_devices([("COPD", "Litt3200")] * 9)) is None


def test_the_area_of_age_is_that_of_sklearn() -> None:
    dataset = in_memory(SynthSettings(240, 1.0, 1))
    found = age_shortcut(dataset)
    people = {r.patient: r for r in dataset.recordings if r.diagnosis in ("COPD", "Healthy")}
    known = [r for r in people.values() if r.age is not None]
    area = roc_auc_score([r.diagnosis == "COPD" for r in known], [r.age for r in known])
    assert found is not None
    assert found.value == pytest.approx(max(area, 1 - area))
    assert found.patients == len(known) < len(people)


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
    frame = dataset.frame()
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
                  "official test side has no Asthma, LRTI, Pneumonia", "at once"):  # fmt: skip
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
    assert device.found
    assert age is not None
    assert age.found
    assert age.value == 1


@pytest.mark.slow
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
    assert len(found["warnings"]) == 2


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
    sets: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
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


# The model


@pytest.fixture(scope="module")
def model(bundle: Path, sets: dict[str, Path]) -> dict[str, Any]:
    loaded, dataset = load_bundle(bundle), load_dataset(sets["none"])
    return audit_model(loaded, sides_of(loaded, dataset), workers=1, say=lambda _: None)


def test_the_model_through_the_command(
    bundle: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(sets["none"]), "--winner", str(bundle), "--out", str(tmp_path)]
    assert run(evaluate.main, arguments) == 0
    printed = capsys.readouterr()
    assert "the test side is read now: " in printed.err
    assert "by patient" in printed.out
    found = json.loads((tmp_path / "audit.json").read_text())["model"]
    config = json.loads((bundle / "config.json").read_text())
    assert found["reading"]["weights_sha256"] == config["weights_sha256"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["reading"]["time"])
    page = (tmp_path / "audit.html").read_text()
    assert found["reading"]["time"] in page
    assert "Each class" in page


def test_the_model_s_figures(model: dict[str, Any], bundle: Path, sets: dict[str, Path]) -> None:
    """Against scikit-learn on predictions of single files, as `predict` makes them."""
    loaded, dataset = load_bundle(bundle), load_dataset(sets["none"])
    sides = make_sides(dataset, make_clips(get_task("diagnosis"), dataset), "patient")
    asked = [r for r in dataset.recordings if r.stem in set(sides.test or ())]
    probabilities = np.array(
        [loaded.predict_waveform(load_waveform(r.path, loaded.sample_rate)) for r in asked]
    )
    truth = np.array([loaded.classes.index(r.diagnosis) for r in asked])
    test = model["test"]
    assert (test["clips"], test["patients"]) == (len(asked), len({r.patient for r in asked}))
    for name, part in (
        ("by_clip", np.ones(len(asked), bool)),
        *((d, np.array([r.device == d for r in asked])) for d in test["by_device"]),
    ):
        figures = test[name] if name == "by_clip" else test["by_device"][name]
        answer, own = probabilities[part].argmax(1), truth[part]
        there = np.unique(own)
        f1 = f1_score(own, answer, labels=there, average="macro", zero_division=0)
        recalls = [np.mean(answer[own == c] == c) for c in there]
        assert figures["macro_f1"] == pytest.approx(f1)
        assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        assert figures["majority_accuracy"] == pytest.approx(np.bincount(own).max() / len(own))
        for metric, (low, high) in figures["intervals"].items():
            assert low <= high, metric
    patients = np.array([r.patient for r in asked])
    names = np.unique(patients)
    means = np.array([probabilities[patients == p].mean(0) for p in names])
    people = np.array([truth[patients == p][0] for p in names])
    found = test["by_patient"]["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score(people, means.argmax(1)))
    support = {name: row["support"] for name, row in test["per_class"].items()}
    assert support == {c: int((truth == i).sum()) for i, c in enumerate(loaded.classes)}
    recall = test["per_class"]["COPD"]["recall"]
    copd = truth == loaded.classes.index("COPD")
    assert recall == pytest.approx(np.mean(probabilities[copd].argmax(1) == truth[copd]))
    assert test["baselines"]["device"].keys() == {"balanced_accuracy", "macro_f1"}


def test_the_controlled_part(model: dict[str, Any], bundle: Path, sets: dict[str, Path]) -> None:
    """Every recording made a child's on the Meditron: the whole test side, healthy or sick."""
    loaded, dataset = load_bundle(bundle), load_dataset(sets["none"])
    children = dataclasses.replace(
        dataset,
        recordings=tuple(
            dataclasses.replace(r, device="Meditron", age=5.0) for r in dataset.recordings
        ),
    )
    found = audit_model(loaded, sides_of(loaded, children), workers=1, say=lambda _: None)
    controlled = found["test"]["controlled"]
    assert controlled["clips"] == found["test"]["clips"] == model["test"]["clips"]
    assert controlled["classes"] == ["healthy", "sick"]
    healthy = found["test"]["per_class"]["Healthy"]["support"] / controlled["clips"]
    assert controlled["majority_accuracy"] == pytest.approx(max(healthy, 1 - healthy))
    assert set(controlled["intervals"]) >= {"balanced_accuracy", "auroc"}


def test_other_data_is_refused(
    bundle: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other patients, or one recording less: the test side may hold what was trained on."""
    fewer = shutil.copytree(sets["none"], tmp_path / "fewer")
    next(fewer.rglob("*.wav")).unlink()
    for folder in (sets["icbhi"], fewer):
        arguments = ["--data", str(folder), "--winner", str(bundle), "--out", f"{tmp_path}/out"]
        assert run(evaluate.main, arguments) == 2
        printed = capsys.readouterr()
        assert "does not give the sides that the model was trained with" in printed.err
        assert "test side is read" not in printed.err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": None}, "no task"),
        ({"protocol": 3}, "no protocol"),
        ({"provenance": None}, "no provenance.split_sha256"),
        ({"provenance": {"split_seed": 0}}, "no provenance.split_sha256"),
        ({"provenance": {"split_sha256": "0" * 64}}, "does not give the sides"),
        ({"split_seed": 1}, "does not give the sides"),
        ({"split_seed": "x"}, "does not give the sides"),
        ({"task": "copd"}, "does not give the sides"),
        ({"task": "cough"}, "unknown task 'cough'"),
    ],
)
def test_a_bundle_that_does_not_say_whom_it_knows(
    change: dict[str, Any], words: str, bundle: Path, sets: dict[str, Path]
) -> None:
    loaded = load_bundle(bundle)
    details = {**loaded.details, **change}
    if "split_seed" in change:
        details["provenance"] = {**loaded.details["provenance"], **change}
    with pytest.raises(UserError, match=words):
        sides_of(dataclasses.replace(loaded, details=details), load_dataset(sets["none"]))


def test_a_protocol_without_a_test_side(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train.main(
        ["--config", f"{tmp_path}/tiny.yaml", "--data", str(sets["none"]), "--protocol",
         "recording", "--out", f"{tmp_path}/winner", "--threads", "1"]
    )  # fmt: skip
    loaded = load_bundle(tmp_path / "winner")
    said: list[str] = []
    problem = sides_of(loaded, load_dataset(sets["none"]))
    found = audit_model(loaded, problem, workers=1, say=said.append)
    assert (found["test"], found["reading"], said) == (None, None, [])
    assert "no test side" in found["reason"]


def test_cycles_have_no_patient_level(
    sets: dict[str, Path], tmp_path: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patient has cycles of several classes, so there is no one class to give a patient."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train.main(
        ["--config", f"{tmp_path}/tiny.yaml", "--data", str(sets["none"]), "--task", "cycles",
         "--protocol", "official", "--out", f"{tmp_path}/winner", "--threads", "1"]
    )  # fmt: skip
    loaded = load_bundle(tmp_path / "winner")
    problem = sides_of(loaded, load_dataset(sets["none"]))
    found = audit_model(loaded, problem, workers=1, say=lambda _: None)
    test = found["test"]
    assert test["by_patient"] is None
    assert test["controlled"] is None
    assert "icbhi_score" in test["by_clip"]["intervals"]
    whole = {**json.loads((audited / "audit.json").read_text()), "model": found}
    capsys.readouterr()
    show(whole)
    assert "by cycle" in capsys.readouterr().out
    assert "by cycle" in draw(whole)

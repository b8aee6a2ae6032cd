"""Tasks from YAML files: what they say, what is wrong with them, and how they come back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.mlflow_stores import with_mlflow_store
from support.searches import command
from support.small_sets import imagined

from resp_tune.cli import run
from resp_tune.common.trial_key import TrialKey
from resp_tune.data.metadata import DIAGNOSES
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.task_files import find_task, load_task, task_from_classes
from resp_tune.data.tasks import TASKS, Task, make_clips
from resp_tune.errors import UserError
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.spec import trial_identity
from resp_tune.harness.validate import validate
from resp_tune.search import main as search_main
from resp_tune.search import read_options
from resp_tune.train import parser, read_arguments

CLASSES = "classes:\n  healthy: [Healthy]\n  infection: [URTI, lrti, Pneumonia, Bronchiolitis]\n"
INFECTION = Task(
    "infection",
    ("healthy", "infection"),
    (("Healthy",), ("Bronchiolitis", "LRTI", "Pneumonia", "URTI")),
    "recording",
    "an infection or none",
)
ONE_EACH = [(f"{100 + i}_1b1_Al_sc_Meditron", name) for i, name in enumerate(DIAGNOSES)]
COVID = ("200_1b1_Al_sc_Phone", "Covid")


def write(path: Path, text: str = CLASSES, name: str = "infection") -> str:
    path.write_text(f"name: {name}\ndescription: an infection\n  or none\n{text}")
    return str(path)


def labels(task: Task, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Class by diagnosis."""
    clips = make_clips(task, imagined(pairs)).clips
    return {c.recording.diagnosis: task.classes[c.label] for c in clips}


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_file_is_a_task(tmp_path: Path, ending: str) -> None:
    given = write(tmp_path / f"any.{ending}")
    assert find_task(given) == INFECTION
    assert read_options(["--task", given]).task == given


def test_whom_a_task_leaves_out_is_said(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.yaml"))
    clips = make_clips(task, imagined([*ONE_EACH, COVID]))
    assert len(clips.clips) == 5
    assert clips.dropped == tuple(
        f"{name}: 1 recording of 1 patient left out: the task 'infection' has no class for it"
        for name in ("Asthma", "Bronchiectasis", "COPD", "Covid")
    )


def test_a_star_takes_every_other_diagnosis(tmp_path: Path) -> None:
    text = 'classes: {rest: ["*", Asthma], infection: [URTI, LRTI], none: [Healthy]}\n'
    task = load_task(write(tmp_path / "t.yaml", text))
    assert task.classes == ("rest", "infection", "none")
    others = dict.fromkeys((*DIAGNOSES, "Covid"), "rest")
    named = {"URTI": "infection", "LRTI": "infection", "Healthy": "none"}
    assert labels(task, [*ONE_EACH, COVID]) == {**others, **named}


def test_a_diagnosis_is_icbhis_or_the_data_sets(tmp_path: Path) -> None:
    text = "classes: {covid: [Covid], healthy: [Healthy]}\n"
    task = load_task(write(tmp_path / "t.yaml", text))
    assert labels(task, [*ONE_EACH, COVID]) == {"Covid": "covid", "Healthy": "healthy"}
    with pytest.raises(UserError, match="unknown diagnosis 'Covid', neither one of ICBHI's nor"):
        make_clips(task, imagined(ONE_EACH))
    typo = load_task(write(tmp_path / "t.yaml", CLASSES.replace("Pneumonia", "Penumonia")))
    with pytest.raises(UserError, match="did you mean 'Pneumonia'"):
        make_clips(typo, imagined(ONE_EACH))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2", "is not YAML"),
        ("- a list", "must be a mapping with 'name' and 'classes'"),
        ("", "must be a mapping"),
        (CLASSES, "'name' must be a text of 1 to 40 of a-z, 0-9 and '-', not null"),
        ("name: 2024\n" + CLASSES, "not 2024"),
        ("name: ../up\n" + CLASSES, "not '../up'"),
        (f"name: {'a' * 41}\n" + CLASSES, "1 to 40"),
        ("name: copd\n" + CLASSES, "built-in task 'copd': choose another"),
        ("name: a\nclass: {}\n", "unknown key 'class': did you mean 'classes'?"),
        ("name: a\nunit: cycle\n" + CLASSES, "(task cycles)"),
        ("name: a\nclasses: {normal: [Healthy], wheeze: [Asthma]}\n", "those of breathing cycles"),
        ("name: a\ndescription: [a]\n" + CLASSES, "'description' must be a text, not a list"),
        ("name: a\n", "'classes' must be a mapping of two or more"),
        ("name: a\nclasses: [COPD, Asthma]\n", "'classes' must be a mapping of two or more"),
        ("name: a\nclasses: {one: [COPD]}\n", "two or more"),
        ("name: a\nclasses: {one: COPD, two: [Asthma]}\n", "class 'one' must be a list"),
        ("name: a\nclasses: {one: [], two: [Asthma]}\n", "class 'one' must be a list"),
        ("name: a\nclasses: {true: [COPD], two: [Asthma]}\n", "class True is not a text: write it"),
        ("name: a\nclasses: {'': [COPD], two: [Asthma]}\n", "class '' is not a name"),
        ('name: a\nclasses: {"a\\nb": [COPD], two: [Asthma]}\n', "class 'a\\nb' is not a name"),
        (f"name: a\nclasses: {{{'o' * 41}: [COPD], b: [Asthma]}}\n", "over 40 characters"),
        ("name: a\nclasses: {one: [1], two: [Asthma]}\n", "class 'one': diagnosis 1 is not a text"),
        ("name: a\nclasses: {one: [[a]], two: [Asthma]}\n", "diagnosis a list or mapping"),
        (
            "name: a\nclasses: {one: [COPD], two: [copd]}\n",
            "diagnosis 'COPD' is in class 'one' and in 'two': name it once",
        ),
        ("name: a\nclasses: {one: ['*'], two: ['*']}\n", "'*' is in class 'one' and in 'two'"),
        ("name: a\nclasses: {one: [*], two: [COPD]}\n", 'write "*" in quotes'),
        ("name: a\nclasses: {one: [COPD], one: [Asthma]}\n", "'one' is given twice"),
        ("name: a\nname: b\n" + CLASSES, "'name' is given twice"),
        ("name: a\nclasses: &x {one: [*x], two: [COPD]}\n", "a list or mapping is not a text"),
        ("name: !!python/name:os.system\n" + CLASSES, "is not YAML"),
        ("name: a\nclasses:\n\tone: [COPD]\n", "; write spaces"),
        ("# " + "long" * 1000, "has over 3000 bytes"),
        ("name: 2020-13-45\n", "cannot be read"),
        ("[" * 2500, "cannot be read"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_task(str(path))
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"task '{path}'")
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(UserError, match=r"cannot be read.*; save it as UTF-8"):
        load_task(str(path))
    for given in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="is not a file: give the path"):
            load_task(str(given))


def test_an_unknown_name_may_have_meant_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"did you mean 'copd'.*\.yaml"):
        find_task("cpod")
    for given in ("nope", str(tmp_path / "none.yaml")):
        assert run(search_main, ["--storage", str(tmp_path / "r"), "--task", given]) == 2
        out, err = capsys.readouterr()
        assert "YAML" in err or ".yaml" in err
        assert (out, err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


def test_the_challenges_score_needs_cycles(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --task cycles"):
        read_options(["--metric", "icbhi_score", "--task", write(tmp_path / "t.yaml")])


@pytest.mark.parametrize("task", [INFECTION, *TASKS.values()], ids=lambda task: task.name)
def test_a_task_comes_back_from_json(task: Task) -> None:
    found = task_from_classes(task.name, json.loads(json.dumps(task.grouping)))
    assert replace(found, description=task.description) == task
    if task.name in TASKS:
        assert task_from_classes(task.name, None) == task


def test_damaged_classes_are_refused(tmp_path: Path) -> None:
    for classes in ([1], {"one": ["COPD"]}, {"one": 1, "two": 2}):
        with pytest.raises(UserError, match="saved classes of the task 'mine'"):
            task_from_classes("mine", classes)
    for name in ("mine", write(tmp_path / "t.yaml")):  # no file is opened for a bundle's sake
        with pytest.raises(UserError, match="unknown task"):
            task_from_classes(name, None)


def test_the_longest_file_fits_into_mlflow(tmp_path: Path) -> None:
    names = (a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz'\"")
    text = f"classes: {{o: [x], p: [{','.join(repr(n) for n in names)}"[:2930]
    task = load_task(write(tmp_path / "t.yaml", text[: text.rindex(",")] + "]}\n"))
    assert len(json.dumps(task.grouping)) <= 6000


def test_an_edited_file_is_refused_with_the_difference(tmp_path: Path) -> None:
    from resp_tune.study.samplers import make_sampler
    from resp_tune.study.study import bind_settings, open_study

    path = tmp_path / "t.yaml"
    settings = SearchOptions(
        task=write(path),
        space="search_spaces/smoke.yaml",
        gpus=0,
        name="mine",
        storage=str(tmp_path),
    )
    first = validate(settings)
    assert first.data.datamodule.split.task == "infection"
    first.location.folder.mkdir()
    study = open_study(
        first.location.folder / "study.db", "mine", "macro_f1", make_sampler("random", 0)
    )
    identity = trial_identity(first.options, first.space, first.data)
    bind_settings(study, identity)
    moved = write(tmp_path / "moved.yaml", CLASSES.replace("URTI, lrti", "LRTI, URTI"))
    same = validate(replace(settings, task=moved))
    assert trial_identity(same.options, same.space, same.data) == identity
    write(path, CLASSES.replace("lrti", "Asthma"))
    with pytest.raises(UserError, match=r"task classes was .* LRTI, .*now .*: Asthma, ") as caught:
        validate(settings)
    assert "another --name" in str(caught.value)
    write(
        path, "classes:\n  infection: [URTI, LRTI, Pneumonia, Bronchiolitis]\n  healthy: [Healthy]"
    )
    with pytest.raises(UserError, match="task classes was"):
        validate(settings)
    with pytest.raises(UserError, match="task was 'infection', now 'copd'"):
        validate(replace(settings, task="copd"))


def test_a_trial_is_repeated_without_its_file(tmp_path: Path) -> None:
    from resp_tune.tracking.search_run import SearchRuns
    from resp_tune.tracking.tags import SearchRef

    uri = f"sqlite:///{with_mlflow_store(tmp_path)}/mlflow.db"
    params = {
        "task": "infection",
        "task_classes": json.dumps(INFECTION.grouping),
        "protocol": "patient",
        "folds": 2,
        "split_seed": 3,
        "hold_out_device": None,
        "drop_shared_patients": False,
        "split_sha256": "ab12",
    }
    runs = SearchRuns(uri, tmp_path, SearchRef("first", "macro_f1", "max"), params=params)
    runs.trials.start_trial(TrialKey(0), params={"lr": 1e-3}, seed=7, tags={})
    given = ["--run", runs.run_ids()[TrialKey(0)], "--tracking-uri", uri]
    runs.close("FINISHED")
    asked = read_arguments(parser().parse(given))
    assert asked.task == replace(INFECTION, description="")
    assert asked.split_spec == SplitSpec("patient", folds=2, split_seed=3)
    assert read_arguments(parser().parse([*given, "--task", "copd"])).task == TASKS["copd"]


def test_a_trained_bundle_knows_its_task(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("{epochs: 1, width: 4, n_mels: 32, clip_seconds: 4.0}")
    arguments = ("--config", str(config), "--task", write(tmp_path / "t.yaml"), "--threads", "1")
    outcome = command("train", *arguments, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "COPD: " in outcome.err
    details = json.loads((tmp_path / "out" / "config.json").read_text())
    assert details["task"] == "infection"
    found = task_from_classes(details["task"], details["task_classes"])
    assert found == replace(INFECTION, description="")

"""The public functions of `resp_tune.api`: signatures, results, errors."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_sets import write_set

import resp_tune
from resp_tune import api

PAIR = {"101_1b1_Al_sc_Meditron": "URTI", "102_1b1_Ar_mc_LittC2SE": "COPD"}


def test_load_dataset_returns_recordings_and_problems(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", PAIR)
    (root / "demographic_info.txt").write_text("101 3 F NA 19 99\n102 hundred M NA NA NA\n")
    data = api.load_dataset(root)
    first, second = data.recordings
    assert (first.patient, first.diagnosis, first.age, first.sex) == ("101", "URTI", 3.0, "F")
    assert (first.device, first.location, first.session) == ("Meditron", "Al", "101_1b1")
    assert first.cycles == (api.Cycle(0.0, 0.5, False, False), api.Cycle(0.5, 1.0, True, False))
    assert (second.age, second.sex) == (None, None)
    assert any("age 'hundred' is not a number of years" in line for line in data.problems)
    assert all(len(line.splitlines()) == 1 for line in data.problems)


@pytest.mark.parametrize("folder", ["absent", ".", "file"])
def test_a_folder_without_a_data_set_raises_an_error_of_one_line(
    tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(api.UserError) as error:
        api.load_dataset(tmp_path / folder)
    assert isinstance(error.value, api.RespTuneError)
    assert len(str(error.value).splitlines()) == 1


def test_only_the_first_argument_of_a_function_is_positional() -> None:
    for name in api.__all__:
        if inspect.isfunction(function := getattr(api, name)):
            first, *others = inspect.signature(function).parameters.values()
            assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others), name


def test_the_api_imports_no_heavy_library_and_prints_nothing() -> None:
    code = (
        "import logging, sys; import resp_tune; "
        "logging.getLogger('resp_tune.x').error('not printed'); "
        "light = set(sys.modules); import resp_tune.api; "
        "print(*({'torch', 'ray', 'optuna', 'mlflow', 'pandas', 'sklearn'} & set(sys.modules)), "
        "*({'numpy', 'soundfile'} & light), sep='\\n')"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(resp_tune.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_the_package_is_typed() -> None:
    assert (Path(resp_tune.__file__).parent / "py.typed").is_file()

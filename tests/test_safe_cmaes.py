"""The optimiser that CMA-ES keeps in the study: read as Optuna reads it, and nothing else is."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import optuna
import pytest
from optuna.samplers import CmaEsSampler
from optuna.trial import create_trial

from resp_tune.errors import RunError
from resp_tune.study.optuna_internals import SafeCmaEsSampler
from resp_tune.study.safe_cmaes import read_optimiser
from resp_tune.study.samplers import make_sampler

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
KEY = "cma:optimizer:"


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0.0, 1.0)
    rate = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return x + rate + trial.suggest_int("n", 1, 9)


def run(sampler: optuna.samplers.BaseSampler, storage: str) -> list[dict[str, Any]]:
    """Two processes' worth of trials in one study, whose file outlives the sampler."""
    study = optuna.create_study(
        storage=storage, study_name="s", sampler=sampler, load_if_exists=True
    )
    study.optimize(objective, n_trials=15)
    return [t.params for t in study.trials]


def test_it_draws_what_optunas_own_draws(tmp_path: Path) -> None:
    ours, theirs = f"sqlite:///{tmp_path}/ours.db", f"sqlite:///{tmp_path}/theirs.db"
    for seed in (3, 4):
        mine = run(make_sampler("cmaes", seed), ours)
        assert mine == run(CmaEsSampler(seed=seed, warn_independent_sampling=False), theirs)
    study = optuna.load_study(storage=ours, study_name="s")
    kept = [t for t in study.trials if any(k.startswith(KEY) for k in t.system_attrs)]
    assert len(kept) >= 3, "the optimiser was kept and read"
    assert isinstance(make_sampler("cmaes", 0), SafeCmaEsSampler)


class Harm:
    """A pickle that makes a file when it is read, through any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.what = (function, args)

    def __reduce__(self) -> Any:
        return self.what


def test_a_strangers_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    harms = {
        "pathlib": Harm(Path.touch, tmp_path / "harmed"),
        "builtins.eval": Harm(eval, f"open({str(tmp_path / 'harmed')!r}, 'w')"),
        "numpy.save": Harm(np.save, str(tmp_path / "harmed"), np.zeros(1)),
        "numpy.testing": Harm(np.testing.rundocs, str(tmp_path / "harmed")),
    }
    pickle.loads(pickle.dumps(harms["builtins.eval"])).close()  # noqa: S301  # our own, to see it work
    assert (tmp_path / "harmed").exists(), "the pickle does what it says"
    (tmp_path / "harmed").unlink()
    for name, harm in harms.items():
        with pytest.raises(RunError, match="it names ") as caught:
            read_optimiser(pickle.dumps(harm).hex(), 7)
        assert "\n" not in str(caught.value), name
        assert "with trial 7" in str(caught.value)
        assert "--sampler tpe" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zz",
        "00",
        pickle.dumps(cmaes.CMA(np.zeros(2), 1.0)).hex()[:-40],
        pickle.dumps(np.zeros(2)).hex(),
        pickle.dumps([1, 2]).hex(),
    ],
    ids=["nothing", "no digits", "no pickle", "half of one", "an array", "a list"],
)
def test_a_damaged_one_is_one_line(text: str) -> None:
    with pytest.raises(RunError, match="is damaged or was not written by CMA-ES") as caught:
        read_optimiser(text, 3)
    assert "\n" not in str(caught.value)


def test_a_study_with_harm_in_it_stops_the_search(tmp_path: Path) -> None:
    """As it arrives: in a study of a stranger's, whose last trial carries it."""
    distributions = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    harm = pickle.dumps(Harm(Path.touch, tmp_path / "harmed")).hex()
    study = optuna.create_study(sampler=make_sampler("cmaes", 0))
    for i in range(5):
        attrs = {f"{KEY}0": harm} if i == 4 else {}
        study.add_trial(
            create_trial(
                params={"x": 0.1 * i}, distributions=distributions, value=0.0, system_attrs=attrs
            )
        )
    with pytest.raises(RunError, match="it names "):
        study.ask(distributions)
    assert list(tmp_path.iterdir()) == []

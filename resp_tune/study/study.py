"""The study: the one truth about a search, from which all else that is written can be made again.

A trial of the search is a trial of the Optuna study, and its number. Beside Optuna's own values it
carries `config`, `seed`, `epochs` (one row an epoch), at its end `seconds`, and where they apply
`diverged`, `error`, `stopped`. Only what the sampler asked for is a trial: replicates are
attributes of the study (`replicates.py`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from resp_tune.common.choices import State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import FIELDS, TrialConfig
from resp_tune.errors import RunError, UserError
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_storage import SingleWriterStorage
from resp_tune.training.metrics import METRICS
from resp_tune.training.seeds import mix_seed

# Attributes of the study itself.
RECORDINGS = "recordings"  # the setting that is a hash of them
SETTINGS = "resp_tune.settings"  # what a trial means
SPLIT = "resp_tune.split_sha256"  # digest of the sides
STUDY_ID = "resp_tune.study_id"  # tells it from another study of the same name
SECONDS = "resp_tune.seconds"  # wall time of all runs of the command
READINGS = "resp_tune.test_readings"
DRIVERS = "resp_tune.drivers"  # who has run it on an object store, one after another

# Longer than anything that should hold the file, shorter than a person's patience.
LOCKED_SECONDS = 120
_RESTORE = "restore it from a copy, or move the search's folder away to begin anew"


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the study has it. `state` is None while it runs; `score` is for finished ones.

    `values` are the searched fields, `epochs` the rows of `EpochResult.row()`.
    """

    key: TrialKey
    state: State | None
    score: float | None
    config: TrialConfig
    values: dict[str, Any]
    epochs: list[dict[str, float]]
    seconds: float
    error: str | None

    @property
    def number(self) -> int:
        """The number of the trial in the study."""
        return self.key.number

    @property
    def validation(self) -> dict[str, float]:
        """The metrics of its last epoch."""
        last = self.epochs[-1] if self.epochs else {}
        names = {f"val_{name}": name for name in METRICS}
        return {names[key]: value for key, value in last.items() if key in names}


def with_micro_batch(record: TrialRecord, size: int | None) -> TrialRecord:
    """The trial with a micro-batch of `size`."""
    config = record.config.replace({"micro_batch": size})
    return dataclasses.replace(record, config=config)


def open_study(
    path: Path, name: str, metric: str, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """The study in the sqlite file `path`; made, if it is not there, whole or not at all.

    For who alone writes it, as the search's lock makes sure.
    """
    if not path.exists():
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        storage = _storage(beside)
        optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if METRICS[metric].mode == "max" else "minimize",
        )
        storage.remove_session()
        storage.engine.dispose()
        beside.replace(path)
    return optuna.load_study(
        storage=SingleWriterStorage(_storage(path)), study_name=name, sampler=sampler
    )


def _storage(path: Path) -> optuna.storages.RDBStorage:
    storage = optuna.storages.RDBStorage(
        _url(path), engine_kwargs={"connect_args": {"timeout": LOCKED_SECONDS}}
    )
    fault_point("study-created")
    return storage


def _url(path: Path) -> str:
    """Of the sqlite file, as SQLAlchemy quotes it, and Optuna, which takes it for a template."""
    url = URL.create("sqlite", database=str(path)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")


def one_commit(study: optuna.Study) -> AbstractContextManager[None]:
    """Inside, all that this thread writes to the study is one commit; none of it after an error."""
    storage = study._storage
    return (
        storage.one_commit() if isinstance(storage, SingleWriterStorage) else nullcontext()
    )  # in memory


@contextmanager
def study_in_one_line(path: Path) -> Iterator[None]:
    """Inside, a study that cannot be read or written is a `RunError` that names its file `path`."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        said = _said(error)
        raise RunError(
            f"the study '{path}' cannot be used ({said}): {_way_out(said)}, then type the same "
            "command again: it goes on"
        ) from error


def _said(error: Exception) -> str:
    """What the database itself said, without the statement."""
    inner = error.__cause__ or error
    return (str(getattr(inner, "orig", None) or inner).strip() or repr(error)).splitlines()[0]


def _way_out(said: str) -> str:
    if "locked" in said:
        return f"another program has held it for {LOCKED_SECONDS} s; close that"
    if "full" in said or "disk I/O" in said:  # sqlite says the one or the other of a full disk
        return "make sure that there is space on its disk, and that it can be written"
    if "malformed" in said or "not a database" in said:
        return f"it is damaged; {_RESTORE}"
    return "make it readable and writable"


def read_study(path: Path, name: str) -> optuna.Study:
    """The study in an existing file; raises `UserError` when there is none that can be read."""
    if path.exists() and not path.is_file():
        raise UserError(f"'{path}' is no file: {_RESTORE}")
    if not path.is_file():
        raise UserError(f"'{path}' is not there: no search of that name was run here")
    if path.stat().st_size == 0:  # Optuna would fill it with its tables
        raise UserError(f"'{path}' is empty: {_RESTORE}")
    storage = _url(path)
    try:
        held = optuna.get_all_study_names(storage)
        if name in held:
            return optuna.load_study(study_name=name, storage=storage)
    except Exception as error:  # sqlalchemy, sqlite and optuna each have their own
        raise UserError(
            f"'{path}' cannot be read as the study '{name}' ({_said(error)}): {_RESTORE}"
        ) from error
    if not held:
        raise UserError(f"'{path}' holds no study: it was cut off while it was made; remove it")
    raise UserError(
        f"'{path}' holds the study {', '.join(map(repr, held))}, not '{name}': a copied or renamed "
        "search keeps its name; give its folder that name again"
    )


def bind_settings(study: optuna.Study, settings: Mapping[str, Any]) -> None:
    """Remember what a trial of this study means; refuse a command that means something else."""
    if SETTINGS not in study.user_attrs:
        study.set_user_attr(SETTINGS, dict(settings))
    check_settings(study, settings)


def check_settings(
    study: optuna.Study, settings: Mapping[str, Any], recordings: str | None = None
) -> None:
    """Raise `UserError` with the difference when trials of `study` mean something else.

    `recordings` says what differs in them, where that is known.
    """
    # A field that did not exist when the search began had its default.
    newer = {f"field {name}": spec.default for name, spec in FIELDS.items()}
    known = {**newer, **study.user_attrs.get(SETTINGS, settings)}
    differing = [key for key, value in settings.items() if known.get(key) != value]
    changed = [
        f"{key} was {known.get(key)!r}, now {settings[key]!r}"
        for key in differing
        if key != RECORDINGS  # a hash, which follows from the others too
    ]
    if differing:
        if not changed:
            said = f" ({recordings})" if recordings else ""
            changed = [f"its recordings, or their labels, have changed since{said}"]
        raise UserError(
            f"search '{study.study_name}' was started with other settings: {'; '.join(changed)}. "
            "Give the old ones, or another --name"
        )


def trial_seed(search_seed: int, number: int) -> int:
    """A trial's own seed, so that any trial can be run again alone."""
    return mix_seed(search_seed, number) % 2**32


def records(study: optuna.Study, space: SearchSpace) -> list[TrialRecord]:
    """Every trial that has been handed out, by number."""
    return [
        record(trial, space)
        for trial in study.get_trials(deepcopy=False)
        if "config" in trial.user_attrs
    ]


def record(trial: FrozenTrial, space: SearchSpace) -> TrialRecord:
    """One trial of the study."""
    attrs = trial.user_attrs
    config = TrialConfig().replace(attrs["config"])
    epochs = attrs.get("epochs", [])
    state = state_of(trial)
    return TrialRecord(
        key=TrialKey(trial.number),
        state=state,
        score=trial.value if state == "finished" else None,
        config=config,
        values=space.values(config),
        epochs=epochs,
        # Written when it ends; one that was cut off has spent at least its epochs.
        seconds=max(attrs.get("seconds", 0.0), sum(row.get("seconds", 0.0) for row in epochs)),
        error=attrs.get("error"),
    )


def state_of(trial: FrozenTrial) -> State | None:
    """A trial's state in the words of this project; None while it waits or runs."""
    if trial.state == TrialState.COMPLETE:
        return "diverged" if trial.user_attrs.get("diverged") else "finished"
    return {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(trial.state)  # type: ignore[return-value]  # the two values are States


def ranked(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """The finished trials, best score first; of equals, the lower number."""
    finished = [t for t in trials if t.state == "finished" and t.score is not None]
    sign = 1 if METRICS[metric].mode == "max" else -1
    return sorted(finished, key=lambda t: (-sign * (t.score or 0.0), t.number))


def best_of(trials: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """The first of `ranked`, None where no trial has finished."""
    return next(iter(ranked(trials, metric)), None)

"""Open and read the study, the single source of truth from which all other results are made.

A trial of the search is a trial of the Optuna study. Beside Optuna's own values it has the
attributes `config`, `seed`, `epochs.FIRST` (the rows of one report), `seconds` once it has ended,
and where they apply `diverged`, `error`, `stopped`. Replicates are no trials of the study, but
attributes of it (`replicates.py`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from resp_tune.config import BEFORE_ADDED, FIELDS, TrialConfig
from resp_tune.errors import RunError, UserError
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import fast_storage
from resp_tune.training.metrics import METRICS
from resp_tune.training.seeds import mix_seed

# Attributes of the study itself.
FOLD_ORDER, RESHUFFLE, LEVEL = "fold order", "reshuffle", "level"  # settings
OUTER_FOLDS = "outer folds"  # another; a search without outer folds has no entry of it
RECORDINGS = "recordings"  # the setting that is a hash of the recordings
SETTINGS = "resp_tune.settings"  # what defines a trial
SPLIT = "resp_tune.split_sha256"  # digest of the split
STUDY_ID = "resp_tune.study_id"  # distinguishes studies of the same name
SECONDS = "resp_tune.seconds"  # wall time of all runs of the command
READINGS = "resp_tune.test_readings"
STOPPED_BY = "resp_tune.stopped_by"  # the rule of `--stop` that ended the search
DRIVERS = "resp_tune.drivers"  # ids of the drivers on an object store, in order

# Longer than any lock that another program should hold, shorter than a user waits.
LOCKED_SECONDS = 120
FOLDS_RUN = "folds_run"  # in a trial's config: the folds that it was trained on
_RESTORE = "restore it from a copy, or move the search's folder away to start over"


Rows = Sequence[Mapping[str, float]]  # one an epoch


@dataclass(frozen=True)
class TrialRecord:
    """A trial or a replicate, as the study has it.

    `state` is None while it runs, and `score` unless it has finished. `values`: the searched
    fields. `epochs`: the rows of `EpochResult.row()`.
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
        """The validation metrics of the last epoch."""
        last = self.epochs[-1] if self.epochs else {}
        names = {f"val_{name}": name for name in METRICS}
        return {names[key]: value for key, value in last.items() if key in names}


def open_study(
    path: Path, name: str, metric: str, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """Open the study in the sqlite file `path`, which is created atomically if it is missing.

    The caller must be the only writer, as the search's lock ensures.
    """
    if not path.exists():
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        database = _storage(part)
        optuna.create_study(
            storage=database,
            study_name=name,
            direction="maximize" if METRICS[metric].mode == "max" else "minimize",
        )
        database.remove_session()
        database.engine.dispose()
        part.replace(path)
    storage = fast_storage(_storage(path))
    return optuna.load_study(storage=storage, study_name=name, sampler=sampler)


def _storage(path: Path) -> optuna.storages.RDBStorage:
    storage = optuna.storages.RDBStorage(
        _url(path), engine_kwargs={"connect_args": {"timeout": LOCKED_SECONDS}}
    )
    fault_point("study-created")
    return storage


def _url(path: Path) -> str:
    """Return the URL of a sqlite file, quoted for SQLAlchemy and for Optuna's templates."""
    url = URL.create("sqlite", database=str(path)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")


@contextmanager
def study_in_one_line(path: Path) -> Iterator[None]:
    """Turn errors of the study's database inside into a `RunError` that names its file `path`."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = _database_message(error)
        raise RunError(
            f"the study '{path}' cannot be used ({cause}): {_remedy(cause)}, then rerun the same "
            "command to resume"
        ) from error


def _database_message(error: Exception) -> str:
    """Return the database's own message, without the statement."""
    inner = error.__cause__ or error
    return (str(getattr(inner, "orig", None) or inner).strip() or repr(error)).splitlines()[0]


def _remedy(cause: str) -> str:
    if "locked" in cause:
        return f"another program has locked it for {LOCKED_SECONDS} s; close that program"
    if "full" in cause or "disk I/O" in cause:  # sqlite's two messages for a full disk
        return "free space on its disk and make it writable"
    if "malformed" in cause or "not a database" in cause:
        return f"it is damaged; {_RESTORE}"
    return "make it readable and writable"


def read_study(path: Path, name: str) -> optuna.Study:
    """Open the study in an existing file, for reading; raise `UserError` if that is impossible."""
    if path.exists() and not path.is_file():
        raise UserError(f"'{path}' is not a file: {_RESTORE}")
    if not path.is_file():
        raise UserError(f"'{path}' does not exist: no search of that name was run here")
    if path.stat().st_size == 0:  # Optuna would fill it with its tables
        raise UserError(f"'{path}' is empty: {_RESTORE}")
    url = _url(path)
    try:
        names = optuna.get_all_study_names(url)
        if name in names:
            return optuna.load_study(study_name=name, storage=url)
    except Exception as error:  # sqlalchemy, sqlite and optuna each have their own
        cause = _database_message(error)
        raise UserError(
            f"'{path}' cannot be read as the study '{name}' ({cause}): {_RESTORE}"
        ) from error
    if not names:
        raise UserError(f"'{path}' has no study: its creation was interrupted; remove it")
    raise UserError(
        f"'{path}' has the study {', '.join(map(repr, names))}, not '{name}': a copied or renamed "
        "search keeps its name; give its folder that name again"
    )


def bind_settings(study: optuna.Study, settings: Mapping[str, Any]) -> None:
    """Store the settings that define a trial on first use; then as `check_settings`."""
    if SETTINGS not in study.user_attrs:
        study.set_user_attr(SETTINGS, dict(settings))
    check_settings(study, settings)


def stopped_by(study: optuna.Study, rules: Collection[str]) -> str | None:
    """Return the one of `rules`, as typed, that has ended the search before, if any has."""
    rule = study.user_attrs.get(STOPPED_BY)
    return rule if rule in rules else None


def fold_order(study: optuna.Study) -> str:
    """Return the order of folds of a study; all were trained together before there was another."""
    return str(study.user_attrs.get(SETTINGS, {}).get(FOLD_ORDER, "together"))


def check_settings(
    study: optuna.Study, settings: Mapping[str, Any], recordings: str | None = None
) -> None:
    """Raise `UserError` with the differences if `study` was started with other settings.

    `recordings`: a description of the changed recordings, if known.
    """
    # A field or an option that was added after the search began had one value.
    defaults = {name: spec.default for name, spec in FIELDS.items()}
    newer = {f"field {name}": value for name, value in {**defaults, **BEFORE_ADDED}.items()}
    newer |= {FOLD_ORDER: "together", RESHUFFLE: False, LEVEL: "recording", OUTER_FOLDS: 1}
    known = {**newer, **study.user_attrs.get(SETTINGS, settings)}
    differing = [key for key, value in settings.items() if known.get(key) != value]
    changed = [
        f"{key} was {known.get(key)!r}, now {settings[key]!r}"
        for key in differing
        if key != RECORDINGS  # a hash, which follows from the others too
    ]
    if differing:
        if not changed:
            details = f" ({recordings})" if recordings else ""
            changed = [f"its recordings, or their labels, have changed since{details}"]
        raise UserError(
            f"search '{study.study_name}' was started with other settings: {'; '.join(changed)}. "
            "Give the old settings, or another --name"
        )


def trial_seed(search_seed: int, number: int) -> int:
    """Return a trial's own seed, so that any trial can be repeated alone."""
    return mix_seed(search_seed, number) % 2**32


def records(study: optuna.Study, space: SearchSpace) -> list[TrialRecord]:
    """Return every trial that was handed out, by number."""
    return [
        read_record(trial, space, TrialConfig.from_saved(saved_config(trial)))
        for trial in study.get_trials(deepcopy=False)
        if "config" in trial.user_attrs
    ]


def saved_config(trial: FrozenTrial) -> dict[str, Any]:
    """Return the fields of a trial's config in the study; none before it was handed out."""
    return {k: v for k, v in trial.user_attrs.get("config", {}).items() if k != FOLDS_RUN}


def read_record(trial: FrozenTrial, space: SearchSpace, config: TrialConfig) -> TrialRecord:
    """Return a trial of the study as a record, with its `config`."""
    attributes = trial.user_attrs
    epochs, state = read_epochs(attributes), state_of(trial)
    # The total is written at the end; an interrupted trial took at least the time of its epochs.
    seconds = max(attributes.get("seconds", 0.0), sum(row.get("seconds", 0.0) for row in epochs))
    return TrialRecord(
        key=TrialKey(trial.number),
        state=state,
        score=trial.value if state == "finished" else None,
        config=config,
        values=space.values(config),
        epochs=epochs,
        seconds=seconds,
        error=attributes.get("error"),
    )


def epochs_key(rows: Sequence[Mapping[str, float]]) -> str:
    """Return the name of the attribute for the rows of one report, `epochs.FIRST`.

    One attribute a report, so that n reports write O(n) bytes in all.
    """
    return f"epochs.{int(rows[0]['epoch'])}"


def read_epochs(attributes: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the rows of all reports by epoch; release 0.1.0 wrote them all into `epochs`."""
    reports = {k: v for k, v in attributes.items() if k.startswith("epochs.")}
    ordered = sorted(reports.items(), key=lambda item: int(item[0].removeprefix("epochs.")))
    return [*attributes.get("epochs", []), *(row for _, rows in ordered for row in rows)]


def state_of(trial: FrozenTrial) -> State | None:
    """Return the final state of a trial, or None while it waits or runs."""
    if trial.state == TrialState.COMPLETE:
        return "diverged" if trial.user_attrs.get("diverged") else "finished"
    return {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(trial.state)  # type: ignore[return-value]  # the two values are States


def ranked(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Return the finished trials, best score first, and by number among equals."""
    finished = [t for t in trials if t.state == "finished" and t.score is not None]
    sign = 1 if METRICS[metric].mode == "max" else -1
    return sorted(finished, key=lambda t: (-sign * (t.score or 0.0), t.number))


def best_of(trials: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """Return the finished trial with the best score, if any."""
    return next(iter(ranked(trials, metric)), None)

"""Everything that relies on private parts of Optuna 5.0, in one file.

pyproject.toml bounds Optuna to the versions that tests/test_optuna_internals.py passes with; what
to do when it fails is said there.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import threading
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler
from optuna.search_space import intersection_search_space
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import FrozenTrial, Trial, TrialState
from threadpoolctl import threadpool_limits

from resp_tune.study.safe_cmaes import read_optimiser
from resp_tune.study.scored_trials import scored_trials

if TYPE_CHECKING:
    import cmaes

log = logging.getLogger(__name__)

# Two of Optuna's own tables, as the statements below know them.
COLUMNS = {
    "trial_intermediate_values": {
        "trial_intermediate_value_id", "trial_id", "step", "intermediate_value",
        "intermediate_value_type",
    },
    "trial_user_attributes": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
}  # fmt: skip
_INSERT_SCORE = (
    "INSERT INTO trial_intermediate_values"
    " (trial_id, step, intermediate_value, intermediate_value_type) VALUES (?, ?, ?, 'FINITE')"
    " ON CONFLICT (trial_id, step) DO UPDATE SET intermediate_value = excluded.intermediate_value,"
    " intermediate_value_type = excluded.intermediate_value_type"
)
_INSERT_ATTRIBUTE = (
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
    " ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
)
_CMA_KEY = "cma:optimizer:"


def fast_storage(database: RDBStorage) -> BaseStorage:
    """Return a `SingleWriterStorage` over `database`, or `database` if its tables are unknown."""
    inspector = sqlalchemy.inspect(database.engine)
    for table, known in COLUMNS.items():
        columns = {column["name"] for column in inspector.get_columns(table)}
        if columns != known:
            log.warning(
                f"table {table} of the study has the columns {', '.join(sorted(columns))}, which "
                "resp_tune does not know: Optuna's own storage is used, which is slower"
            )
            return database
    return SingleWriterStorage(database)


def one_commit(study: optuna.Study) -> AbstractContextManager[None]:
    """Write everything inside in one commit, and nothing after an error.

    Without effect where Optuna's own storage is used, which commits each value by itself.
    """
    storage = study._storage
    return storage.one_commit() if isinstance(storage, SingleWriterStorage) else nullcontext()


def reopen_trial(study: optuna.Study, trial: FrozenTrial) -> Trial:
    """Return a running trial of an earlier process, to be continued here."""
    return Trial(study, trial._trial_id)


def stored_trial(trial: Trial) -> FrozenTrial:
    """Return what the study holds of `trial`."""
    return trial.study._storage.get_trial(trial._trial_id)


def silence_qmc_sampler() -> None:
    """Suppress the warnings of QMCSampler, which ignores `warn_independent_sampling`."""
    logging.getLogger("optuna.samplers._qmc").setLevel(logging.ERROR)


class ScoredStudy(optuna.Study):
    """A view of a study for its sampler, with the trials of `scored_trials`.

    It writes to the study itself. Optuna has one of its own for its Hyperband pruner.
    """

    def __init__(self, study: optuna.Study) -> None:
        vars(self).update(vars(study))

    @classmethod
    def of(cls, study: optuna.Study) -> ScoredStudy:
        """Return the view of `study`, which may be a view already."""
        return study if isinstance(study, ScoredStudy) else cls(study)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy=deepcopy, use_cache=use_cache)
        seen = scored_trials(trials, self.direction)
        return [trial for trial in seen if states is None or trial.state in states]


def regret_bound(study: optuna.Study, least: int) -> float | None:
    """Return an upper bound of what better parameters could gain, by Optuna's evaluator.

    None with fewer than `least` scored trials, or without a parameter that all of them have. The
    module is deprecated and goes with Optuna 6.
    """
    trials = ScoredStudy.of(study).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < least or not intersection_search_space(trials):
        return None
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = RegretBoundEvaluator(min_n_trials=least, seed=0)
        return float(evaluator.evaluate(trials, study.direction))


class SafeCmaEsSampler(CmaEsSampler):
    """Optuna's CMA-ES sampler, which reads its optimiser from the study without running a pickle.

    Raises `RunError` for a study whose optimiser is damaged or something else.
    """

    def _restore_optimizer(self, completed_trials: Sequence[FrozenTrial]) -> cmaes.CMA | None:
        for trial in reversed(completed_trials):
            parts = {k: v for k, v in trial.system_attrs.items() if k.startswith(_CMA_KEY)}
            if parts:
                keys = (f"{_CMA_KEY}{i}" for i in range(len(parts)))
                text = "".join(str(parts.get(key, "a part is missing")) for key in keys)
                return read_optimiser(text, trial.number)
        return None


class SingleWriterStorage(_CachedStorage):
    """A storage for the only process that writes to `database`, read from memory.

    Optuna's own storage reads every running trial again from the database, all its epochs included,
    twice whenever a trial is handed out, because another process may have changed them. A search
    has a lock, so there is no other, and the cost of a trial must not grow with the running ones.

    Values are in the database before they are in memory. Values given to it must not be changed
    afterwards. Optuna's cache, its base class, handles all but the trials.
    """

    def __init__(self, database: RDBStorage) -> None:
        super().__init__(database)
        self.database = database
        self._trials_lock = threading.RLock()
        # By study and trial id, trials in the order of their numbers; read on first use.
        self._trials: dict[int, dict[int, FrozenTrial]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"database": self.database}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["database"])  # type: ignore[misc]  # as a new one over the same file

    @contextmanager
    def one_commit(self) -> Iterator[None]:
        """Write what this thread writes inside in one commit, and nothing after an error.

        Optuna commits each value by itself, and each commit waits for the disk.
        """
        self.database.remove_session()  # so that the next session is made here
        try:
            with self.database.engine.begin() as connection:
                self.database.scoped_session(bind=connection, join_transaction_mode="rollback_only")
                try:
                    yield
                finally:
                    self.database.remove_session()
        except BaseException:
            self._trials = {}  # memory may have more than the database
            raise

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial and return its id."""
        with self._trials_lock:
            trials = self._trials_of_study(study_id)
            trial_id = self.database.create_new_trial(study_id, template_trial)
            trials[trial_id] = self.database.get_trial(trial_id)
            return trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Store a parameter that the sampler has suggested."""
        with self._trials_lock:
            self.database.set_trial_param(trial_id, param_name, param_value_internal, distribution)
            value = distribution.to_external_repr(param_value_internal)
            self._remember(trial_id, "params", param_name, value)
            self._remember(trial_id, "distributions", param_name, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Store the state and the final values; return False for a trial that was taken already."""
        with self._trials_lock:
            changed = self.database.set_trial_state_values(trial_id, state, values)
            # Read back, because the database has added the time.
            self._trials_beside(trial_id)[trial_id] = self.database.get_trial(trial_id)
            return changed

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Store the score of an epoch."""
        with self._trials_lock:
            if math.isfinite(intermediate_value):
                self._execute(trial_id, _INSERT_SCORE, step, float(intermediate_value))
            else:
                self.database.set_trial_intermediate_value(trial_id, step, intermediate_value)
            self._remember(trial_id, "intermediate_values", step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store one of our own attributes of a trial."""
        with self._trials_lock:
            self._execute(trial_id, _INSERT_ATTRIBUTE, key, json.dumps(value))
            self._remember(trial_id, "user_attrs", key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute that the sampler keeps of a trial."""
        with self._trials_lock:
            self.database.set_trial_system_attr(trial_id, key, value)
            self._remember(trial_id, "system_attrs", key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; raise `KeyError` for an unknown id."""
        with self._trials_lock:
            return self._trials_beside(trial_id)[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number, or those in one of `states`."""
        with self._trials_lock:
            trials = list(self._trials_of_study(study_id).values())
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _trials_of_study(self, study_id: int) -> dict[int, FrozenTrial]:
        if study_id not in self._trials:
            trials = self.database.get_all_trials(study_id, deepcopy=False)
            self._trials[study_id] = {trial._trial_id: trial for trial in trials}
        return self._trials[study_id]

    def _trials_beside(self, trial_id: int) -> dict[int, FrozenTrial]:
        """Return the trials of the study that has the trial."""
        for trials in self._trials.values():
            if trial_id in trials:
                return trials
        for study in self.database.get_all_studies():
            if trial_id in (trials := self._trials_of_study(study._study_id)):
                return trials
        raise KeyError(f"no trial has the id {trial_id}")

    def _execute(self, trial_id: int, statement: str, *values: Any) -> None:
        """Write a row of the trial past Optuna's object mapper: every report writes two."""
        trial = self._trials_beside(trial_id)[trial_id]
        self.check_trial_is_updatable(trial_id, trial.state)
        session = self.database.scoped_session()
        try:
            session.connection().exec_driver_sql(statement, (trial_id, *values))
            session.commit()
        except BaseException:
            session.rollback()
            raise

    def _remember(self, trial_id: int, field: str, key: Any, value: Any) -> None:
        trials = self._trials_beside(trial_id)
        trial = copy.copy(trials[trial_id])
        setattr(trial, field, {**getattr(trial, field), key: value})
        trials[trial_id] = trial

    def delete_study(self, study_id: int) -> None:
        """Delete a study and its trials."""
        super().delete_study(study_id)
        self._trials.pop(study_id, None)

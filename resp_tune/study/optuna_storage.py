"""Optuna's storage for a study that one process writes: written to sqlite, read from memory.

Optuna's own reads every running trial anew from the database, all their epochs included, twice
whenever a trial is handed out, because another process may have changed them. A search has a lock:
there is no other. Read that way, to hand out a trial takes longer the more of them run.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

# In Optuna's own tables, whose version it checks when it opens the file.
_SCORE = (
    "INSERT INTO trial_intermediate_values"
    " (trial_id, step, intermediate_value, intermediate_value_type) VALUES (?, ?, ?, 'FINITE')"
    " ON CONFLICT (trial_id, step) DO UPDATE SET intermediate_value = excluded.intermediate_value,"
    " intermediate_value_type = excluded.intermediate_value_type"
)
_ATTRIBUTE = (
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
    " ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
)


class SingleWriterStorage(BaseStorage):
    """The one study that the database behind `file` holds, for its only writer.

    What is written is in the database before it is in memory.
    """

    def __init__(self, file: RDBStorage) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._trials: dict[int, FrozenTrial] | None = None  # by id, in the order of their numbers

    @contextmanager
    def one_commit(self) -> Iterator[None]:
        """Inside, all that this thread writes is one commit; none of it after an error.

        Optuna commits each value by itself, and a disk is waited for at every commit.
        """
        self.file.remove_session()  # the next one, which it makes as it is asked for, is ours
        try:
            with self.file.engine.begin() as connection:
                self.file.scoped_session(bind=connection, join_transaction_mode="rollback_only")
                try:
                    yield
                finally:
                    self.file.remove_session()
        except BaseException:
            self._trials = None  # memory may have more than the database
            raise

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Of the new trial, the id."""
        with self._lock:
            known = self._known(study_id)
            trial_id = self.file.create_new_trial(study_id, template_trial)
            known[trial_id] = self.file.get_trial(trial_id)
            return trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """One that the sampler was asked for."""
        with self._lock:
            self.file.set_trial_param(trial_id, param_name, param_value_internal, distribution)
            value = distribution.to_external_repr(param_value_internal)
            self._add(trial_id, "params", param_name, value)
            self._add(trial_id, "distributions", param_name, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Its start, or its end."""
        with self._lock:
            done = self.file.set_trial_state_values(trial_id, state, values)
            # Read back: the database has put the time to it.
            self._trials_of(trial_id)[trial_id] = self.file.get_trial(trial_id)
            return done

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """The score of an epoch."""
        with self._lock:
            if math.isfinite(intermediate_value):
                self._write(trial_id, _SCORE, step, float(intermediate_value))
            else:
                self.file.set_trial_intermediate_value(trial_id, step, intermediate_value)
            self._add(trial_id, "intermediate_values", step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What we keep of it. A `value` must not be changed afterwards."""
        with self._lock:
            self._write(trial_id, _ATTRIBUTE, key, json.dumps(value))
            self._add(trial_id, "user_attrs", key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What the sampler keeps of it."""
        with self._lock:
            self.file.set_trial_system_attr(trial_id, key, value)
            self._add(trial_id, "system_attrs", key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As it is now; `KeyError` where there is none."""
        with self._lock:
            return self._trials_of(trial_id)[trial_id]

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """By number."""
        with self._lock:
            found = list(self._known(study_id).values())
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _known(self, study_id: int) -> dict[int, FrozenTrial]:
        if self._trials is None:
            found = self.file.get_all_trials(study_id, deepcopy=False)
            self._trials = {trial._trial_id: trial for trial in found}
        return self._trials

    def _trials_of(self, trial_id: int) -> dict[int, FrozenTrial]:
        """Those of its study, of which there is one."""
        if self._trials is None:
            (study,) = self.file.get_all_studies()
            return self._known(study._study_id)
        return self._trials

    def _write(self, trial_id: int, statement: str, *values: Any) -> None:
        """A row of the trial, past Optuna's object mapper: every report has two."""
        trial = self._trials_of(trial_id)[trial_id]
        self.check_trial_is_updatable(trial_id, trial.state)
        session = self.file.scoped_session()
        try:
            session.connection().exec_driver_sql(statement, (trial_id, *values))
            session.commit()
        except BaseException:
            session.rollback()
            raise

    def _add(self, trial_id: int, field: str, key: Any, value: Any) -> None:
        trials = self._trials_of(trial_id)
        trial = copy.copy(trials[trial_id])
        setattr(trial, field, {**getattr(trial, field), key: value})
        trials[trial_id] = trial

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Of the new study, the id."""
        return self.file.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """With its trials."""
        self.file.delete_study(study_id)
        self._trials = None

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """What we keep of the study; not held in memory."""
        self.file.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """What Optuna keeps of it."""
        self.file.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Its id."""
        return self.file.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Its name."""
        return self.file.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """What is better: more, or less."""
        return self.file.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """What we keep of it."""
        return self.file.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """What Optuna keeps of it."""
        return self.file.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        """The one."""
        return self.file.get_all_studies()

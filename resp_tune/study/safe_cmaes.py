"""CMA-ES as Optuna has it, but for its optimiser, which the study keeps as a pickle.

A study is a file that people hand on, and to read a pickle is to run what it names. This reader
knows the few names that an optimiser consists of, and refuses every other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import cmaes
from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial

from resp_tune.errors import RunError

_NAMES = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),  # numpy before 2
    ("numpy.core.multiarray", "scalar"),
}
_KEY = "cma:optimizer:"


class SafeCmaEsSampler(CmaEsSampler):
    """Optuna's sampler; a study whose optimiser is no optimiser is a `RunError`."""

    def _restore_optimizer(self, completed_trials: Sequence[FrozenTrial]) -> cmaes.CMA | None:
        for trial in reversed(completed_trials):
            parts = {k: v for k, v in trial.system_attrs.items() if k.startswith(_KEY)}
            if parts:
                in_order = [parts.get(f"{_KEY}{i}", "a part is missing") for i in range(len(parts))]
                return read_optimiser("".join(map(str, in_order)), trial.number)
        return None


def read_optimiser(text: str, number: int) -> cmaes.CMA:
    """The optimiser that Optuna wrote, in hexadecimal digits, to trial `number`."""
    try:
        found = _SafeUnpickler(io.BytesIO(bytes.fromhex(text))).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise _refusal(number, " ".join(str(error).split())[:200]) from error
    if not isinstance(found, cmaes.CMA):
        raise _refusal(number, f"it is a {type(found).__name__}")
    return found


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _refusal(number: int, why: str) -> RunError:
    return RunError(
        f"what the study keeps of CMA-ES at trial {number} is damaged, or was not written by it "
        f"({why}): restore study.db from a copy, or go on with --sampler tpe"
    )

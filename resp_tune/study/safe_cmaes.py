"""Read the optimiser of CMA-ES, which Optuna keeps in the study as a pickle, safely.

Studies are passed from person to person, and reading a pickle runs what it names. This reader knows
the few names that an optimiser consists of, and refuses every other.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

from resp_tune.errors import RunError

if TYPE_CHECKING:
    import cmaes

_NAMES = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),  # numpy before 2
    ("numpy.core.multiarray", "scalar"),
}


def read_optimiser(text: str, number: int) -> cmaes.CMA:
    """Return the optimiser that Optuna wrote, in hexadecimal digits, with trial `number`.

    Raises `RunError` for text that is anything else.
    """
    import cmaes  # slow, by scipy.stats

    try:
        optimiser = _SafeUnpickler(io.BytesIO(bytes.fromhex(text))).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise _refusal(number, " ".join(str(error).split())[:200]) from error
    if not isinstance(optimiser, cmaes.CMA):
        raise _refusal(number, f"it is a {type(optimiser).__name__}")
    return optimiser


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _refusal(number: int, why: str) -> RunError:
    return RunError(
        f"the state of CMA-ES that the study keeps with trial {number} is damaged or was not "
        f"written by CMA-ES ({why}): restore study.db from a copy, or continue with --sampler tpe"
    )

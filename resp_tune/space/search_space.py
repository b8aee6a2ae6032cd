"""Read search spaces, YAML files that name the varied fields of the trial config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

import resp_tune
from resp_tune.common.paths import user_path
from resp_tune.common.yaml_files import read_yaml
from resp_tune.config import FIELDS, FrontEnd, TrialConfig, preset
from resp_tune.errors import UserError, nearest
from resp_tune.space.conditions import APART, check_coupled, combinations, in_order
from resp_tune.space.parameters import FloatRange, IntRange, Parameter, parse_parameter

MAX_FRONT_ENDS = 1024  # each has a cache on disk
# `normalise: pcen` is another front end; its other values are one and the same.
FRONT_END_FIELDS = ("sample_rate", "n_fft", "hop_length", "n_mels", "f_min", "f_max", "normalise")
NOT_SEARCHED = ("seed", "epochs")  # set by --seed and --epochs for every trial
# Values of other fields beside which any value of a field can be checked alone.
ALONE = {"sample_rate": 192_000, "f_min": 0.0, "f_max": None, "micro_batch": None}


@dataclass(frozen=True)
class SearchSpace:
    """The fields that a search varies (`parameters`), and the config with all others (`base`).

    A parameter comes after those that its `when` names. While its conditions do not hold, its field
    has the value of the base config, also in the conditions of others.
    """

    name: str
    description: str
    base: TrialConfig
    parameters: Mapping[str, Parameter]

    def suggest(self, trial: optuna.trial.Trial) -> TrialConfig:
        """Return a config for `trial`, with all active parameters suggested by its sampler."""
        return self.base.replace(self.suggest_values(trial))

    def suggest_values(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """Return the fields of `suggest`'s config, not yet validated together."""
        return self._values(lambda name, parameter: parameter.suggest(trial, name))

    def baseline(self) -> TrialConfig:
        """Return the base config, with each active parameter at the nearest value in the space."""
        values = self._values(lambda name, parameter: parameter.nearest(getattr(self.base, name)))
        return self.base.replace(values)

    def _values(self, choose: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        values = self.base.as_dict()
        for name, parameter in self.parameters.items():
            if parameter.active(values):
                values |= parameter.fields(name, choose(name, parameter))
        return values

    def baseline_params(self) -> dict[str, Any]:
        """Return the baseline's active parameters as Optuna stores them."""
        values, params = self.baseline().as_dict(), dict[str, Any]()
        for name, parameter in self.parameters.items():
            if parameter.active(values):
                params |= parameter.optuna_params(name, values[name])
        return params

    def values(self, config: TrialConfig) -> dict[str, Any]:
        """Return the searched fields of `config`."""
        return {name: getattr(config, name) for name in self.parameters}

    def front_ends(self) -> tuple[FrontEnd, ...]:
        """Return all front ends of trials; raise `UserError` for an invalid combination."""
        for name, parameter in self.parameters.items():
            if name in FRONT_END_FIELDS:
                _check_countable(name, parameter)
        front_ends = dict[FrontEnd, None]()
        for values in combinations(self.base, self.parameters, FRONT_END_FIELDS, every=True):
            try:
                front_ends[self.base.replace(values).front_end] = None
            except UserError as error:
                listed = ", ".join(f"{k} {v}" for k, v in values.items())
                raise UserError(f"{error}. A trial may have {listed}: {APART}") from error
        if len(front_ends) > MAX_FRONT_ENDS:
            raise UserError(
                f"{', '.join(values)} give {len(front_ends)} front ends, each with a cache on "
                f"disk; at most {MAX_FRONT_ENDS}: use fewer values, or {APART}"
            )
        return tuple(front_ends)


def load_space(name: str) -> SearchSpace:
    """Return the space in a YAML file; raise `UserError` with the position of its first error.

    A path that does not exist is also looked up among the spaces that come with the package, so
    that `search_spaces/default.yaml` works from any folder.
    """
    path = _find(name)
    content = read_yaml(f"space '{name}'", path)
    try:
        return _parse(path.stem, content)
    except UserError as error:
        raise UserError(f"space '{name}': {error}") from error


def _find(name: str) -> Path:
    path = user_path(name)
    if path.is_file():
        return path
    package = Path(resp_tune.__file__).parent
    for shipped in (package.parent / "search_spaces", package / "search_spaces"):
        known = sorted(p.name for p in shipped.glob("*.yaml"))
        if path.name in known and path.parent.name in ("", "search_spaces"):
            return shipped / path.name
        if known:
            raise UserError(f"space '{name}' is not a file: {nearest(path.name, known)}")
    raise UserError(f"space '{name}' is not a file: give the path of a YAML search space")


def _parse(name: str, content: Any) -> SearchSpace:
    if not isinstance(content, dict):
        raise UserError("must be a mapping with 'parameters'")
    known = ("description", "preset", "fixed", "parameters")
    for key in content:
        if key not in known:
            raise UserError(f"unknown key {str(key)!r}: {nearest(str(key), known)}")
    base = preset(str(content.get("preset", "baseline")))
    fixed, parameters = content.get("fixed") or {}, content.get("parameters")
    if not isinstance(fixed, dict):
        raise UserError("'fixed' must be a mapping of field to value")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError("'parameters' must be a mapping of field to {type: …}, with at least one")
    for field in NOT_SEARCHED:
        if field in fixed:
            raise UserError(f"'{field}' is the same for the whole search: give --{field} instead")
    base = base.replace({str(k): v for k, v in fixed.items()})
    parsed = {str(field): _parameter(str(field), value) for field, value in parameters.items()}
    for field, parameter in parsed.items():
        if field in fixed and not parameter.when:  # with one, `fixed` has its value otherwise
            raise UserError(f"'{field}' is in both 'fixed' and 'parameters'")
    check_coupled(parsed, fixed, NOT_SEARCHED)
    for field, parameter in parsed.items():
        _check_values(base, field, parameter)
    description = " ".join(str(content.get("description", "")).split())
    space = SearchSpace(name, description, base, in_order(base, parsed))
    _check_micro_batches(space)
    space.front_ends()
    return space


def _parameter(field: str, value: Any) -> Parameter:
    if field not in FIELDS:
        raise UserError(f"unknown field {field!r}: {nearest(field, FIELDS)}")
    if field in NOT_SEARCHED:
        raise UserError(f"'{field}' is not searched: give --{field} instead")
    return parse_parameter(field, value)


def _check_values(base: TrialConfig, field: str, parameter: Parameter) -> None:
    """Check each value alone, of a range its ends; `front_ends` checks combinations."""
    for value in parameter.ends():
        for name, own in parameter.fields(field, value).items():
            base.replace({**ALONE, "batch_size": 65_536, name: own})
    if isinstance(parameter, FloatRange) and isinstance(FIELDS[field].default, int):
        raise UserError(f"{field}: type float does not fit a whole number: use int or ordinal")


def _check_micro_batches(space: SearchSpace) -> None:
    """Raise `UserError` if a trial could have a micro-batch above its batch."""
    fields = ("batch_size", "micro_batch")
    for values in combinations(space.base, space.parameters, fields, every=False):
        batch, micro = ({**space.base.as_dict(), **values}[field] for field in fields)
        if micro is not None and micro > batch:
            raise UserError(
                f"micro_batch {micro} is above batch_size {batch}, which a trial may have with it: "
                f"keep all of one at or below all of the other, or apart: {APART}"
            )


def _check_countable(field: str, parameter: Parameter) -> None:
    """Raise `UserError` if a field of the front end has many values."""
    if isinstance(parameter, FloatRange) or (
        isinstance(parameter, IntRange) and len(parameter.values) > MAX_FRONT_ENDS
    ):
        raise UserError(
            f"{field}: type {parameter.type} has too many values, each of which has a cache "
            "on disk: use ordinal or categorical"
        )

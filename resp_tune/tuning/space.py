"""Search spaces: YAML files that say which fields of the trial config vary, and over what."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

import resp_tune
from resp_tune.config import FIELDS, FrontEnd, TrialConfig, preset
from resp_tune.errors import UserError, nearest

LARGEST_FILE = 100_000  # bytes; a space is a page of text
MOST_FRONT_ENDS = 256  # each names a feature store
FRONT_END_FIELDS = ("sample_rate", "n_fft", "hop_length", "n_mels", "f_min", "f_max")
NOT_SEARCHED = ("seed", "epochs")  # set by --seed and --epochs for every trial

Scalar = bool | int | float | str | None


# What a float holds exactly; YAML has whole numbers of any length.
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Range(_Strict):
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        low, high, step = getattr(self, "low"), getattr(self, "high"), getattr(self, "step")  # noqa: B009  # declared by the subclasses
        if low >= high:
            raise ValueError(f"low {low:g} is not below high {high:g}")
        if self.log and low <= 0:
            raise ValueError(f"low {low:g} must be above 0 when log is true")
        if self.log and step is not None:
            raise ValueError("log and step cannot be combined")
        if step is not None and step <= 0:
            raise ValueError(f"step {step:g} is not above 0")
        return self


class FloatRange(_Range):
    """A real number, uniform in `low..high` or in its logarithm."""

    type: Literal["float"]
    low: float
    high: float
    step: float | None = None

    def suggest(self, trial: optuna.trial.Trial, name: str) -> float:
        """A value for `name`, chosen by the study's sampler."""
        # Some samplers give numpy's scalar, which is no float to JSON and the config.
        return float(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds `value`, moved into the range."""
        moved = min(max(_number_or(self.high, value), self.low), self.high)
        if self.step is not None:
            steps = min((moved - self.low) / self.step, (self.high - self.low) // self.step)
            moved = self.low + round(steps) * self.step
        return {name: moved}

    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return (self.low, self.high)


class IntRange(_Range):
    """A whole number, uniform in `low..high` or in its logarithm."""

    type: Literal["int"]
    low: Whole
    high: Whole
    step: Whole | None = None

    def suggest(self, trial: optuna.trial.Trial, name: str) -> int:
        """A value for `name`, chosen by the study's sampler."""
        return int(trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log))

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds `value`, moved into the range."""
        step = self.step or 1
        moved = int(min(max(_number_or(self.high, value), self.low), self.high))
        return {name: self.low + (moved - self.low) // step * step}

    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return (self.low, self.high)


class Ordinal(_Strict):
    """A few numbers in ascending order: samplers know which are neighbours.

    Evenly spaced whole numbers are an integer parameter of the study; others are held by position,
    as `<name>_index`, since Optuna has no distribution of uneven values.
    """

    type: Literal["ordinal"]
    values: list[Whole | float] = Field(min_length=2, max_length=1000)

    @model_validator(mode="after")
    def _ascending(self) -> Ordinal:
        for one, other in itertools.pairwise(self.values):
            if one >= other:
                raise ValueError(f"values must ascend, {other:g} follows {one:g}")
        return self

    @property
    def _step(self) -> int | None:
        steps = {b - a for a, b in itertools.pairwise(self.values)}
        whole = all(isinstance(v, int) for v in self.values)
        return int(steps.pop()) if whole and len(steps) == 1 else None

    def suggest(self, trial: optuna.trial.Trial, name: str) -> float:
        """A value for `name`, chosen by the study's sampler."""
        if (step := self._step) is not None:
            low, high = int(self.values[0]), int(self.values[-1])
            return int(trial.suggest_int(name, low, high, step=step))
        return self.values[trial.suggest_int(f"{name}_index", 0, len(self.values) - 1)]

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds the value nearest to `value`."""
        wanted = _number_or(self.values[-1], value)
        at = min(range(len(self.values)), key=lambda i: abs(self.values[i] - wanted))
        return {name: self.values[at]} if self._step is not None else {f"{name}_index": at}

    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return tuple(self.values)


class Categorical(_Strict):
    """Values without an order."""

    type: Literal["categorical"]
    values: list[Scalar] = Field(min_length=2, max_length=1000)

    @model_validator(mode="after")
    def _distinct(self) -> Categorical:
        if len({repr(v) for v in self.values}) < len(self.values):
            raise ValueError("a value is given twice")
        return self

    def suggest(self, trial: optuna.trial.Trial, name: str) -> Scalar:
        """A value for `name`, chosen by the study's sampler."""
        return trial.suggest_categorical(name, self.values)

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds `value`, or the first value if it is not one of them."""
        return {name: value if value in self.values else self.values[0]}

    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return tuple(self.values)


def _number_or(high: float, value: float | None) -> float:
    """`value`, or the upper end for null: `f_max` and `micro_batch` mean as much as there is."""
    return high if value is None else value


Parameter = FloatRange | IntRange | Ordinal | Categorical
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Annotated[Parameter, Field(discriminator="type")])


@dataclass(frozen=True)
class SearchSpace:
    """What a search varies (`parameters`), around which config (`base`)."""

    name: str
    description: str
    base: TrialConfig
    parameters: Mapping[str, Parameter]

    def suggest(self, trial: optuna.trial.Trial) -> TrialConfig:
        """A config for `trial`, every parameter chosen by the study's sampler."""
        return self.base.replace({n: p.suggest(trial, n) for n, p in self.parameters.items()})

    def baseline(self) -> TrialConfig:
        """The base config, each parameter moved to the nearest value that the space allows."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(self.baseline_params())
        return self.suggest(study.ask())

    def baseline_params(self) -> dict[str, Any]:
        """The baseline as parameters of the study."""
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            values |= parameter.optuna_params(name, getattr(self.base, name))
        return values

    def values(self, config: TrialConfig) -> dict[str, Any]:
        """The searched fields of `config`."""
        return {name: getattr(config, name) for name in self.parameters}

    def front_ends(self) -> tuple[FrontEnd, ...]:
        """Every front end that a trial may ask for; `UserError` for a combination that is wrong."""
        searched = [n for n in self.parameters if n in FRONT_END_FIELDS]
        choices = [_all_values(n, self.parameters[n]) for n in searched]
        if (count := _product(choices)) > MOST_FRONT_ENDS:
            raise UserError(
                f"space '{self.name}': {' × '.join(searched)} give {count} front ends, each a "
                f"feature store on disk; at most {MOST_FRONT_ENDS}: use fewer values"
            )
        return tuple(
            dict.fromkeys(
                self.base.replace(dict(zip(searched, values, strict=True))).front_end
                for values in itertools.product(*choices)
            )
        )


def load_space(given: str) -> SearchSpace:
    """The space in the YAML file `given`; raises `UserError` with the place of the first mistake.

    A path that is not there is also looked for among the spaces that come with the package, so that
    `search_spaces/default.yaml` works from any folder.
    """
    path = _find(given)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"space '{given}' has over {LARGEST_FILE} bytes: not a search space")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # days and numbers that cannot be, too
        said = " ".join(str(error).split())
        raise UserError(f"space '{given}' cannot be read: {said}") from error
    except yaml.YAMLError as error:
        raise UserError(f"space '{given}' is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _parse(path.stem, content)
    except UserError as error:
        raise UserError(f"space '{given}': {error}") from error


def _find(given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_file():
        return path
    package = Path(resp_tune.__file__).parent
    for shipped in (package.parent / "search_spaces", package / "search_spaces"):
        known = sorted(p.name for p in shipped.glob("*.yaml"))
        if path.name in known and path.parent.name in ("", "search_spaces"):
            return shipped / path.name
        if known:
            raise UserError(f"space '{given}' is not a file: {nearest(path.name, known)}")
    raise UserError(f"space '{given}' is not a file: give the path of a YAML search space")


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
    base = base.replace({str(k): v for k, v in fixed.items()})
    parsed = {str(field): _parameter(str(field), value) for field, value in parameters.items()}
    for field, parameter in parsed.items():
        if field in fixed:
            raise UserError(f"'{field}' stands in both 'fixed' and 'parameters'")
        _check_values(base, field, parameter)
    _check_micro_batches(base, parsed)
    description = " ".join(str(content.get("description", "")).split())
    return SearchSpace(name, description, base, parsed)


def _parameter(field: str, value: Any) -> Parameter:
    if field not in FIELDS:
        raise UserError(f"unknown field {field!r}: {nearest(field, FIELDS)}")
    if field in NOT_SEARCHED:
        raise UserError(f"'{field}' is not searched: give --{field} instead")
    if isinstance(value, dict):
        value = {key: _number(v) for key, v in value.items()}
    try:
        return _PARAMETER.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{field}: {_first_mistake(error, value)}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text, since it has no point; nobody means text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.ASCII | re.I):
        return float(value)
    return value


def _first_mistake(error: ValidationError, value: Any) -> str:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"][1:]]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        return "must be {type: float, int, ordinal or categorical, …}" + (
            f", not type {value['type']!r}" if isinstance(value, dict) and "type" in value else ""
        )
    if first["type"] == "extra_forbidden":
        known = {"ordinal": ["values"], "categorical": ["values"]}
        options = known.get(value["type"], ["low", "high", "log", "step"])
        return f"unknown key {where[0]!r}: {nearest(where[0], options)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(where[:1])}: {message}" if where else message


def _check_values(base: TrialConfig, field: str, parameter: Parameter) -> None:
    """Each end of a range on its own; combinations are seen by `front_ends` and the sampler."""
    spec = FIELDS[field]
    for value in parameter.ends():
        probe = {field: value}
        if field in ("batch_size", "micro_batch"):  # held to each other by `_check_micro_batches`
            probe = {"micro_batch": None, "batch_size": 65_536, **probe}
        if field in FRONT_END_FIELDS:
            continue  # judged in combination, by `front_ends`
        base.replace(probe)
    if isinstance(parameter, FloatRange) and isinstance(spec.default, int):
        raise UserError(f"{field}: type float does not fit a whole number: use int or ordinal")


def _check_micro_batches(base: TrialConfig, parsed: Mapping[str, Parameter]) -> None:
    """No trial may be handed a micro-batch above its batch, whatever else it is handed."""
    micro, batch = (
        parsed[name].ends() if name in parsed else (getattr(base, name),)
        for name in ("micro_batch", "batch_size")
    )
    largest = max((m for m in micro if m is not None), default=0)
    if largest > min(batch):
        raise UserError(
            f"micro_batch {largest} is above batch_size {min(batch)}, which a trial may be given "
            "with it: keep all of one at or below all of the other"
        )


def _all_values(field: str, parameter: Parameter) -> list[Any]:
    if isinstance(parameter, IntRange):
        values = range(parameter.low, parameter.high + 1, parameter.step or 1)
        if not parameter.log and len(values) <= MOST_FRONT_ENDS:
            return list(values)
    if isinstance(parameter, Ordinal | Categorical):
        return list(parameter.values)
    raise UserError(
        f"{field}: type {parameter.type} has too many values, each of which is a feature store on "
        "disk: use ordinal or categorical"
    )


def _product(choices: list[list[Any]]) -> int:
    count = 1
    for values in choices:
        count *= len(values)
    return count

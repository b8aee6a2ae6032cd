"""What a search space may say of one field: its values, and when and with what they apply."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

import optuna
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from resp_tune.errors import UserError, nearest

Scalar = bool | int | float | str | None
MOST_STEPS = 1e15  # fewer than floats can tell apart

# What a float holds exactly; YAML has whole numbers of any length.
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]

Options = Annotated[
    list[Scalar],
    Field(min_length=1, max_length=1000),
    BeforeValidator(lambda given: given if isinstance(given, list) else [given]),
]


class _Parameter(BaseModel):
    """A searched field. `when`: only where other searched fields have one of these values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Options] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As the study of a search holds it: what is newer than some searches, only if given."""
        dumped = handler(self)
        newer = {"when": dumped.pop("when"), "with": dumped.pop("along", None)}
        return {**dumped, **{key: value for key, value in newer.items() if value}}

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial of these field values is asked for the parameter."""
        return all(values[other] in options for other, options in self.when.items())

    def fields(self, name: str, value: Any) -> dict[str, Any]:
        """The fields that `value` of the parameter sets: itself, and those that move with it."""
        return {name: value}


class _Range(_Parameter):
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
        if step is not None and (high - low) / step > MOST_STEPS:
            raise ValueError(f"step {step:g} is too small for {low:g} to {high:g}")
        return self

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds `value`, which must be in the range."""
        return {name: value}

    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return (getattr(self, "low"), getattr(self, "high"))  # noqa: B009  # as above


class FloatRange(_Range):
    """A real number, uniform in `low..high` or in its logarithm."""

    type: Literal["float"]
    low: float
    high: float
    step: float | None = None

    def suggest(self, trial: optuna.trial.Trial, name: str) -> float:
        """A value for `name`, chosen by the study's sampler."""
        # Some samplers give numpy's scalar, which is no float to JSON and the config.
        high = self.nearest(self.high)
        return float(trial.suggest_float(name, self.low, high, step=self.step, log=self.log))

    def nearest(self, value: Any) -> float:
        """`value`, moved into the range."""
        moved = min(max(_number_or(self.high, value), self.low), self.high)
        if self.step is None:
            return moved
        # As Optuna counts: in decimals, so that 3 · 0.1 is 0.3.
        low, high, step = (Decimal(str(v)) for v in (self.low, self.high, self.step))
        steps = min(round((moved - self.low) / self.step), int((high - low) // step))
        return float(low + steps * step)


class IntRange(_Range):
    """A whole number, uniform in `low..high` or in its logarithm."""

    type: Literal["int"]
    low: Whole
    high: Whole
    step: Whole | None = None

    @property
    def values(self) -> range:
        """All of them."""
        return range(self.low, self.high + 1, self.step or 1)

    def suggest(self, trial: optuna.trial.Trial, name: str) -> int:
        """A value for `name`, chosen by the study's sampler."""
        high, step = self.values[-1], self.values.step
        return int(trial.suggest_int(name, self.low, high, step=step, log=self.log))

    def nearest(self, value: Any) -> int:
        """`value`, moved into the range."""
        moved = int(min(max(_number_or(self.high, value), self.low), self.high))
        return self.low + (moved - self.low) // self.values.step * self.values.step


class ValueList(_Parameter):
    """Listed values. `along` (`with` in YAML): other fields, and theirs beside each value."""

    along: dict[str, list[Scalar]] = Field(default_factory=dict, alias="with")

    @model_validator(mode="after")
    def _as_long(self) -> ValueList:
        for field, theirs in self.along.items():
            if len(theirs) != len(self.ends()):
                raise ValueError(
                    f"with {field!r}: {len(theirs)} values beside {len(self.ends())} in 'values'"
                )
        return self

    def fields(self, name: str, value: Any) -> dict[str, Any]:
        """The fields that `value` of the parameter sets: itself, and those that move with it."""
        at = self.ends().index(value)
        return {name: value, **{field: theirs[at] for field, theirs in self.along.items()}}

    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return tuple(getattr(self, "values"))  # noqa: B009  # declared by the subclasses


class Ordinal(ValueList):
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

    def nearest(self, value: Any) -> float:
        """Of the values, the one nearest to `value`."""
        wanted = _number_or(self.values[-1], value)
        return min(self.values, key=lambda v: abs(v - wanted))

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds `value`, which must be one of them."""
        at = self.values.index(value)
        return {name: self.values[at]} if self._step is not None else {f"{name}_index": at}


class Categorical(ValueList):
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

    def nearest(self, value: Any) -> Scalar:
        """`value`, or the first if it is not one of them."""
        return value if value in self.values else self.values[0]

    def optuna_params(self, name: str, value: Any) -> dict[str, Any]:
        """How the study holds `value`, which must be one of them."""
        return {name: self.values[self.values.index(value)]}


def _number_or(high: float, value: float | None) -> float:
    """`value`, or the upper end for null: `f_max` and `micro_batch` mean as much as there is."""
    return high if value is None else value


Parameter = FloatRange | IntRange | Ordinal | Categorical
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Annotated[Parameter, Field(discriminator="type")])
_KEYS = {
    "float": ["low", "high", "log", "step", "when"],
    "int": ["low", "high", "log", "step", "when"],
    "ordinal": ["values", "when", "with"],
    "categorical": ["values", "when", "with"],
}


def parse_parameter(field: str, value: Any) -> Parameter:
    """The parameter that YAML's `value` describes; raises `UserError` with its first mistake."""
    try:
        return _PARAMETER.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{field}: {_first_mistake(error, value)}") from error


def _first_mistake(error: ValidationError, value: Any) -> str:
    found = error.errors()
    # A key that is misspelt is also missing, which says less.
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    where = [str(part) for part in first["loc"][1:]]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        wanted = "must be {type: float, int, ordinal or categorical, …}"
        if not isinstance(value, dict) or "type" not in value:
            return wanted
        hint = nearest(str(value["type"]), _KEYS)
        close = f"; {hint}" if hint.startswith("did") else ""
        return f"{wanted}, not type {value['type']!r}{close}"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where[0]!r}: {nearest(where[0], _KEYS[value['type']])}"
    message = first["msg"].removeprefix("Value error, ")
    depth = 2 if where and where[0] in ("when", "with") else 1
    return " ".join(f"{'.'.join(where[:depth])}: {message}".split()) if where else message

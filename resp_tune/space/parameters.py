"""The parameters of a search space: the values of a field, and when and with what they apply."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
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

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Scalar = bool | int | float | str | None
MAX_STEPS = 1e15  # fewer than floats can tell apart

# Integers that a float represents exactly; YAML has integers of any length.
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]

Options = Annotated[
    list[Scalar],
    Field(min_length=1, max_length=1000),
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
]


class _Parameter(BaseModel):
    """A searched field. `when`: other searched fields, and those of their values it applies to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Options] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out empty keys that older studies, which store this dump, do not have."""
        dumped = handler(self)
        newer = {"when": dumped.pop("when"), "with": dumped.pop("along", None)}
        return {**dumped, **{key: value for key, value in newer.items() if value}}

    def active(self, config: Mapping[str, Any]) -> bool:
        """Return whether the parameter applies to a trial with these fields."""
        return all(config[other] in options for other, options in self.when.items())

    def fields(self, name: str, value: Any) -> dict[str, Any]:
        """Return the fields that `value` sets: its own, and those of its `with`."""
        return {name: value}

    def param_name(self, name: str) -> str:
        """Return what the Optuna study calls the parameter of field `name`."""
        return name

    def param(self, value: Any) -> Any:
        """Return `value`, which must be in the space, as the Optuna study stores it."""
        return value

    def value(self, param: Any) -> Any:
        """Return the value of the field for a parameter of the Optuna study."""
        return param


class Range(_Parameter):
    """Numbers in `low..high`, both included unless a step misses `high`."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @model_validator(mode="after")
    def _check_range(self) -> Range:
        low, high, step = self.low, self.high, self.step
        if low >= high:
            raise ValueError(f"low {low:g} is not below high {high:g}")
        if self.log and low <= 0:
            raise ValueError(f"low {low:g} must be above 0 when log is true")
        if self.log and step is not None:
            raise ValueError("log and step cannot be combined")
        if step is not None and step <= 0:
            raise ValueError(f"step {step:g} is not above 0")
        if step is not None and (high - low) / step > MAX_STEPS:
            raise ValueError(f"step {step:g} is too small for {low:g} to {high:g}")
        return self

    def ends(self) -> tuple[Any, Any]:
        """Return the lowest and the highest value."""
        return (self.low, self.high)

    def _clip(self, value: float | None) -> float:
        # `f_max: null` and `micro_batch: null` mean as much as there is.
        return self.high if value is None else min(max(value, self.low), self.high)


class FloatRange(Range):
    """Real numbers, uniform in `low..high` or in its logarithm."""

    type: Literal["float"]

    @property
    def distribution(self) -> FloatDistribution:
        """The distribution in the Optuna study."""
        high = self.nearest(self.high)
        return FloatDistribution(self.low, high, step=self.step, log=self.log)

    def value(self, param: float) -> float:
        """Return the value of the field for a parameter of the Optuna study.

        Samplers multiply steps as floats, and 6 · 0.15 is 0.8999999999999999: the same point would
        have two values. Some return numpy's scalars, which JSON and the config do not accept.
        """
        return float(param if self.step is None else self.nearest(param))

    @property
    def count(self) -> float:
        """The number of values, infinite without a step."""
        if self.step is None:
            return math.inf
        return round((self.nearest(self.high) - self.low) / self.step) + 1

    def nearest(self, value: Any) -> float:
        """Return the value in the space that is nearest to `value`; of null, the highest."""
        clipped = self._clip(value)
        if self.step is None:
            return clipped
        # In decimals, as Optuna does, so that 3 · 0.1 is 0.3.
        low, high, step = (Decimal(str(v)) for v in (self.low, self.high, self.step))
        steps = min(round((clipped - self.low) / self.step), int((high - low) // step))
        return float(low + steps * step)

    @property
    def values(self) -> Sequence[float]:
        """All values, ascending; without a step only the ends."""
        if self.step is None:
            return self.ends()
        return [self.nearest(self.low + i * self.step) for i in range(int(self.count))]


class IntRange(Range):
    """Integers, uniform in `low..high` or in its logarithm."""

    type: Literal["int"]
    low: Whole
    high: Whole
    step: Whole | None = None

    @property
    def values(self) -> range:
        """All values, ascending."""
        return range(self.low, self.high + 1, self.step or 1)

    @property
    def count(self) -> int:
        """The number of values."""
        return (self.high - self.low) // (self.step or 1) + 1

    @property
    def distribution(self) -> IntDistribution:
        """The distribution in the Optuna study."""
        return IntDistribution(self.low, self.values[-1], step=self.values.step, log=self.log)

    def value(self, param: int) -> int:
        """Return the value of the field for a parameter of the Optuna study."""
        return int(param)

    def nearest(self, value: Any) -> int:
        """Return the value in the space that is nearest to `value`; of null, the highest."""
        return self.low + (int(self._clip(value)) - self.low) // self.values.step * self.values.step


class ValueList(_Parameter):
    """Listed values. `along` (`with` in YAML): other fields, each with one value beside each."""

    values: list[Any]
    along: dict[str, list[Scalar]] = Field(default_factory=dict, alias="with")

    @model_validator(mode="after")
    def _check_lengths(self) -> ValueList:
        count = len(self.values)
        for field, beside in self.along.items():
            if len(beside) != count:
                raise ValueError(f"with {field!r}: {len(beside)} values beside {count} in 'values'")
        return self

    @property
    def count(self) -> int:
        """The number of values."""
        return len(self.values)

    def fields(self, name: str, value: Any) -> dict[str, Any]:
        """Return the fields that `value` sets: its own, and those of its `with`."""
        index = self.values.index(value)
        return {name: value, **{field: beside[index] for field, beside in self.along.items()}}


class Ordinal(ValueList):
    """A few numbers in ascending order, or text as listed, of which samplers know the neighbours.

    Evenly spaced integers are an integer parameter of the study. Of others it has the positions, as
    `<name>_index`, since Optuna has no distribution over uneven values.
    """

    type: Literal["ordinal"]
    values: list[Whole | float | str] = Field(min_length=2, max_length=1000)

    @model_validator(mode="after")
    def _check_order(self) -> Ordinal:
        numbers = self._numbers
        if 0 < len(numbers) < len(self.values):
            raise ValueError("values: numbers and text have no order: use categorical")
        if len(set(self.values)) < len(self.values) and not numbers:
            raise ValueError("a value is given twice")
        for one, other in itertools.pairwise(numbers):
            if one >= other:
                raise ValueError(f"values must ascend, {other:g} follows {one:g}")
        return self

    @property
    def _numbers(self) -> list[int | float]:
        return [v for v in self.values if not isinstance(v, str)]

    @property
    def _step(self) -> int | None:
        steps = {b - a for a, b in itertools.pairwise(self._numbers)}
        whole = all(isinstance(v, int) for v in self.values)
        return int(steps.pop()) if whole and len(steps) == 1 else None

    @property
    def distribution(self) -> IntDistribution:
        """The distribution in the Optuna study."""
        if (step := self._step) is not None:
            return IntDistribution(int(self.values[0]), int(self.values[-1]), step=step)
        return IntDistribution(0, len(self.values) - 1)

    def nearest(self, value: Any) -> float | str:
        """Return the value in the space that is nearest to `value`; of null, the highest.

        Of text that is not in the space, the last.
        """
        if not self._numbers:
            return str(value) if value in self.values else self.values[-1]
        wanted = self._numbers[-1] if value is None else value
        return min(self._numbers, key=lambda v: abs(v - wanted))

    def param_name(self, name: str) -> str:
        """Return what the Optuna study calls the parameter of field `name`."""
        return f"{name}_index" if self._step is None else name

    def param(self, value: Any) -> Any:
        """Return `value`, which must be in the space, as the Optuna study stores it."""
        index = self.values.index(value)
        return index if self._step is None else self.values[index]

    def value(self, param: int) -> float | str:
        """Return the value of the field for a parameter of the Optuna study."""
        return self.values[param] if self._step is None else int(param)


class Categorical(ValueList):
    """Values without an order."""

    type: Literal["categorical"]
    values: list[Scalar] = Field(min_length=2, max_length=1000)

    @model_validator(mode="after")
    def _check_distinct(self) -> Categorical:
        if len({repr(v) for v in self.values}) < len(self.values):
            raise ValueError("a value is given twice")
        return self

    @property
    def distribution(self) -> CategoricalDistribution:
        """The distribution in the Optuna study."""
        return CategoricalDistribution(self.values)

    def nearest(self, value: Any) -> Scalar:
        """Return `value`, or the first value if it is not one of them."""
        return value if value in self.values else self.values[0]

    def param(self, value: Any) -> Any:
        """Return `value`, which must be in the space, as the Optuna study stores it."""
        return self.values[self.values.index(value)]


Parameter = FloatRange | IntRange | Ordinal | Categorical
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Annotated[Parameter, Field(discriminator="type")])
_KEYS = {
    **dict.fromkeys(("float", "int"), ("low", "high", "log", "step", "when")),
    **dict.fromkeys(("ordinal", "categorical"), ("values", "when", "with")),
}


def suggest(trial: optuna.trial.Trial, name: str, distribution: Distribution) -> Any:
    """Return a parameter of `trial` from the study's sampler."""
    d = distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(name, d.choices)
    if isinstance(d, FloatDistribution):
        return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
    return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)


def parse_parameter(field: str, value: Any) -> Parameter:
    """Return the parameter that YAML's `value` describes; raise `UserError` for its first error."""
    try:
        return _PARAMETER.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{field}: {_first_error(error, value)}") from error


def _first_error(error: ValidationError, value: Any) -> str:
    errors = error.errors()
    # A misspelt key is also missing, which says less.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
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

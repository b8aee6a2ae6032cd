"""Read search spaces, YAML files that name the varied fields of the trial config."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import optuna

import resp_tune
from resp_tune.common.paths import user_path
from resp_tune.common.yaml_files import read_yaml
from resp_tune.config import FIELDS, AnyFrontEnd, TrialConfig, coerce, preset
from resp_tune.errors import UserError, nearest
from resp_tune.space.parameters import (
    Distribution,
    FloatRange,
    IntRange,
    Parameter,
    Range,
    Scalar,
    ValueList,
    parse_parameter,
    suggest,
)

MAX_COMBINATIONS = 20_000  # that are checked one by one
NOT_SEARCHED = ("seed", "epochs")  # set by --seed and --epochs for every trial
APART = "`with:` moves fields together, `when:` restricts one to some values of another"
ENCODER_FIELDS = (
    "encoder_layer", "encoder_speed", "encoder_pool", "head", "head_c", "hidden", "feature_noise",
    "pca",
)  # fmt: skip
NETWORK_FIELDS = (  # of a network on log-mel frames alone
    "sample_rate", "clip_seconds", "n_fft", "hop_length", "n_mels", "f_min", "top_db", "channels",
    "pad", "crop", "normalise", "time_shift", "max_mask_pct", "n_freq_masks", "n_time_masks",
    "augment_validation", "network", "width", "depth", "precision",
)  # fmt: skip
HEAD_FIELDS = {  # of one head alone
    "linear": ("head_c",),
    "mlp": (
        "hidden", "feature_noise", "dropout", "lr", "weight_decay", "batch_size", "micro_batch",
        "ema", "balance", "label_smoothing", "mixup",
    ),
}  # fmt: skip
TEXT_FIELDS = ("encoder_layer", "encoder_speed")  # whose values may be numbers in YAML
MAX_FRONT_ENDS = 1024  # each has a cache on disk
# `normalise: pcen` is another front end; its other values are one and the same.
FRONT_END_FIELDS = (
    "sample_rate", "n_fft", "hop_length", "n_mels", "f_min", "f_max", "normalise", "resampling",
    "encoder", "encoder_layer", "encoder_speed",
)  # fmt: skip
# Values of other fields beside which any value of a field can be checked alone.
ALONE = {"sample_rate": 192_000, "f_min": 0.0, "f_max": None, "micro_batch": None}


@dataclass(frozen=True)
class SearchSpace:
    """The fields that a search varies (`parameters`), and the config with all others (`base`).

    A parameter comes after those that its `when` names. While its conditions do not hold, its field
    has the value of the base config, also in the conditions of others.
    """

    name: str
    base: TrialConfig
    parameters: Mapping[str, Parameter]

    def suggest(self, trial: optuna.trial.Trial) -> TrialConfig:
        """Return a config for `trial`, with all active parameters suggested by its sampler."""
        return self.base.replace(self.suggest_values(trial))

    def suggest_values(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """Return the fields of `suggest`'s config, not yet validated together."""
        return self._values(
            lambda name, parameter: parameter.value(
                suggest(trial, parameter.param_name(name), parameter.distribution)
            )
        )

    def baseline(self) -> TrialConfig:
        """Return the base config, with each active parameter at the nearest value in the space."""
        values = self._values(lambda name, parameter: parameter.nearest(getattr(self.base, name)))
        return self.base.replace(values)

    def examples(self, field: str) -> tuple[TrialConfig, ...]:
        """Return a config for each value that trials may have in `field`, the baseline first.

        All other fields have the baseline's values where the conditions of `field` allow them.
        """
        needed = _with_conditions(self.parameters, (field,))
        fields = [f for name in needed for f in _fields(name, self.parameters[name])]
        baseline = self.baseline()
        found = {getattr(baseline, field): baseline}
        for combination in _combinations(self.base, self.parameters, fields, every=False):

            def choose(
                name: str, parameter: Parameter, given: Mapping[str, Any] = combination
            ) -> Any:
                default = getattr(self.base, name)
                return given[name] if name in given else parameter.nearest(default)

            config = self.base.replace(self._values(choose))
            found.setdefault(getattr(config, field), config)
        return tuple(found.values())

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
                params[parameter.param_name(name)] = parameter.param(values[name])
        return params

    def draw_params(self, draw: Callable[[str, Distribution], Any]) -> dict[str, Any]:
        """Return the active parameters as Optuna stores them, each from `draw` by its name there.

        Drawn values are rounded to the parameter's step.
        """
        params = dict[str, Any]()

        def choose(name: str, parameter: Parameter) -> Any:
            param_name, distribution = parameter.param_name(name), parameter.distribution
            single = distribution.single()  # which not every sampler can draw from
            value = (
                parameter.nearest(None)
                if single
                else parameter.value(draw(param_name, distribution))
            )
            params[param_name] = parameter.param(value)
            return value

        self._values(choose)
        return params

    @cached_property
    def distributions(self) -> dict[str, Distribution]:
        """The distributions of all parameters in the Optuna study, also of conditional ones."""
        return {p.param_name(name): p.distribution for name, p in self.parameters.items()}

    @cached_property
    def size(self) -> float:
        """The number of points, which differ in an active parameter; infinite if any is real."""
        if any(p.count == math.inf and not p.when for p in self.parameters.values()):
            return math.inf
        conditions = dict[str, list[Any]]()
        for parameter in self.parameters.values():
            for name, options in parameter.when.items():
                conditions.setdefault(name, []).extend(options)

        def count(config: dict[str, Any], names: Sequence[str]) -> float:
            if not names:
                return 1
            (name, *rest), parameter = names, self.parameters[names[0]]
            if not parameter.active(config):
                return count(config, rest)
            if name not in conditions:
                return parameter.count * count(config, rest)
            # Values that no condition names make no difference to the parameters that follow.
            named = [v for v in parameter.values if v in conditions[name]]
            others = next(([v] for v in parameter.values if v not in named), [])
            total = sum(count(config | {name: value}, rest) for value in named)
            for value in others:
                total += (parameter.count - len(named)) * count(config | {name: value}, rest)
            return total

        return count(self.base.as_dict(), list(self.parameters))

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters of every point as Optuna stores them; `size` must be finite."""

        def extend(
            config: dict[str, Any], params: dict[str, Any], names: Sequence[str]
        ) -> Iterator[dict[str, Any]]:
            if not names:
                yield params
            elif not (parameter := self.parameters[names[0]]).active(config):
                yield from extend(config, params, names[1:])
            else:
                for value in parameter.values:
                    param = {parameter.param_name(names[0]): parameter.param(value)}
                    yield from extend(config | {names[0]: value}, params | param, names[1:])

        return extend(self.base.as_dict(), {}, list(self.parameters))

    def values(self, config: TrialConfig) -> dict[str, Any]:
        """Return the searched fields of `config`."""
        return {name: getattr(config, name) for name in self.parameters}

    def front_ends(self) -> tuple[AnyFrontEnd, ...]:
        """Return all front ends of trials; raise `UserError` for an invalid combination."""
        for name, parameter in self.parameters.items():
            many = isinstance(parameter, FloatRange) or len(parameter.values) > MAX_FRONT_ENDS
            if name in FRONT_END_FIELDS and many:
                raise UserError(
                    f"{name}: type {parameter.type} has too many values, each of which has a cache "
                    "on disk: use ordinal or categorical"
                )
        front_ends = dict[AnyFrontEnd, None]()
        for values in _combinations(self.base, self.parameters, FRONT_END_FIELDS, every=True):
            try:
                front_ends |= dict.fromkeys(self.base.replace(values).front_ends)
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
    known = ("description", "preset", "fixed", "parameters")  # a description is for people
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
    parsed = dict[str, Parameter]()
    for key, value in parameters.items():
        _check_searchable("", field := str(key))
        parsed[field] = parse_parameter(field, _as_text(field, value))
    for field, parameter in parsed.items():
        if field in fixed and not parameter.when:  # with one, `fixed` has its value otherwise
            raise UserError(f"'{field}' is in both 'fixed' and 'parameters'")
    _check_encoder_fields(base, parsed)
    _check_coupled(parsed, fixed)
    for field, parameter in parsed.items():
        _check_values(base, field, parameter)
    space = SearchSpace(name, base, _in_order(base, parsed))
    _check_micro_batches(space)
    space.front_ends()
    return space


def _check_encoder_fields(base: TrialConfig, parameters: Mapping[str, Parameter]) -> None:
    """Raise `UserError` for a searched field that no trial heeds, with or without an encoder."""
    searched = {f for name, p in parameters.items() for f in _fields(name, p)}
    encoders = set[Any]()
    for name, parameter in parameters.items():
        if isinstance(parameter, ValueList) and "encoder" in _fields(name, parameter):
            encoders |= {parameter.fields(name, value)["encoder"] for value in parameter.values}
            encoders |= {base.encoder} if parameter.when else set()
    encoders = encoders or {base.encoder}
    if encoders == {"none"}:
        _refuse_idle(
            searched, ENCODER_FIELDS, "without an encoder", "give encoder: PATH under fixed"
        )
    elif "none" not in encoders:
        _refuse_idle(searched, NETWORK_FIELDS, "with an encoder", "take it out")
        for head, fields in HEAD_FIELDS.items():
            if "head" not in searched and head != base.head:
                remedy = f"give head: {head} under fixed"
                _refuse_idle(searched, fields, f"with head: {base.head}", remedy)


def _refuse_idle(searched: Collection[str], fields: Sequence[str], where: str, remedy: str) -> None:
    if idle := [name for name in fields if name in searched]:
        raise UserError(f"{idle[0]}: {where} it changes nothing: {remedy}")


def _as_text(field: str, content: Any) -> Any:
    """Return a parameter in YAML whose layers and speeds are text, also those given as numbers."""

    def of(name: object, values: Any) -> Any:
        if name not in TEXT_FIELDS:
            return values
        several = isinstance(values, list)
        return [coerce(str(name), v) for v in values] if several else coerce(str(name), values)

    if not isinstance(content, dict):
        return content
    result = dict(content)
    if "values" in content:
        result["values"] = of(field, content["values"])
    for key in ("when", "with"):
        if isinstance(content.get(key), dict):
            result[key] = {name: of(name, values) for name, values in content[key].items()}
    return result


def _check_values(base: TrialConfig, field: str, parameter: Parameter) -> None:
    """Check each value alone, of a range its ends; `front_ends` checks combinations."""
    for value in parameter.ends() if isinstance(parameter, Range) else parameter.values:
        for name, own in parameter.fields(field, value).items():
            base.replace({**ALONE, "batch_size": 65_536, name: own})
    if isinstance(parameter, Range) and isinstance(FIELDS[field].default, str):
        raise UserError(f"{field}: type {parameter.type} does not fit: use ordinal or categorical")
    if isinstance(parameter, FloatRange) and isinstance(FIELDS[field].default, int):
        raise UserError(f"{field}: type float does not fit a whole number: use int or ordinal")


def _check_micro_batches(space: SearchSpace) -> None:
    """Raise `UserError` if a trial could have a micro-batch above its batch."""
    fields = ("batch_size", "micro_batch")
    for values in _combinations(space.base, space.parameters, fields, every=False):
        batch, micro = ({**space.base.as_dict(), **values}[field] for field in fields)
        if micro is not None and micro > batch:
            raise UserError(
                f"micro_batch {micro} is above batch_size {batch}, which a trial may have with it: "
                f"keep all of one at or below all of the other, or apart: {APART}"
            )


def _check_searchable(where: str, field: str) -> None:
    """Raise `UserError`, which begins with `where`, for a field that no search varies."""
    if field not in FIELDS:
        raise UserError(f"{where}unknown field {field!r}: {nearest(field, FIELDS)}")
    if field in NOT_SEARCHED:
        raise UserError(f"{where}'{field}' is not searched: give --{field} instead")


def _check_coupled(parameters: Mapping[str, Parameter], fixed: Collection[str]) -> None:
    """Raise `UserError` for a field in a `with` that must not be there.

    Beside a `when`, a field may be in `fixed` too: its value while the condition does not hold.
    """
    leaders = dict[str, str]()
    for name, parameter in parameters.items():
        for field in _fields(name, parameter)[1:]:
            where = f"{name}: with"
            _check_searchable(f"{where}: ", field)
            if field in parameters or (field in fixed and not parameter.when):
                other = "parameters" if field in parameters else "fixed"
                raise UserError(f"{where}: '{field}' is in '{other}' as well: keep one of them")
            if field in leaders:
                raise UserError(f"{where}: '{field}' moves with '{leaders[field]}' already")
            leaders[field] = name


def _in_order(base: TrialConfig, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Return the parameters, each after those that its `when` names, otherwise as written.

    Raises `UserError` for a condition on a field that is not searched, on a value that is
    impossible, or on the parameter itself.
    """
    for name, parameter in parameters.items():
        for other, options in parameter.when.items():
            _check_condition(base, parameters, f"{name}: when", other, options)
    ordered = dict[str, Parameter]()

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise UserError(f"{name}: when: a condition depends on itself: {circle}")
        if name not in ordered:
            for other in parameters[name].when:
                add(other, (*path, name))
            ordered[name] = parameters[name]

    for name in parameters:
        add(name, ())
    return ordered


def _check_condition(
    base: TrialConfig,
    parameters: Mapping[str, Parameter],
    where: str,
    other: str,
    options: Sequence[Scalar],
) -> None:
    if other not in FIELDS:
        raise UserError(f"{where}: unknown field {other!r}: {nearest(other, parameters)}")
    leader = next((n for n, p in parameters.items() if other in _fields(n, p)[1:]), None)
    if leader is not None:
        raise UserError(f"{where}: '{other}' moves with '{leader}': name that instead")
    if other not in parameters:
        raise UserError(f"{where}: '{other}' is not searched: {nearest(other, parameters)}")
    parameter = parameters[other]
    if isinstance(parameter, FloatRange):
        raise UserError(f"{where}: '{other}' is a float: only int, ordinal and categorical may be")
    for option in options:
        if parameter.when and option == getattr(base, other):
            continue  # its value while its own conditions do not hold
        if isinstance(parameter, IntRange):
            if not isinstance(option, int) or option not in parameter.values:
                low, high = parameter.ends()
                raise UserError(f"{where}: {other} {option!r} is not among {low} to {high}")
        elif option not in parameter.values:
            known = nearest(str(option), [str(v) for v in parameter.values])
            raise UserError(f"{where}: {other} is never {option!r}: {known}")


def _combinations(
    base: TrialConfig, parameters: Mapping[str, Parameter], fields: Collection[str], *, every: bool
) -> list[dict[str, Any]]:
    """Return the distinct combinations of values that a trial can have in the searched `fields`.

    They are the Cartesian product of the values of the parameters that set `fields` and of those
    in their conditions, where a parameter varies only while its conditions hold. Values that make
    no difference are left out: of a parameter that only conditions name, all but those named and
    the lowest and highest others. The same is done to int ranges unless `every`, since their ends
    are enough for a bound. `parameters` must be in order.
    """
    targets = {n for n, p in parameters.items() if any(f in fields for f in _fields(n, p))}
    needed = _with_conditions(parameters, fields)
    values = dict[str, Sequence[Any]]()
    for name in needed:
        parameter = parameters[name]
        if name in targets and (every or isinstance(parameter, ValueList)):
            values[name] = parameter.values
        else:
            named = [v for other in needed for v in parameters[other].when.get(name, ())]
            values[name] = _distinguishing(parameter.values, named)

    def product(config: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not names:
            yield config
        elif not (parameter := parameters[names[0]]).active(config):
            yield from product(config, names[1:])
        else:
            for value in values[names[0]]:
                yield from product(config | parameter.fields(names[0], value), names[1:])

    configs = list(islice(product(base.as_dict(), list(values)), MAX_COMBINATIONS + 1))
    if len(configs) > MAX_COMBINATIONS:
        raise UserError(
            f"{' × '.join(values)} have over {MAX_COMBINATIONS} combinations, which are checked "
            f"one by one: use fewer values, or {APART}"
        )
    shown = [f for n, p in parameters.items() for f in _fields(n, p) if f in fields]
    distinct = dict.fromkeys(tuple(config[field] for field in shown) for config in configs)
    return [dict(zip(shown, combination, strict=True)) for combination in distinct]


def _with_conditions(
    parameters: Mapping[str, Parameter], fields: Collection[str]
) -> tuple[str, ...]:
    """Return the parameters that set one of `fields` and those in their conditions, in order."""
    needed = {n for n, p in parameters.items() if any(f in fields for f in _fields(n, p))}
    for name in reversed(list(parameters)):
        needed |= parameters[name].when.keys() if name in needed else set()
    return tuple(name for name in parameters if name in needed)


def _fields(name: str, parameter: Parameter) -> tuple[str, ...]:
    """Return the fields that a parameter sets: its own, then those of its `with`."""
    return (name, *(parameter.along if isinstance(parameter, ValueList) else ()))


def _distinguishing(values: Sequence[Any], named: Sequence[Scalar]) -> Sequence[Any]:
    """Return the values that conditions name, and the lowest and the highest of the others."""
    chosen = [value for value in named if value in values]
    for ordered in (values, reversed(values)):
        chosen += next(([value] for value in ordered if value not in named), [])
    return list(dict.fromkeys(chosen))

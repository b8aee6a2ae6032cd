"""Check `when` and `with`, the relations between parameters, and list combinations of values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from resp_tune.config import FIELDS, TrialConfig
from resp_tune.errors import UserError, nearest
from resp_tune.space.parameters import FloatRange, IntRange, Parameter, Scalar, ValueList

MAX_COMBINATIONS = 20_000  # that are checked one by one
APART = "`with:` moves fields together, `when:` restricts one to some values of another"


def check_coupled(
    parameters: Mapping[str, Parameter], fixed: Collection[str], unsearchable: Collection[str]
) -> None:
    """Raise `UserError` for a field in a `with` that must not be there.

    Beside a `when`, a field may be in `fixed` too: its value while the condition does not hold.
    """
    leaders = dict[str, str]()
    for name, parameter in parameters.items():
        for field in _fields(name, parameter)[1:]:
            where = f"{name}: with"
            if field not in FIELDS:
                raise UserError(f"{where}: unknown field {field!r}: {nearest(field, FIELDS)}")
            if field in unsearchable:
                raise UserError(f"{where}: '{field}' is not searched: give --{field} instead")
            if field in parameters or (field in fixed and not parameter.when):
                other = "parameters" if field in parameters else "fixed"
                raise UserError(f"{where}: '{field}' is in '{other}' as well: keep one of them")
            if field in leaders:
                raise UserError(f"{where}: '{field}' moves with '{leaders[field]}' already")
            leaders[field] = name


def in_order(base: TrialConfig, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
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


def combinations(
    base: TrialConfig,
    parameters: Mapping[str, Parameter],
    fields: Collection[str],
    *,
    every: bool,
) -> list[dict[str, Any]]:
    """Return the distinct combinations of values that a trial can have in the searched `fields`.

    They are the Cartesian product of the values of the parameters that set `fields` and of those
    in their conditions, where a parameter varies only while its conditions hold. Values that make
    no difference are left out: of a parameter that only conditions name, all but those named and
    the lowest and highest others. The same is done to int ranges unless `every`, since their ends
    are enough for a bound. `parameters` must be in order.
    """
    targets = {n for n, p in parameters.items() if any(f in fields for f in _fields(n, p))}
    needed = set(targets)
    for name in reversed(list(parameters)):
        needed |= parameters[name].when.keys() if name in needed else set()
    values = dict[str, Sequence[Any]]()
    for name in (n for n in parameters if n in needed):
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


def _fields(name: str, parameter: Parameter) -> tuple[str, ...]:
    """Return the fields that a parameter sets: its own, then those of its `with`."""
    return (name, *(parameter.along if isinstance(parameter, ValueList) else ()))


def _distinguishing(values: Sequence[Any], named: Sequence[Scalar]) -> Sequence[Any]:
    """Return the values that conditions name, and the lowest and the highest of the others."""
    chosen = [value for value in named if value in values]
    for ordered in (values, reversed(values)):
        chosen += next(([value] for value in ordered if value not in named), [])
    return list(dict.fromkeys(chosen))

"""What the parameters of a space are to each other: `when`, `with`, and what can come together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from resp_tune.config import FIELDS, TrialConfig
from resp_tune.errors import UserError, nearest
from resp_tune.space.parameters import FloatRange, IntRange, Parameter, Scalar, ValueList

MOST_COMBINATIONS = 20_000  # that are looked at one by one
APART = "`with:` moves fields together, `when:` keeps one to some values of another"


def coupled(parameters: Mapping[str, Parameter]) -> dict[str, str]:
    """Fields that move with a parameter, each with the field it moves with."""
    listed = ((n, p) for n, p in parameters.items() if isinstance(p, ValueList))
    return {field: name for name, parameter in listed for field in parameter.along}


def check_coupled(
    parameters: Mapping[str, Parameter], fixed: Collection[str], unsearchable: Collection[str]
) -> None:
    """Raise `UserError` for a `with` that names what it may not.

    Beside a `when`, a field may be fixed as well: to what it has where the condition does not hold.
    """
    seen = dict[str, str]()
    for name, parameter in parameters.items():
        for field in parameter.along if isinstance(parameter, ValueList) else ():
            where = f"{name}: with"
            if field not in FIELDS:
                raise UserError(f"{where}: unknown field {field!r}: {nearest(field, FIELDS)}")
            if field in unsearchable:
                raise UserError(f"{where}: '{field}' is not searched: give --{field} instead")
            if field in parameters or (field in fixed and not parameter.when):
                other = "parameters" if field in parameters else "fixed"
                raise UserError(f"{where}: '{field}' stands in '{other}' as well: keep one of them")
            if field in seen:
                raise UserError(f"{where}: '{field}' moves with '{seen[field]}' already")
            seen[field] = name


def in_order(base: TrialConfig, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters, each after those that its `when` names, else as they were written.

    Raises `UserError` for a condition on what is not searched, on a value that cannot be, or on
    itself.
    """
    for name, parameter in parameters.items():
        for other, options in parameter.when.items():
            _check_condition(base, parameters, f"{name}: when", other, options)
    done = dict[str, Parameter]()

    def place(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise UserError(f"{name}: when: a condition depends on itself: {circle}")
        if name not in done:
            for other in parameters[name].when:
                place(other, (*path, name))
            done[name] = parameters[name]

    for name in parameters:
        place(name, ())
    return done


def _check_condition(
    base: TrialConfig,
    parameters: Mapping[str, Parameter],
    where: str,
    other: str,
    options: Sequence[Scalar],
) -> None:
    if other not in FIELDS:
        raise UserError(f"{where}: unknown field {other!r}: {nearest(other, parameters)}")
    if (leader := coupled(parameters).get(other)) is not None:
        raise UserError(f"{where}: '{other}' moves with '{leader}': name that instead")
    if other not in parameters:
        raise UserError(f"{where}: '{other}' is not searched: {nearest(other, parameters)}")
    parameter = parameters[other]
    if isinstance(parameter, FloatRange):
        raise UserError(f"{where}: '{other}' is a float: only int, ordinal and categorical may be")
    for option in options:
        if parameter.when and option == getattr(base, other):
            continue  # what it keeps where its own conditions do not hold
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
    """What a trial may be given of `fields`, as far as the space sets them: each mix once.

    `parameters` in order. `every`: all values of a whole-number range, else those that conditions
    name with the least and the greatest of the others, which is enough for a bound.
    """
    sets = {n: [f for f in _sets(n, p) if f in fields] for n, p in parameters.items()}
    wanted = {name for name, some in sets.items() if some}
    needed = set(wanted)
    for name in reversed(list(parameters)):
        needed |= parameters[name].when.keys() if name in needed else set()
    found = [base.as_dict()]
    for name in (n for n in parameters if n in needed):
        parameter = parameters[name]
        named = [v for n in needed for v in parameters[n].when.get(name, ())]
        listed = every or isinstance(parameter, ValueList)
        values = _all(parameter) if name in wanted and listed else _told_apart(parameter, named)
        active = [f for f in found if parameter.active(f)]
        if len(active) * len(values) + len(found) - len(active) > MOST_COMBINATIONS:
            raise UserError(
                f"{' × '.join(n for n in parameters if n in needed)} give over {MOST_COMBINATIONS} "
                f"combinations, which are looked at one by one: use fewer values, or {APART}"
            )
        found = [f for f in found if not parameter.active(f)]
        found += [f | parameter.fields(name, v) for f in active for v in values]
    shown = [field for some in sets.values() for field in some]
    mixes = dict.fromkeys(tuple(f[field] for field in shown) for f in found)
    return [dict(zip(shown, mix, strict=True)) for mix in mixes]


def _sets(name: str, parameter: Parameter) -> tuple[str, ...]:
    return (name, *(parameter.along if isinstance(parameter, ValueList) else ()))


def _all(parameter: Parameter) -> Sequence[Any]:
    return parameter.ends() if isinstance(parameter, FloatRange) else parameter.values


def _told_apart(parameter: Parameter, named: Sequence[Scalar]) -> Sequence[Any]:
    """The values that conditions name, with the least and the greatest of the others."""
    values = _all(parameter)
    told = [v for v in named if v in values]
    for ordered in (values, reversed(values)):
        told += next(([v] for v in ordered if v not in named), [])
    return list(dict.fromkeys(told))

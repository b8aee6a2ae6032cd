"""Tasks from YAML files: other groupings of the diagnoses, as docs/usage.md shows them."""

from __future__ import annotations

import re
from typing import Any

from resp_tune.common.choices import TASK_FILES
from resp_tune.common.paths import user_path
from resp_tune.common.text import shorten
from resp_tune.common.yaml_files import read_yaml
from resp_tune.data.metadata import canonical_diagnosis
from resp_tune.data.tasks import TASKS, Task, get_task, recording_task
from resp_tune.errors import UserError, nearest

LONGEST_CLASS = 40  # characters; class names head columns
LARGEST_FILE = 3_000  # bytes; the classes are in one parameter of MLflow, at most 6000 characters

_NAME = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)


def find_task(name_or_file: str) -> Task:
    """Return the built-in task of this name, or the task in this YAML file.

    Raises `UserError` for an unknown or faulty task.
    """
    if name_or_file.endswith(TASK_FILES):
        return load_task(name_or_file)
    try:
        return get_task(name_or_file)
    except UserError as error:
        raise UserError(f"{error} (or the path of a .yaml file)") from error


def task_from_classes(name: str, classes: Any) -> Task:
    """Return the task of a bundle or run, which has its `grouping` but not its file.

    A built-in task needs no `classes`. Raises `UserError` for damaged ones.
    """
    if name in TASKS or not classes:
        return get_task(name)
    try:
        return _parse({"name": name, "classes": classes})
    except UserError as error:
        raise UserError(f"the saved classes of the task '{shorten(name)}': {error}") from error


def load_task(file: str) -> Task:
    """Return the task in a YAML file; raise `UserError` with its first mistake."""
    path = user_path(file)
    if not path.is_file():
        raise UserError(
            f"task '{file}' is not a file: give the path of a YAML file that groups "
            f"diagnoses, or one of {', '.join(TASKS)}"
        )
    content = read_yaml(f"task '{file}'", path, LARGEST_FILE)
    try:
        return _parse(content)
    except UserError as error:
        raise UserError(f"task '{file}': {error}") from error


def _parse(content: Any) -> Task:
    if not isinstance(content, dict):
        raise UserError("must be a mapping with 'name' and 'classes'")
    known = ("name", "description", "unit", "classes")
    for key in content:
        if key not in known:
            raise UserError(f"unknown key {_shown(key)}: {nearest(str(key), known)}")
    if content.get("unit", "recording") != "recording":
        raise UserError(
            "'unit' can only be recording, as diagnoses are of whole recordings: the classes of "
            "breathing cycles come from annotations (task cycles)"
        )
    name = content.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"'name' must be a text of 1 to 40 of a-z, 0-9 and '-', not {_shown(name)}")
    if name in TASKS:
        raise UserError(f"'name' is that of the built-in task '{name}': choose another")
    description = content.get("description", "")
    if not isinstance(description, str):
        raise UserError(f"'description' must be a text, not {_shown(description)}")
    groups = _groups(content.get("classes"))
    if set(groups) <= set(TASKS["cycles"].classes):
        raise UserError(
            f"the classes {', '.join(groups)} are those of breathing cycles, which have metrics of "
            "their own: rename them, or use the task cycles"
        )
    return recording_task(name, " ".join(description.split()), groups)


def _groups(classes: Any) -> dict[str, tuple[str, ...]]:
    """Return the diagnoses of each class, sorted; the order of the classes is kept."""
    if not isinstance(classes, dict) or len(classes) < 2:
        raise UserError("'classes' must be a mapping of two or more classes to their diagnoses")
    class_of: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for key, diagnoses in classes.items():
        name = _name("class", key)
        if len(name) > LONGEST_CLASS:
            raise UserError(f"class '{shorten(name)}' has over {LONGEST_CLASS} characters")
        if not isinstance(diagnoses, list) or not diagnoses:
            raise UserError(f"class '{name}' must be a list of diagnoses, such as [COPD, Asthma]")
        for value in diagnoses:
            diagnosis = canonical_diagnosis(_name(f"class '{name}': diagnosis", value))
            if diagnosis in class_of:
                raise UserError(
                    f"diagnosis '{shorten(diagnosis)}' is in class '{class_of[diagnosis]}' and in "
                    f"'{name}': name it once"
                )
            class_of[diagnosis] = name
        groups[name] = tuple(sorted(d for d, own in class_of.items() if own == name))
    return groups


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} {_shown(value)} is not a text: write it in quotes")
    if not value or value != value.strip() or not value.isprintable():
        raise UserError(f"{what} {_shown(value)} is not a name: remove the spaces around it")
    return value


def _shown(value: Any) -> str:
    """Return a scalar of YAML as text; collections may be endless and are not shown."""
    if isinstance(value, dict | list | set):
        return "a list or mapping"
    return "null" if value is None else shorten(repr(value))

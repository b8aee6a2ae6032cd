"""The structure of the package: small folders, unique file names, few parameters."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import resp_tune

ROOT = Path(resp_tune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_FILES = 20  # of a folder
MAX_PARAMETERS = 7
MAX_WHOLE_SPEC = 12  # functions that take the whole `SearchSpec`
# Files that a value passes, by the line of docs/design.md that lists them.
MAX_FLOW = {"A recording": 36, "The parameter `lr`": 14, "An epoch's result": 12}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """Yield all functions and methods, each with its file and name."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def parameters(function: Function) -> list[ast.arg]:
    """Return the parameters of a function other than `self` and `cls`."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [arg for arg in every if arg.arg not in ("self", "cls")]


def takes_whole_spec(function: Function) -> bool:
    """Return whether a parameter is annotated with `SearchSpec`."""
    return any(arg.annotation and "SearchSpec" in ast.dump(arg.annotation)
               for arg in parameters(function))  # fmt: skip


def test_functions_have_few_parameters() -> None:
    assert [name for name, f in functions() if len(parameters(f)) > MAX_PARAMETERS] == []


def test_few_functions_take_the_whole_search() -> None:
    names = [name for name, function in functions() if takes_whole_spec(function)]
    assert 0 < len(names) <= MAX_WHOLE_SPEC, names


def test_a_file_name_tells_the_file() -> None:
    counts = Counter(path.name for path in FILES if not path.name.startswith("__"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_folders_are_small() -> None:
    counts = Counter(path.parent.relative_to(ROOT) for path in FILES)
    assert {str(folder): n for folder, n in counts.items() if n > MAX_FILES} == {}


def flow(value: str) -> list[str]:
    """Return the files that docs/design.md lists for the flow of a value."""
    page = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"- {value}, "))
    return re.findall(r"`(\w+\.py)`", line)


@pytest.mark.parametrize("value", MAX_FLOW)
def test_a_value_passes_few_files(value: str) -> None:
    files = flow(value)
    assert sorted(set(files)) == sorted(files)
    assert set(files) <= {path.name for path in FILES}
    assert 0 < len(files) <= MAX_FLOW[value]


def test_the_distribution_has_every_package() -> None:
    """A package that pyproject.toml does not list is missing in the wheel."""
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.relative_to(ROOT.parent).parts[:-1])
             for path in ROOT.rglob("__init__.py")}  # fmt: skip
    assert set(settings["packages"]) == {*found, "resp_tune.search_spaces"}

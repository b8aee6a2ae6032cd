"""The rooms of the house: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resp_tune

PACKAGE = Path(resp_tune.__file__).parent
ROOM_OF_ALL = {"errors", "paths"}  # the standard library only; anyone may use them

# Each room and what it may import of this project; what is not listed here is a command, or shared
# by the commands.
ROOMS = {
    "config": set[str](),
    "data": set[str](),
    "features": {"config"},
    "learning": {"config", "data", "features"},
    "storage": set[str](),
    "tuning": {"config", "data", "features", "learning", "storage"},
    "tracking": set[str](),
    "reporting": set[str](),
}
# What only one room knows.
KNOWS = {
    "ray": {"tuning"},
    "optuna": {"tuning", "searching"},
    "mlflow": {"tracking"},
    "torch": {"data", "features", "learning", "tuning", "searching"},
    "plotly": {"reporting"},
    "pyarrow": {"storage"},
    "jinja2": {"reporting"},
    "sqlalchemy": {"tracking", "tuning"},
    "pydantic": {"tuning", "searching"},
}
# Code that MLflow runs when somebody loads the registered model: it stands with the tracking, which
# does not import it, and calls the bundle.
SERVED = "tracking.served_model"
# What the features and the training loop need on a host that has torch and little else.
LEAN = {"torch", "torchaudio", "numpy", "filelock", "safetensors"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `resp_tune`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it, for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            if node.module == "resp_tune":
                yield from (f"resp_tune.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(module: str) -> str:
    return module.split(".")[0]


def own(names: Iterator[str]) -> set[str]:
    """Rooms of this project among imported names."""
    return {room(n.removeprefix("resp_tune.")) for n in names if n.startswith("resp_tune.")}


def others(names: Iterator[str]) -> set[str]:
    """Installed packages among imported names."""
    roots = {n.split(".")[0] for n in names}
    return roots - set(sys.stdlib_module_names) - {"resp_tune"}


def test_there_is_something_to_check() -> None:
    found = {room(m) for m in modules()}
    assert set(ROOMS) | ROOM_OF_ALL <= found
    assert sum(1 for path in modules().values() for _ in imports(path)) > 300


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_those_before_it(name: str) -> None:
    allowed = ROOMS[name] | ROOM_OF_ALL | {name}
    for module, path in modules().items():
        if room(module) == name and module != SERVED:
            assert own(imports(path)) <= allowed, module


def test_the_served_model_is_a_world_of_its_own() -> None:
    assert own(imports(modules()[SERVED])) == {"learning"}
    for module, path in modules().items():
        assert f"resp_tune.{SERVED}" not in set(imports(path)), module


def test_what_all_share_needs_the_standard_library_alone() -> None:
    for name in (*sorted(ROOM_OF_ALL), "config"):
        path = modules()[name]
        assert others(imports(path)) == set(), name
        assert own(imports(path)) <= ROOM_OF_ALL, name


@pytest.mark.parametrize("package", KNOWS)
def test_who_knows(package: str) -> None:
    commands = {m for m in modules() if "." not in m} - set(ROOMS) - ROOM_OF_ALL
    knowing = {m for m, path in modules().items() if package in others(imports(path))}
    strangers = {m for m in knowing if room(m) not in KNOWS[package] | commands} - {SERVED}
    assert strangers == set()
    assert {room(m) for m in knowing} & KNOWS[package], f"nobody imports {package}: take it out"


def test_features_and_learning_run_on_a_bare_host() -> None:
    """`learning.problem` alone also knows the data, which need more."""
    for module, path in modules().items():
        if room(module) in ("features", "learning") and module != "learning.problem":
            assert others(imports(path)) <= LEAN, module
            assert own(imports(path)) <= {"config", "features", "learning"} | ROOM_OF_ALL, module


BARE = [
    m
    for m in modules()
    if room(m) in ("features", "learning", "config") and m != "learning.problem"
]


def test_what_a_bare_host_really_loads() -> None:
    """Counted in a process that refuses everything else."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"ray", "optuna", "mlflow", "pandas", "sklearn", "pydantic",
                                   "soundfile", "yaml", "rich", "plotly", "jinja2", "psutil"}}:
            raise ImportError(f"a bare host has no {{name}}")
sys.meta_path.insert(0, Refuse())
import importlib
for module in {BARE!r}:
    importlib.import_module("resp_tune." + module)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_commands_start_without_the_heavy_libraries() -> None:
    """`--help` must answer in half a second, so a command imports them where it needs them."""
    heavy = {"torch", "torchaudio", "pandas", "ray", "optuna", "mlflow", "sklearn", "plotly"}
    sources = {m: path.read_text() for m, path in modules().items() if "." not in m}
    commands = [m for m, text in sources.items() if 'if __name__ == "__main__"' in text]
    assert {"search", "train", "predict"} <= set(commands)
    code = f"""
import importlib, sys
for module in {commands!r}:
    importlib.import_module("resp_tune." + module)
print(*sorted({heavy!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""Which package imports which library, and what a bare host can import.

The direction of imports between packages is a contract of import-linter in pyproject.toml.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resp_tune

PACKAGE = Path(resp_tune.__file__).parent
# Packages that may import a library; commands may import any.
OWNERS = {
    "ray": {"cluster", "execution"},
    "optuna": {"space", "study", "execution", "harness", "nested", "reporting"},
    "mlflow": {"tracking"},
    "torch": {
        "audit",
        "data",
        "encoders",
        "features",
        "training",
        "cluster",
        "execution",
        "evaluation",
        "harness",
        "tracking",
    },
    "plotly": {"reporting"},
    "ai_edge_litert": {"encoders"},
    "onnx": {"encoders"},
    "onnxruntime": {"encoders"},
    "obstore": {"storage"},
    "jinja2": {"reporting", "audit"},
    "sqlalchemy": {"tracking", "study"},
    "pydantic": {"space", "data"},
}
# All that features and training need, so that they run on a host that has torch and little else.
BARE_LIBRARIES = {"torch", "torchaudio", "numpy", "filelock", "safetensors"}


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


def package_of(module: str) -> str:
    return module.split(".")[0]


def own(names: Iterator[str]) -> set[str]:
    """Packages of this project among imported names."""
    return {package_of(n.removeprefix("resp_tune.")) for n in names if n.startswith("resp_tune.")}


def others(names: Iterator[str]) -> set[str]:
    """Installed libraries among imported names."""
    roots = {n.split(".")[0] for n in names}
    return roots - set(sys.stdlib_module_names) - {"resp_tune"}


def test_config_and_common_need_the_standard_library_alone() -> None:
    for module, path in modules().items():
        if module in ("errors", "config", "common.paths", "common.text", "common.log"):
            assert others(imports(path)) == set(), module


@pytest.mark.parametrize("library", OWNERS)
def test_libraries_have_owners(library: str) -> None:
    importers = {m for m, path in modules().items() if library in others(imports(path))}
    packages = {package_of(m) for m in importers if "." in m}
    assert packages - OWNERS[library] == set()
    assert packages, f"no package imports {library}: remove it"


# These also import the data package, which needs more than a bare host has.
NOT_BARE = {"training.datamodule"}
BARE = [
    m
    for m in modules()
    if package_of(m) in ("features", "training", "config") and m not in NOT_BARE
]


def test_features_and_training_run_on_a_bare_host() -> None:
    for module in BARE:
        assert others(imports(modules()[module])) <= BARE_LIBRARIES, module


def test_what_a_bare_host_really_loads() -> None:
    """Counted in a process that refuses everything else."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"ray", "optuna", "mlflow", "pandas", "sklearn", "pydantic",
                                   "soundfile", "ruamel", "rich", "plotly", "jinja2", "psutil"}}:
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


def test_a_data_set_is_read_without_torch_and_pandas() -> None:
    code = "import sys, resp_tune.api; print({'torch', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_command_loads_blas_with_one_thread() -> None:
    """More would be ended by the forks of Ray's start, while another thread waits for them."""
    code = (
        "from resp_tune.cli import run\n"
        "def body(argv):\n"
        "    import numpy\n"
        "    from threadpoolctl import threadpool_info\n"
        "    blas = [i for i in threadpool_info() if i['user_api'] == 'blas']\n"
        "    print(len(blas) > 0, {i['num_threads'] for i in blas})\n"
        "run(body)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True {1}\n"

"""Kills the driver of a search at a named moment, as a power cut would: before a call returns."""

from __future__ import annotations

from pathlib import Path

_HOOK = """
import importlib.abc, importlib.util, os, signal, sys

MODULE, FUNCTION, WHEN, NUMBER = {moment!r}

def plant(module):
    owner, name = module, FUNCTION
    if "." in FUNCTION:
        cls, name = FUNCTION.split(".")
        owner = getattr(module, cls)
    real, calls = getattr(owner, name), [0]
    def deadly(*args, **kwargs):
        calls[0] += 1
        if WHEN == "before" and calls[0] == NUMBER:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if WHEN == "after" and calls[0] == NUMBER:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, deadly)

class Planted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def planted(module):
            execute(module)
            plant(module)
        spec.loader.exec_module = planted
        return spec

if "resp_tune.search" in sys.orig_argv:  # the driver; its workers live on, as after a crash
    sys.meta_path.insert(0, Planted())
"""

Moment = tuple[str, str, str, int]  # module, function, "before" or "after", which call of it


def dies(folder: Path, moment: Moment) -> dict[str, str]:
    """The environment in which a search is killed at `moment`."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HOOK.format(moment=moment))
    return {"PYTHONPATH": str(folder)}

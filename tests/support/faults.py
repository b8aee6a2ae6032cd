"""Faults planted in every process of a search, Ray's workers among them."""

from __future__ import annotations

import textwrap
from pathlib import Path

_HOOK = """
import importlib.abc, importlib.util, sys

BODIES = {bodies!r}

class Planted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        body = BODIES.pop(name, None)
        if body is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def planted(module):
            execute(module)
            exec(body, {{name.rpartition(".")[2]: module}})
        spec.loader.exec_module = planted
        return spec

sys.meta_path.insert(0, Planted())
"""

HANGS = """
    import time
    begin = training.Training.run_epoch
    def run_epoch(self):
        if self.config.lr == 0.003 and len(self.history) == 1:  # the baseline, in its second epoch
            time.sleep(10_000)
        return begin(self)
    training.Training.run_epoch = run_epoch
"""
BUG = """
    def make_batch(clips, draws, config):
        raise ZeroDivisionError("a bug\\nin two lines")
    training.make_batch = make_batch
"""
SHORT_OF_MEMORY = """
    step = training._FoldRun._losses
    def losses(self, draws, mix):
        if self.config.lr == 0.003 and len(draws) > 5:
            raise MemoryError("planted")
        return step(self, draws, mix)
    training._FoldRun._losses = losses
"""


def planted(folder: Path, body: str, **others: str) -> dict[str, str]:
    """The environment in which every Python process has the fault.

    `body` is run with the module `training` when that is imported; `others`: the same for modules
    of `resp_tune`, by name, with `__` for the dots.
    """
    bodies = {"learning__training": body, **others}
    named = {
        f"resp_tune.{name.replace('__', '.')}": textwrap.dedent(text)
        for name, text in bodies.items()
    }
    (folder / "sitecustomize.py").write_text(_HOOK.format(bodies=named))
    return {"PYTHONPATH": str(folder)}

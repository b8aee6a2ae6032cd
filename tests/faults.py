"""Faults planted in every process of a search, Ray's workers among them."""

from __future__ import annotations

from pathlib import Path

_HOOK = """
import importlib.abc, importlib.util, sys

class Planted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "resp_tune.learning.training":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def planted(module):
            execute(module)
            plant(module)
        spec.loader.exec_module = planted
        return spec

def plant(training):
{body}

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


def planted(folder: Path, body: str) -> dict[str, str]:
    """The environment in which every Python process has the fault."""
    (folder / "sitecustomize.py").write_text(_HOOK.format(body=body))
    return {"PYTHONPATH": str(folder)}

"""What the README shows is valid as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from resp_tune.data.task_files import load_task
from resp_tune.features.logmel import check_filters
from resp_tune.space.search_space import load_space

README = Path(__file__).parent.parent / "README.md"


def yaml_block(key: str) -> str:
    """The first YAML block with `key` at the start of a line."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    return next(block for block in blocks if re.search(rf"^{key}:", block, re.M))


def test_the_example_space_has_no_deaf_filter(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml_block("parameters"))
    front_ends = load_space(str(path)).front_ends()
    assert len({f.n_mels for f in front_ends}) > 1
    for front_end in front_ends:
        check_filters(front_end)


def test_the_example_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml_block("classes"))
    assert load_task(str(path)).classes == ("healthy", "infection", "rest")

"""YAML as people write it by hand: read safely, with numbers and keys as they meant them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from resp_tune.common.text import shorten
from resp_tune.errors import UserError


class _Loader(yaml.SafeLoader):
    """Takes `1e-4` for a number, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; YAML itself would take the last of equal keys."""
        keys = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        counts = Counter(key.value for key in keys if key.value != "<<")  # merges may be several
        for key, count in counts.items():
            if count > 1:
                raise UserError(f"'{shorten(key)}' stands twice: give each its own name")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


LARGEST = 100_000  # bytes; what people write by hand is a page of text


def read_yaml(named: str, path: Path, largest: int = LARGEST) -> Any:
    """The content of a file, which errors call `named`, as in `space 'default.yaml'`.

    Raises `UserError` for what cannot be read, is over `largest` bytes, or is not YAML.
    """
    try:
        if path.stat().st_size > largest:
            raise UserError(f"has over {largest} bytes: use fewer words")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  # SafeLoader below it
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        hint = '; "*" stands in quotes' if "alias" in said else ""
        raise UserError(f"{named} is not YAML: {said}{hint}") from error
    except (OSError, ValueError, RecursionError) as error:  # days and numbers that cannot be, too
        raise UserError(f"{named} cannot be read: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{named}: {error}") from error

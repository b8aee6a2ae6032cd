"""Read YAML 1.2 files written by hand: safely, and with errors that name the line."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning

from resp_tune.common.text import shorten
from resp_tune.errors import UserError

MAX_BYTES = 100_000  # files written by hand have a page of text


def read_yaml(name: str, path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Return the content of a YAML file, which errors call `name`, as in `space 'default.yaml'`.

    Raises `UserError` for a file that is unreadable, larger than `max_bytes`, not YAML, or has a
    key twice in one mapping.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise UserError(f"{name}: has over {max_bytes} bytes: use fewer words")
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", YAMLWarning)  # of style
            return YAML(typ="safe", pure=True).load(text)  # the C parser knows only YAML 1.1
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*?)" with value', str(error), re.DOTALL)
        shown = shorten(key[1]) if key else "a key"
        raise UserError(
            f"{name}: {_line(error)}'{shown}' is given twice: give each its own name"
        ) from error
    except MarkedYAMLError as error:
        problem = f"{error.context or ''} {error.problem or ''}"
        raise UserError(f"{name} is not YAML: {_line(error)}{_cause(problem)}") from error
    except YAMLError as error:
        raise UserError(f"{name} is not YAML: {_cause(error)}") from error
    except (OSError, ValueError, RecursionError) as error:  # also impossible dates and numbers
        raise UserError(f"{name} cannot be read: {_cause(error)}") from error


def _line(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f"line {mark.line + 1}: "


def _cause(error: object) -> str:
    text = " ".join(str(error).split())
    hints = {"alias": 'write "*" in quotes', "'\\t'": "write spaces", "codec": "save it as UTF-8"}
    found = [f"; {hint}" for word, hint in hints.items() if word in text]
    return shorten(text, 200) + "".join(found)

"""What the tests of scripts/cluster read out of the recipes: texts, and the commands in them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "cluster"
RECIPES = (
    "Dockerfile",
    "compose.yaml",
    "ray-cluster.yaml",
    "ray-cluster-aws.yaml",
    "rayjob.yaml",
    "slurm.sh",
)
IMAGE = f"resp-tune:{version('resp-tune')}"


def text(name: str) -> str:
    """A recipe, as it stands in the checkout."""
    return (FOLDER / name).read_text(encoding="utf-8")


def documents(content: str) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(content) if document]


def header_commands(content: str) -> list[str]:
    """The commands at a recipe's top: the first run of comment lines that are indented by three."""
    found: list[str] = []
    for line in content.splitlines():
        match = re.fullmatch(r"#   (\S.*)", line)
        if match:
            found.append(re.sub(r"\s{2,}#.*", "", match[1]))
        elif found:
            break
    return found


def commands(name: str, content: str) -> list[str]:
    """Every command line of a recipe: those at its top and, in YAML, those among its values."""
    found = header_commands(content)
    if name.endswith(".yaml"):
        for value in _values(documents(content)):
            found.extend(re.sub(r"\\\n\s*", " ", value).replace("$$", "$").splitlines())
    return found


def _values(node: Any) -> Iterator[str]:
    """Every string in a YAML tree; a list of strings as the one command that it may be."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _values(value)
    elif isinstance(node, list):
        if all(isinstance(value, str) and "\n" not in value for value in node):
            yield shlex.join(node)
        for value in node:
            yield from _values(value)


def calls(program: str, lines: list[str]) -> list[list[str]]:
    """The arguments of each call of `program` ("ray start") in command lines.

    A call may stand inside the quoted argument of another (`ray exec FILE '…'`). It ends with its
    shell command: at `;`, `&&`, `|`, a bracket or the end of the line.
    """
    found = []
    for line in lines:
        for match in re.finditer(rf"(?<![\w./-]){re.escape(program)}(?=\s|$)", line):
            rest = line[match.end() :]
            if line[: match.start()].count("'") % 2:
                rest = rest[: rest.index("'")]
            lexer = shlex.shlex(rest, posix=True, punctuation_chars=";&|()")
            lexer.whitespace_split = True
            found.append(list(itertools.takewhile(lambda word: word[0] not in ";&|()", lexer)))
    return found

"""What the documents name exists, and what they show is valid as it is written there."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest
from support.contract import COMMANDS

from resp_tune.data.task_files import load_task
from resp_tune.features.logmel import check_filters
from resp_tune.space.search_space import load_space

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "results/*.md", "scripts/cluster/*.md", "findings/*.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = ("resp_tune", "tests", "scripts", "docs", "results", "search_spaces", "findings", ".ci")
FILE = re.compile(r"(?<![\w./~$…-])(?:[\w*.-]+/)*[\w*.-]+\.(?:py|md|sh|yaml|toml|png)(?![\w/])")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
TEST = re.compile(r"\btest_\w++(?!\*)")
# They look like names of a file or a test, and are a library, a module, and keys of a search.
OTHERS = {"ruamel.yaml", "test_access_log", "test_readings", "test_recordings", "test_side"}
CALL = re.compile(
    r"(?:python -m resp_tune\.|resp-tune |bash scripts/)(?P<command>\w+)"
    r"|(?P<script>(?:scripts/\w+\.py|scripts/[a-z]+|\.ci/run))(?= |$)"
)
RAYS_OWN = {"--num-cpus"}  # flags of `ray start` that a document names alone
ids = {"ids": lambda path: str(path.relative_to(ROOT))}


def code(document: Path) -> list[str]:
    """Return the inline code of a document and the lines of its code blocks."""
    text = document.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [re.split(r"\s#\s", line)[0] for line in blocks.splitlines()]
    return [*lines, *(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))]


@functools.cache
def flags_of(command: str) -> set[str]:
    return set(importlib.import_module(f"resp_tune.{command}").parser()._option_string_actions)


def flags_in(path: Path) -> set[str]:
    return set(FLAG.findall(path.read_text(encoding="utf-8"))) if path.is_file() else set()


def known_flags(line: str) -> set[str] | None:
    """Return the flags of what a line of code calls; None for a program that is not ours."""
    call = CALL.search(line)
    if call is None and not line.startswith("--"):
        return None
    if call and call["command"] == "test":
        return None  # its arguments are pytest's
    if call is None:
        scripts = [ROOT / ".ci" / "run", *ROOT.glob("scripts/*.py")]
        return RAYS_OWN.union(*map(flags_of, COMMANDS), *map(flags_in, scripts))
    if call["command"] in COMMANDS:
        return flags_of(call["command"])
    return flags_in(ROOT / (call["script"] or f"scripts/{call['command']}"))


@pytest.mark.parametrize("document", DOCUMENTS, **ids)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = document.parent / path if path else document
        headings = re.findall(r"^#+ (.*)", file.read_text("utf-8"), re.M) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        if not file.exists() or (anchor and anchor not in anchors):
            missing.append(target)
    assert missing == []


@functools.cache
def existing() -> set[str]:
    """Return the names of all files, of test files without suffix, and of test functions."""
    files = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]
    tests = [p for p in files if p.match("tests/test_*.py")]
    functions = re.findall(r"^def (test_\w+)", "\n".join(p.read_text("utf-8") for p in tests), re.M)
    return {p.name for p in (*files, *ROOT.iterdir())} | {p.stem for p in tests} | {*functions}


@pytest.mark.parametrize("document", DOCUMENTS, **ids)
def test_files_and_tests_exist(document: Path) -> None:
    lines, missing = "\n".join(code(document)), []
    for name in {*FILE.findall(lines), *TEST.findall(lines)} - OTHERS - existing():
        roots = (ROOT, ROOT / "resp_tune", document.parent)
        if not any(list(root.glob(name)) for root in roots):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, **ids)
def test_flags_exist(document: Path) -> None:
    unknown = []
    for line in code(document):
        known = known_flags(line)
        if known is not None:
            unknown += [(line, flag) for flag in FLAG.findall(line) if flag not in known]
    assert unknown == []


def yaml_block(key: str) -> str:
    """Return the YAML block of docs/usage.md with `key` at the start of a line."""
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    return next(block for block in blocks if re.search(rf"^{key}:", block, re.M))


def test_the_example_space_has_no_empty_filter(tmp_path: Path) -> None:
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

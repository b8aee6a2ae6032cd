"""The recipes of scripts/cluster: three commands at the top of each, made of flags that exist."""

from __future__ import annotations

import re
from collections.abc import Callable

import click
import pytest
from support.recipes import FOLDER, IMAGE, RECIPES, ROOT, calls, commands, header_commands, text

from resp_tune import search, synth
from resp_tune.errors import RespTuneError

SEARCH = "python -m resp_tune.search"


def refused(name: str, content: str) -> list[str]:
    """What the programs that a recipe calls say of their arguments; empty: they take them."""
    lines = commands(name, content)
    found = []
    searches = calls(SEARCH, lines) + calls("scripts/cluster/slurm.sh", lines)
    for arguments in searches:
        found += _parse(search.read_options, [a for a in arguments if a != "--help"])
    for arguments in calls("python -m resp_tune.synth", lines):
        found += _parse(synth.parser().parse, arguments)
    for program, command in _others().items():
        for arguments in calls(program, lines):
            found += _parse(lambda given, c=command: c.make_context(c.name, given), arguments)
    return found


def _others() -> dict[str, click.Command]:
    from mlflow.cli import server
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts import scripts as ray

    return {
        "ray start": ray.start,
        "ray up": ray.up,
        "ray down": ray.down,
        "ray exec": ray.exec,
        "ray get-auth-token": ray.get_auth_token,
        "ray job submit": submit,
        "mlflow server": server,
    }


def _parse(parse: Callable[[list[str]], object], arguments: list[str]) -> list[str]:
    # A shell would have put a value there.
    arguments = [re.sub(r"\$\{?\w+\}?|\$\(.*?\)", "10.0.0.1", a) for a in arguments]
    arguments = [a for a in arguments if not re.fullmatch(r"[012]?>.*|/dev/null|&", a)]
    try:
        parse(list(arguments))
    except (RespTuneError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        return [f"{' '.join(arguments)}: {message}"]
    return []


@pytest.mark.parametrize("name", RECIPES)
def test_three_commands_at_the_top(name: str) -> None:
    top = header_commands(text(name))
    assert len(top) == 3
    assert any(f"scripts/cluster/{name}" in line for line in top)


@pytest.mark.parametrize("name", RECIPES)
def test_commands_use_only_flags_that_exist(name: str) -> None:
    content = text(name)
    assert refused(name, content) == []
    # It is found at all, and a flag that nobody has would be too.
    assert refused(name, content.replace("--trials", "--trails"))


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "Dockerfile"])
def test_a_cluster_is_named_and_results_go_where_every_node_sees_them(name: str) -> None:
    lines = commands(name, text(name))
    for arguments in calls(SEARCH, lines):
        settings = search.parser().parse(arguments)
        assert settings.address == "auto"
        assert settings.name
        assert str(settings.storage).startswith(("/", "s3:"))
        assert str(settings.data).startswith(("/", "s3:"))


def test_the_image_is_of_this_release_everywhere() -> None:
    for name in ("Dockerfile", "compose.yaml", "rayjob.yaml", "ray-cluster-aws.yaml"):
        tags = re.findall(r"resp-tune:[\w.]+", text(name))
        assert tags
        assert {tag for tag in tags if not tag.startswith(IMAGE)} == set()


def test_no_secret_stands_in_a_recipe() -> None:
    for name in RECIPES:
        assert (
            re.findall(r"(?i)(?:password|token)\w*['\"]?\s*[:=]\s*['\"]?[0-9a-f]{16}", text(name))
            == []
        )
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "scripts/cluster/.env" in ignored


def test_the_table_names_every_recipe() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in FOLDER.iterdir()} - {"README.md", ".env"}
    assert {name for name in files if f"`{name}`" not in table} == set()
    assert files == {*RECIPES, "Dockerfile.dockerignore"}

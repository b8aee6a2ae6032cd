"""The challenge's train and test sides, matched to the recordings that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from resp_tune.common.text import join_names, plural
from resp_tune.data import discovery
from resp_tune.data.discovery import Name
from resp_tune.data.metadata import Side


def match_official(
    named: Mapping[Path, Name], official: Mapping[str, Side]
) -> tuple[dict[Path, Side], list[str]]:
    """The official side of each recording; by name, or by name without the device."""
    sides: dict[Path, Side] = {}
    problems: list[str] = []
    lost = dict(official)
    for path in named:
        if path.stem in official:
            sides[path] = lost.pop(path.stem)
    unmatched = [path for path in named if path not in sides]
    aliases: dict[tuple[str, ...], list[str]] = {}
    for stem in lost:
        if alias := discovery.parse_stem(stem):
            aliases.setdefault(alias.without_device, []).append(stem)
    wanted = Counter(named[path].without_device for path in unmatched)
    for path in list(unmatched):
        key = named[path].without_device
        if len(stems := aliases.get(key, [])) == wanted[key] == 1:
            sides[path] = lost.pop(stems[0])
            unmatched.remove(path)
            problems.append(
                f"the official split calls {path.stem} {stems[0]}: matched without the device"
            )
    if lost:
        problems.append(
            f"the official split names {plural(len(lost), 'recording')} not here: "
            f"{join_names(sorted(lost))}"
        )
    if unmatched:
        names = sorted(path.stem for path in unmatched)
        problems.append(
            f"{plural(len(names), 'recording')} not in the official split: {join_names(names)}"
        )
    return sides, problems

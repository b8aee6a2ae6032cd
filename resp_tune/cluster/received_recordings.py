"""Recordings that a node cannot see in their own folder, kept in its cache by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from resp_tune.common.paths import cache_folder, write_atomically


def kept(digest: str, suffix: str) -> Path:
    """Where this machine keeps the recording with that SHA-256, if it was lent to it."""
    return cache_folder() / "recordings" / f"{digest}{suffix}"


def keep(content: bytes, suffix: str) -> Path:
    """Keep a recording, where `kept` finds it; another process may do the same at once."""
    path = kept(hashlib.sha256(content).hexdigest(), suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path

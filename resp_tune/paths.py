"""Where things are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from resp_tune.errors import UserError


def user_path(text: str) -> Path:
    """The path that was typed, `~` and `~user` being homes; `UserError` where nobody has one."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        home = Path(text).parts[0]
        raise UserError(
            f"'{text}': there is no home folder '{home}': give the whole path"
        ) from error


def cache_folder() -> Path:
    """`$RESP_TUNE_CACHE`, else `resp_tune` in the user's cache folder (XDG)."""
    if given := os.environ.get("RESP_TUNE_CACHE"):
        return user_path(given).absolute()
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "resp_tune"


def cache_limit_bytes() -> int:
    """Size that the feature stores may take together: `$RESP_TUNE_CACHE_GB`, default 20."""
    text = os.environ.get("RESP_TUNE_CACHE_GB", "20")
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e6:
        raise UserError(f"RESP_TUNE_CACHE_GB='{text}' is not a number of gigabytes such as 20")
    return int(gigabytes * 1e9)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

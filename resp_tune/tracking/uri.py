"""The address of an MLflow store: which one, of which kind, and how to print it safely."""

from __future__ import annotations

import os
import re
from pathlib import Path

from resp_tune.paths import user_path


def resolve_uri(given: str | None, storage: Path) -> str:
    """`given`, else `$MLFLOW_TRACKING_URI`, else `sqlite:///<storage>/mlflow.db`.

    A relative sqlite path becomes absolute, so that the URI means the same in every process.
    """
    uri = (given or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    if not uri:
        return f"sqlite:///{storage.absolute() / 'mlflow.db'}"
    if (file := sqlite_file(uri)) is not None:
        return f"sqlite:///{file}"
    return uri.rstrip("/") if is_server(uri) else uri


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of a `sqlite:///` URI's file, None for another scheme."""
    if not uri.startswith("sqlite:///"):
        return None
    return user_path(uri.removeprefix("sqlite:///")).absolute()


def is_server(uri: str) -> bool:
    """Whether `uri` is the address of an MLflow server."""
    return uri.startswith(("http://", "https://"))


def redact(uri: str) -> str:
    """`uri` without its password and without the values of its query, for messages and files."""
    bare = re.sub(r"(?<=://)[^/?#]*@", _without_password, uri)
    return re.sub(r"(?<=[?&])([^=&#]+)=[^&#]*", r"\1=***", bare)


def without_login(uri: str) -> str:
    """`uri` without user and password, for an address to open in a browser."""
    return re.sub(r"(?<=://)[^/?#]*@", "", uri)


def _without_password(match: re.Match[str]) -> str:
    user, colon, _ = match[0].removesuffix("@").partition(":")
    # `https://TOKEN@host` has no colon: what stands there may be the secret itself.
    return f"{user}:***@" if colon else "***@"


def root_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line, without a password."""
    inner = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    first_line = re.sub(r"^[A-Z_]+: ", "", text.strip().splitlines()[0])
    return re.sub(r"\w+://\S+", lambda match: redact(match[0]), first_line)

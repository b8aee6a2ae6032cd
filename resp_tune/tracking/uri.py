"""The address of an MLflow store: which one, of which kind, and how to print it safely."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_plus

from resp_tune.common.paths import user_path
from resp_tune.errors import UserError

_SHORTEST = 3  # characters of a piece of a secret


def resolve_uri(given: str | None, storage: Path) -> str:
    """`given`, else `$MLFLOW_TRACKING_URI`, else `sqlite:///<storage>/mlflow.db`.

    A relative sqlite path becomes absolute, so that the URI means the same in every process.
    """
    if given is not None and not given.strip():  # an unset variable of the shell
        raise UserError("--tracking-uri '': give sqlite:///FILE or the http:// address of a server")
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
    """`uri` without its password and without the values of its query, for messages and files.

    A password may hold `/ ? # @ : [ ]` as they are: what stands before the last `@` is taken for
    the login, so that of a path with an `@` too little is shown rather than too much.
    """
    head, login, place = _parts(uri)
    user, colon, _ = login.partition(":")
    if login:
        # `https://TOKEN@host` has no colon: what stands there may be the secret itself.
        login = f"{user}:***@" if colon and re.fullmatch(r"[\w.%+-]+", user) else "***@"
    address, mark, query = place.partition("?")
    if mark:
        names = [value.partition("=") for value in query.split("&")]
        query = "&".join(f"{name}=***" if equals else "***" for name, equals, _ in names)
    return f"{head}{login}{address}{mark}{query}"


def public_base(uri: str) -> str:
    """A server's address without login and query, to build links from."""
    head, _, place = _parts(uri)
    return head + re.split(r"[?#]", place)[0].rstrip("/")


def scrub(text: str, uri: str) -> str:
    """`text`, say of an exception, without what is secret in `uri`, also where it stands in parts.

    A library that takes a password apart wrongly names the parts, as a host, a port, a database:
    where it may, the text is advice instead.
    """
    if re.search(r"[][/?#@:\s]", _parts(uri)[1].partition(":")[2]):
        codes = "%2F %3F %23 %40 %3A %5B %5D"
        return f"the cause might show the password: write / ? # @ : [ ] in it as {codes}"
    for secret in _secrets(uri):
        text = text.replace(secret, "***")
    return re.sub(r"\w+://\S+", lambda match: redact(match[0]), text)


def _parts(uri: str) -> tuple[str, str, str]:
    """`scheme://`, the login without its `@`, and the rest."""
    scheme, mark, rest = uri.partition("://")
    if scheme.partition("+")[0] in ("sqlite", "file"):
        return scheme + mark, "", rest
    login, _, place = rest.rpartition("@")
    return scheme + mark, login, place


def _secrets(uri: str) -> list[str]:
    """What of `uri` must not be shown, longest first: whole, decoded, and in pieces."""
    _, login, place = _parts(uri)
    user, colon, password = login.partition(":")
    query = place.partition("?")[2]
    values = [value.partition("=")[2] or value for value in query.split("&")]
    whole = [password if colon else user, *values]
    decoded = [decode(text) for text in whole for decode in (unquote, unquote_plus)]
    pieces = [piece for text in (*whole, *decoded) for piece in re.split(r"[][/?#@:&=\s]", text)]
    # Shorter pieces tell nothing, and would be found in every word.
    found = {text for text in (*whole, *decoded, *pieces) if len(text) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)


def root_cause(error: BaseException, uri: str = "") -> str:
    """The innermost message of a chain of exceptions, on one line, without secrets of `uri`."""
    inner = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    first_line = re.sub(r"^[A-Z_]+: ", "", text.strip().splitlines()[0])
    return scrub(first_line, uri)

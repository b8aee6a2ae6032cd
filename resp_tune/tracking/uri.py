"""Choose the URI of an MLflow store, classify it, and print it without secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_plus

from resp_tune.common.paths import user_path
from resp_tune.errors import UserError

VARIABLE = "MLFLOW_TRACKING_URI"
_SHORTEST = 3  # characters of a part of a secret; shorter ones are found in every word


def resolve_uri(flag: str | None, storage: Path) -> str:
    """Return the value of the flag, else `$MLFLOW_TRACKING_URI`, else `sqlite:///<storage>/mlflow.db`.

    A relative sqlite path becomes absolute, so that the URI means the same in every process.
    """
    if flag is not None and not flag.strip():  # an unset variable of the shell
        raise UserError("--tracking-uri '': give sqlite:///FILE or the http:// address of a server")
    uri = (flag or os.environ.get(VARIABLE) or "").strip()
    return _absolute(uri) if uri else f"sqlite:///{storage.absolute() / 'mlflow.db'}"


def variable_of(uri: str) -> str | None:
    """Return the name of the environment variable that `uri` comes from, None if from a flag."""
    given = os.environ.get(VARIABLE, "").strip()
    return VARIABLE if given and uri in (given, _absolute(given)) else None


def _absolute(uri: str) -> str:
    if (file := sqlite_file(uri)) is not None:
        return f"sqlite:///{file}"
    return uri.rstrip("/") if is_server(uri) else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of the file of a `sqlite:///` URI, None for another scheme."""
    if not uri.startswith("sqlite:///"):
        return None
    return user_path(uri.removeprefix("sqlite:///")).absolute()


def is_server(uri: str) -> bool:
    """Return whether `uri` is the address of an MLflow server."""
    return uri.startswith(("http://", "https://"))


def redact(uri: str) -> str:
    """Return `uri` without its password and without the values of its query.

    A password may contain `/ ? # @ : [ ]` unescaped, so all before the last `@` counts as login: of
    a path with an `@` too little is shown rather than too much.
    """
    head, login, rest = _parts(uri)
    user, colon, _ = login.partition(":")
    if login:
        # In `https://TOKEN@host`, without a colon, the user may be the secret itself.
        login = f"{user}:***@" if colon and re.fullmatch(r"[\w.%+-]+", user) else "***@"
    address, mark, query = rest.partition("?")
    if mark:
        names = [value.partition("=") for value in query.split("&")]
        query = "&".join(f"{name}=***" if equals else "***" for name, equals, _ in names)
    return f"{head}{login}{address}{mark}{query}"


def public_base(uri: str) -> str:
    """Return the address of a server without login and query, as the base of links."""
    head, _, rest = _parts(uri)
    return head + re.split(r"[?#]", rest)[0].rstrip("/")


def scrub(text: str, uri: str) -> str:
    """Return `text`, such as an error's message, without the secrets of `uri` and their parts.

    If the password has characters by which a library may split it wrongly, and name a part of it
    as a host or a database, the text is replaced by advice.
    """
    if re.search(r"[][/?#@:\s]", _parts(uri)[1].partition(":")[2]):
        codes = "%2F %3F %23 %40 %3A %5B %5D"
        return f"the cause might show the password: write / ? # @ : [ ] in it as {codes}"
    for secret in _secrets(uri):
        text = text.replace(secret, "***")
    return re.sub(r"\w+://\S+", lambda match: redact(match[0]), text)


def _parts(uri: str) -> tuple[str, str, str]:
    """Split into `scheme://`, the login without its `@`, and the rest."""
    scheme, mark, rest = uri.partition("://")
    if scheme.partition("+")[0] in ("sqlite", "file"):
        return scheme + mark, "", rest
    login, _, address = rest.rpartition("@")
    return scheme + mark, login, address


def _secrets(uri: str) -> list[str]:
    """Return the secrets of `uri`, whole, decoded and in parts, longest first."""
    _, login, rest = _parts(uri)
    user, colon, password = login.partition(":")
    query = rest.partition("?")[2]
    values = [value.partition("=")[2] or value for value in query.split("&")]
    whole = [password if colon else user, *values]
    decoded = [decode(text) for text in whole for decode in (unquote, unquote_plus)]
    pieces = [piece for text in (*whole, *decoded) for piece in re.split(r"[][/?#@:&=\s]", text)]
    secrets = {text for text in (*whole, *decoded, *pieces) if len(text) >= _SHORTEST}
    return sorted(secrets, key=len, reverse=True)


def root_cause(error: BaseException, uri: str = "") -> str:
    """Return the innermost message of chained exceptions, in one line, without secrets of `uri`."""
    inner = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    if isinstance(inner, OSError) and inner.filename is not None:
        text = f"{text}: '{inner.filename}'"
    first_line = re.sub(r"^[A-Z_]+: ", "", text.strip().splitlines()[0])
    return scrub(first_line, uri)

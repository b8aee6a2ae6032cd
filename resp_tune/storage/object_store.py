"""Objects below a prefix in a store such as S3, Google Cloud Storage or Azure, through obstore.

search = ObjectPath("s3://bucket/searches") / "first"
search.write(b"…", "summary.json")   # readers see the whole object or none
"""

from __future__ import annotations

import configparser
import functools
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from resp_tune.common.deadline import finishes_within
from resp_tune.common.paths import cache_folder, user_path, write_atomically
from resp_tune.common.proxies import proxy_hint
from resp_tune.errors import UserError, leave_at_exit

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "az")
LARGEST = 1 << 30  # bytes; no file of a search is larger, but a foreign object may be
_FORMS = "give s3://BUCKET/PREFIX, gs://… or abfs://…, or a folder"
_TIMEOUTS = {"connect_timeout": "5s", "timeout": "60s"}  # of one request, of 5 MB at most
_RETRIES: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2)},
}
PROBE_SECONDS = 10.0
_HINTS = {  # by a pattern of the reason
    "NoSuchBucket": "create that bucket, or give another {flag}",
    "AccessDenied|status 403": "set credentials that may read, write and delete there",
    "Invalid(AccessKey|ClientToken)Id": "set AWS_ACCESS_KEY_ID to a key that the store knows",
    "SignatureDoesNotMatch": "set AWS_SECRET_ACCESS_KEY to the secret of that key",
    "Account must be specified": "set AZURE_STORAGE_ACCOUNT_NAME",
    "redirect": "set AWS_DEFAULT_REGION to the region of the bucket",
    "no connection": "start it, or give another {flag}",
}
# Options of a URI's query by their names in release 0.1, which were pyarrow's.
_RENAMED = {
    "endpoint_override": "endpoint",
    "force_virtual_addressing": "virtual_hosted_style_request",
}
_OBSOLETE = {"scheme", "allow_bucket_creation", "allow_delayed_open", "retry_limit_seconds"}


# What `ObjectPath.replace` compares: an entity tag, and in Google's stores a generation.
Version = Mapping[str, str]


class StorageError(Exception):
    """The store failed or refused a request; the message is its reason, without secrets."""


def is_uri(storage: str) -> bool:
    """Return whether `--storage` is a URI rather than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", storage) is not None


@dataclass(frozen=True)
class Versioned:
    """The content of an object, its version, and when it was written by the store's clock."""

    content: bytes
    version: Version
    modified_at: datetime


@dataclass(frozen=True)
class ObjectPath:
    """The objects below `prefix`, relative to the URI of a bucket and a folder in it.

    Each process reads credentials from its environment, as the store's own tools do, or from the
    URI (user and password, or its query). `str` leaves them out. Methods that contact the store
    raise `StorageError` after the client has retried for up to ten seconds.
    """

    uri: str = field(repr=False)
    prefix: str = ""

    @classmethod
    def parse(cls, flag: str, uri: str) -> ObjectPath:
        """Check the syntax of `uri` without contacting the store; `UserError` names `flag`."""
        path = cls(uri.rstrip("/") if "?" not in uri else uri)
        try:
            parts = urlsplit(uri)
            bucket = parts.hostname
        except ValueError:
            raise UserError(f"{flag} '{uri.partition(':')[0]}:…' is not a URI: {_FORMS}") from None
        if "@" in uri and "@" not in parts.netloc:  # possibly a key that was split here
            raise UserError(
                f"{flag} '{parts.scheme}://…' holds a key with '/', '?', '#' or '@' in it: write "
                "them as %2F, %3F, %23, %40, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.scheme not in SCHEMES:
            raise UserError(f"{flag} '{path}' is not the URI of a supported object store: {_FORMS}")
        if not bucket or not uri.startswith(f"{parts.scheme}://"):
            raise UserError(f"{flag} '{path}' names no bucket: {_FORMS}")
        if parts.fragment or re.search(r"[\s\\%]|//|/\.\.?(/|$)", parts.path):
            raise UserError(
                f"{flag} '{path}': the prefix contains a space, '#', '%', '\\', '//', '.' or '..': "
                "give a plainer one"
            )
        return path

    def __truediv__(self, name: str | Path) -> ObjectPath:
        return ObjectPath(self.uri, _join(self.prefix, str(name)))

    def __str__(self) -> str:
        parts = urlsplit(self.uri)
        # In abfs://container@account the part before the @ is not a secret.
        login, at, host = parts.netloc.rpartition("@")
        container = parts.scheme.startswith("abfs") and at and ":" not in login
        shown = f"{parts.scheme}://{parts.netloc if container else host}{parts.path.rstrip('/')}"
        return _join(shown, self.prefix)

    @property
    def local_copy(self) -> Path:
        """Return the folder in which this machine keeps its copy."""
        options = dict(parse_qsl(urlsplit(self.uri).query))
        endpoint = options.get("endpoint_override", options.get("endpoint", ""))
        identity = f"{ObjectPath(self.uri)}\n{endpoint}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cache_folder() / "searches" / key / self.prefix

    def read(self, name: str = "", most: int | None = None) -> bytes | None:
        """Return the content of the object `name`, or of this path itself; None if it is absent.

        `StorageError` if it has more than `most` bytes.
        """
        versioned = self.read_version(name, most)
        return None if versioned is None else versioned.content

    def read_version(self, name: str = "", most: int | None = None) -> Versioned | None:
        """Return an object with its version, or None if it is absent."""
        with self._connection(name) as (store, path):
            result = obstore.get(store, path)
            meta = result.meta
            if most is not None and meta["size"] > most:
                size = f"{meta['size']:,} bytes"
                raise StorageError(f"'{name}' has {size}: more than any search file")
            return Versioned(bytes(result.bytes()), _version(meta), meta["last_modified"])
        return None

    def write(self, data: bytes, name: str = "") -> None:
        """Write an object, which readers see whole or not at all."""
        with self._connection(name, missing_ok=False) as (store, path):
            obstore.put(store, path, data)

    def replace(self, data: bytes, name: str, version: Version | None) -> Version | None:
        """Write an object if it still has `version` (None: does not exist); return the new version.

        None if another process has written it.
        """
        mode: Any = "create" if version is None else version
        with self._connection(name, missing_ok=False) as (store, path):
            try:
                return _version(obstore.put(store, path, data, mode=mode))
            except (AlreadyExistsError, PreconditionError):
                return None

    def remove(self, name: str = "") -> None:
        """Delete an object if it exists."""
        with self._connection(name) as (store, path):
            obstore.delete(store, path)

    def list_sizes(self) -> dict[str, int]:
        """Return the size in bytes of each object below this path, by relative name."""
        return {name: size for name, (size, _) in self.list_objects().items()}

    def list_objects(self) -> dict[str, tuple[int, int]]:
        """Return size in bytes and time of writing in ns of each object below, by relative name."""
        objects: dict[str, tuple[int, int]] = {}
        with self._connection("") as (store, path):
            for batch in obstore.list(store, path or None):
                for meta in batch:
                    name = meta["path"].removeprefix(path).removeprefix("/")
                    moment = round(meta["last_modified"].timestamp() * 1e6) * 1000
                    objects[name] = (meta["size"], moment)
        folders = {str(parent) for name in objects for parent in Path(name).parents}
        # An empty object may mark a folder.
        return {name: values for name, values in objects.items() if name and name not in folders}

    def fetch(self, name: str, to: Path, most: int | None = None) -> bool:
        """Copy an object of at most `most` bytes to the file `to`; return whether it exists."""
        content = self.read(name, most)
        if content is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(to, content)
        return content is not None

    @contextmanager
    def _connection(
        self, name: str, *, missing_ok: bool = True
    ) -> Iterator[tuple[ObjectStore, str]]:
        """Yield the client and the path in it; errors become `StorageError`.

        With `missing_ok` the end of the block is skipped if the object is absent.
        """
        try:
            yield _open(self.uri), _join(self.prefix, name)
        except (BaseError, OSError, ValueError) as error:
            absent = isinstance(error, NotFoundError | FileNotFoundError)
            if absent and missing_ok and not _NO_BUCKET.search(str(error)):
                return
            raise StorageError(self._reason(error)) from None

    def _reason(self, error: BaseException) -> str:
        """Return the store's own reason as one line, without the secrets of the URI."""
        text, _, details = str(error).partition("\n\nDebug source:")
        code = re.search(r"<Code>([^<]*)</Code>.*?<Message>([^<]*)", text, re.DOTALL)
        status = re.search(r"status code: (\d+[^:]*)", text)
        cause = re.findall(r'message: "([^"]*)"|"([^"\n]*(?:error|timed out)[^"\n]*)"', details)
        if code:
            text = f"{code[1]}: {code[2]}"
        elif "HTTP error" in text:
            text = f"no connection: {next((a or b for a, b in reversed(cause)), text)}"
        elif status:
            text = f"status {status[1].strip()}"
        parts = urlsplit(self.uri)
        login, _, _ = parts.netloc.rpartition("@")
        for secret in (*login.split(":"), *(value for _, value in parse_qsl(parts.query))):
            if len(secret) > 3:
                for form in (secret, quote(secret), unquote(secret)):
                    text = text.replace(form, "***")
        return " ".join(text.split())[:300]


_NOT_REACHED = re.compile("no connection|status (407|5..)")  # which a proxy may be the reason of
_HOSTS = {  # by the first letter of the scheme
    "s": "https://s3.amazonaws.com",
    "g": "https://storage.googleapis.com",
    "a": "https://blob.core.windows.net",
}
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")


@functools.lru_cache(maxsize=8)
def _open(uri: str) -> ObjectStore:
    """Return the client of a bucket, below the URI's own folder."""
    parts = urlsplit(uri)
    options = _options(uri)
    login, _, host = parts.netloc.rpartition("@")
    common: dict[str, Any] = {
        "prefix": parts.path.strip("/") or None,
        "client_options": {**_TIMEOUTS, "allow_http": True},
        "retry_config": _RETRIES,
    }
    endpoint = _endpoint(uri)
    if endpoint and not re.fullmatch(
        r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?|https?://\[[^]]+\](:\d+)?/?", endpoint
    ):
        raise ValueError("the endpoint is not an address such as http://minio:9000")
    if parts.scheme == "s3":
        options.setdefault("disable_bulk_delete", "true")  # which not every S3 server has
        key, colon, secret = login.partition(":")
        if colon:
            options |= {"access_key_id": unquote(key), "secret_access_key": unquote(secret)}
        elif "AWS_ACCESS_KEY_ID" not in os.environ:
            options = {**_aws_profile(), **options}
        return S3Store(host, config=options, **common)  # type: ignore[arg-type]  # names of users
    if parts.scheme in ("gs", "gcs"):
        if "endpoint" in options:
            options["base_url"] = options.pop("endpoint")
        return GCSStore(host, config=options, **common)  # type: ignore[arg-type]  # likewise
    if login:  # abfs://container@account.dfs.core.windows.net/…
        options["account_name"] = host.partition(".")[0]
    return AzureStore(login or host, config=options, **common)  # type: ignore[arg-type]  # likewise


def _options(uri: str) -> dict[str, str]:
    """Return the options in the URI's query, by the names of obstore."""
    query = dict(parse_qsl(urlsplit(uri).query, keep_blank_values=True))
    options = {_RENAMED.get(k, k): value for k, value in query.items() if k not in _OBSOLETE}
    if (endpoint := options.get("endpoint")) and "://" not in endpoint:
        options["endpoint"] = f"{query.get('scheme', 'https')}://{endpoint}"
    return options


def _endpoint(uri: str) -> str | None:
    """Return the address of the store if it is not the public one of its scheme."""
    if (endpoint := _options(uri).get("endpoint")) or not uri.startswith("s3://"):
        return endpoint
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next(filter(None, map(os.environ.get, variables)), None)


def _version(meta: Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _aws_profile() -> dict[str, str]:
    """Return key and region of `$AWS_PROFILE` (or `default`) from the files of the AWS tools."""
    config = configparser.RawConfigParser()
    with suppress(configparser.Error):
        config.read(user_path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")))
        credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
        config.read(user_path(credentials))
    profile = os.environ.get("AWS_PROFILE", "default")
    names = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
    if not os.environ.keys() & {"AWS_REGION", "AWS_DEFAULT_REGION"}:
        names.add("region")
    sections = [s for s in (f"profile {profile}", profile) if config.has_section(s)]
    return {k: value for s in sections for k, value in config.items(s) if k in names}


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") if i else part for i, part in enumerate(parts) if part)


def check_store(flag: str, store: ObjectPath, *, write: bool = True) -> None:
    """Raise `UserError` if `store` cannot be read and, with `write`, written and deleted.

    A small object is written and removed at once, because rights cannot be queried. Takes at most
    `PROBE_SECONDS`, also if a host never answers.
    """
    try:
        if finishes_within(PROBE_SECONDS, lambda: _probe(store, write)):
            return
    except StorageError as error:
        hints = (hint for key, hint in _HINTS.items() if re.search(key, str(error)))
        hint = next(hints, "give another {flag}").format(flag=flag)
        if _NOT_REACHED.search(str(error)):
            hint = proxy_hint(_endpoint(store.uri) or _HOSTS[store.uri[0]]) or hint
        raise UserError(f"{flag} '{store}' cannot be used ({error}): {hint}") from None
    leave_at_exit(UserError.exit_code)  # the client may wait for a minute
    hint = proxy_hint(_endpoint(store.uri) or _HOSTS[store.uri[0]])
    raise UserError(
        f"{flag} '{store}' did not answer within {PROBE_SECONDS:g} s: "
        f"{hint or f'check the network and the credentials, or give another {flag}'}"
    )


def _probe(store: ObjectPath, write: bool) -> None:
    if not write:
        store.read(".resp_tune_probe")
        return
    name = f".resp_tune_probe-{uuid.uuid4().hex}"
    store.read(name)  # its refusal tells more than that of a write: of a missing bucket, say
    store.write(b"may be removed\n", name)
    try:
        if store.read(name) is None:
            raise StorageError("an object that was just written is missing")
        if store.replace(b"may be removed too\n", name, None) is not None:
            raise StorageError(
                "it ignores If-None-Match, by which two drivers are kept apart; update its server"
            )
    finally:
        store.remove(name)

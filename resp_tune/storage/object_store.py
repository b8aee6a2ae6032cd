"""A folder in an object store (`s3://bucket/prefix`, `gs://…`, `abfs://…`), by way of pyarrow.

place = Place("s3://bucket/searches") / "first"
place.write(b"…", "summary.json")   # seen whole or not at all
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
LARGEST = 1 << 30  # bytes: no file of a search has as many, and a stranger's object may
_GIVE = "give s3://BUCKET/PREFIX, gs://… or abfs://…, or a folder"
# What a URI's query is completed with. One request for a small object instead of three; and
# Google's client would try again for a quarter of an hour.
_OPTIONS = {
    "s3": {"allow_delayed_open": "true"},
    "gs": {"retry_limit_seconds": "10"},
    "gcs": {"retry_limit_seconds": "10"},
}


class StorageError(Exception):
    """The store did not do what it was asked; the message is its reason, without secrets."""


def is_uri(storage: str) -> bool:
    """Whether `--storage` names something else than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", storage) is not None


@dataclass(frozen=True)
class ObjectPath:
    """The folder `below` the one that `uri` names.

    Credentials come from the environment of each process, as the store's own tools read them, or
    from the URI: user and password, or its query. `str` shows a place without them. Every method
    that asks the store raises `StorageError`; the client behind it has tried again for some
    seconds by then.
    """

    uri: str = field(repr=False)
    below: str = ""

    @classmethod
    def parse(cls, flag: str, uri: str) -> ObjectPath:
        """`uri` as typed; `UserError` names `flag` where it cannot be one. Asks nobody."""
        place = cls(uri.rstrip("/") if "?" not in uri else uri)
        try:
            parts = urlsplit(uri)
            bucket = parts.hostname
        except ValueError:
            raise UserError(f"{flag} '{uri.partition(':')[0]}:…' is not a URI: {_GIVE}") from None
        if "@" in uri and "@" not in parts.netloc:  # it may be a key that is cut in two here
            raise UserError(
                f"{flag} '{parts.scheme}://…' holds a key with '/', '?', '#' or '@' in it: write "
                "them as %2F, %3F, %23, %40, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.scheme not in SCHEMES:
            raise UserError(
                f"{flag} '{place}': not the URI of an object store that is known here: {_GIVE}"
            )
        if not bucket or not uri.startswith(f"{parts.scheme}://"):
            raise UserError(f"{flag} '{place}' names no bucket: {_GIVE}")
        if parts.fragment or re.search(r"[\s\\%]|//|/\.\.?(/|$)", parts.path):
            raise UserError(
                f"{flag} '{place}': the prefix holds a space, '#', '%', '\\', '//' or dots alone: "
                "give a plainer one"
            )
        return place

    def __truediv__(self, name: str | Path) -> ObjectPath:
        below = f"{self.below}/{name}" if self.below else str(name)
        return ObjectPath(self.uri, below)

    def __str__(self) -> str:
        parts = urlsplit(self.uri)
        # abfs://container@account: there what stands before the @ is no secret.
        login, at, host = parts.netloc.rpartition("@")
        container = parts.scheme.startswith("abfs") and at and ":" not in login
        shown = f"{parts.scheme}://{parts.netloc if container else host}{parts.path.rstrip('/')}"
        return f"{shown}/{self.below}" if self.below else shown

    @property
    def copy(self) -> Path:
        """The folder in which this machine keeps its copy."""
        options = dict(parse_qsl(urlsplit(self.uri).query))
        where = (str(ObjectPath(self.uri)), options.get("endpoint_override", ""))
        key = hashlib.sha256("\n".join(where).encode()).hexdigest()[:16]
        return cache_folder() / "searches" / key / self.below

    def read(self, name: str = "") -> bytes | None:
        """The object `name` of this place, or this itself; None where there is none."""
        with self._asked() as (files, path):
            try:
                with files.open_input_stream(_join(path, name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, data: bytes, name: str = "") -> None:
        """Put an object, which others see whole or not at all."""
        with self._asked() as (files, path):
            target = beside = _join(path, name)
            if files.type_name not in ("s3", "gcs", "abfs"):  # there a file is seen while it grows
                parent, _, last = target.rpartition("/")
                files.create_dir(parent)
                beside = f"{parent}/.{last}.part"
            with files.open_output_stream(beside) as stream:
                stream.write(data)
            if beside != target:
                files.move(beside, target)

    def remove(self, name: str = "") -> None:
        """Take an object away, if it is there."""
        with self._asked() as (files, path):
            try:
                files.delete_file(_join(path, name))
            except FileNotFoundError:
                return

    def written(self, name: str = "") -> datetime | None:
        """When an object was put, by the store's clock; None where there is none."""
        with self._asked() as (files, path):
            found: datetime | None = files.get_file_info(_join(path, name)).mtime
            return found

    def sizes(self) -> dict[str, int]:
        """The objects below this place by their relative names, with their sizes in bytes."""
        return {name: size for name, (size, _) in self.listing().items()}

    def listing(self) -> dict[str, tuple[int, int]]:
        """The objects below this place: size in bytes, and when each was put, in nanoseconds."""
        from pyarrow.fs import FileSelector, FileType

        with self._asked() as (files, path):
            found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            return {
                info.path.removeprefix(f"{path}/"): (info.size, info.mtime_ns or 0)
                for info in found
                if info.type == FileType.File
            }

    def fetch(self, name: str, to: Path, most: int | None = None) -> bool:
        """Copy an object to the file `to`, whole or not at all; whether there is one.

        One of more than `most` bytes is not taken.
        """
        if most is not None:
            with self._asked() as (files, path):
                size = files.get_file_info(_join(path, name)).size or 0
            if size > most:
                raise StorageError(f"'{name}' has {size:,} bytes: more than any file of a search")
        content = self.read(name)
        if content is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(to, content)
        return content is not None

    @contextmanager
    def _asked(self) -> Iterator[tuple[FileSystem, str]]:
        from pyarrow import ArrowException

        try:
            files, path = _open(self.uri)
            yield files, _join(path, self.below)
        except (OSError, ArrowException) as error:
            raise StorageError(self._reason(error)) from None

    def _reason(self, error: BaseException) -> str:
        """The store's own words, one line, without what the URI keeps secret."""
        parts = urlsplit(self.uri)
        # pyarrow quotes a URI that it cannot read.
        text = str(error).replace(self.uri, str(self)).replace(_completed(self.uri), str(self))
        login, _, _ = parts.netloc.rpartition("@")
        values = [value for _, value in parse_qsl(parts.query)]
        for secret in (*login.split(":"), *values):
            if len(secret) > 3:
                text = text.replace(secret, "***").replace(quote(secret), "***")
        found = re.search(r"AWS Error ([A-Z_]+) during (\w+) operation: ([^;]*)", text)
        if found:
            said = re.sub(r"\s*\(Request ID.*|^curlCode: \d+, ", "", found[3])
            text = f"{found[1]} during {found[2]}: {said}"
        return " ".join(text.split())[:300]


@functools.lru_cache(maxsize=8)
def _open(uri: str) -> tuple[FileSystem, str]:
    """The file system and the path in it. May ask the store: for the region of a bucket."""
    from pyarrow.fs import FileSystem

    files, path = FileSystem.from_uri(_completed(uri))
    return files, path.rstrip("/")


def _completed(uri: str) -> str:
    parts = urlsplit(uri)
    given = parse_qsl(parts.query, keep_blank_values=True)
    names = {name for name, _ in given}
    more = [(k, v) for k, v in _OPTIONS.get(parts.scheme, {}).items() if k not in names]
    return parts._replace(query=urlencode([*given, *more])).geturl()


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") if i else part for i, part in enumerate(parts) if part)

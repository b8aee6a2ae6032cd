"""Collect what fails after the last trial, so that one step does not hold back the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from resp_tune.common.paths import describe_file_error
from resp_tune.errors import RespTuneError, RunError
from resp_tune.harness.spec import SearchLocation
from resp_tune.tracking.uri import root_cause

log = logging.getLogger(__name__)


class IncompleteError(RunError):
    """Some of the last steps failed, but the search has its results; `summary` is their file.

    `failure` is the last of them, without the words on what to do.
    """

    def __init__(self, message: str, summary: Path, failure: str) -> None:
        super().__init__(message)
        self.summary, self.failure = summary, failure


class Failures:
    """The last steps of a search that failed, with a line for each.

    As a context manager, it warns of them if another error passes.
    """

    def __init__(self, location: SearchLocation) -> None:
        self.lines: list[str] = []
        self._location = location

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            for line in self.lines:
                log.warning(line)

    def add(self, line: str) -> None:
        """Add a failure, once."""
        if line not in self.lines:
            self.lines.append(line)

    @contextmanager
    def collected(self, consequence: str) -> Iterator[None]:
        """Add the error of the block, if there is one, instead of raising it.

        An error of another library, which says neither what it means here nor what to do, becomes
        `consequence (reason)`.
        """
        try:
            yield
        except RespTuneError as error:
            self.add(str(error))
        except Exception as error:
            log.debug(consequence, exc_info=True)
            file_error = describe_file_error(error) if isinstance(error, OSError) else None
            reason = root_cause(error, self._location.tracking_uri)
            self.add(f"{consequence}: {file_error}" if file_error else f"{consequence} ({reason})")

    def raise_if_any(self, summary: Path) -> None:
        """Raise `IncompleteError` for the last failure, after warnings of the others."""
        if self.lines:
            *others, last = self.lines
            for line in others:
                log.warning(line)
            raise IncompleteError(
                f"{last}; the results are in '{summary.parent}': rerun the same command with "
                f"--name {self._location.name} to repeat only what failed",
                summary,
                last,
            )

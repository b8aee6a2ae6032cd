"""A PostgreSQL of the tests' own, with the programs that Debian's `postgresql` installs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

PASSWORD = "pa55-word"  # noqa: S105  # of a database that the test throws away


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None where they are not installed."""
    found = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    initdb = shutil.which("initdb") or (found[-1] if found else None)
    return None if initdb is None else Path(initdb).resolve().parent


@dataclass(frozen=True)
class Postgres:
    """A server that can be stopped and started. `inside`: what its command is put behind."""

    folder: Path
    address: str
    port: int
    inside: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """For SQLAlchemy, with the password."""
        return f"postgresql+psycopg://tests:{PASSWORD}@{self.address}:{self.port}/postgres"

    def start(self) -> None:
        self._control("start", "-w", "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """At once, connections and all."""
        self._control("stop", "-m", "immediate")

    def _control(self, *args: str) -> None:
        _run(*self.inside, *_as_postgres(), str(_programs() / "pg_ctl"), "-D", self._data, *args)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def make(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
            shutil.chown(password, "postgres")
        _run(*_as_postgres(), str(_programs() / "initdb"), "-D", self._data, "-U", "tests",
             "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync")  # fmt: skip
        settings = {
            "listen_addresses": f"'{self.address}'",
            "port": self.port,
            "unix_socket_directories": "''",
        }
        with Path(self._data, "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        with Path(self._data, "pg_hba.conf").open("a") as file:
            file.write("host all all samenet scram-sha-256\n")

    def rows(self, table: str) -> int:
        """How many rows a table has, by PostgreSQL's own account."""
        with psycopg.connect(self.uri.replace("+psycopg", "")) as database:
            found = database.execute(
                psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(table))
            ).fetchone()
        assert found is not None
        return int(found[0])


@contextmanager
def postgres(port: int, address: str = "127.0.0.1", *inside: str) -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # pytest's own is closed to other users
    server = Postgres(folder, address, port, inside)
    try:
        server.make()
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)


def why_none() -> str | None:
    """Why there can be none here; None where there can."""
    if programs() is None:
        return "needs PostgreSQL's initdb"
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user 'postgres'"
    return None


def _as_postgres() -> tuple[str, ...]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--")


def _programs() -> Path:
    found = programs()
    assert found is not None
    return found


def _run(*command: str) -> None:
    # Its log goes to a file: the server would keep a pipe open for ever.
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(command, stdout=said, stderr=said, check=False, cwd="/")
        said.seek(0)
        assert done.returncode == 0, said.read().decode()

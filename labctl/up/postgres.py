"""A PostgreSQL of labctl's own: a data directory in a home directory, and a server that is a child process."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2
from psycopg2 import extensions, sql

from labctl.up import binaries, files, process
from labctl.up.binaries import PostgresError

HOST = "127.0.0.1"
#: Owner of the server and of nothing else; labctl itself connects as a user without such rights.
SUPERUSER = "postgres"
#: The database and its owner.
NAME = "labctl"
#: Seconds a server may take to answer: after a crash it first reads its log.
PATIENCE = 60
#: Seconds to wait for a server that lost its owner and is on its way out.
PREDECESSOR = 30

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    # What is counted in an index alone is slow while pages of its table wait for this.
    "autovacuum_naptime": "10s",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    # One file for each day of the week, so that the log never grows for ever.
    "logging_collector": "on",
    "log_destination": "stderr",
    "log_directory": "log",
    "log_filename": "postgresql-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
}


class Postgres:
    """The server of one home directory; only one process at a time has it.

    ``home/postgres`` is the data directory, ``home/postgres.password`` the password of both users.
    """

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        """``settings`` are PostgreSQL's, over those of :data:`SETTINGS`."""
        self.home = home.absolute()
        self.data = self.home / "postgres"
        self.port = 0
        self._settings = {**SETTINGS, **(settings or {})}
        self._lock: int | None = None
        self._data_fd: int | None = None

    @property
    def url(self) -> str:
        """Give the URL of labctl's database, password included."""
        return f"postgresql://{NAME}:{self._password}@{HOST}:{self.port}/{NAME}"

    def prepare(self, pause: Callable[[float], object] = time.sleep) -> None:
        """Lock the data directory, make it if need be, and choose a port."""
        files.make_private_directory(self.home)
        self._lock = self._take_lock(pause)
        made = (self.data / "PG_VERSION").is_file()
        self._user = self._choose_user()
        self._binaries = binaries.find(int((self.data / "PG_VERSION").read_text()) if made else None)
        if self._user:
            self._binaries = binaries.within_reach(self._binaries, self._user)
        self._password = self._read_password(made)
        if not made:
            self._initialise()
        self._data_fd = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        self._forget_reused_pid()
        self.port = free_port()

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the server, on the same port each time; it stops by itself when this process ends in any way."""
        assert self._data_fd is not None, "prepare() comes first"
        options = [f"--{name}={value}" for name, value in {**self._settings, "port": str(self.port)}.items()]
        # Before its log file is open the server writes here.
        with open(self.home / "postgres.stderr", "wb") as output:
            return process.spawn(
                [self._binaries.directory / "postgres", "-D", _path(self._data_fd), *options],
                death_signal=signal.SIGINT,
                user=self._user,
                pass_fds=self._inherited(),
                environ=_environment(),
                cwd="/",
                output=output.fileno(),
            )

    def wait_until_ready(
        self, server: "subprocess.Popen[bytes]", pause: Callable[[float], object] = time.sleep
    ) -> None:
        """Wait until the server lets labctl in, and make user and database if they are not there yet."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                connection = self._connect(SUPERUSER, "postgres")
                break
            except psycopg2.OperationalError as error:
                if "password authentication failed" in str(error):
                    raise PostgresError(f"{self._password_file} does not hold the password of {self.data}") from error
                if server.poll() is not None:
                    how = process.describe_end(server.returncode)
                    raise PostgresError(f"PostgreSQL ended with {how}: {self._last_words()}") from error
                if time.monotonic() > deadline:
                    said = self._last_words()
                    raise PostgresError(f"PostgreSQL does not answer after {PATIENCE} s: {said}") from error
            pause(0.02)
        try:
            self._ensure_database(connection)
        finally:
            connection.close()

    def close(self) -> None:
        """Let go of the data directory; the server, if it still runs, keeps it locked until it has ended."""
        for fd in (self._data_fd, self._lock):
            if fd is not None:
                os.close(fd)
        self._data_fd = self._lock = None

    def _inherited(self) -> list[int]:
        return [fd for fd in (self._data_fd, self._lock) if fd is not None]

    def _take_lock(self, pause: Callable[[float], object]) -> int:
        path = self.home / "postgres.lock"
        deadline = time.monotonic() + PREDECESSOR
        while (lock := files.try_lock(path)) is None:
            if time.monotonic() > deadline:
                raise PostgresError(f"another process uses the database in {self.data}")
            pause(0.05)
        return lock

    def _choose_user(self) -> tuple[int, int] | None:
        if os.geteuid() != 0:
            return None
        if self.data.is_dir() and (owner := self.data.stat()).st_uid != 0:
            return owner.st_uid, owner.st_gid
        return binaries.unprivileged_user()

    @property
    def _password_file(self) -> Path:
        return self.home / "postgres.password"

    def _read_password(self, made: bool) -> str:
        try:
            return self._password_file.read_text().strip()
        except FileNotFoundError:
            if made:
                raise PostgresError(f"{self._password_file}, the password of {self.data}, is missing") from None
        password = secrets.token_urlsafe(32)
        files.write_secret(self._password_file, f"{password}\n")
        return password

    def _initialise(self) -> None:
        """Make the data directory; it gets its name when it is whole, so a half-made one is never used."""
        half = self.home / "postgres.new"
        if half.exists():
            shutil.rmtree(half)
        if self.data.exists():
            raise PostgresError(f"{self.data} is there, but is not a data directory of PostgreSQL")
        half.mkdir(mode=0o700)
        if self._user:
            os.chown(half, *self._user)
        # The user that runs initdb may not be able to walk to the home directory: it gets open descriptors instead.
        fd = os.open(half, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with tempfile.TemporaryFile("w") as password, tempfile.TemporaryFile("w+", errors="replace") as output:
                password.write(f"{self._password}\n")
                password.flush()
                if self._user:
                    os.fchown(password.fileno(), *self._user)
                command: list[str | Path] = [self._binaries.directory / "initdb", "-D", _path(fd)]
                command += ["--username", SUPERUSER, "--pwfile", _path(password.fileno()), "--auth", "scram-sha-256"]
                command += ["--encoding", "UTF8", "--locale", "C", "--data-checksums"]
                status = process.spawn(
                    command,
                    death_signal=signal.SIGINT,
                    user=self._user,
                    pass_fds=[fd, password.fileno(), *self._inherited()],
                    environ=_environment(),
                    cwd="/",
                    output=output.fileno(),
                ).wait()
                if status != 0:
                    output.seek(0)
                    how = process.describe_end(status)
                    raise PostgresError(f"initdb ended with {how}: {_complaint(output.read())}")
            half.rename(self.data)
            files.sync_directory(self.home)
        finally:
            os.close(fd)
            shutil.rmtree(half, ignore_errors=True)

    def _forget_reused_pid(self) -> None:
        """Remove the note of a server that was killed, if its pid is another process's by now: it would never start."""
        note = self.data / "postmaster.pid"
        try:
            lines = note.read_text().splitlines()
            pid, port = int(lines[0]), int(lines[3])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return
        except PermissionError:
            pass
        except (IndexError, ValueError):
            # PostgreSQL itself knows what to do about half a note.
            return
        with suppress(OSError), socket.create_connection((HOST, port), timeout=2):
            raise PostgresError(f"a server that labctl did not start (pid {pid}) uses {self.data}")
        note.unlink()

    def _connect(self, user: str, database: str) -> "extensions.connection":
        return psycopg2.connect(
            host=HOST, port=self.port, user=user, dbname=database, password=self._password, connect_timeout=5,
            application_name="labctl up",
        )  # fmt: skip

    def _ensure_database(self, connection: "extensions.connection") -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (NAME,))
            if cursor.fetchone() is None:
                hashed = extensions.encrypt_password(self._password, NAME, connection, "scram-sha-256")
                # CREATEDB: tests make a database for each of their processes.
                create = sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}")
                cursor.execute(create.format(sql.Identifier(NAME), sql.Literal(hashed)))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(NAME)))

    def _last_words(self) -> str:
        texts = [self.home / "postgres.stderr"]
        with suppress(OSError):
            texts += sorted((self.data / "log").iterdir(), key=lambda path: path.stat().st_mtime)
        said = "\n".join(path.read_text(errors="replace") for path in texts if path.is_file())
        return f"{_complaint(said)} (see {texts[-1]})"


@contextmanager
def running(home: Path, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server for the length of the block and give the URL of its database."""
    postgres = Postgres(home, settings)
    try:
        postgres.prepare()
        server = postgres.spawn()
        try:
            postgres.wait_until_ready(server)
            yield postgres.url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    finally:
        postgres.close()


def free_port() -> int:
    """Find a port nobody listens on, below those that outgoing connections get, which would come and take it."""
    for _ in range(100):
        port = random.randrange(15000, 32768)  # noqa: S311
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise PostgresError(f"no port on {HOST} is free for PostgreSQL")


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _environment() -> dict[str, str]:
    # PG* variables of whoever calls would change what initdb and the server do.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _complaint(output: str) -> str:
    """Pick the line in PostgreSQL's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    bad = [line for line in lines if any(word in line for word in ("PANIC:", "FATAL:", "ERROR:", "error:"))]
    return (bad or lines or ["it said nothing"])[-1]

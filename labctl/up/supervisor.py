"""What ``labctl up`` does: start the database, the web server and the worker, keep them running, end them in order."""

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2

from labctl import processes
from labctl.settings import Settings
from labctl.up import files, process, remote
from labctl.up.binaries import PostgresError
from labctl.up.child import Child
from labctl.up.postgres import Postgres
from labctl.up.signals import Signals

log = logging.getLogger(__name__)

#: Seconds within which everything must answer for the first time.
START = 120
#: Times a child may end before it was ever ready; a mistake in the configuration does not heal by itself.
ATTEMPTS = 3
#: Seconds the web server and the worker get to finish what they do, a little more than they allow themselves.
PATIENCE = 35
#: Seconds the database gets to write its last checkpoint.
DATABASE_PATIENCE = 60


class UpError(Exception):
    """labctl up cannot start; the message says why, to a person."""


class Stopped(Exception):
    """Somebody asked for the end while labctl was still starting."""


def run(settings: Settings) -> None:
    """Run labctl until SIGTERM, SIGINT or SIGHUP; raises :class:`UpError` when it cannot be started."""
    try:
        Supervisor(settings).run()
    except (PostgresError, OSError) as error:
        raise UpError(str(error)) from error


class Supervisor:
    """The parent of every process of one home directory."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; nothing happens before :meth:`run`."""
        self.settings = settings
        self.home = Path(settings.home).absolute()
        self.signals = Signals()
        self.postgres: Postgres | None = None
        self.database: Child | None = None
        self.web = Child("web", self._spawn_web)
        self.worker = Child("worker", self._spawn_worker)
        self._worker_says: int | None = None
        self._worker_ready = False

    def run(self) -> None:
        """Start everything, watch over it, and end it, whatever happens in between."""
        processes.adopt_orphans()
        with ExitStack() as ending:
            self._family = self._lock_home(ending)
            self.listener = self._listen()
            ending.callback(self._stop)
            try:
                self._start()
                self._watch()
            except Stopped:
                pass
        log.info("stopped")

    # Start

    def _lock_home(self, ending: ExitStack) -> int:
        """Make sure that nothing else runs in this home; give a lock that the children inherit."""
        try:
            files.make_private_directory(self.home)
            lock = files.try_lock(self.home / "up.lock")
            if lock is None:
                raise UpError(f"another labctl up runs in {self.home}")
            ending.callback(os.close, lock)
            # The children of one that was killed may need a moment to end.
            deadline = time.monotonic() + PATIENCE
            while (family := files.try_lock(self.home / "children.lock")) is None:
                if time.monotonic() > deadline:
                    raise UpError(f"processes of an earlier labctl up still run in {self.home}")
                self._pause(0.05)
        except OSError as error:
            raise UpError(f"cannot use {self.home}: {error.strerror}") from error
        ending.callback(os.close, family)
        return family

    def _listen(self) -> socket.socket:
        """Open the port, before anything else is started; gunicorn inherits it, also after a crash."""
        host, port = self.settings.host, self.settings.port
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise UpError(f"cannot listen on {host}: {error.strerror}") from error
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            listener.close()
            advice = "LABCTL_PORT (PORT for make up) names another one"
            raise UpError(f"cannot listen on {host} port {port}: {error.strerror}; {advice}") from error
        return listener

    def _start(self) -> None:
        url = self._start_database()
        self.environ = {**os.environ, "LABCTL_DATABASE_URL": url, "LABCTL_HOME": str(self.home)}
        self._prepare_database(url)
        if self.postgres:
            # Other labctl commands find the database by it.
            files.write_secret(self.home / "database.url", f"{url}\n")
        remote.prepare(self.settings, self.home)
        self._check_stop()
        self.web.start()
        self.worker.start()
        self._wait_until_ready()
        self._announce()

    def _start_database(self) -> str:
        if self.settings.database_url:
            check_reachable(self.settings.database_url)
            return self.settings.database_url
        web = 2 * self.settings.web_workers * self.settings.database_pool_size
        worker = 2 * self.settings.worker_connections()
        # The rest is for the task queue, commands, backups and people.
        self.postgres = Postgres(self.home, {"max_connections": str(max(200, web + worker + 50))})
        self.postgres.prepare(self._pause)
        self.database = Child("database", self.postgres.spawn, stop_signal=signal.SIGINT)
        self.database.start()
        assert self.database.process is not None
        self.postgres.wait_until_ready(self.database.process, self._pause)
        return self.postgres.url

    def _prepare_database(self, url: str) -> None:
        """Bring the schema up to date and make the first admin."""
        # These imports take most of a second, in which the database starts.
        from labctl import migrations

        try:
            migrations.upgrade(url)
            make_first_admin(url, self.home / "admin.token")
        except Exception as error:
            log.debug("database_not_prepared", exc_info=True)
            first_line = str(error).strip().partition("\n")[0]
            raise UpError(f"cannot prepare the database: {type(error).__name__}: {first_line}") from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START
        web_ready = False
        while not (web_ready and self._worker_ready):
            self._tend(0.1)
            for child in self._children():
                if child.failures >= ATTEMPTS:
                    raise UpError(f"the {child.name} process ended {ATTEMPTS} times before it was ready, "
                                  f"the last time with {child.last_end}; see its messages above")  # fmt: skip
            # The worker is the slower one; until it is there nobody needs to ask.
            web_ready = web_ready or (self._worker_ready and self._web_answers())
            if time.monotonic() > deadline:
                late = "web" if self._worker_ready else "worker"
                raise UpError(f"the {late} process was not ready within {START} seconds")

    def _web_answers(self) -> bool:
        # The port is open already: the answer comes as soon as gunicorn can give one.
        host, port = self.listener.getsockname()[:2]
        connection = http.client.HTTPConnection(host, port, timeout=1)
        try:
            connection.request("GET", "/_health", headers={"Connection": "close"})
            return connection.getresponse().status == http.client.NO_CONTENT
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _announce(self) -> None:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        text = f"labctl is ready: http://{host}:{self.settings.port}/\n"
        token = self.home / "admin.token"
        if token.exists():
            text += f"The first admin's token is in {token}\n"
        # Nobody may be reading, which is no reason to stop.
        with suppress(OSError):
            sys.stdout.write(text)
            sys.stdout.flush()

    def _spawn_web(self) -> "subprocess.Popen[bytes]":
        listener = self.listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "--config", "python:labctl.gunicorn_config"]
        return process.spawn(
            [*command, "--bind", f"fd://{listener}", "labctl.wsgi:app"],
            # Quick, not graceful: the port must be free for the next labctl up, and the database ends as well.
            death_signal=signal.SIGQUIT,
            environ=self.environ,
            pass_fds=(listener, self._family),
        )

    def _spawn_worker(self) -> "subprocess.Popen[bytes]":
        if self._worker_says is not None:
            os.close(self._worker_says)
        self._worker_says, say = os.pipe2(os.O_CLOEXEC)
        try:
            return process.spawn(
                [sys.executable, "-m", "labctl.cli.main", "worker"],
                # Without a database it could not even write down what it finished; killed tasks run again.
                death_signal=signal.SIGKILL if self.postgres else signal.SIGTERM,
                environ={**self.environ, "LABCTL_READY_FD": str(say)},
                pass_fds=(say, self._family),
            )
        finally:
            os.close(say)

    # Watch

    def _watch(self) -> None:
        with suppress(Stopped):
            while True:
                self._tend(None)

    def _tend(self, at_most: float | None) -> None:
        """Start again what has ended, then wait for something to happen, ``at_most`` seconds."""
        self._check_stop()
        self._reap_adopted()
        pauses = [pause for child in self._children() if (pause := child.tend()) is not None]
        timeout = min([*pauses, *([at_most] if at_most is not None else [])], default=None)
        for fd in self.signals.wait(timeout, () if self._worker_says is None else (self._worker_says,)):
            self._worker_ready = os.read(fd, 64) == b"ready\n" or self._worker_ready
            os.close(fd)
            self._worker_says = None

    def _children(self) -> list[Child]:
        return [child for child in (self.database, self.web, self.worker) if child is not None]

    def _reap_adopted(self) -> None:
        """Collect ended descendants that lost their parent; our own children are collected by their names."""
        own = {child.pid for child in self._children()}
        for pid in process.children() - own:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _pause(self, seconds: float) -> None:
        self._check_stop()
        self.signals.wait(seconds)

    def _check_stop(self) -> None:
        if self.signals.stop is not None:
            log.info("stopping", extra={"reason": self.signals.stop.name})
            raise Stopped

    # Stop

    def _stop(self) -> None:
        """End every process: the web server and the worker first, then the database they need."""
        self.listener.close()
        database = self.database.pid if self.database else None
        for child in (self.web, self.worker):
            child.ask_to_stop()
        for pid in process.children() - {child.pid for child in self._children()}:
            _signal(pid, signal.SIGTERM)
        self._wait_for_end(PATIENCE, but=database)
        if self.database and self.postgres:
            (self.home / "database.url").unlink(missing_ok=True)
            self.database.ask_to_stop()
            self._wait_for_end(DATABASE_PATIENCE, but=None)
        if self.postgres:
            self.postgres.close()

    def _wait_for_end(self, patience: float, *, but: int | None) -> None:
        """Wait until every child but one has ended; kill those that do not."""
        deadline = time.monotonic() + patience
        killed: set[int] = set()
        while True:
            self._reap_adopted()
            own = {child.pid for child in self._children() if child.process and child.process.poll() is None}
            left = {pid for pid in own | process.children() if pid is not None} - {but}
            if not left:
                return
            if time.monotonic() > deadline or (self.signals.hurry and but is not None):
                for pid in left - killed:
                    log.warning("child_killed", extra={"pid": pid})
                    _signal(pid, signal.SIGKILL)
                killed |= left
            self.signals.wait(0.1)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def check_reachable(url: str) -> None:
    """Raise :class:`UpError` unless the database lets us in; the message does not tell the password."""
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise UpError("database_url must begin with postgresql://")
    try:
        psycopg2.connect(f"postgresql://{rest}", connect_timeout=5).close()
    except psycopg2.Error as error:
        where = urlsplit(url).hostname or "this machine"
        reason = str(error).strip().partition("\n")[0].replace(url, "the URL")
        raise UpError(f"cannot reach the database of LABCTL_DATABASE_URL on {where}: {reason}") from error


def make_first_admin(url: str, path: Path) -> None:
    """Make the first admin, if there is no user at all, and leave the token in a file that only this user can read."""
    from labctl import db
    from labctl.tokens import service
    from labctl.tokens.secrets import looks_like_token, new_secret

    engine = db.configure(url, pool_size=1)
    try:
        with db.transaction() as session:
            # A file without a user is what a crash between the two leaves.
            left = path.read_text().strip() if path.exists() else ""
            secret = left if looks_like_token(left) else new_secret()
            if service.create_first_admin(session, secret):
                # Before the commit: a token that nobody can read again must not be the only one.
                files.write_secret(path, f"{secret}\n")
    finally:
        engine.dispose()

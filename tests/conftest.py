"""A real PostgreSQL for every test; what a test does to it is undone, or, where commits matter, emptied."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl import clock, db, migrations, models, queue
from labctl.settings import Settings
from labctl.up import postgres

from . import sshd as real_sshd


@pytest.fixture(scope="session", autouse=True)
def greenwich() -> Iterator[None]:
    """Times in the names of runs are local to the server: here it stands in Greenwich."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for this test process, with the schema; durability costs time and protects nothing here."""
    home: Path = tmp_path_factory.mktemp("home")
    # Autovacuum would keep databases from being dropped while it is at them.
    quick = dict.fromkeys(("autovacuum", "fsync", "full_page_writes", "synchronous_commit"), "off")
    with postgres.running(home, quick) as url:
        migrations.upgrade(url)
        yield url


@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    engine = db.make_engine(database_url, pool_size=40)
    queue.configure(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_sshd.Sshd]:
    """A real sshd for this test process, which lets its user in with a key of its own."""
    if reason := real_sshd.missing():
        pytest.skip(reason)
    server = real_sshd.Sshd(tmp_path_factory.mktemp("sshd"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url)


class Joined:
    """Lets reads see what the test's own transaction has done."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def connect(self) -> Any:
        return nullcontext(self.connection)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session inside a transaction that is undone; transaction() and reading() of the code under test join it."""
    with engine.connect() as connection, connection.begin() as outer:
        db.bind(connection, Joined(connection), join_transaction_mode="create_savepoint")
        with Session(bind=connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            yield session
        outer.rollback()


@pytest.fixture
def app(session: Session, settings: Settings) -> TestApp:
    """The whole application; what it changes is undone after the test."""
    return TestApp(application.make_app(settings))


@pytest.fixture
def committed(engine: Engine) -> Iterator[Engine]:
    """A database where transactions really commit; it is emptied afterwards."""
    db.bind(
        engine, engine.execution_options(isolation_level="AUTOCOMMIT"), join_transaction_mode="conditional_savepoint"
    )
    yield engine
    tables = ", ".join(table.name for table in models.metadata.sorted_tables)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables}, procrastinate_jobs RESTART IDENTITY CASCADE"))


@pytest.fixture
def committed_app(committed: Engine, settings: Settings) -> TestApp:
    """The whole application over a database where transactions really commit."""
    return TestApp(application.make_app(settings))


class StoppedClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, **how_far: float) -> None:
        self.time += timedelta(**how_far)


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    stopped = StoppedClock()
    monkeypatch.setattr(clock, "now", stopped)
    return stopped


@pytest.fixture
def statements(engine: Engine) -> Callable[[], Any]:
    """Collect the SQL statements of a block: ``with statements() as sent: ...``, less the savepoints of the tests."""

    @contextmanager
    def collect() -> Iterator[list[str]]:
        sent: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if not statement.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
                sent.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            event.remove(engine, "before_cursor_execute", note)

    return collect


@pytest.fixture
def at_once() -> Callable[..., list[Any]]:
    """Call functions in as many threads at one moment; gives what they returned, or raises what one of them raised."""

    def call(functions: list[Callable[[], Any]]) -> list[Any]:
        barrier = threading.Barrier(len(functions))
        results: list[Any] = [None] * len(functions)
        errors: list[BaseException] = []

        def run(number: int, function: Callable[[], Any]) -> None:
            barrier.wait()
            try:
                results[number] = function()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number, each)) for number, each in enumerate(functions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        if errors:
            raise errors[0]
        return results

    return call

"""The database: the tables' base class, the one place that commits, and the engine under them."""

import re
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import orjson
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from labctl.errors import Unavailable


class Base(DeclarativeBase):
    """The base of every table; the naming convention keeps constraint names stable across migrations."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def table(model: type[Base]) -> Table:
    """Give the table of a model, for statements that are built once and skip the ORM."""
    return cast(Table, model.__table__)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: a user's name (or ``anonymous``, or ``labctl`` for background work), and in which request."""

    name: str
    request_id: str | None = None


class Lock(IntEnum):
    """The classes of advisory locks, so that a name that a client chose never stands for another thing's lock."""

    RUN = 1
    LOCK_MANY = 2
    FIRST_ADMIN = 3
    BUILD = 4
    NEXT_NODE = 5
    CHECKOUT = 6
    ENGINE = 7
    MAINTENANCE = 8
    REMOTE_HOSTS = 9
    CORDON = 10


#: What changes by itself, in tasks and commands of labctl's own.
LABCTL = Actor("labctl")

_write = sessionmaker(expire_on_commit=False)
_reads: Any = None

#: What a query reads from: a connection of :func:`reading`, or the session of a transaction that it is a part of.
Reader = Session | Connection


def driver_url(url: str) -> str:
    """Spell a ``postgresql://`` URL for the driver labctl uses; raises ValueError for another database."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("database_url is not a URL") from error
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError("database_url must begin with postgresql://")
    return parsed.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def make_engine(url: str, *, pool_size: int = 5, autocommit: bool = False) -> Engine:
    """Make an engine whose pool notices closed connections without asking the server."""
    engine = create_engine(
        driver_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        # Passwords' hashes and the like do not belong into tracebacks.
        hide_parameters=True,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        isolation_level="AUTOCOMMIT" if autocommit else "READ COMMITTED",
        connect_args={
            "connect_timeout": 5,
            "application_name": "labctl",
            "keepalives_idle": 30,
            # A process that is stopped in the middle of a transaction must not hold its locks for ever.
            # What makes a long statement faster, compiling it, makes one whose rows are overestimated a hundred times
            # slower; there are no long ones here.
            "options": "-c timezone=UTC -c jit=off -c lock_timeout=15s -c statement_timeout=60s"
            " -c idle_in_transaction_session_timeout=60s",
        },
    )
    event.listen(engine, "checkout", _check_alive)
    event.listen(engine, "before_cursor_execute", _prepare, retval=True)
    return engine


#: The execution option of a statement that is sent often enough to be planned once for each connection.
PREPARED = {"labctl_prepared": True}
#: A server keeps each of them for as long as the connection lasts.
MOST_PREPARED = 100
_PARAMETER = re.compile(r"%\((\w+)\)s")


def _prepare(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    """Send a statement marked :data:`PREPARED` as EXECUTE of a prepared one.

    psycopg2 does not prepare by itself, and planning is half of what a small statement costs the server.
    """
    if executemany or context is None or not context.execution_options.get("labctl_prepared"):
        return statement, parameters
    known: dict[str, str] = connection.info.setdefault("labctl_prepared", {})
    execute = known.get(statement)
    if execute is None:
        if len(known) >= MOST_PREPARED:
            return statement, parameters
        names = list(dict.fromkeys(_PARAMETER.findall(statement)))
        numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", statement)
        cursor.execute(f"PREPARE labctl_{len(known)} AS {numbered.replace('%%', '%')}")
        arguments = ", ".join(f"%({name})s" for name in names)
        execute = known[statement] = f"EXECUTE labctl_{len(known)} ({arguments})"
    return execute, parameters


def _check_alive(connection: Any, _record: Any, _proxy: Any) -> None:
    """Drop a pooled connection that the server has closed.

    An idle connection has nothing to say, so one that is readable carries the server's farewell: this costs two
    microseconds, where asking ``SELECT 1`` would cost a round trip with every request.
    """
    poll = select.poll()
    try:
        poll.register(connection.fileno(), select.POLLIN)
        if not poll.poll(0):
            return
    except Exception as error:
        raise DisconnectionError("the connection is closed") from error
    gone = DisconnectionError("the server closed the connection")
    gone.invalidate_pool = True
    raise gone


def configure(url: str, *, pool_size: int = 5) -> Engine:
    """Point :func:`transaction` and :func:`reading` of this process at a database."""
    engine = make_engine(url, pool_size=pool_size)
    # Connections of their own for reads: switching one between the two ways costs more than a small read.
    bind(engine, make_engine(url, pool_size=pool_size, autocommit=True))
    return engine


def bind(write: Any, read: Any, **options: Any) -> None:
    """Let transactions and reads of this process use the given engines (or, in tests, one connection)."""
    global _reads
    _write.configure(bind=write, **options)
    _reads = read


@contextmanager
def transaction(actor: Actor = LABCTL) -> Iterator[Session]:
    """Open a session for ``actor`` that commits at the end of the block, or rolls back if the block raises.

    The only commit in labctl. Raises :class:`Unavailable` when the database cannot be reached or answers too late.
    """
    with _translated(), _write() as session:
        session.info["actor"] = actor
        with session.begin():
            yield session


@contextmanager
def reading() -> Iterator[Connection]:
    """Open a connection for reads; each statement is its own snapshot, which spares the round trips of a transaction.

    A bare connection, not a session: what is read is passed through, and a session would cost as much as the read.
    """
    with _translated(), _reads.connect() as connection:
        yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("all database connections are busy") from error
    except DBAPIError as error:
        code = getattr(error.orig, "pgcode", None)
        if code in _TOO_SLOW:
            raise Unavailable(f"the database did not answer in time: {_TOO_SLOW[code]}") from error
        if error.connection_invalidated or isinstance(error, OperationalError):
            raise Unavailable("the database cannot be reached at the moment") from error
        raise


#: What PostgreSQL gives up on; the words go into the log and to the client.
_TOO_SLOW = {"40P01": "deadlock", "55P03": "a lock was held for too long", "57014": "the statement took too long"}


def ping(session: Reader) -> str | None:
    """Answer a round trip with the revision of the schema, None for a database without one."""
    if session.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    return session.execute(text("SELECT version_num FROM alembic_version")).scalar()

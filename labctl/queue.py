"""The seam to the task queue: work that is deferred in the caller's transaction, and work that comes round by itself.

The queue (procrastinate, in the same database) only wakes and schedules. It may run a task twice, after a crash or
when a stopped process continues, so the truth lies in our own rows: see :mod:`labctl.lease`.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy
from procrastinate.contrib.sqlalchemy import SQLAlchemyPsycopg2Connector
from procrastinate.exceptions import AlreadyEnqueued
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from labctl import logs
from labctl.db import driver_url
from labctl.settings import Settings

log = logging.getLogger(__name__)

#: Try again after 1, 2, 4, ... seconds, ten times: for what fails because something else is down.
PATIENT = RetryStrategy(max_attempts=10, exponential_wait=2)


@dataclass(frozen=True)
class Task:
    """A background verb: ``function`` gets the settings and then the arguments it was deferred with."""

    name: str
    function: Callable[..., None]
    retry: RetryStrategy | None
    cron: str | None


#: Set when this process is told to stop: a task that may take long ends, and leaves the rest to the next worker.
stopping = threading.Event()

_registered: dict[str, Task] = {}
_producer = App(connector=SQLAlchemyPsycopg2Connector())


def task(
    name: str, *, retry: RetryStrategy | None = None, cron: str | None = None
) -> Callable[[Callable[..., None]], Task]:
    """Register a function as the task ``name``; with ``cron`` (seconds may be its sixth field) it runs by itself.

    It must be idempotent, and keep its transactions short: never one open over outside work.
    """

    def register(function: Callable[..., None]) -> Task:
        if name in _registered:
            raise ValueError(f"there are two tasks named {name}")
        _registered[name] = Task(name, function, retry, cron)
        return _registered[name]

    return register


def configure(engine: Engine) -> None:
    """Let :func:`defer` of this process use the engine."""
    _producer.connector.open(engine)  # type: ignore[attr-defined]


def defer(session: Session, wanted: Task | str, *, once: str | None = None, **arguments: Any) -> None:
    """Have ``wanted`` run with ``arguments`` once the caller's transaction has committed, and not if it rolls back.

    ``wanted`` is its name where the caller may not know tasks: in the core of a domain. ``once``: while a task with the
    same word waits, another one is not added.
    """
    name = wanted if isinstance(wanted, str) else wanted.name

    def add() -> None:
        _producer.configure_task(name, connection=session.connection(), queueing_lock=once).defer(**arguments)

    if once is None:
        add()
        return
    try:
        # A second one breaks a unique index, which must not break the caller's transaction.
        with session.begin_nested():
            # The savepoint is made when the session is asked for its connection, not before.
            add()
    except AlreadyEnqueued:
        log.debug("task_already_queued", extra={"task": name, "once": once})


def make_worker_app(settings: Settings) -> App:
    """Make the application that a worker process runs: every registered task, over connections of its own."""
    url = driver_url(settings.require_database()).replace("+psycopg2", "", 1)
    connector = PsycopgConnector(conninfo=url, min_size=1, max_size=4, kwargs={"application_name": "labctl worker"})
    app = App(connector=connector)
    for registered in _registered.values():
        function = app.task(name=registered.name, retry=registered.retry or False, pass_context=True)(
            _runner(registered, settings)
        )
        if registered.cron:
            app.periodic(cron=registered.cron)(function)

    @app.periodic(cron="* * * * * */10")
    @app.task(name="queue.requeue_stalled", pass_context=True, queueing_lock="queue.requeue_stalled")
    async def requeue_stalled(context: JobContext, timestamp: int) -> None:
        for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=settings.worker_stalled_after):
            log.warning("task_requeued", extra={"task": job.task_name, "task_id": job.id})
            await app.job_manager.retry_job(job)

    @app.periodic(cron="17 * * * *")
    @app.task(name="queue.purge", pass_context=True)
    async def purge(context: JobContext, timestamp: int) -> None:
        await app.job_manager.delete_old_jobs(
            nb_hours=72, include_failed=True, include_cancelled=True, include_aborted=True
        )

    return app


def _runner(registered: Task, settings: Settings) -> Callable[..., None]:
    def run(context: JobContext, **arguments: Any) -> None:
        began = time.perf_counter()
        token = logs.request_id.set(f"task-{context.job.id}")
        if registered.cron:
            arguments.pop("timestamp", None)
        try:
            registered.function(settings, **arguments)
        except Exception:
            log.exception("task_failed", extra={"task": registered.name, "attempt": context.job.attempts + 1})
            raise
        else:
            ms = round((time.perf_counter() - began) * 1000, 1)
            # What comes round every few seconds is not worth a line each time.
            log.log(
                logging.DEBUG if registered.cron else logging.INFO,
                "task_done",
                extra={"task": registered.name, "ms": ms},
            )
        finally:
            logs.request_id.reset(token)

    return run

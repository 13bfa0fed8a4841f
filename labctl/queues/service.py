"""The verbs of queues: pausing them, and taking jobs out of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock, lease
from labctl.db import Reader, table
from labctl.errors import Conflict, Exhausted, Forbidden, Invalid
from labctl.events.service import record
from labctl.queues.models import Queue
from labctl.runs import service as runs
from labctl.runs.documents import LogURL
from labctl.runs.models import Job, Run
from labctl.runs.states import JobState

_runs = table(Run)
_jobs = table(Job)
_queues = table(Queue)


def add(session: Session, name: str) -> None:
    """Add a queue; raises :class:`Conflict`."""
    statement = upsert(Queue).values(name=name).on_conflict_do_nothing().returning(Queue.id)
    if session.scalar(statement) is None:
        raise Conflict(f"Queue {name} already exists")
    record(session, "queue.added", f"queues/{name}")


def pause(session: Session, name: str, paused_by: str, seconds: float) -> None:
    """Let nobody take jobs for some seconds; raises :class:`Invalid` (unknown queue) or :class:`Forbidden` (paused)."""
    queue = _hold(session, name)
    if is_paused(queue):
        raise Forbidden("Cannot pause an already-paused queue")
    now = clock.now()
    queue.paused_by, queue.paused_since, queue.paused_until = paused_by, now, now + timedelta(seconds=seconds)
    record(session, "queue.paused", f"queues/{name}", paused_by=paused_by, seconds=seconds)


def resume(session: Session, name: str) -> None:
    """End a pause before its time; raises :class:`Invalid` (unknown queue) or :class:`Forbidden` (not paused)."""
    queue = _hold(session, name)
    if not is_paused(queue):
        raise Forbidden("Cannot resume a queue that is not paused")
    queue.paused_by = queue.paused_since = queue.paused_until = None
    record(session, "queue.resumed", f"queues/{name}")


def _hold(session: Session, name: str) -> Queue:
    queue = session.scalar(select(Queue).where(Queue.name == name).with_for_update())
    if queue is None:
        raise Invalid("specified queue does not exist")
    return queue


def is_paused(queue: Any) -> bool:
    """Tell whether a queue is paused now; one that nobody has added never is."""
    return queue is not None and queue.paused_until is not None and queue.paused_until > clock.now()


def listed(session: Reader, *, name: str | None = None, paused_by: str | None = None) -> Sequence[Row[Any]]:
    """List the queues by name; a queue's name is the machine type it is for."""
    query = select(_queues).order_by(Queue.name)
    if name is not None:
        query = query.where(Queue.name == name)
    if paused_by is not None:
        query = query.where(Queue.paused_by == paused_by, Queue.paused_until > clock.now())
    return session.execute(query).all()


def stats(session: Reader, name: str) -> tuple[Row[Any] | None, int]:
    """Give a queue and how many jobs are queued in it; raises :class:`Invalid` if there is neither queue nor job."""
    queue = _find(session, name)
    query = select(func.count()).where(_jobs.c.queue == name, _jobs.c.status == JobState.QUEUED)
    queued: int = session.execute(query).scalar_one()
    if queue is None and not queued:
        raise Invalid("specified queue does not exist")
    return queue, queued


def _find(session: Reader, name: str) -> Row[Any] | None:
    return session.execute(select(_queues).where(Queue.name == name)).first()


def _in_order(query: Select[Any], name: str) -> Select[Any]:
    """Let a query find a queue's jobs, the next to be taken first."""
    return query.where(_jobs.c.queue == name, _jobs.c.status == JobState.QUEUED).order_by(_jobs.c.priority, _jobs.c.id)


def _documents(name: str) -> Select[Any]:
    return _in_order(select(_runs.c.name, _jobs.c.job_id, _jobs.c.document).join_from(_jobs, _runs), name)


def queued_jobs(
    session: Reader, name: str, logs: LogURL, *, user: str | None = None, run_name: str | None = None
) -> list[str]:
    """Give the documents of a queue's jobs, the next to be taken first."""
    query = _documents(name)
    if user is not None:
        query = query.where(_jobs.c.user_name == user)
    if run_name is not None:
        query = query.where(_runs.c.name == run_name)
    rows = session.execute(query)
    return [logs.complete(row.name, row.job_id, row.document) for row in rows]


def next_job(session: Reader, name: str, logs: LogURL) -> str | None:
    """Give the queued job with the smallest priority, without taking it; raises :class:`Exhausted` while paused."""
    _check_not_paused(session, name)
    row = session.execute(_documents(name).limit(1)).first()
    return None if row is None else logs.complete(row.name, row.job_id, row.document)


def _check_not_paused(session: Reader, name: str) -> None:
    if is_paused(_find(session, name)):
        raise Exhausted("queue is paused, cannot retrieve job")


@dataclass(frozen=True)
class Claimed:
    """A job that a dispatcher has taken, for as long as it keeps the lease alive."""

    run_name: str
    job_id: str
    worker: str
    attempt: int
    until: datetime


def claim(session: Session, name: str, worker: str, seconds: float) -> Claimed | None:
    """Take the next job of a queue for a worker: it waits, under a lease, and no other dispatcher gets it.

    Gives None if nothing is queued; raises :class:`Exhausted` while the queue is paused.
    """
    _check_not_paused(session, name)
    pick = _in_order(select(_jobs.c.id), name).limit(1).with_for_update(skip_locked=True, key_share=True)
    taken = (
        update(_jobs)
        .where(_jobs.c.id == pick.scalar_subquery(), _runs.c.id == _jobs.c.run_id)
        .values(lease.claim(Job, worker, seconds))
        .returning(_runs.c.name, _jobs.c.job_id, _jobs.c.lease_attempt, _jobs.c.lease_until)
    )
    row = session.execute(taken).first()
    if row is None:
        return None
    runs.update_job(session, row.name, row.job_id, runs.Report({"status": JobState.WAITING}))
    return Claimed(row.name, row.job_id, worker, row.lease_attempt, row.lease_until)


def heartbeat(session: Session, claimed_run: str, job_id: str, held: runs.Claim, seconds: float) -> datetime:
    """Keep a claim for some more seconds; gives its end. Raises :class:`Forbidden` if it is lost."""
    statement = (
        update(_jobs)
        .where(
            _jobs.c.run_id == select(_runs.c.id).where(_runs.c.name == claimed_run).scalar_subquery(),
            _jobs.c.job_id == job_id,
            lease.held(Job, held.worker, held.attempt),
        )
        .values(lease_until=clock.now() + timedelta(seconds=seconds))
        .returning(_jobs.c.lease_until)
    )
    until: datetime | None = session.execute(statement).scalar()
    if until is None:
        raise Forbidden("the claim on this job is lost")
    return until


def requeue_abandoned(session: Session) -> bool:
    """Queue one claimed job again whose dispatcher has let the lease run out; tells whether there was one."""
    return runs.move_one(
        session, JobState.QUEUED, _jobs.c.lease_holder.is_not(None), _jobs.c.lease_until <= clock.now()
    )

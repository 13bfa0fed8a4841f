"""What the runner writes: which jobs are its own, their output as it comes, how they ended, and the inventory.

A change of a running job names its lease (labctl/lease.py): the row of the job is locked first, and what belongs to a
job that was lost meanwhile is not written at all. A lease is over when its time is, whether or not the database could
be asked meanwhile: until then nobody else ends the job, from then on its worker writes nothing.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Select,
    Text,
    any_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from labctl import clock, lease
from labctl.db import Reader, table
from labctl.errors import Conflict
from labctl.events.service import record_all
from labctl.remote.models import RemoteHost, RemoteInventory, RemoteJob, RemoteJobHost, RemoteOutput
from labctl.remote.states import LIFE, SHORT, HostState, JobState, Operation

log = logging.getLogger(__name__)

#: Why a job has failed whose lease has run out.
LOST = "the worker that carried this out was lost"
#: Why one has failed whose worker was told to stop, and did not get to its end in time.
STOPPED = "the worker was stopped"
#: How many jobs are ended in one transaction.
BATCH = 100

_jobs, _job_hosts, _outputs = table(RemoteJob), table(RemoteJobHost), table(RemoteOutput)
_hosts, _inventory = table(RemoteHost), table(RemoteInventory)


@dataclass(frozen=True)
class Taken:
    """A job that a worker has claimed, with what is to be done."""

    holder: str
    lease_attempt: int
    id: int
    jid: str
    operation: Operation
    #: As they were given; these are not for logs.
    arguments: Mapping[str, Any] = field(repr=False)
    #: The same with what is secret masked.
    shown: Mapping[str, Any]
    timeout: float
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of output, as it is stored, and the state that its host has from now on, if this ended it."""

    host: str
    chunk: str
    state: HostState | None = None


@dataclass(frozen=True)
class Standing:
    """How it is with a job that is carried out."""

    #: Whether it is still the worker's, and whether its lease is a new one now.
    held: bool
    renewed: bool = False
    #: Who wants it to end.
    cancelled_by: str | None = None


@dataclass(frozen=True)
class Due:
    """Whether there is something to do for a runner."""

    queued: bool
    #: Whether one of those that wait takes only a moment.
    short: bool
    lost: bool
    given_up: bool


# What there is to do


def due(reader: Reader) -> Due:
    """Tell in one statement whether jobs wait, were lost, or have waited too long."""
    now = clock.now()
    queued = _jobs.c.state == JobState.QUEUED
    statement = select(
        exists().where(queued, _jobs.c.begin_by > now).label("queued"),
        exists().where(queued, _jobs.c.begin_by > now, _jobs.c.operation.in_(SHORT)).label("short"),
        exists().where(*_lost(now)).label("lost"),
        exists().where(queued, _jobs.c.begin_by <= now).label("given_up"),
    )
    row = reader.execute(statement).one()
    return Due(row.queued, row.short, row.lost, row.given_up)


def claim(session: Session, holder: str, number: int, seconds: float, short: int = 0) -> list[Taken]:
    """Claim queued jobs, the oldest first: up to ``short`` that take a moment, and up to ``number`` of the others left.

    They are running from now on.
    """
    now = clock.now()
    waiting = (
        select(_jobs.c.id)
        .where(_jobs.c.state == JobState.QUEUED, _jobs.c.begin_by > now)
        .order_by(_jobs.c.id)
        .with_for_update(skip_locked=True)
    )
    quick = waiting.where(_jobs.c.operation.in_(SHORT)).limit(short).cte("quick")
    pick = waiting.where(_jobs.c.id.not_in(select(quick.c.id))).limit(number).cte("pick")
    statement = (
        update(_jobs)
        .where(_jobs.c.id.in_(select(quick.c.id).union_all(select(pick.c.id))))
        .values(
            state=_moved(JobState.QUEUED, JobState.RUNNING),
            started=now,
            deadline=literal(now) + func.make_interval(0, 0, 0, 0, 0, 0, _jobs.c.timeout),
            **lease.claim(RemoteJob, holder, seconds),
        )
        .returning(*_jobs.c)
    )
    rows = sorted(session.execute(statement), key=lambda row: int(row.id))
    if not rows:
        return []
    hosts: dict[int, list[str]] = {row.id: [] for row in rows}
    named = select(_job_hosts.c.job_id, _job_hosts.c.host).where(_job_hosts.c.job_id.in_(hosts))
    for row in session.execute(named.order_by(_job_hosts.c.job_id, _job_hosts.c.position)):
        hosts[row.job_id].append(row.host)
    taken = [
        Taken(
            holder=holder,
            lease_attempt=row.lease_attempt,
            id=row.id,
            jid=row.jid,
            operation=Operation(row.operation),
            arguments=row.unmasked or {},
            shown=row.arguments,
            timeout=row.timeout,
            hosts=tuple(hosts[row.id]),
        )
        for row in rows
    ]
    record_all(session, [("remote.job_started", subject(one.jid), _started(one)) for one in taken])
    return taken


def subject(jid: str) -> str:
    """Give the subject of a job's events."""
    return f"remote/{jid}"


def _started(taken: Taken) -> dict[str, Any]:
    return {"operation": taken.operation, "hosts": len(taken.hosts), "worker": taken.holder}


# While it goes on


def renew(
    session: Session, holder: str, seconds: float, ids: Collection[int], others: Collection[int] = ()
) -> dict[int, Standing]:
    """Keep the leases of jobs that are carried out, and tell how it is with each of them and of the others.

    A lease that is over is not kept. One of a row that somebody is just changing is left for the next time.
    """
    now = clock.now()
    still = (_jobs.c.id.in_(ids), _jobs.c.lease_holder == holder, _jobs.c.lease_until > now)
    mine = select(_jobs.c.id).where(*still).with_for_update(skip_locked=True).cte("mine")
    kept = (
        update(_jobs)
        .where(_jobs.c.id.in_(select(mine.c.id)))
        .values(lease_until=now + timedelta(seconds=seconds))
        .returning(_jobs.c.id)
        .cte("kept")
    )
    query = select(*_standing(holder, now), kept.c.id.is_not(None).label("renewed")).outerjoin_from(
        _jobs, kept, kept.c.id == _jobs.c.id
    )
    return _standings(session, query, [*ids, *others])


def look(reader: Reader, holder: str, ids: Collection[int]) -> dict[int, Standing]:
    """Tell how it is with jobs that are carried out."""
    return _standings(reader, select(*_standing(holder, clock.now()), false().label("renewed")), ids)


def _standing(holder: str, now: datetime) -> tuple[Any, ...]:
    held = func.coalesce((_jobs.c.lease_holder == holder) & (_jobs.c.lease_until > now), false())
    return _jobs.c.id, held.label("held"), _jobs.c.cancelled, _jobs.c.cancelled_by


def _standings(reader: Reader, query: Select[Any], ids: Collection[int]) -> dict[int, Standing]:
    # A job that is not there any more is nobody's.
    found = dict.fromkeys(ids, Standing(held=False))
    for row in reader.execute(query.where(_jobs.c.id.in_(ids))):
        found[row.id] = Standing(row.held, row.renewed, (row.cancelled_by or "somebody") if row.cancelled else None)
    return found


def write(session: Session, taken: Taken, pieces: Sequence[Piece], after: int | None = None) -> bool:
    """Write output, numbered on; tells whether the job is still the worker's, and writes nothing if it is not.

    With ``after``, the number of the last piece before these, it may be done again when nobody knows whether it was
    done: when a connection broke as it was about to tell.
    """
    number = len(pieces)
    last = session.execute(
        update(_jobs)
        .where(_jobs.c.id == taken.id, lease.held(RemoteJob, taken.holder, taken.lease_attempt))
        .values(last_seq=(_jobs.c.last_seq if after is None else after) + number)
        .returning(_jobs.c.last_seq)
    ).scalar()
    if last is None:
        return False
    now = clock.now()
    rows = [
        {"job_id": taken.id, "seq": seq, "host": piece.host, "at": now, "chunk": piece.chunk}
        for seq, piece in enumerate(pieces, last - number + 1)
    ]
    if rows:
        session.execute(postgresql.insert(_outputs).on_conflict_do_nothing(), rows)
    ended: dict[HostState, list[str]] = {}
    for piece in pieces:
        if piece.state is not None:
            ended.setdefault(piece.state, []).append(piece.host)
    for state, hosts in ended.items():
        set_hosts(session, taken.id, hosts, state)
    return True


def set_hosts(session: Session, job: int, hosts: Iterable[str], state: HostState) -> None:
    """Note how a job has ended on hosts on which it had not."""
    named = _job_hosts.c.host == any_(literal(list(hosts), postgresql.ARRAY(Text)))
    waiting = (_job_hosts.c.job_id == job, named, _job_hosts.c.state == HostState.WAITING)
    session.execute(update(_job_hosts).where(*waiting).values(state=state, finished=clock.now()))


def finish(
    session: Session,
    taken: Taken,
    pieces: Sequence[Piece] = (),
    *,
    state: JobState,
    error: str = "",
    hosts: Mapping[str, HostState] | None = None,
    after: int | None = None,
) -> bool:
    """End a job with the last of its output; tells whether it was still the worker's, and changes nothing if not.

    ``hosts``: how it ended on those of which no piece tells; what is left then has failed.
    """
    if not write(session, taken, pieces, after):
        return False
    by_state: dict[HostState, list[str]] = {}
    for host, how in (hosts or {}).items():
        by_state.setdefault(how, []).append(host)
    for how, names in by_state.items():
        set_hosts(session, taken.id, names, how)
    end(session, [taken.id], JobState.RUNNING, state, error)
    return True


# The end


def end(session: Session, ids: Sequence[int], old: JobState, state: JobState, error: str) -> None:
    """End jobs whose rows the caller has locked: what is secret is forgotten, and no host is held any more.

    Hosts on which it has not ended have failed. Those of queued jobs as well: nothing was done on them.
    """
    now = clock.now()
    ended = session.execute(
        update(_jobs)
        .where(_jobs.c.id.in_(ids), _jobs.c.state == old)
        .values(state=_moved(old, state), error=error, unmasked=null(), finished=now, **lease.FREE)
        .returning(_jobs.c.id, _jobs.c.jid, _jobs.c.operation, _jobs.c.started)
    ).all()
    waiting = _job_hosts.c.state == HostState.WAITING
    numbers: dict[int, Counter[str]] = {job.id: Counter() for job in ended}
    hosts = session.execute(
        update(_job_hosts)
        .where(_job_hosts.c.job_id.in_(numbers))
        .values(
            held=False,
            state=case((waiting, HostState.FAILED.value), else_=_job_hosts.c.state),
            finished=func.coalesce(_job_hosts.c.finished, now),
        )
        .returning(_job_hosts.c.job_id, _job_hosts.c.state)
    )
    for host in hosts:
        numbers[host.job_id][host.state] += 1
    happened = []
    for job in ended:
        seconds = round((now - job.started).total_seconds(), 3) if job.started else None
        data = {"operation": job.operation, "state": state, "hosts": dict(numbers[job.id]), "seconds": seconds}
        happened.append(("remote.job_ended", subject(job.jid), {**data, "error": error}))
        log.info("remote_job_ended", extra={"jid": job.jid, **data, "reason": error})
    if happened:
        record_all(session, happened)


def end_lost(session: Session) -> int:
    """End the jobs whose lease has run out; gives how many. Costs one statement while there is none."""
    lost = select(_jobs.c.id).where(*_lost(clock.now())).limit(BATCH).with_for_update(skip_locked=True)
    ids = session.execute(lost).scalars().all()
    if ids:
        end(session, ids, JobState.RUNNING, JobState.FAILED, LOST)
    return len(ids)


def give_up_queued(session: Session) -> int:
    """End the jobs that no worker has begun in time; gives how many."""
    late = (_jobs.c.state == JobState.QUEUED, _jobs.c.begin_by <= clock.now())
    query = select(_jobs.c.id, _jobs.c.created, _jobs.c.begin_by).where(*late).limit(BATCH)
    rows = session.execute(query.with_for_update(skip_locked=True)).all()
    by_patience: dict[float, list[int]] = {}
    for row in rows:
        by_patience.setdefault(round((row.begin_by - row.created).total_seconds(), 1), []).append(row.id)
    for seconds, ids in by_patience.items():
        end(session, ids, JobState.QUEUED, JobState.FAILED, f"no worker began it within {seconds:g} s")
    return len(rows)


def _lost(now: datetime) -> tuple[Any, ...]:
    return _jobs.c.state == JobState.RUNNING, _jobs.c.lease_until <= now


def _moved(old: JobState, new: JobState) -> JobState:
    if not LIFE.allows(old, new):
        raise Conflict(f"{old} cannot become {new}")
    return new


def purge(session: Session, before: datetime, batch: int) -> int:
    """Forget up to ``batch`` jobs that ended before a time, with their output; gives how many."""
    oldest = (
        select(_jobs.c.id)
        .where(_jobs.c.finished < before)
        .order_by(_jobs.c.finished)
        .limit(batch)
        .with_for_update(skip_locked=True)
        .cte("oldest")
    )
    return int(session.execute(delete(_jobs).where(_jobs.c.id.in_(select(oldest.c.id)))).rowcount)  # type: ignore[attr-defined]


# The inventory


def write_inventory(session: Session, hosts: Mapping[str, Set[str]] | None, error: str | None = None) -> bool:
    """Note which hosts there are, or why that could not be read; tells whether the hosts are others than before."""
    read = {"read": clock.now(), "error": error}
    stamp = postgresql.insert(_inventory).values(id=1, **read)
    # The row is locked from here on: two workers write one after the other.
    session.execute(stamp.on_conflict_do_update(index_elements=["id"], set_=read))
    if hosts is None:
        return False
    known = {row.name: row.groups for row in session.execute(select(_hosts))}
    wanted = {name: sorted(groups) for name, groups in hosts.items()}
    gone = [name for name in known if name not in wanted]
    other = [{"name": name, "groups": groups} for name, groups in wanted.items() if known.get(name) != groups]
    if gone:
        session.execute(delete(_hosts).where(_hosts.c.name == any_(bindparam("gone", gone, postgresql.ARRAY(Text)))))
    if other:
        new = postgresql.insert(_hosts)
        changed = new.on_conflict_do_update(index_elements=["name"], set_={"groups": new.excluded.groups})
        session.execute(changed, other)
    return bool(gone or other)

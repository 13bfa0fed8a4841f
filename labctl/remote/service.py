"""The verbs of jobs on hosts: asking for one, ending one before its time, and deleting it.

Who asks for operations that hold their hosts waits for others who just do so, and changes hosts' rows in the order of
their names.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ARRAY,
    Boolean,
    Integer,
    Text,
    any_,
    bindparam,
    column,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy import delete as delete_from
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Lock, table
from labctl.errors import Conflict, Invalid
from labctl.events.service import as_part, part_values, record
from labctl.queue import defer
from labctl.remote import queries, running
from labctl.remote.executor import mistakes
from labctl.remote.models import RemoteJob, RemoteJobHost
from labctl.remote.states import EXCLUSIVE, LIFE, JobState, Operation

#: How many hosts one job may have.
MOST_HOSTS = 10_000
#: What is shown of what is secret.
MASK = "***"
#: The task that has a worker look for jobs, by its name: tasks stand above this.
WAKE = "remote.wake"
#: How often hosts that were freed in between are tried again.
ATTEMPTS = 5
_HELD = "uq_remote_job_hosts_held"
_SECRET = re.compile(
    r"passwor[dt]|passwd|passphrase|(^|[_-])pass([_-]|$)|pwd|secret|token|key|credential|auth|private|cookie",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Wanted:
    """What is to be done on which hosts.

    ``targets`` are names and patterns (:mod:`labctl.remote.patterns`). ``arguments`` are those of
    :class:`labctl.remote.executor.Order`; of a task ``taskname``, ``tasktype`` and ``taskopts``.
    """

    operation: Operation
    targets: Sequence[str]
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)


# Built once: putting a statement together costs as much as sending it.
_jobs, _job_hosts = table(RemoteJob), table(RemoteJobHost)
_BE_ALONE = select(func.pg_advisory_xact_lock(int(Lock.REMOTE_HOSTS), 0))
_NEW = ("jid", "operation", "arguments", "unmasked", "asked_by", "address", "key", "created", "begin_by", "timeout")
_new = (
    upsert(_jobs)
    .values(
        **{name: bindparam(f"new_{name}", type_=_jobs.c[name].type) for name in _NEW},
        lease_attempt=literal_column("0"),
    )
    .on_conflict_do_nothing(index_elements=["key"])
    .returning(_jobs.c.id)
    .cte("new")
)
_given = (
    func.unnest(bindparam("hosts", type_=ARRAY(Text)), bindparam("positions", type_=ARRAY(Integer)))
    .table_valued(column("host", Text), column("position", Integer), name="given")
    .render_derived()
)
_new_hosts = (
    insert(_job_hosts)
    .from_select(
        ["job_id", "position", "host", "operation", "held"],
        select(
            _new.c.id,
            _given.c.position,
            _given.c.host,
            bindparam("new_operation", type_=Text),
            bindparam("held", type_=Boolean),
        )
        .select_from(_new.join(_given, literal_column("true")))
        # Two who want the same hosts meet at the first of them.
        .order_by(_given.c.host),
    )
    .cte("new_hosts")
)
_ADD = select(_new.c.id).add_cte(_new_hosts, as_part(exists(select(_new.c.id))))
_BY_KEY = select(_jobs.c.jid).where(_jobs.c.key == bindparam("key", type_=Text))
_BUSY = (
    select(_job_hosts.c.host, _jobs.c.jid, _jobs.c.asked_by)
    .join_from(_job_hosts, _jobs, _jobs.c.id == _job_hosts.c.job_id)
    .where(
        _job_hosts.c.held,
        _job_hosts.c.operation == bindparam("operation", type_=Text),
        _job_hosts.c.host == any_(bindparam("hosts", type_=ARRAY(Text))),
    )
    .order_by(_job_hosts.c.host)
)
_LOCKED = (
    select(*(_jobs.c[name] for name in ("id", "state", "cancelled", "lease_until")))
    .where(_jobs.c.jid == bindparam("jid", type_=Text))
    .with_for_update()
)


def submit(
    session: Session,
    wanted: Wanted,
    *,
    asked_by: str,
    address: str | None,
    timeout: float,
    key: str | None = None,
    begin_within: float = 600,
) -> str:
    """Have an operation carried out by a worker, and give the id of its job; twice with one ``key`` is once.

    Raises :class:`Invalid` for arguments that no executor takes, :class:`NotFound` for targets that are no hosts,
    :class:`Conflict` when the operation holds its hosts and another job has one of them, :class:`Unavailable` before
    the inventory was read.
    """
    if wanted.operation != Operation.TASK and (wrong := mistakes(wanted.operation, wanted.arguments)):
        raise Invalid("; ".join(wrong))
    if key is not None and (known := session.scalar(_BY_KEY, {"key": key})):
        return str(known)
    hosts = queries.matching(session, wanted.targets)
    if not 0 < len(hosts) <= MOST_HOSTS:
        raise Invalid(f"must be 1 to {MOST_HOSTS} hosts", field="targets")
    now, jid = clock.now(), str(uuid4())
    shown = masked(wanted.arguments)
    positions = {host: position for position, host in enumerate(hosts)}
    ordered = sorted(hosts)
    values = {
        "new_jid": jid,
        "new_operation": wanted.operation,
        "new_arguments": shown,
        "new_unmasked": dict(wanted.arguments),
        "new_asked_by": asked_by,
        "new_address": address,
        "new_key": key,
        "new_created": now,
        "new_begin_by": now + timedelta(seconds=begin_within),
        "new_timeout": timeout,
        "hosts": ordered,
        "positions": [positions[host] for host in ordered],
        "held": wanted.operation in EXCLUSIVE,
    }
    told = {"operation": wanted.operation, "hosts": len(hosts), "arguments": shown, "address": address}
    values |= part_values(session, "remote.job_added", running.subject(jid), **told)
    if not (_hold if values["held"] else _add)(session, values):
        # Somebody else has asked with this key at the same time.
        return str(session.scalar(_BY_KEY, {"key": key}))
    defer(session, WAKE)
    return jid


def _add(session: Session, values: Mapping[str, Any]) -> bool:
    return session.execute(_ADD, values).first() is not None


def _hold(session: Session, values: Mapping[str, Any]) -> bool:
    """Add a job that nobody else may have the hosts of, one at a time: all of its hosts or none."""
    session.execute(_BE_ALONE)
    for _ in range(ATTEMPTS):
        try:
            with session.begin_nested():
                return _add(session, values)
        except IntegrityError as error:
            if getattr(getattr(error.orig, "diag", None), "constraint_name", None) != _HELD:
                raise
        # What a worker held that is dead is free, although no other worker is there to say so.
        if running.end_lost(session):
            continue
        asked = {"operation": values["new_operation"], "hosts": values["hosts"]}
        if busy := session.execute(_BUSY, asked).all():
            told = [f"{row.host} is busy with {asked['operation']} {row.jid} of {row.asked_by}" for row in busy]
            raise Conflict(f"operate conflict: {queries.shortened(told, separator='; ')}")
    raise Conflict("operate conflict, try again later")


def masked(value: Any, secret: bool = False) -> Any:
    """Give arguments as they may be shown: without values of extra_vars, and of keys that name secrets."""
    if isinstance(value, Mapping):
        return {
            key: masked(item, secret or bool(_SECRET.search(key))) if key != "extra_vars" else _all_masked(item)
            for key, item in value.items()
        }
    if secret and value is not None:
        return MASK
    return [masked(item) for item in value] if isinstance(value, list | tuple) else value


def _all_masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict.fromkeys(value, MASK)
    return value if value is None else MASK


def cancel(session: Session, jid: str, by: str) -> None:
    """Have a job end before its time: a queued one ends now, a running one soon, one that has ended stays as it is.

    Raises :class:`NotFound`.
    """
    job = _settled(session, jid)
    if LIFE.final(job.state) or job.cancelled is not None:
        return
    session.execute(update(_jobs).where(_jobs.c.id == job.id).values(cancelled=clock.now(), cancelled_by=by))
    record(session, "remote.job_cancel_asked", running.subject(jid), by=by)
    if job.state == JobState.QUEUED:
        running.end(session, [job.id], JobState.QUEUED, JobState.CANCELLED, f"cancelled by {by}")
    else:
        defer(session, WAKE)


def delete(session: Session, jid: str) -> None:
    """Forget a job that has ended, with its output; raises :class:`NotFound`, :class:`Invalid` before its end."""
    job = _settled(session, jid)
    if not LIFE.final(job.state):
        raise Invalid(f"cannot delete a running job, jid {jid}")
    session.execute(delete_from(_jobs).where(_jobs.c.id == job.id))
    record(session, "remote.job_deleted", running.subject(jid))


def _settled(session: Session, jid: str) -> Any:
    """Lock a job; one that nobody carries out any more has ended."""
    job = _locked(session, jid)
    if job.state == JobState.RUNNING and job.lease_until <= clock.now() and running.end_lost(session):
        job = _locked(session, jid)
    return job


def _locked(session: Session, jid: str) -> Any:
    job = session.execute(_LOCKED, {"jid": jid}).first()
    if job is None:
        raise queries.no_such_job(jid)
    return job

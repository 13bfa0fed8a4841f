"""The verbs of runs and jobs: reporting, updating, removing, claiming.

Locks are taken in one order, job before run, so that reports of one run's jobs never deadlock; the run's row, which
all of them need, is locked by the last statement before the commit, to be held as briefly as can be.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy import ColumnElement, Integer, Text, bindparam, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import PREPARED, Lock, table
from labctl.errors import Conflict, Forbidden, NotFound
from labctl.events.service import as_part, part_values, record
from labctl.machines import service as machines
from labctl.runs import documents, names
from labctl.runs.models import Job, JobMachine, Run
from labctl.runs.states import FINAL, NOT_STARTED, JobState

_runs = table(Run)
_jobs = table(Job)

#: What a run takes over from whatever job says it last.
_CORRECTED = ("branch", "suite", "machine_type", "sha1", "flavor", "priority")
#: A run's corrections and times that come with a report of one of its jobs, and what they do to its row.
_RUN_CHANGES = {
    **{_runs.c[state.value]: _runs.c[state.value] + bindparam(f"add_{state}", type_=Integer) for state in JobState},
    **{
        _runs.c[column]: func.coalesce(bindparam(f"run_{column}", type_=_runs.c[column].type), _runs.c[column])
        for column in _CORRECTED
    },
    _runs.c.started: func.coalesce(_runs.c.started, bindparam("run_started", type_=_runs.c.started.type)),
    _runs.c.updated: func.coalesce(
        bindparam("run_updated", type_=_runs.c.updated.type),
        func.greatest(_runs.c.updated, bindparam("now", type_=_runs.c.updated.type)),
    ),
}
_JOB_COLUMNS = ("status", "queue", "priority", "user_name", "started", "updated", "document")

_FIND_RUN = (
    select(
        _runs.c.id,
        # Shared by all who add jobs to the run, against whoever removes it: see remove_run.
        func.pg_advisory_xact_lock_shared(int(Lock.RUN), func.hashtext(bindparam("lock", type_=Text))),
    )
    .where(_runs.c.name == bindparam("name"))
    .execution_options(**PREPARED)
)

_ADDED_COLUMNS = ("job_id", "posted", *_JOB_COLUMNS)
_added = (
    upsert(_jobs)
    .from_select(
        ["run_id", *_ADDED_COLUMNS],
        # Out of the run's row, so that nothing is added to a run that was removed just before.
        select(
            _runs.c.id, *(bindparam(f"job_{column}", type_=_jobs.c[column].type) for column in _ADDED_COLUMNS)
        ).where(_runs.c.id == bindparam("in_run")),
    )
    .on_conflict_do_nothing(index_elements=["run_id", "job_id"])
    .returning(_jobs.c.id)
    .cte("added")
)
_ADD_JOB = (
    update(_runs)
    .where(_runs.c.id == bindparam("in_run"), exists(select(_added.c.id)))
    .values(_RUN_CHANGES)
    .returning(select(_added.c.id).scalar_subquery())
    .add_cte(as_part(exists(select(_added.c.id))))
    .execution_options(**PREPARED)
)

_FIND_JOB = (
    select(
        *(_jobs.c[column] for column in ("id", "run_id", "status", "posted", "started", "updated", "document")),
        *(_jobs.c[column] for column in ("lease_holder", "lease_until", "lease_attempt")),
    )
    .join_from(_jobs, _runs)
    .where(_runs.c.name == bindparam("name"), _jobs.c.job_id == bindparam("job"))
    .with_for_update(of=_jobs, key_share=True)
    .execution_options(**PREPARED)
)
_UPDATE_JOB = (
    update(_runs)
    .where(_runs.c.id == bindparam("in_run"))
    .values(_RUN_CHANGES)
    .add_cte(
        update(_jobs)
        .where(_jobs.c.id == bindparam("this_job"))
        .values(
            {
                column: bindparam(f"job_{column}", type_=_jobs.c[column].type)
                for column in (*_JOB_COLUMNS, "lease_holder", "lease_until")
            }
        )
        .cte("updated_job"),
        as_part(),
    )
    .execution_options(**PREPARED)
)
_REMOVE_JOB = (
    update(_runs)
    .where(_runs.c.id == bindparam("in_run"))
    .values(
        {_runs.c[state.value]: _runs.c[state.value] - bindparam(f"add_{state}", type_=Integer) for state in JobState}
    )
    .add_cte(delete(_jobs).where(_jobs.c.id == bindparam("this_job")).cte("removed_job"), as_part())
)


@dataclass(frozen=True)
class Claim:
    """A dispatcher's hold on a job, as :func:`claim` of labctl.queues.service gave it."""

    worker: str
    attempt: int


@dataclass(frozen=True)
class Report:
    """What a client says about a job; ``changes`` are keys of the wire with their values, as they are to be kept."""

    changes: dict[str, Any]
    job_id: str | None = None
    #: When the client says the job was updated; None: now.
    updated: datetime | None = None
    #: The claim under which the client acts, if it says so; a report under a lost claim is refused.
    claim: Claim | None = None


def job_status(old: JobState | None, changes: dict[str, Any]) -> JobState:
    """Derive a job's status from its old one (None: it is new) and a report (paddles' rules).

    ``status`` counts unless the job has passed or failed; without it, ``success`` counts always: true passes, false
    fails, null is unknown. With neither, a job stays what it is, and a new one is unknown.
    """
    if changes.get("status") is not None:
        return old if old in FINAL else JobState(changes["status"])
    if "success" in changes:
        success = changes["success"]
        return JobState.UNKNOWN if success is None else JobState.PASS if success else JobState.FAIL
    return old or JobState.UNKNOWN


def add_run(session: Session, name: str) -> None:
    """Add a run without jobs; raises :class:`Conflict` if there is one of that name."""
    if _insert_run(session, name) is None:
        raise Conflict(f"run with name {name} already exists")


def _insert_run(session: Session, name: str) -> int | None:
    """Insert a run with what its name tells; gives its id, None if there is one already."""
    now = clock.now()
    told = names.parse(name)
    statement = upsert(_runs).values(
        name=name,
        path=quote(name, safe=":"),
        user_name=told.user,
        suite=told.suite,
        branch=told.branch,
        machine_type=told.machine_type,
        posted=now,
        scheduled=told.scheduled or now,
        updated=now,
    )
    added: int | None = session.scalar(statement.on_conflict_do_nothing(index_elements=["name"]).returning(_runs.c.id))
    if added is not None:
        record(session, "run.added", f"runs/{name}")
    return added


def remove_run(session: Session, name: str) -> None:
    """Remove a run and its jobs; raises :class:`NotFound`.

    First nobody may add a job, then all jobs are locked in the order of their ids, then the run: whoever updates a job
    at that moment holds the job and waits for the run, or waits for the job, and never both against each other.
    """
    session.execute(select(func.pg_advisory_xact_lock(int(Lock.RUN), func.hashtext(name))))
    jobs = select(_jobs.c.id).join_from(_jobs, _runs).where(_runs.c.name == name).order_by(_jobs.c.id)
    session.execute(jobs.with_for_update(of=_jobs))
    if session.scalar(delete(_runs).where(_runs.c.name == name).returning(_runs.c.id)) is None:
        raise NotFound("attempted to delete a non-existent run")
    record(session, "run.removed", f"runs/{name}")


def report_job(session: Session, run_name: str, report: Report, *, add_run: bool) -> str:
    """Add a job to a run and give its id, made here if the report has none.

    Raises :class:`Conflict` if the run has that job, :class:`NotFound` if there is no run and ``add_run`` is false.
    """
    run_id = _find_or_add_run(session, run_name, add_run)
    job_id = report.job_id or _new_job_id(session, run_id)
    now = clock.now()
    status = job_status(None, report.changes)
    started = now if status == JobState.RUNNING else None
    updated = report.updated or now
    changes = report.changes | {"job_id": job_id, "status": status}
    content = documents.EMPTY | changes
    document = documents.write(content, posted=now, started=started, updated=updated)
    # Before the run is locked: an update of another job, which holds the machines, may wait for the run.
    on = _machines_of(session, content)
    values = {
        "in_run": run_id,
        "job_job_id": job_id,
        "job_posted": now,
        **_run_values(report, changes, now, None, started),
        **_job_values(content, document, started, updated),
        **part_values(session, "job.added", f"runs/{run_name}/jobs/{job_id}", status=status),
    }
    while (added := session.execute(_ADD_JOB, values).scalar()) is None:
        # The run has that job, or the run that was found was removed before the lock on it was had.
        if (again := _find_or_add_run(session, run_name, add_run)) == values["in_run"]:
            raise Conflict(f"job with job_id {job_id} already exists")
        values["in_run"] = again
    _tie(session, added, now, on)
    return job_id


def _find_or_add_run(session: Session, name: str, add_run: bool) -> int:
    # Round again when another report adds the run between the two statements, and somebody removes it.
    while (found := session.execute(_FIND_RUN, {"name": name, "lock": name}).first()) is None:
        if not add_run:
            raise NotFound(f"run not found: {name}")
        if (added := _insert_run(session, name)) is not None:
            return added
    return int(found.id)


def _new_job_id(session: Session, run_id: int) -> str:
    # Clients choose numbers, too.
    while True:
        job_id = str(session.scalar(select(func.nextval("jobs_id_seq"))))
        if not session.scalar(select(exists().where(_jobs.c.run_id == run_id, _jobs.c.job_id == job_id))):
            return job_id


def update_job(session: Session, run_name: str, job_id: str, report: Report) -> None:
    """Change what a report says, and nothing else; raises :class:`NotFound`, or :class:`Forbidden` for a lost claim."""
    job = session.execute(_FIND_JOB, {"name": run_name, "job": job_id}).first()
    if job is None:
        raise NotFound("attempted to update a non-existent job")
    if report.claim and not (
        (job.lease_holder, job.lease_attempt) == (report.claim.worker, report.claim.attempt)
        and job.lease_until > clock.now()
    ):
        raise Forbidden("the claim on this job is lost")
    now = clock.now()
    old = JobState(job.status)
    status = job_status(old, report.changes)
    started = now if status == JobState.RUNNING and (old in NOT_STARTED or job.started is None) else job.started
    updated = report.updated or now
    changes = report.changes | {"job_id": job_id, "status": status}
    if old != JobState.QUEUED:
        changes.pop("priority", None)
    known = documents.read(job.document)
    content = known | changes
    document = documents.write(content, posted=job.posted, started=started, updated=updated)
    if content["targets"] != known["targets"]:
        _tie(session, job.id, job.posted, _machines_of(session, content))
    kept = status == JobState.WAITING
    was = {"was": old} if status != old else {}
    values = {
        "in_run": job.run_id,
        "this_job": job.id,
        "job_lease_holder": job.lease_holder if kept else None,
        "job_lease_until": job.lease_until if kept else None,
        **_run_values(report, changes, now, old, started),
        **_job_values(content, document, started, updated),
        **part_values(session, "job.updated", f"runs/{run_name}/jobs/{job_id}", status=status, **was),
    }
    session.execute(_UPDATE_JOB, values)


def remove_job(session: Session, run_name: str, job_id: str) -> None:
    """Remove a job; raises :class:`NotFound`."""
    job = session.execute(_FIND_JOB, {"name": run_name, "job": job_id}).first()
    if job is None:
        raise NotFound("attempted to delete a non-existent job")
    values = {
        "in_run": job.run_id,
        "this_job": job.id,
        **{f"add_{state}": int(state == job.status) for state in JobState},
        **part_values(session, "job.removed", f"runs/{run_name}/jobs/{job_id}", status=job.status),
    }
    session.execute(_REMOVE_JOB, values)


def bury_silent(session: Session, before: datetime) -> bool:
    """Mark one running job dead that was not updated since ``before``; tells whether there was one."""
    return move_one(session, JobState.DEAD, _jobs.c.status == JobState.RUNNING, _jobs.c.updated < before)


def move_one(session: Session, status: JobState, *conditions: ColumnElement[bool]) -> bool:
    """Give one job that fulfils the conditions a status; tells whether there was one that nobody else holds.

    One job in a transaction: several would lock their runs in any order.
    """
    query = (
        select(_runs.c.name, _jobs.c.job_id)
        .join_from(_jobs, _runs)
        .where(*conditions)
        .order_by(_jobs.c.id)
        .limit(1)
        .with_for_update(of=_jobs, skip_locked=True, key_share=True)
    )
    found = session.execute(query).first()
    if found is None:
        return False
    update_job(session, found.name, found.job_id, Report({"status": status}))
    return True


def _run_values(
    report: Report, changes: dict[str, Any], now: datetime, old: JobState | None, started: datetime | None
) -> dict[str, Any]:
    """Give the values of :data:`_RUN_CHANGES` for a job that was ``old`` and changes."""
    new = changes["status"]
    values: dict[str, Any] = {f"add_{state}": (state == new) - (state == old) for state in JobState}
    for column in _CORRECTED:
        values[f"run_{column}"] = changes.get(column)
    values["run_started"] = started if new == JobState.RUNNING else None
    values["run_updated"] = report.updated
    values["now"] = now
    return values


def _job_values(content: dict[str, Any], document: str, started: datetime | None, updated: datetime) -> dict[str, Any]:
    return {
        "job_status": content["status"],
        "job_queue": content["queue"],
        "job_priority": content["priority"],
        "job_user_name": content["user"],
        "job_started": started,
        "job_updated": updated,
        "job_document": document,
    }


def _machines_of(session: Session, content: dict[str, Any]) -> list[int]:
    """Give the machines among a job's targets, ``{"user@host": key}``, adding those that are not known."""
    hosts = sorted({target.rpartition("@")[2] for target in content["targets"] or ()})
    return machines.ensure(session, hosts, content["machine_type"]) if hosts else []


def _tie(session: Session, job: int, posted: datetime, on: list[int]) -> None:
    """Tie a job to machines."""
    if on:
        rows = [{"job": job, "machine_id": machine, "posted": posted} for machine in on]
        session.execute(upsert(JobMachine).values(rows).on_conflict_do_nothing())

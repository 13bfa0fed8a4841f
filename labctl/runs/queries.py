"""Reading runs and jobs: lists come as JSON text that is passed through, never as objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import orjson
from sqlalchemy import Column, Date, Select, Text, cast, func, literal, null, select, tuple_, union_all
from sqlalchemy.orm import Session

from labctl.machines.models import Machine
from labctl.runs import documents
from labctl.runs.documents import LogURL
from labctl.runs.models import Job, JobMachine, Run
from labctl.runs.states import JobState

_runs = Run.__table__
_jobs = Job.__table__
_day = cast(func.timezone("UTC", _runs.c.scheduled), Date)

#: The columns that runs are filtered by, by the word in the URL.
FILTERS: Mapping[str, Column[Any]] = {
    "branch": _runs.c.branch,
    "suite": _runs.c.suite,
    "status": _runs.c.status,
    "machine_type": _runs.c.machine_type,
    "user": _runs.c.user_name,
    "sha1": _runs.c.sha1,
    "flavor": _runs.c.flavor,
}


@dataclass(frozen=True)
class RunFilter:
    """Which runs: those with the given values (of ``sha1``: its beginning), scheduled from one day to another."""

    values: Mapping[str, str] = field(default_factory=dict)
    first_day: date | None = None
    last_day: date | None = None
    #: Only runs scheduled after the beginning of this day.
    since: date | None = None

    def apply(self, query: Select[Any]) -> Select[Any]:
        """Add the conditions to a query."""
        for name, value in self.values.items():
            column = FILTERS[name]
            query = query.where(column.startswith(value, autoescape=True) if name == "sha1" else column == value)
        if self.first_day is not None:
            query = query.where(_runs.c.scheduled >= _midnight(self.first_day))
        if self.last_day is not None and self.last_day < date.max:
            query = query.where(_runs.c.scheduled < _midnight(self.last_day + timedelta(days=1)))
        if self.since is not None:
            query = query.where(_runs.c.scheduled > _midnight(self.since))
        return query


@dataclass(frozen=True)
class Listed:
    """A part of a list: the documents as JSON text, and the time and id of the last, from where the list goes on."""

    documents: list[str]
    last: tuple[datetime, int] | None

    @classmethod
    def of(cls, rows: Sequence[Any]) -> "Listed":
        """Take rows of document, time, id."""
        return cls([row[0] for row in rows], (rows[-1][1], rows[-1][2]) if rows else None)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _page(
    query: Select[Any],
    by: Column[Any],
    count: int,
    offset: int,
    after: tuple[datetime, int] | None,
    newest: bool = True,
) -> Select[Any]:
    identity = by.table.c.id
    query = query.order_by(by.desc(), identity.desc()) if newest else query.order_by(by, identity)
    if after is not None:
        place, end = tuple_(by, identity), tuple_(literal(after[0]), literal(after[1]))
        query = query.where(place < end if newest else place > end)
    return query.limit(count).offset(offset or None)


def newest_runs(session: Session, count: int, offset: int, after: tuple[datetime, int] | None) -> Listed:
    """List runs, the last posted first."""
    query = select(_runs.c.document, _runs.c.posted, _runs.c.id)
    return Listed.of(session.execute(_page(query, _runs.c.posted, count, offset, after)).all())


def filtered_runs(
    session: Session, chosen: RunFilter, count: int, offset: int, after: tuple[datetime, int] | None
) -> Listed:
    """List the chosen runs, the last scheduled first."""
    query = chosen.apply(select(_runs.c.document, _runs.c.scheduled, _runs.c.id))
    return Listed.of(session.execute(_page(query, _runs.c.scheduled, count, offset, after)).all())


def queued_runs(session: Session, count: int, offset: int, after: tuple[datetime, int] | None) -> Listed:
    """List the runs that have queued jobs, the first scheduled first."""
    query = select(_runs.c.document, _runs.c.scheduled, _runs.c.id).where(_runs.c.queued > 0)
    return Listed.of(session.execute(_page(query, _runs.c.scheduled, count, offset, after, newest=False)).all())


def values_of(session: Session, name: str, chosen: RunFilter) -> list[str]:
    """List the values that the chosen runs have in a column of :data:`FILTERS`, or the days (``date``), sorted."""
    column: Any = _day if name == "date" else FILTERS[name]
    if chosen != RunFilter():
        query = chosen.apply(select(column.distinct())).where(column.is_not(None)).order_by(column)
    elif name == "date":
        query = _days()
    else:
        query = _distinct(FILTERS[name])
    return [str(value) for value in session.scalars(query)]


def _distinct(column: Column[Any]) -> Select[Any]:
    """Jump through the column's index from value to value; it costs as much as there are values, however many runs."""
    values = select(func.min(column).label("value")).cte("values", recursive=True)
    following = select(func.min(column)).where(column > values.c.value).scalar_subquery()
    values = values.union_all(select(following).where(values.c.value.is_not(None)))
    return select(values.c.value).where(values.c.value.is_not(None))


def _days() -> Select[Any]:
    """Jump through the index on ``scheduled`` from day to day."""
    days = select(func.min(_runs.c.scheduled).label("first")).cte("days", recursive=True)
    midnight = func.timezone("UTC", cast(func.timezone("UTC", days.c.first), Date) + 1)
    following = select(func.min(_runs.c.scheduled)).where(_runs.c.scheduled >= midnight).scalar_subquery()
    days = days.union_all(select(following).where(days.c.first.is_not(None)))
    return select(cast(func.timezone("UTC", days.c.first), Date)).where(days.c.first.is_not(None))


def run(session: Session, name: str) -> str | None:
    """Give a run's document, None if there is no such run."""
    document: str | None = session.scalar(select(_runs.c.document).where(_runs.c.name == name))
    return document


def run_with_jobs(session: Session, name: str, logs: LogURL) -> tuple[str, list[str]] | None:
    """Give a run's document and those of its jobs in the order they came, of one instant; None if there is no such run."""
    this = select(literal(0).label("id"), null().cast(Text).label("job_id"), _runs.c.document)
    jobs = select(_jobs.c.id, _jobs.c.job_id, _jobs.c.document).join_from(_jobs, _runs)
    both = union_all(this.where(_runs.c.name == name), jobs.where(_runs.c.name == name)).order_by("id")
    rows = session.execute(both).all()
    if not rows:
        return None
    return rows[0].document, [documents.complete(row.document, logs.of(name, row.job_id)) for row in rows[1:]]


def jobs_of_run(session: Session, name: str, logs: LogURL, *, status: str | None = None) -> list[str] | None:
    """Give the documents of a run's jobs, newest first; None if there is no such run."""
    rows = _rows_of_run(session, name, status, _jobs.c.document)
    return None if rows is None else [documents.complete(row.document, logs.of(name, row.job_id)) for row in rows]


#: What of a job can be had without opening its document.
COLUMNS: Mapping[str, Column[Any]] = {
    "job_id": _jobs.c.job_id,
    "status": _jobs.c.status,
    "queue": _jobs.c.queue,
    "priority": _jobs.c.priority,
    "user": _jobs.c.user_name,
    "posted": _jobs.c.posted,
    "started": _jobs.c.started,
    "updated": _jobs.c.updated,
}


def fields_of_jobs(
    session: Session, name: str, fields: list[str], logs: LogURL, *, status: str | None = None
) -> list[dict[str, Any]] | None:
    """Give some fields of a run's jobs, newest first; None if there is no such run."""
    if any(field not in COLUMNS for field in fields):
        whole = jobs_of_run(session, name, logs, status=status)
        return None if whole is None else documents.cut(whole, fields)
    rows = _rows_of_run(session, name, status, *(COLUMNS[field] for field in fields))
    if rows is None:
        return None
    return [dict(zip(fields, map(_to_wire, row[2:]), strict=True)) for row in rows]


def _to_wire(value: Any) -> Any:
    return documents.time_to_wire(value) if isinstance(value, datetime) else value


def _rows_of_run(session: Session, name: str, status: str | None, *columns: Column[Any]) -> list[Any] | None:
    """Select from a run's jobs; an outer join tells a run without jobs from no run, in one statement."""
    on = _jobs.c.run_id == _runs.c.id
    if status is not None:
        on = on & (_jobs.c.status == status)
    query = select(_jobs.c.id, _jobs.c.job_id, *columns).select_from(_runs.outerjoin(_jobs, on))
    rows = session.execute(query.where(_runs.c.name == name).order_by(_jobs.c.id.desc())).all()
    return [row for row in rows if row[0] is not None] if rows else None


def job(session: Session, run_name: str, job_id: str, logs: LogURL) -> str | None:
    """Give a job's document, None if there is no such job."""
    query = select(_jobs.c.document).join_from(_jobs, _runs).where(_runs.c.name == run_name, _jobs.c.job_id == job_id)
    document = session.scalar(query)
    return None if document is None else documents.complete(document, logs.of(run_name, job_id))


def statuses_of_jobs(session: Session, name: str) -> list[tuple[str, str]] | None:
    """List the ids of a run's jobs with their statuses, in the order they came; None if there is no such run."""
    rows = _rows_of_run(session, name, None, _jobs.c.status)
    return None if rows is None else [(row.job_id, row.status) for row in reversed(rows)]


def jobs_of_machine(
    session: Session,
    machine: int,
    logs: LogURL,
    *,
    run_name: str | None,
    status: str | None,
    count: int,
    offset: int,
    after: tuple[datetime, int] | None,
) -> Listed:
    """List the jobs that ran on a machine, newest first."""
    query = (
        select(_runs.c.name, _jobs.c.job_id, _jobs.c.document, _jobs.c.posted, _jobs.c.id)
        .join_from(JobMachine, _jobs, JobMachine.job == _jobs.c.id)
        .join(_runs, _runs.c.id == _jobs.c.run_id)
        .where(JobMachine.machine_id == machine)
        .order_by(JobMachine.job.desc())
        .limit(count)
        .offset(offset or None)
    )
    if run_name is not None:
        query = query.where(_runs.c.name == run_name)
    if status is not None:
        query = query.where(_jobs.c.status == status)
    if after is not None:
        query = query.where(JobMachine.job < after[1])
    rows = session.execute(query).all()
    return Listed.of([(documents.complete(row[2], logs.of(row[0], row[1])), row[3], row[4]) for row in rows])


def job_counts_by_machine(
    session: Session, since: datetime, machine_types: list[str] | None
) -> list[tuple[str, str, int]]:
    """Count the jobs posted since a time by machine and status; gives (machine's name, status, count)."""
    query = (
        select(Machine.name, _jobs.c.status, func.count())
        .join_from(JobMachine, _jobs, JobMachine.job == _jobs.c.id)
        .join(Machine, Machine.id == JobMachine.machine_id)
        .where(JobMachine.posted > since)
        .group_by(Machine.name, _jobs.c.status)
    )
    if machine_types is not None:
        query = query.where(Machine.machine_type.in_(machine_types))
    return [(row[0], row[1], row[2]) for row in session.execute(query)]


def job_counts_of_machine(session: Session, machine: int) -> dict[str, int]:
    """Count a machine's jobs by status; all statuses are there."""
    query = (
        select(_jobs.c.status, func.count())
        .join_from(JobMachine, _jobs, JobMachine.job == _jobs.c.id)
        .where(JobMachine.machine_id == machine)
        .group_by(_jobs.c.status)
    )
    return {**dict.fromkeys(map(str, JobState), 0), **{row[0]: row[1] for row in session.execute(query)}}


def as_list(texts: Iterable[str]) -> str:
    """Make one JSON list of JSON texts."""
    return f"[{','.join(texts)}]"


def at(text: str, base_url: str) -> str:
    """Put the URL under which the runs were asked for into documents of runs."""
    return text.replace("\x01", orjson.dumps(base_url).decode()[1:-1])

"""Reading runs and jobs: lists come as JSON text that is passed through, never as objects."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from typing import Any

import orjson
from sqlalchemy import (
    Column,
    Date,
    Select,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    union_all,
)

from labctl import paging, times
from labctl.db import PREPARED, Reader, table
from labctl.machines.models import Machine
from labctl.paging import Listed, Page
from labctl.runs import documents
from labctl.runs.documents import LogURL
from labctl.runs.models import Job, JobMachine, Run
from labctl.runs.states import JobState

_runs = table(Run)
_jobs = table(Job)
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

    def shape(self) -> tuple[Any, ...]:
        """Tell which conditions there are, whatever their values: what :func:`_chosen` makes a statement of."""
        ends = (self.first_day is not None, self.last_day is not None, self.since is not None)
        return tuple(sorted(self.values)), *ends

    def parameters(self) -> dict[str, Any]:
        """Give the values for the conditions."""
        parameters: dict[str, Any] = {f"chosen_{name}": value for name, value in self.values.items()}
        if "sha1" in self.values:
            parameters["chosen_sha1"] = re.sub(r"([\\%_])", r"\\\1", self.values["sha1"]) + "%"
        if self.first_day is not None:
            parameters["first"] = _midnight(self.first_day)
        if self.last_day is not None:
            parameters["end"] = _midnight(self.last_day) + timedelta(days=1) if self.last_day < date.max else _END
        if self.since is not None:
            parameters["since"] = _midnight(self.since)
        return parameters


#: After every run.
_END = datetime.max.replace(tzinfo=UTC)


def _chosen(query: Select[Any], names: tuple[str, ...], first_day: bool, last_day: bool, since: bool) -> Select[Any]:
    """Add the conditions of a filter's shape to a query."""
    for name in names:
        column, value = FILTERS[name], bindparam(f"chosen_{name}", type_=Text)
        query = query.where(column.like(value) if name == "sha1" else column == value)
    scheduled = _runs.c.scheduled
    if first_day:
        query = query.where(scheduled >= bindparam("first", type_=scheduled.type))
    if last_day:
        query = query.where(scheduled < bindparam("end", type_=scheduled.type))
    if since:
        query = query.where(scheduled > bindparam("since", type_=scheduled.type))
    return query


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


@cache
def _newest_runs(offset: bool, after: bool) -> Select[Any]:
    return paging.cut(select(_runs.c.document, _runs.c.posted, _runs.c.id), _runs.c.posted, offset, after)


def newest_runs(session: Reader, page: Page) -> Listed:
    """List runs, the last posted first."""
    return Listed.of(session.execute(_newest_runs(*page.kind()), page.parameters()).all())


def filtered_runs(session: Reader, chosen: RunFilter, page: Page) -> Listed:
    """List the chosen runs, the last scheduled first."""
    statement = _filtered_runs(chosen.shape(), *page.kind())
    return Listed.of(session.execute(statement, chosen.parameters() | page.parameters()).all())


@lru_cache(maxsize=256)
def _filtered_runs(shape: tuple[Any, ...], offset: bool, after: bool) -> Select[Any]:
    query = _chosen(select(_runs.c.document, _runs.c.scheduled, _runs.c.id), *shape)
    return paging.cut(query, _runs.c.scheduled, offset, after)


def queued_runs(session: Reader, page: Page) -> Listed:
    """List the runs that have queued jobs, the first scheduled first."""
    query = select(_runs.c.document, _runs.c.scheduled, _runs.c.id).where(_runs.c.queued > 0)
    return Listed.of(
        session.execute(paging.cut(query, _runs.c.scheduled, *page.kind(), newest=False), page.parameters()).all()
    )


def values_of(session: Reader, name: str, chosen: RunFilter) -> list[str]:
    """List the values that the chosen runs have in a column of :data:`FILTERS`, or the days (``date``), sorted."""
    column: Any = _day if name == "date" else FILTERS[name]
    if chosen != RunFilter():
        query = _chosen(select(column).distinct(), *chosen.shape()).where(column.is_not(None)).order_by(column)
    elif name == "date":
        query = _days()
    else:
        query = _distinct(FILTERS[name])
    return [str(value) for value in session.scalars(query, chosen.parameters())]


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


_of_run = _jobs.c.run_id == select(_runs.c.id).where(_runs.c.name == bindparam("name")).scalar_subquery()
_RUN_WITH_JOBS = (
    union_all(
        select(literal_column("0").label("id"), null().cast(Text).label("job_id"), _runs.c.document).where(
            _runs.c.name == bindparam("name")
        ),
        select(_jobs.c.id, _jobs.c.job_id, _jobs.c.document).where(_of_run),
    )
    .order_by("id")
    .execution_options(**PREPARED)
)
_JOB = select(_jobs.c.document).where(_of_run, _jobs.c.job_id == bindparam("job")).execution_options(**PREPARED)


def run_with_jobs(session: Reader, name: str, logs: LogURL) -> tuple[str, list[str]] | None:
    """Give a run's document and its jobs' in the order they came, of one instant; None if there is no such run."""
    rows = session.execute(_RUN_WITH_JOBS, {"name": name}).all()
    # A job is tied to its run, so without a run there are no rows at all.
    return (rows[0][2], logs.completed(name, (row[1:] for row in rows[1:]))) if rows else None


def jobs_of_run(session: Reader, name: str, logs: LogURL, *, status: str | None = None) -> list[str] | None:
    """Give the documents of a run's jobs, newest first; None if there is no such run."""
    rows = _rows_of_run(session, name, status, ("document",))
    return None if rows is None else logs.completed(name, ((row[1], row[0]) for row in rows))


#: What of a job can be had without opening its document: the keys of the wire, and the columns.
COLUMNS: Mapping[str, str] = {
    **{name: name for name in ("job_id", "status", "queue", "priority", "posted", "started", "updated")},
    "user": "user_name",
}


def fields_of_jobs(
    session: Reader, name: str, fields: list[str], logs: LogURL, *, status: str | None = None
) -> list[dict[str, Any]] | None:
    """Give some fields of a run's jobs, newest first; None if there is no such run."""
    if any(field not in COLUMNS for field in fields):
        whole = jobs_of_run(session, name, logs, status=status)
        return None if whole is None else documents.cut(whole, fields)
    # One of two statements, whatever is asked for: each that is sent is prepared on every connection.
    offered = _FEW if _FEW.keys() >= set(fields) else COLUMNS
    rows = _rows_of_run(session, name, status, tuple(offered.values()))
    if rows is None:
        return None
    places = [list(offered).index(field) for field in fields]
    return [{field: _to_wire(row[place]) for field, place in zip(fields, places, strict=True)} for row in rows]


#: The fields that clients ask for most.
_FEW = {"job_id": "job_id", "status": "status"}


def _to_wire(value: Any) -> Any:
    return times.to_wire(value) if isinstance(value, datetime) else value


def _rows_of_run(session: Reader, name: str, status: str | None, columns: tuple[str, ...]) -> list[Any] | None:
    """Select from a run's jobs, newest first; the rows end with job_id and id. None if there is no such run."""
    parameters = {"name": name} if status is None else {"name": name, "status": status}
    rows = session.execute(_select_from_run(columns, status is not None), parameters).all()
    if not rows:
        return None
    return [] if rows[0][-1] is None else list(rows)


@cache
def _select_from_run(columns: tuple[str, ...], by_status: bool) -> Select[Any]:
    """Select columns of a run's jobs; an outer join tells a run without jobs from no run, in one statement."""
    on = _jobs.c.run_id == _runs.c.id
    if by_status:
        on = on & (_jobs.c.status == bindparam("status"))
    query = select(*(_jobs.c[column] for column in columns), _jobs.c.job_id.label("job"), _jobs.c.id.label("row"))
    query = query.select_from(_runs.outerjoin(_jobs, on))
    query = query.where(_runs.c.name == bindparam("name")).order_by(_jobs.c.id.desc())
    return query.execution_options(**PREPARED)


def job(session: Reader, run_name: str, job_id: str, logs: LogURL) -> str | None:
    """Give a job's document, None if there is no such job."""
    document = session.scalar(_JOB, {"name": run_name, "job": job_id})
    return None if document is None else logs.complete(run_name, job_id, document)


def statuses_of_jobs(session: Reader, name: str) -> list[tuple[str, str]] | None:
    """List the ids of a run's jobs with their statuses, in the order they came; None if there is no such run."""
    rows = _rows_of_run(session, name, None, ("status",))
    return None if rows is None else [(row[1], row[0]) for row in reversed(rows)]


def jobs_of_machine(
    session: Reader,
    machine: int,
    logs: LogURL,
    *,
    run_name: str | None,
    status: str | None,
    page: Page,
) -> Listed:
    """List the jobs that ran on a machine, newest first."""
    query = (
        select(_runs.c.name, _jobs.c.job_id, _jobs.c.document, _jobs.c.posted, _jobs.c.id)
        .join_from(JobMachine, _jobs, JobMachine.job == _jobs.c.id)
        .join(_runs, _runs.c.id == _jobs.c.run_id)
        .where(JobMachine.machine_id == machine)
        .order_by(JobMachine.job.desc())
        .limit(page.count)
        .offset(page.offset or None)
    )
    if run_name is not None:
        query = query.where(_runs.c.name == run_name)
    if status is not None:
        query = query.where(_jobs.c.status == status)
    if page.after is not None:
        query = query.where(JobMachine.job < page.after[1])
    rows = session.execute(query).all()
    return Listed.of([(logs.complete(row[0], row[1], row[2]), row[3], row[4]) for row in rows])


def job_counts_by_machine(
    session: Reader, since: datetime, machine_types: list[str] | None
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


def job_counts_of_machine(session: Reader, machine: int) -> dict[str, int]:
    """Count a machine's jobs by status; all statuses are there."""
    query = (
        select(_jobs.c.status, func.count())
        .join_from(JobMachine, _jobs, JobMachine.job == _jobs.c.id)
        .where(JobMachine.machine_id == machine)
        .group_by(_jobs.c.status)
    )
    return {**dict.fromkeys(map(str, JobState), 0), **{row[0]: row[1] for row in session.execute(query)}}


def at(text: str, base_url: str) -> str:
    """Put the URL under which the runs were asked for into documents of runs."""
    return text.replace("\x01", orjson.dumps(base_url).decode()[1:-1])

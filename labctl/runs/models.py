"""The tables of runs, jobs and queues."""

from datetime import datetime

from sqlalchemy import (
    DDL,
    BigInteger,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base
from labctl.lease import Leased
from labctl.runs.states import RUN_STATUS, JobState, RunState

_TOTAL = "(" + " + ".join(f'"{state}"' for state in JobState) + ")"


def _status_case() -> str:
    """Write the table of a run's status as SQL."""

    def operand(word: str) -> str:
        return _TOTAL if word == "total" else word if word.isdigit() else f'"{word}"'

    cases = []
    for condition, status in RUN_STATUS:
        left, operator, right = condition.split()
        cases.append(f"WHEN {operand(left)} {operator} {operand(right)} THEN '{status}'")
    return f"CASE {' '.join(cases)} ELSE '{RunState.UNKNOWN}' END"


#: A run as the current clients see it, less its URL: chr(1), which JSON cannot contain, stands where that begins.
RUN_DOCUMENT = DDL(  # type: ignore[no-untyped-call]
    """
CREATE OR REPLACE FUNCTION labctl_run_document(
    name text, path text, user_name text, status text, queued int, pass int, running int, waiting int, fail int,
    dead int, unknown int, total int, posted timestamptz, scheduled timestamptz, started timestamptz,
    updated timestamptz, branch text, suite text, machine_type text, sha1 text, priority int, flavor text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE form CONSTANT text := 'YYYY-MM-DD HH24:MI:SS.US';
BEGIN
    RETURN '{"name":' || to_json(name) || ',"href":"' || chr(1) || '/' || path || '/","user":' || to_json(user_name)
        || ',"status":"' || status || '","results":{"queued":' || queued || ',"pass":' || pass
        || ',"running":' || running || ',"waiting":' || waiting || ',"fail":' || fail || ',"dead":' || dead
        || ',"unknown":' || unknown || ',"total":' || total
        || ',"sha1":' || CASE total WHEN 0 THEN '"none"' ELSE coalesce(to_json(sha1)::text, 'null') END
        || ',"flavor":' || CASE total WHEN 0 THEN '"none"' ELSE coalesce(to_json(flavor)::text, 'null') END
        || '},"jobs_count":' || total
        || ',"posted":"' || replace(to_char(posted AT TIME ZONE 'UTC', form), '.000000', '')
        || '","scheduled":"' || replace(to_char(scheduled AT TIME ZONE 'UTC', form), '.000000', '')
        || '","started":'
        || coalesce('"' || replace(to_char(started AT TIME ZONE 'UTC', form), '.000000', '') || '"', 'null')
        || ',"updated":'
        || coalesce('"' || replace(to_char(updated AT TIME ZONE 'UTC', form), '.000000', '') || '"', 'null')
        || ',"branch":' || to_json(branch) || ',"suite":' || to_json(suite)
        || ',"machine_type":' || to_json(machine_type) || ',"sha1":' || coalesce(to_json(sha1)::text, 'null')
        || ',"priority":' || coalesce(priority::text, 'null')
        || ',"flavor":' || coalesce(to_json(flavor)::text, 'null') || '}';
END $$
"""
)

_DOCUMENT_CALL = (
    f"labctl_run_document(name, path, user_name, {_status_case()}, queued, pass, running, waiting, fail, dead, "
    f"unknown, {_TOTAL}, posted, scheduled, started, updated, branch, suite, machine_type, sha1, priority, flavor)"
)


def _newest(column: str) -> Index:
    return Index(f"ix_runs_{column}", column, "scheduled", "id")


class Run(Base):
    """One test run: what its name says, what its jobs said, and how many of them are in which state."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_posted", "posted", "id"),
        Index("ix_runs_scheduled", "scheduled", "id"),
        *(_newest(column) for column in ("branch", "suite", "status", "machine_type", "user_name", "flavor")),
        # Commits are looked for by their first characters.
        Index("ix_runs_sha1", "sha1", postgresql_ops={"sha1": "text_pattern_ops"}),
        Index("ix_runs_queued", "scheduled", "id", postgresql_where=text("queued > 0")),
        # Room for new versions of a row on its own page: counts and times change with every job.
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(String(512), unique=True)
    #: The name, encoded for a URL.
    path: Mapped[str] = mapped_column(Text)
    user_name: Mapped[str] = mapped_column(Text, server_default="")
    suite: Mapped[str] = mapped_column(Text, server_default="")
    branch: Mapped[str] = mapped_column(Text, server_default="")
    machine_type: Mapped[str] = mapped_column(Text, server_default="")
    sha1: Mapped[str | None] = mapped_column(Text)
    flavor: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[int | None] = mapped_column(Integer)
    posted: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    scheduled: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    started: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    updated: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # How many jobs are in each state; kept by every change of a job, in the same statement.
    queued: Mapped[int] = mapped_column(server_default="0")
    waiting: Mapped[int] = mapped_column(server_default="0")
    running: Mapped[int] = mapped_column(server_default="0")
    pass_: Mapped[int] = mapped_column("pass", server_default="0")
    fail: Mapped[int] = mapped_column(server_default="0")
    dead: Mapped[int] = mapped_column(server_default="0")
    unknown: Mapped[int] = mapped_column(server_default="0")
    #: Follows from the counts; the database computes it, so that the two never disagree.
    status: Mapped[str] = mapped_column(Text, Computed(_status_case(), persisted=True))
    #: See :data:`RUN_DOCUMENT`.
    document: Mapped[str] = mapped_column(Text, Computed(_DOCUMENT_CALL, persisted=True))


event.listen(Run.__table__, "before_create", RUN_DOCUMENT)


class Job(Leased, Base):
    """One job of a run: what is searched for, and all that was reported as a JSON document.

    The lease is that of a dispatcher that has claimed the job from its queue.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("run_id", "job_id"),
        Index("ix_jobs_run_id_id", "run_id", "id"),
        Index("ix_jobs_queued", "queue", "priority", "id", postgresql_where=text("status = 'queued'")),
        # Few jobs run or wait at once; these find the ones that were forgotten.
        Index("ix_jobs_running", "id", postgresql_where=text("status = 'running'")),
        Index("ix_jobs_claimed", "id", postgresql_where=text("lease_holder IS NOT NULL")),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(String(128))
    status: Mapped[str] = mapped_column(Text)
    queue: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[int | None] = mapped_column(Integer)
    user_name: Mapped[str | None] = mapped_column(Text)
    posted: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    started: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    #: The job on the wire, less the URL of its log: see labctl.runs.documents.
    document: Mapped[str] = mapped_column(Text)


class JobMachine(Base):
    """A machine that a job ran on, or was given to run on."""

    __tablename__ = "job_machines"
    __table_args__ = (Index("ix_job_machines_machine_id_job", "machine_id", "job"), Index(None, "posted"))

    job: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    machine_id: Mapped[int] = mapped_column(ForeignKey("machines.id", ondelete="CASCADE"), primary_key=True)
    #: When the job was posted, for counts over the last days.
    posted: Mapped[datetime] = mapped_column(DateTime(timezone=True))

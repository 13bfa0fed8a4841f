"""The tables of jobs on hosts, of their output, and of the hosts there are."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, DateTime, Float, ForeignKey, Index, Integer, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base
from labctl.lease import Leased


def _time(**options: Any) -> Any:
    return mapped_column(DateTime(timezone=True), **options)


class RemoteHost(Base):
    """A host of the executor's inventory, as it was last read."""

    __tablename__ = "remote_hosts"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    groups: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))


class RemoteInventory(Base):
    """The one row that tells when the inventory was last read."""

    __tablename__ = "remote_inventory"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    #: When it was read last, whether or not that worked.
    read: Mapped[datetime] = _time()
    #: Why it could not be read; the hosts are those of the last time that it could.
    error: Mapped[str | None] = mapped_column(Text)


class RemoteJob(Leased, Base):
    """One operation on some hosts; the lease is that of the worker that has it carried out."""

    __tablename__ = "remote_jobs"
    __table_args__ = (
        Index("ix_remote_jobs_queued", "id", postgresql_where=text("state = 'queued'")),
        Index("ix_remote_jobs_running", "lease_until", postgresql_where=text("state = 'running'")),
        Index("ix_remote_jobs_finished", "finished", postgresql_where=text("finished IS NOT NULL")),
        # Lists of those in some state, of some operation.
        Index("ix_remote_jobs_state", "state", "id"),
        Index("ix_remote_jobs_operation", "operation", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    jid: Mapped[str] = mapped_column(Text, unique=True)
    operation: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="queued")
    #: Why it failed; empty: it has not.
    error: Mapped[str] = mapped_column(Text, server_default="")
    #: What it was asked to do, with what is secret masked.
    arguments: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: The same as it was given; forgotten when the job ends.
    unmasked: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: The user who asked, and from where.
    asked_by: Mapped[str] = mapped_column(Text)
    address: Mapped[str | None] = mapped_column(Text)
    #: Given by who asks within labctl, so that asking twice is asking once.
    key: Mapped[str | None] = mapped_column(Text, unique=True)
    created: Mapped[datetime] = _time()
    #: When it is given up if no worker has begun it.
    begin_by: Mapped[datetime] = _time()
    #: Seconds it may take once it has begun, and when these are over.
    timeout: Mapped[float] = mapped_column(Float)
    deadline: Mapped[datetime | None] = _time()
    started: Mapped[datetime | None] = _time()
    finished: Mapped[datetime | None] = _time()
    #: When somebody wanted it to end before its time, and who.
    cancelled: Mapped[datetime | None] = _time()
    cancelled_by: Mapped[str | None] = mapped_column(Text)
    #: The number of its last output.
    last_seq: Mapped[int] = mapped_column(server_default="0")


class RemoteJobHost(Base):
    """One host of a job."""

    __tablename__ = "remote_job_hosts"
    __table_args__ = (
        # What keeps a second deploy off a host: the rows of jobs that are exclusive, until they end.
        Index("uq_remote_job_hosts_held", "host", "operation", unique=True, postgresql_where=text("held")),
        # Lists of what was done on a host.
        Index("ix_remote_job_hosts_host", "host", "job_id"),
    )

    job_id: Mapped[int] = mapped_column(ForeignKey("remote_jobs.id", ondelete="CASCADE"), primary_key=True)
    #: Its place in the request.
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    host: Mapped[str] = mapped_column(Text)
    operation: Mapped[str] = mapped_column(Text)
    held: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    finished: Mapped[datetime | None] = _time()


class RemoteOutput(Base):
    """One piece of the output of a job; only the worker that holds its lease writes any, one number after the other."""

    __tablename__ = "remote_outputs"

    job_id: Mapped[int] = mapped_column(ForeignKey("remote_jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    host: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = _time()
    #: JSON that is ready to be sent: an object with ``status`` and what else the operation tells.
    chunk: Mapped[str] = mapped_column(Text)

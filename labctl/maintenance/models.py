"""The tables of sessions, of everything in them, and of who wants to be told."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, DateTime, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base
from labctl.lease import Leased


def _time(**options: Any) -> Any:
    return mapped_column(DateTime(timezone=True), **options)


def _session(**options: Any) -> Any:
    return mapped_column(ForeignKey("maintenance_sessions.id", ondelete="CASCADE"), **options)


class MaintenanceSession(Base):
    """One session. It is advanced in transactions that hold its row locked, so that no two processes do so at once."""

    __tablename__ = "maintenance_sessions"
    __table_args__ = (
        Index("ix_maintenance_sessions_due", "due", postgresql_where=text("due IS NOT NULL")),
        # The list of them.
        Index(None, "created", "id", postgresql_where=text("deleted IS NULL")),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    workflow: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    #: Since when it is in that state.
    entered: Mapped[datetime] = _time()
    #: The state in which it failed, to be continued from there.
    failed_in: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    maintenance_at: Mapped[datetime] = _time()
    #: The session's ``metadata``: free, but for the keys that its workflow reads.
    hints: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: The request's ``actions``: objects with ``plugin``, ``type`` and ``metadata``.
    actions: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    created: Mapped[datetime] = _time()
    created_by: Mapped[str] = mapped_column(Text)
    #: Where sessions were when it was posted (``http://HOST/v1/maintenance``): there projects ask and answer.
    base_url: Mapped[str] = mapped_column(Text, server_default="")
    finished: Mapped[datetime | None] = _time()
    paused: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    #: When somebody deleted it; it is forgotten once its hosts are back in service.
    deleted: Mapped[datetime | None] = _time()
    #: What it waits for, in words, and until when.
    waits_for: Mapped[str | None] = mapped_column(Text)
    waits_until: Mapped[datetime | None] = _time()
    #: When the engine should look at it next; None: there is nothing to do.
    due: Mapped[datetime | None] = _time()


class MaintenanceHost(Base):
    """One host of a session."""

    __tablename__ = "maintenance_hosts"
    __table_args__ = (
        # No host is in two sessions that have not ended with it.
        Index("uq_maintenance_hosts_held", "host", unique=True, postgresql_where=text("held")),
    )

    session_id: Mapped[str] = _session(primary_key=True)
    host: Mapped[str] = mapped_column(Text, primary_key=True)
    #: Its place in the order.
    position: Mapped[int]
    held: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    #: What it is: any of machine, hypervisor, inventory.
    kinds: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'"))
    #: Whether it was taken out of service by this session: to be given back, in whatever way this ends.
    cordoned: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    reason: Mapped[str | None] = mapped_column(Text)
    #: How often its actions were begun; each time they are other rows.
    attempt: Mapped[int] = mapped_column(server_default="1")
    started: Mapped[datetime | None] = _time()
    finished: Mapped[datetime | None] = _time()


class MaintenanceAction(Base):
    """One action for one host; an empty host: once for the session."""

    __tablename__ = "maintenance_actions"

    session_id: Mapped[str] = _session(primary_key=True)
    #: Which of the session's actions, counted from 0; -1: the check that every host gets if there is no other.
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    host: Mapped[str] = mapped_column(Text, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    plugin: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    reason: Mapped[str | None] = mapped_column(Text)
    #: The jobs of remote it has had carried out: objects with ``step`` and ``jid``, in order.
    jobs: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    #: It is asked for its next step no earlier.
    due: Mapped[datetime | None] = _time()
    started: Mapped[datetime | None] = _time()
    deadline: Mapped[datetime | None] = _time()
    finished: Mapped[datetime | None] = _time()


class MaintenanceDownload(Leased, Base):
    """One file that the session's actions need; the lease is that of the worker that fetches it."""

    __tablename__ = "maintenance_downloads"

    session_id: Mapped[str] = _session(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    url: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    reason: Mapped[str | None] = mapped_column(Text)
    path: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(BigInteger)
    #: How often it has failed for what may pass, and when it is tried again.
    failures: Mapped[int] = mapped_column(server_default="0")
    due: Mapped[datetime | None] = _time()
    finished: Mapped[datetime | None] = _time()


class MaintenanceReply(Base):
    """What a project was asked in a session, and what it answered."""

    __tablename__ = "maintenance_replies"

    session_id: Mapped[str] = _session(primary_key=True)
    project: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The state it is about (MAINTENANCE, SCALE_IN ...), and the host, where it is about one; else empty.
    state: Mapped[str] = mapped_column(Text, primary_key=True)
    host: Mapped[str] = mapped_column(Text, primary_key=True, server_default="")
    #: How often it was asked this.
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, server_default="1")
    #: When it was asked; None: it has answered before.
    asked: Mapped[datetime | None] = _time()
    reply_by: Mapped[datetime | None] = _time()
    instances: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'"))
    allowed_actions: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'"))
    #: As it was sent: ACK_..., NACK_..., or anything else.
    answer: Mapped[str | None] = mapped_column(Text)
    instance_actions: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    answered: Mapped[datetime | None] = _time()
    answered_by: Mapped[str | None] = mapped_column(Text)


class MaintenanceMove(Base):
    """A VM that is moved away from a host for its owner."""

    __tablename__ = "maintenance_moves"
    __table_args__ = (Index(None, "work_id"),)

    session_id: Mapped[str] = _session(primary_key=True)
    instance: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The host it is moved away from.
    host: Mapped[str] = mapped_column(Text, primary_key=True)
    project: Mapped[str] = mapped_column(Text)
    how: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    #: The work of the provider, if it moves the VM itself.
    work_id: Mapped[int | None] = mapped_column(ForeignKey("vm_work.id", ondelete="SET NULL"))
    #: The hypervisor it is on now; else the VM that its owner has got instead.
    moved_to: Mapped[str | None] = mapped_column(Text)
    replacement: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    begun: Mapped[datetime] = _time()
    finished: Mapped[datetime | None] = _time()


class MaintenanceStep(Base):
    """Something that happened in a session, for people."""

    __tablename__ = "maintenance_steps"
    __table_args__ = (Index("ix_maintenance_steps_session_id", "session_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    session_id: Mapped[str] = _session()
    at: Mapped[datetime] = _time()
    state: Mapped[str] = mapped_column(Text)
    host: Mapped[str | None] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)


class MaintenanceSubscription(Base):
    """Where a project wants to be told."""

    __tablename__ = "maintenance_subscriptions"

    project: Mapped[str] = mapped_column(Text, primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    #: What notices are signed with; it must be known to sign, so it is stored as it is, and never shown.
    secret: Mapped[str] = mapped_column(Text)
    changed: Mapped[datetime] = _time()
    changed_by: Mapped[str] = mapped_column(Text)


class MaintenanceNotice(Leased, Base):
    """Something to be told to a project; the lease is that of the worker that sends it."""

    __tablename__ = "maintenance_notices"
    __table_args__ = (
        Index("ix_maintenance_notices_due", "due", postgresql_where=text("due IS NOT NULL")),
        # They go with their session.
        Index(None, "session_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    session_id: Mapped[str] = _session()
    project: Mapped[str] = mapped_column(Text)
    body: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created: Mapped[datetime] = _time()
    #: When it is sent next; None: it was delivered, or given up, or nobody wants it.
    due: Mapped[datetime | None] = _time()
    attempts: Mapped[int] = mapped_column(server_default="0")
    #: It is given up then.
    until: Mapped[datetime] = _time()
    delivered: Mapped[datetime | None] = _time()
    error: Mapped[str | None] = mapped_column(Text)

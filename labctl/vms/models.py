"""The tables of VMs, of work on them, of pools and providers, and of what happened on which day."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, Date, DateTime, Float, ForeignKey, Index, Integer, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base
from labctl.lease import Leased


def _time(**options: Any) -> Any:
    return mapped_column(DateTime(timezone=True), **options)


class VM(Leased, Base):
    """One VM; the lease is that of an engine that asks the provider something about it."""

    __tablename__ = "vms"
    __table_args__ = (
        # What a checkout takes from, the oldest first.
        Index("ix_vms_ready", "pool", "ready", "id", postgresql_where=text("state = 'ready'")),
        # What the engine looks at, by when it is due.
        Index("ix_vms_due", "due", "id", postgresql_where=text("state <> 'destroyed'")),
        # Counts by pool and state, for /status.
        Index("ix_vms_pool_state", "pool", "state", postgresql_where=text("state <> 'destroyed'")),
        Index("ix_vms_expires", "expires", postgresql_where=text("state = 'running'")),
        Index("ix_vms_destroyed", "destroyed", postgresql_where=text("state = 'destroyed'")),
        Index("ix_vms_token_id", "token_id", postgresql_where=text("state = 'running'")),
        Index("ix_vms_request_id", "request_id"),
        Index("ix_vms_host", "host", postgresql_where=text("state <> 'destroyed'")),
        # Counting by pool and state is done in the index alone as far as the table was vacuumed since it changed.
        {"postgresql_with": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    #: Its short host name, which its provider knows it by.
    name: Mapped[str] = mapped_column(Text, unique=True)
    pool: Mapped[str] = mapped_column(Text)
    template: Mapped[str] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    domain: Mapped[str] = mapped_column(Text, server_default="")
    #: The hypervisor it is on, once the provider has said so.
    host: Mapped[str | None] = mapped_column(Text)
    ip: Mapped[str | None] = mapped_column(Text)
    requested: Mapped[datetime] = _time()
    #: When the provider had made it, and how long that took, in seconds.
    cloned: Mapped[datetime | None] = _time()
    clone_seconds: Mapped[float | None] = mapped_column(Float)
    #: When it was found ready, and how long after it was requested, in seconds.
    ready: Mapped[datetime | None] = _time()
    boot_seconds: Mapped[float | None] = mapped_column(Float)
    checkout: Mapped[datetime | None] = _time()
    #: Hours from the checkout; None: not checked out yet.
    lifetime: Mapped[int | None] = mapped_column(Integer)
    #: The end of its lifetime.
    expires: Mapped[datetime | None] = _time()
    #: When its user was warned (by an event) that this is near.
    warned: Mapped[datetime | None] = _time()
    completed: Mapped[datetime | None] = _time()
    destroyed: Mapped[datetime | None] = _time()
    #: Why it was completed, or why it does not become ready.
    reason: Mapped[str | None] = mapped_column(Text)
    #: Whose it is: a user's name; None: taken without a credential.
    owner: Mapped[str | None] = mapped_column(Text)
    #: The token it was taken with.
    token_id: Mapped[int | None] = mapped_column(ForeignKey("tokens.id", ondelete="SET NULL"))
    #: From which address it was taken.
    address: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Sizes in GB of the disks that were added.
    disks: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'"))
    #: Snapshots that are finished.
    snapshots: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    #: The on-demand request it is made for.
    request_id: Mapped[str | None] = mapped_column(ForeignKey("vm_requests.id", ondelete="SET NULL"))
    #: When the engine should look at it next.
    due: Mapped[datetime] = _time()
    #: How often the present step has failed.
    failures: Mapped[int] = mapped_column(server_default="0")
    #: How often its provider's list was without it, one time after the other.
    missing: Mapped[int] = mapped_column(server_default="0")


class VMWork(Leased, Base):
    """Something to be done to a running VM by its provider."""

    __tablename__ = "vm_work"
    __table_args__ = (
        Index("ix_vm_work_due", "due", "id", postgresql_where=text("state = 'waiting'")),
        Index("ix_vm_work_vm_id", "vm_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(Text)
    argument: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    reason: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime] = _time()
    finished: Mapped[datetime | None] = _time()
    due: Mapped[datetime] = _time()
    failures: Mapped[int] = mapped_column(server_default="0")
    #: Hypervisors on which a VM that is migrated should not be if there is room on others.
    rather_not: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))


class VMRequest(Base):
    """VMs that somebody wants to be made."""

    __tablename__ = "vm_requests"
    __table_args__ = (Index("ix_vm_requests_waiting", "deadline", postgresql_where=text("state = 'waiting'")),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    #: How many of what: by the name that was asked for, a list of objects with ``pool`` and ``count``.
    wanted: Mapped[dict[str, Any]] = mapped_column(JSONB)
    message: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(Text)
    token_id: Mapped[int | None] = mapped_column(ForeignKey("tokens.id", ondelete="SET NULL"))
    address: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime] = _time()
    deadline: Mapped[datetime] = _time()
    finished: Mapped[datetime | None] = _time()


class PoolState(Base):
    """What was changed of a pool's configuration at run time, and how its template does."""

    __tablename__ = "pool_states"

    pool: Mapped[str] = mapped_column(Text, primary_key=True)
    # Instead of what the configuration says; None: as it says.
    size: Mapped[int | None]
    template: Mapped[str | None] = mapped_column(Text)
    clone_target: Mapped[int | None]
    #: How many VMs in a row could not be made or did not become ready.
    failures: Mapped[int] = mapped_column(server_default="0")
    #: No VM is made before.
    blocked_until: Mapped[datetime | None] = _time()
    #: What went wrong last.
    reason: Mapped[str | None] = mapped_column(Text)
    last_boot: Mapped[datetime | None] = _time()


class ProviderState(Base):
    """How a provider does."""

    __tablename__ = "provider_states"

    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    #: How many calls in a row have failed, whatever they were about.
    failures: Mapped[int] = mapped_column(server_default="0")
    #: It is asked nothing before, but for one try now and then.
    open_until: Mapped[datetime | None] = _time()
    reason: Mapped[str | None] = mapped_column(Text)
    #: When what it has was last compared with what there should be.
    listed: Mapped[datetime | None] = _time()


class Cordon(Base):
    """A hypervisor on which no VM is made or given out any more."""

    __tablename__ = "vm_cordons"

    host: Mapped[str] = mapped_column(Text, primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = _time()
    #: VMs that were being made then, and migrations that went on: they may still end up here.
    making: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    migrating: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))


class Orphan(Leased, Base):
    """A VM of ours that a provider lists and labctl does not know."""

    __tablename__ = "vm_orphans"

    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    first_seen: Mapped[datetime] = _time()
    #: How often it was listed, one time after the other.
    sightings: Mapped[int] = mapped_column(server_default="1")


class PoolDay(Base):
    """What happened in a pool on one day, in UTC."""

    __tablename__ = "pool_days"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    pool: Mapped[str] = mapped_column(Text, primary_key=True)
    clones: Mapped[int] = mapped_column(server_default="0")
    clone_total: Mapped[float] = mapped_column(Float, server_default="0")
    clone_min: Mapped[float | None] = mapped_column(Float)
    clone_max: Mapped[float | None] = mapped_column(Float)
    boots: Mapped[int] = mapped_column(server_default="0")
    boot_total: Mapped[float] = mapped_column(Float, server_default="0")
    boot_min: Mapped[float | None] = mapped_column(Float)
    boot_max: Mapped[float | None] = mapped_column(Float)
    #: VMs that could not be made, or did not become ready.
    failures: Mapped[int] = mapped_column(server_default="0")
    #: VMs that were given out; counted when they are destroyed, so that a checkout need not.
    checkouts: Mapped[int] = mapped_column(server_default="0")


class TagDay(Base):
    """How often a tag was set to a value on one day, in UTC."""

    __tablename__ = "tag_days"
    __table_args__ = (UniqueConstraint("day", "tag", "value"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    day: Mapped[date] = mapped_column(Date)
    tag: Mapped[str] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)
    count: Mapped[int] = mapped_column(server_default="0")

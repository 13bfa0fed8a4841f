"""Reading VMs, and what their pools and providers do and did."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import ARRAY, Text, any_, bindparam, func, literal_column, or_, select

from labctl import clock
from labctl.db import PREPARED, Reader, table
from labctl.errors import NotFound
from labctl.vms.models import VM, PoolDay, PoolState, ProviderState, TagDay, VMWork
from labctl.vms.service import Host, is_host
from labctl.vms.states import MIGRATIONS, VMState, WorkState

# Built once: putting a statement together costs as much as sending it.
_vms = table(VM)
_work = table(VMWork)
_pool_states = table(PoolState)
_pool_days = table(PoolDay)
_provider_states = table(ProviderState)
_tag_days = table(TagDay)

#: What went wrong of what its user wanted done to a VM; nobody else would tell them.
_failed = (
    select(
        func.array_agg(
            _work.c.kind + " " + _work.c.argument + ": " + func.coalesce(_work.c.reason, "it failed"), type_=ARRAY(Text)
        )
    )
    .where(_work.c.vm_id == _vms.c.id, _work.c.state == WorkState.FAILED, _work.c.kind.not_in(MIGRATIONS))
    .correlate(_vms)
    .scalar_subquery()
)
_ONE = (
    select(
        *(_vms.c[name] for name in ("name", "pool", "state", "domain", "host", "ip", "checkout", "lifetime")),
        *(_vms.c[name] for name in ("expires", "destroyed", "reason", "tags", "disks", "snapshots")),
        _failed.label("failed"),
    )
    .where(is_host())
    .execution_options(**PREPARED)
)
# As it stands in the indexes of those that are there.
_there = _vms.c.state != literal_column(f"'{VMState.DESTROYED}'")
_COUNTS = (
    select(_vms.c.pool, _vms.c.state, func.count().label("number")).where(_there).group_by(_vms.c.pool, _vms.c.state)
)
_COUNTS_OF = _COUNTS.where(_vms.c.pool == any_(bindparam("pools", type_=ARRAY(Text))))
_running = _vms.c.state == literal_column(f"'{VMState.RUNNING}'")
_COUNT_RUNNING = select(func.count()).select_from(_vms).where(_running)
_RUNNING_OF_TOKEN = (
    select(_vms.c.name).where(_vms.c.token_id == bindparam("token_id"), _running).order_by(_vms.c.checkout, _vms.c.id)
)
_today = select(_pool_days).where(_pool_days.c.day == bindparam("today")).subquery("today")
_PRESENT = select(
    func.coalesce(_pool_states.c.pool, _today.c.pool).label("pool"),
    *(_pool_states.c[name] for name in ("size", "template", "clone_target", "blocked_until", "reason", "last_boot")),
    *(column for column in _today.c if column.name not in ("day", "pool")),
).select_from(_pool_states.outerjoin(_today, _pool_states.c.pool == _today.c.pool, full=True))
# Even when its time is over: then it is tried, and is well again only if that works. A reason without a failure is that
# of a part of it.
_OPEN = (
    select(_provider_states.c.provider, _provider_states.c.reason)
    .where(
        or_(
            _provider_states.c.open_until.is_not(None),
            (_provider_states.c.failures == 0) & _provider_states.c.reason.is_not(None),
        )
    )
    .order_by(_provider_states.c.provider)
)
_DAYS = (
    select(_pool_days)
    .where(_pool_days.c.day.between(bindparam("first"), bindparam("last")))
    .order_by(_pool_days.c.day, _pool_days.c.pool)
)
_TAGS = (
    select(_tag_days.c.day, _tag_days.c.tag, _tag_days.c.value, _tag_days.c.count.label("number"))
    .where(_tag_days.c.day.between(bindparam("first"), bindparam("last")))
    .order_by(_tag_days.c.day, _tag_days.c.tag, _tag_days.c.value)
)


def vm(session: Reader, host: Host) -> Any:
    """Give a VM, in whatever state it is; raises :class:`NotFound`."""
    found = session.execute(_ONE, {"name": host.name, "domain": host.domain}).first()
    if found is None:
        raise NotFound(f"there is no VM {host.name}")
    return found


#: How many VMs there are, by pool and state; those that are gone do not count.
Counts = dict[tuple[str, str], int]


def counts(session: Reader, pools: Sequence[str] | None = None) -> Counts:
    """Count the VMs of all pools, or of some, in one pass over an index."""
    rows = session.execute(_COUNTS) if pools is None else session.execute(_COUNTS_OF, {"pools": list(pools)})
    return {(pool, state): number for pool, state, number in rows}


def running(session: Reader) -> int:
    """Count the VMs that somebody has."""
    number: int = session.execute(_COUNT_RUNNING).scalar_one()
    return number


def running_of_token(session: Reader, token_id: int) -> list[str]:
    """Name the running VMs that were taken with a token, in the order in which they were."""
    return [row.name for row in session.execute(_RUNNING_OF_TOKEN, {"token_id": token_id})]


def present(session: Reader) -> dict[str, Any]:
    """Give by pool what was changed of its configuration, how its template does, and what happened today."""
    return {row.pool: row for row in session.execute(_PRESENT, {"today": clock.now().date()})}


def open_providers(session: Reader) -> dict[str, str]:
    """Say what is wrong with each provider that is left alone for a while, or a part of which does not answer."""
    return {row.provider: row.reason or "it failed several times" for row in session.execute(_OPEN)}


def days(session: Reader, first: date, last: date) -> Sequence[Any]:
    """List what happened in pools on the days from ``first`` to ``last``."""
    return session.execute(_DAYS, {"first": first, "last": last}).all()


def tags(session: Reader, first: date, last: date) -> Sequence[Any]:
    """List how often tags were set to which value on the days from ``first`` to ``last``."""
    return session.execute(_TAGS, {"first": first, "last": last}).all()

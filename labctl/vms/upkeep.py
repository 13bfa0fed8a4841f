"""What the engine does to VMs, in short transactions: claiming what is due, and writing down what came of it.

A claim is a lease (:mod:`labctl.lease`). What came of a call is written only while the claim still holds and the VM is
still in the state it was claimed in, so that an engine that comes back too late, or finds that a user was faster,
changes nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, String, and_, bindparam, exists, func, literal, or_, select, union_all, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from labctl import clock, lease
from labctl.db import Lock, Reader, table
from labctl.errors import Conflict
from labctl.events.service import record
from labctl.vms.catalog import Catalog
from labctl.vms.models import VM, Cordon, Orphan, PoolState, VMRequest, VMWork
from labctl.vms.names import new_name
from labctl.vms.provider import Found, Misconfigured, NoCapacity
from labctl.vms.service import due_of
from labctl.vms.standing import LONGEST_REASON, backoff, count, count_time, pool_failed, pool_succeeded
from labctl.vms.states import LIFE, RequestState, VMState, WorkState

log = logging.getLogger(__name__)

#: How often a VM may fail to be made before it is given up, and how long after a failure it is tried again.
ATTEMPTS = 3
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
#: Seconds after which it is tried again where there was no room.
NO_CAPACITY_PAUSE = 5.0
#: A VM that boots is looked at after this part of its age, and not more often or seldom than this, in seconds.
LOOK_PART, LOOK_LEAST, LOOK_MOST = 0.1, 0.3, 5.0
#: A ready VM may be found unwell once, and is looked at again after so many seconds.
SECOND_LOOK = 10.0
#: Destroying is tried for ever, at the least as often as this, in seconds.
DESTROY_MOST = 300.0

# Built once: putting a statement together costs as much as sending it.
_vms = table(VM)
_work = table(VMWork)
_orphans = table(Orphan)
_requests = table(VMRequest)
_now = bindparam("now", type_=_vms.c.due.type)


def free(leased: Any) -> Any:
    """Give the condition that nobody works on a row."""
    return or_(leased.c.lease_until.is_(None), leased.c.lease_until <= _now)


@dataclass(frozen=True)
class Rules:
    """What the settings say that matters here; the times are those of the settings."""

    catalog: Catalog
    #: How many VMs of a provider may be in the making.
    limits: Mapping[str, int]
    prefix: str = ""
    timeout: float = 15
    check_interval: float = 15
    warning: float = 1
    lifetime: int = 12
    lifetime_auth: int = 0

    def timeout_of(self, pool: str) -> timedelta:
        """Say how long a VM may take from being made to being ready."""
        found = self.catalog.pools.get(pool)
        return timedelta(minutes=self.timeout if found is None or found.timeout is None else found.timeout)

    def time_to_live(self, pool: str) -> timedelta | None:
        """Say how long a VM may be ready."""
        found = self.catalog.pools.get(pool)
        return timedelta(minutes=found.ready_ttl) if found is not None and found.ready_ttl else None

    def lifetime_of(self, owner: str | None) -> int:
        """Say for how many hours a VM is given out."""
        return self.lifetime_auth if owner is not None and self.lifetime_auth else self.lifetime


OUT_OF_SERVICE = "its hypervisor is out of service"
_IS_CORDONED = select(exists().where(Cordon.host == bindparam("host", type_=String)))
_NO_CORDON_MEANWHILE = select(func.pg_advisory_xact_lock_shared(int(Lock.CORDON), 0))

# Claiming

#: What :func:`due` counts beside VMs in a state.
WORK, ORPHAN, REQUEST = "work", "orphan", "request"
_DUE = union_all(
    select(_vms.c.provider, _vms.c.state.label("what"), func.count().label("number"))
    .where(_vms.c.state != VMState.DESTROYED, _vms.c.due <= _now, free(_vms))
    .group_by(_vms.c.provider, _vms.c.state),
    select(_vms.c.provider, literal(WORK), func.count())
    .join_from(_work, _vms, _work.c.vm_id == _vms.c.id)
    .where(_work.c.state == WorkState.WAITING, _work.c.due <= _now, free(_work))
    .group_by(_vms.c.provider),
    select(_orphans.c.provider, literal(ORPHAN), func.count())
    .where(_orphans.c.sightings >= 2, free(_orphans))
    .group_by(_orphans.c.provider),
    select(literal(""), literal(REQUEST), func.count())
    .select_from(_requests)
    .where(_requests.c.state == RequestState.WAITING)
    .having(func.count() > 0),
)


def due(reader: Reader) -> list[tuple[str, str, int]]:
    """Tell what there is to do: of which provider, in which state (or what else), how many."""
    return [(row.provider, row.what, row.number) for row in reader.execute(_DUE, {"now": clock.now()})]


@dataclass(frozen=True)
class Held:
    """A VM that an engine has claimed, as it was then."""

    holder: str
    lease_attempt: int
    id: int
    name: str
    pool: str
    template: str
    provider: str
    state: VMState
    domain: str
    requested: datetime
    cloned: datetime | None
    ready: datetime | None
    failures: int
    request_id: str | None


_HELD = tuple(_vms.c[name] for name in Held.__dataclass_fields__ if name != "holder")
#: Nobody works on its disks.
_is_left_alone = ~exists().where(_work.c.vm_id == _vms.c.id, _work.c.lease_until > _now)


def claim(session: Session, holder: str, provider: str, state: VMState, number: int, seconds: float) -> Sequence[Held]:
    """Claim VMs of a provider that are due in a state, those that wait longest first."""
    now = clock.now()
    pick = (
        select(_vms.c.id)
        .where(_vms.c.provider == provider, _vms.c.state == state, _vms.c.due <= now, free(_vms), _is_left_alone)
        .order_by(_vms.c.due, _vms.c.id)
        .limit(number)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("pick")
    )
    statement = (
        update(_vms).where(_vms.c.id.in_(select(pick.c.id))).values(lease.claim(VM, holder, seconds)).returning(*_HELD)
    )
    rows = session.execute(statement, {"now": now})
    return [Held(holder=holder, **{**row._mapping, "state": VMState(row.state)}) for row in rows]


def renew(session: Session, holder: str, seconds: float, vms: list[int], work: list[int]) -> None:
    """Keep the claims on rows that are still worked on; one that somebody is just changing is kept the next time."""
    until = clock.now() + timedelta(seconds=seconds)
    # Why work was not done the last time says nothing of the try that goes on.
    for leased, ids, also in ((_vms, vms, {}), (_work, work, {"reason": None})):
        if ids:
            still = and_(leased.c.lease_holder == holder, leased.c.lease_until > clock.now())
            mine = select(leased.c.id).where(leased.c.id.in_(ids), still).with_for_update(skip_locked=True).cte("mine")
            session.execute(update(leased).where(leased.c.id.in_(select(mine.c.id))).values(lease_until=until, **also))


def let_all_go(session: Session, holder: str) -> None:
    """Give up whatever an engine holds that ends; it stays known that somebody has begun with it."""
    for leased in (_vms, _work, _orphans):
        session.execute(update(leased).where(leased.c.lease_holder == holder).values(lease_until=clock.now()))


# What came of it


def made(session: Session, vm: Held, seconds: float) -> None:
    """Note that the provider has made a VM, within so many seconds."""
    now = clock.now()
    if _move(session, vm, VMState.PENDING, cloned=now, clone_seconds=seconds, reason=None, due=now):
        count_time(session, vm.pool, "clone", seconds)
        log.info("vm_made", extra={"vm": vm.name, "pool": vm.pool, "seconds": round(seconds, 2)})


def not_made(session: Session, rules: Rules, vm: Held, error: Exception) -> None:
    """Note why the provider has not made a VM: it is tried again later, or given up."""
    reason = describe(error)
    if isinstance(error, NoCapacity):
        _later(session, vm, NO_CAPACITY_PAUSE, reason=reason)
    elif isinstance(error, Misconfigured):
        _give_up(session, rules, vm, reason, hopeless=True)
    elif vm.failures + 1 >= ATTEMPTS:
        _give_up(session, rules, vm, reason)
    else:
        seconds = backoff(vm.failures, RETRY_FIRST, RETRY_MOST)
        _later(session, vm, seconds, reason=reason, failures=vm.failures + 1)


def no_cordon_meanwhile(session: Session) -> None:
    """Let no hypervisor be taken out of service until the transaction ends: statements from here on see all that are.

    For what puts VMs on hypervisors, so that whoever takes one out of service finds them all.
    """
    session.execute(_NO_CORDON_MEANWHILE)


def is_cordoned(session: Session, host: str) -> bool:
    """Tell whether a hypervisor is out of service."""
    return bool(session.execute(_IS_CORDONED, {"host": host}).scalar())


def is_ready(session: Session, rules: Rules, vm: Held, found: Found) -> None:
    """Note that a VM can be used: it waits in its pool, or is given to whom it was made for."""
    no_cordon_meanwhile(session)
    now = clock.now()
    boot = (now - vm.requested).total_seconds()
    values: dict[str, Any] = {
        "ready": now,
        "boot_seconds": boot,
        "ip": next(iter(found.addresses), None),
        "host": found.host or None,
        "reason": None,
    }
    if found.host and is_cordoned(session, found.host):
        _not_there(session, rules, vm, found.host)
        return
    if vm.request_id is None:
        moved = _move(session, vm, VMState.READY, **values, due=_next_look(rules, vm.pool, now, now))
    else:
        moved = _deliver(session, rules, vm, values)
    if moved:
        count_time(session, vm.pool, "boot", boot)
        pool_succeeded(session, vm.pool)
        record(session, "vm.ready", f"vms/{vm.name}", pool=vm.pool, seconds=round(boot, 2))
        log.info("vm_ready", extra={"vm": vm.name, "pool": vm.pool, "seconds": round(boot, 2)})


def _not_there(session: Session, rules: Rules, vm: Held, host: str) -> None:
    """Complete a VM that was made on a hypervisor that is out of service by now; another one is made."""
    complete(session, vm, OUT_OF_SERVICE, host=host)
    if vm.request_id is not None:
        _replace(session, rules, vm)


def is_not_ready(session: Session, rules: Rules, vm: Held, reason: str, host: str = "") -> None:
    """Note where a VM boots and why it cannot be used yet, or give it up when it has taken too long."""
    age = clock.now() - (vm.cloned or vm.requested)
    if host and is_cordoned(session, host):
        _not_there(session, rules, vm, host)
    elif age > rules.timeout_of(vm.pool):
        _give_up(session, rules, vm, f"not ready after {age.total_seconds() / 60:.1f} minutes: {reason}")
    else:
        where = {"host": host} if host else {}
        _later(session, vm, min(max(LOOK_PART * age.total_seconds(), LOOK_LEAST), LOOK_MOST), reason=reason, **where)


def is_lost(session: Session, rules: Rules, vm: Held) -> None:
    """Note that the provider does not know a VM that it has made; the second time it is given up."""
    if vm.failures:
        _give_up(session, rules, vm, "vanished")
    else:
        _later(session, vm, LOOK_MOST, reason="vanished", failures=1)


def is_still_ready(session: Session, rules: Rules, vm: Held) -> None:
    """Note that a ready VM is well."""
    now = clock.now()
    _change(session, vm, failures=0, reason=None, due=_next_look(rules, vm.pool, vm.ready or now, now))


def is_unwell(session: Session, vm: Held, reason: str) -> None:
    """Note what is wrong with a ready VM; the second time it is replaced."""
    if vm.failures:
        complete(session, vm, reason)
    else:
        _later(session, vm, SECOND_LOOK, reason=reason, failures=1)


def could_not_be_seen(session: Session, rules: Rules, vm: Held, error: Exception) -> None:
    """Note that the provider could not say how a VM does, which says nothing about the VM."""
    if vm.state == VMState.PENDING:
        is_not_ready(session, rules, vm, describe(error))
    else:
        _later(session, vm, RETRY_MOST)


def complete(session: Session, vm: Held, reason: str, **values: Any) -> None:
    """Have a VM destroyed that is not needed any more."""
    if _move(session, vm, VMState.COMPLETED, **completion(reason), **values):
        note_completed(session, [(vm.name, vm.pool, reason)])


def destroyed(session: Session, vm: Held) -> None:
    """Note that a VM is gone."""
    now = clock.now()
    if not _move(session, vm, VMState.DESTROYED, destroyed=now):
        return
    checkout = session.execute(select(_vms.c.checkout).where(_vms.c.id == vm.id)).scalar_one()
    if checkout is not None:
        count(session, vm.pool, "checkouts", checkout)
    record(session, "vm.destroyed", f"vms/{vm.name}", pool=vm.pool)
    log.info("vm_destroyed", extra={"vm": vm.name, "pool": vm.pool})


def not_destroyed(session: Session, vm: Held, error: Exception) -> None:
    """Note that a VM could not be destroyed, which is tried again for ever."""
    seconds = backoff(vm.failures, RETRY_FIRST, DESTROY_MOST)
    _later(session, vm, seconds, failures=vm.failures + 1)
    log.warning("vm_not_destroyed", extra={"vm": vm.name, "again_in": seconds, "reason": describe(error)})


def completion(reason: str) -> dict[str, Any]:
    """Give the values of a VM that has just been completed."""
    now = clock.now()
    return {"state": VMState.COMPLETED, "completed": now, "due": now, "failures": 0, "reason": reason[:LONGEST_REASON]}


def note_completed(session: Session, vms: Sequence[tuple[str, str, str]]) -> None:
    """Record which VMs, of which pool, were completed, and why."""
    for name, pool, reason in vms:
        record(session, "vm.completed", f"vms/{name}", pool=pool, reason=reason[:LONGEST_REASON])
        log.info("vm_completed", extra={"vm": name, "pool": pool, "reason": reason})


def describe(error: Exception) -> str:
    """Say what went wrong, to a person."""
    return (str(error).strip() or type(error).__name__)[:LONGEST_REASON]


def _next_look(rules: Rules, pool: str, ready: datetime, now: datetime) -> datetime:
    look = now + timedelta(minutes=rules.check_interval)
    ttl = rules.time_to_live(pool)
    return look if ttl is None else min(look, max(now, ready + ttl))


def _give_up(session: Session, rules: Rules, vm: Held, reason: str, *, hopeless: bool = False) -> None:
    """Complete a VM that could not be made or did not become ready; whom it was made for gets another one."""
    if not _move(session, vm, VMState.COMPLETED, **completion(reason)):
        return
    note_completed(session, [(vm.name, vm.pool, reason)])
    pool_failed(session, vm.pool, reason, hopeless=hopeless)
    if vm.request_id is not None:
        _replace(session, rules, vm)


def _replace(session: Session, rules: Rules, vm: Held) -> None:
    """Have another VM made for a request, when its pool may have any; the request's deadline ends this."""
    now = clock.now()
    blocked = select(PoolState.blocked_until).where(PoolState.pool == vm.pool).scalar_subquery()
    waiting = select(
        *(literal(value) for value in (new_name(rules.prefix), vm.pool, vm.template, vm.provider, vm.domain)),
        literal(VMState.REQUESTED.value),
        _requests.c.id,
        literal(now),
        func.greatest(literal(now), blocked),
    ).where(_requests.c.id == vm.request_id, _requests.c.state == RequestState.WAITING)
    names = ["name", "pool", "template", "provider", "domain", "state", "request_id", "requested", "due"]
    session.execute(insert(_vms).from_select(names, waiting))


def _deliver(session: Session, rules: Rules, vm: Held, values: Mapping[str, Any]) -> bool:
    """Give a VM to whom it was made for, if the request still wants it."""
    # Whoever changes a request holds its row before those of its VMs; so does whoever counts on its state.
    query = select(_requests).where(_requests.c.id == vm.request_id).with_for_update(read=True)
    wanted = session.execute(query).first()
    if wanted is None or wanted.state != RequestState.WAITING:
        complete(session, vm, "its request is over")
        return False
    now = clock.now()
    lifetime = rules.lifetime_of(wanted.owner)
    expires = now + timedelta(hours=lifetime)
    return _move(
        session,
        vm,
        VMState.RUNNING,
        **values,
        owner=wanted.owner,
        token_id=wanted.token_id,
        address=wanted.address,
        checkout=now,
        lifetime=lifetime,
        expires=expires,
        due=due_of(now, expires, rules.warning),
    )


def _move(session: Session, vm: Held, to: VMState, **values: Any) -> bool:
    """Move a VM on, if it is still the engine's and where it was."""
    if not LIFE.allows(vm.state, to):
        raise Conflict(f"{vm.state} cannot become {to}")
    return _change(session, vm, **{"failures": 0, "missing": 0, **values, "state": to})


def _later(session: Session, vm: Held, seconds: float, **values: Any) -> None:
    """Have a VM looked at again after some seconds."""
    _change(session, vm, due=clock.now() + timedelta(seconds=seconds), **values)


def _change(session: Session, vm: Held, **values: Any) -> bool:
    """Change a VM and end the claim; tells whether that was still the engine's to do."""
    mine = and_(_vms.c.id == vm.id, lease.held(VM, vm.holder, vm.lease_attempt))
    change = update(_vms).where(mine, _vms.c.state == vm.state).values(**values, **lease.FREE)
    if session.execute(change.returning(_vms.c.id)).first() is not None:
        return True
    session.execute(update(_vms).where(mine).values(lease.FREE))
    log.info("vm_changed_meanwhile", extra={"vm": vm.name, "was": vm.state, "attempt": vm.lease_attempt})
    return False


# Running VMs, for which no provider is asked

_RUNNING_DUE = (
    select(_vms.c.id, _vms.c.name, _vms.c.pool, _vms.c.owner, _vms.c.expires, _vms.c.warned)
    .where(_vms.c.state == VMState.RUNNING, _vms.c.due <= _now)
    .order_by(_vms.c.due, _vms.c.id)
    .limit(bindparam("number", type_=BigInteger))
    .with_for_update(skip_locked=True, key_share=True)
)
_this = _vms.c.id == bindparam("this", type_=_vms.c.id.type)
_EXPIRE = (
    update(_vms)
    .where(_this, _vms.c.state == VMState.RUNNING, _vms.c.expires <= _now)
    .values(completed=_now, due=_now, failures=0, reason=bindparam("why", type_=String), state=VMState.COMPLETED)
)


def watch_running(session: Session, warning: float, number: int = 100) -> None:
    """Complete running VMs whose lifetime is over, and warn of its end ``warning`` hours before."""
    now = clock.now()
    for vm in session.execute(_RUNNING_DUE, {"now": now, "number": number}).all():
        if vm.expires is not None and vm.expires <= now:
            session.execute(_EXPIRE, {"this": vm.id, "now": now, "why": "its lifetime is over"})
            note_completed(session, [(vm.name, vm.pool, "its lifetime is over")])
            continue
        expires = vm.expires or now + timedelta(days=1)
        warned = vm.warned
        if warning and warned is None and expires - timedelta(hours=warning) <= now:
            warned = now
            record(session, "vm.expiring", f"vms/{vm.name}", owner=vm.owner, expires=expires.isoformat())
            log.info("vm_expiring", extra={"vm": vm.name, "owner": vm.owner})
        later = expires if warned or not warning else due_of(now, expires, warning)
        session.execute(update(_vms).where(_vms.c.id == vm.id).values(due=later, warned=warned))


# Forgetting


def purge(session: Session, before: datetime, batch: int) -> int:
    """Forget up to ``batch`` VMs that were destroyed before a time, and what was done to them; gives how many."""
    oldest = (
        select(_vms.c.id)
        .where(_vms.c.state == VMState.DESTROYED, _vms.c.destroyed < before)
        .order_by(_vms.c.destroyed)
        .limit(batch)
        .with_for_update(skip_locked=True)
        .cte("oldest")
    )
    return int(session.execute(_vms.delete().where(_vms.c.id.in_(select(oldest.c.id)))).rowcount)  # type: ignore[attr-defined]


def purge_requests(session: Session, before: datetime, batch: int) -> int:
    """Forget up to ``batch`` requests that ended before a time and have no VMs any more; gives how many."""
    ended = (
        select(_requests.c.id)
        .where(_requests.c.finished < before, ~exists().where(_vms.c.request_id == _requests.c.id))
        .limit(batch)
        .with_for_update(skip_locked=True)
        .cte("ended")
    )
    return int(session.execute(_requests.delete().where(_requests.c.id.in_(select(ended.c.id)))).rowcount)  # type: ignore[attr-defined]

"""What is done to running VMs, one thing after the other: disks, snapshots and reverting for users, migrations."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from labctl import clock, lease
from labctl.db import Reader, table
from labctl.events.service import record
from labctl.vms.models import VM, Cordon, VMWork
from labctl.vms.provider import Found, Misconfigured, NoCapacity
from labctl.vms.standing import backoff
from labctl.vms.states import MIGRATIONS, VMState, WorkKind, WorkState
from labctl.vms.upkeep import (
    ATTEMPTS,
    NO_CAPACITY_PAUSE,
    RETRY_FIRST,
    RETRY_MOST,
    describe,
    free,
    is_cordoned,
    no_cordon_meanwhile,
)

log = logging.getLogger(__name__)

_vms = table(VM)
_work = table(VMWork)
_cordons = table(Cordon)
NEEDLESS = "its hypervisor is in service again"


@dataclass(frozen=True)
class HeldWork:
    """A piece of work that an engine has claimed, and what it needs to know of the VM."""

    holder: str
    lease_attempt: int
    id: int
    vm_id: int
    kind: WorkKind
    argument: str
    failures: int
    name: str
    provider: str
    rather_not: tuple[str, ...]
    #: How many disks were added before, and which snapshots are finished.
    disks: int
    snapshots: tuple[str, ...]


def claim(session: Session, holder: str, provider: str, number: int, seconds: float) -> Sequence[HeldWork]:
    """Claim work that is due on running VMs of a provider; a VM's pieces are done in the order they were asked for."""
    now = clock.now()
    earlier = aliased(VMWork)
    is_first = (
        ~select(earlier.id)
        .where(earlier.vm_id == _work.c.vm_id, earlier.state == WorkState.WAITING, earlier.id < _work.c.id)
        .exists()
    )
    pick = (
        select(_work.c.id)
        .join_from(_work, _vms, _work.c.vm_id == _vms.c.id)
        .where(_vms.c.provider == provider, _vms.c.state == VMState.RUNNING, is_first)
        .where(_work.c.state == WorkState.WAITING, _work.c.due <= now, free(_work))
        .order_by(_work.c.due, _work.c.id)
        .limit(number)
        .with_for_update(of=_work, skip_locked=True)
        .cte("pick")
    )
    statement = (
        update(_work)
        .where(_work.c.id.in_(select(pick.c.id)), _vms.c.id == _work.c.vm_id)
        .values(lease.claim(VMWork, holder, seconds))
        .returning(
            *(_work.c[name] for name in ("lease_attempt", "id", "vm_id", "kind", "argument", "failures", "rather_not")),
            _vms.c.name,
            _vms.c.provider,
            func.cardinality(_vms.c.disks).label("disks"),
            _vms.c.snapshots,
        )
    )
    rows = session.execute(statement, {"now": now})
    lists = ("rather_not", "snapshots")
    return [
        HeldWork(
            holder=holder,
            **{**row._mapping, "kind": WorkKind(row.kind), **{name: tuple(row._mapping[name]) for name in lists}},
        )
        for row in rows
    ]


def drop(session: Session, provider: str) -> None:
    """Give up what is to be done to VMs that do not run any more, or need not leave their hypervisor any more."""
    now = clock.now()
    mine = (_vms.c.id == _work.c.vm_id, _vms.c.provider == provider, _work.c.state == WorkState.WAITING, free(_work))
    needless = and_(
        _work.c.kind.in_(MIGRATIONS),
        # A guest that was shut down for it must come up again.
        _work.c.failures == 0,
        ~select(_cordons.c.host).where(_cordons.c.host == _work.c.argument).exists(),
    )
    for when, reason in ((_vms.c.state != VMState.RUNNING, "the VM does not run any more"), (needless, NEEDLESS)):
        give_up = update(_work).where(*mine, when).values(state=WorkState.FAILED, reason=reason, finished=now)
        session.execute(give_up, {"now": now})


def done(session: Session, work: HeldWork) -> None:
    """Note that a piece of work is done, and what the VM has now."""
    if not _change(session, work, state=WorkState.DONE, finished=clock.now(), reason=None):
        return
    new: dict[str, Any] = {}
    if work.kind == WorkKind.DISK:
        new["disks"] = func.array_append(_vms.c.disks, int(work.argument))
    elif work.kind == WorkKind.SNAPSHOT:
        new["snapshots"] = func.array_append(_vms.c.snapshots, work.argument)
    if new:
        session.execute(update(_vms).where(_vms.c.id == work.vm_id).values(new))
    record(session, f"vm.{work.kind}_done", f"vms/{work.name}", **{work.kind.value: work.argument})
    log.info("vm_work_done", extra={"vm": work.name, "work": work.kind, "argument": work.argument})


def migrated(session: Session, work: HeldWork, found: Found) -> None:
    """Note on which hypervisor a VM is now; if that was taken out of service meanwhile, it has to go on."""
    no_cordon_meanwhile(session)
    new: dict[str, Any] = {"state": WorkState.DONE, "finished": clock.now(), "reason": None}
    if is_cordoned(session, found.host):
        new = {"reason": f"{found.host} was taken out of service meanwhile", "due": clock.now()}
    if _change(session, work, **new):
        values = {"host": found.host, "ip": next(iter(found.addresses), _vms.c.ip)}
        session.execute(update(_vms).where(_vms.c.id == work.vm_id).values(values))
        record(session, "vm.migrated", f"vms/{work.name}", before=work.argument, host=found.host)
        log.info("vm_migrated", extra={"vm": work.name, "before": work.argument, "host": found.host})


def not_done(session: Session, work: HeldWork, error: Exception) -> None:
    """Note why a piece of work is not done: it is tried again later, or has failed."""
    reason = describe(error)
    if isinstance(error, NoCapacity):
        due = clock.now() + timedelta(seconds=NO_CAPACITY_PAUSE)
        _change(session, work, reason=reason, due=due, failures=0)
    elif isinstance(error, Misconfigured) or work.failures + 1 >= ATTEMPTS:
        if _change(session, work, state=WorkState.FAILED, reason=reason, finished=clock.now()):
            told = {work.kind.value: work.argument, "reason": reason}
            record(session, f"vm.{work.kind}_failed", f"vms/{work.name}", **told)
            log.warning("vm_work_failed", extra={"vm": work.name, "work": work.kind, "reason": reason})
    else:
        due = clock.now() + timedelta(seconds=backoff(work.failures, RETRY_FIRST, RETRY_MOST))
        _change(session, work, failures=work.failures + 1, reason=reason, due=due)


# Migrations, for whoever takes hypervisors out of service


def ask_to_migrate(
    session: Session, name: str, host: str, *, live: bool, rather_not: Collection[str] = ()
) -> int | None:
    """Have a running VM leave a hypervisor for another one that is in service; gives the id of the work.

    ``rather_not``: hypervisors that are taken only if there is no room on others. None: it does not run there any more.
    """
    here = (_vms.c.name == name, _vms.c.host == host, _vms.c.state == VMState.RUNNING)
    vm: int | None = session.execute(select(_vms.c.id).where(*here).with_for_update(read=True, key_share=True)).scalar()
    if vm is None:
        return None
    now = clock.now()
    kind = WorkKind.LIVE_MIGRATE if live else WorkKind.MIGRATE
    values = {"vm_id": vm, "kind": kind, "argument": host, "created": now, "due": now, "rather_not": list(rather_not)}
    work: int = session.execute(insert(_work).values(values).returning(_work.c.id)).scalar_one()
    record(session, f"vm.{kind}_asked", f"vms/{name}", host=host)
    return work


@dataclass(frozen=True)
class Migration:
    """How far the migration of a VM is."""

    has_failed: bool
    #: Why it has failed; of one that has not, why there is no room elsewhere.
    reason: str | None


def migrations(reader: Reader, works: Collection[int]) -> dict[int, Migration]:
    """Tell how far migrations are, by the ids of the work; those of VMs that nobody knows any more are left out."""
    rows = reader.execute(
        select(_work.c.id, _work.c.state, _work.c.reason, _work.c.failures).where(_work.c.id.in_(works))
    )
    found = {}
    for row in rows:
        failed = row.state == WorkState.FAILED
        found[row.id] = Migration(failed, row.reason if failed or not row.failures else None)
    return found


def hosts_of(reader: Reader, names: Collection[str]) -> dict[str, str]:
    """Tell on which hypervisors running VMs are."""
    running = (_vms.c.name.in_(names), _vms.c.state == VMState.RUNNING, _vms.c.host.is_not(None))
    return {row.name: row.host for row in reader.execute(select(_vms.c.name, _vms.c.host).where(*running))}


def take_back(session: Session, works: Collection[int], reason: str) -> None:
    """Give up what was not begun yet; what an engine is just doing goes on."""
    waits = (_work.c.id.in_(works), _work.c.state == WorkState.WAITING, free(_work))
    now = clock.now()
    give_up = update(_work).where(*waits).values(state=WorkState.FAILED, reason=reason, finished=now)
    session.execute(give_up, {"now": now})


def _change(session: Session, work: HeldWork, **values: Any) -> bool:
    """Change a piece of work and end the claim, if that still holds."""
    mine = and_(_work.c.id == work.id, lease.held(VMWork, work.holder, work.lease_attempt))
    change = update(_work).where(mine, _work.c.state == WorkState.WAITING).values(**values, **lease.FREE)
    return session.execute(change.returning(_work.c.id)).first() is not None

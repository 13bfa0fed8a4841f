"""Hypervisors that are out of service: nothing is made or given out there, and who has a VM there gets another one."""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import ARRAY, Text, and_, any_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.events.service import record
from labctl.vms.models import VM, Cordon, VMWork
from labctl.vms.states import MIGRATIONS, VMState, WorkState
from labctl.vms.upkeep import OUT_OF_SERVICE, completion, note_completed

_vms = table(VM)
_cordons = table(Cordon)
_work = table(VMWork)
_hosts = bindparam("hosts", type_=ARRAY(Text))
# Waits for those that just put a VM on some hypervisor, and keeps others from it.
_ALONE = select(func.pg_advisory_xact_lock(int(Lock.CORDON), 0))
_in_service = or_(
    _vms.c.host.is_(None), ~select(_cordons.c.host).where(_cordons.c.host == _vms.c.host).correlate(_vms).exists()
)
#: For how long VMs are waited for that come or go where a hypervisor is out of service.
PATIENCE = timedelta(minutes=10)
# An engine asks a provider for them, or has done so and was killed.
_vm_begun = or_(_vms.c.lease_holder.is_not(None), _vms.c.failures > 0)
_work_begun = or_(_work.c.lease_holder.is_not(None), _work.c.failures > 0)
_MAKING = select(_vms.c.id).where(
    or_(_vms.c.state == VMState.PENDING, and_(_vms.c.state == VMState.REQUESTED, _vm_begun))
)
_MIGRATING = select(_work.c.id).where(_work.c.kind.in_(MIGRATIONS), _work.c.state == WorkState.WAITING, _work_begun)
_ON_THEIR_WAY = {
    "making": func.array(_MAKING.scalar_subquery()),
    "migrating": func.array(_MIGRATING.scalar_subquery()),
}
_may_come = and_(
    _vms.c.id == any_(_cordons.c.making),
    or_(
        and_(_vms.c.state == VMState.REQUESTED, _vm_begun),
        and_(_vms.c.state == VMState.PENDING, or_(_vms.c.host.is_(None), _vms.c.host == _cordons.c.host)),
    ),
)
_may_arrive = and_(_work.c.id == any_(_cordons.c.migrating), _work.c.state == WorkState.WAITING, _work_begun)
_latest = bindparam("latest", type_=_cordons.c.since.type)
# What could not be destroyed at the first try may take for ever.
_goes = and_(
    _vms.c.host == _cordons.c.host,
    _vms.c.state == VMState.COMPLETED,
    _vms.c.failures == 0,
    _vms.c.completed > _latest,
)
_UNSETTLED = select(_cordons.c.host).where(
    _cordons.c.host == any_(_hosts),
    or_(
        select(_vms.c.id).where(_goes).correlate(_cordons).exists(),
        and_(
            _cordons.c.since > _latest,
            or_(
                select(_vms.c.id).where(_may_come).correlate(_cordons).exists(),
                select(_work.c.id).where(_may_arrive).correlate(_cordons).exists(),
            ),
        ),
    ),
)
#: What the VM that takes another one's place has of it; nobody's VM lives longer by that, nor shorter.
_INHERITED = ("owner", "token_id", "address", "tags", "checkout", "lifetime", "expires", "warned", "due", "request_id")


def cordoned(reader: Reader) -> frozenset[str]:
    """Give the hypervisors that are out of service."""
    return frozenset(reader.execute(select(_cordons.c.host)).scalars())


def cordon(session: Session, host: str, reason: str) -> None:
    """Take a hypervisor out of service, and complete what nobody has there: pools make it anew elsewhere.

    What is just being given out is left alone; asking again finds what has become of it.
    """
    session.execute(_ALONE)
    add = insert(_cordons).values(host=host, reason=reason, since=clock.now(), **_ON_THEIR_WAY)
    if session.execute(add.on_conflict_do_nothing().returning(_cordons.c.host)).first() is not None:
        record(session, "vm_host.cordoned", f"vm_hosts/{host}", reason=reason)
    nobodys = (
        select(_vms.c.id)
        .where(_vms.c.host == host, _vms.c.state == VMState.READY)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("nobodys")
    )
    complete = update(_vms).where(_vms.c.id.in_(select(nobodys.c.id))).values(completion(OUT_OF_SERVICE))
    done = session.execute(complete.returning(_vms.c.name, _vms.c.pool)).all()
    note_completed(session, [(name, pool, OUT_OF_SERVICE) for name, pool in done])


def unsettled(reader: Reader, hosts: Collection[str]) -> frozenset[str]:
    """Name those of the hypervisors out of service that VMs are still being taken from, or may be on their way to.

    What lasts longer than PATIENCE does not count: a provider may try it for ever.
    """
    found = reader.execute(_UNSETTLED, {"hosts": list(hosts), "latest": clock.now() - PATIENCE})
    return frozenset(found.scalars())


def uncordon(session: Session, host: str) -> None:
    """Take a hypervisor back into service."""
    remove = delete(_cordons).where(_cordons.c.host == host).returning(_cordons.c.reason)
    if (row := session.execute(remove).first()) is not None:
        record(session, "vm_host.uncordoned", f"vm_hosts/{host}", reason=row.reason)


def replace(session: Session, name: str, rather_not: Collection[str] = ()) -> str | None:
    """Give a VM's owner another one of the same pool that is ready elsewhere, and complete the old one.

    The new one has the old one's owner, token, tags and lifetime, not its disks and snapshots; it is on none of the
    hypervisors ``rather_not`` if there is any other. Gives its name; None if none is ready, or nobody has the old one
    any more.
    """
    held = select(_vms).where(_vms.c.name == name, _vms.c.state == VMState.RUNNING)
    old = session.execute(held.with_for_update(key_share=True)).mappings().first()
    if old is None:
        return None
    pick = (
        select(_vms.c.id)
        .where(_vms.c.pool == old["pool"], _vms.c.state == VMState.READY, _in_service, _vms.c.host != old["host"])
        .order_by(_vms.c.host == any_(_hosts), _vms.c.ready, _vms.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True, of=_vms)
        .cte("pick")
    )
    # An engine that is just looking at it must not change it afterwards.
    free = {"lease_holder": None, "lease_until": None, "failures": 0, "reason": None}
    take = (
        update(_vms)
        .where(_vms.c.id.in_(select(pick.c.id)))
        .values({"state": VMState.RUNNING, **{key: old[key] for key in _INHERITED}, **free})
        .returning(_vms.c.name)
    )
    new: str | None = session.execute(take, {"hosts": list(rather_not)}).scalar()
    if new is None:
        return None
    session.execute(
        update(_vms)
        .where(_vms.c.id == old["id"])
        .values(**completion(f"replaced by {new}"), lease_holder=None, lease_until=None)
    )
    record(session, "vm.replaced", f"vms/{name}", pool=old["pool"], owner=old["owner"], replacement=new)
    note_completed(session, [(name, old["pool"], f"replaced by {new}")])
    return new

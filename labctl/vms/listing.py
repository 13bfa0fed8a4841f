"""Comparing what a provider has with what there should be, so that nothing leaks and nothing is missed for long."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ARRAY, Text, all_, and_, any_, bindparam, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock, lease
from labctl.db import table
from labctl.events.service import record
from labctl.vms.models import VM, Orphan, ProviderState
from labctl.vms.provider import Partial
from labctl.vms.standing import LONGEST_REASON, PROVIDER_FIRST
from labctl.vms.states import VMState
from labctl.vms.upkeep import completion, free, note_completed

log = logging.getLogger(__name__)

#: Lists, one after the other, that tell whether a VM is there or not: one alone may be wrong.
SIGHTINGS = 2

_vms = table(VM)
_orphans = table(Orphan)
_providers = table(ProviderState)
_names = bindparam("names", type_=ARRAY(Text))


@dataclass(frozen=True)
class Reading:
    """One reading of a provider's list, which counts only until another one is begun."""

    provider: str
    began: datetime
    #: The one before began at this time.
    before: datetime | None
    #: The provider is left alone otherwise; whether it answers decides whether that is over.
    probe: bool


def take_on(session: Session, provider: str, interval: float, deadline: float) -> Reading | None:
    """Take it on to read the list of a provider, unless somebody else just has."""
    now = clock.now()
    session.execute(upsert(_providers).values(provider=provider).on_conflict_do_nothing())
    state = session.execute(select(_providers).where(_providers.c.provider == provider).with_for_update()).one()
    probe = state.open_until is not None
    if probe:
        if state.open_until > now:
            return None
        # If this engine dies, another one tries.
        again = {"open_until": now + timedelta(seconds=deadline + PROVIDER_FIRST)}
    else:
        if state.listed is not None and state.listed + timedelta(seconds=interval) > now:
            return None
        again = {}
    session.execute(update(_providers).where(_providers.c.provider == provider).values(listed=now, **again))
    return Reading(provider, now, state.listed, probe)


def compare(session: Session, reading: Reading, names: Collection[str]) -> None:
    """Note which names nobody knows and which VMs are not there, and act on what two lists in a row say.

    What is :class:`Partial` says nothing of VMs on other hypervisors than those that it is of.
    """
    current = select(_providers.c.listed).where(_providers.c.provider == reading.provider)
    if session.execute(current).scalar() != reading.began:
        return
    trouble, hosts = (names.trouble, sorted(names.hosts)) if isinstance(names, Partial) else (None, None)
    _note_trouble(session, reading.provider, trouble)
    _note_orphans(session, reading, sorted(names), is_all=hosts is None)
    if reading.before is not None:
        _note_missing(session, reading, sorted(names), hosts)


def _note_trouble(session: Session, provider: str, trouble: str | None) -> None:
    """Keep what is wrong with a part of a provider, for people; what is wrong with all of it is kept by its breaker."""
    this = (_providers.c.provider == provider) & (_providers.c.failures == 0)
    reason = trouble and trouble[:LONGEST_REASON]
    session.execute(update(_providers).where(this, _providers.c.reason.is_distinct_from(reason)).values(reason=reason))
    if trouble:
        log.warning("provider_partly_silent", extra={"provider": provider, "reason": trouble})


def _note_orphans(session: Session, reading: Reading, names: list[str], *, is_all: bool) -> None:
    """Count the sightings of names that no VM has that should be there; a row is always older than what it names."""
    listed = func.unnest(_names).table_valued("name", name="listed").render_derived()
    known = exists().where(_vms.c.name == listed.c.name, _vms.c.state != VMState.DESTROYED)
    found = session.execute(select(listed.c.name).where(~known).order_by(listed.c.name), {"names": names})
    unknown = list(found.scalars())
    if is_all:
        gone = delete(_orphans).where(_orphans.c.provider == reading.provider, _orphans.c.name != all_(_names))
        session.execute(gone, {"names": unknown})
    if not unknown:
        return
    add = upsert(_orphans).values(
        [{"provider": reading.provider, "name": n, "first_seen": reading.began} for n in unknown]
    )
    again = add.on_conflict_do_update(index_elements=["provider", "name"], set_={"sightings": _orphans.c.sightings + 1})
    for name, sightings in session.execute(again.returning(_orphans.c.name, _orphans.c.sightings)):
        if sightings == SIGHTINGS:
            record(session, "vm.orphaned", f"vms/{name}", provider=reading.provider)
            log.warning("vm_orphaned", extra={"vm": name, "provider": reading.provider})


def _note_missing(session: Session, reading: Reading, names: list[str], hosts: list[str] | None) -> None:
    """Count how often VMs were not listed that were there before the list was read, and before the one before it.

    ``hosts``: the hypervisors that were asked, None for all.
    """
    should_be_there = and_(
        _vms.c.provider == reading.provider,
        _vms.c.state.in_((VMState.PENDING, VMState.READY, VMState.RUNNING)),
        _vms.c.cloned < reading.before,
        *([] if hosts is None else [_vms.c.host.in_(hosts)]),
    )
    # Somebody may be taking one at this moment, and is not waited for: the next list will tell.
    there = select(_vms.c.id).where(should_be_there).with_for_update(skip_locked=True, key_share=True)
    back = there.where(_vms.c.missing > 0, _vms.c.name == any_(_names)).cte("back")
    session.execute(update(_vms).where(_vms.c.id.in_(select(back.c.id))).values(missing=0), {"names": names})
    absent = there.where(_vms.c.name != all_(_names)).cte("absent")
    missed = (
        update(_vms)
        .where(_vms.c.id.in_(select(absent.c.id)))
        .values(missing=_vms.c.missing + 1)
        .returning(_vms.c.id, _vms.c.name, _vms.c.pool, _vms.c.state, _vms.c.owner, _vms.c.missing)
    )
    for vm in session.execute(missed, {"names": names}).all():
        if vm.missing < SIGHTINGS:
            continue
        if vm.state != VMState.RUNNING:
            session.execute(update(_vms).where(_vms.c.id == vm.id).values(**completion("vanished"), **lease.FREE))
            note_completed(session, [(vm.name, vm.pool, "vanished")])
        elif vm.missing == SIGHTINGS:
            # Somebody has it, and its provider may yet find it again.
            record(session, "vm.vanished", f"vms/{vm.name}", pool=vm.pool, owner=vm.owner)
            log.warning("vm_vanished", extra={"vm": vm.name, "pool": vm.pool, "owner": vm.owner})


@dataclass(frozen=True)
class HeldOrphan:
    """An orphan that an engine has claimed."""

    holder: str
    lease_attempt: int
    provider: str
    name: str


def claim(session: Session, holder: str, provider: str, number: int, seconds: float) -> Sequence[HeldOrphan]:
    """Claim orphans that were seen often enough to be destroyed, and that still nobody knows."""
    now = clock.now()
    known = exists().where(_vms.c.name == _orphans.c.name, _vms.c.state != VMState.DESTROYED)
    pick = (
        select(_orphans.c.name)
        .where(_orphans.c.provider == provider, _orphans.c.sightings >= SIGHTINGS, free(_orphans), ~known)
        .order_by(_orphans.c.name)
        .limit(number)
        .with_for_update(skip_locked=True)
        .cte("pick")
    )
    statement = (
        update(_orphans)
        .where(_orphans.c.provider == provider, _orphans.c.name.in_(select(pick.c.name)))
        .values(lease.claim(Orphan, holder, seconds))
        .returning(_orphans.c.lease_attempt, _orphans.c.provider, _orphans.c.name)
    )
    return [HeldOrphan(holder=holder, **row._mapping) for row in session.execute(statement, {"now": now})]


def orphan_gone(session: Session, orphan: HeldOrphan) -> None:
    """Forget an orphan that was destroyed; one that could not be is tried again when its claim has run out."""
    mine = lease.held(Orphan, orphan.holder, orphan.lease_attempt)
    this = and_(_orphans.c.provider == orphan.provider, _orphans.c.name == orphan.name)
    if session.execute(delete(_orphans).where(this, mine).returning(_orphans.c.name)).first() is not None:
        record(session, "vm.orphan_destroyed", f"vms/{orphan.name}", provider=orphan.provider)
        log.info("vm_orphan_destroyed", extra={"vm": orphan.name, "provider": orphan.provider})

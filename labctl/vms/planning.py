"""Deciding how many VMs each pool needs, and which it has too many of."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.pools import Pool
from labctl.vms.models import VM, PoolState
from labctl.vms.names import new_name
from labctl.vms.overrides import value
from labctl.vms.standing import Standing, standings
from labctl.vms.states import VMState
from labctl.vms.upkeep import Rules, completion, note_completed

log = logging.getLogger(__name__)

#: VMs that one plan completes of one pool; the next plan goes on.
BATCH = 100
#: The part of a pool that is made anew at once while ready VMs of another template are still there.
ANEW = 0.25

_vms = table(VM)
_pool_states = table(PoolState)
_UNUSED = (VMState.REQUESTED, VMState.PENDING, VMState.READY)
_for_request = _vms.c.request_id.is_not(None).label("for_request")
# Asked for at least once, and it did not fail.
_no_room = and_(
    _vms.c.state == VMState.REQUESTED,
    _vms.c.reason.is_not(None),
    _vms.c.failures == 0,
).label("no_room")
_KIND = (_vms.c.pool, _vms.c.provider, _vms.c.template, _vms.c.state, _for_request, _no_room)
_COUNTS = select(*_KIND, func.count().label("number")).where(_vms.c.state.in_(_UNUSED)).group_by(*_KIND)
_POOL_STATES = select(_pool_states)
_BE_ALONE = select(func.pg_try_advisory_xact_lock(int(Lock.ENGINE), 0))


@dataclass(frozen=True)
class Survey:
    """What there is: VMs that nobody has, counted, and how pools and providers do."""

    counts: Sequence[Any]
    pools: Mapping[str, Any]
    providers: Mapping[str, Standing]


@dataclass(frozen=True)
class Surplus:
    """VMs of a pool that are to be completed: ``number`` of those in ``states``, or of those of other templates."""

    pool: str
    states: tuple[VMState, ...]
    number: int
    reason: str
    #: The template that is the right one, if the others are meant.
    but: str | None = None


@dataclass
class Plan:
    """How many VMs each pool is to get, of which template, and what it is to lose."""

    new: dict[str, tuple[str, int]] = field(default_factory=dict)
    surplus: list[Surplus] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.surplus)


def survey(reader: Reader, providers: Mapping[str, Standing] | None = None) -> Survey:
    """Count what there is, at the cost of a few small statements."""
    states = {row.pool: row for row in reader.execute(_POOL_STATES)}
    return Survey(reader.execute(_COUNTS).all(), states, standings(reader) if providers is None else providers)


@dataclass
class _Need:
    """What a pool is short of."""

    pool: Pool
    template: str
    size: int
    have: int
    most: int
    new: int = 0

    @property
    def emptiness(self) -> tuple[float, str]:
        return (self.have + self.new) / self.size, self.pool.name

    @property
    def wants(self) -> bool:
        return self.new < self.most and self.have + self.new < self.size


def decide(rules: Rules, found: Survey) -> Plan:
    """Say what is left over, and what is missing, as far as it may be made at once, the emptiest pools first."""
    plan = Plan(surplus=list(_surplus(rules, found)))
    room = dict(rules.limits)
    for row in found.counts:
        if row.state == VMState.REQUESTED:
            room[row.provider] = room.get(row.provider, 0) - row.number
    needs = [need for need in _needs(rules, found) if need.wants]
    while needs:
        need = min(needs, key=lambda each: each.emptiness)
        if room.get(need.pool.provider, 0) > 0:
            room[need.pool.provider] -= 1
            need.new += 1
            plan.new[need.pool.name] = (need.template, need.new)
            if need.wants:
                continue
        needs.remove(need)
    return plan


def _needs(rules: Rules, found: Survey) -> Iterator[_Need]:
    now = clock.now()
    have, ready = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    requested, ready_of_any = Counter[str](), Counter[str]()
    for row in found.counts:
        if not row.for_request:
            have[row.pool, row.template] += row.number
            ready[row.pool, row.template] += row.number * (row.state == VMState.READY)
            ready_of_any[row.pool] += row.number * (row.state == VMState.READY)
            requested[row.pool] += row.number * (row.state == VMState.REQUESTED)
    for name, pool in rules.catalog.pools.items():
        state = found.pools.get(name)
        template, size = value(pool, state, "template"), value(pool, state, "size")
        at_once = value(pool, state, "clone_target") or rules.limits.get(pool.provider, 0)
        if state is not None and state.blocked_until is not None:
            if state.blocked_until > now:
                continue
            # One shows whether it works again.
            at_once = 1
        if found.providers.get(pool.provider, Standing()).open:
            continue
        most = at_once - requested[name]
        if ready_of_any[name] > ready[name, template]:
            being_made = have[name, template] - ready[name, template]
            most = min(most, max(1, int(size * ANEW)) - being_made)
        if size:
            yield _Need(pool, template, size, have[name, template], most)


def _surplus(rules: Rules, found: Survey) -> Iterator[Surplus]:
    ready, no_room, old, strange = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in found.counts:
        if row.for_request:
            continue
        pool = rules.catalog.pools.get(row.pool)
        if pool is None:
            strange[row.pool] += row.number
        elif row.template != value(pool, found.pools.get(row.pool), "template"):
            old[row.pool] += row.number * (row.state == VMState.READY)
        else:
            no_room[row.pool] += row.number * row.no_room
            ready[row.pool] += row.number * (row.state == VMState.READY)
    for name, number in strange.items():
        yield Surplus(name, _UNUSED, number, "its pool is not configured any more")
    for name, number in old.items():
        pool, state = rules.catalog.pools[name], found.pools.get(name)
        # One goes for each that has come; and for each that has no room before one goes.
        over = min(number, number + ready[name] + no_room[name] - value(pool, state, "size"))
        if over > 0:
            template = value(pool, state, "template")
            yield Surplus(name, (VMState.READY,), over, "its pool has another template", template)
    for name, number in ready.items():
        # Those that are on their way are waited for: then others are too many.
        over = number - value(rules.catalog.pools[name], found.pools.get(name), "size")
        if over > 0:
            yield Surplus(name, (VMState.READY,), over, "its pool is smaller now")


def carry_out(session: Session, rules: Rules) -> bool:
    """Plan, and add and complete VMs accordingly; one engine at a time, the others leave it to that one."""
    if not session.execute(_BE_ALONE).scalar():
        return False
    # What was seen before the lock was taken may be what another engine has just seen to.
    plan = decide(rules, survey(session))
    for surplus in plan.surplus:
        _complete(session, surplus)
    for name, (template, number) in plan.new.items():
        _request(session, rules, rules.catalog.pools[name], template, number)
    return bool(plan)


def _request(session: Session, rules: Rules, pool: Pool, template: str, number: int) -> None:
    now = clock.now()
    same = {"pool": pool.name, "template": template, "provider": pool.provider, "state": VMState.REQUESTED}
    domain = rules.catalog.domain_of(pool.name)
    rows = [
        {"name": new_name(rules.prefix), "domain": domain, "requested": now, "due": now, **same} for _ in range(number)
    ]
    session.execute(insert(_vms), rows)
    log.info("vms_requested", extra={"pool": pool.name, "template": template, "count": number})


def _complete(session: Session, surplus: Surplus) -> None:
    """Complete VMs that nobody has, the oldest first; those that somebody is just taking are not waited for."""
    query = select(_vms.c.id).where(
        _vms.c.pool == surplus.pool, _vms.c.state.in_(surplus.states), _vms.c.request_id.is_(None)
    )
    if surplus.but is not None:
        query = query.where(_vms.c.template != surplus.but)
    pick = (
        query.order_by(_vms.c.id)
        .limit(min(surplus.number, BATCH))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("pick")
    )
    statement = update(_vms).where(_vms.c.id.in_(select(pick.c.id))).values(completion(surplus.reason))
    done = session.execute(statement.returning(_vms.c.name))
    note_completed(session, [(name, surplus.pool, surplus.reason) for name in done.scalars()])

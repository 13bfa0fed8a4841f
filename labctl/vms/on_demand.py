"""Requests for VMs that are yet to be made: taking them in, telling how they do, taking them back, ending them.

Who changes a request holds its row before those of its VMs.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Text,
    bindparam,
    column,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Reader, table
from labctl.errors import Conflict, Forbidden, NotFound
from labctl.events.service import as_part, as_parts, part_values, parts_values
from labctl.vms.catalog import Asked, Catalog
from labctl.vms.models import VM, PoolState, VMRequest
from labctl.vms.names import new_name
from labctl.vms.service import Caller, check_owner, token_may_be_gone
from labctl.vms.states import RequestState, VMState

#: The largest number of VMs that one request can be for.
MOST = 1000


@dataclass(frozen=True)
class Limits:
    """How many VMs one request may ask for, how many minutes they may take, and what their names begin with."""

    most: int
    minutes: float
    prefix: str = ""


@dataclass(frozen=True)
class Request:
    """A request and what has been made for it."""

    id: str
    state: RequestState
    message: str | None
    #: By the name that was asked for: out of which pools, how many.
    wanted: dict[str, list[Asked]]
    #: By the same names: the VMs that are there, rows with ``name`` and ``domain``.
    vms: dict[str, list[Any]]


# Built once: putting a statement together costs as much as sending it.
_vms = table(VM)
_requests = table(VMRequest)
_pool_states = table(PoolState)
_id = _requests.c.id == bindparam("this", type_=Text)
_given = {
    name: bindparam(f"new_{name}", type_=_requests.c[name].type)
    for name in ("id", "wanted", "owner", "token_id", "address", "created", "deadline")
}
_ADD = upsert(_requests).values(_given).on_conflict_do_nothing(index_elements=["id"]).returning(_requests.c.id)
_new = (
    func.jsonb_to_recordset(bindparam("vms", type_=JSONB))
    .table_valued(
        *(column(name, Text) for name in ("name", "pool", "template", "provider", "domain")),
        name="new",
    )
    .render_derived(with_types=True)
)
_now = bindparam("now", type_=_vms.c.due.type)
_ADD_VMS = (
    insert(_vms)
    .from_select(
        ["name", "pool", "template", "provider", "domain", "state", "request_id", "requested", "due", "lease_attempt"],
        select(
            _new.c.name,
            _new.c.pool,
            # What was changed of the pool counts here as for every VM of it.
            func.coalesce(_pool_states.c.template, _new.c.template),
            _new.c.provider,
            _new.c.domain,
            literal_column(f"'{VMState.REQUESTED}'"),
            bindparam("this", type_=Text),
            _now,
            _now,
            literal_column("0"),
        ).select_from(_new.outerjoin(_pool_states, _pool_states.c.pool == _new.c.pool)),
    )
    .add_cte(as_part())
)
_FIND = select(_requests.c.id, _requests.c.state, _requests.c.message, _requests.c.wanted).where(_id)
# Given to the user: those that were given up while they were made have no checkout.
_VMS = (
    select(_vms.c.name, _vms.c.domain, _vms.c.pool)
    .where(_vms.c.request_id == bindparam("this", type_=Text), _vms.c.checkout.is_not(None))
    .order_by(_vms.c.id)
)
_HOLD = select(_requests.c.id, _requests.c.state, _requests.c.owner).where(_id).with_for_update(key_share=True)
_not_over = _vms.c.state.not_in((VMState.COMPLETED, VMState.DESTROYED))
_of_request = (
    select(_vms.c.id)
    .where(_vms.c.request_id == bindparam("this", type_=Text), _not_over)
    .order_by(_vms.c.id)
    .with_for_update(key_share=True)
    .cte("of_request")
)
_completed = (
    update(_vms)
    .where(_vms.c.id.in_(select(_of_request.c.id)))
    .values(
        state=literal_column(f"'{VMState.COMPLETED}'"),
        completed=_now,
        due=_now,
        failures=0,
        reason=bindparam("why", type_=Text),
    )
    .returning(*(_vms.c[name] for name in ("name", "pool", "reason")))
    .cte("completed")
)
_COMPLETE_VMS = select(func.count()).add_cte(
    as_parts(
        "vm.completed",
        _completed,
        literal_column("'vms/'", Text) + _completed.c.name,
        pool=_completed.c.pool,
        reason=_completed.c.reason,
    )
)
_END = (
    update(_requests)
    .where(_id)
    .values(state=bindparam("to", type_=Text), message=bindparam("why_request", type_=Text), finished=_now)
    .add_cte(as_part())
)
_unfinished = exists().where(
    _vms.c.request_id == _requests.c.id,
    _vms.c.state.in_((VMState.REQUESTED, VMState.PENDING, VMState.READY)),
)
_MAYBE_OVER = (
    select(_requests)
    .where(
        _requests.c.state == literal_column(f"'{RequestState.WAITING}'"),
        or_(_requests.c.deadline <= _now, ~_unfinished),
    )
    .order_by(_requests.c.deadline, _requests.c.id)
    .limit(bindparam("most", type_=BigInteger))
    .with_for_update(skip_locked=True, key_share=True)
)


def ask(
    session: Session,
    catalog: Catalog,
    asked: Sequence[Asked],
    caller: Caller,
    limits: Limits,
    given: str = "",
) -> str:
    """Take in a request for VMs beyond the sizes of the pools and give its id, the ``given`` one if there is one.

    A name that stands for several pools gets its VMs out of all of them in turn. Raises :class:`Forbidden` for too
    many, :class:`Conflict` for an id that is taken.
    """
    if sum(each.count for each in asked) > limits.most:
        raise Forbidden(f"requested amount of instances exceeds the maximum {limits.most}")
    now = clock.now()
    wanted = {each.name: _in_turn(each) for each in asked}
    values = {
        "id": given or str(uuid.uuid4()),
        "wanted": {name: [{"pool": pool, "count": count} for pool, count in of.items()] for name, of in wanted.items()},
        "owner": caller.name,
        "token_id": caller.token_id,
        "address": caller.address,
        "created": now,
        "deadline": now + timedelta(minutes=limits.minutes),
    }
    with token_may_be_gone():
        identity: str | None = session.execute(_ADD, {f"new_{name}": value for name, value in values.items()}).scalar()
    if identity is None:
        raise Conflict(f"request_id '{given}' has already been created")
    vms = [
        {
            "name": new_name(limits.prefix),
            "pool": pool,
            "template": catalog.pools[pool].template or pool,
            "provider": catalog.pools[pool].provider,
            "domain": catalog.domain_of(pool),
        }
        for of_name in wanted.values()
        for pool, count in of_name.items()
        for _ in range(count)
    ]
    counts = {each.name: each.count for each in asked}
    part = part_values(session, "vm_request.added", f"vm_requests/{identity}", wanted=counts)
    session.execute(_ADD_VMS, {"vms": vms, "this": identity, "now": now, **part})
    return identity


def _in_turn(asked: Asked) -> dict[str, int]:
    """Spread what is wanted over the pools, evenly, the first ones first."""
    each, more = divmod(asked.count, len(asked.pools))
    spread = {pool: each + (number < more) for number, pool in enumerate(asked.pools)}
    return {pool: count for pool, count in spread.items() if count}


def request(session: Reader, identity: str) -> Request:
    """Tell how a request does; raises :class:`NotFound`."""
    found = session.execute(_FIND, {"this": identity}).first()
    if found is None:
        raise NotFound(f"no request found for request_id '{identity}'")
    wanted = {
        name: [Asked(name, (part["pool"],), part["count"]) for part in parts] for name, parts in found.wanted.items()
    }
    vms = session.execute(_VMS, {"this": identity}).all()
    return Request(found.id, RequestState(found.state), found.message, wanted, _by_name(wanted, vms))


def _by_name(wanted: dict[str, list[Asked]], vms: Iterable[Any]) -> dict[str, list[Any]]:
    """Say for which name each VM was made, as far as its pool and the numbers that are wanted tell."""
    of_pool: dict[str, list[Any]] = {}
    for vm in vms:
        of_pool.setdefault(vm.pool, []).append(vm)
    found: dict[str, list[Any]] = {}
    for name, parts in wanted.items():
        found[name] = []
        for part in parts:
            there = of_pool.get(part.pools[0], [])
            found[name] += there[: part.count]
            del there[: part.count]
    return found


def take_back(session: Session, identity: str, caller: Caller) -> None:
    """Take a request back: its VMs are completed, those that its user has too.

    Raises :class:`NotFound`, or :class:`Forbidden` for somebody else's. To do it again changes nothing.
    """
    found = session.execute(_HOLD, {"this": identity}).first()
    if found is None:
        raise NotFound(f"no request found for request_id '{identity}'")
    check_owner(f"request {identity}", found.owner, caller)
    if found.state != RequestState.DELETED:
        _complete(session, identity, "its request was deleted")
        _end(session, identity, RequestState.DELETED, "The request has been deleted")


def finish(session: Session, most: int = 100) -> int:
    """End the requests whose VMs are all there, and those whose time is over; gives how many it ended.

    For the engine, which gives each VM of a request to its user as soon as it is ready.
    """
    ended = 0
    now = clock.now()
    for found in session.execute(_MAYBE_OVER, {"now": now, "most": most}).all():
        vms = session.execute(_VMS, {"this": found.id}).all()
        wanted = sum(part["count"] for parts in found.wanted.values() for part in parts)
        if len(vms) >= wanted:
            _end(session, found.id, RequestState.READY, None)
        elif found.deadline <= now:
            minutes = round((found.deadline - found.created).total_seconds() / 60, 1)
            _complete(session, found.id, "its request has failed")
            why = f"The request failed to provision instances within {minutes:g} minutes"
            _end(session, found.id, RequestState.FAILED, why)
        else:
            continue
        ended += 1
    return ended


def _complete(session: Session, identity: str, why: str) -> None:
    values = {"this": identity, "now": clock.now(), "why": why}
    session.execute(_COMPLETE_VMS, values | parts_values(session, MOST))


def _end(session: Session, identity: str, to: RequestState, why: str | None) -> None:
    part = part_values(session, f"vm_request.{to}", f"vm_requests/{identity}")
    session.execute(_END, {"this": identity, "to": to, "why_request": why, "now": clock.now(), **part})

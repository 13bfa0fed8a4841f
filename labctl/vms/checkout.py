"""Giving ready VMs out: as many as are asked for or none, none of them twice, and nobody waits for a lock.

There are no deadlocks here: VMs are taken FOR UPDATE SKIP LOCKED, which never waits, and after that nothing else is
locked but the row of the token (by its foreign key), which nobody holds who then wants a VM that is ready.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Text,
    any_,
    bindparam,
    column,
    func,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import PREPARED, Lock, Reader, table
from labctl.errors import Exhausted, Unavailable
from labctl.events.service import as_parts, parts_values
from labctl.vms.catalog import Asked, deal, share_pools
from labctl.vms.models import VM
from labctl.vms.service import Caller, Terms, due_of, token_may_be_gone
from labctl.vms.states import VMState

#: For how long :func:`patiently` tries to get VMs that are ready, but held by others at that moment, in seconds.
PATIENCE = 1.0

#: VMs that were given out: by the name they were asked for, rows with ``name``, ``pool`` and ``domain``.
Given = dict[str, list[Any]]
Result = TypeVar("Result")


class Contended(Unavailable):
    """Enough is ready, but others hold it at the moment."""


# Built once: putting a statement together costs as much as sending it. States stand in it as they are, not as
# parameters, or a prepared statement could not use an index of the ready ones.
_vms = table(VM)
_ready = _vms.c.state == literal_column(f"'{VMState.READY}'")
_wanted = (
    func.jsonb_to_recordset(bindparam("wanted", type_=JSONB))
    .table_valued(column("pools", ARRAY(Text)), column("count", Integer), name="wanted")
    .render_derived(with_types=True)
)
_pool = func.unnest(_wanted.c.pools).table_valued(column("name", Text), name="pool").render_derived()
#: The first of a pool, then the first of a name, which may stand for several pools.
_of_pool = (
    select(_vms.c.id, _vms.c.pool)
    .where(_vms.c.pool == _pool.c.name, _ready)
    .order_by(_vms.c.ready, _vms.c.id)
    .limit(_wanted.c.count)
    .with_for_update(skip_locked=True, key_share=True)
    .lateral("of_pool")
)
_of_name = (
    select(_of_pool.c.id, _of_pool.c.pool)
    .select_from(_pool.join(_of_pool, true()))
    .limit(_wanted.c.count)
    .lateral("of_name")
)
_picked = select(_of_name.c.id, _of_name.c.pool).select_from(_wanted.join(_of_name, true()))


def _give(*which: Any) -> Any:
    """Make the statement that gives VMs out, records it, and answers which they are."""
    given = (
        update(_vms)
        .where(*which)
        .values(
            {
                "state": literal_column(f"'{VMState.RUNNING}'"),
                **{
                    name: bindparam(f"new_{name}", type_=_vms.c[name].type)
                    for name in ("checkout", "lifetime", "expires", "due", "owner", "token_id", "address")
                },
                "failures": literal_column("0"),
                # An engine that is just looking at it must not change it afterwards.
                **dict.fromkeys(("warned", "reason", "lease_holder", "lease_until"), null()),
            }
        )
        .returning(*(_vms.c[name] for name in ("name", "pool", "domain", "lifetime", "owner")))
        .cte("given")
    )
    about = {name: given.c[name] for name in ("pool", "owner", "lifetime")}
    event = as_parts("vm.checked_out", given, literal_column("'vms/'", Text) + given.c.name, **about)
    return select(given.c.name, given.c.pool, given.c.domain).add_cte(event).execution_options(**PREPARED)


_first = _picked.cte("picked")
_TAKE = _give(
    _vms.c.id == any_(func.array(select(_first.c.id).scalar_subquery())),
    # All or nothing.
    select(func.count()).select_from(_first).scalar_subquery() == bindparam("total", type_=BigInteger),
)
_PICK = _picked.execution_options(**PREPARED)
_TAKE_THESE = _give(_vms.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger))))
_COUNT = (
    select(_vms.c.pool, func.count().label("ready"))
    .where(_vms.c.pool == any_(bindparam("pools", type_=ARRAY(Text))), _ready)
    .group_by(_vms.c.pool)
)
# Who tries again does so alone, or two who want nearly everything would take it from each other for ever.
_BE_ALONE = select(func.pg_try_advisory_xact_lock(int(Lock.CHECKOUT), 0))


def checkout(session: Session, asked: Sequence[Asked], caller: Caller, terms: Terms, *, alone: bool = False) -> Given:
    """Give VMs to ``caller``, all that are ``asked`` for or none.

    Raises :class:`Exhausted` when too few are ready, :class:`Contended` when enough are and somebody holds them. Either
    must undo the transaction, which may hold some. ``alone`` is for those who try again: see :func:`patiently`.
    """
    if not asked:
        return {}
    if alone and not session.execute(_BE_ALONE).scalar():
        raise Contended(retry_after=1)
    take = _take_shared if share_pools(asked) else _take
    with token_may_be_gone():
        given = take(session, asked, caller, terms)
    if given is None:
        raise _refusal(session, asked)
    return given


def patiently(attempt: Callable[[bool], Result]) -> Result:
    """Call ``attempt``, which opens a transaction of its own, again for a while if it raises :class:`Contended`.

    It is told whether it is to be alone. Time passes between the transactions, so that who waits holds nothing.
    """
    deadline = time.monotonic() + PATIENCE
    alone = False
    while True:
        try:
            return attempt(alone)
        except Contended:
            if time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.002, 0.02))  # noqa: S311
        alone = True


def _take(session: Session, asked: Sequence[Asked], caller: Caller, terms: Terms) -> Given | None:
    """Take VMs under names that share no pools, so that the pool of a VM tells for which name it is."""
    total = sum(each.count for each in asked)
    wanted = [{"pools": each.pools, "count": each.count} for each in asked]
    values = _values(session, total, caller, terms)
    rows = session.execute(_TAKE, {"wanted": wanted, "total": total, **values}).all()
    if len(rows) < total:
        return None
    name_of = {pool: each.name for each in asked for pool in each.pools}
    given: Given = {each.name: [] for each in asked}
    for row in rows:
        given[name_of[row.pool]].append(row)
    return given


def _take_shared(session: Session, asked: Sequence[Asked], caller: Caller, terms: Terms) -> Given | None:
    """Take VMs under names that share pools: hold what might be needed of each pool, deal it out, take that."""
    might: Counter[str] = Counter()
    for each in asked:
        might.update(dict.fromkeys(each.pools, each.count))
    # In one order, whatever the order of the names.
    wanted = [{"pools": [pool], "count": count} for pool, count in sorted(might.items())]
    held: dict[str, list[int]] = {pool: [] for pool in might}
    for row in session.execute(_PICK, {"wanted": wanted}):
        held[row.pool].append(row.id)
    dealt = deal(asked, {pool: len(ids) for pool, ids in held.items()})
    if dealt is None:
        return None
    number_of = {pool: sum(of_name.get(pool, 0) for of_name in dealt.values()) for pool in held}
    ids = [number for pool, numbers in held.items() for number in numbers[: number_of[pool]]]
    values = _values(session, len(ids), caller, terms)
    rows: dict[str, list[Any]] = {pool: [] for pool in held}
    for row in session.execute(_TAKE_THESE, {"ids": ids, **values}):
        rows[row.pool].append(row)
    return {
        name: [rows[pool].pop() for pool, count in of_name.items() for _ in range(count)]
        for name, of_name in dealt.items()
    }


def _values(session: Session, number: int, caller: Caller, terms: Terms) -> dict[str, Any]:
    now = clock.now()
    expires = now + timedelta(hours=terms.lifetime)
    return {
        "new_checkout": now,
        "new_lifetime": terms.lifetime,
        "new_expires": expires,
        "new_due": due_of(now, expires, terms.warning),
        "new_owner": caller.name,
        "new_token_id": caller.token_id,
        "new_address": caller.address,
        **parts_values(session, number),
    }


def _refusal(session: Reader, asked: Sequence[Asked]) -> Exception:
    """Tell why somebody did not get what they asked for; the rows count that others hold and may let go."""
    pools = sorted({pool for each in asked for pool in each.pools})
    ready: Mapping[str, int] = {row.pool: row.ready for row in session.execute(_COUNT, {"pools": pools})}
    if deal(asked, ready) is not None:
        return Contended(retry_after=1)
    for each in asked:
        number = sum(ready.get(pool, 0) for pool in each.pools)
        if number < each.count:
            return Exhausted(f"{each.name}: only {number} of the {each.count} VMs that are wanted are ready")
    names = ", ".join(each.name for each in asked)
    return Exhausted(f"too few VMs are ready for all of {names}, which share pools")

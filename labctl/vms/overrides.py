"""Changing pools at run time: their sizes, templates and clone targets, kept in the database; and emptying them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ARRAY, Text, any_, bindparam, column, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Reader, table
from labctl.events.service import record_all
from labctl.pools import Pool
from labctl.vms.models import VM, PoolState
from labctl.vms.states import VMState

#: What can be changed.
Field = Literal["size", "template", "clone_target"]

_vms = table(VM)
_pool_states = table(PoolState)
_pools = bindparam("pools", type_=ARRAY(Text))
_FIND = select(*(_pool_states.c[name] for name in ("pool", "size", "template", "clone_target"))).where(
    _pool_states.c.pool == any_(_pools)
)
# Another template starts afresh: what was wrong with the old one is over.
_AFRESH: dict[str, Any] = {"failures": 0, "blocked_until": None, "reason": None}


def _change(field: Field) -> Any:
    """Make the statement that changes one thing of several pools, in the order of their names."""
    of_type = _pool_states.c[field].type
    rows = (
        func.jsonb_to_recordset(bindparam("changes", type_=JSONB))
        .table_valued(column("pool", Text), column("value", of_type), name="changes")
        .render_derived(with_types=True)
    )
    add = upsert(_pool_states).from_select(["pool", field], select(rows.c.pool, rows.c.value).order_by(rows.c.pool))
    instead = {field: add.excluded[field], **(_AFRESH if field == "template" else {})}
    return add.on_conflict_do_update(index_elements=["pool"], set_=instead)


_CHANGE = {name: _change(name) for name in ("size", "template", "clone_target")}
#: Those that nobody has and nobody has asked for by a request.
_idle = (
    select(_vms.c.id)
    .where(
        _vms.c.pool == any_(_pools),
        _vms.c.state.in_((VMState.REQUESTED, VMState.PENDING, VMState.READY)),
        _vms.c.request_id.is_(None),
    )
    .order_by(_vms.c.id)
    # Somebody may be taking them at this moment, and is not to be waited for.
    .with_for_update(skip_locked=True, key_share=True)
    .cte("idle")
)
_now = bindparam("now", type_=_vms.c.due.type)
_EMPTY = (
    update(_vms)
    .where(_vms.c.id.in_(select(_idle.c.id)))
    .values(
        state=literal_column(f"'{VMState.COMPLETED}'"),
        completed=_now,
        due=_now,
        failures=0,
        reason="its pool was reset",
    )
)


def value(pool: Pool, state: Any, field: Field) -> Any:
    """Give what holds for a pool: what was changed at run time (``state``, a row, or None), or what is configured."""
    changed = None if state is None else getattr(state, field)
    return configured(pool, field) if changed is None else changed


def configured(pool: Pool, field: Field) -> Any:
    """Give what the configuration says of a pool."""
    return pool.template or pool.name if field == "template" else getattr(pool, field)


def change(session: Session, field: Field, pools: Sequence[Pool], values: Mapping[str, Any]) -> bool:
    """Change one thing of some pools; tells whether that is a change. The engine makes the VMs follow."""
    states = _find(session, [pool.name for pool in pools])
    changes = {
        pool.name: values[pool.name] for pool in pools if values[pool.name] != value(pool, states.get(pool.name), field)
    }
    _apply(session, field, changes)
    return bool(changes)


def reset(session: Session, field: Field, pool: Pool) -> tuple[Any, Any]:
    """Let the configuration hold for a pool again; gives what held before and what holds now."""
    state = _find(session, [pool.name]).get(pool.name)
    before, after = value(pool, state, field), configured(pool, field)
    if state is not None and getattr(state, field) is not None:
        _apply(session, field, {pool.name: None})
    return before, after


def empty(session: Session, pools: Sequence[str]) -> None:
    """Have all VMs of some pools replaced that nobody has."""
    session.execute(_EMPTY, {"pools": list(pools), "now": clock.now()})
    record_all(session, [("pool.emptied", f"pools/{pool}", {}) for pool in pools])


def _find(session: Reader, pools: list[str]) -> dict[str, Any]:
    return {row.pool: row for row in session.execute(_FIND, {"pools": pools})}


def _apply(session: Session, field: Field, changes: Mapping[str, Any]) -> None:
    if changes:
        rows = [{"pool": pool, "value": new} for pool, new in changes.items()]
        session.execute(_CHANGE[field], {"changes": rows})
        record_all(session, [("pool.changed", f"pools/{pool}", {field: new}) for pool, new in changes.items()])

"""The verbs of storage nodes: registering and removing them, noting how they are, and whose turn it is.

Whoever changes several nodes locks them in the order of their hosts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    DateTime,
    FromClause,
    Integer,
    Text,
    all_,
    and_,
    any_,
    bindparam,
    case,
    column,
    delete,
    false,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.errors import NotFound
from labctl.events.service import record, record_all
from labctl.nodes.models import StorageNode

_Time = DateTime(timezone=True)

# Built once: putting a statement together costs as much as sending it.
_nodes = table(StorageNode)
_host = bindparam("node", type_=Text)
_now = bindparam("now", type_=_Time)
_retries = bindparam("retries", type_=Integer)
_well = bindparam("well", type_=Boolean)

_ALL = select(*(_nodes.c[name] for name in ("host", "last_used", "last_check", "healthy", "down_count")))
_ALL = _ALL.order_by(_nodes.c.host)
_FIND = _ALL.where(_nodes.c.host == _host)
_REMOVE = delete(_nodes).where(_nodes.c.host == _host).returning(_nodes.c.host)

# Its own registering. A node that has been found well since this check began is not put out by it.
_held_one = (
    select(_nodes.c.host, _nodes.c.healthy).where(_nodes.c.host == _host).with_for_update(key_share=True).cte("held")
)
_NOTE_ONE = (
    update(_nodes)
    .where(
        _nodes.c.host == _held_one.c.host,
        or_(_well, func.greatest(_nodes.c.last_check, _nodes.c.last_used) <= bindparam("began", type_=_Time)),
    )
    .values(last_check=_now, healthy=_well, down_count=case((_well, 0), else_=_nodes.c.down_count))
    .returning(_held_one.c.healthy)
)
_ADD = (
    insert(_nodes)
    .values(host=_host, last_check=_now, healthy=_well)
    .on_conflict_do_nothing(index_elements=["host"])
    .returning(_nodes.c.host)
)


def _given(**columns: Any) -> Any:
    """Make a table of parameters that are lists of equal length, one for each column."""
    lists = [bindparam(name, type_=ARRAY(kind)) for name, kind in columns.items()]
    typed = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*lists).table_valued(*typed, name="given").render_derived()


# A look at all of them. Who was found out about since they were read is left as it is.
_looked = _given(node=Text, well=Boolean, was_healthy=Boolean, was_down_count=Integer, was_last_check=_Time)
_held_all = (
    select(_nodes.c.host, _nodes.c.healthy, _looked.c.well)
    .join(_looked, _nodes.c.host == _looked.c.node)
    .where(
        _nodes.c.healthy == _looked.c.was_healthy,
        _nodes.c.down_count == _looked.c.was_down_count,
        _nodes.c.last_check.is_not_distinct_from(_looked.c.was_last_check),
    )
    .order_by(_nodes.c.host)
    .with_for_update(of=_nodes, key_share=True)
    .cte("held")
)
_NOTE_ALL = (
    update(_nodes)
    .where(_nodes.c.host == _held_all.c.host)
    .values(
        last_check=_now,
        healthy=or_(_held_all.c.well, and_(_nodes.c.healthy, _nodes.c.down_count + 1 < _retries)),
        down_count=case((_held_all.c.well, 0), (_nodes.c.healthy, _nodes.c.down_count + 1), else_=_nodes.c.down_count),
    )
    .returning(_nodes.c.host, _nodes.c.healthy, _held_all.c.healthy.label("was_healthy"))
)

# Whose turn it is: of those that nobody has claimed the least recently used; where all are claimed, they are shared,
# the one whose claim is the oldest first, so that those who ask spread over all nodes.
_BE_ALONE = select(func.pg_advisory_xact_lock(int(Lock.NEXT_NODE), 0))


def _eligible(nodes: FromClause) -> Any:
    return and_(nodes.c.healthy, nodes.c.host != all_(bindparam("claimed", type_=ARRAY(Text))))


def _claimed_until(nodes: FromClause) -> Any:
    """Give the end of the claim that somebody has on a node, null if nobody has one."""
    return case((nodes.c.claimed_until > _now, nodes.c.claimed_until))


_other = _nodes.alias("other")
_one_is_free = select(_other.c.host).where(_eligible(_other), _claimed_until(_other).is_(None)).exists()
_place = func.row_number().over(order_by=[_claimed_until(_nodes).nulls_first(), _nodes.c.last_used, _nodes.c.host])
_picked = (
    select(_nodes.c.host, _place.label("place"))
    .where(_eligible(_nodes), or_(_claimed_until(_nodes).is_(None), ~_one_is_free))
    .order_by("place")
    .limit(bindparam("count", type_=Integer))
    .cte("picked")
)
_held_picked = (
    select(_nodes.c.host)
    .join(_picked, _nodes.c.host == _picked.c.host)
    # It may have gone out, or away, while somebody else held it.
    .where(_nodes.c.healthy)
    .order_by(_nodes.c.host)
    .with_for_update(of=_nodes, key_share=True)
    .cte("held")
)
_claimed = (
    update(_nodes)
    .where(_nodes.c.host == _held_picked.c.host)
    .values(claimed_until=bindparam("until", type_=_Time))
    .returning(_nodes.c.host, _nodes.c.down_count, _nodes.c.claimed_until)
    .cte("claimed")
)
_CLAIM = select(_claimed).select_from(_picked.outerjoin(_claimed, _claimed.c.host == _picked.c.host)).order_by("place")

# The end of a turn. Of several who find a node down at once, one counts.
_tried = _given(node=Text, was_down_count=Integer, until=_Time)
_held_tried = (
    select(_nodes.c.host, _nodes.c.healthy, _tried.c.was_down_count, _tried.c.until)
    .join(_tried, _nodes.c.host == _tried.c.node)
    .order_by(_nodes.c.host)
    .with_for_update(of=_nodes, key_share=True)
    .cte("held")
)
_taken = func.coalesce(_nodes.c.host == bindparam("taken", type_=Text), false())
_counts = and_(
    _nodes.c.host == any_(bindparam("failed", type_=ARRAY(Text))),
    _nodes.c.healthy,
    _nodes.c.down_count == _held_tried.c.was_down_count,
)
_END = (
    update(_nodes)
    .where(_nodes.c.host == _held_tried.c.host)
    .values(
        last_used=case((_taken, _now), else_=_nodes.c.last_used),
        healthy=case((_taken, true()), (_counts, _nodes.c.down_count + 1 < _retries), else_=_nodes.c.healthy),
        down_count=case((_taken, 0), (_counts, _nodes.c.down_count + 1), else_=_nodes.c.down_count),
        # Not a claim of somebody who shares the node, or who got it when this one's time was over.
        claimed_until=func.nullif(_nodes.c.claimed_until, _held_tried.c.until),
    )
    .returning(_nodes.c.host, _nodes.c.healthy, _held_tried.c.healthy.label("was_healthy"))
)


def listed(session: Reader) -> Sequence[Mapping[Any, Any]]:
    """List all nodes by their hosts."""
    return session.execute(_ALL).mappings().all()


def find(session: Reader, host: str) -> Mapping[Any, Any]:
    """Give a node; raises :class:`NotFound`."""
    node = session.execute(_FIND, {"node": host}).mappings().first()
    if node is None:
        raise NotFound("there is no such storage node")
    return node


def remove(session: Session, host: str) -> None:
    """Remove a node, which is not given out any more; raises :class:`NotFound`."""
    if session.execute(_REMOVE, {"node": host}).first() is None:
        raise NotFound("there is no such storage node")
    record(session, "node.removed", f"nodes/{host}")


def register(session: Session, host: str, trouble: str | None, began: datetime) -> None:
    """Add a node, or note how a known one is: well, or out at once if a check that ``began`` then found trouble."""
    values = {"node": host, "now": clock.now(), "well": trouble is None}
    was_healthy: bool | None = session.execute(_NOTE_ONE, {**values, "began": began}).scalar()
    if was_healthy is not None:
        _record_changes(session, {host: (was_healthy, trouble is None)}, {host: trouble})
    elif session.execute(_ADD, values).first() is not None:
        record(session, "node.added", f"nodes/{host}", healthy=trouble is None, reason=trouble)


def note(
    session: Session, nodes: Sequence[Mapping[Any, Any]], troubles: Mapping[str, str | None], retries: int
) -> dict[str, bool]:
    """Note what a check of ``nodes``, as they were listed before it, has found; gives who went out or came back.

    A node is out after ``retries`` failures in a row, and in again with the first success.
    """
    looked = {
        "node": [node["host"] for node in nodes],
        "well": [troubles[node["host"]] is None for node in nodes],
        **{f"was_{name}": [node[name] for node in nodes] for name in ("healthy", "down_count", "last_check")},
    }
    rows = session.execute(_NOTE_ALL, {**looked, "now": clock.now(), "retries": retries})
    return _record_changes(session, {row.host: (row.was_healthy, row.healthy) for row in rows}, troubles)


@dataclass
class Turn:
    """One request for the next node: its claims end by themselves after some seconds, whatever becomes of it."""

    seconds: float
    #: The nodes that it has claimed: how many checks of each had failed by then, and until when the claim lasts.
    claimed: dict[str, tuple[int, datetime]] = field(default_factory=dict)


def claim(session: Session, turn: Turn, count: int) -> list[str] | None:
    """Claim up to ``count`` more healthy nodes, the one whose turn it is first.

    Nobody else gets them before this turn has ended, unless all nodes are claimed: then all is shared. None: the nodes
    whose turn it was have gone at that moment, so that the transaction must end (it holds their rows, and who tries
    again may have to wait for others) and another one claim.
    """
    session.execute(_BE_ALONE)
    # The time is taken by who is alone, so that a later claim lasts longer.
    now = clock.now()
    until = now + timedelta(seconds=turn.seconds)
    values = {"claimed": list(turn.claimed), "count": count, "now": now, "until": until}
    rows = session.execute(_CLAIM, values).all()
    claimed = {row.host: (row.down_count, row.claimed_until) for row in rows if row.host is not None}
    turn.claimed |= claimed
    return None if rows and not claimed else list(claimed)


def end(session: Session, turn: Turn, taken: str | None, failed: Mapping[str, str], retries: int) -> bool:
    """Give ``taken`` out, count the failures of others, and let go of what was claimed.

    Tells whether ``taken`` is still there to be given out.
    """
    if not turn.claimed:
        return False
    values = {
        "node": list(turn.claimed),
        "was_down_count": [down_count for down_count, _ in turn.claimed.values()],
        "until": [until for _, until in turn.claimed.values()],
        "taken": taken,
        "failed": list(failed),
        "now": clock.now(),
        "retries": retries,
    }
    rows = {row.host: (row.was_healthy, row.healthy) for row in session.execute(_END, values)}
    _record_changes(session, rows, failed)
    return taken in rows


def _record_changes(
    session: Session, rows: Mapping[str, tuple[bool, bool]], troubles: Mapping[str, str | None]
) -> dict[str, bool]:
    """Record who of these, with how they were and are, went out or came back; gives how those are now."""
    changed = {host: healthy for host, (was_healthy, healthy) in sorted(rows.items()) if healthy != was_healthy}
    if changed:
        record_all(
            session,
            [
                ("node.healthy", f"nodes/{host}", {})
                if healthy
                else ("node.unhealthy", f"nodes/{host}", {"reason": troubles.get(host)})
                for host, healthy in changed.items()
            ],
        )
    return changed

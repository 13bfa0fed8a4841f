"""Recording what happened, and forgetting it after its time."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Text,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import LABCTL, PREPARED, Actor, table
from labctl.events.models import Event

#: How many numbers one transaction has for its events; with 2**37 transactions they stay exact in JSON.
PER_TRANSACTION = 1 << 16


# Of the database, not from Python: only it knows the transaction's id.
_BASE = cast(cast(func.pg_current_xact_id(), Text), BigInteger) * PER_TRANSACTION
_events = table(Event)
_SAME = ("at", "actor", "request_id")
_same = {name: bindparam(f"event_{name}", type_=_events.c[name].type) for name in _SAME}
_one = {
    "seq": _BASE + bindparam("event_count", type_=BigInteger),
    **{name: bindparam(f"event_{name}", type_=_events.c[name].type) for name in ("kind", "subject", "data")},
    **_same,
}
_INSERT = insert(_events).values(_one).execution_options(**PREPARED)
_rows = (
    func.jsonb_to_recordset(bindparam("events", type_=JSONB))
    .table_valued(
        column("count", BigInteger), column("kind", Text), column("subject", Text), column("data", JSONB), name="given"
    )
    .render_derived(with_types=True)
)
_INSERT_ALL = insert(_events).from_select(
    ["seq", "kind", "subject", "data", *_SAME],
    select(_BASE + _rows.c.count, _rows.c.kind, _rows.c.subject, _rows.c.data, *_same.values()),
)


def record(session: Session, kind: str, subject: str, **data: Any) -> None:
    """Write one event into the session's transaction, in one statement; ``data`` must be JSON."""
    session.execute(_INSERT, part_values(session, kind, subject, **data))


def record_all(session: Session, happened: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Write several events, each a kind, a subject and data, in one statement."""
    rows = [
        {"count": _count(session), "kind": kind, "subject": subject, "data": data} for kind, subject, data in happened
    ]
    session.execute(_INSERT_ALL, {"events": rows, **_same_values(session)})


def as_part(*conditions: ColumnElement[bool]) -> CTE:
    """Give the insertion of one event as a part of another statement, for changes that come by the thousand.

    With conditions, the event is recorded only where they hold: that the rest of the statement did something.
    """
    return insert(_events).from_select(list(_one), select(*_one.values()).where(*conditions)).cte("event")


def part_values(session: Session, kind: str, subject: str, **data: Any) -> dict[str, Any]:
    """Give the parameters of :func:`as_part`; their names begin with ``event_``."""
    return {
        "event_count": _count(session),
        "event_kind": kind,
        "event_subject": subject,
        "event_data": data,
        **_same_values(session),
    }


def as_parts(kind: str, rows: FromClause, subject: ColumnElement[str], **data: ColumnElement[Any]) -> CTE:
    """Give the insertion of one event for each of the ``rows`` that another part of the same statement has changed."""
    number = _one["seq"] + func.row_number().over() - literal_column("1")
    pairs = (part for key, value in data.items() for part in (literal_column(f"'{key}'"), value))
    values = (number, literal_column(f"'{kind}'", Text), subject, func.jsonb_build_object(*pairs), *_same.values())
    return insert(_events).from_select(list(_one), select(*values).select_from(rows)).cte("event")


def parts_values(session: Session, most: int) -> dict[str, Any]:
    """Give the parameters of :func:`as_parts` for ``most`` rows or fewer; their names begin with ``event_``."""
    return {"event_count": _count(session, most), **_same_values(session)}


def _same_values(session: Session) -> dict[str, Any]:
    actor: Actor = session.info.get("actor", LABCTL)
    return {"event_at": clock.now(), "event_actor": actor.name, "event_request_id": actor.request_id}


def _count(session: Session, number: int = 1) -> int:
    """Count events on the session's connection, so that the numbers within one transaction differ and grow.

    Gives the first of ``number`` numbers.
    """
    info = session.connection().info
    if "event_count_of" not in session.info:
        session.info["event_count_of"] = True
        if info.get("event_count", 0) > PER_TRANSACTION // 2:
            info["event_count"] = 0
    first = int(info.get("event_count", -1)) + 1
    info["event_count"] = first + number - 1
    return first


def purge(session: Session, before: datetime, batch: int) -> int:
    """Delete up to ``batch`` of the oldest events if they are older than ``before``; gives how many there were."""
    oldest = select(Event.seq, Event.at).order_by(Event.seq).limit(batch).subquery()
    result = session.execute(delete(Event).where(Event.seq.in_(select(oldest.c.seq).where(oldest.c.at < before))))
    return int(result.rowcount)  # type: ignore[attr-defined]

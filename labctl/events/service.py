"""Recording what happened, and forgetting it after its time."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Text, bindparam, cast, delete, func, insert, select
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import LABCTL, Actor
from labctl.events.models import Event

#: How many numbers one transaction has for its events; with 2**37 transactions they stay exact in JSON.
PER_TRANSACTION = 1 << 16


# Of the database, not from Python: only it knows the transaction's id.
_BASE = cast(cast(func.pg_current_xact_id(), Text), BigInteger) * PER_TRANSACTION
_events = Event.__table__
# Built once: putting a statement together costs as much as sending it.
_INSERT = insert(_events).values(seq=_BASE + bindparam("count", type_=BigInteger))


def record(session: Session, kind: str, subject: str, **data: Any) -> None:
    """Write one event into the session's transaction, in one statement; ``data`` must be JSON."""
    values = _values(session, kind, subject, data)
    session.execute(_INSERT, values)


def record_all(session: Session, happened: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Write several events, each a kind, a subject and data, in one statement."""
    rows = [_values(session, *event) for event in happened]
    session.execute(insert(_events).values([{"seq": _BASE + row.pop("count"), **row} for row in rows]))


def _values(session: Session, kind: str, subject: str, data: dict[str, Any]) -> dict[str, Any]:
    actor: Actor = session.info.get("actor", LABCTL)
    return {
        "count": _count(session),
        "at": clock.now(),
        "kind": kind,
        "subject": subject,
        "actor": actor.name,
        "request_id": actor.request_id,
        "data": data,
    }


def _count(session: Session) -> int:
    """Count events on the session's connection; what matters is that the numbers within one transaction differ and grow."""
    info = session.connection().info
    if "event_count_of" not in session.info:
        session.info["event_count_of"] = True
        if info.get("event_count", 0) > PER_TRANSACTION // 2:
            info["event_count"] = 0
    info["event_count"] = info.get("event_count", -1) + 1
    return int(info["event_count"])


def purge(session: Session, before: datetime, batch: int) -> int:
    """Delete up to ``batch`` of the oldest events if they are older than ``before``; gives how many there were."""
    oldest = select(Event.seq, Event.at).order_by(Event.seq).limit(batch).subquery()
    result = session.execute(delete(Event).where(Event.seq.in_(select(oldest.c.seq).where(oldest.c.at < before))))
    return int(result.rowcount)  # type: ignore[attr-defined]

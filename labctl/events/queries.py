"""Following the log of events."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Row, Text, cast, func, select

from labctl.db import Reader, table
from labctl.events.models import Event
from labctl.events.service import PER_TRANSACTION


def after(
    session: Reader, seq: int, *, kind: str | None = None, subject: str | None = None, limit: int = 100
) -> Sequence[Row[Any]]:
    """List events with a number above ``seq``, in order; a reader that goes on from the last number misses none.

    Transactions commit in another order than they begin, so an event with a lower number may appear after one with a
    higher number. Only events of transactions that are older than every one still running are given: no number below
    them can appear any more.
    """
    horizon = cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger) * PER_TRANSACTION
    query = select(table(Event)).where(Event.seq > seq, Event.seq < horizon).order_by(Event.seq).limit(limit)
    if kind is not None:
        query = query.where(Event.kind == kind)
    if subject is not None:
        query = query.where(Event.subject == subject)
    return session.execute(query).all()

"""Fenced leases: a row is somebody's for a while, and whoever lost it can no longer change it.

Work that may be interrupted anywhere, or continued after it was given up for dead, takes a lease on its row: a holder,
an end, and an attempt that grows with every claim. Each later change names holder and attempt in its WHERE, so that a
process which comes back too late changes nothing.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, and_
from sqlalchemy.orm import Mapped, mapped_column

from labctl import clock


class Leased:
    """The columns of a lease, for a table whose rows are worked on."""

    lease_holder: Mapped[str | None]
    lease_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    lease_attempt: Mapped[int] = mapped_column(default=0, server_default="0")


def claim(model: type[Leased], holder: str, seconds: float) -> dict[str, Any]:
    """Give the values that make a row the holder's; the caller has it locked, or names in WHERE what it must be."""
    return {
        "lease_holder": holder,
        "lease_until": clock.now() + timedelta(seconds=seconds),
        "lease_attempt": model.lease_attempt + 1,
    }


def held(model: type[Leased], holder: str, attempt: int) -> ColumnElement[bool]:
    """Give the condition that the claim numbered ``attempt`` is still the holder's."""
    return and_(model.lease_holder == holder, model.lease_attempt == attempt, model.lease_until > clock.now())


#: The values that end a lease; the attempt stays, so that an old claim never fits again.
FREE: dict[str, Any] = {"lease_holder": None, "lease_until": None}

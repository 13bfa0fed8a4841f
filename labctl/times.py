"""How the older protocols spell times."""

from datetime import UTC, datetime


def to_wire(time: datetime | None) -> str | None:
    """Write a time as ``YYYY-MM-DD HH:MM:SS[.ffffff]``, UTC without zone."""
    return None if time is None else str(time.astimezone(UTC).replace(tzinfo=None))

"""How the older protocols spell times."""

from datetime import UTC, datetime


def to_wire(time: datetime | None) -> str | None:
    """Write a time as ``YYYY-MM-DD HH:MM:SS[.ffffff]``, UTC without zone."""
    return None if time is None else str(time.astimezone(UTC).replace(tzinfo=None))


def to_wire_with_offset(time: datetime) -> str:
    """Write a time as ``YYYY-MM-DD HH:MM:SS +0000``."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")

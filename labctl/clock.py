"""The one clock, so that tests can stop it."""

from datetime import UTC, datetime


def now() -> datetime:
    """Give the present time, aware, in UTC."""
    return datetime.now(UTC)

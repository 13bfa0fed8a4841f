"""Forgetting what is old, a batch in a transaction, so that nobody waits long for what that locks."""

import logging
from collections.abc import Callable
from datetime import timedelta

from labctl import clock
from labctl.db import transaction

log = logging.getLogger(__name__)

BATCH = 1000


def purge(what: str, days: float, some: Callable[..., int], *, batch: int = BATCH) -> None:
    """Have ``some(session, before, batch)`` forget up to so many things older than so many days until none is left.

    It gives how many it has forgotten; ``what`` is their word in the log.
    """
    before = clock.now() - timedelta(days=days)
    total = 0
    deleted = batch
    while deleted == batch:
        with transaction() as session:
            deleted = some(session, before, batch)
        total += deleted
    if total:
        log.info(f"{what}_purged", extra={"count": total})

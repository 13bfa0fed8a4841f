"""Forgetting events whose time is over."""

import logging
from datetime import timedelta

from labctl import clock
from labctl.db import transaction
from labctl.events import service
from labctl.queue import task
from labctl.settings import Settings

log = logging.getLogger(__name__)

BATCH = 5000


@task("events.purge", cron="*/10 * * * *")
def purge(settings: Settings) -> None:
    """Delete events older than ``events_keep_days``, a batch in a transaction."""
    before = clock.now() - timedelta(days=settings.events_keep_days)
    total = 0
    deleted = BATCH
    while deleted == BATCH:
        with transaction() as session:
            deleted = service.purge(session, before, BATCH)
        total += deleted
    if total:
        log.info("events_purged", extra={"count": total})

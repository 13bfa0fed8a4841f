"""Waking the runner of a worker process, and forgetting jobs that ended long ago."""

import logging
from collections.abc import Callable
from datetime import timedelta

from labctl import clock
from labctl.db import transaction
from labctl.queue import task
from labctl.remote import running
from labctl.settings import Settings

log = logging.getLogger(__name__)

#: Jobs of one transaction; each may have much output.
BATCH = 50

#: What wakes the runners of this process; there is one at the most, and in a web process none.
wakes: list[Callable[[], None]] = []


@task("remote.wake")
def wake(settings: Settings) -> None:
    """Have the runner of this process look for jobs now; all others do within a second."""
    for call in tuple(wakes):
        call()


@task("remote.purge", cron="*/10 * * * *")
def purge(settings: Settings) -> None:
    """Delete jobs that ended more than ``remote_keep_days`` ago, a batch in a transaction."""
    before = clock.now() - timedelta(days=settings.remote_keep_days)
    total = 0
    deleted = BATCH
    while deleted == BATCH:
        with transaction() as session:
            deleted = running.purge(session, before, BATCH)
        total += deleted
    if total:
        log.info("remote_jobs_purged", extra={"count": total})

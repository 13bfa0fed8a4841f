"""Looking after jobs that nobody speaks of any more."""

import logging
from datetime import timedelta

from labctl import clock
from labctl.db import transaction
from labctl.queue import task
from labctl.runs import queues
from labctl.settings import Settings

log = logging.getLogger(__name__)


@task("runs.requeue_abandoned", cron="* * * * * */5")
def requeue_abandoned(settings: Settings) -> None:
    """Queue the jobs again whose dispatchers have let their claims run out."""
    found = True
    while found:
        with transaction() as session:
            found = queues.requeue_abandoned(session)
        if found:
            log.warning("job_requeued", extra={"reason": "its dispatcher was silent"})


@task("runs.bury_silent", cron="* * * * *")
def bury_silent(settings: Settings) -> None:
    """Mark the jobs dead that have run without an update for ``job_dead_after`` hours, if that is set."""
    if not settings.job_dead_after:
        return
    before = clock.now() - timedelta(hours=settings.job_dead_after)
    found = True
    while found:
        with transaction() as session:
            found = queues.bury_silent(session, before)
        if found:
            log.warning("job_buried", extra={"reason": f"not updated for {settings.job_dead_after} hours"})

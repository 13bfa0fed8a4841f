"""Looking after jobs that nobody speaks of any more."""

import logging
from datetime import timedelta

from labctl import clock
from labctl.db import transaction
from labctl.queue import task
from labctl.runs import service
from labctl.settings import Settings

log = logging.getLogger(__name__)


@task("runs.bury_silent", cron="* * * * *")
def bury_silent(settings: Settings) -> None:
    """Mark the jobs dead that have run without an update for ``job_dead_after`` hours, if that is set."""
    if not settings.job_dead_after:
        return
    before = clock.now() - timedelta(hours=settings.job_dead_after)
    found = True
    while found:
        with transaction() as session:
            found = service.bury_silent(session, before)
        if found:
            log.warning("job_buried", extra={"reason": f"not updated for {settings.job_dead_after} hours"})

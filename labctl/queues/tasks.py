"""Looking after claimed jobs whose dispatchers are silent."""

import logging

from labctl.db import transaction
from labctl.queue import task
from labctl.queues import service
from labctl.settings import Settings

log = logging.getLogger(__name__)


@task("queues.requeue_abandoned", cron="* * * * * */5")
def requeue_abandoned(settings: Settings) -> None:
    """Queue the jobs again whose dispatchers have let their claims run out."""
    found = True
    while found:
        with transaction() as session:
            found = service.requeue_abandoned(session)
        if found:
            log.warning("job_requeued", extra={"reason": "its dispatcher was silent"})

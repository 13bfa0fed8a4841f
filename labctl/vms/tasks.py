"""Forgetting VMs that were destroyed long ago."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from labctl import clock
from labctl.db import transaction
from labctl.queue import task
from labctl.settings import Settings
from labctl.vms import upkeep

log = logging.getLogger(__name__)

BATCH = 1000


@task("vms.purge", cron="*/10 * * * *")
def purge(settings: Settings) -> None:
    """Delete VMs destroyed, and requests ended, more than ``vm_data_days`` ago, a batch in a transaction."""
    before = clock.now() - timedelta(days=settings.vm_data_days)
    for what, some in (("vms", upkeep.purge), ("vm_requests", upkeep.purge_requests)):
        if total := _purge(some, before):
            log.info("vms_purged", extra={"what": what, "count": total})


def _purge(some: Callable[..., int], before: datetime) -> int:
    total = 0
    deleted = BATCH
    while deleted == BATCH:
        with transaction() as session:
            deleted = some(session, before, BATCH)
        total += deleted
    return total

"""Forgetting VMs that were destroyed long ago."""

from labctl import purging
from labctl.queue import task
from labctl.settings import Settings
from labctl.vms import upkeep


@task("vms.purge", cron="*/10 * * * *")
def purge(settings: Settings) -> None:
    """Delete VMs destroyed, and requests ended, more than ``vm_data_days`` ago."""
    purging.purge("vms", settings.vm_data_days, upkeep.purge)
    purging.purge("vm_requests", settings.vm_data_days, upkeep.purge_requests)

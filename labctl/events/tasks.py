"""Forgetting events whose time is over."""

from labctl import purging
from labctl.events import service
from labctl.queue import task
from labctl.settings import Settings

BATCH = 5000


@task("events.purge", cron="*/10 * * * *")
def purge(settings: Settings) -> None:
    """Delete events older than ``events_keep_days``."""
    purging.purge("events", settings.events_keep_days, service.purge, batch=BATCH)

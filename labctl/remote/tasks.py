"""Waking the runner of a worker process, and forgetting jobs that ended long ago."""

from collections.abc import Callable

from labctl import purging
from labctl.queue import task
from labctl.remote import running
from labctl.settings import Settings

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
    """Delete jobs that ended more than ``remote_keep_days`` ago."""
    purging.purge("remote_jobs", settings.remote_keep_days, running.purge, batch=BATCH)

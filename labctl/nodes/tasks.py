"""Asking all storage nodes from time to time how they are, so that one that has recovered comes back by itself."""

import logging
from threading import Lock

from labctl.db import reading, transaction
from labctl.nodes import health, service
from labctl.queue import task
from labctl.settings import Settings

log = logging.getLogger(__name__)

#: Held by a look round: a slow one must not take up a worker, one place after another.
_looking = Lock()


@task("nodes.check", cron="* * * * * */10")
def check(settings: Settings) -> None:
    """Ask all nodes how they are: one that fails too often in a row goes out, one that is well comes back."""
    if not _looking.acquire(blocking=False):
        return
    try:
        with reading() as session:
            # Those that are given out first, if there are too many to be asked at once.
            nodes = sorted(service.listed(session), key=lambda node: not node["healthy"])
        if not nodes:
            return
        hosts = [node["host"] for node in nodes]
        troubles = health.check(hosts, settings.health_check_timeout, verify=settings.health_check_verify)
        # What is out, and known to be, is not worth a line each time.
        health.log_failed({node["host"]: troubles[node["host"]] for node in nodes if node["healthy"]})
        with transaction() as session:
            changed = service.note(session, nodes, troubles, settings.health_check_retries)
    finally:
        _looking.release()
    for host, healthy in changed.items():
        if healthy:
            log.info("node_back", extra={"host": host})
        else:
            log.warning("node_out", extra={"host": host, "reason": troubles[host]})

"""What a worker process runs: the background tasks of every domain, until it is told to stop."""

import asyncio
import logging
import os
import signal

from procrastinate.jobs import DeleteJobCondition

from labctl import db, queue
from labctl.events import tasks as events_tasks
from labctl.maintenance import tasks as maintenance_tasks
from labctl.maintenance.engine import Engine as Sessions
from labctl.nodes import tasks as nodes_tasks
from labctl.queues import tasks as queues_tasks
from labctl.remote import config as remote_config
from labctl.remote import tasks as remote_tasks
from labctl.remote.runner import PATIENCE as RUNNER_PATIENCE
from labctl.remote.runner import STOP_WITHIN as RUNNER_STOP_WITHIN
from labctl.remote.runner import Runner
from labctl.runs import tasks as runs_tasks
from labctl.settings import Settings, SettingsError
from labctl.vms import config as vms_config
from labctl.vms import tasks as vms_tasks
from labctl.vms.engine import PATIENCE as ENGINE_PATIENCE
from labctl.vms.engine import Engine

log = logging.getLogger(__name__)

#: Importing a domain's tasks registers them.
DOMAINS = (events_tasks, maintenance_tasks, nodes_tasks, queues_tasks, remote_tasks, runs_tasks, vms_tasks)
#: How long running tasks may take to finish when the worker is told to stop, in seconds.
PATIENCE = 25


def run(settings: Settings) -> None:
    """Run tasks, VMs, operations on hosts and maintenance until SIGTERM or SIGINT, over restarts of the database.

    Raises :class:`SettingsError` for mistakes in what the settings say of pools, providers and the executor.
    """
    mistakes, providers = vms_config.load(settings)
    if mistakes := mistakes + remote_config.fatal(settings):
        raise SettingsError("\n".join(mistakes))
    for line in remote_config.broken(settings):
        log.warning("plugin_not_used", extra={"reason": line})
    queue.configure(db.configure(settings.require_database(), pool_size=settings.worker_connections()))
    lease = float(settings.worker_stalled_after)
    engine = Engine(vms_config.rules(settings), providers, lease=lease)
    runner = Runner(
        remote_config.executor(settings),
        remote_config.tasks(settings),
        most=settings.remote_jobs,
        most_output=settings.remote_max_output,
        lease=lease,
    )
    sessions = Sessions(settings.maintenance_replies, can=vms_config.capabilities(providers))
    threads = (engine, runner, sessions)
    for thread in threads:
        thread.start()
    try:
        asyncio.run(_run(settings, threads))
    finally:
        for thread in threads:
            thread.stop()
        engine.join(ENGINE_PATIENCE + 2)
        sessions.join(ENGINE_PATIENCE + 2)
        runner.join(RUNNER_PATIENCE + RUNNER_STOP_WITHIN)


async def _run(settings: Settings, threads: tuple[Engine | Runner | Sessions, ...]) -> None:
    stop = asyncio.Event()

    def end() -> None:
        # All at once: none waits for the others.
        for thread in threads:
            thread.stop()
        queue.stopping.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    wait = 0.5
    while not stop.is_set():
        try:
            await _work(settings, stop)
            wait = 0.5
        except Exception as error:
            log.warning("worker_interrupted", extra={"reason": f"{type(error).__name__}: {error}", "again_in": wait})
        try:
            await asyncio.wait_for(stop.wait(), wait)
        except TimeoutError:
            wait = min(wait * 2, 10)
    log.info("worker_stopped")


async def _work(settings: Settings, stop: asyncio.Event) -> None:
    """Work until told to stop or until the database goes away, which ends the library's worker without an error."""
    app = queue.make_worker_app(settings)
    async with app.open_async():
        _say_ready()
        log.info("worker_started", extra={"concurrency": settings.worker_concurrency})
        working = asyncio.create_task(
            app.run_worker_async(
                concurrency=settings.worker_concurrency,
                # The default of 5 s would decide when retries and scheduled tasks start.
                fetch_job_polling_interval=1.0,
                update_heartbeat_interval=settings.worker_stalled_after / 3,
                stalled_worker_timeout=settings.worker_stalled_after,
                shutdown_graceful_timeout=PATIENCE,
                delete_jobs=DeleteJobCondition.SUCCESSFUL,
                install_signal_handlers=False,
            )
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            working.cancel()
            # With the database gone, the library would wait for a connection before it ends.
            await asyncio.wait((working,), timeout=PATIENCE + 5)
            return
        await working


def _say_ready() -> None:
    """Tell the process that started this one that the worker runs, once."""
    if fd := os.environ.pop("LABCTL_READY_FD", None):
        with os.fdopen(int(fd), "wb") as pipe:
            pipe.write(b"ready\n")

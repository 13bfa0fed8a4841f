"""A real worker: what comes round by itself, and what another worker left behind."""

import os
import signal
from collections.abc import Callable
from contextlib import closing

import psycopg2
import requests

from .lab import Up, alive, until

RUN = "scott-2026-01-02_03:04:05-rados-main-distro-default-smithi"


def claim_a_job(up: Up, job_id: int) -> None:
    job = {"job_id": job_id, "status": "queued", "queue": "smithi"}
    requests.post(f"{up.url}/runs/{RUN}/jobs/", json=job, timeout=20).raise_for_status()
    wanted = {"queue": "smithi", "worker": "a dispatcher that dies"}
    answer = requests.post(f"{up.url}/queue/pop_queue", json=wanted, timeout=20)
    assert answer.json()["job_id"] == str(job_id)


def status(up: Up, job_id: int) -> str:
    return up.get(f"/runs/{RUN}/jobs/{job_id}/").json()["status"]


def test_a_job_of_a_dead_dispatcher_is_queued_again_also_after_the_database_was_killed(
    start: Callable[..., Up], home: object
) -> None:
    up = start(home, LABCTL_JOB_LEASE="1").wait_until_ready()
    claim_a_job(up, 1)
    assert status(up, 1) == "waiting"
    until(lambda: status(up, 1) == "queued", "the worker queues the job again")

    killed = up.database
    os.kill(killed, signal.SIGKILL)
    # Its children may answer for a moment after their parent.
    until(lambda: not alive(killed) and up.find("/postgres", "-D") and up.database != killed, "another database runs")
    until(up.healthy, "the database answers")
    requests.put(f"{up.url}/runs/{RUN}/jobs/1/", json={"status": "running"}, timeout=20).raise_for_status()

    claim_a_job(up, 2)
    until(lambda: status(up, 2) == "queued", "the same worker goes on after the restart of the database")


def test_a_task_of_a_worker_that_was_killed_runs_on_another_one(start: Callable[..., Up], home: object) -> None:
    up = start(home, LABCTL_WORKER_STALLED_AFTER="5").wait_until_ready()
    url = (up.home / "database.url").read_text().strip()
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        # As a worker leaves it that is killed in the middle.
        cursor.execute(
            "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 hour') RETURNING id"
        )
        (worker,) = cursor.fetchone() or (None,)
        cursor.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, status, args, worker_id)"
            " VALUES ('default', 'runs.bury_silent', 'doing', '{\"timestamp\": 0}', %s) RETURNING id",
            (worker,),
        )
        (task,) = cursor.fetchone() or (None,)

        def done() -> bool:
            cursor.execute("SELECT count(*) FROM procrastinate_jobs WHERE id = %s", (task,))
            return cursor.fetchone() == (0,)

        until(done, "the task is requeued, succeeds and is forgotten")
    assert f"task_id={task}" in up.messages

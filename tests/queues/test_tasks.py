"""Claimed jobs whose dispatchers fell silent."""

from typing import Any

from webtest import TestApp

from labctl.queues import tasks
from labctl.settings import Settings
from tests.runs.test_tasks import statuses


def test_jobs_whose_dispatchers_were_silent_are_queued_again_and_can_be_claimed_again(
    app: TestApp, settings: Settings, stopped_clock: Any
) -> None:
    for run, job_id in (("run", 1), ("run", 2), ("another", 1), ("run", 3)):
        app.post_json(f"/runs/{run}/jobs/", {"job_id": job_id, "status": "queued", "queue": "smithi"})
    wanted = {"queue": "smithi", "worker": "w"}
    claims = [app.post_json("/queue/pop_queue", wanted).json["claim"] for _ in range(4)]
    app.put_json("/runs/run/jobs/3/", {"status": "running", "claim": claims[3]})
    stopped_clock.advance(seconds=settings.job_lease - 1)
    app.post_json("/queue/heartbeat", claims[1])
    tasks.requeue_abandoned.function(settings)
    assert statuses(app) == {"1": "waiting", "2": "waiting", "3": "running"}
    stopped_clock.advance(seconds=1)
    tasks.requeue_abandoned.function(settings)
    assert statuses(app) == {"1": "queued", "2": "waiting", "3": "running"}
    assert statuses(app, "another") == {"1": "queued"}
    again = app.post_json("/queue/pop_queue", {**wanted, "worker": "other"}).json["claim"]
    assert (again["run"], again["job_id"]) == ("run", "1")
    assert again["attempt"] > claims[0]["attempt"]
    app.post_json("/queue/heartbeat", claims[0], status=403)
    app.post_json("/queue/heartbeat", again)


def test_a_job_that_waits_without_a_claim_is_left_alone(app: TestApp, settings: Settings, stopped_clock: Any) -> None:
    app.post_json("/runs/run/jobs/", {"job_id": 1, "status": "waiting", "queue": "smithi"})
    stopped_clock.advance(days=10)
    tasks.requeue_abandoned.function(settings)
    assert statuses(app) == {"1": "waiting"}

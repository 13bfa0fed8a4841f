"""Jobs that nobody speaks of any more: claims that ran out, and runs of jobs that fell silent."""

from dataclasses import replace
from typing import Any

import pytest
from webtest import TestApp

from labctl.runs import tasks
from labctl.settings import Settings
from tests.runs.reference import assert_consistent


def statuses(app: TestApp, run: str = "run") -> dict[str, str]:
    found = app.get(f"/runs/{run}").json
    assert_consistent(found)
    return {job["job_id"]: job["status"] for job in found["jobs"]}


@pytest.fixture
def hasty(settings: Settings) -> Settings:
    """Settings under which a job that is silent for two hours is dead."""
    return replace(settings, job_dead_after=2)


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


def test_running_jobs_that_were_silent_too_long_are_dead_and_others_are_not(
    app: TestApp, hasty: Settings, stopped_clock: Any
) -> None:
    for job_id, status in enumerate(("running", "running", "queued", "waiting", "pass")):
        app.post_json("/runs/run/jobs/", {"job_id": job_id, "status": status})
    app.post_json("/runs/another/jobs/", {"job_id": 0, "status": "running"})
    stopped_clock.advance(hours=1, minutes=59)
    app.put_json("/runs/run/jobs/1/", {"owner": "ada"})
    tasks.bury_silent.function(hasty)
    assert statuses(app)["0"] == "running"
    stopped_clock.advance(minutes=2)
    tasks.bury_silent.function(hasty)
    assert statuses(app) == {"0": "dead", "1": "running", "2": "queued", "3": "waiting", "4": "pass"}
    assert statuses(app, "another") == {"0": "dead"}


def test_a_dead_job_that_reports_after_all_counts(app: TestApp, hasty: Settings, stopped_clock: Any) -> None:
    app.post_json("/runs/run/jobs/", {"job_id": 1, "status": "running"})
    stopped_clock.advance(hours=3)
    tasks.bury_silent.function(hasty)
    app.put_json("/runs/run/jobs/1/", {"success": True, "status": "pass"})
    assert app.get("/runs/run").json["status"] == "finished pass"


def test_no_job_dies_of_silence_unless_that_is_set(app: TestApp, settings: Settings, stopped_clock: Any) -> None:
    app.post_json("/runs/run/jobs/", {"job_id": 1, "status": "running"})
    stopped_clock.advance(days=1000)
    tasks.bury_silent.function(settings)
    assert statuses(app) == {"1": "running"}

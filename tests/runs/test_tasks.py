"""Running jobs that nobody speaks of any more."""

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

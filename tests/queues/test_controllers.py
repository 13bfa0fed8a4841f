"""``/queue``: pausing queues, looking into them, and taking jobs out of them."""

from typing import Any

import pytest
from webtest import TestApp

from tests.runs.reference import assert_consistent

LEASE = 120


def add_job(app: TestApp, job_id: Any, run: str = "run", **keys: Any) -> None:
    app.post_json(f"/runs/{run}/jobs/", {"job_id": job_id, "status": "queued", "queue": "smithi", **keys})


def pop(app: TestApp, worker: str = "worker") -> Any:
    return app.post_json("/queue/pop_queue", {"queue": "smithi", "worker": worker}).json


def job(app: TestApp, job_id: Any, run: str = "run") -> Any:
    return app.get(f"/runs/{run}/jobs/{job_id}/").json


@pytest.fixture(params=["/queue", "/api/queue"])
def mount(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_queue_is_added_once_and_listed(app: TestApp, mount: str) -> None:
    assert app.get(f"{mount}/").json == []
    assert app.post_json(f"{mount}/", {"queue": "smithi"}).json == {}
    assert app.post_json(f"{mount}/", {"queue": "smithi"}, status=400).json["message"] == "Queue smithi already exists"
    app.post_json(f"{mount}/", {"queue": "mira"})
    nobody = {"paused": False, "paused_by": None, "paused_since": None, "paused_until": None}
    assert app.get(f"{mount}/").json == [{"queue": "mira", **nobody}, {"queue": "smithi", **nobody}]
    assert app.get(f"{mount}/?machine_type=smithi").json == [{"queue": "smithi", **nobody}]
    assert app.get(f"{mount}/?machine_type=nosuch").json == []


def test_a_paused_queue_gives_no_jobs_until_its_time_is_over(app: TestApp, mount: str, stopped_clock: Any) -> None:
    app.post_json(f"{mount}/", {"queue": "smithi"})
    add_job(app, 1)
    assert app.put_json(f"{mount}/", {"queue": "smithi", "paused_by": "ada", "pause_duration": 60}).json == {}
    paused = {
        "queue": "smithi",
        "paused": True,
        "paused_by": "ada",
        "paused_since": "2026-01-02 03:04:05",
        "paused_until": "2026-01-02 03:05:05",
    }
    assert app.get(f"{mount}/?paused_by=ada").json == [paused]
    assert app.get(f"{mount}/?paused_by=bob").json == []
    assert app.post_json(f"{mount}/stats/", {"queue": "smithi"}).json == {**paused, "queued_jobs": 1}
    message = "queue is paused, cannot retrieve job"
    assert app.get(f"{mount}/pop_queue?queue=smithi", status=503).json == {"message": message}
    taken = app.post_json(f"{mount}/pop_queue", {"queue": "smithi", "worker": "w"}, status=503)
    assert taken.json == {"message": message}
    again = app.put_json(f"{mount}/", {"queue": "smithi", "paused_by": "bob", "pause_duration": 1}, status=403)
    assert again.json == {"message": "Cannot pause an already-paused queue"}
    stopped_clock.advance(seconds=60)
    assert app.get(f"{mount}/?paused_by=ada").json == []
    assert app.post_json(f"{mount}/stats/", {"queue": "smithi"}).json == {
        "queue": "smithi",
        "queued_jobs": 1,
        "paused": False,
    }
    assert app.get(f"{mount}/pop_queue?queue=smithi").json["job_id"] == "1"
    assert app.put_json(f"{mount}/", {"queue": "smithi", "paused_by": "bob", "pause_duration": 1}).json == {}


def test_an_unknown_queue_cannot_be_paused(app: TestApp, mount: str) -> None:
    answer = app.put_json(f"{mount}/", {"queue": "nosuch", "paused_by": "ada", "pause_duration": 1}, status=400)
    assert answer.json == {"message": "specified queue does not exist"}


@pytest.mark.parametrize(
    ("method", "path", "sent", "word"),
    [
        ("POST", "", {}, "queue"),
        ("POST", "", {"queue": None}, "queue"),
        ("POST", "", {"queue": ""}, "queue"),
        ("POST", "", {"queue": ["smithi"]}, "queue"),
        ("POST", "", {"queue": "x" * 256}, "queue"),
        ("POST", "", {"queue": "a\0b"}, "queue"),
        ("POST", "", [], "object"),
        ("PUT", "", {"queue": "smithi", "pause_duration": 1}, "paused_by"),
        ("PUT", "", {"queue": "smithi", "paused_by": "", "pause_duration": 1}, "paused_by"),
        ("PUT", "", {"queue": "smithi", "paused_by": "ada"}, "pause_duration"),
        ("PUT", "", {"queue": "smithi", "paused_by": "ada", "pause_duration": -1}, "pause_duration"),
        ("PUT", "", {"queue": "smithi", "paused_by": "ada", "pause_duration": 1e300}, "pause_duration"),
        ("PUT", "", {"paused_by": "ada", "pause_duration": 1}, "queue"),
        ("POST", "stats/", {}, "queue"),
        ("POST", "stats/", {"queue": "nosuch"}, "queue"),
        ("POST", "queued_jobs/", {}, "queue"),
        ("POST", "pop_queue", {"queue": "smithi"}, "worker"),
        ("POST", "pop_queue", {"worker": "w"}, "queue"),
        ("POST", "heartbeat", {"run": "run", "job_id": 1, "worker": "w"}, "attempt"),
        ("POST", "heartbeat", {"run": "run", "job_id": 1.5, "worker": "w", "attempt": 1}, "job_id"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_named(
    app: TestApp, mount: str, method: str, path: str, sent: Any, word: str
) -> None:
    app.post_json("/queue/", {"queue": "smithi"})
    before = app.get("/queue/").json
    request = app.post_json if method == "POST" else app.put_json
    answer = request(f"{mount}/{path}", sent, status=400).json
    assert list(answer) == ["message"]
    assert word in answer["message"]
    assert app.get("/queue/").json == before


def test_a_look_for_the_next_job_without_naming_a_queue_is_refused(app: TestApp, mount: str) -> None:
    for query in ("", "?queue="):
        assert "queue" in app.get(f"{mount}/pop_queue{query}", status=400).json["message"]


def test_the_next_job_is_the_one_with_the_smallest_priority_then_the_oldest(app: TestApp, mount: str) -> None:
    assert app.get(f"{mount}/pop_queue?queue=smithi").json is None
    for job_id, priority in ((1, None), (2, 100), (3, -5), (4, -5), (5, 0)):
        add_job(app, job_id, priority=priority)
    add_job(app, 6, priority=-100, queue="mira")
    add_job(app, 7, priority=-100, status="running")
    order = ["3", "4", "5", "2", "1"]
    listed = app.post_json(f"{mount}/queued_jobs/", {"queue": "smithi"}).json
    assert [each["job_id"] for each in listed] == order
    assert app.post_json(f"{mount}/stats/", {"queue": "smithi"}).json["queued_jobs"] == 5
    seen = []
    for _ in order:
        found = app.get(f"{mount}/pop_queue?queue=smithi").json
        # Looking takes nothing: the dispatcher says itself that the job runs.
        assert app.get(f"{mount}/pop_queue?queue=smithi").json == found
        assert found == job(app, found["job_id"])
        assert found["status"] == "queued"
        seen.append(found["job_id"])
        app.put_json(f"/runs/run/jobs/{found['job_id']}/", {"status": "running"})
    assert seen == order
    assert app.get(f"{mount}/pop_queue?queue=smithi").json is None


def test_the_queued_jobs_of_one_user_or_one_run_are_listed(app: TestApp, mount: str) -> None:
    add_job(app, 1, "first", user="ada")
    add_job(app, 2, "first", user="bob")
    add_job(app, 3, "second", user="ada")

    def listed(query: str) -> list[str]:
        return [each["job_id"] for each in app.post_json(f"{mount}/queued_jobs/{query}", {"queue": "smithi"}).json]

    assert listed("") == ["1", "2", "3"]
    assert listed("?user=ada") == ["1", "3"]
    assert listed("?run_name=first") == ["1", "2"]
    assert listed("?run_name=first&user=ada") == ["1"]
    assert listed("?run_name=nosuch") == []


def test_a_claimed_job_waits_for_its_worker_and_is_nobody_else_s(app: TestApp, mount: str, stopped_clock: Any) -> None:
    add_job(app, 1, "a run", priority=1)
    add_job(app, 2, "a run", priority=2)
    claimed = app.post_json(f"{mount}/pop_queue", {"queue": "smithi", "worker": "w1"}).json
    claim = claimed.pop("claim")
    assert claimed == job(app, 1, "a run")
    assert claimed["status"] == "waiting"
    until = "2026-01-02 03:06:05"
    assert claim == {"run": "a run", "job_id": "1", "worker": "w1", "attempt": claim["attempt"], "until": until}
    assert app.post_json(f"{mount}/pop_queue", {"queue": "smithi", "worker": "w2"}).json["job_id"] == "2"
    assert app.post_json(f"{mount}/pop_queue", {"queue": "smithi", "worker": "w3"}).json is None
    run = app.get("/runs/a run").json
    assert_consistent(run)
    assert run["status"] == "waiting"


def test_a_heartbeat_keeps_a_claim_and_a_lost_one_is_refused(app: TestApp, mount: str, stopped_clock: Any) -> None:
    add_job(app, 1)
    claim = pop(app)["claim"]
    stopped_clock.advance(seconds=LEASE - 1)
    kept = app.post_json(f"{mount}/heartbeat", claim).json
    assert kept == {"until": "2026-01-02 03:08:04"}
    stopped_clock.advance(seconds=LEASE - 1)
    assert app.post_json(f"{mount}/heartbeat/", claim).status_int == 200
    for wrong in ({"worker": "other"}, {"attempt": claim["attempt"] + 1}, {"job_id": "2"}, {"run": "another"}):
        assert "message" in app.post_json(f"{mount}/heartbeat", claim | wrong, status=403).json
    stopped_clock.advance(seconds=LEASE)
    assert app.post_json(f"{mount}/heartbeat", claim, status=403).json == {"message": "the claim on this job is lost"}


def test_a_report_under_a_claim_counts_while_the_claim_is_held_and_no_longer(app: TestApp, stopped_clock: Any) -> None:
    add_job(app, 1)
    first = pop(app, "w1")["claim"]
    app.put_json("/runs/run/jobs/1/", {"status": "queued"})
    second = pop(app, "w2")["claim"]
    before = job(app, 1)
    for late in (first, {**second, "attempt": first["attempt"]}, {**second, "worker": "w1"}):
        refused = app.put_json("/runs/run/jobs/1/", {"status": "running", "claim": late}, status=403)
        assert refused.json == {"message": "the claim on this job is lost"}
    assert job(app, 1) == before
    assert app.put_json("/runs/run/jobs/1/", {"status": "waiting", "owner": "w2", "claim": second}).json == {}
    assert app.post_json("/queue/heartbeat", second).status_int == 200
    assert app.put_json("/runs/run/jobs/1/", {"status": "running", "claim": second}).json == {}
    assert job(app, 1)["status"] == "running"


def test_a_report_without_a_claim_counts_always(app: TestApp) -> None:
    add_job(app, 1)
    claim = pop(app)["claim"]
    app.put_json("/runs/run/jobs/1/", {"status": "running"})
    assert job(app, 1)["status"] == "running"
    app.post_json("/queue/heartbeat", claim, status=403)


def test_a_claim_of_a_removed_job_is_lost(app: TestApp) -> None:
    add_job(app, 1)
    claim = pop(app)["claim"]
    app.delete("/runs/run/jobs/1/")
    app.post_json("/queue/heartbeat", claim, status=403)


def test_a_pause_is_ended_before_its_time_and_then_jobs_are_given_again(app: TestApp) -> None:
    app.post_json("/queue/", {"queue": "smithi"})
    assert app.post_json("/queue/resume", {"queue": "smithi"}, status=403).json["message"].startswith("Cannot resume")
    app.put_json("/queue/", {"queue": "smithi", "paused_by": "ada", "pause_duration": 3600})
    app.get("/queue/pop_queue?queue=smithi", status=503)

    assert app.post_json("/queue/resume/", {"queue": "smithi"}).json == {}

    assert app.get("/queue/pop_queue?queue=smithi").json is None
    (queue,) = app.get("/queue/").json
    assert queue == {
        "queue": "smithi",
        "paused": False,
        "paused_by": None,
        "paused_since": None,
        "paused_until": None,
    }
    app.put_json("/queue/", {"queue": "smithi", "paused_by": "ada", "pause_duration": 60})


@pytest.mark.parametrize("body", [{}, {"queue": None}, {"queue": 5}, {"queue": "nobody's"}])
def test_only_a_queue_that_there_is_can_be_resumed(app: TestApp, body: dict[str, Any]) -> None:
    assert app.post_json("/queue/resume", body, status=400).json["message"]

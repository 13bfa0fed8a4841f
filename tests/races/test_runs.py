"""Many clients report, update, remove and claim the jobs of the same runs at the same moment."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from webtest import TestApp

from labctl import db
from labctl.queues import service as queues
from tests.runs.reference import STATUSES, assert_consistent

THREADS = 16
RUN = "ada-2026-01-02_03:04:05-rados-main-distro-default-smithi"

AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]


@pytest.fixture
def client(committed_app: TestApp) -> Callable[[], TestApp]:
    """A client for each thread: WebTest's keeps cookies and is nobody else's."""
    return lambda: TestApp(committed_app.app)


def post(app: TestApp, job_id: Any, run: str = RUN, **keys: Any) -> Any:
    return app.post_json(f"/runs/{run}/jobs/", {"job_id": job_id, **keys}, status="*")


def put(app: TestApp, job_id: Any, run: str = RUN, **keys: Any) -> Any:
    return app.put_json(f"/runs/{run}/jobs/{job_id}/", keys, status="*")


def test_of_sixteen_first_reports_of_one_job_one_succeeds_and_the_others_hear_that_it_exists(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    for number in range(5):
        run = f"run-{number}"
        answers = at_once([lambda run=run: post(client(), "1500", run, status="running")] * THREADS)
        assert Counter(answer.status_int for answer in answers) == {200: 1, 400: THREADS - 1}
        refused = [answer.json for answer in answers if answer.status_int == 400]
        assert refused == [{"message": "job with job_id 1500 already exists"}] * (THREADS - 1)
        found = client().get(f"/runs/{run}/").json
        assert_consistent(found)
        assert found["results"]["running"] == found["jobs_count"] == 1


def test_of_sixteen_creations_of_one_run_one_succeeds(client: Callable[[], TestApp], at_once: AtOnce) -> None:
    answers = at_once([lambda: client().post_json("/runs/", {"name": RUN}, status="*")] * THREADS)
    assert Counter(answer.status_int for answer in answers) == {200: 1, 400: THREADS - 1}
    assert {a.json["message"] for a in answers if a.status_int == 400} == {f"run with name {RUN} already exists"}
    assert [run["name"] for run in client().get("/runs/").json] == [RUN]


def test_sixteen_first_jobs_of_a_run_that_does_not_exist_make_one_run_that_counts_them_all(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    def report(number: int) -> Any:
        return post(client(), number, status=STATUSES[number % len(STATUSES)])

    answers = at_once([lambda number=number: report(number) for number in range(THREADS)])
    assert [answer.json for answer in answers] == [{"job_id": str(number)} for number in range(THREADS)]
    assert len(client().get("/runs/").json) == 1
    run = client().get(f"/runs/{RUN}/").json
    assert_consistent(run)
    assert {job["job_id"] for job in run["jobs"]} == {str(number) for number in range(THREADS)}


def test_jobs_without_an_id_that_are_reported_at_once_get_different_ids(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    answers = at_once([lambda: client().post_json(f"/runs/{RUN}/jobs/", {"status": "queued"})] * THREADS)
    assert len({answer.json["job_id"] for answer in answers}) == THREADS
    assert client().get(f"/runs/{RUN}/").json["results"]["queued"] == THREADS


def test_whoever_reads_a_run_while_its_jobs_are_updated_sees_counts_and_status_that_fit_the_jobs(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    for number in range(THREADS):
        assert post(client(), number, status="queued").status_int == 200
    left = threading.Semaphore(0)

    def work(number: int) -> list[int]:
        app = client()
        try:
            last = "pass" if number % 3 else "fail"
            walk = ["waiting", "running", "dead", "unknown", "queued", "waiting", "running", last]
            return [put(app, number, status=status).status_int for status in walk]
        finally:
            left.release()

    def look() -> int:
        app, looks, ended = client(), 0, 0
        while ended < THREADS:
            ended += left.acquire(blocking=False)
            assert_consistent(app.get(f"/runs/{RUN}/").json)
            looks += 1
        return looks

    *answers, looks = at_once([*(lambda number=number: work(number) for number in range(THREADS)), look])
    assert answers == [[200] * 8] * THREADS
    assert looks > THREADS
    run = client().get(f"/runs/{RUN}/").json
    assert_consistent(run)
    assert (run["results"]["fail"], run["results"]["pass"]) == (6, 10)


def test_updates_of_different_keys_of_one_job_at_once_are_all_kept(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    keys = [
        *("archive_path", "description", "email", "failure_reason", "flavor", "os_type", "os_version", "owner"),
        *("sentry_event", "seed", "subset", "suite_branch", "suite_path", "suite_repo", "teuthology_branch", "user"),
    ]
    assert len(keys) == THREADS
    for value in range(5):
        sent: dict[str, Any] = {key: value if key == "seed" else f"{key} {value}" for key in keys}
        if value == 0:
            post(client(), 7, status="running")
        answers = at_once([lambda key=key, sent=sent: put(client(), 7, **{key: sent[key]}) for key in keys])
        assert [answer.status_int for answer in answers] == [200] * THREADS
        job = client().get(f"/runs/{RUN}/jobs/7/").json
        assert {key: job[key] for key in keys} == sent


def test_a_run_that_is_removed_while_its_jobs_are_reported_updated_and_removed_leaves_no_error_and_no_wrong_count(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    def report(number: int) -> list[int]:
        app = client()
        return [post(app, f"{number}-{turn}", status="running").status_int for turn in range(10)]

    def change(number: int) -> list[int]:
        app = client()
        return [put(app, f"{number}-{turn}", status="waiting" if turn % 2 else "dead").status_int for turn in range(10)]

    def remove_job(number: int) -> list[int]:
        app = client()
        return [app.delete(f"/runs/{RUN}/jobs/{number}-{turn}/", status="*").status_int for turn in range(10)]

    def remove_run() -> list[int]:
        app = client()
        return [app.delete(f"/runs/{RUN}/", status="*").status_int for _ in range(10)]

    for _ in range(3):
        for number in range(5):
            for turn in range(0, 10, 2):
                post(client(), f"{number}-{turn}", status="queued")
        acts = [lambda act=act, n=n: act(n) for n in range(5) for act in (report, change, remove_job)]
        answers = at_once([*acts, remove_run])
        assert {status for each in answers for status in each} <= {200, 400, 404}
        assert 200 in answers[-1]
        found = client().get(f"/runs/{RUN}/", status="*")
        if found.status_int == 200:
            assert_consistent(found.json)


def test_jobs_that_name_the_same_new_machines_are_reported_and_updated_at_once_without_a_deadlock(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    for turn in range(5):
        targets = {f"ubuntu@host{turn}-{number}": "ssh-rsa KEY" for number in range(20)}
        backwards = dict(reversed(targets.items()))
        for number in range(8):
            post(client(), f"{turn}-{number}", status="waiting")
        acts = [
            *(lambda n=n: put(client(), f"{turn}-{n}", status="running", targets=targets) for n in range(8)),  # noqa: B023
            *(lambda n=n: post(client(), f"{turn}-{n}", status="running", targets=backwards) for n in range(8, 16)),  # noqa: B023
        ]
        answers = at_once(acts)
        assert [answer.status_int for answer in answers] == [200] * THREADS
    assert len(client().get("/nodes/").json) == 5 * 20


def test_jobs_of_one_queue_that_many_dispatchers_claim_at_once_are_each_given_to_one_of_them(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    jobs = {(run, str(number)) for run in ("first", "second") for number in range(30)}
    for run, number in sorted(jobs):
        post(client(), number, run, status="queued", queue="smithi", priority=int(number) % 3)

    def dispatch(worker: int) -> list[dict[str, Any]]:
        app, taken = client(), []
        while True:
            job = app.post_json("/queue/pop_queue", {"queue": "smithi", "worker": f"worker {worker}"}).json
            if job is not None:
                assert job["status"] == "waiting"
                taken.append(job["claim"])
            elif not app.post_json("/queue/queued_jobs/", {"queue": "smithi"}).json:
                return taken

    shares = at_once([lambda worker=worker: dispatch(worker) for worker in range(THREADS)])
    claims = [claim for share in shares for claim in share]
    assert len(claims) == len(jobs)
    assert {(claim["run"], claim["job_id"]) for claim in claims} == jobs
    for worker, share in enumerate(shares):
        assert {claim["worker"] for claim in share} <= {f"worker {worker}"}
    for run in ("first", "second"):
        found = client().get(f"/runs/{run}/").json
        assert_consistent(found)
        assert found["results"]["waiting"] == 30


def test_a_dispatcher_gets_the_next_job_while_another_is_still_taking_the_first(client: Callable[[], TestApp]) -> None:
    for priority, run in enumerate(("first", "second")):
        post(client(), 1, run, status="queued", queue="smithi", priority=priority)
    with db.transaction() as session:
        taken = queues.claim(session, "smithi", "slow", 60)
        assert taken is not None
        assert taken.run_name == "first"
        job = client().post_json("/queue/pop_queue", {"queue": "smithi", "worker": "quick"}).json
        assert job["claim"]["run"] == "second"
    assert client().post_json("/queue/pop_queue", {"queue": "smithi", "worker": "quick"}).json is None


def test_of_many_removals_of_one_job_one_succeeds_and_the_run_counts_it_off_once(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    for number in (1, 2):
        post(client(), number, status="running")
    answers = at_once([lambda: client().delete(f"/runs/{RUN}/jobs/1/", status="*")] * THREADS)
    assert Counter(answer.status_int for answer in answers) == {200: 1, 404: THREADS - 1}
    run = client().get(f"/runs/{RUN}/").json
    assert_consistent(run)
    assert [job["job_id"] for job in run["jobs"]] == ["2"]

"""How many SQL statements each request costs, and that none of them reads a whole table of what there is much of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl import clock, db
from labctl.maintenance.models import MaintenanceSession
from labctl.remote import running
from labctl.remote.running import Piece
from labctl.remote.states import HostState, JobState
from labctl.runs import documents
from labctl.settings import ANONYMOUS, Settings
from labctl.vms.models import VMRequest
from labctl.vms.states import VMState
from tests.remote.factories import make_job
from tests.remote.web import add_hosts
from tests.vms.factories import make_vm

RUN = "alice-2026-01-02_03:04:05-rados-main-distro-default-smithi"
JOB = f"/runs/{RUN}/jobs/1500"
TARGETS = {"ubuntu@smithi001": "key", "ubuntu@smithi002": "key"}
#: A job on hosts that has ended, and one that waits.
JID, WAITING_JID = "0e9d6cf8-6f0e-4d2c-8a3c-4b9f4c8c1f5e", "7d1c9a52-55f3-4b0e-9d0f-5f2b0d1d3c11"
LEAF = "/api/repos/ceph/main/abc/ubuntu/jammy"
LATEST = "/api/repos/ceph/main/latest/ubuntu/jammy"
#: What a storage node reports of a repo; a build has the same keys.
REPO = {
    "ref": "main",
    "sha1": "abc",
    "distro": "ubuntu",
    "distro_version": "jammy",
    "status": "ready",
    "archs": ["x86_64"],
    "url": "https://c.example/r/1/",
    "chacra_url": "https://c.example/repos/1/",
}

WEB = [f"web{number}" for number in range(1, 101)]

#: A maintenance session.
SESSION = "695030ee-1c4d-11e8-a9b0-0242ac110002"
MAINTENANCE = {
    "hosts": ["smithi001", "smithi002"],
    "state": "MAINTENANCE",
    "maintenance_at": "2018-02-28 06:06:03",
    "workflow": "default",
    "metadata": {"gate": "none"},
}

MOST_FOR_A_READ = 3
MOST_FOR_A_WRITE = 4

#: A request: method, path, body.
Asked = tuple[str, str, Any]

READS: dict[str, int] = {
    "/": 0,
    "/api/": 1,
    "/_health": 2,  # the first asks whether there is a schema at all
    "/runs/": 1,
    "/runs/?count=2&page=2": 1,
    "/runs/?fields=name,status": 1,
    "/api/runs/": 1,
    f"/runs/{RUN}/": 1,
    f"/api/runs/{RUN}/": 1,
    f"/runs/{RUN}/jobs/": 1,
    f"/runs/{RUN}/jobs/?status=queued": 1,
    f"/runs/{RUN}/jobs/?fields=job_id,status": 1,
    f"/runs/{RUN}/jobs/?fields=job_id,description": 1,
    JOB: 1,
    "/runs/queued/": 1,
    "/runs/branch/": 1,
    "/runs/flavors/": 1,
    "/runs/date/": 1,
    "/runs/branch/main/": 1,
    "/runs/sha1/abc/": 1,
    "/runs/branch/main/suite/": 1,
    "/runs/branch/main/suite/rados/status/queued/": 1,
    "/runs/date/2026-01-02/": 1,
    "/runs/date/from/2026-01-01/to/2026-01-03/": 1,
    "/nodes/": 1,
    "/nodes/?machine_type=smithi&locked=false&up=true": 1,
    "/nodes/machine_types/": 1,
    "/nodes/job_stats/": 1,
    "/nodes/smithi001/": 1,
    "/nodes/smithi001/jobs/": 2,  # the machine, to tell one without jobs from none
    "/nodes/smithi001/job_stats/": 2,
    "/queue/": 1,
    "/queue/pop_queue?queue=smithi": 2,  # whether it is paused, then the job
    "/api/events?limit=1000": 1,
    "/api/repos/": 1,
    "/api/repos/ceph/": 1,
    "/api/repos/ceph/main/": 1,
    "/api/repos/ceph/nosuch/": 2,  # and whether there is such a project
    "/api/repos/ceph/main/abc/": 1,
    "/api/repos/ceph/main/latest/": 1,
    "/api/repos/ceph/main/latest/ubuntu/": 1,
    "/api/repos/ceph/main/nosuch/": 2,
    LEAF: 1,
    LATEST: 1,
    f"{LEAF}?count=1&page=2": 2,
    f"{LEAF}?history=1": 2,
    f"{LEAF}/flavors/": 1,
    f"{LATEST}/flavors/default/": 1,
    f"{LATEST}/repo": 1,
    f"{LATEST}/flavors/default/repo?arch=x86_64": 1,
    f"{LEAF}/x86_64/a/b": 1,
    "/api/builds/": 1,
    "/api/builds/ceph/": 1,
    "/api/builds/ceph/main/": 1,
    "/api/builds/ceph/main/abc/": 1,
    "/api/builds/ceph/main/abc/?history=1": 2,
    "/api/search/": 1,
    "/api/search?project=ceph&ref=main&sha1=abc&flavor=default&status=ready&distros=ubuntu/jammy/x86_64": 1,
    "/api/search?project=ceph&distros=ubuntu/jammy,centos/9,debian/12/arm64&count=2&page=2": 1,
    "/api/search?project=ceph&sha1=latest": 1,
    "/api/search?project=ceph&sha1=latest&distros=ubuntu/jammy,ubuntu/22.04/x86_64": 1,
    "/api/search?history=1&sha1=latest&distros=ubuntu/jammy": 2,
    "/api/search?project=ceph&wait=30": 2,  # the glance that is there before it has to wait
    "/api/vm": 0,
    "/api/vm/vm1": 1,
    # VMs by pool and state, what is known of pools, what is wrong with providers.
    "/api/status": 3,
    # What happened in pools, and which tags were set.
    "/api/summary": 2,
    "/api/summary/boot": 1,
    "/api/poolstat?pool=debian-12-x86_64": 2,
    "/api/totalrunning": 1,
    "/api/config": 2,
    "/api/ondemandvm/request-1": 2,
    "/v1/maintenance": 1,
    f"/v1/maintenance/{SESSION}": 1,
    "/api/remote": 0,
    "/target": 1,
    "/target?pattern=web*,!web1": 1,
    "/jobs": 1,
    "/jobs?detail=1": 1,
    "/jobs?detail=1&state=0&operate=ping&host=web1&count=2&page=2": 1,
    f"/jobs/{JID}": 1,
    f"/jobs/{JID}?outputs=1": 2,  # the job, and what came
    f"/jobs/{JID}?outputs=1&follow=1": 2,
    "/tasks": 0,
}

WRITES: dict[str, tuple[Asked, int]] = {
    "a run": (("POST", "/runs/", {"name": "new"}), 2),
    "a job": (("POST", f"/runs/{RUN}/jobs/", {"job_id": "1", "status": "queued"}), 2),
    "a job that exists": (("POST", f"/runs/{RUN}/jobs/", {"job_id": "1500"}), 3),
    # Makes an id and looks whether the run has it; no known client leaves it out.
    "a job without an id": (("POST", f"/runs/{RUN}/jobs/", {"status": "queued"}), 4),
    # Looks for the run, adds it, and records both the run and the job.
    "the first job of a run": (("POST", "/runs/another/jobs/", {"job_id": "1"}), 4),
    # Finds the machines and ties the job to them; dispatchers report targets once for each job.
    "a job with targets": (("POST", f"/runs/{RUN}/jobs/", {"job_id": "1", "targets": TARGETS}), 4),
    # Finds the machines and ties the job to them.
    "an update with new targets": (("PUT", f"/runs/{RUN}/jobs/1501", {"targets": TARGETS}), 4),
    "an update of a job": (("PUT", JOB, {"status": "running"}), 2),
    "an update that repeats the targets": (("PUT", JOB, {"targets": TARGETS}), 2),
    "removing a job": (("DELETE", JOB, None), 2),
    "removing a run": (("DELETE", f"/runs/{RUN}/", None), 4),
    "a machine": (("POST", "/nodes/", {"name": "smithi009"}), 2),
    "a change of a machine": (("PUT", "/nodes/smithi001/", {"up": False}), 3),
    "locking a machine": (("PUT", "/nodes/smithi001/lock", {"locked": True, "locked_by": "a"}), 3),
    "locking machines": (
        ("POST", "/nodes/lock_many/", {"count": 2, "locked_by": "a", "machine_type": "smithi", "description": None}),
        2,
    ),
    "locking too many machines": (
        ("POST", "/nodes/lock_many/", {"count": 9, "locked_by": "a", "machine_type": "smithi", "description": None}),
        2,
    ),
    "unlocking machines": (("POST", "/nodes/unlock_many/", {"names": ["smithi003"], "locked_by": "b"}), 3),
    "removing a machine": (("DELETE", "/nodes/smithi001/", None), 2),
    "a queue": (("POST", "/queue/", {"queue": "new"}), 2),
    "pausing a queue": (("PUT", "/queue/", {"queue": "smithi", "paused_by": "a", "pause_duration": 60}), 3),
    "the state of a queue": (("POST", "/queue/stats/", {"queue": "smithi"}), 2),
    "the jobs of a queue": (("POST", "/queue/queued_jobs/", {"queue": "smithi"}), 1),
    "a repo": (("POST", "/api/repos/ceph/", {**REPO, "chacra_url": "https://c.example/repos/new/"}), 1),
    "a repo of a new project": (("POST", "/api/repos/new/", {**REPO, "chacra_url": "https://c.example/repos/new/"}), 1),
    "a repo that is known": (("POST", "/api/repos/ceph/", {**REPO, "status": "failed", "archs": ["arm64"]}), 1),
    "a change of a repo": (("POST", "/api/repos/ceph/", {"chacra_url": REPO["chacra_url"], "status": "failed"}), 1),
    # The repo with its count, the event, and its commit, for nothing of that is left.
    "removing the last repo of a commit": (("DELETE", "/api/repos/ceph/main/def/ubuntu/jammy", None), 3),
    "removing a repo": (("DELETE", f"{LEAF}/flavors/crimson", None), 2),
    "a repo that is posted as deleted": (("POST", "/api/repos/ceph/", {**REPO, "status": "deleted"}), 2),
    "an unknown repo that is posted as deleted": (
        ("POST", "/api/repos/ceph/", {**REPO, "chacra_url": "https://c.example/repos/new/", "status": "deleted"}),
        1,
    ),
    # The lock, for two first reports of one build make one.
    "a build": (("POST", "/api/builds/ceph/", {**REPO, "url": "https://j.example/new/"}), 2),
    "a build that is known": (("POST", "/api/builds/ceph/", REPO), 2),
    "a checkout": (("POST", "/api/vm/debian-12-x86_64", None), 1),
    "a checkout of several": (("POST", "/api/vm", {"debian-12-x86_64": "3", "centos-9-x86_64": "2"}), 1),
    # Holds what may be needed of each pool, and deals it out.
    "a checkout under names that share pools": (("POST", "/api/vm/debian+debian-12-x86_64", None), 2),
    # Holds the VM, changes it, counts the tags.
    "tagging a VM": (("PUT", "/api/vm/vm1", {"tags": {"a": "1", "b": "2"}}), 3),
    "giving a VM back": (("DELETE", "/api/vm/vm1", None), 2),
    # Whether the hosts are there, the job with its hosts and its event, and the task that wakes a worker.
    "an operation on a host": (("POST", "/ping", {"targets": ["web1"]}), 3),
    "an operation on many hosts": (("POST", "/execute", {"targets": WEB, "cmd": "true"}), 3),
    "an operation on the hosts of a pattern": (("POST", "/ping", {"targets": ["web*"]}), 4),
    # One after the other, so that all hosts or none are held.
    "a deployment": (("POST", "/deploy", {"targets": WEB, "role": "nginx"}), 4),
    # Adds it, and reads where it is; somebody else carries it out.
    "an operation on a host that is waited for": (("GET", "/ping?target=web1&wait=0", None), 4),
    "deleting a job on hosts": (("DELETE", f"/jobs/{JID}", None), 3),
}

#: Writes that need more than :data:`MOST_FOR_A_WRITE`, with the reason.
DEARER: dict[str, tuple[Asked, int, str]] = {
    "a job with unknown targets": (
        ("POST", f"/runs/{RUN}/jobs/", {"job_id": "1", "targets": {"ubuntu@new": "key"}}),
        6,
        "adds the machines and records them, once in the life of a machine",
    ),
    "a maintenance session": (
        ("POST", "/v1/maintenance", MAINTENANCE),
        8,
        "tells what its hosts are, takes its turn, looks for others that go on and that have the hosts, and writes the"
        " session, its hosts, its first step and the event",
    ),
    "pausing a maintenance session": (
        ("PUT", f"/v1/maintenance/{SESSION}", {"paused": True}),
        6,
        "takes its turn, holds the session and its hosts, changes it, and writes a step and the event",
    ),
    "claiming a job": (
        ("POST", "/queue/pop_queue", {"queue": "smithi", "worker": "w"}),
        5,
        "checks the pause, takes the lease, updates the job in its two statements, and reads the answer",
    ),
    "cancelling a job on hosts": (
        ("POST", f"/jobs/{WAITING_JID}/cancel", None),
        7,
        "holds it, notes who wants that, ends it with its hosts and two events, and reads the answer; a person asks",
    ),
}


def add_lab(app: TestApp) -> None:
    """Add machines, a queue, a run with two jobs and another run."""
    for number in (1, 2, 3):
        app.post_json("/nodes/", {"name": f"smithi00{number}", "machine_type": "smithi", "up": True})
    app.post_json("/nodes/smithi003/lock", {"locked": True, "locked_by": "b"})
    app.post_json("/queue/", {"queue": "smithi"})
    job = {"queue": "smithi", "priority": 100, "status": "queued", "sha1": "abc", "flavor": "default"}
    app.post_json(f"/runs/{RUN}/jobs/", {**job, "job_id": "1500", "targets": TARGETS})
    app.post_json(f"/runs/{RUN}/jobs/", {**job, "job_id": "1501"})
    app.post_json("/runs/", {"name": "empty"})
    for number, changes in enumerate([{}, {"flavor": "crimson"}, {"sha1": "def", "status": "building"}], start=1):
        app.post_json("/api/repos/ceph/", {**REPO, "chacra_url": f"https://c.example/repos/{number}/", **changes})
    app.post_json("/api/builds/ceph/", REPO)


def add_vms(session: Session) -> None:
    """Add VMs that are ready, one that somebody has, and a request."""
    for pool in ("debian-12-x86_64", "centos-9-x86_64"):
        for _ in range(5):
            make_vm(session, pool=pool)
    make_vm(session, name="vm1", state=VMState.RUNNING)
    session.add(VMRequest(id="request-1", wanted={}, created=clock.now(), deadline=clock.now()))
    times = dict.fromkeys(("entered", "maintenance_at", "created"), clock.now())
    session.add(MaintenanceSession(id=SESSION, workflow="default", state="MAINTENANCE", created_by="a", **times))
    session.flush()


def add_remote(session: Session) -> None:
    """Add hosts, and two jobs on them."""
    add_hosts(session, {name: ["web"] for name in WEB})
    make_job(session, hosts=WEB[:3], jid=JID)
    with db.transaction() as own:
        taken = running.claim(own, "worker", 1, 30)[0]
        running.finish(own, taken, [Piece("web1", '{"status":1}', HostState.OK)] * 3, state=JobState.DONE)
    make_job(session, hosts=WEB[:3], jid=WAITING_JID)


@pytest.fixture
def app(session: Session) -> TestApp:
    app = TestApp(application.make_app(Settings(anonymous=dict.fromkeys(ANONYMOUS, "write"))))
    add_lab(app)
    add_vms(session)
    add_remote(session)
    return app


def ask(app: TestApp, method: str, path: str, data: Any) -> int:
    send = {"POST": app.post_json, "PUT": app.put_json, "DELETE": app.delete_json, "GET": app.get}[method]
    answer = send(path, expect_errors=True) if data is None else send(path, data, expect_errors=True)
    assert answer.status_int < 500 or answer.json["message"].startswith("only "), answer.text
    assert answer.status_int != 404, path
    return answer.status_int


@pytest.mark.parametrize("path", READS)
def test_a_read_costs_as_many_statements_as_it_says_here(
    app: TestApp, statements: Callable[[], Any], path: str
) -> None:
    with statements() as sent:
        ask(app, "GET", path, None)

    assert len(sent) == READS[path] <= MOST_FOR_A_READ, "\n\n".join(sent)


@pytest.mark.parametrize("what", WRITES)
def test_a_write_costs_as_many_statements_as_it_says_here(
    app: TestApp, statements: Callable[[], Any], what: str
) -> None:
    request, number = WRITES[what]

    with statements() as sent:
        ask(app, *request)

    assert len(sent) == number <= MOST_FOR_A_WRITE, "\n\n".join(sent)


@pytest.mark.parametrize("what", DEARER)
def test_a_dearer_write_costs_as_many_statements_as_it_says_here(
    app: TestApp, statements: Callable[[], Any], what: str
) -> None:
    request, number, reason = DEARER[what]

    with statements() as sent:
        ask(app, *request)

    assert reason
    assert len(sent) == number > MOST_FOR_A_WRITE, "\n\n".join(sent)


#: What is asked of repos most often, by clients that poll, may cost less than what is asked elsewhere.
MOST_FOR_A_READ_OF_REPOS = 2
MOST_FOR_A_WRITE_OF_REPOS = 3
TREES_OF_REPOS = ("/api/repos", "/api/builds", "/api/search")


def test_repos_builds_and_searches_cost_less() -> None:
    reads = {path: cost for path, cost in READS.items() if path.startswith(TREES_OF_REPOS)}
    writes = {what: cost for what, ((_, path, _), cost) in WRITES.items() if path.startswith(TREES_OF_REPOS)}

    assert len(reads) > 20 and max(reads.values()) == MOST_FOR_A_READ_OF_REPOS
    assert len(writes) > 8 and max(writes.values()) == MOST_FOR_A_WRITE_OF_REPOS


def test_the_credential_out_of_the_configuration_is_looked_up_once_in_a_while_and_after_each_wrong_one(
    session: Session, statements: Callable[[], Any]
) -> None:
    app = TestApp(application.make_app(Settings(api_user="chacra", api_key="secret")))
    app.authorization = ("Basic", ("chacra", "secret"))

    wrong = {"Authorization": "Basic Y2hhY3JhOmd1ZXNz"}
    for cost in (2, 1, 1, None, 3, 1):
        if cost is None:
            assert app.get("/api/search", headers=wrong, status=401)
            continue
        with statements() as sent:
            app.get("/api/search")
        # One that asks whether there were wrong ones, and after one that was, one that forgets it.
        assert len(sent) == cost


@pytest.mark.parametrize("repos", [1, 30])
def test_lists_of_repos_cost_the_same_with_more_repos(app: TestApp, statements: Callable[[], Any], repos: int) -> None:
    for number in range(repos):
        app.post_json("/api/repos/ceph/", {**REPO, "chacra_url": f"https://c.example/more/{number}/"})

    for path, cost in ((LEAF, 1), ("/api/search", 1), ("/api/search?sha1=latest", 1), ("/api/search?history=1", 2)):
        with statements() as sent:
            app.get(path)
        assert len(sent) == cost


def test_a_heartbeat_costs_one_statement(app: TestApp, statements: Callable[[], Any]) -> None:
    claim = app.post_json("/queue/pop_queue", {"queue": "smithi", "worker": "w"}).json["claim"]

    with statements() as sent:
        app.post_json("/queue/heartbeat", claim)

    assert len(sent) == 1


@pytest.mark.parametrize("jobs", [1, 30])
def test_a_run_costs_the_same_with_more_jobs(app: TestApp, statements: Callable[[], Any], jobs: int) -> None:
    for number in range(jobs):
        app.post_json("/runs/other/jobs/", {"job_id": str(number), "targets": TARGETS})

    for path in ("/runs/other/", "/runs/other/jobs/", "/runs/", "/api/runs/other/"):
        with statements() as sent:
            app.get(path)
        assert len(sent) == 1


# Plans

RUNS = 2000
JOBS_OF_A_RUN = 30
#: Rows of a table that one read may touch: three pages, or the jobs of a run, and what indexes bring in vain.
MOST_ROWS = 400

#: A job of 3.6 kB.
DOCUMENT = documents.write({**documents.EMPTY, "description": "rados/thrash " * 230})
#: Many runs and jobs, the oldest first, over 200 days, all but ten of them finished; each machine has run many jobs.
BIG = f"""
INSERT INTO runs (name, path, user_name, suite, branch, machine_type, sha1, flavor, posted, scheduled, updated,
                  queued, pass, fail)
  SELECT 'run-' || n, 'run-' || n, 'user-' || n % 10, 'suite-' || n % 20, 'branch-' || n % 30, 'smithi',
         md5((n % 100)::text), 'default', at, at, at,
         CASE WHEN n > {RUNS} - 10 THEN 5 ELSE 0 END, CASE WHEN n > {RUNS} - 10 THEN 20 ELSE 25 END, 5
  FROM generate_series(1, {RUNS}) n, LATERAL (SELECT now() - (({RUNS} - n) / 10.0) * interval '1 day' AS at) t;
INSERT INTO jobs (run_id, job_id, status, queue, priority, user_name, posted, updated, document)
  SELECT r.id, (r.id * 1000 + n)::text,
         CASE WHEN n > 25 THEN 'fail' WHEN n <= r.queued THEN 'queued' ELSE 'pass' END, 'smithi', 100 + n % 7,
         r.user_name, r.posted, r.posted, '{DOCUMENT}'
  FROM runs r, generate_series(1, {JOBS_OF_A_RUN}) n WHERE r.name LIKE 'run-%' ORDER BY r.id, n;
INSERT INTO machines (name, machine_type, up) SELECT 'machine-' || n, 'smithi', true FROM generate_series(1, 500) n;
INSERT INTO job_machines (job, machine_id, posted)
  SELECT j.id, m.id, j.posted FROM jobs j JOIN machines m ON m.name = 'machine-' || 1 + j.id % 500;
INSERT INTO events (seq, at, kind, subject, actor, data)
  SELECT n, now(), 'job.updated', 'runs/run-' || n % 100 || '/jobs/1', 'anonymous', '{{}}'
  FROM generate_series(1, 30000) n;
INSERT INTO vms (name, pool, template, provider, state, requested, ready, due)
  SELECT 'big-' || n, CASE WHEN n % 2 = 0 THEN 'debian-12-x86_64' ELSE 'pool-' || n % 100 END, 't', 'fake',
         CASE WHEN n % 5 = 0 THEN 'running' ELSE 'ready' END, now(), now() - n * interval '1 second', now()
  FROM generate_series(1, 20000) n;
UPDATE vms SET checkout = now(), lifetime = 12, expires = now() WHERE state = 'running';
ANALYZE runs, jobs, machines, job_machines, events, queues, vms;
"""

#: Requests with RUN, JOB and DAY for an old run, a job of it and its day.
BIG_READS = [
    "/runs/",
    "/runs/?page=3",
    "/api/runs/",
    "/runs/run-7/",
    "/api/runs/run-7/",
    "/runs/run-7/jobs/",
    "/runs/run-7/jobs/?status=fail",
    "/runs/run-7/jobs/?fields=job_id,status",
    "/runs/run-7/jobs/JOB/",
    "/runs/queued/",
    "/runs/branch/",
    "/runs/user/",
    "/runs/status/",
    "/runs/branch/branch-7/",
    "/runs/branch/branch-7/suite/suite-7/",
    "/runs/branch/branch-7/status/",
    "/runs/suite/suite-7/?count=10",
    "/runs/status/running/",
    "/runs/user/user-7/?count=5",
    "/runs/sha1/8f14e45f/",
    "/runs/date/today/",
    "/runs/date/from/2020-01-01/to/2020-02-01/",
    "/nodes/machine-7/jobs/",
    "/nodes/machine-7/job_stats/",
    "/queue/pop_queue?queue=smithi",
    "/api/events?after=29900&limit=10",
    "/api/events?after=0&limit=10&subject=runs/run-7/jobs/1",
    "/api/vm/big-7",
]
BIG_WRITES: list[Asked] = [
    ("POST", "/runs/", {"name": "new"}),
    ("POST", "/runs/run-7/jobs/", {"job_id": "1", "status": "queued", "targets": {"u@machine-7": "k"}}),
    ("POST", "/runs/another/jobs/", {"job_id": "1", "status": "queued"}),
    ("POST", "/runs/run-7/jobs/", {"job_id": "JOB"}),
    ("PUT", "/runs/run-7/jobs/JOB/", {"status": "running", "success": True}),
    ("PUT", "/runs/run-7/jobs/JOB/", {"targets": {"u@machine-7": "k"}}),
    ("POST", "/queue/pop_queue", {"queue": "smithi", "worker": "w"}),
    ("POST", "/queue/stats/", {"queue": "smithi"}),
    ("POST", "/queue/queued_jobs/", {"queue": "smithi"}),
    ("DELETE", "/runs/run-7/jobs/JOB/", None),
    ("DELETE", "/runs/run-7/", None),
    ("POST", "/api/vm/debian-12-x86_64", None),
    ("POST", "/api/vm/debian+debian-12-x86_64", None),
    ("PUT", "/api/vm/big-5", {"tags": {"a": "b"}}),
    ("DELETE", "/api/vm/big-5", None),
]


BIG_TABLES = {"runs", "jobs", "events", "job_machines", "vms"}
#: A prepared statement is planned anew for its values a few times, and then once for all values.
MODES = ("force_custom_plan", "force_generic_plan")


class Lab:
    """An application over many runs, and the plans of the statements it sends."""

    def __init__(self, app: TestApp, session: Session, engine: Engine) -> None:
        self.app = app
        self.session = session
        self.engine = engine
        query = "SELECT job_id FROM jobs j JOIN runs r ON r.id = j.run_id WHERE r.name = 'run-7' ORDER BY j.id LIMIT 1"
        self.job: str = session.execute(text(query)).scalar_one()

    @contextmanager
    def recorded(self) -> Iterator[list[tuple[str, Any]]]:
        """Collect statements with their parameters."""
        sent: list[tuple[str, Any]] = []

        def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
            if not statement.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
                sent.append((statement, parameters))

        event.listen(self.engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            event.remove(self.engine, "before_cursor_execute", note)

    def ask(self, method: str, path: str, data: Any) -> list[tuple[str, Any]]:
        """Ask, and give the statements that were sent; what they did is undone."""
        data = None if data is None else {key: self.job if value == "JOB" else value for key, value in data.items()}
        savepoint = self.session.connection().begin_nested()
        with self.recorded() as sent:
            ask(self.app, method, path.replace("JOB", self.job), data)
        savepoint.rollback()
        return sent

    def plan(self, statement: str, parameters: Any, *, run: bool, mode: str = "auto") -> dict[str, Any]:
        """Have a statement explained, and run if that is wanted; ``mode`` is for prepared statements."""
        connection = self.session.connection()
        cursor = connection.connection.cursor()
        cursor.execute(f"SET LOCAL plan_cache_mode = {mode}")
        cursor.execute(f"EXPLAIN ({'ANALYZE, ' if run else ''}FORMAT JSON) {statement}", parameters)
        plan: dict[str, Any] = cursor.fetchone()[0][0]["Plan"]
        cursor.close()
        return plan


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give every step of a plan that reads a table."""
    if "Relation Name" in plan and "Scan" in plan["Node Type"]:
        yield plan
    for below in plan.get("Plans", ()):
        yield from scans(below)


def touched(scan: dict[str, Any]) -> int:
    """Tell how many rows a step that has run has read."""
    removed = scan.get("Rows Removed by Filter", 0) + scan.get("Rows Removed by Index Recheck", 0)
    return int((scan["Actual Rows"] + removed) * scan["Actual Loops"])


@pytest.fixture
def lab(app: TestApp, session: Session, engine: Engine) -> Lab:
    session.execute(text(BIG.replace(":", "\\:")))
    return Lab(app, session, engine)


@pytest.mark.parametrize("mode", MODES)
def test_no_main_read_reads_a_whole_table(lab: Lab, mode: str) -> None:
    wrong = []
    for path in BIG_READS:
        for statement, parameters in lab.ask("GET", path, None):
            for scan in scans(lab.plan(statement, parameters, run=True, mode=mode)):
                where = f"GET {path}: {scan['Node Type']} on {scan['Relation Name']}, {touched(scan)} rows"
                if scan["Relation Name"] in BIG_TABLES and ("Seq" in scan["Node Type"] or touched(scan) > MOST_ROWS):
                    wrong.append(f"{where}\n{statement}")
    assert not wrong, "\n\n".join(wrong)


def assert_no_write_reads_a_whole(tables: Any, lab: Any, requests: Any, mode: str) -> None:
    wrong = []
    for request in requests:
        for statement, parameters in lab.ask(*request):
            for scan in scans(lab.plan(statement, parameters, run=False, mode=mode)):
                if scan["Relation Name"] in tables and "Seq" in scan["Node Type"]:
                    wrong.append(f"{request[:2]}: {scan['Node Type']} on {scan['Relation Name']}\n{statement}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_no_main_write_reads_a_whole_table(lab: Lab, mode: str) -> None:
    assert_no_write_reads_a_whole(BIG_TABLES, lab, BIG_WRITES, mode)


def test_a_page_by_its_cursor_reads_as_little_at_the_end_as_at_the_beginning(lab: Lab) -> None:
    answer = lab.app.get("/runs/?count=100")
    while "Link" in answer.headers:
        url = answer.headers["Link"].split(">")[0].lstrip("<")
        with lab.recorded() as sent:
            answer = lab.app.get(url)
        for scan in scans(lab.plan(*sent[0], run=True)):
            assert touched(scan) <= 100, url
    assert "Link" not in answer.headers


# Plans of repos and builds

#: Ten repos for each commit: five distributions in two flavors; a fifth of the commits are on main, and one project
#: has nearly all of them, as in a real lab: what the planner takes for the size of a project or a ref is far from true.
COMMITS = 2000
BIG_REPOS = f"""
INSERT INTO repos (project, ref, sha1, flavor, distro, version, distro_version, distro_codename, platform, status,
                   archs, extra, modified, url, node_url)
  SELECT 'ceph', ref, sha1, flavor, distro, version, number, codename, distro || '/' || number,
         CASE WHEN (c + place) % 20 = 0 THEN 'failed' WHEN c > {COMMITS} - 5 THEN 'building' ELSE 'ready' END,
         CASE WHEN place % 2 = 1 THEN ARRAY['x86_64'] ELSE ARRAY['x86_64', 'arm64'] END, '{{}}',
         now() - ({COMMITS} - c) * interval '1 minute' + place * interval '1 second',
         'https://c.example/r/' || c || '/' || place || flavor, 'https://c.example/big/' || c || '/' || place || flavor
  FROM generate_series(1, {COMMITS}) c,
       LATERAL (SELECT CASE WHEN c % 5 = 0 THEN 'main' ELSE 'wip-' || c % 200 END AS ref, md5(c::text) AS sha1) commits,
       (VALUES (1, 'ubuntu', 'jammy', '22.04', 'jammy'), (2, 'ubuntu', 'noble', '24.04', 'noble'),
               (3, 'centos', '9', '9', NULL), (4, 'rocky', '10', '10', NULL),
               (5, 'debian', 'bookworm', '12', 'bookworm')) distros (place, distro, version, number, codename),
       (VALUES ('default'), ('crimson')) flavors (flavor)
  ORDER BY c, place, flavor;
INSERT INTO repos (project, ref, sha1, flavor, distro, version, distro_version, platform, status, archs, extra,
                   modified, url, node_url)
  SELECT 'other-' || n % 20, 'main', md5(n::text), 'default', 'centos', '9', '9', 'centos/9', 'ready', '{{x86_64}}',
         '{{}}', now() - n * interval '1 hour', '', 'https://c.example/other/' || n FROM generate_series(1, 200) n;
INSERT INTO builds (project, ref, sha1, flavor, distro, distro_version, distro_arch, platform, url, status, extra,
                    modified, started)
  SELECT project, ref, sha1, flavor, distro, distro_version, 'x86_64', platform, 'https://j.example/' || id,
         'completed', extra, modified, modified FROM repos;
INSERT INTO repo_statuses (repo_id, number, status, at)
  SELECT id, n, 'some', modified FROM repos, generate_series(1, 2) n WHERE node_url LIKE '%/big/%';
INSERT INTO build_statuses (build_id, number, status, at)
  SELECT id, n, 'some', modified FROM builds, generate_series(1, 2) n WHERE url LIKE 'https://j.example/%';
INSERT INTO projects SELECT DISTINCT project FROM repos ON CONFLICT DO NOTHING;
INSERT INTO commits (project, ref, sha1, repos, builds)
  SELECT project, ref, sha1, count(*), count(*) FROM repos WHERE node_url ~ 'example/(big|other)/'
  GROUP BY project, ref, sha1 ORDER BY min(id);
ANALYZE repos, builds, repo_statuses, build_statuses, projects, commits;
"""
BIG_TABLES_OF_REPOS = {"repos", "builds", "repo_statuses", "build_statuses", "commits"}

#: Requests with SHA1 for a commit on main; /api/repos and /api/builds, which name every commit, are not among them.
BIG_READS_OF_REPOS = [
    "/api/search",
    "/api/search?count=50&page=3",
    "/api/search?project=ceph",
    "/api/search?project=ceph&ref=main",
    "/api/search?project=ceph&ref=main&flavor=crimson&status=ready",
    "/api/search?status=ready&project=ceph&flavor=default&distros=centos%2F9%2Fx86_64&ref=main",
    "/api/search?project=ceph&distros=ubuntu/jammy,centos/9/x86_64",
    "/api/search?project=ceph&ref=wip-7&distros=ubuntu/jammy,centos/9,debian/12",
    "/api/search?distros=rocky/10&count=30",
    "/api/search?sha1=SHA1",
    "/api/search?project=ceph&ref=main&sha1=SHA1&flavor=default&distros=centos/9/x86_64",
    "/api/search?project=ceph&sha1=SHA1&history=1",
    "/api/search?sha1=latest",
    "/api/search?project=ceph&ref=main&sha1=latest",
    "/api/search?project=ceph&ref=main&sha1=latest&status=ready&flavor=default&distros=ubuntu/jammy,centos/9",
    "/api/search?project=ceph&ref=main&sha1=latest&status=ready&distros=ubuntu/noble/arm64,rocky/10/arm64,debian/12",
    "/api/search?project=ceph&ref=wip-7&sha1=latest&distros=ubuntu/jammy,centos/9",
    "/api/search?project=ceph&sha1=latest&distros=ubuntu/jammy,ubuntu/focal",
    "/api/repos/ceph/",
    "/api/repos/ceph/main/?count=50",
    "/api/repos/ceph/wip-7/",
    "/api/repos/ceph/main/SHA1/",
    "/api/repos/ceph/main/latest/",
    "/api/repos/ceph/main/SHA1/ubuntu/",
    "/api/repos/ceph/main/latest/ubuntu/",
    "/api/repos/ceph/main/SHA1/ubuntu/jammy/",
    "/api/repos/ceph/main/latest/ubuntu/jammy/",
    "/api/repos/ceph/main/SHA1/ubuntu/jammy/flavors/",
    "/api/repos/ceph/main/latest/centos/9/flavors/crimson/",
    "/api/repos/ceph/main/SHA1/ubuntu/jammy/?history=1",
    "/api/repos/ceph/main/SHA1/ubuntu/jammy/repo",
    "/api/repos/ceph/main/latest/ubuntu/jammy/repo?arch=x86_64",
    "/api/repos/ceph/main/latest/ubuntu/noble/flavors/crimson/arm64/a/b",
    "/api/builds/ceph/",
    "/api/builds/ceph/main/?count=50",
    "/api/builds/ceph/main/SHA1/",
    "/api/builds/ceph/main/SHA1/?history=1",
]
BIG_WRITES_OF_REPOS: list[Asked] = [
    ("POST", "/api/repos/ceph/", {**REPO, "chacra_url": "https://c.example/repos/new/"}),
    ("POST", "/api/repos/ceph/", REPO),
    ("POST", "/api/repos/ceph/", {"chacra_url": REPO["chacra_url"], "status": "failed"}),
    ("POST", "/api/repos/ceph/", {**REPO, "status": "deleted"}),
    ("DELETE", "/api/repos/ceph/main/SHA1/ubuntu/jammy/", None),
    ("POST", "/api/builds/ceph/", REPO),
    ("POST", "/api/builds/ceph/", {**REPO, "url": "https://j.example/new/"}),
]


class LabOfRepos(Lab):
    """An application over many repos and builds."""

    def __init__(self, app: TestApp, session: Session, engine: Engine) -> None:
        self.app = app
        self.session = session
        self.engine = engine
        # In the middle of main.
        query = f"SELECT sha1 FROM commits WHERE ref = 'main' AND sha1 = md5('{COMMITS // 2}')"
        self.sha1: str = session.execute(text(query)).scalar_one()
        self.job = ""

    def ask(self, method: str, path: str, data: Any) -> list[tuple[str, Any]]:
        """Ask, and give the statements that were sent; what they did is undone."""
        return super().ask(method, path.replace("SHA1", self.sha1), data)


@pytest.fixture
def lab_of_repos(app: TestApp, session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> LabOfRepos:
    # A connection that other tests have used must not run out of prepared statements: these have the generic plans.
    monkeypatch.setattr(db, "MOST_PREPARED", 10_000)
    session.execute(text(BIG_REPOS.replace(":", "\\:")))
    return LabOfRepos(app, session, engine)


@pytest.mark.parametrize("mode", MODES)
def test_no_main_read_reads_a_whole_table_of_repos_or_builds(lab_of_repos: LabOfRepos, mode: str) -> None:
    wrong = []
    for path in BIG_READS_OF_REPOS:
        for statement, parameters in lab_of_repos.ask("GET", path, None):
            for scan in scans(lab_of_repos.plan(statement, parameters, run=True, mode=mode)):
                where = f"GET {path}: {scan['Node Type']} on {scan['Relation Name']}, {touched(scan)} rows"
                # Whether there is any repo for a distribution that a fifth are for, any way of looking tells at once.
                whole = "Seq" in scan["Node Type"] and touched(scan) > 10
                if scan["Relation Name"] in BIG_TABLES_OF_REPOS and (whole or touched(scan) > MOST_ROWS):
                    wrong.append(f"{where}\n{statement}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_no_main_write_reads_a_whole_table_of_repos_or_builds(lab_of_repos: LabOfRepos, mode: str) -> None:
    assert_no_write_reads_a_whole(BIG_TABLES_OF_REPOS, lab_of_repos, BIG_WRITES_OF_REPOS, mode)


@pytest.mark.parametrize(
    "query", ["project=ceph", "project=ceph&distros=ubuntu/jammy,centos/9", "project=ceph&ref=main"]
)
def test_a_search_by_its_cursor_reads_as_little_at_the_end_as_at_the_beginning(
    lab_of_repos: LabOfRepos, query: str
) -> None:
    first = text("SELECT extract(epoch FROM min(modified)) * 1e6 FROM repos WHERE project = 'ceph' AND ref = 'main'")
    # Ten minutes, of which each had a commit.
    end = int(lab_of_repos.session.execute(first).scalar_one()) + 10 * 60 * 10**6
    url = f"/api/search?{query}&count=50&after={end}-0"
    for path in (url, f"/api/search?{query}&count=50"):
        for statement, parameters in lab_of_repos.ask("GET", path, None):
            for scan in scans(lab_of_repos.plan(statement, parameters, run=True)):
                assert touched(scan) <= 100, f"{path}\n{statement}"


# Plans of jobs on hosts

#: Old jobs on three of 500 hosts each, one in a hundred failed, some with much output; a few that wait and go on.
BIG_REMOTE = """
INSERT INTO remote_hosts (name, groups) SELECT 'host' || n, '{}' FROM generate_series(1, 500) n;
INSERT INTO remote_jobs (jid, operation, state, asked_by, created, begin_by, timeout, started, finished, last_seq,
                         lease_until)
  SELECT 'big-' || n, (ARRAY['ping', 'facter', 'execute', 'service', 'deploy'])[1 + n % 5],
         CASE WHEN n > 99990 THEN 'running' WHEN n > 99980 THEN 'queued' WHEN n % 100 = 0 THEN 'failed' ELSE 'done' END,
         'alice', at, at, 60, at, CASE WHEN n > 99980 THEN NULL ELSE at END,
         CASE WHEN n % 1000 = 7 THEN 500 ELSE 3 END, CASE WHEN n > 99990 THEN now() + interval '1 hour' END
  FROM generate_series(1, 100000) n, LATERAL (SELECT now() - (100000 - n) * interval '1 minute' AS at) t ORDER BY n;
-- Foreign keys are checked by a plan that a connection keeps, perhaps one for an empty table.
ANALYZE remote_jobs;
INSERT INTO remote_job_hosts (job_id, position, host, operation, held, state)
  SELECT id, place, 'host' || 1 + (id + place * 7) % 500, operation, state = 'running' AND operation = 'deploy', 'ok'
  FROM remote_jobs, generate_series(0, 2) place WHERE jid LIKE 'big-%' ORDER BY id, place;
INSERT INTO remote_outputs (job_id, seq, host, at, chunk)
  SELECT id, seq, 'host1', created, '{"status":1}' FROM remote_jobs, LATERAL generate_series(1, last_seq) seq
  WHERE jid LIKE 'big-%' ORDER BY id, seq;
ANALYZE remote_hosts, remote_jobs, remote_job_hosts, remote_outputs;
"""
BIG_TABLES_OF_REMOTE = {"remote_jobs", "remote_job_hosts", "remote_outputs"}
BIG_READS_OF_REMOTE = [
    "/jobs",
    "/jobs?page=3",
    "/jobs?detail=1",
    "/jobs?detail=1&page=3",
    "/jobs?state=0",
    "/jobs?state=1&detail=1",
    "/jobs?state=2",
    "/jobs?state=failed&detail=1",
    "/jobs?state=queued",
    "/jobs?operate=deploy&count=50",
    "/jobs?operate=deploy&detail=1&count=50",
    "/jobs?host=host7",
    "/jobs?host=host7&detail=1",
    "/jobs/big-77",
    "/jobs/big-50007?outputs=1&after=400",
    "/jobs/big-77?outputs=1&follow=1",
    "/jobs/big-50007/events?after=450",
]
BIG_WRITES_OF_REMOTE: list[Asked] = [
    ("POST", "/ping", {"targets": ["host7", "host8"]}),
    ("POST", "/deploy", {"targets": ["host7", "host8"], "role": "nginx"}),
    ("POST", "/deploy", {"targets": [f"host{number}" for number in range(1, 501)], "role": "nginx"}),
    ("POST", "/jobs/big-99985/cancel", None),
    ("POST", "/jobs/big-99995/cancel", None),
    ("DELETE", "/jobs/big-50007", None),
]


class LabOfRemote(Lab):
    """An application over many jobs on hosts."""

    def __init__(self, app: TestApp, session: Session, engine: Engine) -> None:
        self.app = app
        self.session = session
        self.engine = engine
        self.job = ""


@pytest.fixture
def lab_of_remote(app: TestApp, session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> LabOfRemote:
    monkeypatch.setattr(db, "MOST_PREPARED", 10_000)
    session.execute(text(BIG_REMOTE.replace(":", "\\:")))
    return LabOfRemote(app, session, engine)


@pytest.mark.parametrize("mode", MODES)
def test_no_main_read_reads_a_whole_table_of_jobs_on_hosts(lab_of_remote: LabOfRemote, mode: str) -> None:
    wrong = []
    for path in BIG_READS_OF_REMOTE:
        for statement, parameters in lab_of_remote.ask("GET", path, None):
            for scan in scans(lab_of_remote.plan(statement, parameters, run=True, mode=mode)):
                where = f"GET {path}: {scan['Node Type']} on {scan['Relation Name']}, {touched(scan)} rows"
                if scan["Relation Name"] in BIG_TABLES_OF_REMOTE and (
                    "Seq" in scan["Node Type"] or touched(scan) > MOST_ROWS
                ):
                    wrong.append(f"{where}\n{statement}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_no_main_write_reads_a_whole_table_of_jobs_on_hosts(lab_of_remote: LabOfRemote, mode: str) -> None:
    assert_no_write_reads_a_whole(BIG_TABLES_OF_REMOTE, lab_of_remote, BIG_WRITES_OF_REMOTE, mode)

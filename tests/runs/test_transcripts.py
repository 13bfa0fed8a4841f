"""What teuthology sends in the life of a run, request by request, and what today's server answered to it."""

import json
import re
from typing import Any

from webtest import TestApp

NAME = "scott-2026-01-02_03:04:05-rados-wip1-distro-default-smithi"
OTHER = NAME.replace("wip1", "new1")
TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}(\.\d{6})?")


def report(job_id: str, **changes: Any) -> dict[str, Any]:
    """Give the body with which teuthology schedules a job."""
    return {
        "job_id": job_id,
        "name": NAME,
        "status": "queued",
        "owner": "scheduled_scott@host",
        "user": "scott",
        "machine_type": "smithi",
        "description": f"rados/basic/{{a b {job_id}}}",
        "suite": "rados",
        "branch": "wip1",
        "sha1": "a" * 40,
        "suite_sha1": "b" * 40,
        "suite_branch": "main",
        "suite_repo": "https://github.com/ceph/ceph.git",
        "suite_path": "/x",
        "suite_relpath": "qa",
        "teuthology_branch": "main",
        "priority": 100,
        "kernel": {"kdb": 1, "sha1": "distro"},
        "roles": [["mon.a", "osd.0"], ["client.0"]],
        "tasks": [{"install": None}, {"ceph": {"log-ignorelist": ["x"]}}],
        "overrides": {"ceph": {"conf": {"global": {"a": 1}}}},
        "os_type": "ubuntu",
        "os_version": "22.04",
        "verbose": True,
        "email": None,
        "nuke_on_error": True,
        "last_in_suite": False,
        "archive_path": f"/a/{NAME}/{job_id}",
        "timestamp": "2026-01-02_03:04:05",
        "seed": 4321,
        "subset": "1/10",
        "flavor": "default",
        # What follows is no part of a job, and is ignored.
        "first_in_suite": False,
        "no_nested_subset": False,
        "repo": "https://github.com/ceph/ceph.git",
        "sleep_before_teardown": 0,
        "expire": "2026-02-02",
        "rerun": "x",
        "ctx_only": {"ignored": True},
        "package_source": "shaman",
        "queue": "smithi",
        **changes,
    }


#: What the server adds, and null for what was not reported.
ADDED = {
    "duration": None,
    "failure_reason": None,
    "pid": None,
    "sentry_event": None,
    "success": None,
    "targets": None,
    "pcp_grafana_url": None,
    "started": None,
    "timestamp": "2026-01-02 03:04:05",
}
IGNORED = ("first_in_suite", "no_nested_subset", "repo", "sleep_before_teardown", "expire", "rerun", "ctx_only")


def shown(job_id: str, **changes: Any) -> dict[str, Any]:
    """Give the job as it was answered, less its times."""
    job = {key: value for key, value in report(job_id).items() if key not in IGNORED}
    log = f"http://qa-proxy.ceph.com/teuthology/{NAME}/{job_id}/teuthology.log"
    return {**job, **ADDED, "log_href": log, **changes}


def without_times(job: dict[str, Any], *times: str) -> dict[str, Any]:
    """Take times out of an answer, which must be times."""
    for key in times:
        assert TIME.fullmatch(job[key])
    return {key: value for key, value in job.items() if key not in times}


def test_the_life_of_a_run_as_teuthology_reports_it(app: TestApp) -> None:
    jobs = f"/runs/{NAME}/jobs/"
    started = {"status": "running", "targets": {"ubuntu@smithi001.front.lab": "ssh-rsa K"}}

    for job_id in ("1001", "1002", "1003", "1004"):
        assert app.post_json(jobs, report(job_id)).json == {"job_id": job_id}
    # Both ways of asking; today's server redirects without the slash.
    for url in (f"{jobs}1001", f"{jobs}1001/"):
        job = app.get(url)
        assert job.content_type == "application/json"
        assert without_times(job.json, "posted", "updated") == shown("1001")

    again = app.post_json(jobs, report("1001", **started), status=400)
    assert again.json == {"message": "job with job_id 1001 already exists"}
    assert app.put_json(f"{jobs}1001/", report("1001", **started)).json == {}

    listed = app.get(jobs).json
    assert [job["job_id"] for job in listed] == ["1004", "1003", "1002", "1001"]
    assert without_times(listed[-1], "posted", "updated", "started") == {
        key: value for key, value in shown("1001", **started).items() if key != "started"
    }
    assert app.get(f"{jobs}?fields=status,job_id").json == [
        {"status": "queued", "job_id": "1004"},
        {"status": "queued", "job_id": "1003"},
        {"status": "queued", "job_id": "1002"},
        {"status": "running", "job_id": "1001"},
    ]

    # fields is ignored here.
    run = app.get(f"/runs/{NAME}").json
    assert app.get(f"/runs/{NAME}/?fields=name,status").json == run
    assert [job["job_id"] for job in run.pop("jobs")] == ["1001", "1002", "1003", "1004"]
    assert without_times(run, "posted", "started", "updated") == {
        "name": NAME,
        # The contract: a string; the list with one in it that today's server answers is a slip.
        "href": f"http://localhost/runs/{NAME}/",
        "user": "scott",
        "status": "running",
        "results": {
            **dict.fromkeys(("pass", "waiting", "fail", "dead", "unknown"), 0),
            "queued": 3,
            "running": 1,
            "total": 4,
            "sha1": "a" * 40,
            "flavor": "default",
        },
        "jobs_count": 4,
        "scheduled": "2026-01-02 03:04:05",
        "branch": "wip1",
        "suite": "rados",
        "machine_type": "smithi",
        "sha1": "a" * 40,
        "priority": 100,
        "flavor": "default",
    }

    # teuthology-kill and teuthology-suite --rerun.
    app.post_json("/runs/", {"name": OTHER})
    assert app.head(f"/runs/{NAME}/").status_int == 200
    assert app.delete(f"/runs/{OTHER}/").json == {}
    assert app.head(f"/runs/{OTHER}/", status=404).body == b""
    assert app.delete(f"{jobs}1003/").json == {}
    assert app.delete(f"{jobs}9999/", status=404).json == {"message": "attempted to delete a non-existent job"}
    assert app.get(f"/runs/{NAME}").json["results"]["queued"] == 2
    assert app.delete(f"/runs/{NAME}/").json == {}
    # Today's server answers HTML to these two; the contract wants JSON.
    for url in (f"/runs/{NAME}/", f"{jobs}1/"):
        assert list(app.get(url, status=404).json) == ["message"]
    assert app.delete(f"/runs/{NAME}/", status=404).json == {"message": "attempted to delete a non-existent run"}
    smoke = NAME.replace("rados", "smoke")
    assert app.post_json("/runs/", {"name": smoke}).json == {}
    assert [run["suite"] for run in app.get("/runs/").json] == ["smoke"]


def test_the_machines_of_a_lab_as_teuthology_registers_and_locks_them(app: TestApp) -> None:
    def node(number: int) -> dict[str, Any]:
        return {
            "name": f"n{number}.front.lab",
            "user": "ubuntu",
            "arch": "x86_64",
            "os_type": "ubuntu",
            "os_version": "22.04",
            "ssh_pub_key": f"ssh-rsa K{number}",
            "up": True,
            "machine_type": "mt",
            "is_vm": False,
        }

    def seen(number: int, **changes: Any) -> dict[str, Any]:
        unset = ("description", "vm_host", "locked_since", "locked_by", "mac_address")
        sent = {key: value for key, value in node(number).items() if key != "user"}
        return {**sent, **dict.fromkeys(unset), "locked": False, **changes}

    missing = app.put_json("/nodes/n0.front.lab/", node(0), status=404)
    assert missing.json == {"message": "attempted to update a non-existent node"}
    for number in range(3):
        assert app.post_json("/nodes/", node(number)).json == {}
    assert app.get("/nodes/n0.front.lab/").json == seen(0)
    assert app.put_json("/nodes/n0.front.lab/", {"name": "n0.front.lab", "os_version": "24.04", "user": "u"}).json == {}
    assert app.get("/nodes/nosuch.front.lab/", status=404).json == {"message": "node not found"}
    listed = sorted(app.get("/nodes/?machine_type=mt").json, key=lambda each: each["name"])
    assert listed == [seen(0, os_version="24.04"), seen(1), seen(2)]

    lock = {"name": "n0.front.lab", "locked": True, "locked_by": "scott@h", "description": "manual"}
    # Without a content type, as teuthology's lock sends it.
    locked = app.request("/nodes/n0.front.lab/lock/", method="PUT", body=json.dumps(lock).encode())
    assert locked.json == {
        "name": "n0.front.lab",
        "locked": True,
        "locked_by": "scott@h",
        "machine_type": "mt",
        "is_vm": False,
    }
    other = app.put_json("/nodes/n0.front.lab/lock/", {**lock, "locked_by": "other@h"}, status=403)
    assert other.json == {"message": "Cannot lock an already-locked node"}
    wanted = {"locked_by": "scott@h", "count": 2, "machine_type": "mt", "description": f"/a/{NAME}/77"}
    given = sorted(app.post_json("/nodes/lock_many/", wanted).json, key=lambda each: each["name"])
    held = {"locked": True, "locked_by": "scott@h", "description": f"/a/{NAME}/77"}
    for number, machine in enumerate(given, start=1):
        since = machine["locked_since"]
        assert TIME.fullmatch(since)
        assert machine == seen(number, **held, locked_since=since)
    assert len(given) == 2
    app.put_json("/nodes/n0.front.lab/lock/", {**lock, "locked": False})
    refused = app.post_json("/nodes/lock_many/", {**wanted, "description": "d"}, status=503)
    assert refused.json == {"message": "only 1 nodes available"}

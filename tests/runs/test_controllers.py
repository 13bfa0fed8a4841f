"""``/runs`` and ``/api/runs``: what clients send and get, and what is in the database afterwards."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as configured
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.app import make_app
from labctl.models import metadata
from labctl.settings import Settings
from tests.runs.reference import STATUSES, assert_consistent, job_status

NAME = "ada-2026-01-02_03:04:05-rados-main-distro-default-smithi"
RUN = f"/runs/{NAME}"
BOTH = pytest.mark.parametrize("mount", ["/runs", "/api/runs"])

JOB_KEYS = [
    *("log_href", "archive_path", "description", "duration", "email", "failure_reason", "flavor", "job_id", "kernel"),
    *("last_in_suite", "machine_type", "name", "nuke_on_error", "os_type", "os_version", "overrides", "owner", "pid"),
    *("roles", "sentry_event", "status", "success", "branch", "seed", "sha1", "subset", "suite", "suite_branch"),
    *("suite_path", "suite_relpath", "suite_repo", "suite_sha1", "targets", "tasks", "timestamp", "teuthology_branch"),
    *("verbose", "pcp_grafana_url", "priority", "user", "queue", "package_source", "posted", "started", "updated"),
]
RUN_KEYS = [
    *("name", "href", "user", "status", "results", "jobs_count", "posted", "scheduled", "started", "updated"),
    *("branch", "suite", "machine_type", "sha1", "priority", "flavor"),
]


def report(app: TestApp, job_id: Any = 1, run: str = RUN, **keys: Any) -> Any:
    return app.post_json(f"{run}/jobs/", {"job_id": job_id, **keys})


def fetch(app: TestApp, url: str) -> Any:
    """Get a URL with whatever is encoded in it, as gunicorn hands it over."""
    path = urlsplit(url).path
    return app.get(path, extra_environ={"RAW_URI": path}).json


@pytest.fixture
def rows(session: Session) -> Callable[[], dict[str, int]]:
    """Count the rows of every table."""
    return lambda: {
        table.name: session.scalar(select(func.count()).select_from(table)) for table in metadata.sorted_tables
    }


def test_a_run_is_added_once(app: TestApp) -> None:
    assert app.post_json("/runs/", {"name": NAME}).json == {}
    again = app.post_json("/runs/", {"name": NAME}, status=400)
    assert again.json == {"message": f"run with name {NAME} already exists"}
    run = app.get(RUN).json
    assert list(run) == [*RUN_KEYS, "jobs"]
    assert run["name"] == NAME
    assert run["href"] == f"http://localhost/runs/{NAME}/"
    assert (run["status"], run["jobs_count"], run["jobs"]) == ("empty", 0, [])
    assert run["results"] == {**dict.fromkeys(STATUSES, 0), "total": 0, "sha1": "none", "flavor": "none"}
    assert (run["user"], run["suite"], run["branch"], run["machine_type"]) == ("ada", "rados", "main", "smithi")
    assert (run["sha1"], run["flavor"], run["priority"], run["started"]) == (None, None, None, None)


def test_the_list_of_runs_begins_with_the_one_posted_last_and_shows_a_hundred(app: TestApp) -> None:
    names = [f"run {number}" for number in range(103)]
    for name in names:
        app.post_json("/runs/", {"name": name})
    assert [run["name"] for run in app.get("/runs/").json] == names[:2:-1]
    assert [run["name"] for run in app.get("/runs/?count=2&page=2").json] == ["run 100", "run 99"]
    assert app.get("/runs/?count=2&page=60").json == []
    assert list(app.get("/api/runs/").json) == names[:2:-1]
    assert list(app.get("/api/runs/?count=1").json) == ["run 102"]


def test_the_list_of_runs_holds_the_same_objects_as_the_runs_themselves(app: TestApp) -> None:
    report(app, status="running", sha1="abc", flavor="default", priority=7)
    run = app.get(RUN).json
    del run["jobs"]
    assert app.get("/runs/").json == [run]
    assert run["results"]["sha1"] == run["sha1"] == "abc"
    assert run["results"]["flavor"] == run["flavor"] == "default"
    assert run["priority"] == 7


def test_fields_cut_the_list_of_runs_to_these_keys(app: TestApp) -> None:
    report(app)
    assert app.get("/runs/?fields=name,status").json == [{"name": NAME, "status": "unknown"}]
    assert app.get("/api/runs/?fields=status,user").json == {NAME: {"status": "unknown", "user": "ada"}}
    for key in RUN_KEYS:
        assert list(app.get(f"/runs/?fields={key}").json[0]) == [key]


@BOTH
@pytest.mark.parametrize("field", ["nosuch", "jobs", "__class__", "id", "name;", "Name", "name,nosuch"])
def test_an_unknown_field_of_runs_is_refused(app: TestApp, mount: str, field: str) -> None:
    answer = app.get(f"{mount}/", {"fields": field}, status=400)
    assert answer.json["message"].startswith("an invalid field was specified")


def test_the_readme_s_mount_gives_runs_and_jobs_behind_their_names(app: TestApp) -> None:
    report(app, 1500, status="running")
    report(app, 1501, status="fail")
    listed = app.get("/api/runs/").json
    assert listed[NAME]["href"] == f"http://localhost/api/runs/{NAME}/"
    assert listed[NAME]["status"] == "running"
    assert {key: listed[NAME]["results"][key] for key in ("pass", "fail", "running")} == {
        "pass": 0,
        "fail": 1,
        "running": 1,
    }
    jobs = app.get(f"/api/runs/{NAME}").json
    assert {job_id: job["status"] for job_id, job in jobs.items()} == {"1500": "running", "1501": "fail"}
    assert jobs["1501"]["results"]["fail"] == 1
    for job_id, job in jobs.items():
        assert fetch(app, job["href"])["job_id"] == job_id


@pytest.mark.parametrize("name", ["a run", "100%", "a/b", "a?b#c", "ä+b", "日本", "a:b", "x" * 512, "😀" * 341, '"\\'])
def test_a_run_of_any_name_is_found_at_the_href_that_it_shows(app: TestApp, name: str) -> None:
    assert app.post_json("/runs/", {"name": name}).json == {}
    path = f"/runs/{quote(name, safe='')}/jobs/"
    for job_id in ("1/2 %", "1:2", "ä", "😀" * 128):
        sent = app.post_json(path, {"job_id": job_id}, extra_environ={"RAW_URI": path})
        assert sent.json == {"job_id": job_id}
    (run,) = app.get("/runs/").json
    assert fetch(app, run["href"])["name"] == name
    ((seen, entry),) = app.get("/api/runs/").json.items()
    assert seen == name
    jobs = fetch(app, entry["href"])
    assert len(jobs) == 4
    for job_id, job in jobs.items():
        assert fetch(app, job["href"])["job_id"] == job_id


@pytest.mark.parametrize("name", ["queued", "branch", "date", "flavors", "suite", "user", "sha1", "status"])
def test_a_run_whose_url_would_be_a_filter_is_refused(app: TestApp, name: str) -> None:
    assert app.post_json("/runs/", {"name": name}, status=400).json["message"].startswith("name: ")
    assert app.get("/runs/").json == []


def test_a_job_is_reported_once_and_then_updated_as_teuthology_does(app: TestApp) -> None:
    assert report(app, "1500", status="queued").json == {"job_id": "1500"}
    again = app.post_json(f"{RUN}/jobs/", {"job_id": 1500, "status": "running"}, status=400)
    assert again.json["message"] == "job with job_id 1500 already exists"
    assert app.get(f"{RUN}/jobs/1500/").json["status"] == "queued"
    assert app.put_json(f"{RUN}/jobs/1500/", {"job_id": 1500, "status": "running"}).json == {}
    assert app.get(f"{RUN}/jobs/1500/").json["status"] == "running"


def test_a_job_shows_every_key_null_when_unset_and_its_id_as_a_string(app: TestApp) -> None:
    report(app, 1500)
    job = app.get(f"{RUN}/jobs/1500/").json
    assert list(job) == JOB_KEYS
    set_ = {key: value for key, value in job.items() if value is not None}
    assert set_ == {
        "log_href": f"http://qa-proxy.ceph.com/teuthology/{NAME}/1500/teuthology.log",
        "job_id": "1500",
        "status": "unknown",
        "posted": job["posted"],
        "updated": job["posted"],
    }


def test_a_job_is_the_same_wherever_it_is_shown(session: Session, settings: Settings) -> None:
    settings = replace(settings, job_log_url="http://logs/{job_id}/{run_name}/{job_id}.log")
    app = TestApp(make_app(settings))
    run = "/runs/a{job_id}b"
    report(app, '1"', run, status="queued", queue="q")
    job = app.get(f'{run}/jobs/1"/').json
    assert unquote(job["log_href"]) == 'http://logs/1"/a{job_id}b/1".log'
    assert app.get(run).json["jobs"] == [job]
    assert app.get(f"{run}/jobs/").json == [job]
    assert app.get(f"{run}/jobs/?fields={','.join(JOB_KEYS)}").json == [job]
    assert app.get("/queue/pop_queue?queue=q").json == job
    assert app.post_json("/queue/queued_jobs/", {"queue": "q"}).json == [job]
    assert app.get(f'/api{run}/jobs/1"/').json == job
    assert app.get(f'{run}/1"/').json == job


def test_a_job_without_an_id_gets_one_on_one_mount_and_is_refused_on_the_other(
    app: TestApp, rows: Callable[[], Any]
) -> None:
    made = app.post_json(f"{RUN}/jobs/", {"status": "running"}).json["job_id"]
    assert isinstance(made, str)
    assert app.get(f"{RUN}/jobs/{made}/").json["status"] == "running"
    before = rows()
    refused = app.post_json(f"/api{RUN}/jobs/", {"status": "running"}, status=400)
    assert "job_id" in refused.json["message"]
    assert rows() == before


def test_a_job_of_an_unknown_run_adds_the_run_on_one_mount_and_is_not_found_on_the_other(
    app: TestApp, rows: Callable[[], Any]
) -> None:
    before = rows()
    assert "message" in app.post_json(f"/api{RUN}/jobs/", {"job_id": 1}, status=404).json
    assert rows() == before
    report(app)
    assert app.get(RUN).json["user"] == "ada"
    assert app.post_json(f"/api{RUN}/jobs/", {"job_id": 2}).json == {}
    assert [job["job_id"] for job in app.get(RUN).json["jobs"]] == ["1", "2"]


@BOTH
def test_a_job_s_id_can_never_be_changed(app: TestApp, mount: str) -> None:
    report(app, 1)
    assert app.put_json(f"{mount}/{NAME}/jobs/1/", {"job_id": 2, "owner": "ada"}).json == {}
    assert app.get(f"{RUN}/jobs/1/").json["owner"] == "ada"
    assert "message" in app.get(f"{RUN}/jobs/2/", status=404).json


def test_an_update_changes_what_is_sent_and_nothing_else(app: TestApp) -> None:
    report(app, owner="ada", kernel={"a": 1, "b": 2}, tasks=[1], status="running", description="x")
    before = app.get(f"{RUN}/jobs/1/").json
    app.put_json(f"{RUN}/jobs/1/", {"kernel": {"a": 3}, "tasks": None, "os-type": "ubuntu", "posted": "1999"})
    after = app.get(f"{RUN}/jobs/1/").json
    assert after == {**before, "kernel": {"a": 3}, "tasks": None, "os_type": "ubuntu", "updated": after["updated"]}


def test_the_kernel_sha1s_of_old_clients_are_kept_with_underscores(app: TestApp) -> None:
    report(app, **{"mon.a_kernel_sha1": "abc", "mon.b_kernel_sha1": "def"})
    job = app.get(f"{RUN}/jobs/1/").json
    assert (job["mon_a_kernel_sha1"], job["mon_b_kernel_sha1"]) == ("abc", "def")


def test_a_passed_job_is_final_for_status_but_not_for_success(app: TestApp) -> None:
    report(app, status="pass")
    app.put_json(f"{RUN}/jobs/1/", {"status": "running"})
    assert app.get(RUN).json["status"] == "finished pass"
    app.put_json(f"{RUN}/jobs/1/", {"success": False})
    assert app.get(RUN).json["status"] == "finished fail"


def test_the_last_update_of_a_job_is_what_the_client_says(app: TestApp) -> None:
    report(app)
    app.put_json(f"{RUN}/jobs/1/", {"updated": "2026-01-02 03:04:05.5", "timestamp": "2026-01-02_03:04:05"})
    job = app.get(f"{RUN}/jobs/1/").json
    assert (job["updated"], job["timestamp"]) == ("2026-01-02 03:04:05.500000", "2026-01-02 03:04:05")
    assert app.get(RUN).json["updated"] == "2026-01-02 03:04:05.500000"


def test_the_jobs_of_a_run_are_listed_newest_first_all_or_by_status_whole_or_cut(app: TestApp) -> None:
    for number, status in enumerate(("queued", "running", "queued")):
        report(app, number, status=status, owner=f"owner {number}")
    assert [job["job_id"] for job in app.get(f"{RUN}/jobs/").json] == ["2", "1", "0"]
    assert [job["job_id"] for job in app.get(f"{RUN}/jobs/?status=queued").json] == ["2", "0"]
    assert app.get(f"{RUN}/jobs/?status=dead").json == []
    assert app.get(f"{RUN}/jobs/?fields=job_id,status&status=running").json == [{"job_id": "1", "status": "running"}]
    assert app.get(f"{RUN}/jobs/?fields=owner,job_id&status=running").json == [{"owner": "owner 1", "job_id": "1"}]


def test_each_field_of_a_job_by_itself_is_what_the_whole_job_shows(app: TestApp) -> None:
    report(app, status="queued", queue="q", priority=3, user="ada", kernel={"a": None}, duration=5)
    app.put_json(f"{RUN}/jobs/1/", {"status": "running"})
    job = app.get(f"{RUN}/jobs/1/").json
    for key in JOB_KEYS:
        assert app.get(f"{RUN}/jobs/?fields={key}").json == [{key: job[key]}]


@BOTH
def test_a_run_without_jobs_has_an_empty_list_of_them_and_an_unknown_run_none(app: TestApp, mount: str) -> None:
    app.post_json("/runs/", {"name": NAME})
    assert app.get(f"{mount}/{NAME}/jobs/").json == []
    for below in ("", "jobs/", "jobs/?fields=job_id", "jobs/?status=dead", "jobs/1/", "1/"):
        assert "message" in app.get(f"{mount}/nosuch/{below}", status=404).json


@BOTH
def test_what_is_not_there_cannot_be_updated_or_removed(app: TestApp, mount: str) -> None:
    missing = app.put_json(f"{mount}/{NAME}/jobs/1/", {"status": "dead"}, status=404)
    assert missing.json == {"message": "attempted to update a non-existent job"}
    missing = app.delete(f"{mount}/{NAME}/jobs/1/", status=404)
    assert missing.json == {"message": "attempted to delete a non-existent job"}
    missing = app.delete(f"{mount}/{NAME}/", status=404)
    assert missing.json == {"message": "attempted to delete a non-existent run"}


@BOTH
def test_removing_a_job_counts_it_off_and_removing_the_run_removes_them_all(app: TestApp, mount: str) -> None:
    report(app, 1, status="running")
    report(app, 2, status="pass")
    assert app.delete(f"{mount}/{NAME}/jobs/1/").json == {}
    run = app.get(RUN).json
    assert_consistent(run)
    assert run["status"] == "finished pass"
    assert app.delete(f"{mount}/{NAME}/").json == {}
    app.get(RUN, status=404)
    app.get(f"{RUN}/jobs/2/", status=404)


@BOTH
def test_head_tells_whether_there_is_a_run(app: TestApp, mount: str) -> None:
    app.post_json("/runs/", {"name": NAME})
    found = app.head(f"{mount}/{NAME}/")
    assert (found.body, found.content_type) == (b"", "application/json")
    assert app.head(f"{mount}/nosuch/", status=404).body == b""


def test_the_targets_of_a_job_become_machines_that_are_down_and_know_their_jobs(app: TestApp) -> None:
    app.post_json("/nodes/", {"name": "known", "up": True, "machine_type": "mira"})
    report(app, 1, status="waiting", machine_type="smithi", targets={"ubuntu@known": "K", "ubuntu@new": "K"})
    report(app, 2, status="queued", machine_type="smithi")
    app.put_json(f"{RUN}/jobs/2/", {"status": "running", "targets": {"root@new": "K", "other": None}})
    shown = [(node["name"], node["machine_type"], node["up"]) for node in app.get("/nodes/").json]
    assert sorted(shown) == [("known", "mira", True), ("new", "smithi", False), ("other", "smithi", False)]
    assert [job["job_id"] for job in app.get("/nodes/new/jobs/").json] == ["2", "1"]
    assert [job["job_id"] for job in app.get("/nodes/known/jobs/").json] == ["1"]
    assert app.get("/nodes/new/jobs/").json[0] == app.get(f"{RUN}/jobs/2/").json
    app.delete(RUN)
    assert app.get("/nodes/new/jobs/").json == []


#: Bodies that are no JSON, or not JSON that labctl takes, and a word of the answer.
BAD_BODIES = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"name=a", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b'{"job_id": "\xff"}', "JSON"),
    (b'{"job_id": "1", "description": "\\ud800"}', "JSON"),
    (b'{"job_id": NaN}', "JSON"),
    (b"[" * 10_000 + b"]" * 10_000, "JSON"),
    (b"[]", "object"),
    (b"null", "object"),
    (b'"job_id"', "object"),
    (b"1", "object"),
    (b'{"job_id": "1", "kernel": {"a": ["x\\u0000y"]}}', "kernel"),
    (b'{"job_id": "1", "kernel": {"a\\u0000": 1}}', "kernel"),
    (b'{"job_id": "1", "description": "\\u0000"}', "description"),
    (b'{"job_id": "1", "un\\u0000known": 1}', "known"),
    (b'{"job_id": "1", "tasks": ' + b"[" * 200 + b"]" * 200 + b"}", "tasks"),
    (b'{"job_id": "1", "description": "' + b"x" * (2 * 1024 * 1024) + b'"}', "body"),
]


@BOTH
@pytest.mark.parametrize(("sent", "word"), BAD_BODIES, ids=[repr(sent[:40]) for sent, _ in BAD_BODIES])
def test_a_bad_body_is_refused_with_a_reason_and_changes_nothing(
    app: TestApp, rows: Callable[[], Any], mount: str, sent: bytes, word: str
) -> None:
    report(app, 5, owner="ada")
    before, job = rows(), app.get(f"{RUN}/jobs/5/").json
    for method, path in (("POST", ""), ("POST", f"{NAME}/jobs/"), ("PUT", f"{NAME}/jobs/5/")):
        answer = app.request(f"{mount}/{path}", method=method, body=sent, status=400)
        assert answer.content_type == "application/json"
        assert list(answer.json) == ["message"]
        assert word in answer.json["message"]
    assert rows() == before
    assert app.get(f"{RUN}/jobs/5/").json == job


BAD_VALUES = [
    *(("job_id", value) for value in (True, 1.5, "", [], "x" * 129)),
    *(("status", value) for value in ("done", 5, [], {})),
    ("branch", "x" * 300),
    ("targets", ["ubuntu@host"]),
    ("priority", 1e30),
    ("pid", "x"),
    ("updated", "now"),
]


@BOTH
@pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=[f"{key}={str(value)[:20]}" for key, value in BAD_VALUES])
def test_a_bad_value_is_refused_by_name_and_changes_nothing(
    app: TestApp, rows: Callable[[], Any], mount: str, key: str, value: Any
) -> None:
    report(app, 5, owner="ada")
    before, job = rows(), app.get(f"{RUN}/jobs/5/").json
    refused = [
        app.post_json(f"{mount}/{NAME}/jobs/", {"job_id": "6", "owner": "bob", key: value}, status=400),
        app.put_json(f"{mount}/{NAME}/jobs/5/", {"owner": "bob", key: value}, status=400),
    ]
    for answer in refused:
        assert answer.json["message"].startswith(f"{key}: ")
    assert rows() == before
    assert app.get(f"{RUN}/jobs/5/").json == job


@BOTH
def test_an_empty_report_is_refused(app: TestApp, rows: Callable[[], Any], mount: str) -> None:
    app.post_json("/runs/", {"name": NAME})
    before = rows()
    assert list(app.post_json(f"{mount}/{NAME}/jobs/", {}, status=400).json) == ["message"]
    assert rows() == before


@BOTH
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "could not find required key: 'name'"),
        ({"name": None}, "could not find required key: 'name'"),
        ({"nam": "x"}, "could not find required key: 'name'"),
        ({"name": 5}, "name: "),
        ({"name": True}, "name: "),
        ({"name": []}, "name: "),
        ({"name": ""}, "name: "),
        ({"name": "x" * 513}, "name: "),
        ({"name": "a\nb"}, "name: "),
        ({"name": "a\u2028b"}, "name: "),
        ({"name": "a\0b"}, "name: "),
    ],
)
def test_a_bad_name_of_a_run_is_refused(
    app: TestApp, rows: Callable[[], Any], mount: str, sent: Any, message: str
) -> None:
    before = rows()
    assert app.post_json(f"{mount}/", sent, status=400).json["message"].startswith(message)
    assert rows() == before


def test_a_job_for_a_run_whose_name_is_too_long_is_refused(app: TestApp, rows: Callable[[], Any]) -> None:
    before = rows()
    for name in ("x" * 513, "a%0Ab"):
        refused = app.post_json(f"/runs/{name}/jobs/", {"job_id": 1}, status=400)
        assert refused.json["message"].startswith("name: ")
    assert rows() == before


BAD_QUERIES = [
    *(("count", value) for value in ("0", "-1", "x", "1.5", "", "10001", "1e3", "٣", "9" * 30, "1\0")),
    *(("page", value) for value in ("0", "-1", "x", "", "9" * 30)),
    *(("after", value) for value in ("x", "", "-", "1", "1-", "-1", "1-x", "1--1", "9" * 30 + "-1", "1-" + "9" * 30)),
    *(("after", value) for value in ("1-1-1", " 1-1", "²-1", "1-9223372036854775808", "1" * 5000 + "-1")),
    *(("fields", value) for value in ("x", "name,x", "na\0me")),
]


@BOTH
@pytest.mark.parametrize(("name", "value"), BAD_QUERIES, ids=[f"{n}={v[:12]!r}" for n, v in BAD_QUERIES])
def test_a_bad_parameter_of_the_list_of_runs_is_refused(app: TestApp, mount: str, name: str, value: str) -> None:
    message = app.get(f"{mount}/", {name: value}, status=400).json["message"]
    assert message.startswith(f"{name}: ") or (name == "fields" and message.startswith("an invalid field was"))


@BOTH
@pytest.mark.parametrize(("name", "value"), [("status", "done"), ("status", ""), ("fields", "x"), ("status", "\0")])
def test_a_bad_parameter_of_the_list_of_jobs_is_refused(app: TestApp, mount: str, name: str, value: str) -> None:
    report(app)
    answer = app.get(f"{mount}/{NAME}/jobs/", {name: value}, status=400)
    assert answer.json["message"].startswith((f"{name}: ", "an invalid field was specified"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["job_id", "updated", "claim", "mon.a_kernel_sha1", "x", *JOB_KEYS])


@configured(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.dictionaries(KEYS, VALUES, max_size=6))
def test_no_report_whatever_is_an_error_of_the_server(app: TestApp, sent: dict[str, Any]) -> None:
    body = json.dumps(sent).encode()
    for method, path in (("POST", f"{RUN}/jobs/"), ("PUT", f"{RUN}/jobs/1/")):
        answer = app.request(path, method=method, body=body, status="*")
        assert answer.status_int in (200, 400, 403, 404)
        if answer.status_int != 200:
            assert list(answer.json) == ["message"]
    found = app.get(RUN, status="*")
    if found.status_int == 200:
        assert_consistent(found.json)


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["POST", "PUT", "PUT", "DELETE"]),
        st.sampled_from("123"),
        st.fixed_dictionaries(
            {"owner": st.just("ada")},
            optional={"status": st.sampled_from(STATUSES), "success": st.sampled_from([None, True, False])},
        ),
    ),
    max_size=12,
)


@configured(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS)
def test_after_any_sequence_of_requests_the_counts_of_a_run_are_those_of_its_jobs(app: TestApp, acts: Any) -> None:
    app.delete(RUN, status="*")
    jobs: dict[str, str] = {}
    for method, job_id, sent in acts:
        if method == "POST":
            answer = app.post_json(f"{RUN}/jobs/", {"job_id": job_id, **sent}, status="*")
            assert answer.status_int == (400 if job_id in jobs else 200)
            jobs.setdefault(job_id, job_status(None, sent))
        elif method == "PUT":
            answer = app.put_json(f"{RUN}/jobs/{job_id}/", sent, status="*")
            assert answer.status_int == (200 if job_id in jobs else 404)
            if job_id in jobs:
                jobs[job_id] = job_status(jobs[job_id], sent)
        else:
            answer = app.delete(f"{RUN}/jobs/{job_id}/", status="*")
            assert answer.status_int == (200 if jobs.pop(job_id, None) else 404)
    if acts and any(method == "POST" for method, *_ in acts):
        run = app.get(RUN).json
        assert {job["job_id"]: job["status"] for job in run["jobs"]} == jobs
        assert_consistent(run)
    else:
        app.get(RUN, status=404)


@pytest.mark.parametrize("fields", ["href", "job_id,href", "href,status", "href,description,job_id"])
def test_the_url_of_a_job_is_one_of_its_fields(app: TestApp, fields: str) -> None:
    app.post_json("/runs/a:b/jobs/", {"job_id": "x/1", "description": "d"})

    (job,) = app.get(f"/runs/a:b/jobs/?fields={fields}").json

    assert list(job) == fields.split(",")
    assert job["href"] == "http://localhost/runs/a:b/jobs/x%2F1/"


@pytest.mark.parametrize("name", [".", ".."])
def test_what_no_url_can_name_is_refused(app: TestApp, name: str) -> None:
    assert "name" in app.post_json("/runs/", {"name": name}, status=400).json["message"]
    assert "job_id" in app.post_json("/runs/a/jobs/", {"job_id": name}, status=400).json["message"]
    assert app.get("/runs/").json == []


def test_a_name_that_is_too_long_for_a_url_is_refused(app: TestApp) -> None:
    assert "name" in app.post_json("/runs/", {"name": "😀" * 342}, status=400).json["message"]


def test_any_choice_of_fields_is_answered_by_the_same_few_statements(
    app: TestApp, statements: Callable[[], Any]
) -> None:
    app.post_json("/runs/a/jobs/", {"job_id": "1", "status": "queued", "queue": "q", "priority": 5})
    sent: set[str] = set()
    for fields in ("job_id", "status,job_id", "queue,job_id", "priority,queue,status", "posted,queue", "job_id,job_id"):
        with statements() as each:
            (job,) = app.get(f"/runs/a/jobs/?fields={fields}").json
        sent |= set(each)
        assert list(job) == list(dict.fromkeys(fields.split(",")))
    assert len({text for text in sent if not text.startswith("PREPARE")}) == 2


@pytest.mark.parametrize("duration", ["nan", "inf", "-inf"])
def test_a_duration_is_a_number_of_json(app: TestApp, duration: str) -> None:
    message = app.post_json("/runs/a/jobs/", {"job_id": "1", "duration": duration}, status=400).json["message"]
    assert "duration" in message


def test_pages_go_on_over_runs_of_any_time(app: TestApp) -> None:
    for year in ("9999", "2026", "0002"):
        app.post_json("/runs/", {"name": f"u-{year}-01-01_00:00:00-s-b-k-basic-m"})
    seen, url = [], "/runs/machine_type/m?count=1"
    while url:
        page = app.get(url)
        seen += [run["scheduled"][:4] for run in page.json]
        url = page.headers["Link"].partition(">")[0].lstrip("<") if "Link" in page.headers else ""
    assert seen == ["9999", "2026", "0002"]

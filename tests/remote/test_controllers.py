"""Operations on hosts, their jobs and their output, as clients see them; both mounts are one."""

import base64
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl.remote import controllers, queries
from labctl.remote.models import RemoteJob
from labctl.remote.states import JobState
from labctl.settings import Settings
from labctl.tokens import service as tokens

from .web import HOSTS, add_hosts, add_user, carry_out, claim, finish, piece, write

POSTS: dict[str, dict[str, Any]] = {
    "ping": {},
    "facter": {},
    "service": {"name": "nginx", "state": 2, "graceful": True},
    "execute": {"cmd": "uptime"},
    "deploy": {"role": "nginx"},
    "task": {"taskname": "rolling_restart", "taskopts": {"service": "nginx"}},
    "tasks": {"taskname": "rolling_restart", "taskopts": {"service": "nginx"}},
}
GETS = {"ping": "", "facter": "", "service": "&state=2&name=nginx&graceful=1", "execute": "&cmd=uptime"}


@pytest.fixture
def alice(session: Session, app: TestApp) -> TestApp:
    """The application with an inventory, asked by somebody who may."""
    add_hosts(session)
    app.extra_environ["HTTP_X_AUTH_TOKEN"] = add_user(session)["X-AUTH-TOKEN"]
    return app


@pytest.fixture(params=["", "/api/remote"])
def at(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def post(app: TestApp, operation: str, *targets: str, **changes: Any) -> str:
    jid: str = app.post_json(f"/{operation}", {"targets": targets, **POSTS[operation], **changes}, status=201).json[
        "jid"
    ]
    return jid


def job(app: TestApp, jid: str, query: str = "") -> Any:
    return app.get(f"/jobs/{jid}{query}").json


# Who may


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, path) for method in ("GET", "HEAD", "OPTIONS") for path in ("target", "jobs", "jobs/x", "task")),
        *((method, path) for method in ("GET", "OPTIONS", "POST") for path in GETS),
        *(("POST", path) for path in ("deploy", "tasks", "task", "jobs/x/cancel")),
        *(("DELETE", "jobs/x"), ("DELETE", "jobs"), ("GET", "jobs/x/events")),
    ],
)
def test_nothing_is_answered_without_a_credential_that_has_the_right(
    session: Session, app: TestApp, at: str, method: str, path: str
) -> None:
    add_hosts(session)
    url = f"{at}/{path}?target=web1"
    answer = app.request(url, method=method, expect_errors=True)
    assert answer.status_int == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    other = add_user(session, "bob", rights=("runs", "vms"))
    answer = app.request(url, method=method, headers=other, expect_errors=True)
    assert answer.status_int == 403
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_has_a_browser_do_nothing(session: Session, alice: TestApp, at: str, site: str) -> None:
    jid = post(alice, "execute", "db1")
    headers = {"Sec-Fetch-Site": site}
    for operation, query in GETS.items():
        alice.get(f"{at}/{operation}?target=db1{query}", headers=headers, status=403)
    for operation, rest in POSTS.items():
        body = {"targets": ["db1"], **rest}
        alice.post_json(f"{at}/{operation}", body, headers=headers, status=403)
    alice.post(f"{at}/jobs/{jid}/cancel", headers=headers, status=403)
    alice.delete(f"{at}/jobs/{jid}", headers=headers, status=403)
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 1
    assert job(alice, jid)["status"] == "queued"


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_a_browser_does_what_its_user_asks_for(alice: TestApp, site: str) -> None:
    alice.get("/ping?target=db1&wait=0", headers={"Sec-Fetch-Site": site}, status=202)


def test_options_tells_what_there_is(alice: TestApp, at: str) -> None:
    answer = alice.options(f"{at}/ping", status=204)
    assert answer.headers["Allow"] == "GET, OPTIONS, POST"


@pytest.mark.parametrize("operation", GETS)
def test_head_carries_nothing_out(session: Session, alice: TestApp, at: str, operation: str) -> None:
    answer = alice.head(f"{at}/{operation}?target=web1{GETS[operation]}&wait=0", status=405)
    assert answer.headers["Allow"] == "GET, OPTIONS, POST"
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0
    assert alice.head(f"{at}/jobs").status_int == 200


@pytest.mark.parametrize("operation", GETS)
def test_no_cache_keeps_what_an_operation_has_answered(alice: TestApp, at: str, operation: str) -> None:
    for query, status in ((f"target=web1{GETS[operation]}&wait=0", 202), ("target=", 400)):
        answer = alice.get(f"{at}/{operation}?{query}", status=status)
        assert answer.headers["Cache-Control"] == "no-store"


def test_who_asked_and_from_where_is_kept_with_the_job(session: Session, alice: TestApp) -> None:
    environ = {"REMOTE_ADDR": "192.0.2.7"}
    jid = alice.post_json("/ping", {"targets": ["web1"]}, extra_environ=environ).json["jid"]
    found = job(alice, jid)
    assert (found["asked_by"], found["address"]) == ("alice", "192.0.2.7")


# Hosts


def test_the_hosts_there_are_come_in_the_order_of_their_names(alice: TestApp, at: str) -> None:
    assert alice.get(f"{at}/target").json == sorted(HOSTS)
    assert alice.get(f"{at}/target/?pattern=*").json == sorted(HOSTS)


@pytest.mark.parametrize(
    ("pattern", "hosts"),
    [
        ("web*", ["web1", "web2", "web:1"]),
        ("web", ["web1", "web2"]),
        ("web:1", ["web:1"]),
        ("fe80::1", ["fe80::1"]),
        ("[x]", ["[x]"]),
        ("web*,!web1,%26db*", []),
        ("nosuch", []),
        ("--list", []),
        ("~web.*", []),
    ],
)
def test_a_pattern_chooses_hosts(alice: TestApp, pattern: str, hosts: list[str]) -> None:
    assert alice.get(f"/target?pattern={pattern}").json == hosts


def test_several_patterns_choose_as_the_targets_of_an_operation(alice: TestApp) -> None:
    assert alice.get("/target?pattern=web&pattern=db*&pattern=!web1").json == ["web2", "db1"]
    assert alice.get("/target?pattern=nosuch&pattern=db1").json == ["db1"]
    assert alice.get("/target?pattern=web&pattern=", status=400).json == {"message": "pattern: must not be empty"}


def test_an_empty_pattern_is_refused_and_so_are_too_many(alice: TestApp) -> None:
    assert alice.get("/target?pattern=", status=400).json == {"message": "pattern: must not be empty"}
    assert "more than 100 patterns" in alice.get(f"/target?pattern={'a*,' * 200}", status=400).json["message"]


def test_before_the_inventory_was_read_that_is_said(session: Session, alice: TestApp) -> None:
    session.execute(text("DELETE FROM remote_inventory"))
    expected = {"message": "the inventory has not been read yet; is a worker running?"}
    for answer in (
        alice.get("/target", status=503),
        alice.get("/ping?target=web1", status=503),
        alice.post_json("/ping", {"targets": ["web1"]}, status=503),
    ):
        assert answer.json == expected
        assert answer.headers["Retry-After"] == "5"


# Asking


@pytest.mark.parametrize("operation", POSTS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_post_answers_the_id_of_its_job_at_once(alice: TestApp, at: str, operation: str, slash: str) -> None:
    answer = alice.post_json(f"{at}/{operation}{slash}", {"targets": ["web1", "web2"], **POSTS[operation]}, status=201)
    assert list(answer.json) == ["jid"]
    found = job(alice, answer.json["jid"])
    assert (found["state"], found["status"], found["error"]) == (1, "queued", "")
    assert found["targets"] == ["web1", "web2"]
    assert found["operate"] == {"tasks": "task"}.get(operation, operation)


@pytest.mark.parametrize(
    ("operation", "asked", "arguments"),
    [
        ("ping", {}, {}),
        ("facter", {}, {}),
        ("service", {"state": 0}, {"start": True, "restart": False, "graceful": True}),
        ("service", {"state": 1}, {"start": False, "restart": False, "graceful": True}),
        ("service", {"state": 2}, {"start": True, "restart": True, "graceful": True}),
        ("service", {"graceful": False}, {"start": True, "restart": True, "graceful": False}),
        ("service", {"graceful": "0", "name": " NginX "}, {"start": True, "restart": True, "graceful": False}),
        ("service", {"graceful": 1}, {"start": True, "restart": True, "graceful": True}),
        ("service", {"graceful": None}, {"start": True, "restart": True, "graceful": False}),
        ("execute", {"cmd": "echo 'a  b'; true"}, {"command": "echo 'a  b'; true"}),
        ("deploy", {}, {"role": "nginx", "extra_vars": {}, "partial": None}),
        (
            "deploy",
            {"partial": ["conf", "tls.1"], "extra_vars": {"port": 80, "b": {"c": []}}},
            {"role": "nginx", "extra_vars": {"port": "***", "b": "***"}, "partial": ["conf", "tls.1"]},
        ),
        (
            "task",
            {"tasktype": None},
            {"taskname": "rolling_restart", "taskopts": {"service": "nginx"}},
        ),
    ],
)
def test_what_was_asked_is_told_as_operate_args(
    alice: TestApp, operation: str, asked: dict[str, Any], arguments: dict[str, Any]
) -> None:
    found = job(alice, post(alice, operation, "web1", **asked))["operate_args"]
    expected = {**arguments, "name": "nginx"} if operation == "service" else arguments
    assert {name: found[name] for name in expected} == expected
    assert found.keys() - expected.keys() <= {"tasktype"}


@pytest.mark.parametrize("operation", POSTS)
@pytest.mark.parametrize("targets", [None, [], "web1", {}, 1, True])
def test_without_targets_nothing_is_done(alice: TestApp, operation: str, targets: Any) -> None:
    answer = alice.post_json(f"/{operation}", {**POSTS[operation], "targets": targets}, status=400)
    assert answer.json == {"message": "no target(s) given"}
    answer = alice.post_json(f"/{operation}", POSTS[operation], status=400)
    assert answer.json == {"message": "no target(s) given"}


@pytest.mark.parametrize("target", ["", None, 1, [], "x" * 1001])
def test_every_target_is_text(alice: TestApp, target: Any) -> None:
    answer = alice.post_json("/ping", {"targets": ["web1", target]}, status=400)
    assert answer.json["message"].startswith("no target(s) given: each of the targets must be text")


def test_targets_are_called_target_as_well(alice: TestApp) -> None:
    jid = alice.post_json("/service", {"target": ["web1"], "name": "nginx", "state": 0}).json["jid"]
    assert job(alice, jid)["targets"] == ["web1"]
    jid = alice.post_json("/ping", {"target": ["web"], "targets": ["db1", "!web1"]}).json["jid"]
    assert job(alice, jid)["targets"] == ["web2", "db1"]
    for other in ("db1", {"db1": 1}, 5):
        assert alice.post_json("/ping", {"target": ["web1"], "targets": other}, status=400).json == {
            "message": "no target(s) given"
        }


@pytest.mark.parametrize("operation", POSTS)
def test_a_host_that_is_excluded_anywhere_is_left_alone(alice: TestApp, operation: str) -> None:
    expected = [name for name in sorted(HOSTS) if name != "web1"]
    for targets in (["all", "!web1"], ["!web1", "all", "web1"], ["!web1"]):
        jid = post(alice, operation, *targets)
        assert job(alice, jid)["targets"] == expected
        alice.post(f"/jobs/{jid}/cancel")


@pytest.mark.parametrize("operation", GETS)
def test_each_target_of_a_query_counts(alice: TestApp, at: str, operation: str) -> None:
    for query, hosts in (
        ("target=web1&target=db1", ["web1", "db1"]),
        ("targets=web1&target=&target=db1&targets=web2", ["db1", "web1", "web2"]),
        ("target=web&target=!web1", ["web2"]),
        ("targets=!web1&target=web&target=db", ["web2", "db1"]),
    ):
        jid = alice.get(f"{at}/{operation}?{query}{GETS[operation]}&wait=0", status=202).json["jid"]
        assert job(alice, jid)["targets"] == hosts


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("execute?cmd=ls&cmd=uptime", "cmd"),
        ("service?name=a&state=0&state=1", "state"),
        ("service?name=a&name=b&state=0", "name"),
        ("service?name=a&state=2&graceful=1&graceful=0", "graceful"),
        ("ping?timeout=1&timeout=2", "timeout"),
        ("ping?wait=0&wait=1", "wait"),
    ],
)
def test_any_other_parameter_of_an_operation_is_given_once(
    session: Session, alice: TestApp, query: str, name: str
) -> None:
    answer = alice.get(f"/{query}&target=web1", status=400)
    assert answer.json == {"message": f"{name}: must be given once"}
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0


def test_a_typing_mistake_behind_a_sign_does_not_act_on_every_host(session: Session, alice: TestApp) -> None:
    expected = {"message": "no hosts match that target: !wbe*"}
    assert alice.post_json("/ping", {"targets": ["!wbe*"]}, status=404).json == expected
    assert alice.get("/ping?target=!web1&targets=!wbe*&wait=0", status=404).json == expected
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0
    assert job(alice, post(alice, "ping", "web", "!wbe*"))["targets"] == ["web1", "web2"]


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_named_as_they_are(alice: TestApp, name: str) -> None:
    assert job(alice, post(alice, "deploy", name))["targets"] == [name]


@pytest.mark.parametrize("target", ["nosuch", "--list", "@/etc/passwd", "{{ lookup('pipe', 'id') }}", "~.*", "web1;id"])
@pytest.mark.parametrize("operation", POSTS)
def test_an_unknown_target_is_not_found(alice: TestApp, operation: str, target: str) -> None:
    answer = alice.post_json(f"/{operation}", {"targets": ["web1", target], **POSTS[operation]}, status=404)
    assert answer.json == {"message": f"no hosts match that target: {target}"}


@pytest.mark.parametrize(
    ("target", "nothing"),
    [
        ("web1,nosuch", "nosuch"),
        ("web1, wbe2 ,dv1", "wbe2, dv1"),
        ("web*,nosuch*", "nosuch*"),
        ("all,!wbe1", "!wbe1"),
        ("all,&fornt", "&amp;fornt"),
    ],
)
def test_a_part_of_a_target_that_means_no_host_is_told(
    session: Session, alice: TestApp, at: str, target: str, nothing: str
) -> None:
    expected = {"message": f"no hosts match that target: {nothing}"}
    assert alice.post_json(f"{at}/ping", {"targets": ["db1", target]}, status=404).json == expected
    assert alice.get(f"{at}/ping", {"target": target, "wait": "0"}, status=404).json == expected
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0
    assert job(alice, post(alice, "ping", "web,!nosuch*"))["targets"] == ["web1", "web2"]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    *(("service", {"state": state}, "bad service name or state") for state in (3, -1, "1", 1.0, True, None, [])),
    *(("service", {"name": name}, "bad service name or state") for name in (None, "", " ", 1, ["nginx"])),
    ("service", {"name": "-x"}, "name: '-x' is no name of a service"),
    ("service", {"graceful": "maybe"}, "graceful: must be one of 1, true, yes, 0, false, no"),
    ("service", {"graceful": []}, "graceful: must be one of 1, true, yes, 0, false, no"),
    *(("execute", {"cmd": cmd}, "cmd should be string types") for cmd in (None, "", "  ", 1, ["ls"])),
    ("execute", {"cmd": "x" * 100_001}, "cmd: must have 100000 bytes at most"),
    *(("deploy", {"role": role}, "role should be string types") for role in (None, "", 1, ["nginx"])),
    *(("deploy", {"role": role}, f"role: '{role}' is no name of a role") for role in ("../x", "-e", "a b", "/etc/x")),
    *(
        ("deploy", {"partial": partial}, "partial should be string list or omitted")
        for partial in ([], "x", [1], [""], {}, 0, False)
    ),
    ("deploy", {"partial": ["a,b"]}, "partial: 'a,b' is no tag"),
    *(
        ("deploy", {"extra_vars": variables}, "extra vars should be an json object or omitted")
        for variables in ([], "a=b", "@/etc/passwd", 1, False)
    ),
    ("deploy", {"extra_vars": {"ansible_connection": "local"}}, "extra_vars: ansible_connection cannot be set by"),
    ("deploy", {"extra_vars": {"_targets": "*"}}, "extra_vars: '_targets' is no name of a variable"),
    ("deploy", {"extra_vars": {"a b": 1}}, "extra_vars: 'a b' is no name of a variable"),
    ("task", {"taskname": "nosuch"}, "taskname: there is no such task; there are: "),
    ("task", {"taskname": None}, "taskname: there is no such task; there are: "),
    ("task", {"tasktype": "other"}, "tasktype: rolling_restart is of the type "),
    ("task", {"taskopts": []}, "taskopts: should be an json object or omitted"),
    ("task", {"taskopts": {"nonsense": 1}}, "taskopts: "),
    *(
        ("ping", {"timeout": timeout}, "timeout: must be a number of seconds above 0, 60 at most")
        for timeout in (0, -1, 61, "x", True, [], "nan", "inf")
    ),
]


@pytest.mark.parametrize(("operation", "asked", "message"), WRONG)
def test_what_is_wrong_is_said_and_nothing_is_done(
    session: Session, alice: TestApp, operation: str, asked: dict[str, Any], message: str
) -> None:
    answer = alice.post_json(f"/{operation}", {"targets": ["web1"], **POSTS[operation], **asked}, status=400)
    assert answer.json["message"].startswith(message)
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0


@pytest.mark.parametrize("body", [b"", b"{", b"targets=web1", b"[1]", b'"x"', b'{"targets": ["\\u0000"]}'])
def test_a_body_that_is_no_json_object_is_refused(alice: TestApp, body: bytes) -> None:
    assert alice.post("/ping", body, status=400).json["message"]


def test_messages_are_escaped_for_pages(alice: TestApp) -> None:
    answer = alice.post_json("/ping", {"targets": ["<b>&"]}, status=404)
    assert answer.json == {"message": "no hosts match that target: &lt;b&gt;&amp;"}


def test_a_request_may_ask_for_less_time(alice: TestApp) -> None:
    assert job(alice, post(alice, "ping", "web1"))["timeout"] == 60
    assert job(alice, post(alice, "ping", "web1", timeout=1.5))["timeout"] == 1.5
    jid = alice.get("/execute?target=web1&cmd=ls&timeout=30&wait=0", status=202).json["jid"]
    assert job(alice, jid)["timeout"] == 30


def test_two_who_deploy_on_one_host_are_told_apart(session: Session, alice: TestApp) -> None:
    first = post(alice, "deploy", "web1", "web2")
    bob = add_user(session, "bob")
    data = {"targets": ["db1", "web2", "web1"], "role": "other"}
    answer = alice.post_json("/deploy", data, headers=bob, status=409)
    assert answer.json["message"] == (
        f"operate conflict: web1 is busy with deploy {first} of alice; web2 is busy with deploy {first} of alice"
    )
    assert post(alice, "deploy", "db1")
    assert post(alice, "execute", "web1")


# Methods


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "deploy"), ("PUT", "ping"), ("DELETE", "ping"), ("POST", "jobs"), ("POST", "target"), ("PUT", "jobs/x")],
)
def test_a_wrong_method_is_told_in_the_documented_words(alice: TestApp, at: str, method: str, path: str) -> None:
    answer = alice.request(f"{at}/{path}", method=method, expect_errors=True)
    assert answer.status_int == 405
    assert answer.json == {"message": "Specified method is invalid for this resource"}
    assert "OPTIONS" in answer.headers["Allow"]


def test_the_tree_below_api_lists_what_it_has(alice: TestApp) -> None:
    expected = ["deploy", "execute", "facter", "jobs", "ping", "service", "target", "task", "tasks"]
    assert alice.get("/api/remote").json == {"trees": expected}
    assert "remote" in alice.get("/api").json["trees"]
    assert alice.get("/api/remote/nosuch", status=404).json["message"]


@pytest.mark.parametrize("path", ["task", "tasks"])
def test_the_tasks_there_are_are_listed_with_their_types(alice: TestApp, at: str, path: str) -> None:
    tasks = {task["name"]: task for task in alice.get(f"{at}/{path}").json}
    assert tasks["rolling_restart"].keys() == {"name", "type"}
    name, kind = "rolling_restart", tasks["rolling_restart"]["type"]
    data = {"targets": ["web1"], "taskname": name, "tasktype": kind, "taskopts": {"service": "nginx"}}
    jid = alice.post_json(f"{at}/{path}", data, status=201).json["jid"]
    assert job(alice, jid)["operate_args"] == {"taskname": name, "tasktype": kind, "taskopts": {"service": "nginx"}}


# Waiting for the end


@pytest.mark.parametrize("operation", GETS)
def test_a_get_that_waits_no_longer_answers_where_to_ask(alice: TestApp, at: str, operation: str) -> None:
    answer = alice.get(f"{at}/{operation}?target=web1{GETS[operation]}&wait=0", status=202)
    jid = answer.json["jid"]
    assert answer.headers["Location"] == f"http://localhost{at}/jobs/{jid}"
    assert answer.headers["Location"] in answer.json["message"]
    assert alice.get(answer.headers["Location"]).json["jid"] == jid


def test_a_get_has_the_same_row_as_a_post(alice: TestApp) -> None:
    for operation, query in GETS.items():
        jid = alice.get(f"/{operation}?targets=web1{query}&wait=0", status=202).json["jid"]
        found, posted = job(alice, jid), job(alice, post(alice, operation, "web1"))
        for name in ("operate", "operate_args", "targets", "timeout", "asked_by", "address", "status"):
            assert found[name] == posted[name]


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("ping", 400, "no target(s) given"),
        ("ping?target=", 400, "no target(s) given"),
        ("ping?target=nosuch", 404, "no hosts match that target: nosuch"),
        ("ping?target=web1&wait=x", 400, "wait: must be a number of seconds, 0 or more"),
        ("ping?target=web1&wait=nan", 400, "wait: must be a number of seconds, 0 or more"),
        ("ping?target=web1&timeout=0", 400, "timeout: must be a number of seconds above 0, 60 at most"),
        ("service?target=web1&name=nginx", 400, "bad service name or state"),
        ("service?target=web1&name=nginx&state=3", 400, "bad service name or state"),
        ("service?target=web1&state=1", 400, "bad service name or state"),
        ("service?target=web1&state=1&name=x&graceful=perhaps", 400, "graceful: must be one of"),
        ("execute?target=web1", 400, "cmd should be string types"),
        ("execute?target=%FF&cmd=x", 400, "target: must be UTF-8"),
    ],
)
def test_a_get_says_what_is_wrong(session: Session, alice: TestApp, query: str, status: int, message: str) -> None:
    assert alice.get(f"/{query}", status=status).json["message"].startswith(message)
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0


@pytest.mark.parametrize("word", ["1", "true", "True", "yes", "YES", "TRUE", "Yes"])
def test_words_for_yes_in_a_query(alice: TestApp, word: str) -> None:
    query = f"/service?target=web1&name=nginx&state=2&wait=0&graceful={word}"
    assert job(alice, alice.get(query).json["jid"])["operate_args"]["graceful"] is True


def test_where_nobody_may_wait_nothing_is_begun(session: Session, settings: Settings) -> None:
    app = TestApp(application.make_app(Settings(database_url=settings.database_url, remote_max_followers=0)))
    add_hosts(session)
    answer = app.get("/ping?target=web1", headers=add_user(session), status=503)
    assert answer.headers["Retry-After"] == "2"
    assert session.scalar(select(func.count()).select_from(RemoteJob)) == 0


# Jobs


def test_a_job_tells_all_that_is_documented_and_more(alice: TestApp) -> None:
    jid = post(alice, "execute", "web2", "web1")
    taken = claim()
    write(taken, piece("web1"))
    found = job(alice, jid)

    documented = ["state", "error", "startat", "operate", "operate_args", "return_data", "targets"]
    assert list(found)[:7] == documented
    assert {name: found[name] for name in documented if name != "startat"} == {
        "state": 1,
        "error": "",
        "operate": "execute",
        "operate_args": {"command": "uptime"},
        "return_data": {},
        "targets": ["web2", "web1"],
    }
    assert isinstance(found["startat"], int) and isinstance(found["started"], int)
    assert (found["jid"], found["taskid"]) == (jid, jid)
    assert found["hosts"] == {"web2": "waiting", "web1": "changed"}
    assert (found["status"], found["last_seq"], found["finished"], found["cancelled_by"]) == ("running", 1, None, None)


@pytest.mark.parametrize(
    ("ends", "state", "error"),
    [(JobState.DONE, 0, ""), (JobState.FAILED, 2, "1 of 1 remote host(s) got execute errors")],
)
def test_the_state_of_a_job_is_a_number_and_its_error_a_text(
    alice: TestApp, ends: JobState, state: int, error: str
) -> None:
    jid = post(alice, "execute", "web1")
    carry_out(piece("web1"), state=ends, error=error)
    found = job(alice, jid)
    assert (found["state"], found["status"], found["error"]) == (state, ends, error)
    assert isinstance(found["finished"], int)


def test_output_is_grouped_by_host_in_the_order_in_which_it_came(alice: TestApp) -> None:
    jid = post(alice, "deploy", "web1", "fe80::1")
    taken = claim()
    write(taken, piece("fe80::1", None, name="a"), piece("web1", None, name="b"))
    write(taken, piece("fe80::1", None, name="c"))
    found = job(alice, jid, "?outputs=1")

    assert found["return_data"] == {
        "fe80::1": [{"status": 5, "name": "a"}, {"status": 5, "name": "c"}],
        "web1": [{"status": 5, "name": "b"}],
    }
    assert list(found["return_data"]) == ["fe80::1", "web1"]
    assert (found["next"], found["more"]) == (3, False)
    assert job(alice, jid, "?outputs=1&after=2")["return_data"] == {"fe80::1": [{"status": 5, "name": "c"}]}
    assert job(alice, jid, "?outputs=1&after=3")["return_data"] == {}
    assert job(alice, jid, "?outputs=0")["return_data"] == {}


def test_long_output_comes_in_parts_with_a_link_to_the_next(alice: TestApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "MOST_BYTES", 250)
    jid = post(alice, "deploy", "web1")
    carry_out(*[piece("web1", name=f"{number:080}") for number in range(10)])
    url: str | None = f"/jobs/{jid}?outputs=1"
    seen, parts = [], 0
    while url:
        answer = alice.get(url)
        seen += [int(chunk["name"]) for chunk in answer.json["return_data"]["web1"]]
        assert answer.json["more"] == ("Link" in answer.headers)
        assert answer.json["next"] == len(seen)
        url = answer.headers["Link"].split(">")[0][1:] if "Link" in answer.headers else None
        parts += 1
    assert seen == list(range(10))
    assert parts == 4


def test_jobs_are_listed_the_newest_first(alice: TestApp, at: str) -> None:
    jids = [post(alice, "ping", "web1") for _ in range(3)]
    assert alice.get(f"{at}/jobs").json == jids[::-1]
    assert alice.get(f"{at}/jobs/?detail=0").json == jids[::-1]
    detailed = alice.get(f"{at}/jobs?detail=True").json
    assert [found["jid"] for found in detailed] == jids[::-1]
    assert detailed[0] == job(alice, jids[2])


@pytest.mark.parametrize("detail", ["", "&detail=1"])
def test_lists_of_jobs_come_in_pages(alice: TestApp, detail: str) -> None:
    jids = [post(alice, "ping", "web1") for _ in range(5)][::-1]
    url: str | None = f"/jobs?count=2{detail}"
    found: list[Any] = []
    while url:
        answer = alice.get(url)
        found += [each["jid"] if detail else each for each in answer.json]
        url = answer.headers["Link"].split(">")[0][1:] if "Link" in answer.headers else None
    assert found == jids
    second = alice.get(f"/jobs?count=2&page=2{detail}").json
    assert [each["jid"] if detail else each for each in second] == jids[2:4]


def test_jobs_are_chosen_by_state_operation_and_host(alice: TestApp) -> None:
    done = post(alice, "ping", "web1")
    carry_out(piece("web1"))
    failed = post(alice, "execute", "web1", "db1")
    carry_out(state=JobState.FAILED, error="no")
    cancelled = post(alice, "ping", "db1")
    alice.post(f"/jobs/{cancelled}/cancel")
    running, queued = post(alice, "ping", "db1"), post(alice, "ping", "fe80::1")
    claim()
    expected = {
        "state=done": [done],
        "state=0": [done],
        "state=failed": [failed],
        "state=cancelled": [cancelled],
        "state=2": [cancelled, failed],
        "state=running": [running],
        "state=queued": [queued],
        "state=1": [queued, running],
        "operate=execute": [failed],
        "operate=ping&state=2": [cancelled],
        "host=db1": [running, cancelled, failed],
        "host=db1&operate=ping&state=1": [running],
        "host=fe80::1": [queued],
        "host=nosuch": [],
        "operate=facter": [],
    }
    for query, jids in expected.items():
        assert alice.get(f"/jobs?{query}").json == jids, query
        assert [found["jid"] for found in alice.get(f"/jobs?{query}&detail=1").json] == jids, query


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("state=3", "state: must be 0, 1, 2 or one of queued, running, done, failed, cancelled"),
        ("operate=x", "operate: must be one of ping, "),
        ("detail=x", "detail: must be one of"),
        ("count=0", "count: must be a whole number"),
        ("jid=", "no jid given"),
    ],
)
def test_a_list_that_cannot_be_is_refused(alice: TestApp, query: str, message: str) -> None:
    assert alice.get(f"/jobs?{query}", status=400).json["message"].startswith(message)


def test_a_job_can_be_asked_for_and_deleted_by_a_parameter(alice: TestApp) -> None:
    jid = post(alice, "ping", "web1")
    carry_out(piece("web1"))
    assert alice.get(f"/jobs?jid={jid}&outputs=1").json == job(alice, jid, "?outputs=1")
    alice.delete(f"/jobs?jid={jid}", status=204)
    alice.get(f"/jobs?jid={jid}", status=404)


@pytest.mark.parametrize("query", ["", "?outputs=1", "?outputs=1&follow=1", "/events"])
def test_an_unknown_job_is_not_found(alice: TestApp, at: str, query: str) -> None:
    assert alice.get(f"{at}/jobs/nosuch{query}", status=404).json == {"message": "no such jid nosuch"}


def test_what_is_done_to_an_unknown_job_is_not_found(alice: TestApp, at: str) -> None:
    assert alice.delete(f"{at}/jobs/nosuch", status=404).json == {"message": "no such jid nosuch"}
    assert alice.post(f"{at}/jobs/nosuch/cancel", status=404).json == {"message": "no such jid nosuch"}
    assert alice.delete(f"{at}/jobs/", status=400).json == {"message": "no jid given"}


@pytest.mark.parametrize("query", ["outputs=x", "follow=2", "after=-1", "after=x", "after=99999999999"])
def test_parameters_of_a_job_that_cannot_be_are_refused(alice: TestApp, query: str) -> None:
    jid = post(alice, "ping", "web1")
    assert alice.get(f"/jobs/{jid}?{query}", status=400).json["message"].startswith(query.partition("=")[0])


def test_a_job_is_deleted_when_it_has_ended_and_not_before(alice: TestApp) -> None:
    jid = post(alice, "ping", "web1")
    expected = {"message": f"cannot delete a running job, jid {jid}"}
    assert alice.delete(f"/jobs/{jid}", status=400).json == expected
    taken = claim()
    assert alice.delete(f"/jobs/{jid}", status=400).json == expected
    finish(taken)
    assert alice.delete(f"/jobs/{jid}", status=204).body == b""
    assert alice.delete(f"/jobs/{jid}", status=404).json == {"message": f"no such jid {jid}"}


def test_cancelling_answers_how_the_job_is(alice: TestApp) -> None:
    jid = post(alice, "ping", "web1")
    answer = alice.post(f"/jobs/{jid}/cancel", status=202)
    assert (answer.json["state"], answer.json["error"]) == (2, "cancelled by alice")
    assert answer.json == job(alice, jid)
    # Once more changes nothing.
    assert alice.post_json(f"/jobs/{jid}/cancel", {}, status=202).json == answer.json


def test_cancelling_a_running_job_says_that_it_goes_on_for_a_moment(alice: TestApp) -> None:
    jid = post(alice, "ping", "web1")
    claim()
    answer = alice.post(f"/jobs/{jid}/cancel", status=202).json
    assert (answer["state"], answer["status"], answer["cancelled_by"]) == (1, "running", "alice")


def test_everybody_with_the_right_sees_and_cancels_all_jobs(session: Session, alice: TestApp) -> None:
    jid = post(alice, "ping", "web1")
    bob = add_user(session, "bob")
    assert alice.get("/jobs", headers=bob).json == [jid]
    assert alice.post(f"/jobs/{jid}/cancel", headers=bob).json["cancelled_by"] == "bob"


def test_a_password_is_as_good_as_a_token(session: Session, alice: TestApp) -> None:
    tokens.add_user(session, "carol", password="secret", rights=["remote"])
    basic = "Basic " + base64.b64encode(b"carol:secret").decode()
    del alice.extra_environ["HTTP_X_AUTH_TOKEN"]
    assert alice.get("/target", headers={"Authorization": basic}).json == sorted(HOSTS)


def test_a_job_whose_output_was_all_read_is_not_followed_when_it_has_ended(alice: TestApp) -> None:
    jid = post(alice, "ping", "web1")
    carry_out(piece("web1"))
    for query in ("?outputs=1&follow=1", "?outputs=1&follow=1&after=1"):
        assert alice.get(f"/jobs/{jid}{query}").json == job(alice, jid, query.replace("&follow=1", ""))
    # Without outputs nobody wants any.
    assert alice.get(f"/jobs/{jid}?follow=1").json["return_data"] == {}
    assert queries.MOST_BYTES >= 1024 * 1024

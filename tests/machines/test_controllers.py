import json
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.events.models import Event
from labctl.machines.models import Machine
from labctl.runs.models import Job

MOUNTS = ("/nodes", "/api/machines")
STATUSES = ("queued", "waiting", "running", "pass", "fail", "dead", "unknown")
#: What teuthology says about a machine; ``user`` is not kept.
INVENTORY = {
    "name": "one.front.lab",
    "user": "ubuntu",
    "arch": "x86_64",
    "os_type": "ubuntu",
    "os_version": "22.04",
    "ssh_pub_key": "ssh-rsa K0",
    "up": True,
    "machine_type": "smithi",
    "is_vm": False,
}
NODE = {
    "name": "one.front.lab",
    "description": None,
    "up": True,
    "machine_type": "smithi",
    "is_vm": False,
    "vm_host": None,
    "os_type": "ubuntu",
    "os_version": "22.04",
    "arch": "x86_64",
    "locked": False,
    "locked_since": None,
    "locked_by": None,
    "mac_address": None,
    "ssh_pub_key": "ssh-rsa K0",
}
LOCK_MANY = {"count": 2, "locked_by": "a@b", "machine_type": "smithi", "description": "why"}


def add(app: TestApp, *names: str, **given: Any) -> None:
    for name in names:
        app.post_json("/nodes/", {"up": True, "machine_type": "smithi", **given, "name": name})


def names(app: TestApp, query: str = "") -> list[str]:
    return [node["name"] for node in app.get(f"/nodes/{query}").json]


def refusal(answer: Any) -> tuple[int, str]:
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["message"]
    return answer.status_int, answer.json["message"]


# The list


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_machine_that_was_posted_is_in_the_list_and_at_its_url(app: TestApp, mount: str, slash: str) -> None:
    answer = app.post_json(mount + slash, INVENTORY)
    assert (answer.status_int, answer.json) == (200, {})
    assert app.get(mount + slash).json == [NODE]
    one = app.get(f"{mount}/one.front.lab{slash}")
    assert list(one.json.items()) == list(NODE.items())


def test_a_body_is_json_whatever_its_type_says(app: TestApp) -> None:
    app.post("/nodes/", json.dumps(INVENTORY), content_type="application/x-www-form-urlencoded")
    lock = json.dumps({"name": "one.front.lab", "locked": True, "locked_by": "a@b", "description": "d"})
    app.put("/nodes/one.front.lab/lock/", lock, content_type="application/x-www-form-urlencoded")
    assert app.get("/nodes/one.front.lab").json["locked_by"] == "a@b"


def test_the_list_is_whole_and_by_name(app: TestApp) -> None:
    wanted = [f"n{number:03}" for number in range(150)]
    add(app, *reversed(wanted))
    assert names(app) == wanted
    assert names(app, "?count=3") == wanted[:3]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?locked=1", ["locked"]),
        ("?locked=0", ["down", "mira", "other", "vm"]),
        ("?locked=", ["down", "locked", "mira", "other", "vm"]),
        ("?up=true", ["locked", "mira", "other", "vm"]),
        ("?up=false", ["down"]),
        ("?is_vm=True", ["vm"]),
        ("?machine_type=mira", ["mira"]),
        ("?machine_type=mira|vps", ["mira", "vm"]),
        ("?machine_type=mira%7Cvps&is_vm=0", ["mira"]),
        ("?machine_type=nothing", []),
        ("?machine_type=", ["down", "locked", "mira", "other", "vm"]),
        ("?os_type=centos", ["other"]),
        ("?os_version=9.stream", ["other"]),
        ("?arch=arm64", ["other"]),
        ("?locked_by=a@b", ["locked"]),
        ("?locked_by=a%40b&locked=0", []),
        ("?unknown=1&locked=1", ["locked"]),
    ],
)
def test_the_query_chooses_machines(app: TestApp, query: str, found: list[str]) -> None:
    add(app, "down", up=False)
    add(app, "locked", locked=True, locked_by="a@b")
    add(app, "mira", machine_type="mira")
    add(app, "vm", machine_type="vps", is_vm=True)
    add(app, "other", os_type="centos", os_version="9.stream", arch="arm64")
    assert names(app, query) == found


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("locked=maybe", "locked"),
        ("up=2", "up"),
        ("is_vm=yes", "is_vm"),
        ("count=many", "count"),
        ("count=0", "count"),
        ("count=-1", "count"),
        ("count=1e3", "count"),
        (f"count={10**30}", "count"),
        ("locked_by=%00", "locked_by"),
        ("machine_type=a%00|b", "machine_type"),
    ],
)
def test_a_bad_query_is_refused_by_name(app: TestApp, query: str, field: str) -> None:
    status, message = refusal(app.get(f"/nodes/?{query}", status="*"))
    assert (status, message.partition(":")[0]) == (400, field)


def test_the_list_is_one_statement_and_a_lock_three(app: TestApp, statements: Any) -> None:
    add(app, "host")
    add(app, "guest", vm_host="host")
    costs = []
    for act in (
        lambda: app.get("/nodes/?up=1&machine_type=smithi"),
        lambda: app.get("/nodes/guest/"),
        lambda: app.get("/nodes/machine_types/"),
        lambda: app.get("/nodes/guest/jobs/"),
        lambda: app.get("/nodes/guest/job_stats/"),
        lambda: app.put_json("/nodes/guest/lock/", {"locked": True, "locked_by": "a@b"}),
    ):
        with statements() as sent:
            act()
        costs.append(len(sent))
    assert costs == [1, 1, 1, 2, 2, 3]


# Adding


@pytest.mark.parametrize("data", [{}, {"name": None}, {"machine_type": "smithi"}])
def test_a_machine_without_a_name_is_refused(app: TestApp, data: dict[str, Any]) -> None:
    answer = app.post_json("/nodes/", data, status=400)
    assert refusal(answer) == (400, "could not find required key: 'name'")


def test_a_machine_that_exists_is_refused(app: TestApp) -> None:
    add(app, "one")
    answer = app.post_json("/nodes/", {"name": "one"}, status=400)
    assert refusal(answer) == (400, "Node with name one already exists")


@pytest.mark.parametrize("text", ["", "no json", "[]", "null", "3", '"one"', "[" * 200_000, '{"name": "\ud800"}'])
@pytest.mark.parametrize("path", ["/nodes/", "/nodes/lock_many/", "/nodes/unlock_many/", "/nodes/one/lock"])
def test_what_is_no_json_object_is_refused(app: TestApp, path: str, text: str) -> None:
    status, _ = refusal(app.post(path, text.encode("utf-8", "surrogatepass"), status="*"))
    assert status == 400


@pytest.mark.parametrize(
    "name", ["", "a\nb", "\x7f", "nul\0", "x" * 300, True, [], {"a": 1}, "lock_many", "job_stats", "right\u202eleft"]
)
def test_a_bad_name_is_refused_by_name(app: TestApp, session: Session, name: Any) -> None:
    status, message = refusal(app.post_json("/nodes/", {"name": name}, status="*"))
    assert (status, message.partition(":")[0]) == (400, "name")
    assert session.scalar(select(func.count(Machine.id))) == 0


@pytest.mark.parametrize(
    "key", ["arch", "locked_by", "mac_address", "machine_type", "os_type", "os_version", "vm_host"]
)
@pytest.mark.parametrize("value", ["x" * 300, "nul\0", True, [], {}])
def test_a_bad_value_is_refused_by_name_and_changes_nothing(app: TestApp, key: str, value: Any) -> None:
    add(app, "one")
    before = app.get("/nodes/one").json
    for answer in (
        app.post_json("/nodes/", {"name": "two", key: value}, status="*"),
        app.put_json("/nodes/one/", {"up": False, key: value}, status="*"),
    ):
        status, message = refusal(answer)
        assert (status, message.partition(":")[0]) == (400, key)
    assert app.get("/nodes/").json == [before]


@pytest.mark.parametrize("value", [2**31, 2**63, 10**40, -(2**64), 1e300])
def test_a_huge_number_stands_for_a_string_or_is_refused(app: TestApp, value: float) -> None:
    add(app, "one")
    app.put("/nodes/one/", json.dumps({"os_version": value}))
    assert float(app.get("/nodes/one").json["os_version"]) == float(value)
    assert app.put("/nodes/one/", json.dumps({"up": value}), status="*").status_int == 400
    assert app.put("/nodes/one/", json.dumps({"locked_since": value}), status="*").status_int == 400
    assert app.post("/nodes/lock_many", json.dumps({**LOCK_MANY, "count": value}), status="*").status_int == 400


def test_a_machine_may_come_locked_since_some_time(app: TestApp) -> None:
    add(app, "one", locked=True, locked_by="a@b", locked_since="2025-01-02 03:04:05.000600", description="why")
    node = app.get("/nodes/one").json
    assert (node["locked_since"], node["locked_by"]) == ("2025-01-02 03:04:05.000600", "a@b")


# One machine


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("GET", "node not found"),
        ("PUT", "attempted to update a non-existent node"),
        ("DELETE", "attempted to delete a non-existent node"),
    ],
)
@pytest.mark.parametrize("name", ["nobody", "x" * 1000, "%01"])
def test_a_machine_that_nobody_knows_is_not_found(app: TestApp, method: str, message: str, name: str) -> None:
    answer = app.request(f"/nodes/{name}/", method=method, body=b"{}" if method == "PUT" else b"", status="*")
    assert refusal(answer) == (404, message)


def test_teuthology_updates_an_inventory_by_put_and_if_not_found_by_post(app: TestApp) -> None:
    assert app.put_json("/nodes/one.front.lab/", INVENTORY, status="*").status_int == 404
    app.post_json("/nodes/", INVENTORY)
    answer = app.put_json("/nodes/one.front.lab/", {**INVENTORY, "os_version": "24.04"})
    assert answer.json == {}
    assert app.get("/nodes/").json == [{**NODE, "os_version": "24.04"}]


def test_what_was_read_can_be_written_back(app: TestApp) -> None:
    add(app, "host", "free", vm_host=None)
    add(app, "locked", locked=True, locked_by="a@b", vm_host="host")
    before = app.get("/nodes/").json
    for node in before:
        app.put_json(f"/nodes/{node['name']}/", node)
    assert app.get("/nodes/").json == before


def test_the_name_never_changes(app: TestApp) -> None:
    add(app, "one")
    app.put_json("/nodes/one/", {"name": "two", "arch": "arm64"})
    assert [(node["name"], node["arch"]) for node in app.get("/nodes/").json] == [("one", "arm64")]


def test_a_change_that_breaks_a_lock_is_refused_whole(app: TestApp) -> None:
    add(app, "one", locked=True, locked_by="a@b")
    before = app.get("/nodes/one").json
    for given in ({"locked": False, "locked_by": "c@d"}, {"locked_by": "c@d"}, {"locked_since": None}):
        status, _ = refusal(app.put_json("/nodes/one/", {"up": False, **given}, status="*"))
        assert status == 403
    answer = app.put_json("/nodes/one/", {"up": False, "locked": False}, status="*")
    assert refusal(answer) == (400, "Cannot unlock without specifying locked_by")
    assert app.get("/nodes/one").json == before


def test_a_machine_is_deleted_unless_it_is_locked(app: TestApp) -> None:
    add(app, "one")
    add(app, "two", locked=True, locked_by="a@b")
    assert app.delete("/nodes/one/").json == {}
    assert refusal(app.delete("/nodes/two/", status="*")) == (403, "Cannot delete a locked node")
    assert names(app) == ["two"]


@pytest.mark.parametrize("name", ["a:b", "a+b", "a.b.", "ä", "with space", "%41", "@"])
def test_a_name_with_special_characters_has_a_url(app: TestApp, name: str) -> None:
    add(app, name)
    assert app.get(f"/nodes/{quote(name)}/").json["name"] == name


def test_a_name_with_a_slash_has_a_url(app: TestApp) -> None:
    # As gunicorn hands it over; WSGI's own PATH_INFO has lost the difference.
    add(app, "a/b")
    answer = app.get("/nodes/a%2Fb", extra_environ={"RAW_URI": "/nodes/a%2Fb"})
    assert answer.json["name"] == "a/b"


def test_head_answers_as_get_without_a_body(app: TestApp) -> None:
    add(app, "one")
    for path in ("/nodes", "/nodes/one/", "/nodes/machine_types", "/nodes/one/jobs"):
        answer = app.head(path)
        assert (answer.status_int, answer.body) == (200, b"")
    assert app.head("/nodes/nobody", status="*").status_int == 404


# The lock


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_machine_is_locked_and_unlocked(app: TestApp, method: str, mount: str, slash: str) -> None:
    add(app, "one")
    answers = []
    for locked in (True, False):
        body = {"name": "one", "locked": locked, "locked_by": "a@b", "description": "why"}
        answer = app.request(f"{mount}/one/lock{slash}", method=method, body=json.dumps(body).encode())
        answers.append(list(answer.json.items()))
    assert answers == [
        [("name", "one"), ("locked", True), ("locked_by", "a@b"), ("machine_type", "smithi"), ("is_vm", False)],
        [("name", "one"), ("locked", False), ("locked_by", None), ("machine_type", "smithi"), ("is_vm", False)],
    ]
    node = app.get("/nodes/one").json
    assert (node["locked"], node["locked_since"], node["description"]) == (False, None, "why")


def test_locked_since_is_now(app: TestApp, stopped_clock: Any) -> None:
    add(app, "one")
    stopped_clock.advance(seconds=1.5)
    app.put_json("/nodes/one/lock", {"locked": True, "locked_by": "a@b"})
    assert app.get("/nodes/one").json["locked_since"] == "2026-01-02 03:04:06.500000"


def test_a_lock_that_breaks_the_rules_is_refused(app: TestApp) -> None:
    add(app, "one")
    wrong = [
        ({"locked": True}, 400, "Cannot lock without specifying locked_by"),
        ({"locked": False, "locked_by": "a@b"}, 403, "Cannot unlock an already-unlocked node"),
        ({"locked_by": "a@b"}, 400, "locked: Field required"),
    ]
    for body, status, message in wrong:
        assert refusal(app.put_json("/nodes/one/lock/", body, status="*")) == (status, message)
    app.put_json("/nodes/one/lock/", {"locked": True, "locked_by": "a@b", "description": "why"})
    wrong = [
        ({"locked": True, "locked_by": "c@d", "description": "x"}, 403, "Cannot lock an already-locked node"),
        ({"locked": False, "locked_by": "c@d"}, 403, "Cannot unlock - locked_by values must match"),
        (
            {"locked": False, "locked_by": "a@b", "description": "x"},
            403,
            "Cannot unlock - description values must match",
        ),
    ]
    for body, status, message in wrong:
        assert refusal(app.put_json("/nodes/one/lock/", body, status="*")) == (status, message)
    assert names(app, "?locked_by=a@b") == ["one"]


def test_the_lock_of_an_unknown_machine_is_not_found(app: TestApp) -> None:
    answer = app.put_json("/nodes/nobody/lock/", {"locked": True, "locked_by": "a@b"}, status="*")
    assert refusal(answer) == (404, "node not found")


@pytest.mark.parametrize("key", ["locked_by", "description", "locked"])
@pytest.mark.parametrize("value", ["nul\0", [], {}])
def test_a_bad_lock_is_refused_by_name(app: TestApp, key: str, value: Any) -> None:
    add(app, "one")
    body = {"locked": True, "locked_by": "a@b", key: value}
    status, message = refusal(app.put_json("/nodes/one/lock/", body, status="*"))
    assert (status, message.partition(":")[0]) == (400, key)
    assert names(app, "?locked=1") == []


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/nodes/one/lock/", "GET", "OPTIONS, POST, PUT"),
        ("/nodes/one/lock/", "DELETE", "OPTIONS, POST, PUT"),
        ("/nodes/lock_many/", "GET", "OPTIONS, POST"),
        ("/nodes/unlock_many/", "PUT", "OPTIONS, POST"),
        ("/nodes/machine_types/", "POST", "GET, HEAD, OPTIONS"),
        ("/nodes/", "DELETE", "GET, HEAD, OPTIONS, POST"),
        ("/nodes/one/", "POST", "DELETE, GET, HEAD, OPTIONS, PUT"),
    ],
)
def test_another_method_is_refused_with_the_ones_that_are_allowed(
    app: TestApp, path: str, method: str, allow: str
) -> None:
    answer = app.request(path, method=method, status="*")
    assert refusal(answer)[0] == 405
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize("path", ["/nodes/one/lock/more", "/nodes/one/nothing", "/nodes/lock_many/one"])
def test_below_a_machine_there_is_nothing_else(app: TestApp, path: str) -> None:
    add(app, "one")
    assert refusal(app.get(path, status="*"))[0] == 404


# Many locks


@pytest.mark.parametrize("mount", MOUNTS)
def test_lock_many_answers_whole_nodes(app: TestApp, stopped_clock: Any, mount: str) -> None:
    add(app, "host", "one.front.lab", "two", machine_type="other")
    app.put_json("/nodes/one.front.lab", {**INVENTORY, "vm_host": "host"})
    answer = app.post_json(f"{mount}/lock_many/", {**LOCK_MANY, "count": 1.0})
    locked = {
        **NODE,
        "vm_host": "host",
        "locked": True,
        "locked_by": "a@b",
        "description": "why",
        "locked_since": "2026-01-02 03:04:05",
    }
    assert [list(node.items()) for node in answer.json] == [list(locked.items())]
    assert app.get("/nodes/one.front.lab").json == locked


def test_lock_many_without_enough_machines_says_how_many_there_are(app: TestApp) -> None:
    add(app, "one")
    answer = app.post_json("/nodes/lock_many/", LOCK_MANY, status="*")
    assert refusal(answer) == (503, "only 1 nodes available")
    assert names(app, "?locked=1") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "cannot lock less than 1 node"),
        ({"machine_type": ""}, "must specify machine_type"),
        ({"machine_type": None}, "must specify machine_type"),
    ],
)
def test_lock_many_refuses_what_makes_no_sense(app: TestApp, change: dict[str, Any], message: str) -> None:
    assert refusal(app.post_json("/nodes/lock_many/", {**LOCK_MANY, **change}, status="*")) == (400, message)


@pytest.mark.parametrize("key", sorted(LOCK_MANY))
def test_lock_many_needs_all_of_its_keys(app: TestApp, key: str) -> None:
    add(app, "one", "two")
    body = {name: value for name, value in LOCK_MANY.items() if name != key}
    answer = app.post_json("/nodes/lock_many/", body, status="*")
    assert refusal(answer) == (400, f"must pass these fields: {key}")
    assert names(app, "?locked=1") == []


@pytest.mark.parametrize(
    "change",
    [
        {"count": "x"},
        {"count": 2.5},
        {"count": True},
        {"count": 10_001},
        {"locked_by": "x" * 300},
        {"locked_by": ""},
        {"locked_by": None},
        {"machine_type": ["a"]},
        {"os_type": "nul\0"},
        {"os_version": [22.04]},
        {"arch": "x" * 300},
        {"description": {}},
    ],
)
def test_lock_many_refuses_bad_values_by_name(app: TestApp, change: dict[str, Any]) -> None:
    add(app, "one", "two")
    status, message = refusal(app.post_json("/nodes/lock_many/", {**LOCK_MANY, **change}, status="*"))
    assert (status, [message.partition(":")[0]]) == (400, list(change))
    assert names(app, "?locked=1") == []


@pytest.mark.parametrize("mount", MOUNTS)
def test_unlock_many_answers_the_locks(app: TestApp, mount: str) -> None:
    add(app, "one", "two", locked=True, locked_by="a@b", description="why")
    answer = app.post_json(f"{mount}/unlock_many/", {"names": ["two", "one", "two"], "locked_by": "a@b"})
    assert answer.json == [
        {"name": name, "locked": False, "locked_by": None, "machine_type": "smithi", "is_vm": False}
        for name in ("one", "two")
    ]
    assert names(app, "?locked=1") == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"names": ["one", "nobody"], "locked_by": "a@b"}, 400, "Could not find all nodes!"),
        ({"names": ["one", "x" * 300], "locked_by": "a@b"}, 400, "Could not find all nodes!"),
        ({"names": ["one"], "locked_by": "c@d"}, 403, "Cannot unlock - locked_by values must match"),
        ({"names": ["one", "theirs"], "locked_by": "a@b"}, 403, "Cannot unlock - locked_by values must match"),
        ({"names": ["one", "free"], "locked_by": "a@b"}, 403, "Cannot unlock an already-unlocked node"),
    ],
)
def test_unlock_many_unlocks_all_or_none(app: TestApp, body: dict[str, Any], status: int, message: str) -> None:
    add(app, "one", locked=True, locked_by="a@b")
    add(app, "theirs", locked=True, locked_by="c@d")
    add(app, "free")
    assert refusal(app.post_json("/nodes/unlock_many/", body, status="*")) == (status, message)
    assert names(app, "?locked=1") == ["one", "theirs"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"names": "one"}, "names"),
        ({"names": []}, "names"),
        ({"names": [1]}, "names.0"),
        ({"names": ["a\0"]}, "names"),
        ({"description": "why"}, "description"),
        ({"locked_by": ["a@b"]}, "locked_by"),
    ],
)
def test_unlock_many_refuses_other_bodies_by_name(app: TestApp, change: dict[str, Any], field: str) -> None:
    add(app, "one", locked=True, locked_by="a@b")
    body = {"names": ["one"], "locked_by": "a@b", **change}
    status, message = refusal(app.post_json("/nodes/unlock_many/", body, status="*"))
    assert (status, message.partition(":")[0]) == (400, field)
    assert names(app, "?locked=1") == ["one"]


# Types and jobs


def test_machine_types_are_listed_once_and_sorted(app: TestApp) -> None:
    assert app.get("/nodes/machine_types/").json == []
    for number, machine_type in enumerate(["smithi", "mira", None, "smithi", "Vps"]):
        add(app, f"n{number}", machine_type=machine_type)
    assert app.get("/nodes/machine_types/").json == ["Vps", "mira", "smithi"]


def add_job(app: TestApp, job_id: str, status: str, *hosts: str, run: str = "a-run") -> None:
    targets = {f"ubuntu@{host}": "ssh-rsa" for host in hosts}
    body = {"job_id": job_id, "status": status, "targets": targets, "machine_type": "smithi"}
    app.post_json(f"/runs/{run}/jobs/", body)


def test_job_stats_count_the_jobs_of_the_last_days(app: TestApp, stopped_clock: Any) -> None:
    add(app, "idle")
    add(app, "other", machine_type="mira")
    add_job(app, "0", "dead", "busy")
    stopped_clock.advance(days=20)
    add_job(app, "1", "pass", "busy", "other")
    add_job(app, "2", "pass", "busy")
    add_job(app, "3", "fail", "busy")
    stopped_clock.advance(days=1)
    lately = {"other": {"pass": 1}, "busy": {"fail": 1, "pass": 2}}
    assert list(app.get("/nodes/job_stats/").json.items()) == list(lately.items())
    assert app.get("/nodes/job_stats?since_days=30").json["busy"] == {"dead": 1, "fail": 1, "pass": 2}
    assert app.get("/nodes/job_stats?since_days=1&machine_type=mira").json == {}
    assert app.get("/nodes/job_stats?machine_type=mira|vps").json == {"other": {"pass": 1}}


@pytest.mark.parametrize("days", ["0", "-1", "x", "1.5", "", "9" * 30])
def test_job_stats_refuse_what_is_no_number_of_days(app: TestApp, days: str) -> None:
    status, message = refusal(app.get(f"/nodes/job_stats/?since_days={days}", status="*"))
    assert (status, message.partition(":")[0]) == (400, "since_days")


def test_the_job_stats_of_a_machine_have_all_statuses(app: TestApp) -> None:
    add_job(app, "1", "pass", "one", "two")
    add_job(app, "2", "pass", "one")
    add_job(app, "3", "running", "one")
    nothing = dict.fromkeys(STATUSES, 0)
    assert app.get("/nodes/one/job_stats/").json == {**nothing, "pass": 2, "running": 1}
    assert app.get("/nodes/two/job_stats").json == {**nothing, "pass": 1}


def test_the_jobs_of_a_machine_come_newest_first(app: TestApp) -> None:
    add_job(app, "1", "pass", "one")
    add_job(app, "2", "fail", "one", "two", run="other-run")
    add_job(app, "3", "pass", "two")
    add_job(app, "4", "running", "one")

    def ids(query: str) -> list[str]:
        return [job["job_id"] for job in app.get(f"/nodes/one/jobs/{query}").json]

    assert ids("") == ["4", "2", "1"]
    assert ids("?status=pass") == ["1"]
    assert ids("?name=other-run") == ["2"]
    assert ids("?count=1&page=2") == ["2"]
    assert ids("?count=2&page=3") == []
    assert app.get("/nodes/two/jobs").json[0]["targets"] == {"ubuntu@two": "ssh-rsa"}


def test_the_jobs_of_a_machine_can_be_followed_page_by_page(app: TestApp) -> None:
    for number in range(5):
        add_job(app, str(number), "pass", "one")
    found, url = [], "/nodes/one/jobs/?count=2"
    while url:
        answer = app.get(url)
        found.append([job["job_id"] for job in answer.json])
        url = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert found == [["4", "3"], ["2", "1"], ["0"]]


@pytest.mark.parametrize(("query", "field"), [("status=odd", "status"), ("count=x", "count"), ("name=%00", "name")])
def test_a_bad_query_for_the_jobs_of_a_machine_is_refused_by_name(app: TestApp, query: str, field: str) -> None:
    add(app, "one")
    status, message = refusal(app.get(f"/nodes/one/jobs/?{query}", status="*"))
    assert (status, message.partition(":")[0]) == (400, field)


@pytest.mark.parametrize("path", ["jobs", "job_stats"])
def test_the_jobs_of_an_unknown_machine_are_not_found(app: TestApp, path: str) -> None:
    assert refusal(app.get(f"/nodes/nobody/{path}/", status="*")) == (404, "node not found")


def test_jobs_outlive_their_machine(app: TestApp, session: Session) -> None:
    add_job(app, "1", "pass", "one")
    app.delete("/nodes/one/")
    assert session.scalar(select(func.count(Job.id))) == 1


# What is left behind


def test_every_change_leaves_an_event_with_the_request_that_made_it(app: TestApp, session: Session) -> None:
    headers = {"X-Request-ID": "this-one"}
    app.post_json("/nodes/", {"name": "one", "up": True, "machine_type": "smithi"}, headers=headers)
    app.put_json("/nodes/one", {"arch": "arm64"}, headers=headers)
    app.put_json("/nodes/one/lock", {"locked": True, "locked_by": "a@b"}, headers=headers)
    app.post_json("/nodes/unlock_many", {"names": ["one"], "locked_by": "a@b"}, headers=headers)
    app.delete("/nodes/one", headers=headers)
    events = session.scalars(select(Event).order_by(Event.seq)).all()
    assert [event.kind for event in events] == [
        "machine.added",
        "machine.updated",
        "machine.locked",
        "machine.unlocked",
        "machine.removed",
    ]
    assert {(event.subject, event.actor, event.request_id) for event in events} == {
        ("machines/one", "anonymous", "this-one")
    }


def test_reading_leaves_no_event(app: TestApp, session: Session) -> None:
    for path in ("", "machine_types", "job_stats", "nobody", "nobody/jobs", "nobody/job_stats"):
        app.get(f"/nodes/{path}", status="*")
    assert session.scalar(select(func.count(Event.seq))) == 0

"""The protocol, row by row (V5 to V13, V19 to V21): statuses, bodies, and what is in the database afterwards."""

import json
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import clock
from labctl.settings import ANONYMOUS
from labctl.tokens import service as tokens
from labctl.vms import on_demand
from labctl.vms.models import VM, VMWork
from labctl.vms.states import VMState, WorkState
from tests.conftest import StoppedClock
from tests.vms.conftest import Serve
from tests.vms.factories import make_ready, make_vm

MOUNTS = ["/api", "/api/v1", "/api/v2", "/api/v3"]
Header = dict[str, str]


def vm(session: Session, name: str) -> VM:
    session.expire_all()
    return session.scalars(select(VM).where(VM.name == name)).one()


def states(session: Session) -> list[str]:
    return sorted(session.scalars(select(VM.state)))


@pytest.fixture
def running(session: Session) -> str:
    """The name of a VM that somebody took without a credential."""
    return make_vm(session, state=VMState.RUNNING).name


@pytest.fixture
def jdoes(session: Session) -> str:
    """The name of a VM that jdoe has."""
    return make_vm(session, state=VMState.RUNNING, owner="jdoe").name


# V5 to V7: what there is, and taking it


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_pools_are_listed_by_name_without_aliases(app: TestApp, mount: str, slash: str) -> None:
    answer = app.get(f"{mount}/vm{slash}")
    assert answer.json == ["debian-7-i386", "debian-7-x86_64", "centos-9-x86_64"]
    assert answer.content_type == "application/json"


@pytest.mark.parametrize("mount", ["/api", "/api/v1"])
def test_vms_are_told_by_short_names_and_a_domain_in_v1(app: TestApp, session: Session, mount: str) -> None:
    i1, i2, x1 = make_ready(session, i386=2, x86_64=1)
    answer = app.post_json(f"{mount}/vm", {"debian-7-i386": "2", "debian-7-x86_64": 1}).json
    answer["debian-7-i386"]["hostname"].sort()
    assert answer == {
        "ok": True,
        "debian-7-i386": {"hostname": [i1, i2]},
        "debian-7-x86_64": {"hostname": x1},
        "domain": "example.com",
    }
    assert states(session) == ["running"] * 3


@pytest.mark.parametrize("mount", ["/api/v2", "/api/v3"])
def test_vms_are_told_by_full_names_from_v2_on(app: TestApp, session: Session, mount: str) -> None:
    (name,) = make_ready(session, i386=1)
    answer = app.post_json(f"{mount}/vm/", {"debian-7-i386": "1"}).json
    assert answer == {"ok": True, "debian-7-i386": {"hostname": f"{name}.example.com"}}


def test_without_a_domain_there_is_none(serve: Serve, session: Session) -> None:
    name = make_vm(session, domain="").name
    app = serve(vm_domain="")
    assert app.post("/api/vm/debian-7-i386").json == {"ok": True, "debian-7-i386": {"hostname": name}}


def test_names_in_the_path_add_up(app: TestApp, session: Session) -> None:
    make_ready(session, i386=2, x86_64=1)
    answer = app.post("/api/v1/vm/debian-7-i386+debian-7-x86_64%2Bdebian-7-i386/").json
    assert len(answer["debian-7-i386"]["hostname"]) == 2
    assert isinstance(answer["debian-7-x86_64"]["hostname"], str)


def test_an_alias_stands_for_all_pools_that_have_it_and_is_the_key_of_the_answer(
    app: TestApp, session: Session
) -> None:
    names = make_ready(session, i386=1, x86_64=2)
    answer = app.post_json("/api/v1/vm", {"debian-7-any": 3}).json
    assert sorted(answer["debian-7-any"]["hostname"]) == sorted(names)


def test_a_pool_and_its_alias_in_one_request_are_two_keys(app: TestApp, session: Session) -> None:
    i386, x86 = make_ready(session, i386=1, x86_64=1)
    answer = app.post("/api/v1/vm/debian-7-any+debian-7-i386").json
    assert answer["debian-7-i386"]["hostname"] == i386
    assert answer["debian-7-any"]["hostname"] == x86


def test_none_of_a_pool_is_200_with_nothing_of_it(app: TestApp, session: Session) -> None:
    (name,) = make_ready(session, x86_64=1)
    assert app.post_json("/api/v1/vm", {"debian-7-i386": "0"}).json == {"ok": True, "domain": "example.com"}
    assert app.post_json("/api/v1/vm", {"debian-7-i386": 0, "debian-7-x86_64": 1}).json == {
        "ok": True,
        "debian-7-x86_64": {"hostname": name},
        "domain": "example.com",
    }


@pytest.mark.parametrize("body", [{"nosuch": 1}, {"debian-7-i386": 1, "nosuch": 0}, {"": 1}])
def test_an_unknown_pool_is_404(app: TestApp, session: Session, body: Any) -> None:
    make_ready(session, i386=1)
    answer = app.post_json("/api/v1/vm", body, status=404)
    assert answer.json["ok"] is False
    assert "there is no pool" in answer.json["message"]
    assert states(session) == ["ready"]


@pytest.mark.parametrize("path", ["nosuch", "debian-7-i386+nosuch", "debian-7-i386+", "++"])
def test_an_unknown_pool_in_the_path_is_404(app: TestApp, session: Session, path: str) -> None:
    make_ready(session, i386=1)
    assert app.post(f"/api/v1/vm/{path}", status=404).json["ok"] is False


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("", "decode"),
        ("{", "decode"),
        ("[]", "body"),
        ('"x"', "body"),
        ("{}", "body"),
        ('{"debian-7-i386": "x"}', "debian-7-i386"),
        ('{"debian-7-i386": -1}', "debian-7-i386"),
        ('{"debian-7-i386": 1001}', "debian-7-i386"),
        ('{"debian-7-i386": null}', "debian-7-i386"),
        ('{"a\\u0000": 1}', "NUL"),
    ],
)
def test_a_body_that_asks_for_nothing_is_400_and_says_what_is_wrong(
    app: TestApp, mount: str, body: str, field: str
) -> None:
    answer = app.post(f"{mount}/vm", body, status=400)
    assert answer.json["ok"] is False
    assert field in answer.json["message"]


def test_too_few_are_503_and_nothing_is_taken(app: TestApp, session: Session) -> None:
    make_ready(session, i386=5, x86_64=1)
    answer = app.post_json("/api/v1/vm", {"debian-7-i386": 5, "debian-7-x86_64": 2}, status=503)
    assert answer.json == {"ok": False, "message": "debian-7-x86_64: only 1 of the 2 VMs that are wanted are ready"}
    assert states(session) == ["ready"] * 6


def test_a_form_is_read_as_json_whatever_its_type(app: TestApp, session: Session) -> None:
    make_ready(session, i386=1)
    body = json.dumps({"debian-7-i386": "1"})
    answer = app.post("/api/v1/vm", body, content_type="application/x-www-form-urlencoded")
    assert answer.json["ok"] is True


def test_a_vm_that_is_taken_with_a_token_is_its_users(app: TestApp, session: Session, jdoe: Header) -> None:
    (name,) = make_ready(session, i386=1)
    app.post("/api/v1/vm/debian-7-i386", headers=jdoe)
    taken = vm(session, name)
    assert taken.owner == "jdoe"
    assert taken.token_id is not None
    assert app.get(f"/api/v1/token/{jdoe['X-AUTH-TOKEN']}").json[jdoe["X-AUTH-TOKEN"]]["vms"] == {"running": [name]}


def test_a_vm_that_is_taken_with_a_password_is_its_users(app: TestApp, session: Session) -> None:
    (name,) = make_ready(session, i386=1)
    tokens.add_user(session, "jane", password="secret")
    app.authorization = ("Basic", ("jane", "secret"))
    app.post("/api/v1/vm/debian-7-i386")
    assert (vm(session, name).owner, vm(session, name).token_id) == ("jane", None)


def test_a_vm_that_is_taken_without_a_credential_is_nobodys(app: TestApp, session: Session) -> None:
    (name,) = make_ready(session, i386=1)
    app.post("/api/v1/vm/debian-7-i386", extra_environ={"REMOTE_ADDR": "10.0.0.7"})
    assert (vm(session, name).owner, vm(session, name).address) == (None, "10.0.0.7")


@pytest.mark.parametrize(("auth", "lifetime"), [(48, 48), (0, 24)])
def test_a_credential_has_a_lifetime_of_its_own_if_there_is_one(
    serve: Serve, session: Session, jdoe: Header, auth: int, lifetime: int
) -> None:
    make_ready(session, i386=2)
    app = serve(vm_lifetime=24, vm_lifetime_auth=auth)
    for headers, expected in ((jdoe, lifetime), ({}, 24)):
        name = app.post("/api/v1/vm/debian-7-i386", headers=headers).json["debian-7-i386"]["hostname"]
        assert vm(session, name).lifetime == expected


def test_a_wrong_token_is_401(app: TestApp, session: Session) -> None:
    make_ready(session, i386=1)
    answer = app.post("/api/v1/vm/debian-7-i386", headers={"X-AUTH-TOKEN": "badtoken"}, status=401)
    assert answer.json["ok"] is False
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert states(session) == ["ready"]


@pytest.mark.parametrize(("access", "get", "post"), [("read", 200, 401), ("none", 401, 401)])
def test_the_tree_can_be_closed(serve: Serve, session: Session, jdoe: Header, access: str, get: int, post: int) -> None:
    make_ready(session, i386=1)
    app = serve(anonymous={**ANONYMOUS, "vms": access})
    app.get("/api/v1/vm", status=get)
    app.post("/api/v1/vm/debian-7-i386", status=post)
    app.post("/api/v1/vm/debian-7-i386", headers=jdoe, status=200)


# V8: looking at one


@pytest.mark.parametrize(
    ("mount", "key", "value"),
    [
        ("/api", "domain", "example.com"),
        ("/api/v1", "domain", "example.com"),
        ("/api/v2", "fqdn", "{}.example.com"),
        ("/api/v3", "fqdn", "{}.example.com"),
    ],
)
def test_a_vm_is_shown(
    app: TestApp, running: str, stopped_clock: StoppedClock, session: Session, mount: str, key: str, value: str
) -> None:
    session.execute(update(VM).values(checkout=clock.now()))
    stopped_clock.advance(hours=2, minutes=15)
    for host in (running, f"{running}.example.com", running.upper()):
        shown = app.get(f"{mount}/vm/{host}").json[running]
        assert shown["running"] == 2.25
        assert shown["state"] == "running"
        assert shown["template"] == "debian-7-i386"
        assert shown[key] == value.format(running)
        assert len({"domain", "fqdn"} & shown.keys()) == 1


@pytest.mark.parametrize("host", ["nosuch", "nosuch.example.com", "{}.example.org"])
def test_an_unknown_vm_is_404(app: TestApp, running: str, host: str) -> None:
    for mount in MOUNTS:
        assert app.get(f"{mount}/vm/{host.format(running)}", status=404).json["ok"] is False


@pytest.mark.parametrize("state", [VMState.PENDING, VMState.READY, VMState.DESTROYED])
def test_vms_that_nobody_has_are_shown_too(app: TestApp, session: Session, state: VMState) -> None:
    name = make_vm(session, state=state).name
    assert app.get(f"/api/v1/vm/{name}").json[name]["state"] == state


def test_what_could_not_be_done_to_a_vm_is_told(app: TestApp, session: Session, running: str) -> None:
    app.get(f"/api/v1/vm/{running}")
    now = clock.now()
    work = {"vm_id": vm(session, running).id, "created": now, "due": now, "kind": "disk", "argument": "8"}
    session.add(VMWork(**work, state=WorkState.FAILED, reason="this provider cannot add disks"))
    session.add(VMWork(**work, state=WorkState.DONE))
    # That is no wish of the user's.
    session.add(VMWork(**{**work, "kind": "live_migrate", "argument": "h1"}, state=WorkState.FAILED, reason="no room"))
    session.flush()
    assert app.get(f"/api/v1/vm/{running}").json[running]["failed"] == ["disk 8: this provider cannot add disks"]


# V9: changing one


def test_a_change_needs_a_credential_for_a_lifetime_only(
    app: TestApp, session: Session, running: str, jdoe: Header
) -> None:
    app.put_json(f"/api/v1/vm/{running}", {"tags": {"a": "b"}}, status=200)
    answer = app.put_json(f"/api/v1/vm/{running}", {"lifetime": 2, "tags": {"c": "d"}}, status=401)
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert app.put_json(f"/api/v1/vm/{running}", {"lifetime": "2"}, headers=jdoe).json == {"ok": True}
    assert (vm(session, running).tags, vm(session, running).lifetime) == ({"a": "b"}, 2)


def test_nothing_changes_if_any_part_is_wrong(app: TestApp, session: Session, running: str, jdoe: Header) -> None:
    before = vm(session, running).lifetime
    answer = app.put_json(
        f"/api/v1/vm/{running}", {"tags": {"a": "b"}, "lifetime": 0, "disk": 8}, headers=jdoe, status=400
    )
    assert answer.json["ok"] is False
    assert answer.json["failure"] == [
        "You provided a lifetime (0) but you must provide a positive number.",
        "Unknown argument disk.",
    ]
    assert (vm(session, running).tags, vm(session, running).lifetime) == ({}, before)


def test_tags_and_lifetimes_are_bounded_by_the_settings(
    serve: Serve, session: Session, running: str, jdoe: Header
) -> None:
    app = serve(vm_tags=["url"], vm_tag_filters={"url": r"(.*)\/"}, vm_lifetime_limit=168)
    put = f"/api/v1/vm/{running}"
    assert app.put_json(put, {"tags": {"x": "y"}}, status=400).json["failure"] == ["You provided unsupported tags (x)."]
    assert app.put_json(put, {"lifetime": 168}, headers=jdoe, status=400).json["failure"] == [
        "You provided a lifetime (168) that exceeds the configured maximum of 168."
    ]
    app.put_json(put, {"tags": {"url": "foo/bar"}, "lifetime": 167}, headers=jdoe)
    assert (vm(session, running).tags, vm(session, running).lifetime) == ({"url": "foo"}, 167)


@pytest.mark.parametrize("body", ["", "{", "[]", "1"])
def test_a_change_that_is_no_object_is_400(app: TestApp, running: str, body: str) -> None:
    assert app.put(f"/api/v1/vm/{running}", body, status=400).json["ok"] is False


def test_a_change_of_nothing_is_200(app: TestApp, running: str) -> None:
    assert app.put_json(f"/api/v1/vm/{running}", {}).json == {"ok": True}


def test_a_change_of_an_unknown_vm_is_404(app: TestApp, jdoe: Header) -> None:
    assert app.put_json("/api/v1/vm/nosuch", {"lifetime": 4}, headers=jdoe, status=404).json["ok"] is False


def test_a_vm_of_somebody_is_401_without_a_credential_and_403_for_others(
    app: TestApp, session: Session, jdoes: str, jdoe: Header, other: Header, admin: Header
) -> None:
    path = f"/api/v1/vm/{jdoes}"
    app.put_json(path, {"tags": {"a": "b"}}, status=401)
    app.put_json(path, {"tags": {"a": "b"}}, headers=other, status=403)
    app.delete(path, status=401)
    app.delete(path, headers=other, status=403)
    app.post(f"{path}/disk/8", headers=other, status=403)
    app.post(f"{path}/snapshot", headers=other, status=403)
    app.put_json(path, {"tags": {"a": "b"}}, headers=jdoe)
    app.put_json(path, {"lifetime": 3}, headers=admin)
    assert app.delete(path, headers=jdoe).json == {"ok": True}


# V10: giving one back


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_vm_is_given_back_once(app: TestApp, session: Session, running: str, mount: str) -> None:
    assert app.delete(f"{mount}/vm/{running}.example.com/").json == {"ok": True}
    assert vm(session, running).state == VMState.COMPLETED
    assert app.get(f"{mount}/vm/{running}").json[running]["state"] == "running"
    assert app.delete(f"{mount}/vm/{running}", status=404).json["ok"] is False


def test_a_vm_that_nobody_has_cannot_be_given_back(app: TestApp, session: Session) -> None:
    (name,) = make_ready(session, i386=1)
    assert app.delete(f"/api/v1/vm/{name}", status=404).json["ok"] is False
    assert app.delete("/api/v1/vm/nosuch", status=404).json["ok"] is False


# V11 to V13: disks and snapshots


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_disk_is_202_under_the_short_name(
    app: TestApp, session: Session, running: str, jdoe: Header, mount: str
) -> None:
    answer = app.post(f"{mount}/vm/{running}.example.com/disk/8", headers=jdoe, status=202)
    assert answer.json == {"ok": True, running: {"disk": "+8gb"}}
    assert [(work.kind, work.argument) for work in session.scalars(select(VMWork))] == [("disk", "8")]


@pytest.mark.parametrize("size", ["0", "-1", "x", "5000"])
def test_a_disk_of_no_size_is_404_and_400_in_v3(app: TestApp, running: str, jdoe: Header, size: str) -> None:
    app.post(f"/api/v1/vm/{running}/disk/{size}", headers=jdoe, status=404)
    assert "size" in app.post(f"/api/v3/vm/{running}/disk/{size}", headers=jdoe, status=400).json["message"]


@pytest.mark.parametrize("path", ["disk/8", "disk/x", "snapshot", "snapshot/s"])
def test_disks_and_snapshots_need_a_credential_first(app: TestApp, running: str, jdoe: Header, path: str) -> None:
    for host in (running, "nosuch"):
        app.post(f"/api/v1/vm/{host}/{path}", status=401)
    app.post(f"/api/v1/vm/nosuch/{path}", headers=jdoe, status=404)


def test_a_snapshot_has_a_name_and_can_be_gone_back_to_when_it_is_finished(
    app: TestApp, session: Session, running: str, jdoe: Header
) -> None:
    answer = app.post(f"/api/v1/vm/{running}/snapshot", headers=jdoe, status=202).json
    name = answer[running]["snapshot"]
    assert answer == {"ok": True, running: {"snapshot": name}}
    assert len(name) == 32
    app.post(f"/api/v1/vm/{running}/snapshot/{name}", headers=jdoe, status=404)
    session.execute(update(VM).values(snapshots=[name]))
    answer = app.post(f"/api/v1/vm/{running}/snapshot/{name}", headers=jdoe, status=202)
    assert answer.json == {"ok": True}
    assert app.get(f"/api/v1/vm/{running}").json[running]["snapshots"] == [name]


def test_too_much_waiting_is_409(app: TestApp, running: str, jdoe: Header) -> None:
    for _ in range(16):
        app.post(f"/api/v1/vm/{running}/disk/1", headers=jdoe)
    assert app.post(f"/api/v1/vm/{running}/disk/1", headers=jdoe, status=409).json["ok"] is False


# V19 to V21: requests


def test_a_request_needs_a_credential(app: TestApp) -> None:
    app.post("/api/v1/ondemandvm/debian-7-i386", status=401)
    app.post_json("/api/v1/ondemandvm", {"debian-7-i386": 1}, status=401)
    app.delete("/api/v1/ondemandvm/nosuch", status=401)


def test_the_life_of_a_request(app: TestApp, session: Session, jdoe: Header) -> None:
    asked = app.post_json("/api/v1/ondemandvm/", {"debian-7-i386": "2"}, headers=jdoe, status=201).json
    identity = asked["request_id"]
    assert asked == {"ok": True, "request_id": identity, "domain": "example.com"}
    assert app.get(f"/api/v1/ondemandvm/{identity}", status=202).json == {
        "ok": True,
        "request_id": identity,
        "ready": False,
        "debian-7-i386": {"ready": "0", "pending": "2"},
    }
    session.execute(update(VM).values(state=VMState.RUNNING, checkout=clock.now(), owner="jdoe"))
    on_demand.finish(session)
    names = sorted(session.scalars(select(VM.name)))
    answer = app.get(f"/api/v1/ondemandvm/{identity}/", status=200).json
    answer["debian-7-i386"]["hostname"].sort()
    assert answer == {
        "ok": True,
        "request_id": identity,
        "ready": True,
        "debian-7-i386": {"hostname": names},
        "domain": "example.com",
    }
    full = app.get(f"/api/v3/ondemandvm/{identity}").json
    assert sorted(full["debian-7-i386"]["hostname"]) == [f"{name}.example.com" for name in names]
    assert "domain" not in full
    assert app.delete(f"/api/v1/ondemandvm/{identity}", headers=jdoe).json == {"ok": True}
    assert states(session) == ["completed"] * 2
    gone = app.get(f"/api/v1/ondemandvm/{identity}", status=200).json
    assert gone == {
        "ok": True,
        "request_id": identity,
        "ready": False,
        "message": "The request has been deleted",
    }


def test_a_request_in_the_path_adds_up(app: TestApp, session: Session, jdoe: Header) -> None:
    answer = app.post("/api/v3/ondemandvm/debian-7-i386+centos-9-x86_64+debian-7-i386", headers=jdoe, status=201)
    assert answer.json.keys() == {"ok", "request_id"}
    assert sorted(session.scalars(select(VM.pool))) == ["centos-9-x86_64", "debian-7-i386", "debian-7-i386"]


def test_a_request_for_unknown_pools_is_404_and_names_them(app: TestApp, jdoe: Header) -> None:
    answer = app.post_json("/api/v1/ondemandvm", {"nosuch": 1, "debian-7-i386": 1}, headers=jdoe, status=404)
    assert (answer.json["ok"], answer.json["bad_templates"]) == (False, ["nosuch"])
    assert app.post("/api/v1/ondemandvm/nosuch", headers=jdoe, status=404).json["bad_templates"] == ["nosuch"]


def test_a_request_for_too_many_is_403(app: TestApp, jdoe: Header) -> None:
    answer = app.post_json("/api/v1/ondemandvm", {"debian-7-i386": 11}, headers=jdoe, status=403)
    assert answer.json == {"ok": False, "message": "requested amount of instances exceeds the maximum 10"}


def test_a_request_id_is_used_once(app: TestApp, jdoe: Header) -> None:
    body = {"debian-7-i386": 1, "request_id": "mine"}
    assert app.post_json("/api/v1/ondemandvm", body, headers=jdoe, status=201).json["request_id"] == "mine"
    answer = app.post_json("/api/v1/ondemandvm", body, headers=jdoe, status=409)
    assert answer.json == {"ok": False, "message": "request_id 'mine' has already been created"}


@pytest.mark.parametrize(
    ("body", "message"), [("{", "JSON payload could not be parsed"), ("{}", "body"), ("[]", "body")]
)
def test_a_request_for_nothing_is_400(app: TestApp, jdoe: Header, body: str, message: str) -> None:
    answer = app.post("/api/v1/ondemandvm", body, headers=jdoe, status=400)
    assert message in answer.json["message"]
    app.post_json("/api/v1/ondemandvm", {"debian-7-i386": 0}, headers=jdoe, status=400)


def test_an_unknown_request_is_404_with_a_message(app: TestApp, jdoe: Header) -> None:
    expected = {"ok": False, "message": "no request found for request_id 'nosuch'"}
    assert app.get("/api/v1/ondemandvm/nosuch", status=404).json == expected
    assert app.delete("/api/v1/ondemandvm/nosuch", headers=jdoe, status=404).json == expected


def test_a_request_of_somebody_else_cannot_be_taken_back(app: TestApp, jdoe: Header, other: Header) -> None:
    identity = app.post("/api/v1/ondemandvm/debian-7-i386", headers=jdoe).json["request_id"]
    app.delete(f"/api/v1/ondemandvm/{identity}", headers=other, status=403)


# Routing


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PATCH", "/api/v1/vm", 405),
        ("DELETE", "/api/v1/vm", 405),
        ("GET", "/api/v1/vm/h/disk", 404),
        ("GET", "/api/v1/vm/h/disk/8", 405),
        ("GET", "/api/v1/nosuch", 404),
        ("GET", "/api/v1/vm/h/nosuch", 404),
        ("GET", "/api/v4/vm", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_dialect(app: TestApp, method: str, path: str, status: int) -> None:
    answer = app.request(path, method=method, status=status)
    assert answer.json["message"]
    if "v4" not in path:
        assert answer.json["ok"] is False


def test_a_version_lists_what_it_has(app: TestApp) -> None:
    for mount in MOUNTS[1:]:
        assert {"vm", "token", "status", "summary", "ondemandvm"} <= set(app.get(mount).json["trees"])

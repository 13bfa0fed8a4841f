"""Status, summary and configuration (V14 to V18, V22, V23): statuses and bodies."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import clock
from labctl.settings import Settings
from labctl.vms.models import VM, PoolState, ProviderState
from labctl.vms.states import VMState
from tests.conftest import StoppedClock
from tests.vms.conftest import Serve
from tests.vms.factories import make_day, make_ready, make_settings, make_vm

Header = dict[str, str]


@pytest.fixture
def changeable(serve: Serve) -> TestApp:
    return serve(vm_config_api=True)


# Status


@pytest.mark.parametrize("path", ["/api/status", "/api/v1/status/", "/api/v2/status", "/api/v3/status"])
def test_the_status_counts_what_there_is(app: TestApp, session: Session, path: str) -> None:
    make_ready(session, i386=2)
    for state in VMState:
        make_vm(session, state=state)
    make_day(session, clock.now().date())
    make_day(session, clock.now().date() - timedelta(days=1), boots=99)
    session.add(PoolState(pool="debian-7-i386", last_boot=clock.now(), size=7))
    session.flush()
    status = app.get(path).json
    assert status["pools"].keys() == {"debian-7-i386", "debian-7-x86_64", "centos-9-x86_64"}
    assert status["pools"]["debian-7-i386"]["ready"] == 3
    assert status["pools"]["debian-7-i386"]["max"] == 7
    assert status["pools"]["debian-7-i386"]["lastBoot"].endswith(" +0000")
    assert status["queue"]["total"] == 7
    assert status["boot"]["count"]["total"] == 1
    assert status["status"]["empty"] == ["debian-7-x86_64"]
    assert status["status"]["message"] == "Found 1 empty pools."


def test_the_status_of_a_lab_that_is_well(app: TestApp, session: Session) -> None:
    make_ready(session, i386=1, x86_64=1)
    status = app.get("/api/v1/status").json["status"]
    assert (status["ok"], status["message"]) == (True, "Battle station fully armed and operational.")


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("", {"boot", "capacity", "clone", "pools", "queue"}),
        ("?view", {"boot", "capacity", "clone", "pools", "queue"}),
        ("?view=", set()),
        ("?view=capacity,queue", {"capacity", "queue"}),
        ("?view=nosuch", set()),
    ],
)
def test_a_view_chooses_parts_of_the_status(app: TestApp, query: str, parts: set[str]) -> None:
    assert app.get(f"/api/v1/status{query}").json.keys() == {*parts, "status"}


def test_what_is_wrong_and_what_is_not_real_is_told(serve: Serve, session: Session) -> None:
    app = serve(providers={"fake": {"plugin": "fake"}, "hv": {"plugin": "libvirt"}})
    now = clock.now()
    session.add(PoolState(pool="debian-7-i386", blocked_until=now, reason="no such template"))
    session.add(ProviderState(provider="fake", open_until=now, reason="it hangs"))
    session.flush()
    status = app.get("/api/v1/status?view=").json["status"]
    assert status["blocked"] == {"debian-7-i386": "no such template"}
    assert status["providers"] == {"fake": "it hangs"}
    assert len(status["fake"]) == 3
    assert app.get("/api/v1/config").json["pool_configuration"][0]["blocked"] == "no such template"


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/api/status", 3),
        ("/api/summary", 2),
        ("/api/summary/tag", 1),
        ("/api/summary/boot", 1),
        ("/api/poolstat?pool=x", 2),
        ("/api/totalrunning", 1),
        ("/api/config", 2),
    ],
)
def test_reports_cost_so_many_statements(app: TestApp, statements: Callable[[], Any], path: str, number: int) -> None:
    with statements() as sent:
        app.get(path)
    assert len(sent) == number


# Summary


def test_the_summary_of_some_days(app: TestApp, session: Session, stopped_clock: StoppedClock) -> None:
    make_day(session, clock.now().date())
    make_day(session, clock.now().date() - timedelta(days=1), pool="debian-7-x86_64")
    vm = make_vm(session, state=VMState.RUNNING)
    app.put_json(f"/api/v1/vm/{vm.name}", {"tags": {"user": "jdoe"}})
    answer = app.get("/api/v1/summary?from=2026-01-01&to=2026-01-03").json
    assert answer.keys() == {"boot", "clone", "tag", "daily"}
    assert [day["boot"]["count"]["total"] for day in answer["daily"]] == [1, 1, 0]
    assert answer["boot"]["count"]["total"] == 2
    assert answer["tag"] == {"user": {"jdoe": 1, "total": 1}}
    today = app.get("/api/v1/summary/").json
    assert [day["date"] for day in today["daily"]] == ["2026-01-02"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("boot", 200),
        ("boot/count", 200),
        ("boot/duration/", 200),
        ("clone", 200),
        ("clone/count", 200),
        ("tag", 200),
        ("tag/user", 200),
        ("nosuch", 404),
        ("boot/nosuch", 404),
        ("boot/count/x", 404),
        ("tag/user/x", 404),
    ],
)
def test_the_summary_has_parts(app: TestApp, path: str, status: int) -> None:
    answer = app.get(f"/api/v1/summary/{path}", status=status).json
    if status == 200:
        assert answer.keys() == {path.split("/")[0], "daily"}
    else:
        assert answer["ok"] is False


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("from=x", "Invalid date format 'x', must match YYYY-MM-DD."),
        ("to=20260101", "Invalid date format '20260101', must match YYYY-MM-DD."),
        ("from=2026-01-02&to=2026-01-01", "Date range is invalid, 'to' cannot come before 'from'."),
        ("from=2026-02-01&to=2026-02-01", "Date range is invalid, 'from' must be in the past."),
    ],
)
def test_days_that_cannot_be_are_400_in_plain_text(
    app: TestApp, stopped_clock: StoppedClock, query: str, message: str
) -> None:
    answer = app.get(f"/api/v1/summary?{query}", status=400)
    assert answer.text == message
    assert answer.content_type == "text/plain"


# Small ones


def test_poolstat_and_totalrunning(app: TestApp, session: Session) -> None:
    make_ready(session, i386=2)
    make_vm(session, state=VMState.RUNNING)
    make_vm(session, state=VMState.RUNNING, pool="gone")
    assert app.get("/api/v1/poolstat?pool=debian-7-i386,nosuch,centos-9-x86_64").json == {
        "pools": {
            "debian-7-i386": {"max": 3, "ready": 2, "alias": ["debian-7-32", "debian-7-any"]},
            "centos-9-x86_64": {"max": 0, "ready": 0},
        }
    }
    assert app.get("/api/v1/poolstat").json == {"pools": {}}
    assert app.get("/api/v1/totalrunning").json == {"running": 2}


def test_the_configuration_is_the_same_under_both_names(app: TestApp) -> None:
    config = app.get("/api/v1/config").json
    assert config["status"] == {"ok": True}
    assert [pool["name"] for pool in config["pool_configuration"]] == [
        "debian-7-i386",
        "debian-7-x86_64",
        "centos-9-x86_64",
    ]
    assert app.get("/api/v1/full_config").json["pool_configuration"] == config["pool_configuration"]
    assert "options" not in config["pool_configuration"][0]


# Changing pools


def test_pools_are_not_changed_where_the_setting_forbids_it(app: TestApp, admin: Header) -> None:
    for path in ("config/poolsize", "config/pooltemplate", "config/clonetarget", "config/poolreset", "poolreset"):
        app.post_json(f"/api/v1/{path}", {"debian-7-i386": 1}, headers=admin, status=405)
    app.delete("/api/v1/config/poolsize/debian-7-i386", headers=admin, status=405)


def test_pools_are_changed_by_admins_only(changeable: TestApp, jdoe: Header) -> None:
    for path in ("config/poolsize", "config/pooltemplate", "config/clonetarget", "config/poolreset", "poolreset"):
        changeable.post_json(f"/api/v1/{path}", {"debian-7-i386": 1}, status=401)
        changeable.post_json(f"/api/v1/{path}", {"debian-7-i386": 1}, headers=jdoe, status=403)
    changeable.delete("/api/v1/config/poolsize/debian-7-i386", headers=jdoe, status=403)


def test_a_size_is_changed_and_reset(changeable: TestApp, session: Session, settings: Settings, admin: Header) -> None:
    def size(app: TestApp) -> int:
        shown: int = app.get("/api/v1/config").json["pool_configuration"][0]["size"]
        return shown

    path = "/api/v1/config/poolsize"
    assert changeable.post_json(path, {"debian-7-i386": "9"}, headers=admin, status=201).json == {"ok": True}
    assert changeable.post_json(path, {"debian-7-i386": 9}, headers=admin, status=200).json == {"ok": True}
    assert size(changeable) == 9
    # In the database, so that another process knows it, and after a restart too.
    from labctl.app import make_app

    assert size(TestApp(make_app(make_settings(settings)))) == 9
    reset = changeable.delete(f"{path}/debian-7-i386", headers=admin, status=201).json
    assert reset == {"ok": True, "pool_size_before_reset": 9, "pool_size_before_overrides": 3}
    assert size(changeable) == 3
    changeable.delete(f"{path}/debian-7-i386/", headers=admin, status=200)


def test_a_template_is_changed_and_reset(changeable: TestApp, admin: Header) -> None:
    path = "/api/v1/config/pooltemplate"
    changeable.post_json(path, {"debian-7-i386": "templates/new"}, headers=admin, status=201)
    assert changeable.delete(f"{path}/debian-7-i386", headers=admin, status=201).json == {
        "ok": True,
        "template_before_reset": "templates/new",
        "template_before_overrides": "debian-7-i386",
    }


@pytest.mark.parametrize(
    ("path", "body", "key", "pools"),
    [
        ("config/poolsize", {"debian-7-i386": -1}, "bad_templates", ["debian-7-i386"]),
        ("config/poolsize", {"debian-7-i386": 1, "centos-9-x86_64": "x"}, "bad_templates", ["centos-9-x86_64"]),
        ("config/poolsize", {"nosuch": 1, "debian-7-i386": 1}, "not_configured", ["nosuch"]),
        ("config/poolsize", {"debian-7-32": 1}, "not_configured", ["debian-7-32"]),
        ("config/pooltemplate", {"debian-7-i386": ""}, "bad_templates", ["debian-7-i386"]),
        ("config/pooltemplate", {"debian-7-i386": 1}, "bad_templates", ["debian-7-i386"]),
        ("config/clonetarget", {"debian-7-i386": 0}, "bad_templates", ["debian-7-i386"]),
        ("config/poolreset", {"nosuch": "1"}, "bad_pools", ["nosuch"]),
        ("poolreset", {"nosuch": "1"}, "bad_pools", ["nosuch"]),
    ],
)
def test_a_change_that_cannot_be_is_400_and_changes_nothing(
    changeable: TestApp, session: Session, admin: Header, path: str, body: Any, key: str, pools: list[str]
) -> None:
    answer = changeable.post_json(f"/api/v1/{path}", body, headers=admin, status=400).json
    assert (answer["ok"], answer[key]) == (False, pools)
    assert session.scalars(select(PoolState)).all() == []


@pytest.mark.parametrize("path", ["config/poolsize", "config/poolreset"])
@pytest.mark.parametrize("body", ["", "[]", "{}"])
def test_a_change_of_nothing_is_400(changeable: TestApp, admin: Header, path: str, body: str) -> None:
    assert changeable.post(f"/api/v1/{path}", body, headers=admin, status=400).json["ok"] is False


def test_an_unknown_pool_cannot_be_reset(changeable: TestApp, admin: Header) -> None:
    assert changeable.delete("/api/v1/config/poolsize/nosuch", headers=admin, status=404).json["ok"] is False


def test_a_clone_target_is_changed(changeable: TestApp, session: Session, admin: Header) -> None:
    changeable.post_json("/api/v1/config/clonetarget", {"debian-7-i386": "5"}, headers=admin, status=201)
    assert session.get_one(PoolState, "debian-7-i386").clone_target == 5


@pytest.mark.parametrize("path", ["config/poolreset", "poolreset"])
def test_a_pool_that_is_reset_loses_what_nobody_has(
    changeable: TestApp, session: Session, admin: Header, path: str
) -> None:
    make_ready(session, i386=2, x86_64=1)
    changeable.post_json(f"/api/v1/{path}", {"debian-7-i386": "1"}, headers=admin, status=201)
    assert sorted(session.scalars(select(VM.state))) == ["completed", "completed", "ready"]

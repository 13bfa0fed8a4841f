import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, update
from sqlalchemy import text as sql
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl import clock
from labctl.db import Base
from labctl.events.models import Event
from labctl.maintenance import models as tables
from labctl.maintenance.models import (
    MaintenanceAction,
    MaintenanceDownload,
    MaintenanceHost,
    MaintenanceMove,
    MaintenanceReply,
    MaintenanceSession,
    MaintenanceStep,
    MaintenanceSubscription,
)
from labctl.maintenance.states import DONE, FAILED, HostState
from labctl.settings import Settings

from .asking import ACTIONS, SESSION, URLS, add_hosts, ask, credential, running

UNKNOWN = str(uuid.uuid1())
SECRET = "not to be told anybody"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def admin(app: TestApp, session: Session) -> TestApp:
    """The application, asked by somebody with the right to the tree, in a lab of three hosts."""
    app.extra_environ["HTTP_X_AUTH_TOKEN"] = credential(session, "doctor", rights=["maintenance"])["X-Auth-Token"]
    add_hosts(session)
    return app


def begin(app: TestApp, **changes: Any) -> str:
    sid: str = app.post_json(URLS[0], {**SESSION, **changes}).json["session_id"]
    return sid


def detail(app: TestApp, sid: str) -> Any:
    return app.get(f"{URLS[0]}/{sid}").json


def refusal(answer: Any) -> tuple[int, str]:
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["error"]
    return answer.status_int, answer.json["error"]


def refused(app: TestApp, **changes: Any) -> tuple[int, str]:
    return refusal(app.post_json(URLS[0], {**SESSION, **changes}, expect_errors=True))


def put(app: TestApp, sid: str, **data: Any) -> Any:
    return app.put_json(f"{URLS[0]}/{sid}", data, expect_errors=True)


#: Actions of a host and of the session, in the order in which they run.
ORDER = [
    *(("host1", kind, attempt) for attempt in (1, 2) for kind in ("host", "check")),
    *(("", kind, attempt) for kind in ("pre", "post") for attempt in (1, 2)),
]


def change(session: Session, model: type[Base], **values: Any) -> None:
    """Change all rows of a table, as the engine would."""
    session.execute(update(model).values(values))
    session.expire_all()


def set_host(session: Session, name: str, **values: Any) -> None:
    session.execute(update(MaintenanceHost).where(MaintenanceHost.host == name).values(values))
    session.expire_all()


def fail(session: Session, state: str = "START_MAINTENANCE", *hosts: str) -> None:
    """Let the session fail, as the engine does."""
    values = {"state": FAILED, "failed_in": state, "reason": "it was told to", "due": None, "finished": clock.now()}
    change(session, MaintenanceSession, **values)
    for host in hosts:
        set_host(session, host, state=HostState.FAILED, cordoned=True, reason="broken")


def events(session: Session) -> list[tuple[str, str, Any]]:
    query = select(Event.kind, Event.subject, Event.data).where(Event.kind.startswith("maintenance."))
    return [(kind, subject, data) for kind, subject, data in session.execute(query.order_by(Event.seq))]


def rows(session: Session, model: type[Base]) -> int:
    return session.scalar(select(func.count()).select_from(model)) or 0


# Beginning


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("url", URLS)
def test_a_session_is_begun_at_both_places_with_and_without_a_slash(
    admin: TestApp, session: Session, url: str, slash: str
) -> None:
    answer = admin.post_json(f"{url}{slash}", SESSION)

    assert list(answer.json) == ["session_id"]
    sid = answer.json["session_id"]
    assert uuid.UUID(sid).version == 1
    row = session.get_one(MaintenanceSession, sid)
    assert (row.state, row.workflow, row.created_by, row.base_url) == (
        "MAINTENANCE",
        "default",
        "doctor",
        f"http://localhost:80{url}".replace(":80/", "/"),
    )
    assert row.due is not None
    assert admin.get(f"{url}/{sid}{slash}").json["state"] == "MAINTENANCE"


def test_what_a_session_is_asked_for_can_be_read(admin: TestApp, stopped_clock: Any) -> None:
    sid = begin(
        admin, maintenance_at="2026-01-03 00:00:00", actions=ACTIONS, download=["https://h.example/a.tgz?token=geheim"]
    )

    found = detail(admin, sid)
    assert {key: found[key] for key in ("session_id", "state", "workflow", "maintenance_at", "metadata")} == {
        "session_id": sid,
        "state": "MAINTENANCE",
        "workflow": "default",
        "maintenance_at": "2026-01-03 00:00:00",
        "metadata": {"openstack_release": "Queens"},
    }
    assert (found["created"], found["since"], found["created_by"]) == (*["2026-01-02 03:04:05"] * 2, "doctor")
    assert (found["paused"], found["reason"], found["failed_in"], found["finished"]) == (False, None, None, None)
    assert found["progress"] == {"hosts": 2, **dict.fromkeys(HostState, 0), "waiting": 2}
    assert [(host["host"], host["state"], host["kinds"], host["out_of_service"]) for host in found["hosts"]] == [
        ("host1", "waiting", ["inventory", "machine"], False),
        ("host2", "waiting", ["inventory", "machine"], False),
    ]
    assert [(each["url"], each["state"]) for each in found["download"]] == [("https://h.example/a.tgz?***", "waiting")]
    assert found["steps"] == [{"at": "2026-01-02 03:04:05", "state": "MAINTENANCE", "text": "begun by doctor"}]


def test_actions_are_told_in_the_order_in_which_they_run(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    for number, (host, kind, attempt) in enumerate(ORDER):
        about = {"number": number, "host": host, "type": kind, "attempt": attempt}
        session.add(MaintenanceAction(session_id=sid, plugin="dummy", **about))
    session.flush()
    found = detail(admin, sid)
    told = [("host1", each) for each in found["hosts"][0]["actions"]] + [("", each) for each in found["actions"]]
    assert [(host, each["type"], each["attempt"]) for host, each in told] == ORDER


def test_a_time_that_is_over_is_now(admin: TestApp, stopped_clock: Any) -> None:
    sid = begin(admin, maintenance_at="2018-02-28 06:06:03")

    assert detail(admin, sid)["maintenance_at"] == "2026-01-02 03:04:05"


def test_an_empty_list_of_hosts_is_all_there_are(admin: TestApp, session: Session) -> None:
    add_hosts(session, "another")

    assert [host["host"] for host in detail(admin, begin(admin, hosts=[]))["hosts"]] == [
        "another",
        "host1",
        "host2",
        "host3",
    ]


def test_hosts_keep_their_order(admin: TestApp) -> None:
    sid = begin(admin, hosts=["host3", "host1", "host2"])

    assert [host["host"] for host in detail(admin, sid)["hosts"]] == ["host3", "host1", "host2"]


def test_a_lab_without_hosts_has_nothing_to_maintain(app: TestApp, session: Session) -> None:
    app.extra_environ["HTTP_X_AUTH_TOKEN"] = credential(session, "doctor", admin=True)["X-Auth-Token"]

    assert refused(app, hosts=[]) == (400, "hosts: there are none to be found")


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_begun(admin: TestApp, session: Session) -> None:
    status, told = refused(
        admin,
        hosts=["host1", "nosuch"],
        maintenance_at="soon",
        workflow="vnf",
        metadata=5,
        actions=[{"plugin": "nosuch", "type": "pre"}, {"plugin": "command", "type": "host", "metadata": {"cmd": 1}}],
        download=["ftp://host/a"],
        extra=1,
    )

    assert status == 400
    for field in ("hosts", "maintenance_at", "workflow", "metadata", "download.0", "extra"):
        assert f"{field}: " in told
    assert "there is no host nosuch" in told
    assert re.search("actions.0.plugin: .*installed: .*command", told)
    assert "actions.1.metadata: command" in told
    assert rows(session, MaintenanceSession) == 0


@pytest.mark.parametrize("field", SESSION)
def test_a_field_that_is_missing_is_named(admin: TestApp, field: str) -> None:
    data = {key: value for key, value in SESSION.items() if key != field}

    assert refusal(admin.post_json(URLS[0], data, expect_errors=True)) == (400, f"{field}: is required")


@pytest.mark.parametrize("body", ["", "{", "[]", "5", "null"])
def test_a_body_that_is_no_object_is_refused(admin: TestApp, body: str) -> None:
    for method, url in (("POST", URLS[0]), ("PUT", f"{URLS[0]}/{begin(admin)}"), ("POST", f"{URLS[0]}/plan")):
        assert refusal(admin.request(url, method=method, body=body.encode(), expect_errors=True))[0] == 400


def test_an_unknown_workflow_lists_what_is_installed(admin: TestApp) -> None:
    status, told = refused(admin, workflow="vnf")

    assert status == 400
    assert told.startswith("workflow: ")
    assert "default, fake" in told


@pytest.mark.parametrize("metadata", [{"max_unavailable": 0}, {"no_answer": "maybe"}, {"gate": 5}])
def test_a_wrong_hint_is_named(admin: TestApp, metadata: Any) -> None:
    status, told = refused(admin, metadata=metadata)

    assert status == 400
    assert told.startswith(f"metadata.{next(iter(metadata))}: ")


@pytest.mark.parametrize("type_", ["host", "check"])
def test_an_action_for_hosts_that_are_not_in_the_session_is_refused(admin: TestApp, type_: str) -> None:
    action = {"plugin": "dummy" if type_ == "host" else "check", "type": type_}
    status, told = refused(admin, actions=[{**action, "metadata": {"hosts": ["host1", "hots2"]}}])

    assert (status, told) == (400, "actions.0.metadata.hosts: hots2 is not in the session")
    begin(admin, actions=[{**action, "metadata": {"hosts": ["host1"]}}])


def test_an_action_that_runs_once_may_be_done_anywhere(admin: TestApp) -> None:
    begin(admin, actions=[{"plugin": "dummy", "type": "pre", "metadata": {"hosts": ["elsewhere"]}}])


def test_a_host_that_nobody_can_ask_needs_another_gate(admin: TestApp, session: Session) -> None:
    running(session, "hypervisor1")

    status, told = refused(admin, hosts=["host1", "hypervisor1"])
    assert status == 400
    assert told.startswith("hosts: nobody can ask how hypervisor1 would be")
    assert "gate: none" in told
    begin(admin, hosts=["hypervisor1"], metadata={"gate": "none"})
    begin(admin, hosts=["host1"], actions=[{"plugin": "check", "type": "check"}])


def test_no_host_is_in_two_sessions(admin: TestApp, session: Session) -> None:
    first = begin(admin, hosts=["host1", "host2"])

    assert refused(admin, hosts=["host3", "host2"]) == (409, f"host2 is in session {first}")
    assert refused(admin, hosts=[]) == (409, f"host1 is in session {first}; host2 is in session {first}")
    assert rows(session, MaintenanceSession) == 1
    begin(admin, hosts=["host3"])


def test_a_host_with_which_a_session_is_done_is_free(admin: TestApp, session: Session) -> None:
    begin(admin, hosts=["host1"])
    set_host(session, "host1", held=False, state=HostState.DONE)

    begin(admin, hosts=["host1"])


def test_too_many_sessions_are_refused(admin: TestApp, session: Session) -> None:
    for number in (1, 2, 3):
        begin(admin, hosts=[f"host{number}"])
    add_hosts(session, "host4")

    assert refused(admin, hosts=["host4"]) == (509, "Too many sessions")


@pytest.mark.parametrize("values", [{"state": DONE}, {"state": FAILED}, {"deleted": NOW}])
def test_a_session_that_does_not_go_on_counts_for_nothing(admin: TestApp, session: Session, values: Any) -> None:
    for number in (1, 2, 3):
        begin(admin, hosts=[f"host{number}"])
    change(session, MaintenanceSession, **values)
    add_hosts(session, "host4")

    begin(admin, hosts=["host4"])


def test_a_wrong_request_is_told_so_even_if_there_are_too_many(admin: TestApp) -> None:
    for number in (1, 2, 3):
        begin(admin, hosts=[f"host{number}"])

    assert refused(admin, workflow="vnf")[0] == 400


# Lists


def test_the_list_has_both_keys_and_the_newest_first(admin: TestApp, stopped_clock: Any) -> None:
    assert admin.get(URLS[0]).json == {"session_id": [], "sessions": []}
    sids = []
    for number in (1, 2, 3):
        stopped_clock.advance(seconds=1)
        sids.append(begin(admin, hosts=[f"host{number}"]))

    for url in URLS:
        assert admin.get(url).json == {"session_id": sids[::-1], "sessions": sids[::-1]}


def test_the_list_comes_in_pages(admin: TestApp, stopped_clock: Any) -> None:
    sids = []
    for number in (1, 2, 3):
        stopped_clock.advance(seconds=1)
        sids.insert(0, begin(admin, hosts=[f"host{number}"]))

    answer = admin.get(f"{URLS[0]}?count=2")
    assert answer.json["sessions"] == sids[:2]
    following = answer.headers["Link"].removesuffix('>; rel="next"').removeprefix("<")
    answer = admin.get(following)
    assert answer.json["sessions"] == sids[2:]
    assert "Link" not in answer.headers
    for query in ("count=0", "count=x", "page=0"):
        assert refusal(admin.get(f"{URLS[0]}?{query}", expect_errors=True))[0] == 400


# One session


def test_the_detail_tells_how_far_everything_is(admin: TestApp, session: Session, stopped_clock: Any) -> None:
    sid = begin(admin, actions=ACTIONS)
    jobs = [{"step": "command", "jid": "11111111-2222"}]
    about = {"session_id": sid, "number": 1, "plugin": "command", "type": "host", "attempt": 1}
    session.add_all(
        [
            MaintenanceAction(**about, host="host1", state="running", jobs=jobs, started=NOW, deadline=NOW),
            MaintenanceAction(
                **{**about, "plugin": "dummy", "type": "pre", "number": 0}, host="", state="failed", reason="so it is"
            ),
            MaintenanceStep(session_id=sid, at=NOW, state="START_MAINTENANCE", host="host1", text="out of service"),
            MaintenanceMove(
                session_id=sid,
                instance="vm1",
                host="host2",
                project="alice",
                how="MIGRATE",
                replacement="vm2",
                begun=NOW,
            ),
        ]
    )
    ask(session, sid, "alice", "MAINTENANCE", instances=["vm1"], reply_by=NOW + timedelta(seconds=20))
    until = NOW + timedelta(seconds=7)
    change(session, MaintenanceSession, state="START_MAINTENANCE", waits_for="host1 to be well", waits_until=until)
    set_host(session, "host1", state=HostState.MAINTAINING, cordoned=True, started=NOW)

    found = detail(admin, sid)
    assert (found["waits_for"], found["until"]) == ("host1 to be well", "2026-01-02 03:04:12")
    assert (found["progress"]["maintaining"], found["progress"]["waiting"]) == (1, 1)
    first, second = found["hosts"]
    assert (first["state"], first["out_of_service"], first["started"]) == ("maintaining", True, "2026-01-02 03:04:05")
    assert first["steps"] == [{"at": "2026-01-02 03:04:05", "state": "START_MAINTENANCE", "text": "out of service"}]
    (action,) = first["actions"]
    assert (action["plugin"], action["type"], action["state"], action["deadline"]) == (
        "command",
        "host",
        "running",
        "2026-01-02 03:04:05",
    )
    assert action["jobs"] == [{**jobs[0], "href": "http://localhost/api/remote/jobs/11111111-2222"}]
    assert (second["actions"], second["steps"]) == ([], [])
    assert [(each["plugin"], each["state"], each["reason"]) for each in found["actions"]] == [
        ("dummy", "failed", "so it is")
    ]
    assert [(each["project"], each["state"], each["reply_by"], each["answer"]) for each in found["replies"]] == [
        ("alice", "MAINTENANCE", "2026-01-02 03:04:25", None)
    ]
    (move,) = found["moves"]
    assert (move["instance"], move["replacement"], move["begun"], move["finished"]) == (
        "vm1",
        "vm2",
        "2026-01-02 03:04:05",
        None,
    )


def test_the_last_steps_are_told_in_their_order(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    session.add_all([MaintenanceStep(session_id=sid, at=NOW, state="X", text=str(number)) for number in range(300)])
    session.flush()

    assert [step["text"] for step in detail(admin, sid)["steps"]] == [str(number) for number in range(100, 300)]
    for count in (0, 2, 1000):
        steps = admin.get(f"{URLS[0]}/{sid}?steps={count}").json["steps"]
        assert len(steps) == min(count, 301)
        assert [step["text"] for step in steps][-2:] == ["298", "299"][: min(count, 2)]


@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
@pytest.mark.parametrize("below", ["", "/", "/alice"])
def test_a_session_that_is_not_there_is_404_for_every_method(
    admin: TestApp, session: Session, url: str, method: str, below: str, deleted: bool
) -> None:
    if method == "DELETE" and below == "/alice":
        return
    sid = begin(admin) if deleted else UNKNOWN
    change(session, MaintenanceSession, deleted=NOW)
    data = b'{"state": "ACK_MAINTENANCE"}' if method == "PUT" else b""

    answer = admin.request(f"{url}/{sid}{below}", method=method, body=data, expect_errors=True)
    assert answer.status_int == 404
    assert method == "HEAD" or answer.json == {"error": "Invalid session"}
    assert admin.get(url).json["sessions"] == []


@pytest.mark.parametrize("sid", ["no-uuid", "%00", "a%2Fb", "..", "\u00e4".encode().hex()])
def test_what_is_no_id_is_404(admin: TestApp, sid: str) -> None:
    assert admin.get(f"{URLS[0]}/{sid}", expect_errors=True).status_int == 404


@pytest.mark.parametrize("url", URLS)
def test_a_wrong_method_and_an_unknown_path_answer_in_the_dialect(admin: TestApp, url: str) -> None:
    answer = admin.delete(url, expect_errors=True)
    assert refusal(answer)[0] == 405
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert refusal(admin.get(f"{url}/{UNKNOWN}/alice/more", expect_errors=True))[0] == 404
    assert refusal(admin.get("/v1/nosuch", expect_errors=True))[0] == 404


def test_the_index_lists_the_tree(app: TestApp) -> None:
    assert app.get("/v1").json["trees"] == ["maintenance"]
    assert "maintenance" in app.get("/api").json["trees"]


# Deleting


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_session_that_is_done_goes_at_once_with_all_that_it_had(admin: TestApp, session: Session, slash: str) -> None:
    sid = begin(admin, download=["https://h.example/a"])
    change(session, MaintenanceSession, state=DONE)

    assert admin.delete(f"{URLS[0]}/{sid}{slash}").json == {}
    for model in (MaintenanceSession, MaintenanceHost, MaintenanceDownload, MaintenanceStep):
        assert rows(session, model) == 0
    assert admin.get(f"{URLS[0]}/{sid}", expect_errors=True).status_int == 404
    assert refusal(admin.delete(f"{URLS[0]}/{sid}", expect_errors=True)) == (404, "Invalid session")


def test_a_session_that_has_nothing_in_hand_is_gone_at_once_and_its_hosts_are_free(
    admin: TestApp, session: Session
) -> None:
    sid = begin(admin)
    assert admin.delete(f"{URLS[0]}/{sid}").json == {}
    assert session.get(MaintenanceSession, sid) is None
    assert begin(admin)


def test_a_session_that_goes_on_is_gone_for_everybody_and_left_to_the_engine(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    change(session, MaintenanceSession, due=None)
    change(session, MaintenanceHost, cordoned=True)

    assert admin.delete(f"{URLS[0]}/{sid}").json == {}
    row = session.get_one(MaintenanceSession, sid)
    assert row.deleted is not None and row.due is not None
    assert admin.get(f"{URLS[0]}/{sid}", expect_errors=True).status_int == 404
    assert refused(admin, hosts=["host1"]) == (409, f"host1 is in session {sid}, which is being deleted")


# Changes


def test_a_change_answers_the_url_and_the_id(admin: TestApp) -> None:
    sid = begin(admin)

    for slash in ("", "/"):
        answer = admin.put_json(f"{URLS[0]}/{sid}{slash}", {"metadata": {}, "state": "MAINTENANCE"})
        assert answer.json == {"maintenance": f"http://localhost/v1/maintenance/{sid}{slash}", "session_id": sid}


def test_a_session_that_goes_on_is_not_touched_by_an_empty_change(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    before = detail(admin, sid)

    assert put(admin, sid).status_int == 200
    assert detail(admin, sid) == before
    assert [kind for kind, *_ in events(session)] == ["maintenance.created"]


def test_a_session_that_is_done_is_not_changed(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    change(session, MaintenanceSession, state=DONE)

    assert refusal(put(admin, sid)) == (409, "the session is done")
    assert refusal(put(admin, sid, paused=True)) == (409, "the session is done")


def test_a_session_is_paused_and_goes_on(admin: TestApp, session: Session) -> None:
    sid = begin(admin)

    assert put(admin, sid, paused=True).status_int == 200
    assert detail(admin, sid)["paused"] is True
    assert put(admin, sid, paused=True).status_int == 200
    assert put(admin, sid, paused=False).status_int == 200
    found = detail(admin, sid)
    assert found["paused"] is False
    assert [step["text"] for step in found["steps"]][1:] == ["paused, by doctor", "goes on after a pause, by doctor"]


def test_the_time_is_moved_while_it_is_waited_for(admin: TestApp, session: Session, stopped_clock: Any) -> None:
    sid = begin(admin, maintenance_at="2026-01-03 00:00:00")

    assert put(admin, sid, maintenance_at="2026-01-04 00:00:00").status_int == 200
    assert detail(admin, sid)["maintenance_at"] == "2026-01-04 00:00:00"
    assert put(admin, sid, maintenance_at="2020-01-01 00:00:00").status_int == 200
    assert detail(admin, sid)["maintenance_at"] == "2026-01-02 03:04:05"
    stopped_clock.advance(seconds=1)
    assert refusal(put(admin, sid, maintenance_at="2027-01-01 00:00:00")) == (
        409,
        "maintenance_at: the session has begun",
    )
    # As clients do that send everything again.
    assert put(admin, sid, maintenance_at="2020-01-01 00:00:00").status_int == 200


def test_hosts_are_added_behind_the_others_and_dropped(admin: TestApp, session: Session) -> None:
    add_hosts(session, "host0")
    sid = begin(admin, hosts=["host2", "host1"])

    assert put(admin, sid, add_hosts=["host3", "host0"], drop_hosts=["host2"]).status_int == 200
    assert [host["host"] for host in detail(admin, sid)["hosts"]] == ["host1", "host3", "host0"]
    begin(admin, hosts=["host2"])


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        ({"add_hosts": ["nosuch"]}, 400, "add_hosts: there is no host nosuch"),
        ({"add_hosts": ["hypervisor1"]}, 400, "add_hosts: nobody can ask how hypervisor1 would be"),
        ({"add_hosts": ["host1"]}, 409, "add_hosts: host1 is in the session already"),
        ({"add_hosts": ["host3"]}, 409, "host3 is in session "),
        ({"drop_hosts": ["host3"]}, 400, "drop_hosts: host3 is not in the session"),
        ({"drop_hosts": ["host2"]}, 409, "drop_hosts: host2 is draining; it must be waiting"),
        ({"drop_hosts": ["host1", "host4"]}, 409, "drop_hosts: a session needs a host"),
        ({"skip": "nosuch"}, 400, "skip: nosuch is not in the session"),
        ({"skip": "host2"}, 409, "skip: host2 is maintaining"),
        ({"retry": "host1"}, 409, "retry: the session has not failed"),
        ({"retry": "host1", "paused": True}, 409, "retry: the session has not failed"),
        ({"paused": True, "drop_hosts": ["nosuch"]}, 400, "drop_hosts: nosuch is not in the session"),
        ({"paused": "yes"}, 400, "paused: must be true or false"),
        ({"metdata": {}}, 400, "metdata: there is no such field"),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(
    admin: TestApp, session: Session, data: Any, status: int, told: str
) -> None:
    running(session, "hypervisor1")
    add_hosts(session, "host4")
    sid = begin(admin, hosts=["host1", "host2"] if "host4" not in data.get("drop_hosts", ()) else ["host1", "host4"])
    begin(admin, hosts=["host3"])
    if "must be" in told or "maintaining" in told:
        set_host(session, "host2", state=HostState.DRAINING if "drop_hosts" in data else HostState.MAINTAINING)
    before = detail(admin, sid)

    found = refusal(put(admin, sid, **data))
    assert (found[0], found[1][: len(told)]) == (status, told)
    assert detail(admin, sid) == before


def test_no_host_is_added_when_all_are_done(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    change(session, MaintenanceHost, state=HostState.DONE, held=False)

    assert refusal(put(admin, sid, add_hosts=["host3"])) == (409, "add_hosts: all hosts of the session are done")


def test_a_waiting_host_is_skipped_and_free(admin: TestApp) -> None:
    sid = begin(admin)

    assert put(admin, sid, skip="host1").status_int == 200
    assert [host["state"] for host in detail(admin, sid)["hosts"]] == ["skipped", "waiting"]
    begin(admin, hosts=["host1"])
    assert refusal(put(admin, sid, skip="host1"))[0] == 409


# Continuing


@pytest.mark.parametrize("data", [{}, SESSION, {"retry": "host1"}, {"state": "START_MAINTENANCE"}])
def test_a_failed_session_is_continued_where_it_failed(
    admin: TestApp, session: Session, data: Any, stopped_clock: Any
) -> None:
    sid = begin(admin)
    fail(session, "START_MAINTENANCE", "host1")
    stopped_clock.advance(hours=1)
    assert detail(admin, sid)["failed_in"] == "START_MAINTENANCE"

    assert put(admin, sid, **data).status_int == 200
    found = detail(admin, sid)
    assert (found["state"], found["reason"], found["failed_in"], found["finished"]) == (
        "START_MAINTENANCE",
        None,
        None,
        None,
    )
    assert found["since"] == "2026-01-02 04:04:05"
    assert [(host["state"], host["attempt"], host["reason"]) for host in found["hosts"]] == [
        ("maintaining", 2, None),
        ("waiting", 1, None),
    ]
    assert session.get_one(MaintenanceSession, sid).due is not None


def test_a_failed_host_that_is_in_use_is_emptied_first(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    running(session, "host1")
    fail(session, "START_MAINTENANCE", "host1")

    assert put(admin, sid).status_int == 200
    assert detail(admin, sid)["hosts"][0]["state"] == "draining"


def test_a_failed_host_is_skipped(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    fail(session, "START_MAINTENANCE", "host1")

    assert put(admin, sid, skip="host1").status_int == 200
    found = detail(admin, sid)
    assert found["state"] == "START_MAINTENANCE"
    assert [(host["state"], host["out_of_service"]) for host in found["hosts"]] == [
        ("skipped", False),
        ("waiting", False),
    ]
    begin(admin, hosts=["host1"])


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        ({"retry": "host2"}, 409, "retry: host2 is waiting; it must be failed"),
        ({"retry": "nosuch"}, 400, "retry: nosuch is not in the session"),
        ({"retry": "host1"}, 409, "retry: host3 has failed, too; retry or skip it as well"),
    ],
)
def test_what_cannot_be_tried_again_is_refused(
    admin: TestApp, session: Session, data: Any, status: int, told: str
) -> None:
    sid = begin(admin, hosts=["host1", "host2", "host3"])
    fail(session, "START_MAINTENANCE", "host1", "host3")
    before = detail(admin, sid)

    assert refusal(put(admin, sid, **data)) == (status, told)
    assert detail(admin, sid) == before
    assert put(admin, sid, retry="host1", skip="host3").status_int == 200


def test_a_failed_session_is_not_continued_while_another_has_its_hosts(admin: TestApp, session: Session) -> None:
    first = begin(admin)
    fail(session)
    change(session, MaintenanceHost, held=False)
    second = begin(admin, hosts=["host2"])

    assert refusal(put(admin, first)) == (409, f"host2 is in session {second}")
    assert put(admin, first, drop_hosts=["host2"]).status_int == 200
    assert refused(admin, hosts=["host1"]) == (409, f"host1 is in session {first}")


def test_a_failed_session_is_not_continued_while_too_many_go_on(admin: TestApp, session: Session) -> None:
    failed = begin(admin, hosts=["host1"])
    fail(session)
    add_hosts(session, "host4")
    for number in (2, 3, 4):
        begin(admin, hosts=[f"host{number}"])

    assert refusal(put(admin, failed)) == (509, "Too many sessions")


def test_a_failed_session_is_continued_to_a_pause(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    fail(session, "SCALE_IN")

    assert put(admin, sid, paused=True).status_int == 200
    found = detail(admin, sid)
    assert (found["state"], found["paused"]) == ("SCALE_IN", True)


def test_the_time_of_a_session_that_failed_before_it_can_be_moved(
    admin: TestApp, session: Session, stopped_clock: Any
) -> None:
    sid = begin(admin)
    fail(session, "MAINTENANCE")
    stopped_clock.advance(hours=1)

    assert put(admin, sid, maintenance_at="2026-01-05 00:00:00").status_int == 200
    found = detail(admin, sid)
    assert (found["state"], found["maintenance_at"]) == ("MAINTENANCE", "2026-01-05 00:00:00")


def test_what_failed_to_move_or_to_download_is_tried_again(admin: TestApp, session: Session) -> None:
    sid = begin(admin, download=["https://h.example/a"])
    fail(session, "MAINTENANCE")
    change(session, MaintenanceDownload, state="failed", reason="404", finished=NOW)
    about = {"session_id": sid, "host": "host1", "project": "alice", "how": "MIGRATE", "begun": NOW}
    session.add_all([MaintenanceMove(**about, instance=state, state=state) for state in ("waiting", "failed")])
    session.flush()

    assert put(admin, sid).status_int == 200
    found = detail(admin, sid)
    assert [(each["state"], each["reason"]) for each in found["download"]] == [("waiting", None)]
    assert [move["instance"] for move in found["moves"]] == ["waiting"]


# Projects


@pytest.mark.parametrize("url", URLS)
def test_a_project_sees_what_of_its_own_is_affected(admin: TestApp, session: Session, url: str) -> None:
    sid = begin(admin)
    running(session, "host1", name="vm-a")
    running(session, "host2", name="vm-b")
    running(session, "host3", name="vm-c")
    running(session, "host1", "bob", name="vm-d")
    running(session, "host1", None, name="vm-e")

    assert admin.get(f"{url}/{sid}/alice/").json == {"instance_ids": ["vm-a", "vm-b"]}
    assert admin.get(f"{url}/{sid}/bob").json == {"instance_ids": ["vm-d"]}
    assert admin.get(f"{url}/{sid}/nobody").json == {"instance_ids": []}


@pytest.mark.parametrize("state", ["PREPARE_MAINTENANCE", "PLANNED_MAINTENANCE"])
def test_while_a_host_is_emptied_a_project_sees_what_is_on_it(admin: TestApp, session: Session, state: str) -> None:
    sid = begin(admin)
    running(session, "host1", name="vm-a")
    running(session, "host2", name="vm-b")
    change(session, MaintenanceSession, state=state)
    set_host(session, "host2", state=HostState.DRAINING)

    assert admin.get(f"{URLS[0]}/{sid}/alice").json == {"instance_ids": ["vm-b"]}


def answer(app: TestApp, sid: str, text: str, project: str = "alice", **more: Any) -> Any:
    return app.put_json(f"{URLS[0]}/{sid}/{project}", {"state": text, **more}, expect_errors=True)


def said(session: Session) -> list[tuple[Any, ...]]:
    session.expire_all()
    found = session.scalars(select(MaintenanceReply).order_by(MaintenanceReply.state, MaintenanceReply.round)).all()
    return [(row.state, row.host, row.round, row.answer) for row in found]


@pytest.mark.parametrize("text", ["ACK_MAINTENANCE", "NACK_MAINTENANCE", "WHATEVER", "ACK_NOTHING"])
def test_an_answer_is_given_back_and_kept_with_the_question(admin: TestApp, session: Session, text: str) -> None:
    sid = begin(admin)
    ask(session, sid, "alice", "MAINTENANCE")
    change(session, MaintenanceSession, due=NOW + timedelta(days=1000))
    data = {
        "state": text,
        "session_id": sid,
        "instance_ids": f"http://localhost/v1/maintenance/{sid}/alice",
        "instance_action": "MIGRATE",
        "instance_actions": {},
    }

    assert admin.put_json(f"{URLS[0]}/{sid}/alice", data).json == data
    assert said(session) == [("MAINTENANCE", "", 1, text)]
    # The engine looks at once.
    due = session.get_one(MaintenanceSession, sid).due
    assert due is not None and due <= clock.now()


def test_the_newest_question_without_an_answer_is_answered(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    for number in (1, 2):
        ask(session, sid, "alice", "SCALE_IN", round=number, asked=NOW + timedelta(minutes=number))
    ask(session, sid, "alice", "MAINTENANCE", asked=NOW + timedelta(minutes=3))

    assert answer(admin, sid, "ACK_SCALE_IN").status_int == 200
    assert said(session) == [
        ("MAINTENANCE", "", 1, None),
        ("SCALE_IN", "", 1, None),
        ("SCALE_IN", "", 2, "ACK_SCALE_IN"),
    ]


def test_an_answer_that_comes_again_changes_nothing(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    ask(session, sid, "alice", "PLANNED_MAINTENANCE", host="host1")

    for _ in range(3):
        assert answer(admin, sid, "ACK_PLANNED_MAINTENANCE").status_int == 200
    assert said(session) == [("PLANNED_MAINTENANCE", "host1", 1, "ACK_PLANNED_MAINTENANCE")]
    assert [kind for kind, *_ in events(session)].count("maintenance.replied") == 1


def test_an_answer_that_comes_before_the_question_is_kept_for_it(admin: TestApp, session: Session) -> None:
    sid = begin(admin)

    for text in ("NACK_SCALE_IN", "ACK_SCALE_IN"):
        assert answer(admin, sid, text).status_int == 200
    (row,) = session.scalars(select(MaintenanceReply))
    session.refresh(row)
    assert (row.project, row.state, row.answer, row.asked, row.answered_by) == (
        "alice",
        "SCALE_IN",
        "ACK_SCALE_IN",
        None,
        "doctor",
    )


def test_a_project_may_think_again_while_it_matters(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    ask(session, sid, "alice", "MAINTENANCE")
    ask(session, sid, "alice", "SCALE_IN")
    for text in ("ACK_MAINTENANCE", "ACK_SCALE_IN", "NACK_MAINTENANCE", "NACK_SCALE_IN"):
        assert answer(admin, sid, text).status_int == 200

    assert said(session) == [("MAINTENANCE", "", 1, "NACK_MAINTENANCE"), ("SCALE_IN", "", 1, "ACK_SCALE_IN")]


@pytest.mark.parametrize("text", ["WHATEVER", "ACK_NOTHING", "ACK_"])
def test_who_was_asked_nothing_has_to_say_what_it_is_about(admin: TestApp, session: Session, text: str) -> None:
    status, told = refusal(answer(admin, begin(admin), text))

    assert status == 400
    assert told.startswith("state: must be ACK_ or NACK_ and one of MAINTENANCE, SCALE_IN")
    assert said(session) == []


@pytest.mark.parametrize("text", ["ACK_INSTANCE_ACTION_DONE", "ACK_MAINTENANCE_DONE", "ACK_MAINTENANCE_FAILED"])
def test_an_answer_to_what_was_no_question_is_taken(admin: TestApp, session: Session, text: str) -> None:
    sid = begin(admin)
    ask(session, sid, "alice", "MAINTENANCE")

    assert answer(admin, sid, text).status_int == 200
    assert said(session) == [("MAINTENANCE", "", 1, None)]


def test_an_answer_to_a_session_that_is_done_is_taken(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    change(session, MaintenanceSession, state=DONE, due=None)

    assert answer(admin, sid, "ACK_MAINTENANCE_COMPLETE").status_int == 200
    assert answer(admin, sid, "ACK_SCALE_IN").status_int == 200
    assert said(session) == []


def test_what_becomes_of_instances_is_said_with_the_answer(admin: TestApp, session: Session) -> None:
    sid = begin(admin)
    question = ask(
        session,
        *(sid, "alice", "PLANNED_MAINTENANCE"),
        host="host1",
        instances=["vm1", "vm2"],
        allowed_actions=["MIGRATE", "OWN_ACTION"],
    )
    actions = {"vm1": "OWN_ACTION", "vm2": "MIGRATE"}

    assert answer(admin, sid, "ACK_PLANNED_MAINTENANCE", instance_actions=actions).status_int == 200
    session.refresh(question)
    assert question.instance_actions == actions


@pytest.mark.parametrize(
    ("actions", "told"),
    [
        ({"vm1": "MIGRATE", "vm2": "LIVE_MIGRATE"}, "instance_actions.vm2: LIVE_MIGRATE is not possible; allowed: "),
        ({"vm1": "MIGRATE", "vm3": "MIGRATE"}, "instance_actions.vm3: is not asked for; asked for are: vm1, vm2"),
        ({"vm1": "EVICT"}, "instance_actions.vm1: must be one of MIGRATE"),
    ],
)
def test_what_cannot_be_done_to_an_instance_is_refused(
    admin: TestApp, session: Session, actions: Any, told: str
) -> None:
    sid = begin(admin)
    allowed = ["MIGRATE", "OWN_ACTION"]
    ask(session, sid, "alice", "PLANNED_MAINTENANCE", instances=["vm1", "vm2"], allowed_actions=allowed)

    status, message = refusal(answer(admin, sid, "ACK_PLANNED_MAINTENANCE", instance_actions=actions))
    assert status == 400
    assert message.startswith(told)
    assert said(session) == [("PLANNED_MAINTENANCE", "", 1, None)]


# Subscriptions


@pytest.mark.parametrize("url", URLS)
def test_a_project_says_where_it_wants_to_be_told_and_the_secret_is_never_shown(
    admin: TestApp, session: Session, url: str, stopped_clock: Any
) -> None:
    where = f"{url}/subscriptions/alice"
    for address in ("https://alice.example/1", "https://alice.example/2"):
        assert admin.put_json(where, {"url": address, "secret": SECRET}).json == {}

    answer = admin.get(f"{where}/")
    assert answer.json == {
        "project": "alice",
        "url": "https://alice.example/2",
        "changed": "2026-01-02 03:04:05",
        "changed_by": "doctor",
    }
    assert session.get_one(MaintenanceSubscription, "alice").secret == SECRET
    assert admin.delete(where).json == {}
    for method in (admin.get, admin.delete):
        assert refusal(method(where, expect_errors=True))[0] == 404
    assert SECRET not in json.dumps(events(session))


def test_a_subscription_that_is_wrong_is_refused_and_the_secret_not_repeated(admin: TestApp) -> None:
    answer = admin.put_json(
        f"{URLS[0]}/subscriptions/alice", {"url": "nowhere", "secret": "too short"}, expect_errors=True
    )

    status, told = refusal(answer)
    assert status == 400
    assert "url: " in told and "secret: must be text of 16 to 255 characters" in told
    assert "too short" not in told


# Who may


def of_project(method: str, path: str, data: Any = None) -> Any:
    return pytest.param(method, path, data, True, id=f"{method} {path}")


def of_tree(method: str, path: str, data: Any = None) -> Any:
    return pytest.param(method, path, data, False, id=f"{method} {path}")


REQUESTS = [
    of_tree("GET", ""),
    of_tree("POST", "", {**SESSION, "hosts": ["host3"]}),
    of_tree("POST", "/plan", {**SESSION, "hosts": ["host3"]}),
    of_tree("GET", "/SID"),
    of_tree("PUT", "/SID", {}),
    of_tree("DELETE", "/SID"),
    of_project("GET", "/SID/alice"),
    of_project("PUT", "/SID/alice", {"state": "ACK_MAINTENANCE"}),
    of_project("GET", "/subscriptions/alice"),
    of_project("PUT", "/subscriptions/alice", {"url": "https://alice.example/", "secret": SECRET}),
    of_project("DELETE", "/subscriptions/alice"),
]
WHO: dict[str, Any] = {
    "nobody": None,
    "the project's user": ("alice", {}),
    "another project's user": ("bob", {"rights": ["runs", "vms"]}),
    "somebody with the right": ("carol", {"rights": ["maintenance"]}),
    "an admin": ("dave", {"admin": True}),
}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "path", "data", "projects"), REQUESTS)
def test_who_may_ask_what(
    app: TestApp, session: Session, url: str, who: str, method: str, path: str, data: Any, projects: bool
) -> None:
    add_hosts(session)
    doctor = credential(session, "doctor", rights=["maintenance"])
    sid = app.post_json(URLS[0], SESSION, headers=doctor).json["session_id"]
    subscription = {"url": "https://alice.example/", "secret": SECRET}
    app.put_json(f"{URLS[0]}/subscriptions/alice", subscription, headers=doctor)
    given = WHO[who]
    headers = credential(session, given[0], **given[1]) if given else {}

    answer = app.request(
        f"{url}{path.replace('SID', sid)}",
        method=method,
        body=b"" if data is None else json.dumps(data).encode(),
        headers=headers,
        expect_errors=True,
    )
    expected = {
        "nobody": 401,
        "the project's user": 200 if projects else 403,
        "another project's user": 403,
        "somebody with the right": 200,
        "an admin": 200,
    }[who]
    assert answer.status_int == expected, answer.text
    if expected != 200:
        refusal(answer)
    if expected == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Basic")


def test_a_token_without_the_scope_is_refused(app: TestApp, session: Session) -> None:
    credential(session, "admin", admin=True)
    scoped = {"X-Auth-Token": application_token(session, "admin", ["runs"])}

    assert refusal(app.get(URLS[0], headers=scoped, expect_errors=True))[0] == 403
    assert refusal(app.get(f"{URLS[0]}/{UNKNOWN}/alice", headers=scoped, expect_errors=True))[0] == 403


def application_token(session: Session, user: str, scopes: list[str]) -> str:
    from labctl.tokens import service

    return service.create_token(session, user, scopes=scopes)


# Events


def test_everything_that_is_done_is_an_event(admin: TestApp, session: Session) -> None:
    sid = begin(admin, actions=ACTIONS, download=["https://h.example/a?token=geheim"])
    ask(session, sid, "alice", "MAINTENANCE")
    put(admin, sid, paused=True, skip="host2")
    answer(admin, sid, "ACK_MAINTENANCE")
    admin.put_json(f"{URLS[0]}/subscriptions/alice", {"url": "https://alice.example/", "secret": SECRET})
    admin.delete(f"{URLS[0]}/subscriptions/alice")
    admin.delete(f"{URLS[0]}/{sid}")

    found = [each for each in events(session) if each[0] != "maintenance.returned"]
    subject = f"maintenance/{sid}"
    assert [(kind, about) for kind, about, _ in found] == [
        ("maintenance.created", subject),
        ("maintenance.edited", subject),
        ("maintenance.replied", subject),
        ("maintenance.subscribed", "maintenance/subscriptions/alice"),
        ("maintenance.unsubscribed", "maintenance/subscriptions/alice"),
        ("maintenance.deleted", subject),
    ]
    assert found[0][2]["hosts"] == ["host1", "host2"]
    assert found[0][2]["actions"] == ["pre: dummy", "host: command", "check: check", "post: dummy"]
    assert found[1][2] == {"skip": ["host2"], "paused": True}
    assert found[2][2] == {"project": "alice", "state": "ACK_MAINTENANCE", "host": "", "instance_actions": {}}
    told = json.dumps(found)
    assert "geheim" not in told and "apt-get" not in told and SECRET not in told


# Plans


def everything(session: Session) -> dict[str, Any]:
    session.expire_all()
    names = [name for name in dir(tables) if name.startswith("Maintenance")]
    return {name: rows(session, getattr(tables, name)) for name in names} | {"events": rows(session, Event)}


@pytest.mark.parametrize("url", URLS)
def test_a_plan_changes_nothing(admin: TestApp, session: Session, url: str) -> None:
    running(session, "host1")
    before = everything(session)
    # The first use of a token is noted.
    admin.get(url)
    session.execute(sql("SET TRANSACTION READ ONLY"))

    for hosts in ([], ["host1", "host2"]):
        body = {**SESSION, "hosts": hosts, "actions": ACTIONS, "download": ["https://h.example/a"]}
        assert admin.post_json(f"{url}/plan", body).status_int == 200
    assert everything(session) == before


def test_a_plan_tells_the_order_who_is_affected_and_what_is_left(admin: TestApp, session: Session) -> None:
    vm = running(session, "host1")

    found = admin.post_json(f"{URLS[0]}/plan", {**SESSION, "hosts": ["host1", "host2", "host3"]}).json
    assert [host["host"] for host in found["hosts"]] == ["host2", "host3", "host1"]
    assert found["projects"] == {"alice": {"host1": [vm.name]}}
    assert [(step["hosts"], step["machine_types"]["smithi"]["free"]) for step in found["steps"]] == [
        (["host2"], 2),
        (["host3"], 2),
        (["host1"], 2),
    ]
    assert found["conflicts"] == []


def test_a_plan_names_what_stands_against_it(admin: TestApp, session: Session) -> None:
    sid = begin(admin, hosts=["host2"])

    found = admin.post_json(f"{URLS[0]}/plan", {**SESSION, "hosts": ["host1", "host2", "nosuch"]}).json
    assert [(each["host"], each.get("session_id")) for each in found["conflicts"]] == [("host2", sid), ("nosuch", None)]


def test_a_plan_of_a_request_that_is_wrong_is_refused_like_the_session(admin: TestApp) -> None:
    wrong = {**SESSION, "maintenance_at": "soon", "workflow": "vnf"}

    status, told = refusal(admin.post_json(f"{URLS[0]}/plan", wrong, expect_errors=True))
    assert (status, told) == refused(admin, **{key: wrong[key] for key in ("maintenance_at", "workflow")})


# Clients


def test_a_client_as_there_are_runs_a_session_from_its_beginning_to_its_end(admin: TestApp, session: Session) -> None:
    """What doctor and tacker send, word by word."""
    session_data = {
        "hosts": [],
        "state": "MAINTENANCE",
        "metadata": {"openstack_release": "Pike"},
        "maintenance_at": (clock.now() + timedelta(seconds=30)).strftime("%Y-%m-%d %H:%M:%S"),
        "workflow": "vnf",
    }
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    refused_ = admin.post("/v1/maintenance", json.dumps(session_data), headers=headers, expect_errors=True)
    assert refusal(refused_)[0] == 400
    session_data["workflow"] = "default"
    created = admin.post("/v1/maintenance", json.dumps(session_data), headers=headers)
    assert created.status_int == 200
    sid = created.json["session_id"]
    vm = running(session, "host1")

    ask(session, sid, "alice", "PREPARE_MAINTENANCE", instances=[vm.name], allowed_actions=["MIGRATE"])
    change(session, MaintenanceSession, state="PREPARE_MAINTENANCE")
    set_host(session, "host1", state=HostState.DRAINING)
    instance_ids = admin.get(f"/v1/maintenance/{sid}/alice", headers=headers).json["instance_ids"]
    reply = {
        "session_id": sid,
        "state": "ACK_PREPARE_MAINTENANCE",
        "instance_ids": f"http://localhost/v1/maintenance/{sid}/alice",
        "instance_actions": dict.fromkeys(instance_ids, "MIGRATE"),
        "instance_action": None,
    }
    answered = admin.put(f"/v1/maintenance/{sid}/alice", json.dumps(reply), headers=headers)
    assert (answered.status_int, answered.json) == (200, reply)

    states = []
    for state in ("PREPARE_MAINTENANCE", "MAINTENANCE_COMPLETE", "MAINTENANCE_DONE"):
        change(session, MaintenanceSession, state=state)
        states.append(admin.get(f"/v1/maintenance/{sid}", headers=headers).json["state"])
    assert states[-1] == "MAINTENANCE_DONE"
    assert admin.delete(f"/v1/maintenance/{sid}", headers=headers).json == {}
    assert admin.get("/v1/maintenance", headers=headers).json == {"session_id": [], "sessions": []}


# What it costs

#: Sessions that are over, with ten hosts and a hundred steps each.
MANY = """
INSERT INTO maintenance_sessions (id, workflow, state, entered, maintenance_at, created, created_by, finished)
  SELECT 'old-' || n, 'default', 'MAINTENANCE_DONE', now(), now(), now() - n * interval '1 hour', 'doctor', now()
  FROM generate_series(1, 3000) n;
INSERT INTO maintenance_hosts (session_id, host, position, held, state)
  SELECT 'old-' || n, 'host' || m, m, false, 'done' FROM generate_series(1, 3000) n, generate_series(1, 10) m;
INSERT INTO maintenance_steps (session_id, at, state, text)
  SELECT 'old-' || n, now(), 'MAINTENANCE', 'something' FROM generate_series(1, 300) n, generate_series(1, 100) m;
INSERT INTO maintenance_replies (session_id, project, state, asked)
  SELECT 'old-' || n, 'alice', 'MAINTENANCE', now() FROM generate_series(1, 3000) n;
INSERT INTO maintenance_actions (session_id, number, host, attempt, plugin, type)
  SELECT 'old-' || n, m, 'host' || m, 1, 'dummy', 'host' FROM generate_series(1, 3000) n, generate_series(1, 3) m;
INSERT INTO maintenance_moves (session_id, instance, host, project, how, begun)
  SELECT 'old-' || n, 'vm', 'host1', 'alice', 'MIGRATE', now() FROM generate_series(1, 3000) n;
INSERT INTO maintenance_downloads (session_id, position, url)
  SELECT 'old-' || n, 0, 'https://h.example/' FROM generate_series(1, 3000) n;
ANALYZE maintenance_sessions, maintenance_hosts, maintenance_steps, maintenance_replies, maintenance_actions,
        maintenance_moves, maintenance_downloads;
"""


def test_a_request_costs_the_same_for_many_hosts(
    admin: TestApp, session: Session, statements: Callable[[], Any]
) -> None:
    add_hosts(session, *(f"big{number}" for number in range(200)))
    # The first use of a token is noted.
    admin.get(URLS[0])
    costs = []
    for hosts in (["host1", "host2"], [f"big{number}" for number in range(199)]):
        with statements() as begun:
            sid = begin(admin, hosts=hosts)
        with statements() as read:
            detail(admin, sid)
        with statements() as seen:
            admin.get(f"{URLS[0]}/{sid}/alice")
        fail(session, "START_MAINTENANCE", *hosts[:-1])
        with statements() as continued:
            assert put(admin, sid, skip=hosts[-1]).status_int == 200
        costs.append([len(sent) for sent in (begun, read, seen, continued)])
    assert costs[0] == costs[1]
    # Each finds out who asks. A session that begins: its hosts, the lock, the limit, who has the hosts, and five rows
    # or lists of rows with the event; one that is continued: what is to be begun anew in each of its tables, and the
    # host that is skipped: its cordons, those of machines on it, and whether it is on one that is out of service.
    assert costs[0] == [9, 2, 3, 21]


def test_reading_the_list_and_a_session_does_not_depend_on_how_many_there_are(
    admin: TestApp, session: Session, engine: Engine
) -> None:
    sid = begin(admin)
    session.execute(sql(MANY))
    sent: list[Any] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if "maintenance_" in statement:
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        admin.get(URLS[0])
        admin.get(f"{URLS[0]}/{sid}")
        admin.get(f"{URLS[0]}/{sid}/alice")
        admin.put_json(f"{URLS[0]}/{sid}/alice", {"state": "ACK_MAINTENANCE"})
        refused(admin, hosts=["host1"])
    finally:
        event.remove(engine, "before_cursor_execute", note)
    session.execute(sql("SET LOCAL plan_cache_mode = force_generic_plan"))
    cursor = session.connection().connection.cursor()
    read = 0
    for statement, parameters in sent:
        if not statement.startswith(("SELECT", "UPDATE", "INSERT")) or "count(*)" in statement:
            continue
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        plan = json.dumps(cursor.fetchone()[0][0])
        assert "Seq Scan" not in plan.replace("Function Scan", ""), statement
        read += 1
    assert read >= 5


def test_the_setting_says_how_many_sessions_may_go_on(session: Session, database_url: str) -> None:
    app = TestApp(application.make_app(Settings(database_url=database_url, maintenance_sessions=1)))
    app.extra_environ["HTTP_X_AUTH_TOKEN"] = credential(session, "doctor", admin=True)["X-Auth-Token"]
    add_hosts(session)
    begin(app, hosts=["host1"])

    assert refused(app, hosts=["host2"])[0] == 509

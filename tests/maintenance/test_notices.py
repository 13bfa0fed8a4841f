"""What projects are told and asked, and that they are, whatever their receivers do."""

import hashlib
import hmac
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from labctl.errors import NotFound
from labctl.events.models import Event
from labctl.maintenance import fetching, notices, tasks
from labctl.maintenance.models import MaintenanceNotice, MaintenanceReply, MaintenanceSession, MaintenanceStep
from labctl.maintenance.states import InstanceAction
from labctl.maintenance.workflow import Notify
from labctl.settings import MAINTENANCE_REPLIES, Settings
from tests.acceptance.lab import until

from .factories import make_reply, make_session
from .web import Answer, Web, running

SECRET = "a secret that nobody sees"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, home=str(tmp_path), maintenance_private_urls=True)


@pytest.fixture
def web() -> Iterator[Web]:
    with running() as server:
        server.answers["/told"] = Answer(204)
        yield server


def asking(now: Any, project: str = "ada", state: str = "MAINTENANCE", **changes: Any) -> Notify:
    values = {"instances": ("vm1", "vm2"), "reply_by": now + timedelta(seconds=20), **changes}
    return Notify(project=project, state=state, **values)


def subscribe(session: Session, web: Web, *projects: str, path: str = "/told") -> None:
    for project in projects or ("ada",):
        notices.subscribe(session, project, web.url(path), SECRET)


def deliver(settings: Settings) -> None:
    tasks.deliver.function(settings)


def bodies(web: Web) -> list[Any]:
    return [json.loads(request.body) for request in web.requests]


def rows(session: Session) -> list[MaintenanceNotice]:
    session.expire_all()
    return list(session.scalars(select(MaintenanceNotice).order_by(MaintenanceNotice.id)))


def replies(session: Session) -> list[MaintenanceReply]:
    session.expire_all()
    return list(session.scalars(select(MaintenanceReply).order_by(MaintenanceReply.round, MaintenanceReply.host)))


# What is said


def test_a_project_is_asked_with_the_fields_of_the_protocol(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session, hints={"openstack_release": "Queens"}).id
    subscribe(session, web, "a/b c")
    now = stopped_clock()
    actions = (InstanceAction.MIGRATE, InstanceAction.OWN_ACTION)
    wanted = asking(now, "a/b c", "PLANNED_MAINTENANCE", allowed_actions=actions, actions_at=now, host="alpha")
    notices.notify(session, sid, wanted)
    deliver(settings)
    url = f"http://lab/v1/maintenance/{sid}/a%2Fb%20c"
    assert bodies(web) == [
        {
            "project_id": "a/b c",
            "instance_ids": url,
            "allowed_actions": ["MIGRATE", "OWN_ACTION"],
            "state": "PLANNED_MAINTENANCE",
            "actions_at": "2026-01-02 03:04:05",
            "reply_at": "2026-01-02 03:04:25",
            "session_id": sid,
            "metadata": {"openstack_release": "Queens"},
            "reply_url": url,
        }
    ]
    (reply,) = replies(session)
    assert (reply.host, reply.round, reply.asked, reply.reply_by) == ("alpha", 1, now, wanted.reply_by)
    assert (reply.instances, reply.allowed_actions) == (["vm1", "vm2"], ["MIGRATE", "OWN_ACTION"])
    (step,) = session.scalars(select(MaintenanceStep)).all()
    assert step.host == "alpha"
    assert step.text == (
        "told a/b c of PLANNED_MAINTENANCE about alpha, and asked for an answer by 2026-01-02 03:04:25"
    )


def test_a_project_is_told_of_what_was_done_and_asked_nothing(session: Session, settings: Settings, web: Web) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    notices.tell_done(session, sid, "ada", ["vm1"])
    deliver(settings)
    (body,) = bodies(web)
    assert (body["state"], body["instance_ids"], body["reply_at"]) == ("INSTANCE_ACTION_DONE", ["vm1"], None)
    assert set(body) == {
        *("project_id", "instance_ids", "allowed_actions", "state", "actions_at", "reply_at", "session_id"),
        *("metadata", "reply_url"),
    }
    assert replies(session) == []


def test_who_made_a_session_is_told_of_its_hosts(session: Session, settings: Settings, web: Web) -> None:
    sid = make_session(session, created_by="root").id
    subscribe(session, web, "root")
    for state in ("IN_MAINTENANCE", "MAINTENANCE_COMPLETE"):
        notices.host_state(session, sid, "alpha", state)
    deliver(settings)
    assert bodies(web) == [
        {"project_id": "root", "host": "alpha", "state": state, "session_id": sid}
        for state in ("IN_MAINTENANCE", "MAINTENANCE_COMPLETE")
    ]


def test_to_ask_the_same_twice_is_to_ask_it_once(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    for _ in range(2):
        notices.notify(session, sid, asking(stopped_clock()))
        stopped_clock.advance(seconds=1)
    notices.notify(session, sid, asking(stopped_clock(), round=2))
    notices.notify(session, sid, asking(stopped_clock(), host="alpha"))
    deliver(settings)
    assert len(web.requests) == 3
    assert [(reply.host, reply.round) for reply in replies(session)] == [("", 1), ("alpha", 1), ("", 2)]


@pytest.mark.parametrize("key", [{"round": 0}, {"round": 1}, {"host": "alpha", "round": 2}])
def test_an_answer_that_came_before_the_question_counts(
    session: Session, stopped_clock: Any, web: Web, settings: Settings, key: dict[str, Any]
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    make_reply(session, sid, "ada", "SCALE_IN", asked=None, reply_by=None, answer="ACK_SCALE_IN", **key)
    make_reply(session, sid, "bob", "SCALE_IN", asked=None, reply_by=None, answer="NACK_SCALE_IN", round=0)
    wanted = asking(stopped_clock(), state="SCALE_IN", host="alpha", round=2)
    for _ in range(2):
        notices.notify(session, sid, wanted)
    (reply,) = (each for each in replies(session) if each.project == "ada")
    assert (reply.host, reply.round, reply.answer) == ("alpha", 2, "ACK_SCALE_IN")
    assert (reply.asked, reply.reply_by) == (stopped_clock(), wanted.reply_by)
    deliver(settings)
    assert len(web.requests) == 1


# To whom it is said


def test_who_has_no_subscription_is_told_nothing(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    notices.notify(session, sid, asking(stopped_clock()))
    assert session.execute(text("SELECT count(*) FROM procrastinate_jobs")).scalar_one() == 0
    deliver(settings)
    assert web.requests == []
    assert len(replies(session)) == 1
    assert [(row.due, row.delivered) for row in rows(session)] == [(None, None)]


def test_who_subscribes_late_is_told_what_still_matters(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    notices.notify(session, sid, asking(stopped_clock(), state="MAINTENANCE"))
    stopped_clock.advance(minutes=5)
    notices.notify(session, sid, asking(stopped_clock(), state="SCALE_IN"))
    subscribe(session, web)
    deliver(settings)
    assert [body["state"] for body in bodies(web)] == ["SCALE_IN"]


def test_who_has_unsubscribed_is_told_nothing_any_more(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    notices.notify(session, sid, asking(stopped_clock()))
    notices.unsubscribe(session, "ada")
    deliver(settings)
    assert web.requests == []
    with pytest.raises(NotFound):
        notices.unsubscribe(session, "ada")
    with pytest.raises(NotFound):
        notices.subscription(session, "ada")


def test_a_subscription_shows_everything_but_its_secret(session: Session, web: Web, stopped_clock: Any) -> None:
    subscribe(session, web)
    subscribe(session, web, path="/new")
    assert notices.subscription(session, "ada") == {
        "project": "ada",
        "url": web.url("/new"),
        "changed": stopped_clock(),
        "changed_by": "labctl",
    }


def test_a_new_url_is_tried_at_once(session: Session, settings: Settings, web: Web, stopped_clock: Any) -> None:
    sid = make_session(session).id
    subscribe(session, web, path="/wrong")
    notices.notify(session, sid, asking(stopped_clock()))
    deliver(settings)
    subscribe(session, web)
    deliver(settings)
    assert [request.path for request in web.requests] == ["/wrong", "/told"]


# That it is said


def test_the_task_comes_round_by_itself_and_is_woken_once_by_a_transaction(
    session: Session, web: Web, stopped_clock: Any
) -> None:
    assert tasks.deliver.cron == "* * * * * */2"
    subscribe(session, web, "ada", "bob")
    sid = make_session(session).id
    for project in ("ada", "bob"):
        notices.notify(session, sid, asking(stopped_clock(), project))
    waiting = session.execute(text("SELECT task_name FROM procrastinate_jobs")).scalars().all()
    assert waiting == ["maintenance.deliver"]


def test_a_notice_is_signed_with_the_secret_of_the_subscription(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session, hints={"note": "für später"}).id
    subscribe(session, web)
    notices.notify(session, sid, asking(stopped_clock()))
    deliver(settings)
    (request,) = web.requests
    signed = request.headers["x-labctl-timestamp"].encode() + b"." + request.body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert request.headers["x-labctl-signature"] == f"sha256={expected}"
    assert json.loads(request.body)["metadata"] == {"note": "für später"}
    (row,) = rows(session)
    assert (row.delivered, row.due, row.attempts, row.error) == (stopped_clock(), None, 1, None)
    deliver(settings)
    assert len(web.requests) == 1


def test_a_notice_is_sent_until_it_is_taken_more_and_more_seldom(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    web.answers["/told"] = Answer(500)
    sid = make_session(session).id
    subscribe(session, web)
    notices.notify(session, sid, asking(stopped_clock()))
    began, tried = stopped_clock(), []
    for second in range(40):
        if second == 20:
            web.answers["/told"] = Answer(200)
        deliver(settings)
        if len(web.requests) > len(tried):
            tried.append((stopped_clock() - began).total_seconds())
        stopped_clock.advance(seconds=1)
    assert tried == [0, 1, 3, 7, 15, 31]
    # The same each time, but for the time.
    assert len({(request.body, request.headers["x-labctl-delivery"]) for request in web.requests}) == 1
    assert [row.attempts for row in rows(session)] == [6]


@pytest.mark.parametrize(("reply_in", "minutes"), [(20, 5), (1200, 20)])
def test_a_notice_is_given_up_after_the_time_to_reply_and_not_before_five_minutes(
    session: Session, settings: Settings, web: Web, stopped_clock: Any, reply_in: int, minutes: int
) -> None:
    web.answers["/told"] = Answer(500)
    sid = make_session(session).id
    subscribe(session, web)
    began = stopped_clock()
    notices.notify(session, sid, asking(began, reply_by=began + timedelta(seconds=reply_in)))
    while rows(session)[0].due is not None:
        deliver(settings)
        stopped_clock.advance(seconds=10)
    assert timedelta(minutes=minutes - 1.5) < stopped_clock() - began < timedelta(minutes=minutes + 0.5)
    (row,) = rows(session)
    assert (row.delivered, row.error) == (None, "the server answered 500")
    assert session.scalars(select(Event.kind).where(Event.kind == "maintenance.not_told")).all()


def test_private_addresses_are_told_nothing_unless_the_setting_says_so(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    notices.notify(session, sid, asking(stopped_clock()))
    deliver(replace(settings, maintenance_private_urls=False))
    assert web.requests == []
    assert "not a public address" in str(rows(session)[0].error)


def test_the_secret_is_in_no_event_no_log_and_no_error(
    session: Session, settings: Settings, web: Web, stopped_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sid = make_session(session).id
    subscribe(session, web, "ada")
    subscribe(session, web, "bob", path="/wrong")
    for project in ("ada", "bob"):
        notices.notify(session, sid, asking(stopped_clock(), project))
    (held, *_) = notices.claim(session, "me", 1, 0)
    assert SECRET not in repr(held)
    deliver(settings)
    told = session.execute(text("SELECT kind, subject, data::text FROM events")).all()
    assert {row.kind for row in told} >= {"maintenance.subscribed", "maintenance.asked", "maintenance.told"}
    errors = [row.error for row in rows(session)]
    assert SECRET not in str(told) + str(errors) + str([record.__dict__ for record in caplog.records])
    assert SECRET not in str(web.requests)


def test_a_slow_receiver_holds_up_nobody_else(
    session: Session, settings: Settings, web: Web, stopped_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TELLING", 60.0)
    sid = make_session(session).id
    projects = [f"project{number}" for number in range(100)]
    subscribe(session, web, *projects)
    with running() as mute:
        mute.mute = True
        subscribe(session, mute, "slow")
        for state in ("MAINTENANCE", "SCALE_IN"):
            for project in ("slow", *projects):
                notices.notify(session, sid, asking(stopped_clock(), project, state))

        def hang_up() -> None:
            until(lambda: len(web.requests) == 200, "all others were told")
            mute.closing.set()

        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(hang_up)
            deliver(settings)
            waiting.result()
    told = [row.project for row in rows(session) if row.delivered]
    assert len(told) == 200 and "slow" not in told


def test_what_a_project_is_told_comes_in_order(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    for number in range(1, 11):
        notices.notify(session, sid, asking(stopped_clock(), round=number, state=f"S{number}"))
    deliver(settings)
    assert [body["state"] for body in bodies(web)] == [f"S{number}" for number in range(1, 11)]


def test_a_worker_that_was_given_up_for_dead_changes_nothing(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    notices.notify(session, sid, asking(stopped_clock()))
    (old,) = notices.claim(session, "dead", 5, 30)
    deliver(settings)
    assert web.requests == []
    stopped_clock.advance(seconds=31)
    deliver(settings)
    notices.not_delivered(session, old, "late")
    notices.let_go(session, old)
    (row,) = rows(session)
    assert (row.error, row.due, row.attempts) == (None, None, 1)


def test_a_notice_whose_worker_was_killed_comes_while_there_is_time_to_answer(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make_session(session).id
    subscribe(session, web)
    least = min(MAINTENANCE_REPLIES.values())
    notices.notify(session, sid, asking(stopped_clock(), reply_by=stopped_clock() + timedelta(seconds=least)))
    assert len(notices.claim(session, "killed", 5, tasks.TELLING)) == 1
    # It may still be on its way.
    stopped_clock.advance(seconds=fetching.TELLING + 1)
    deliver(settings)
    assert web.requests == []
    stopped_clock.advance(seconds=least / 2 - fetching.TELLING - 1)
    deliver(settings)
    assert [body["state"] for body in bodies(web)] == ["MAINTENANCE"]


def test_notices_of_a_session_that_is_gone_are_gone(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    row = make_session(session)
    subscribe(session, web)
    notices.notify(session, row.id, asking(stopped_clock()))
    (held,) = notices.claim(session, "me", 5, 30)
    session.delete(session.get_one(MaintenanceSession, row.id))
    session.flush()
    notices.delivered(session, held)
    assert rows(session) == []
    assert session.scalars(select(Event.kind).where(Event.kind == "maintenance.told")).all() == []

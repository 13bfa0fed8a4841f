"""``/api/events``: the log page by page, and waiting for what comes."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine
from webtest import TestApp

from labctl import db
from labctl.app import make_app
from labctl.events.service import record
from labctl.settings import Settings


@pytest.fixture
def make(committed: Engine, settings: Settings) -> Callable[..., TestApp]:
    """The application, whose log everybody may read."""
    open_ = {**settings.anonymous, "events": "read"}
    return lambda **changes: TestApp(make_app(replace(settings, anonymous=open_, **changes)))


@pytest.fixture
def app(make: Callable[..., TestApp]) -> TestApp:
    return make()


def happen(kind: str = "kind", subject: str = "subject") -> None:
    with db.transaction() as session:
        record(session, kind, subject, x=1)


def test_an_event_is_shown_whole_with_its_time_in_utc(app: TestApp, stopped_clock: Any) -> None:
    app.post_json("/runs/", {"name": "a b"}, headers={"X-Request-ID": "me"})
    answer = app.get("/api/events").json
    (event,) = answer["events"]
    assert event == {
        "seq": event["seq"],
        "at": "2026-01-02T03:04:05Z",
        "kind": "run.added",
        "subject": "runs/a b",
        "actor": "anonymous",
        "request_id": "me",
        "data": {},
    }
    assert answer["next"] == event["seq"]


def test_the_log_is_read_in_pages_by_next_or_by_the_link(app: TestApp) -> None:
    for number in range(7):
        happen(subject=str(number))
    by_next, after = [], 0
    while events := (answer := app.get("/api/events/", {"after": after, "limit": 3}).json)["events"]:
        by_next += [event["subject"] for event in events]
        after = answer["next"]
    assert by_next == list("0123456")
    # At the end, next stays where it is.
    assert answer["next"] == after

    url: str | None = "/api/events?limit=3&kind=kind"
    by_link = []
    while url:
        page = app.get(url)
        by_link += [event["subject"] for event in page.json["events"]]
        link = page.headers.get("Link")
        url = link.removeprefix("<http://localhost").removesuffix('>; rel="next"') if link else None
    assert by_link == list("0123456")


def test_events_of_one_kind_or_subject_are_chosen(app: TestApp) -> None:
    for kind, subject in (("a", "runs/x"), ("b", "runs/x"), ("a", "runs/ä y")):
        happen(kind, subject)
    assert [event["subject"] for event in app.get("/api/events?kind=a").json["events"]] == ["runs/x", "runs/ä y"]
    assert [event["kind"] for event in app.get("/api/events", {"subject": "runs/x"}).json["events"]] == ["a", "b"]
    assert [event["kind"] for event in app.get("/api/events", {"subject": "runs/ä y"}).json["events"]] == ["a"]
    assert app.get("/api/events?kind=nosuch").json == {"events": [], "next": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("after", value) for value in ("-1", "x", "", "1.5", str(2**63), "9" * 5000, "\0")),
        *(("limit", value) for value in ("0", "-1", "x", "", "1001", "\0")),
        *(("wait", value) for value in ("-1", "x", "", "nan", "inf", "-inf", "1e999", "\0")),
        *(("kind", "\0"), ("subject", "a\0b")),
    ],
)
def test_a_bad_parameter_is_refused_by_name(app: TestApp, name: str, value: str) -> None:
    assert app.get("/api/events", {name: value}, status=400).json["message"].startswith(f"{name}: ")


def test_a_wait_for_what_does_not_come_ends_with_an_empty_list(app: TestApp) -> None:
    happen()
    after = app.get("/api/events").json["next"]
    began = time.monotonic()
    assert app.get("/api/events", {"after": after, "wait": "0.3"}).json == {"events": [], "next": after}
    assert 0.3 <= time.monotonic() - began < 5


def test_a_wait_is_no_longer_than_the_setting(make: Callable[..., TestApp]) -> None:
    began = time.monotonic()
    assert make(max_wait=0.1).get("/api/events?wait=3600").json["events"] == []
    assert time.monotonic() - began < 5


def test_what_is_there_already_is_not_waited_for(app: TestApp) -> None:
    happen()
    began = time.monotonic()
    assert len(app.get("/api/events?wait=30").json["events"]) == 1
    assert time.monotonic() - began < 5


def test_a_waiting_reader_hears_of_an_event_and_those_beyond_the_limit_are_told_to_come_back(
    make: Callable[..., TestApp], at_once: Callable[..., list[Any]]
) -> None:
    app = make(max_waiters=1)
    refusals = []
    heard = threading.Event()

    def wait() -> Any:
        try:
            # The other one may be first in the place.
            while (answer := app.get("/api/events?kind=news&wait=30", status="*")).status_int == 503:
                pass
            return answer.json["events"]
        finally:
            heard.set()

    def report() -> None:
        deadline = time.monotonic() + 20
        # Once somebody else is told to come back, the first reader waits.
        while not refusals and time.monotonic() < deadline:
            answer = TestApp(app.app).get("/api/events?kind=other&wait=0.01", status="*")
            if answer.status_int == 503:
                refusals.append(answer)
        # Reading without waiting is possible meanwhile; an event of another kind is not what was waited for.
        assert TestApp(app.app).get("/api/events").status_int == 200
        happen("other")
        assert not heard.is_set()
        happen("news", "it")

    began = time.monotonic()
    events, _ = at_once([wait, report])
    assert time.monotonic() - began < 25
    assert [(event["kind"], event["subject"]) for event in events] == [("news", "it")]
    (refusal,) = refusals
    assert "Retry-After" in refusal.headers
    assert list(refusal.json) == ["message"]
    # The place is free again.
    assert app.get("/api/events?kind=nosuch&wait=0.01").status_int == 200


def test_nobody_waits_where_the_setting_allows_none(make: Callable[..., TestApp]) -> None:
    app = make(max_waiters=0)
    assert app.get("/api/events").json["events"] == []
    app.get("/api/events?wait=1", status=503)
    happen()
    assert len(app.get("/api/events?wait=1").json["events"]) == 1

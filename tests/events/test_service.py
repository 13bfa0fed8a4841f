"""Recording what happened, following it, and forgetting it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from labctl import db
from labctl.db import Actor
from labctl.events import queries, service, tasks
from labctl.events.models import Event
from labctl.settings import Settings


@pytest.fixture
def log(committed: Engine) -> None:
    """Events can be followed once they are committed."""


def happen(kind: str = "kind", subject: str = "subject", actor: Actor = db.LABCTL, **data: Any) -> None:
    with db.transaction(actor) as session:
        service.record(session, kind, subject, **data)


def read(after: int = 0, **wanted: Any) -> list[Event]:
    with db.reading() as session:
        return list(queries.after(session, after, **wanted))


@pytest.mark.usefixtures("log")
def test_an_event_says_what_happened_to_what_when_by_whom_and_in_which_request(stopped_clock: Any) -> None:
    happen("run.added", "runs/a", Actor("ada", "request-1"), owner="ä", count=[1, None])
    happen("run.removed", "runs/a")
    first, second = read()
    assert (first.kind, first.subject, first.actor, first.request_id) == ("run.added", "runs/a", "ada", "request-1")
    assert (first.at, first.data) == (stopped_clock(), {"owner": "ä", "count": [1, None]})
    assert (second.actor, second.request_id, second.data) == ("labctl", None, {})


@pytest.mark.usefixtures("log")
def test_events_come_in_the_order_in_which_they_were_recorded_one_by_one_or_many_at_once() -> None:
    with db.transaction() as session:
        service.record(session, "k", "0")
        service.record_all(session, [("k", str(number), {"n": number}) for number in range(1, 5)])
        service.record(session, "k", "5")
    happen("k", "6")
    events = read()
    assert [event.subject for event in events] == list("0123456")
    assert events[3].data == {"n": 3}
    numbers = [event.seq for event in events]
    assert numbers == sorted(set(numbers))
    # Exact for clients whose numbers are floats.
    assert numbers[-1] < 2**53


@pytest.mark.usefixtures("log")
def test_events_of_many_transactions_on_one_connection_never_share_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter begins again between two transactions, sooner than it would.
    monkeypatch.setattr(service, "PER_TRANSACTION", 64)
    for turn in range(10):
        with db.transaction() as session:
            for number in range(10):
                service.record(session, "k", f"{turn} {number}")
            service.record_all(session, [("k", f"{turn} {number}", {}) for number in range(10, 20)])
    with db.reading() as session:
        subjects = session.scalars(select(Event.subject).order_by(Event.seq)).all()
    assert subjects == [f"{turn} {number}" for turn in range(10) for number in range(20)]


@pytest.mark.usefixtures("log")
def test_events_of_one_kind_or_one_subject_can_be_chosen() -> None:
    for kind, subject in (("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")):
        happen(kind, subject)
    assert [(event.kind, event.subject) for event in read(kind="a")] == [("a", "x"), ("a", "y")]
    assert [(event.kind, event.subject) for event in read(subject="x")] == [("a", "x"), ("b", "x")]
    assert [(event.kind, event.subject) for event in read(subject="x", kind="b")] == [("b", "x")]
    assert read(kind="nosuch") == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 6), max_size=6), limit=st.integers(1, 5))
@pytest.mark.usefixtures("log")
def test_a_reader_who_goes_on_from_the_last_number_sees_every_event_once(sizes: list[int], limit: int) -> None:
    start = read(limit=10_000)
    after = start[-1].seq if start else 0
    subjects = [f"{turn}/{number}" for turn, size in enumerate(sizes) for number in range(size)]
    for turn, size in enumerate(sizes):
        with db.transaction() as session:
            for number in range(size):
                service.record(session, "k", f"{turn}/{number}")
    seen: list[str] = []
    while events := read(after, limit=limit):
        assert len(events) <= limit
        seen += [event.subject for event in events]
        after = events[-1].seq
    assert seen == subjects


@pytest.mark.usefixtures("log")
def test_events_are_forgotten_after_their_time_and_not_before(
    settings: Settings, stopped_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BATCH", 4)
    for number in range(10):
        happen("old", str(number))
    stopped_clock.advance(days=1)
    for number in range(3):
        happen("new", str(number))
    week = replace(settings, events_keep_days=7)
    stopped_clock.advance(days=6)
    tasks.purge.function(week)
    assert len(read()) == 13
    stopped_clock.time += timedelta(microseconds=1)
    tasks.purge.function(week)
    assert [(event.kind, event.subject) for event in read()] == [("new", "0"), ("new", "1"), ("new", "2")]
    stopped_clock.advance(days=8)
    tasks.purge.function(week)
    assert read() == []
    tasks.purge.function(week)

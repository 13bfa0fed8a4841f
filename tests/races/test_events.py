"""A reader follows the log of events while many transactions of different lengths write to it."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text
from webtest import TestApp

from labctl import db
from labctl.app import make_app
from labctl.events.service import record, record_all
from labctl.settings import Settings

THREADS = 16

AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]


@pytest.fixture
def log(committed: Engine, settings: Settings) -> TestApp:
    """The application, whose log everybody may read."""
    return TestApp(make_app(replace(settings, anonymous={**settings.anonymous, "events": "read"})))


def test_an_event_of_a_transaction_that_commits_late_is_not_missed_by_a_reader_who_goes_on(log: TestApp) -> None:
    with db.transaction() as slow:
        record(slow, "slow", "a")
        with db.transaction() as quick:
            record(quick, "quick", "b")
        # The quick one has the higher number: who saw it now would go on behind the slow one.
        first = log.get("/api/events").json
        record(slow, "slow", "c")
    second = log.get("/api/events", {"after": first["next"]}).json
    seen = [(event["kind"], event["subject"]) for event in (*first["events"], *second["events"])]
    assert sorted(seen) == [("quick", "b"), ("slow", "a"), ("slow", "c")]
    numbers = [event["seq"] for event in (*first["events"], *second["events"])]
    assert numbers == sorted(set(numbers))


def test_an_event_of_a_transaction_that_is_undone_is_never_seen(log: TestApp) -> None:
    def fail() -> None:
        with db.transaction() as session:
            record(session, "undone", "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with db.transaction() as session:
        record(session, "done", "a")
    assert [event["kind"] for event in log.get("/api/events").json["events"]] == ["done"]


def test_a_reader_who_follows_sixteen_writers_misses_no_event_and_sees_none_twice(
    log: TestApp, at_once: AtOnce
) -> None:
    ended = threading.Semaphore(0)

    def write(writer: int) -> list[str]:
        chance = random.Random(writer)
        written = []
        try:
            for turn in range(25):
                subjects = [f"{writer}/{turn}/{number}" for number in range(chance.randint(1, 6))]
                with db.transaction() as session:
                    for number, subject in enumerate(subjects):
                        if number % 3 == 2:
                            record_all(session, [("test", f"{subject}/{half}", {}) for half in "ab"])
                            written += [f"{subject}/{half}" for half in "ab"]
                        else:
                            record(session, "test", subject)
                            written.append(subject)
                        for _ in range(chance.choice((0, 0, 1, 20))):
                            session.execute(text("SELECT 1"))
            return written
        finally:
            ended.release()

    def follow() -> list[tuple[int, str]]:
        app, seen, after, left = TestApp(log.app), [], 0, THREADS
        while True:
            left -= ended.acquire(blocking=False)
            answer = app.get("/api/events", {"after": after, "limit": 7}).json
            seen += [(event["seq"], event["subject"]) for event in answer["events"]]
            after = answer["next"]
            if not left and not answer["events"]:
                return seen

    *written, seen = at_once([*(lambda writer=writer: write(writer) for writer in range(THREADS)), follow])
    assert [number for number, _ in seen] == sorted({number for number, _ in seen})
    subjects = [subject for _, subject in seen]
    assert len(subjects) == len(set(subjects))
    assert set(subjects) == {subject for share in written for subject in share}
    for writer in range(THREADS):
        # What one writer did in order is read in order.
        assert [subject for subject in subjects if subject.startswith(f"{writer}/")] == written[writer]

"""Calls in threads: their outcomes, their deadlines, and those that hang."""

import threading
import time
from collections.abc import Iterator

import pytest

from labctl.vms import calls
from labctl.vms.calls import Calls, Ended, Hung

PATIENCE = 10


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets go of the calls that hang."""
    event = threading.Event()
    yield event
    event.set()


def wait_for(some: Calls, number: int = 1) -> list[Ended]:
    ended: list[Ended] = []
    deadline = time.monotonic() + PATIENCE
    while len(ended) < number and time.monotonic() < deadline:
        ended += some.ended(0.5)
    return ended


def test_a_call_ends_with_its_result_or_its_error() -> None:
    some = Calls()
    some.start("fake", "lane", lambda: 42, PATIENCE, "good")
    some.start("fake", "lane", lambda: 1 / 0, PATIENCE, "bad")
    assert some.number("lane") == 2 and set(some.subjects) == {"good", "bad"}
    found = {ended.subject: ended for ended in wait_for(some, 2)}

    assert found["good"].result == 42 and found["good"].error is None
    assert isinstance(found["bad"].error, ZeroDivisionError)
    assert some.number("lane") == 0 and len(some) == 0


def test_a_call_that_hangs_is_given_up_and_its_place_is_free_and_what_it_says_later_is_not_heard(
    release: threading.Event,
) -> None:
    some = Calls()
    some.start("fake", "lane", release.wait, 0.01, "hangs")
    (ended,) = wait_for(some)
    assert isinstance(ended.error, Hung) and str(ended.error) == "no answer within 0.01 s"
    assert some.number("lane") == 0
    release.set()
    some.start("fake", "lane", lambda: 1, PATIENCE, "next")

    assert [one.subject for one in wait_for(some)] == ["next"]


def test_a_provider_with_many_calls_that_hang_is_stuck_until_one_comes_back(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MOST_LOST", 2)
    some = Calls()
    for number in range(2):
        assert not some.is_stuck("fake")
        some.start("fake", "lane", release.wait, 0.01, number)
        wait_for(some)
    assert some.is_stuck("fake") and not some.is_stuck("other")
    release.set()
    deadline = time.monotonic() + PATIENCE
    while some.is_stuck("fake") and time.monotonic() < deadline:
        list(some.ended(0.05))

    assert not some.is_stuck("fake")


def test_whoever_waits_can_be_woken() -> None:
    some = Calls()
    some.wake()
    began = time.monotonic()
    assert list(some.ended(PATIENCE)) == []
    assert time.monotonic() - began < PATIENCE / 2

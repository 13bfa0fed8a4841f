"""Requests that wait for news: when they look, how long they wait, and how many may."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from labctl.errors import Invalid, Unavailable
from labctl.http import waiting
from labctl.http.resource import Request
from labctl.http.waiting import Glance, Waiting
from labctl.settings import Settings

AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]


def request(seconds: Any = None) -> Request:
    return Request.blank("/" if seconds is None else f"/?wait={seconds}")


def waits(**settings: Any) -> Waiting:
    return Waiting(Settings(**{"max_waiters": 4, **settings}))


class Looks:
    """Finds nothing until it has been asked a number of times, or until something is there."""

    def __init__(self, needed: float = float("inf")) -> None:
        self.needed = needed
        self.there = threading.Event()
        self.begun = threading.Event()
        self.lock = threading.Lock()
        self.count = 0

    def __call__(self) -> list[str]:
        with self.lock:
            self.count += 1
            found = ["it"] if self.there.is_set() or self.count >= self.needed else []
        self.begun.set()
        return found


# How long


@pytest.mark.parametrize("seconds", [None, "0", "0.0", "-0"])
def test_without_a_wait_there_is_one_look_and_no_glance(seconds: Any) -> None:
    looks, glances = Looks(), Looks()
    assert waits().until(looks, request(seconds), Glance(glances)) == []
    assert (looks.count, glances.count) == (1, 0)


def test_what_is_found_at_the_first_look_is_answered_at_once() -> None:
    looks, began = Looks(1), time.monotonic()
    assert waits().until(looks, request(30)) == ["it"]
    assert looks.count == 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("glance", [None, lambda: 1])
def test_what_does_not_come_is_waited_for_until_the_deadline_and_looked_for_there(glance: Any) -> None:
    looks, began = Looks(), time.monotonic()
    assert waits().until(looks, request("0.5"), Glance(glance) if glance else None) == []
    assert 0.5 <= time.monotonic() - began < 5
    # Without a glance, every look is a real one; with one that shows nothing new, the first and the last.
    assert looks.count == 2 if glance else looks.count >= 3


def test_a_wait_shorter_than_the_time_between_two_looks_ends_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "INTERVAL", 60.0)
    looks, began = Looks(), time.monotonic()
    assert waits().until(looks, request("0.01"), Glance(lambda: 1)) == []
    assert 0.01 <= time.monotonic() - began < 10
    assert looks.count == 2


def test_a_wait_is_cut_to_the_longest_that_is_allowed() -> None:
    began = time.monotonic()
    assert waits(max_wait=0.05).until(Looks(), request("9" * 300)) == []
    assert 0.05 <= time.monotonic() - began < 5


@pytest.mark.parametrize(
    "bad", ["-1", "-0.001", "x", "", "1s", "nan", "inf", "-inf", "Infinity", "1e999", "%00", "%ff"]
)
def test_a_wait_that_is_no_time_is_refused_before_anybody_looks(bad: str) -> None:
    looks = Looks()
    with pytest.raises(Invalid) as error:
        waits().until(looks, request(bad))
    assert error.value.field == "wait"
    assert looks.count == 0


# How many


def test_more_than_may_wait_are_told_to_come_back_after_one_look_and_the_places_become_free_again(
    at_once: AtOnce,
) -> None:
    places, looks = waits(max_waiters=2), Looks()

    def are_taken() -> bool:
        try:
            places.until(Looks(), request("0.01"))
        except Unavailable:
            return True
        return False

    def refuse() -> None:
        deadline = time.monotonic() + 20
        while not are_taken():
            assert time.monotonic() < deadline
        one = Looks()
        with pytest.raises(Unavailable) as refused:
            places.until(one, request(30))
        assert refused.value.retry_after > 0
        assert one.count == 1
        # Who need not wait needs no place.
        assert places.until(Looks(1), request(30)) == ["it"]
        assert places.until(Looks(), request(0)) == []
        looks.there.set()

    def wait() -> Any:
        # Whoever tries whether the places are taken is in one for a moment.
        while True:
            try:
                return places.until(looks, request(30))
            except Unavailable:
                continue

    *found, _ = at_once([wait, wait, refuse])
    assert found == [["it"], ["it"]]
    assert at_once([lambda: places.until(Looks(), request("0.3"))] * 2) == [[], []]


def test_a_place_is_free_again_when_a_look_has_failed() -> None:
    places = waits(max_waiters=1)

    def fail() -> list[str]:
        if looks():
            raise ZeroDivisionError
        return []

    for _ in range(3):
        looks = Looks(2)
        with pytest.raises(ZeroDivisionError):
            places.until(fail, request(30))
    with pytest.raises(ZeroDivisionError):
        places.until(Looks(), request(30), Glance(lambda: 1 // 0))
    assert places.until(Looks(2), request(30)) == ["it"]


def test_nobody_waits_where_no_places_are() -> None:
    places = waits(max_waiters=0)
    assert places.until(Looks(), request()) == []
    assert places.until(Looks(1), request(30)) == ["it"]
    with pytest.raises(Unavailable):
        places.until(Looks(), request(1))


# Glances


def test_a_look_follows_a_glance_that_shows_something_new(at_once: AtOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AT_LEAST", 1000.0)
    shown, looks = [0], Looks()

    def report() -> None:
        assert looks.begun.wait(10)
        looks.there.set()
        shown[0] += 1

    began = time.monotonic()
    found, _ = at_once([lambda: waits().until(looks, request(30), Glance(lambda: shown[0])), report])
    assert found == ["it"]
    assert time.monotonic() - began < 10


def test_there_is_a_look_now_and_then_even_if_no_glance_shows_anything_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AT_LEAST", 0.3)
    began = time.monotonic()
    assert waits().until(Looks(3), request(30), Glance(lambda: 1)) == ["it"]
    assert 0.6 <= time.monotonic() - began < 10


def test_news_between_the_first_glance_and_the_first_look_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first glance comes before the first look: what changes between them is seen by one or by the other."""
    monkeypatch.setattr(waiting, "AT_LEAST", 1000.0)
    order: list[str] = []

    def look() -> list[str]:
        order.append("look")
        return ["it"] if order.count("look") > 1 else []

    def glance() -> int:
        order.append("glance")
        # The news come right after the first glance.
        return min(order.count("glance"), 2)

    assert waits().until(look, request(30), Glance(glance)) == ["it"]
    assert order == ["glance", "look", "glance", "look"]


def test_those_who_glance_at_one_moment_ask_once(at_once: AtOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "INTERVAL", 1000.0)
    looks = Looks()
    glance = Glance(looks)
    assert at_once([glance] * 16) == [[]] * 16
    assert glance() == []
    assert looks.count == 1


def test_a_glance_is_not_older_than_half_the_time_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(range(100))
    glance = Glance(lambda: next(answers))
    before = time.monotonic()
    assert glance() == 0
    while glance() == 0:
        assert time.monotonic() < before + 10
    assert time.monotonic() - before > waiting.INTERVAL / 2
    monkeypatch.setattr(waiting, "INTERVAL", -1.0)
    assert [glance(), glance(), glance()] == [2, 3, 4]


def test_a_glance_that_fails_fails_for_who_asked_and_is_tried_again_by_the_next() -> None:
    tried: list[int] = []

    def ask() -> int:
        tried.append(1)
        if len(tried) == 1:
            raise ZeroDivisionError
        return 7

    glance = Glance(ask)
    with pytest.raises(ZeroDivisionError):
        glance()
    assert glance() == 7

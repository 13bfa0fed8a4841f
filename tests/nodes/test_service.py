"""The rules of storage nodes: who is healthy, who is out, and whose turn it is."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import clock
from labctl.errors import NotFound
from labctl.events.models import Event
from labctl.nodes import service
from labctl.nodes.models import NEVER
from labctl.nodes.service import Turn

RETRIES = 3
DOWN = "it answered 500"


@pytest.fixture(autouse=True)
def stopped(stopped_clock: Any) -> Any:
    return stopped_clock


def register(session: Session, *hosts: str, trouble: str | None = None) -> None:
    for host in hosts:
        service.register(session, host, trouble, clock.now())


def node(session: Session, host: str) -> Mapping[Any, Any]:
    return service.find(session, host)


def state(session: Session, host: str) -> tuple[bool, int]:
    return node(session, host)["healthy"], node(session, host)["down_count"]


def turn(seconds: float = 10) -> Turn:
    return Turn(seconds)


def claim(session: Session, count: int = 1, mine: Turn | None = None) -> list[str]:
    claimed = service.claim(session, mine or turn(), count)
    assert claimed is not None
    return claimed


def take(session: Session, stopped: Any) -> str | None:
    """Have the next node, which is well."""
    mine = turn()
    (host,) = claim(session, 1, mine) or (None,)
    stopped.advance(seconds=1)
    assert service.end(session, mine, host, {}, RETRIES) is (host is not None)
    return host


def fail(session: Session, host: str) -> None:
    """Ask for the next node, which is this one, and find it down."""
    mine = turn()
    while host not in mine.claimed:
        assert service.claim(session, mine, 1)
    service.end(session, mine, None, {host: DOWN}, RETRIES)


def look(session: Session, retries: int = RETRIES, **troubles: str | None) -> dict[str, bool]:
    """Have the task check all nodes, which are well unless said otherwise."""
    nodes = service.listed(session)
    return service.note(session, nodes, {each["host"]: troubles.get(each["host"]) for each in nodes}, retries)


def events(session: Session) -> list[tuple[str, str]]:
    rows = session.execute(select(Event.kind, Event.subject).where(Event.subject.like("nodes/%")).order_by(Event.seq))
    return [(row.kind, row.subject) for row in rows]


# Registering


def test_a_new_node_that_is_well_is_healthy_and_was_never_used(session: Session) -> None:
    register(session, "a")
    assert node(session, "a") == {
        "host": "a",
        "last_used": NEVER,
        "last_check": clock.now(),
        "healthy": True,
        "down_count": 0,
    }
    assert events(session) == [("node.added", "nodes/a")]


def test_a_new_node_that_is_down_is_out(session: Session) -> None:
    register(session, "a", trouble=DOWN)
    assert node(session, "a") == {
        "host": "a",
        "last_used": NEVER,
        "last_check": clock.now(),
        "healthy": False,
        "down_count": 0,
    }
    assert claim(session) == []


def test_a_node_that_registers_again_and_is_well_starts_anew(session: Session, stopped: Any) -> None:
    register(session, "a")
    taken_at = clock.now() + timedelta(seconds=1)
    take(session, stopped)
    fail(session, "a")
    stopped.advance(hours=1)
    register(session, "a")
    assert node(session, "a") == {
        "host": "a",
        "last_used": taken_at,
        "last_check": clock.now(),
        "healthy": True,
        "down_count": 0,
    }
    assert events(session) == [("node.added", "nodes/a")]


def test_a_node_that_registers_and_is_down_is_out_at_once_with_its_count_as_it_was(
    session: Session, stopped: Any
) -> None:
    register(session, "a")
    fail(session, "a")
    stopped.advance(hours=1)
    for _ in range(2):
        register(session, "a", trouble=DOWN)
        assert state(session, "a") == (False, 1)
        assert node(session, "a")["last_check"] == clock.now()
    register(session, "a")
    assert state(session, "a") == (True, 0)
    assert events(session) == [
        ("node.added", "nodes/a"),
        ("node.unhealthy", "nodes/a"),
        ("node.healthy", "nodes/a"),
    ]


def test_the_event_of_a_node_that_goes_out_says_why(session: Session) -> None:
    register(session, "a")
    register(session, "a", trouble=DOWN)
    data = session.scalars(select(Event.data).where(Event.kind == "node.unhealthy")).one()
    assert data == {"reason": DOWN}


def test_a_check_that_fails_late_does_not_put_a_node_out_that_was_found_well_since(
    session: Session, stopped: Any
) -> None:
    register(session, "a")
    stopped.advance(seconds=1)
    began = clock.now()
    stopped.advance(seconds=1)
    register(session, "a")
    well_at = clock.now()
    stopped.advance(seconds=1)
    service.register(session, "a", DOWN, began)
    assert state(session, "a") == (True, 0)
    assert node(session, "a")["last_check"] == well_at
    # The same when it was given out since.
    began = clock.now()
    take(session, stopped)
    stopped.advance(seconds=1)
    service.register(session, "a", DOWN, began)
    assert state(session, "a") == (True, 0)
    # What is well, is well.
    service.register(session, "a", None, began)
    assert node(session, "a")["last_check"] == clock.now()


def test_a_node_that_is_removed_is_gone_and_is_not_given_out(session: Session) -> None:
    register(session, "a", "b")
    service.remove(session, "a")
    assert [each["host"] for each in service.listed(session)] == ["b"]
    assert claim(session, 9) == ["b"]
    for gone in (service.find, service.remove):
        with pytest.raises(NotFound):
            gone(session, "a")
    assert events(session)[-1] == ("node.removed", "nodes/a")


# Turns


def test_nodes_are_given_out_in_turn_the_least_recently_used_first(session: Session, stopped: Any) -> None:
    register(session, "c", "a", "b")
    assert [take(session, stopped) for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]
    register(session, "d")
    assert [take(session, stopped) for _ in range(3)] == ["d", "b", "c"]


def test_who_is_given_out_was_used_now_and_starts_anew(session: Session, stopped: Any) -> None:
    register(session, "a")
    fail(session, "a")
    fail(session, "a")
    assert state(session, "a") == (True, 2)
    checked = clock.now()
    stopped.advance(hours=1)
    assert take(session, stopped) == "a"
    assert node(session, "a") == {
        "host": "a",
        "last_used": clock.now(),
        "last_check": checked,
        "healthy": True,
        "down_count": 0,
    }
    assert events(session) == [("node.added", "nodes/a")]


def test_a_node_goes_out_when_so_many_checks_in_a_row_have_failed(session: Session, stopped: Any) -> None:
    register(session, "a", "b")
    checked = clock.now()
    stopped.advance(hours=1)
    for count, healthy in ((1, True), (2, True), (3, False)):
        fail(session, "a")
        assert state(session, "a") == (healthy, count)
    assert node(session, "a")["last_check"] == checked
    assert node(session, "a")["last_used"] == NEVER
    assert claim(session, 9) == ["b"]
    assert events(session)[2:] == [("node.unhealthy", "nodes/a")]


def test_with_one_retry_a_node_goes_out_at_once(session: Session) -> None:
    register(session, "a")
    mine = turn()
    assert service.claim(session, mine, 1) == ["a"]
    assert service.end(session, mine, None, {"a": DOWN}, 1) is False
    assert state(session, "a") == (False, 1)


def test_one_turn_gives_out_one_counts_others_and_lets_the_rest_go(session: Session, stopped: Any) -> None:
    register(session, "a", "b", "c", "d")
    mine = turn()
    assert service.claim(session, mine, 1) == ["a"]
    assert service.claim(session, mine, 2) == ["b", "c"]
    assert service.claim(session, mine, 4) == ["d"]
    assert service.claim(session, mine, 8) == []
    stopped.advance(seconds=5)
    assert service.end(session, mine, "c", {"a": DOWN, "d": DOWN}, RETRIES) is True
    assert {host: state(session, host) for host in "abcd"} == {
        "a": (True, 1),
        "b": (True, 0),
        "c": (True, 0),
        "d": (True, 1),
    }
    assert [host for host in "abcd" if node(session, host)["last_used"] == clock.now()] == ["c"]
    assert claim(session, 9) == ["a", "b", "d", "c"]


def test_a_turn_without_nodes_gives_nothing_out(session: Session) -> None:
    mine = turn()
    assert service.claim(session, mine, 1) == []
    assert service.end(session, mine, None, {}, RETRIES) is False


def test_what_one_has_claimed_another_does_not_get_while_there_is_more(session: Session) -> None:
    register(session, *"abcdef")
    assert claim(session) == ["a"]
    assert claim(session, 2) == ["b", "c"]
    # Two are free, so two it is.
    assert claim(session, 4) == ["d", "e", "f"]


def test_when_all_are_claimed_they_are_shared_the_oldest_claim_first(session: Session, stopped: Any) -> None:
    register(session, *"abc")
    claims = []
    for _ in range(8):
        stopped.advance(seconds=0.1)
        claims += claim(session)
    assert "".join(claims) == "abcabcab"
    stopped.advance(seconds=0.1)
    assert claim(session, 2) == ["c", "a"]


def test_who_shares_gets_none_twice(session: Session) -> None:
    register(session, *"abc")
    claim(session, 3)
    mine = turn()
    assert [service.claim(session, mine, 2), service.claim(session, mine, 2), service.claim(session, mine, 2)] == [
        ["a", "b"],
        ["c"],
        [],
    ]


def test_a_claim_ends_by_itself(session: Session, stopped: Any) -> None:
    register(session, "a", "b")
    claim(session, 1, turn(10))
    stopped.advance(seconds=9)
    assert claim(session, 9, turn(0)) == ["b"]
    stopped.advance(seconds=1)
    assert claim(session, 9) == ["a", "b"]


def test_the_end_of_a_turn_lets_go_of_its_own_claims_only(session: Session, stopped: Any) -> None:
    register(session, "a", "b")
    mine, other = turn(10), turn(20)
    service.claim(session, mine, 1)
    stopped.advance(seconds=10)
    # The first was stopped for a while.
    assert service.claim(session, other, 1) == ["a"]
    assert service.end(session, mine, "a", {}, RETRIES) is True
    assert claim(session, 9) == ["b"]
    service.end(session, other, None, {}, RETRIES)
    assert "a" in claim(session, 9)


def test_of_several_who_find_a_node_down_at_once_one_counts(session: Session) -> None:
    register(session, "a")
    turns = [turn(10 + number) for number in range(5)]
    for each in turns:
        assert service.claim(session, each, 1) == ["a"]
    for each in turns:
        service.end(session, each, None, {"a": DOWN}, RETRIES)
    assert state(session, "a") == (True, 1)


def test_a_failure_that_is_older_than_a_success_does_not_count(session: Session, stopped: Any) -> None:
    register(session, "a")
    fail(session, "a")
    slow, quick = turn(10), turn(11)
    service.claim(session, slow, 1)
    service.claim(session, quick, 1)
    service.end(session, quick, "a", {}, RETRIES)
    service.end(session, slow, None, {"a": DOWN}, RETRIES)
    assert state(session, "a") == (True, 0)


def test_a_node_that_went_out_meanwhile_is_not_counted_further(session: Session) -> None:
    register(session, "a")
    mine = turn()
    service.claim(session, mine, 1)
    register(session, "a", trouble=DOWN)
    service.end(session, mine, None, {"a": DOWN}, RETRIES)
    assert state(session, "a") == (False, 0)
    assert [kind for kind, _ in events(session)] == ["node.added", "node.unhealthy"]


def test_a_node_that_went_out_meanwhile_and_is_well_is_given_out_and_in_again(session: Session) -> None:
    register(session, "a")
    mine = turn()
    service.claim(session, mine, 1)
    register(session, "a", trouble=DOWN)
    assert service.end(session, mine, "a", {}, RETRIES) is True
    assert state(session, "a") == (True, 0)
    assert [kind for kind, _ in events(session)] == ["node.added", "node.unhealthy", "node.healthy"]


def test_a_node_that_was_removed_meanwhile_is_not_given_out_nor_brought_back(session: Session) -> None:
    register(session, "a", "b")
    mine = turn()
    assert service.claim(session, mine, 2) == ["a", "b"]
    service.remove(session, "a")
    assert service.end(session, mine, "a", {"b": DOWN}, RETRIES) is False
    assert [(each["host"], each["down_count"]) for each in service.listed(session)] == [("b", 1)]


# The look at all of them


def test_a_look_at_nodes_that_are_well_moves_their_last_check_and_nothing_else(session: Session, stopped: Any) -> None:
    register(session, "a", "b")
    stopped.advance(seconds=10)
    assert look(session) == {}
    for host in "ab":
        assert state(session, host) == (True, 0)
        assert node(session, host)["last_check"] == clock.now()
        assert node(session, host)["last_used"] == NEVER
    assert [kind for kind, _ in events(session)] == ["node.added"] * 2


def test_a_node_that_fails_in_so_many_looks_goes_out_and_comes_back_when_it_is_well(
    session: Session, stopped: Any
) -> None:
    register(session, "a", "b")
    for count, changed in ((1, {}), (2, {}), (3, {"a": False}), (3, {}), (3, {})):
        stopped.advance(seconds=10)
        assert look(session, a=DOWN) == changed
        assert state(session, "a") == (count < 3, count)
        assert node(session, "a")["last_check"] == clock.now()
    assert claim(session, 9) == ["b"]
    stopped.advance(seconds=10)
    assert look(session) == {"a": True}
    assert state(session, "a") == (True, 0)
    assert events(session)[2:] == [("node.unhealthy", "nodes/a"), ("node.healthy", "nodes/a")]


def test_failures_of_turns_and_of_looks_count_together(session: Session) -> None:
    register(session, "a")
    fail(session, "a")
    look(session, a=DOWN)
    fail(session, "a")
    assert state(session, "a") == (False, 3)


def test_a_node_that_went_out_by_registering_comes_back_by_a_look(session: Session) -> None:
    register(session, "a", trouble=DOWN)
    look(session, a=DOWN)
    assert state(session, "a") == (False, 0)
    assert look(session) == {"a": True}


@pytest.mark.parametrize("trouble", [None, DOWN])
@pytest.mark.parametrize("healthy", [True, False])
def test_a_look_does_not_overwrite_what_was_found_since(
    session: Session, stopped: Any, trouble: str | None, healthy: bool
) -> None:
    register(session, "a", "b", trouble=None if healthy else DOWN)
    nodes = service.listed(session)
    stopped.advance(seconds=1)
    register(session, "a", trouble=DOWN if healthy else None)
    found, at = state(session, "a"), clock.now()
    stopped.advance(seconds=1)
    service.note(session, nodes, {"a": trouble, "b": trouble}, RETRIES)
    assert state(session, "a") == found
    assert node(session, "a")["last_check"] == at
    assert node(session, "b")["last_check"] == clock.now()


def test_a_look_that_found_a_node_well_does_not_bring_it_back_when_turns_put_it_out_since(session: Session) -> None:
    register(session, "a")
    nodes = service.listed(session)
    for _ in range(3):
        fail(session, "a")
    assert service.note(session, nodes, {"a": None}, RETRIES) == {}
    assert state(session, "a") == (False, 3)


def test_a_look_that_found_a_node_down_does_not_count_when_a_turn_found_it_well_since(session: Session) -> None:
    register(session, "a", "b")
    fail(session, "a")
    mine = turn()
    assert service.claim(session, mine, 2) == ["a", "b"]
    register(session, "b", trouble=DOWN)
    nodes = service.listed(session)
    service.end(session, mine, "b", {}, RETRIES)
    other = turn()
    service.claim(session, other, 1)
    service.end(session, other, "a", {}, RETRIES)
    assert service.note(session, nodes, {"a": DOWN, "b": DOWN}, RETRIES) == {}
    assert {host: state(session, host) for host in "ab"} == {"a": (True, 0), "b": (True, 0)}


def test_of_two_looks_at_once_one_counts(session: Session, stopped: Any) -> None:
    register(session, "a")
    nodes = service.listed(session)
    stopped.advance(seconds=1)
    for _ in range(2):
        service.note(session, nodes, {"a": DOWN}, RETRIES)
    assert state(session, "a") == (True, 1)


def test_a_look_does_not_bring_back_a_node_that_was_removed_since(session: Session, stopped: Any) -> None:
    register(session, "a", "b")
    nodes = service.listed(session)
    service.remove(session, "a")
    service.remove(session, "b")
    stopped.advance(seconds=1)
    register(session, "b")
    service.note(session, nodes, {"a": None, "b": DOWN}, RETRIES)
    assert [(each["host"], each["down_count"]) for each in service.listed(session)] == [("b", 0)]


def test_a_look_at_nothing_finds_nothing(session: Session) -> None:
    assert look(session) == {}

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import clock, lease
from labctl.errors import Exhausted, Unauthenticated
from labctl.events.models import Event
from labctl.vms import checkout as giving
from labctl.vms.catalog import Asked
from labctl.vms.checkout import Contended, Given, checkout, patiently
from labctl.vms.models import VM
from labctl.vms.service import Caller, Terms
from labctl.vms.states import VMState
from tests.conftest import StoppedClock
from tests.vms.factories import make_vm

A, B, C = (Asked(name, (name,), 1) for name in "abc")
TERMS = Terms(12, 1)
NOBODY = Caller()


def names(given: Given) -> dict[str, list[str]]:
    return {name: [vm.name for vm in vms] for name, vms in given.items()}


def take(session: Session, *asked: Asked, caller: Caller = NOBODY) -> dict[str, list[str]]:
    return names(checkout(session, asked, caller, TERMS))


def vms(session: Session) -> list[VM]:
    session.expire_all()
    return list(session.scalars(select(VM).order_by(VM.id)))


def test_the_vm_that_is_ready_longest_is_given_first(session: Session, stopped_clock: StoppedClock) -> None:
    for name, minutes in (("new", 1), ("old", 9), ("older", 10)):
        make_vm(session, name=name, pool="a", ready=clock.now() - timedelta(minutes=minutes))
    assert sorted(take(session, Asked("a", ("a",), 2))["a"]) == ["old", "older"]
    assert take(session, A) == {"a": ["new"]}


def test_a_vm_that_is_given_out_is_its_users_for_its_lifetime(session: Session, stopped_clock: StoppedClock) -> None:
    now = clock.now()
    make_vm(session, pool="a", failures=3, reason="old", **lease.claim(VM, "engine", 60) | {"lease_attempt": 4})
    checkout(session, [A], Caller("jdoe", address="10.0.0.9"), TERMS)
    (vm,) = vms(session)
    assert (vm.state, vm.owner, vm.address, vm.lifetime) == (VMState.RUNNING, "jdoe", "10.0.0.9", 12)
    assert (vm.checkout, vm.expires, vm.due) == (now, now + timedelta(hours=12), now + timedelta(hours=11))
    # An engine that was looking at it may no longer change it.
    assert (vm.failures, vm.reason, vm.lease_holder, vm.lease_until) == (0, None, None, None)


@pytest.mark.parametrize(("warning", "due"), [(0, 12), (1, 11), (11.5, 0.5), (12, 12), (13, 12)])
def test_the_engine_looks_when_it_is_time_to_warn_or_at_the_end(
    session: Session, stopped_clock: StoppedClock, warning: float, due: float
) -> None:
    make_vm(session, pool="a")
    checkout(session, [A], Caller(), Terms(12, warning))
    assert vms(session)[0].due == clock.now() + timedelta(hours=due)


def test_each_vm_that_is_given_out_is_recorded(session: Session) -> None:
    for pool in "aab":
        make_vm(session, pool=pool)
    given = take(session, Asked("a", ("a",), 2), B, caller=Caller("jdoe"))
    events = session.scalars(select(Event).where(Event.kind == "vm.checked_out").order_by(Event.seq)).all()
    assert sorted(event.subject for event in events) == sorted(
        f"vms/{name}" for each in given.values() for name in each
    )
    assert [event.data for event in events if event.data["pool"] == "b"] == [
        {"pool": "b", "owner": "jdoe", "lifetime": 12}
    ]
    assert len({event.seq for event in events}) == 3


def test_all_or_nothing_is_given(session: Session) -> None:
    for pool in "aab":
        make_vm(session, pool=pool)
    with pytest.raises(Exhausted, match="b: only 1 of the 2 VMs that are wanted are ready"):
        take(session, A, Asked("b", ("b",), 2))
    assert {vm.state for vm in vms(session)} == {VMState.READY}
    assert session.scalars(select(Event)).all() == []


def test_only_vms_that_are_ready_are_given(session: Session) -> None:
    for state in VMState:
        make_vm(session, pool="a", state=state)
    assert len(take(session, A)["a"]) == 1
    with pytest.raises(Exhausted):
        take(session, A)


def test_a_name_of_several_pools_takes_from_all_of_them_the_first_ones_first(session: Session) -> None:
    first, second, third = (make_vm(session, name=pool, pool=pool).name for pool in "abc")
    assert sorted(take(session, Asked("x", ("b", "a", "c"), 2))["x"]) == [first, second]
    assert take(session, Asked("x", ("b", "a", "c"), 1)) == {"x": [third]}


@pytest.mark.parametrize("order", [1, -1])
def test_names_that_share_pools_are_all_served_if_there_is_a_way(session: Session, order: int) -> None:
    for name in ("a1", "b1", "c1"):
        make_vm(session, name=name, pool=name[0])
    asked = [Asked("x", ("a", "b"), 1), Asked("y", ("b", "c"), 1), A]
    assert take(session, *asked[::order]) == {"a": ["a1"], "x": ["b1"], "y": ["c1"]}


def test_names_that_share_pools_get_nothing_if_there_is_no_way(session: Session) -> None:
    for _ in range(2):
        make_vm(session, pool="a")
    with pytest.raises(Exhausted, match="x, a, which share pools"):
        take(session, Asked("x", ("a", "b"), 1), Asked("a", ("a",), 2))
    with pytest.raises(Exhausted, match="x: only 2 of the 3"):
        take(session, Asked("x", ("a", "b"), 3), A)


def test_what_is_held_for_names_that_share_pools_and_not_needed_stays_ready(session: Session) -> None:
    for pool in "aaabbb":
        make_vm(session, pool=pool)
    given = take(session, Asked("x", ("a", "b"), 2), A)
    assert [len(each) for each in given.values()] == [2, 1]
    assert [vm.state for vm in vms(session)].count(VMState.READY) == 3
    kinds = session.scalars(select(Event.kind)).all()
    assert kinds == ["vm.checked_out"] * 3


def test_nothing_is_given_to_who_wants_nothing(session: Session, statements: Callable[[], Any]) -> None:
    with statements() as sent:
        assert checkout(session, [], Caller(), TERMS) == {}
    assert sent == []


@pytest.mark.parametrize(
    ("asked", "number"),
    [([A], 1), ([A, B], 1), ([Asked("a", ("a",), 5), B], 1), ([Asked("x", ("a", "b"), 1), A, B], 2)],
)
def test_a_checkout_costs_one_statement_or_two_if_names_share_pools(
    session: Session, statements: Callable[[], Any], asked: list[Asked], number: int
) -> None:
    for pool in "aaaaaabbb":
        make_vm(session, pool=pool)
    with statements() as sent:
        checkout(session, asked, Caller(), TERMS)
    assert len(sent) == number


def test_a_refusal_costs_one_statement_more(session: Session, statements: Callable[[], Any]) -> None:
    with statements() as sent, pytest.raises(Exhausted):
        take(session, A)
    assert len(sent) == 2


def test_a_token_that_is_gone_is_not_valid(session: Session) -> None:
    make_vm(session, pool="a")
    with pytest.raises(Unauthenticated):
        take(session, A, caller=Caller("jdoe", token_id=4711))


def test_who_is_patient_tries_again_alone_until_it_works() -> None:
    tried: list[bool] = []

    def attempt(alone: bool) -> str:
        tried.append(alone)
        if len(tried) < 3:
            raise Contended
        return "given"

    assert patiently(attempt) == "given"
    assert tried == [False, True, True]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving, "PATIENCE", 0.0)
    tried: list[bool] = []

    def attempt(alone: bool) -> None:
        tried.append(alone)
        raise Contended

    with pytest.raises(Contended):
        patiently(attempt)
    assert len(tried) <= 2


def test_what_is_exhausted_is_not_tried_again() -> None:
    tried: list[bool] = []

    def attempt(alone: bool) -> None:
        tried.append(alone)
        raise Exhausted

    with pytest.raises(Exhausted):
        patiently(attempt)
    assert tried == [False]

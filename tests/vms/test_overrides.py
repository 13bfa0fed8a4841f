from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import clock
from labctl.events.models import Event
from labctl.pools import Pool
from labctl.vms import overrides
from labctl.vms.models import VM, PoolState, VMRequest
from labctl.vms.states import VMState
from tests.vms.factories import make_vm

A, B = Pool(name="a", size=3), Pool(name="b", size=2, template="t", clone_target=4)


def state(session: Session, pool: str) -> PoolState:
    session.expire_all()
    return session.get_one(PoolState, pool)


def states(session: Session) -> dict[str, str]:
    session.expire_all()
    return {vm.name: vm.state for vm in session.scalars(select(VM))}


def kinds(session: Session) -> list[str]:
    return list(session.scalars(select(Event.kind).order_by(Event.seq)))


def test_what_is_changed_holds_until_it_is_reset(session: Session) -> None:
    assert overrides.change(session, "size", [A, B], {"a": 7, "b": 8}) is True
    assert (state(session, "a").size, state(session, "b").size) == (7, 8)
    assert overrides.value(A, state(session, "a"), "size") == 7
    assert overrides.reset(session, "size", A) == (7, 3)
    assert state(session, "a").size is None
    assert overrides.value(A, state(session, "a"), "size") == 3
    assert kinds(session) == ["pool.changed"] * 3


def test_what_holds_already_is_no_change(session: Session) -> None:
    assert overrides.change(session, "size", [A], {"a": 3}) is False
    overrides.change(session, "size", [A], {"a": 4})
    assert overrides.change(session, "size", [A], {"a": 4}) is False
    assert overrides.reset(session, "clone_target", B) == (4, 4)
    assert kinds(session) == ["pool.changed"]


def test_what_was_changed_back_to_the_configuration_is_a_change(session: Session) -> None:
    overrides.change(session, "size", [A], {"a": 4})
    assert overrides.change(session, "size", [A], {"a": 3}) is True


@pytest.mark.parametrize(("pool", "template"), [(A, "a"), (B, "t")])
def test_a_pool_without_a_template_is_made_of_its_name(pool: Pool, template: str) -> None:
    assert overrides.value(pool, None, "template") == template


def test_another_template_starts_afresh(session: Session) -> None:
    session.add(PoolState(pool="a", failures=3, blocked_until=clock.now() + timedelta(hours=1), reason="bad"))
    session.flush()
    assert overrides.change(session, "template", [A], {"a": "new"}) is True
    found = state(session, "a")
    assert (found.template, found.failures, found.blocked_until, found.reason) == ("new", 0, None, None)


def test_a_change_of_a_size_leaves_what_is_wrong_with_a_template(session: Session) -> None:
    session.add(PoolState(pool="a", failures=3, reason="bad"))
    session.flush()
    overrides.change(session, "size", [A], {"a": 9})
    assert (state(session, "a").failures, state(session, "a").reason) == (3, "bad")


def test_a_pool_that_is_emptied_loses_what_nobody_has_and_nobody_asked_for(session: Session) -> None:
    session.add(VMRequest(id="r", wanted={}, created=clock.now(), deadline=clock.now()))
    session.flush()
    for state_of in VMState:
        make_vm(session, name=state_of, pool="a", state=state_of)
    make_vm(session, name="other", pool="b")
    make_vm(session, name="requested-for", pool="a", state=VMState.REQUESTED, request_id="r")
    overrides.empty(session, ["a"])
    assert states(session) == {
        "requested": "completed",
        "pending": "completed",
        "ready": "completed",
        "running": "running",
        "completed": "completed",
        "destroyed": "destroyed",
        "other": "ready",
        "requested-for": "requested",
    }
    assert kinds(session) == ["pool.emptied"]

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from labctl import clock
from labctl.errors import Conflict, Forbidden, NotFound, Unauthenticated
from labctl.events.models import Event
from labctl.pools import Pool
from labctl.vms import on_demand
from labctl.vms.catalog import Asked, Catalog
from labctl.vms.models import VM, PoolState, VMRequest
from labctl.vms.on_demand import Limits
from labctl.vms.service import Caller
from labctl.vms.states import RequestState, VMState
from tests.conftest import StoppedClock

CATALOG = Catalog(
    [Pool(name="a", alias=["any"], template="templates/a"), Pool(name="b", alias=["any"], domain="b.com")], "x.com"
)
JDOE = Caller("jdoe", address="10.0.0.9")
LIMITS = Limits(10, 15, "ci-")


def ask(session: Session, counts: dict[str, int], given: str = "", caller: Caller = JDOE) -> str:
    return on_demand.ask(session, CATALOG, CATALOG.asked(counts), caller, LIMITS, given)


def vms(session: Session) -> list[VM]:
    session.expire_all()
    return list(session.scalars(select(VM).order_by(VM.id)))


def hand_over(session: Session, *chosen: VM) -> None:
    """Do what the engine does with VMs that are there."""
    ids = [vm.id for vm in chosen]
    session.execute(update(VM).where(VM.id.in_(ids)).values(state=VMState.RUNNING, checkout=clock.now(), owner="jdoe"))


def kinds(session: Session) -> list[str]:
    return list(session.scalars(select(Event.kind).order_by(Event.seq)))


def test_vms_are_wanted_by_the_configuration_of_their_pools(session: Session, stopped_clock: StoppedClock) -> None:
    session.add(PoolState(pool="b", template="changed"))
    session.flush()
    identity = ask(session, {"a": 1, "b": 1})
    first, second = sorted(vms(session), key=lambda vm: vm.pool)
    assert (first.pool, first.template, first.domain, first.provider) == ("a", "templates/a", "x.com", "fake")
    assert (second.pool, second.template, second.domain) == ("b", "changed", "b.com")
    for vm in (first, second):
        assert (vm.state, vm.request_id, vm.due) == (VMState.REQUESTED, identity, clock.now())
        assert vm.name.startswith("ci-")
    request = session.get_one(VMRequest, identity)
    assert (request.owner, request.address, request.deadline) == (
        "jdoe",
        "10.0.0.9",
        clock.now() + timedelta(minutes=15),
    )
    assert kinds(session) == ["vm_request.added"]


def test_a_name_of_several_pools_gets_vms_of_all_of_them_in_turn(session: Session) -> None:
    ask(session, {"any": 3})
    assert [vm.pool for vm in vms(session)] == ["a", "a", "b"]
    assert session.scalars(select(VMRequest)).one().wanted == {
        "any": [{"pool": "a", "count": 2}, {"pool": "b", "count": 1}]
    }


def test_too_many_are_refused(session: Session) -> None:
    with pytest.raises(Forbidden, match="exceeds the maximum 10"):
        ask(session, {"a": 6, "b": 5})
    ask(session, {"a": 5, "b": 5})


def test_an_id_is_used_once(session: Session) -> None:
    assert ask(session, {"a": 1}, "mine") == "mine"
    with pytest.raises(Conflict, match="request_id 'mine' has already been created"):
        ask(session, {"a": 1}, "mine")
    assert len(vms(session)) == 1


def test_a_token_that_is_gone_is_not_valid(session: Session) -> None:
    with pytest.raises(Unauthenticated):
        ask(session, {"a": 1}, caller=Caller("jdoe", token_id=4711))


def test_a_request_tells_which_of_its_vms_are_there(session: Session) -> None:
    identity = ask(session, {"a": 2, "any": 2})
    of_a = [vm for vm in vms(session) if vm.pool == "a"]
    assert len(of_a) == 3
    hand_over(session, *of_a)
    request = on_demand.request(session, identity)
    assert request.state == RequestState.WAITING
    assert {name: len(there) for name, there in request.vms.items()} == {"a": 2, "any": 1}
    assert {name: sum(each.count for each in asked) for name, asked in request.wanted.items()} == {"a": 2, "any": 2}
    assert request.wanted["a"] == [Asked("a", ("a",), 2)]


def test_a_request_is_ready_when_all_of_its_vms_are_there(session: Session) -> None:
    identity = ask(session, {"a": 2})
    first, second = vms(session)
    hand_over(session, first)
    assert on_demand.finish(session) == 0
    hand_over(session, second)
    assert on_demand.finish(session) == 1
    assert on_demand.finish(session) == 0
    assert on_demand.request(session, identity).state == RequestState.READY
    assert kinds(session) == ["vm_request.added", "vm_request.ready"]


def test_a_request_whose_vm_was_given_up_waits_for_another(session: Session) -> None:
    identity = ask(session, {"a": 1})
    session.execute(update(VM).values(state=VMState.COMPLETED))
    assert on_demand.finish(session) == 0
    assert on_demand.request(session, identity).state == RequestState.WAITING


def test_a_request_whose_time_is_over_has_failed_with_its_vms(session: Session, stopped_clock: StoppedClock) -> None:
    identity = ask(session, {"a": 2})
    hand_over(session, vms(session)[0])
    stopped_clock.advance(minutes=15)
    assert on_demand.finish(session) == 1
    request = on_demand.request(session, identity)
    assert request.state == RequestState.FAILED
    assert request.message == "The request failed to provision instances within 15 minutes"
    assert [(vm.state, vm.reason) for vm in vms(session)] == [(VMState.COMPLETED, "its request has failed")] * 2


def test_a_request_that_is_taken_back_takes_its_vms_with_it(session: Session, stopped_clock: StoppedClock) -> None:
    identity = ask(session, {"a": 2})
    hand_over(session, vms(session)[0])
    on_demand.take_back(session, identity, JDOE)
    on_demand.take_back(session, identity, JDOE)
    assert on_demand.request(session, identity).message == "The request has been deleted"
    assert [(vm.state, vm.due) for vm in vms(session)] == [(VMState.COMPLETED, clock.now())] * 2
    assert kinds(session) == ["vm_request.added", "vm.completed", "vm.completed", "vm_request.deleted"]


def test_only_its_user_and_admins_take_a_request_back(session: Session) -> None:
    identity = ask(session, {"a": 1})
    with pytest.raises(Forbidden):
        on_demand.take_back(session, identity, Caller("other"))
    on_demand.take_back(session, identity, Caller("root", admin=True))


@pytest.mark.parametrize(
    "verb", [on_demand.request, lambda session, identity: on_demand.take_back(session, identity, JDOE)]
)
def test_a_request_that_is_not_there_is_not_found(session: Session, verb: Any) -> None:
    with pytest.raises(NotFound, match="no request found for request_id 'nosuch'"):
        verb(session, "nosuch")

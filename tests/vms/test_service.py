from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import clock
from labctl.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from labctl.events.models import Event
from labctl.vms import service
from labctl.vms.models import VM, TagDay, VMWork
from labctl.vms.service import Caller, Change, Host
from labctl.vms.states import VMState
from tests.conftest import StoppedClock
from tests.vms.factories import make_vm

NOBODY, JDOE, OTHER, ADMIN = Caller(), Caller("jdoe"), Caller("other"), Caller("root", admin=True)
H = Host("h")


@pytest.fixture
def vm(session: Session, stopped_clock: StoppedClock) -> VM:
    return make_vm(session, name="h", state=VMState.RUNNING)


@pytest.fixture
def owned(session: Session, stopped_clock: StoppedClock) -> VM:
    return make_vm(session, name="h", state=VMState.RUNNING, owner="jdoe")


def change(session: Session, caller: Caller = NOBODY, host: Host = H, **wanted: Any) -> VM:
    service.change(session, host, caller, Change(**wanted), 1)
    session.expire_all()
    return session.scalars(select(VM)).one()


def tag_days(session: Session) -> dict[tuple[str, str], int]:
    session.expire_all()
    return {(row.tag, row.value): row.count for row in session.scalars(select(TagDay))}


def kinds(session: Session) -> list[str]:
    return list(session.scalars(select(Event.kind).order_by(Event.seq)))


def test_a_lifetime_counts_from_the_checkout(session: Session, vm: VM, stopped_clock: StoppedClock) -> None:
    began = clock.now()
    stopped_clock.advance(hours=5)
    changed = change(session, JDOE, lifetime=8)
    assert changed.lifetime == 8
    assert changed.expires == began + timedelta(hours=8)
    assert changed.due == began + timedelta(hours=7)


def test_a_longer_lifetime_is_warned_of_again(session: Session, vm: VM) -> None:
    vm.warned = clock.now()
    assert change(session, JDOE, lifetime=20).warned is None


def test_a_lifetime_that_is_over_already_ends_at_the_next_look(
    session: Session, vm: VM, stopped_clock: StoppedClock
) -> None:
    stopped_clock.advance(hours=5)
    changed = change(session, JDOE, lifetime=2)
    assert changed.state == VMState.RUNNING
    assert changed.due == clock.now()


def test_tags_are_added_and_counted_on_the_day(session: Session, vm: VM) -> None:
    change(session, tags={"a": "1", "b": "2"})
    assert change(session, tags={"b": "3", "c": "4"}).tags == {"a": "1", "b": "3", "c": "4"}
    assert tag_days(session) == {("a", "1"): 1, ("b", "2"): 1, ("b", "3"): 1, ("c", "4"): 1}


def test_tags_of_several_vms_add_up(session: Session, vm: VM) -> None:
    make_vm(session, name="h2", state=VMState.RUNNING)
    for host in ("h", "h2"):
        service.change(session, Host(host), NOBODY, Change(tags={"user": "jdoe"}), 1)
    assert tag_days(session) == {("user", "jdoe"): 2}


def test_a_tag_that_is_there_already_is_not_counted_again(session: Session, vm: VM) -> None:
    change(session, tags={"a": "1"})
    change(session, tags={"a": "1"})
    assert tag_days(session) == {("a", "1"): 1}
    assert kinds(session) == ["vm.changed"]


def test_a_vm_has_so_many_tags_and_no_more(session: Session, vm: VM) -> None:
    change(session, tags={str(number): "x" for number in range(service.MOST_TAGS)})
    change(session, tags={"0": "y"})
    with pytest.raises(Invalid):
        change(session, tags={"more": "x"})


def test_a_change_of_nothing_is_no_change(session: Session, vm: VM) -> None:
    change(session)
    assert kinds(session) == []


@pytest.mark.parametrize(
    ("host", "found"),
    [
        (Host("h"), True),
        (Host("h", "example.com"), True),
        (Host("h", "example.org"), False),
        (Host("h2"), False),
        (Host("h.example.com"), False),
    ],
)
def test_a_vm_is_found_by_its_name_with_its_domain_or_without(
    session: Session, vm: VM, host: Host, found: bool
) -> None:
    if found:
        change(session, JDOE, host, lifetime=2)
    else:
        with pytest.raises(NotFound):
            change(session, JDOE, host, lifetime=2)


@pytest.mark.parametrize("state", [state for state in VMState if state != VMState.RUNNING])
def test_only_a_running_vm_can_be_changed(session: Session, state: VMState) -> None:
    make_vm(session, name="h", state=state)
    for verb in (
        lambda: change(session, JDOE, lifetime=2),
        lambda: service.release(session, Host("h"), JDOE),
        lambda: service.add_disk(session, Host("h"), JDOE, 8),
        lambda: service.snapshot(session, Host("h"), JDOE),
        lambda: service.revert(session, Host("h"), JDOE, "s"),
    ):
        with pytest.raises(NotFound):
            verb()


VERBS: dict[str, Any] = {
    "change": lambda session, caller: service.change(session, Host("h"), caller, Change(tags={"a": "b"}), 1),
    "release": lambda session, caller: service.release(session, Host("h"), caller),
    "add_disk": lambda session, caller: service.add_disk(session, Host("h"), caller, 8),
    "snapshot": lambda session, caller: service.snapshot(session, Host("h"), caller),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_vm_of_nobody_is_everybodys(session: Session, vm: VM, verb: str) -> None:
    VERBS[verb](session, NOBODY)


@pytest.mark.parametrize("verb", VERBS)
def test_a_vm_of_somebody_is_changed_by_them_and_by_admins_only(session: Session, owned: VM, verb: str) -> None:
    with pytest.raises(Unauthenticated):
        VERBS[verb](session, NOBODY)
    with pytest.raises(Forbidden):
        VERBS[verb](session, OTHER)
    assert kinds(session) == []
    VERBS[verb](session, ADMIN if verb == "release" else JDOE)
    assert len(kinds(session)) == 1


def test_a_vm_that_is_given_back_is_completed_and_due(session: Session, vm: VM, stopped_clock: StoppedClock) -> None:
    stopped_clock.advance(hours=1)
    vm.lease_holder = "engine"
    session.flush()
    service.release(session, Host("h"), NOBODY)
    session.expire_all()
    assert (vm.state, vm.reason, vm.lease_holder) == (VMState.COMPLETED, "released", None)
    assert vm.completed == vm.due == clock.now()
    assert kinds(session) == ["vm.completed"]
    with pytest.raises(NotFound):
        service.release(session, Host("h"), NOBODY)


def work(session: Session) -> list[tuple[str, str, str]]:
    return [(row.kind, row.argument, row.state) for row in session.scalars(select(VMWork).order_by(VMWork.id))]


def test_disks_snapshots_and_reverts_wait_for_the_engine(session: Session, vm: VM) -> None:
    vm.snapshots = ["done"]
    session.flush()
    service.add_disk(session, Host("h"), JDOE, 8)
    name = service.snapshot(session, Host("h"), JDOE)
    service.revert(session, Host("h"), JDOE, "done")
    assert len(name) == 32
    assert work(session) == [("disk", "8", "waiting"), ("snapshot", name, "waiting"), ("revert", "done", "waiting")]
    assert {row.due for row in session.scalars(select(VMWork))} == {clock.now()}
    assert kinds(session) == ["vm.disk_asked", "vm.snapshot_asked", "vm.revert_asked"]


def test_a_snapshot_that_is_not_finished_cannot_be_gone_back_to(session: Session, vm: VM) -> None:
    name = service.snapshot(session, Host("h"), JDOE)
    with pytest.raises(NotFound):
        service.revert(session, Host("h"), JDOE, name)


def test_only_so_much_may_wait_to_be_done_to_one_vm(session: Session, vm: VM) -> None:
    for _ in range(service.MOST_WORK):
        service.add_disk(session, Host("h"), JDOE, 1)
    with pytest.raises(Conflict):
        service.snapshot(session, Host("h"), JDOE)
    for row in session.scalars(select(VMWork).limit(1)):
        row.finished = clock.now()
        session.execute(VMWork.__table__.update().where(VMWork.id == row.id).values(state="done"))
    service.snapshot(session, Host("h"), JDOE)

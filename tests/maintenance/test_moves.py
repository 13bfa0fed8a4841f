"""VMs that their provider takes to another hypervisor: the engine of sessions and that of VMs together."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import db
from labctl.db import Actor
from labctl.maintenance import service as maintenance
from labctl.maintenance.engine import Engine
from labctl.maintenance.models import MaintenanceReply, MaintenanceSession
from labctl.pools import Pool
from labctl.settings import MAINTENANCE_REPLIES
from labctl.vms import cordon, service, work
from labctl.vms.models import Cordon, VMWork
from labctl.vms.provider import Failed
from labctl.vms.providers.fake import FakeProvider
from labctl.vms.states import VMState
from tests.vms.lab import Lab as VMLab

from .factories import make_session
from .lab import Lab

DUMMY = [{"plugin": "dummy", "type": "host", "metadata": {"seconds": 1}}]


class Labs:
    """A VM that ada has, on one of two hypervisors, and one of bob's; none that could take the place of either."""

    def __init__(self, session: Session, directory: Path, clock: Any, migrates: str = "live") -> None:
        self.vms = VMLab(
            session, directory, clock, [Pool(name="debian", size=1)], hosts=["h1", "h2"], migrates=migrates
        ).filled()
        (vm,) = self.vms.ready()
        self.vm = self.vms.take(vm)
        self.sessions = Lab(session, clock)
        self.sessions.vms_are_looked_after = True
        self.sessions.engine = Engine(MAINTENANCE_REPLIES, poll=0, can={"fake": self.vms.provider.capabilities})
        self.vms.live(3)
        (other,) = self.vms.ready()
        self.vms.take(other).owner = "bob"
        self.vms.pools[0] = Pool(name="debian", size=0)
        self.vms.change()

    @property
    def there(self) -> str:
        """The hypervisor that her VM is on."""
        assert self.vm.host is not None
        return self.vm.host

    def begin(self, **changes: Any) -> MaintenanceSession:
        self.before = self.there
        values = {"workflow": "default", "state": "PLANNED_MAINTENANCE", "actions": DUMMY, **changes}
        return make_session(self.sessions.session, [self.before], **values)

    def live(self, seconds: int) -> None:
        for _ in range(seconds):
            self.sessions.tick(seconds=1)
            self.vms.settle()

    def replies(self, row: MaintenanceSession) -> list[MaintenanceReply]:
        query = select(MaintenanceReply).where(MaintenanceReply.session_id == row.id)
        return list(self.vms.session.scalars(query))

    def asked(self) -> list[VMWork]:
        return list(self.vms.session.scalars(select(VMWork).order_by(VMWork.id)))


@pytest.fixture
def labs(session: Session, tmp_path: Path, stopped_clock: Any) -> Labs:
    return Labs(session, tmp_path / "fake", stopped_clock)


@pytest.mark.parametrize(
    ("said", "how"), [("MIGRATE", "migrate"), ("LIVE_MIGRATE", "live_migrate"), ("", "live_migrate")]
)
def test_a_provider_that_can_takes_a_vm_elsewhere_for_its_owner(labs: Labs, said: str, how: str) -> None:
    row = labs.begin()
    labs.live(1)
    (reply,) = labs.replies(row)
    assert sorted(reply.allowed_actions) == ["LIVE_MIGRATE", "MIGRATE", "OWN_ACTION"]
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE", **({labs.vm.name: said} if said else {}))
    labs.live(20)
    assert labs.vm.state == VMState.RUNNING and labs.vm.owner == "ada" and labs.there != labs.before
    assert [(one.kind, one.state, one.argument) for one in labs.asked()] == [(how, "done", labs.before)]
    (move,) = labs.sessions.moves(row)
    assert (move.state, move.moved_to, move.replacement, move.reason) == ("done", labs.there, None, None)
    assert ("ada", "INSTANCE_ACTION_DONE") in labs.sessions.notices(row)
    labs.sessions.answer(row, "ada", "ACK_MAINTENANCE_COMPLETE")
    labs.live(20)
    assert row.state == "MAINTENANCE_DONE"
    (event,) = labs.vms.events("vm.migrated")
    assert event.data == {"before": labs.before, "host": labs.there}


def test_what_a_provider_cannot_do_live_is_not_offered(session: Session, tmp_path: Path, stopped_clock: Any) -> None:
    labs = Labs(session, tmp_path / "fake", stopped_clock, "cold")
    row = labs.begin()
    labs.live(1)
    (reply,) = labs.replies(row)
    assert sorted(reply.allowed_actions) == ["MIGRATE", "OWN_ACTION"]
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE", **{labs.vm.name: "LIVE_MIGRATE"})
    labs.live(20)
    assert [one.kind for one in labs.asked()] == ["migrate"] and labs.there != labs.before


def test_without_room_elsewhere_a_session_says_so_and_goes_on_when_there_is_some(labs: Labs) -> None:
    labs.vms.faults(hosts=[labs.there])
    row = labs.begin(hints={"gate": "none", "no_answer": "wait"}, state="PREPARE_MAINTENANCE")
    labs.live(1)
    labs.sessions.answer(row, "ada", "ACK_PREPARE_MAINTENANCE", **{labs.vm.name: "LIVE_MIGRATE"})
    labs.live(10)
    assert row.state == "PREPARE_MAINTENANCE" and labs.vm.host == labs.before
    assert row.waits_for is not None and f"{labs.vm.name}: all hypervisors are out of service" in row.waits_for
    (move,) = labs.sessions.moves(row)
    assert (move.state, move.reason) == ("waiting", "all hypervisors are out of service")
    # It has been patient; the project is asked to need less.
    labs.live(60)
    assert row.state == "SCALE_IN"
    labs.vms.faults()
    labs.live(20)
    assert labs.there != labs.before and row.state in ("MAINTENANCE_COMPLETE", "MAINTENANCE_DONE")


def test_a_session_fails_when_there_is_no_room_for_long_and_leaves_the_vm_alone(labs: Labs) -> None:
    labs.vms.faults(hosts=[labs.there])
    row = labs.begin()
    labs.live(1)
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE")
    labs.live(70)
    assert row.state == "MAINTENANCE_FAILED"
    assert row.reason == f"{labs.vm.name}: all hypervisors are out of service"
    assert labs.sessions.hosts(row) == {labs.before: "waiting"} and labs.sessions.moves(row) == []
    (asked,) = labs.asked()
    assert (asked.state, asked.reason) == ("failed", f"maintenance {row.id} does not need it any more")
    labs.vms.faults()
    labs.live(10)
    assert labs.vm.host == labs.before and labs.vm.state == VMState.RUNNING


@pytest.mark.parametrize(("said", "tried"), [("", ["live_migrate", "migrate"]), ("LIVE_MIGRATE", ["live_migrate"])])
def test_a_session_fails_when_its_provider_cannot_move_a_vm(
    labs: Labs, monkeypatch: pytest.MonkeyPatch, said: str, tried: list[str]
) -> None:
    monkeypatch.setattr(type(labs.vms.provider), "migrate", lambda self, name, avoid, *, live: None)
    row = labs.begin()
    labs.live(1)
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE", **({labs.vm.name: said} if said else {}))
    labs.live(20)
    assert row.state == "MAINTENANCE_FAILED"
    assert row.reason == f"{labs.vm.name} cannot be moved from {labs.before}: it is still on {labs.before}"
    assert labs.vm.state == VMState.RUNNING and labs.vm.owner == "ada"
    assert [one.kind for one in labs.asked()] == tried


def test_a_vm_that_its_owner_gives_back_need_not_be_moved(labs: Labs) -> None:
    row = labs.begin()
    labs.live(1)
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE")
    labs.sessions.tick()
    labs.vm.state, labs.vm.due = VMState.COMPLETED, labs.vms.clock()
    labs.live(10)
    (move,) = labs.sessions.moves(row)
    assert (move.state, move.moved_to, move.reason) == ("done", None, "nobody has it any more")
    assert [one.state for one in labs.asked()] == ["failed"]


def test_a_vm_goes_on_if_its_new_hypervisor_goes_out_of_service_meanwhile(
    session: Session, tmp_path: Path, stopped_clock: Any
) -> None:
    labs = Labs(session, tmp_path / "fake", stopped_clock)
    labs.vms.change(hosts=["h1", "h2", "h3"])
    cordon.cordon(session, labs.there, "upkeep")
    number = work.ask_to_migrate(session, labs.vm.name, labs.there, live=True)
    before, migrate = labs.there, type(labs.vms.provider).migrate
    on: list[str] = []

    def and_then(name: str, avoid: Any, *, live: bool) -> None:
        migrate(labs.vms.provider, name, avoid, live=live)
        found = labs.vms.provider.look_up(name)
        assert found is not None
        on.append(found.host)

    labs.vms.provider.migrate = and_then  # type: ignore[method-assign]
    labs.vms.engine.tick()
    # The emptiest one.
    other = "h3"
    cordon.cordon(session, other, "upkeep")
    assert cordon.unsettled(session, [other]) == {other}
    while labs.vms.engine.busy:
        labs.vms.engine._hear(5)
    # It is in use there, until it goes on.
    session.refresh(labs.vm)
    assert labs.there == other
    labs.vms.settle()
    labs.vms.settle(seconds=6)
    assert [(one.id, one.state) for one in labs.asked()] == [(number, "done")]
    assert cordon.unsettled(session, [other]) == frozenset()
    assert labs.there not in (before, other) and on[-1] == labs.there


def test_nothing_is_begun_on_a_host_while_a_vm_may_be_on_its_way_there(labs: Labs) -> None:
    (other,) = {"h1", "h2"} - {labs.there}
    for vm in labs.vms.vms():
        if vm.host == other:
            vm.state, vm.due = VMState.COMPLETED, labs.vms.clock()
    labs.vms.settle()
    cordon.cordon(labs.vms.session, labs.there, "upkeep")
    work.ask_to_migrate(labs.vms.session, labs.vm.name, labs.there, live=True)
    asked = labs.asked()[0]
    asked.lease_holder, asked.lease_until = "another engine", labs.vms.clock() + timedelta(seconds=30)
    row = make_session(labs.sessions.session, [other], workflow="default", state="START_MAINTENANCE", actions=DUMMY)
    labs.sessions.live(5)
    assert labs.sessions.hosts(row) == {other: "draining"}
    asked.lease_holder = asked.lease_until = None
    labs.sessions.live(5)
    assert labs.sessions.hosts(row) == {other: "done"}


@pytest.mark.parametrize("migrates", ["cold", "live"])
def test_a_session_walks_over_hypervisors_that_are_all_in_use(
    session: Session, tmp_path: Path, stopped_clock: Any, migrates: str
) -> None:
    labs = Labs(session, tmp_path / "fake", stopped_clock, migrates)
    row = make_session(session, ["h1", "h2"], workflow="default", actions=DUMMY, hints={"gate": "none"})
    for _ in range(60):
        labs.live(1)
        for reply in labs.replies(row):
            if reply.answer is None:
                reply.answer, reply.answered = f"ACK_{reply.state}", labs.vms.clock()
    assert row.state == "MAINTENANCE_DONE"
    assert {vm.owner: vm.state for vm in labs.vms.vms()} == {"ada": VMState.RUNNING, "bob": VMState.RUNNING}
    # Those of the first host were moved to the second one, and back.
    assert sorted(move.host for move in labs.sessions.moves(row)) == ["h1", "h2", "h2"]
    told = [state for _, state in labs.sessions.notices(row)]
    assert told.count("INSTANCE_ACTION_DONE") == 3


def test_a_vm_goes_to_a_hypervisor_that_it_need_not_leave_again(
    session: Session, tmp_path: Path, stopped_clock: Any
) -> None:
    labs = Labs(session, tmp_path / "fake", stopped_clock)
    labs.vms.change(hosts=["h1", "h2", "h3", "h4"])
    cordon.cordon(session, labs.there, "upkeep")
    work.ask_to_migrate(session, labs.vm.name, labs.there, live=True, rather_not=["h1", "h2", "h3"])
    labs.vms.settle()
    assert labs.there == "h4"


def test_nothing_is_begun_on_a_host_while_a_vm_is_made_or_destroyed_there(
    session: Session, tmp_path: Path, stopped_clock: Any
) -> None:
    labs = Labs(session, tmp_path / "fake", stopped_clock)
    for name in ("h1", "h2"):
        labs.sessions.clock.advance(seconds=1)
        cordon.cordon(session, name, "upkeep")
        assert cordon.unsettled(session, [name]) == frozenset()
        cordon.uncordon(session, name)
    labs.vms.pools[0] = Pool(name="debian", size=2)
    labs.vms.change(boot_seconds=(30, 30))
    labs.vms.settle()
    cordon.cordon(session, "h1", "upkeep")
    # Nobody knows yet where they are.
    assert cordon.unsettled(session, ["h1"]) == {"h1"}
    labs.vms.settle(seconds=1)
    # Those that are there are destroyed; the others do not matter.
    assert cordon.unsettled(session, ["h1"]) == frozenset()
    assert {vm.host for vm in labs.vms.vms(VMState.PENDING)} == {"h2"}
    cordon.cordon(session, "h2", "upkeep")
    labs.vms.faults(hang_rate=1)
    cordon_of_h2 = labs.vms.session.get_one(Cordon, "h2")
    assert cordon.unsettled(session, ["h2"]) == {"h2"}
    # Not for ever.
    cordon_of_h2.since -= cordon.PATIENCE
    labs.vms.session.flush()
    assert cordon.unsettled(session, ["h2"]) == frozenset()


def test_nothing_is_begun_on_a_host_until_what_was_given_back_there_is_destroyed(labs: Labs) -> None:
    session = labs.vms.session
    cordon.cordon(session, labs.there, "upkeep")
    labs.vms.clock.advance(seconds=2 * cordon.PATIENCE.total_seconds())
    service.release(session, service.Host(labs.vm.name), service.Caller("ada"))
    assert cordon.unsettled(session, [labs.there]) == {labs.there}
    labs.vms.settle()
    assert cordon.unsettled(session, [labs.there]) == frozenset()


def test_a_migration_is_not_tried_again_once_its_host_is_in_service(labs: Labs) -> None:
    labs.vms.faults(hosts=[labs.there])
    row = labs.begin()
    labs.live(1)
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE")
    labs.live(3)
    assert [one.reason for one in labs.asked()] == ["all hypervisors are out of service"]
    with db.transaction(Actor("root")) as session:
        maintenance.remove(session, row.id)
    labs.live(2)
    labs.vms.faults()
    labs.live(20)
    assert [one.state for one in labs.asked()] == ["failed"] and labs.there == labs.before


def test_a_first_try_that_fails_after_long_is_followed_by_others(labs: Labs, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate, tries = FakeProvider.migrate, []

    def at_last(self: FakeProvider, name: str, avoid: Any, *, live: bool) -> None:
        tries.append(live)
        if len(tries) < 3:
            labs.vms.clock.advance(seconds=70)
            raise Failed("the link broke")
        migrate(self, name, avoid, live=live)

    monkeypatch.setattr(FakeProvider, "migrate", at_last)
    row = labs.begin()
    labs.live(1)
    labs.sessions.answer(row, "ada", "ACK_PLANNED_MAINTENANCE")
    labs.live(20)
    assert (row.state, len(tries)) == ("MAINTENANCE_COMPLETE", 3) and labs.there != labs.before

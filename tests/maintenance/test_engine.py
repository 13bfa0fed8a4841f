"""Rounds of the engine: sessions of the fake and of the default workflow, over rows."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import db
from labctl.machines.models import Machine
from labctl.maintenance import advancing
from labctl.maintenance.engine import Engine
from labctl.maintenance.models import MaintenanceAction, MaintenanceReply, MaintenanceSession
from labctl.maintenance.workflow import Next, Workflow
from labctl.settings import MAINTENANCE_REPLIES
from labctl.vms.models import Cordon
from labctl.vms.states import VMState

from .factories import make_machine, make_ready, make_session, make_vm
from .lab import Lab

ALL = ["SCALE_IN", "PREPARE_MAINTENANCE", "START_MAINTENANCE", "PLANNED_MAINTENANCE", "MAINTENANCE_COMPLETE"]
SLOW = [{"plugin": "dummy", "type": "host", "metadata": {"seconds": 5}}]
DUMMY = [{"plugin": "dummy", "type": kind, "metadata": {}} for kind in ("pre", "host", "post")]


@pytest.fixture
def lab(session: Session, stopped_clock: Any) -> Lab:
    return Lab(session, stopped_clock)


def machine(lab: Lab, name: str) -> Machine:
    return lab.session.scalars(select(Machine).where(Machine.name == name)).one()


def cordons(lab: Lab) -> set[str]:
    return set(lab.session.scalars(select(Cordon.host)))


# The fake


def test_a_session_of_the_fake_walks_through_all_states_at_once(lab: Lab) -> None:
    row = make_session(lab.session, ["a", "b", "c"], actions=DUMMY)
    lab.until_ended(row)

    assert (row.state, row.reason, row.due, row.finished) == ("MAINTENANCE_DONE", None, None, lab.now())
    assert lab.states(row) == ALL
    assert lab.hosts(row) == {"a": "done", "b": "done", "c": "done"}
    ran = [(action.type, action.host, action.attempt, action.state) for action in lab.actions(row)]
    assert sorted(ran) == sorted(
        [("pre", "", 1, "done"), *(("host", host, 1, "done") for host in "abc"), ("post", "", 1, "done")]
    )
    assert not any(lab.host(row, host).held or lab.host(row, host).cordoned for host in "abc")
    assert cordons(lab) == set()


def test_hosts_are_maintained_one_after_the_other_or_as_many_as_may_be(lab: Lab) -> None:
    for most in (1, 2):
        hosts = [f"{most}{name}" for name in "abc"]
        row = make_session(lab.session, hosts, hints={"gate": "none", "max_unavailable": most})
        lab.until_ended(row)
        steps = [step.partition(" ")[0::2] for step in lab.steps(row) if step[:2] in hosts]
        out = 0
        worst = 0
        for _, what in steps:
            out += what.startswith("is out of service") - what.startswith("is done")
            worst = max(worst, out)
        assert worst == most and out == 0


def test_a_state_lasts_as_long_as_it_was_told(lab: Lab) -> None:
    row = make_session(lab.session, hints={"gate": "none", "seconds": {"SCALE_IN": 10}})
    lab.tick()
    assert (row.state, row.waits_for) == ("SCALE_IN", "the time it was told to stay")
    assert (row.waits_until - lab.now()).total_seconds() == 10
    lab.live(9)
    assert row.state == "SCALE_IN"
    lab.tick(seconds=1)
    assert row.state == "MAINTENANCE_DONE"


@pytest.mark.parametrize("state", ["MAINTENANCE", *ALL])
def test_a_workflow_that_breaks_fails_its_session_with_its_text_and_no_other(lab: Lab, state: str) -> None:
    row = make_session(lab.session, ["a"], hints={"gate": "none", "raise": [state]})
    other = make_session(lab.session, ["b"])
    lab.until_ended(row)
    lab.until_ended(other)

    assert (row.state, row.failed_in, row.due) == ("MAINTENANCE_FAILED", state, None)
    assert row.reason == f"the workflow fake broke in {state}: RuntimeError: it was told to break in {state}"
    assert row.finished == row.entered or row.finished is not None
    assert other.state == "MAINTENANCE_DONE"


@pytest.mark.parametrize("state", ["MAINTENANCE", *ALL])
def test_a_session_that_has_failed_is_continued_where_it_failed(lab: Lab, state: str) -> None:
    row = make_session(lab.session, ["a"], hints={"gate": "none", "fail": [state]}, actions=DUMMY)
    lab.until_ended(row)
    assert (row.state, row.failed_in, row.reason) == ("MAINTENANCE_FAILED", state, f"it was told to fail in {state}")

    row.hints = {"gate": "none"}
    row.state, row.entered, row.due, row.failed_in, row.reason = state, lab.now(), lab.now(), None, None
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_DONE"
    assert len(lab.actions(row)) == 3


class Odd(Workflow):
    """Gives what it was told."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        self.step = step

    @property
    def steps(self) -> Any:
        return {"MAINTENANCE": self.step}


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda view: None, "the step of MAINTENANCE gave None"),
        (lambda view: Next(state="NIRVANA"), "NIRVANA is none of its states"),
        (lambda view: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda view: Next(failed="no\0thing"), "no\N{REPLACEMENT CHARACTER}thing"),
    ],
)
def test_whatever_a_workflow_gives_the_loop_goes_on(lab: Lab, step: Any, reason: str) -> None:
    lab.engine = Engine(MAINTENANCE_REPLIES, poll=0, workflow_of=lambda name: Odd(step))
    row = make_session(lab.session)
    lab.tick()
    assert row.state == "MAINTENANCE_FAILED" and reason in row.reason


def test_a_workflow_that_is_not_installed_any_more_fails_its_session(lab: Lab) -> None:
    row = make_session(lab.session, workflow="former")
    lab.tick()
    assert row.state == "MAINTENANCE_FAILED"
    assert "there is no labctl.workflows plugin 'former'; installed: default, fake" in row.reason


def test_what_labctl_itself_cannot_do_fails_the_session_and_not_the_loop(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = make_session(lab.session)
    monkeypatch.setattr(advancing.view, "build", lambda *arguments: 1 / 0)
    lab.tick()
    assert row.state == "MAINTENANCE_FAILED"
    assert row.reason == "labctl could not go on: ZeroDivisionError: division by zero"


def test_what_runs_on_hosts_when_a_session_breaks_comes_to_its_end_without_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [{"plugin": "dummy", "type": "host", "metadata": {"seconds": 10}}]
    row = make_session(lab.session, ["a"], actions=running)
    lab.live(3)
    assert lab.hosts(row) == {"a": "maintaining"}
    with monkeypatch.context() as broken:
        broken.setattr(advancing.view, "build", lambda *arguments: 1 / 0)
        lab.tick(seconds=1)
    action = lab.session.get_one(MaintenanceAction, (row.id, 0, "a", 1))
    assert (row.state, action.state) == ("MAINTENANCE_FAILED", "running") and row.due is not None
    lab.live(10)
    assert (row.state, action.state, row.due) == ("MAINTENANCE_FAILED", "done", None)
    assert lab.hosts(row) == {"a": "maintaining"}


def test_a_session_waits_for_its_time(lab: Lab) -> None:
    row = make_session(lab.session, ["a"], maintenance_at=lab.now() + timedelta(seconds=50))
    lab.live(49)
    assert (row.state, row.waits_for, row.waits_until) == ("MAINTENANCE", "maintenance_at", row.maintenance_at)
    lab.tick(seconds=1)
    assert row.state == "MAINTENANCE_DONE"


# Out of service and back


def test_a_machine_is_locked_for_the_session_while_it_is_maintained_and_free_again_after_it(lab: Lab) -> None:
    make_machine(lab.session, "a")
    row = make_session(lab.session, ["a"], hints={"gate": "none"}, actions=DUMMY)
    seen = []
    for _ in range(100):
        with db.transaction() as session:
            again = advancing.advance(session, row.id, lab.engine._workflow_of, {})
        lab.session.expire_all()
        seen.append((lab.hosts(row)["a"], machine(lab, "a").locked_by, machine(lab, "a").cordoned))
        if not again:
            break
    about = f"maintenance {row.id}"
    assert list(dict.fromkeys(seen)) == [
        ("waiting", None, None),
        ("draining", None, about),
        ("maintaining", about, about),
        ("checking", about, about),
        ("done", None, None),
    ]


def test_a_machine_in_use_is_waited_for_and_taken_as_soon_as_it_is_free(lab: Lab) -> None:
    make_machine(lab.session, "a", locked_by="ada")
    row = make_session(lab.session, ["a"])
    lab.live(5)
    assert (row.state, row.waits_for) == ("START_MAINTENANCE", "a to be free of a (ada)")
    assert machine(lab, "a").cordoned == f"maintenance {row.id}" and machine(lab, "a").locked_by == "ada"
    ours = machine(lab, "a")
    ours.locked, ours.locked_by, ours.locked_since = False, None, None
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_DONE" and not machine(lab, "a").locked


def test_what_is_ready_on_a_hypervisor_goes_and_what_runs_there_is_waited_for(lab: Lab) -> None:
    vm, ready = make_vm(lab.session, "h"), make_ready(lab.session, "h")
    row = make_session(lab.session, ["h"])
    lab.live(5)
    assert cordons(lab) == {"h"}
    assert ready.state == VMState.DESTROYED and vm.state == VMState.RUNNING
    late = make_ready(lab.session, "h")
    vm.state = VMState.COMPLETED
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_DONE" and late.state == VMState.DESTROYED
    assert cordons(lab) == set()


def test_a_hypervisor_is_not_touched_while_a_vm_on_it_is_just_being_given_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever gives it out holds its row, which is passed over.
    monkeypatch.setattr(advancing.cordon, "cordon", lambda *arguments: None)
    vm = make_ready(lab.session, "h")
    row = make_session(lab.session, ["h"])
    lab.live(5)
    assert lab.hosts(row) == {"h": "draining"}
    vm.state = VMState.COMPLETED
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_DONE"


def test_machines_that_are_vms_on_a_host_go_out_of_service_with_it(lab: Lab) -> None:
    make_machine(lab.session, "h")
    make_machine(lab.session, "v", vm_host="h", is_vm=True, locked_by="ada")
    row = make_session(lab.session, ["h"])
    lab.live(3)
    assert row.waits_for == "h to be free of v (ada)"
    assert machine(lab, "v").cordoned
    ours = machine(lab, "v")
    ours.locked, ours.locked_by, ours.locked_since = False, None, None
    lab.until_ended(row)
    assert (machine(lab, "v").cordoned, machine(lab, "v").locked) == (None, False)


def test_a_failing_session_gives_back_what_it_has_not_begun(lab: Lab) -> None:
    make_machine(lab.session, "a", locked_by="ada")
    row = make_session(lab.session, ["a", "b"], hints={"gate": "none"})
    lab.live(3)
    assert lab.hosts(row)["a"] == "draining"
    row.hints = {"gate": "none", "fail": ["START_MAINTENANCE"]}
    lab.until_ended(row)
    assert lab.hosts(row) == {"a": "waiting", "b": "done"}
    assert machine(lab, "a").cordoned is None and machine(lab, "a").locked_by == "ada"
    assert lab.host(row, "a").held and not lab.host(row, "a").cordoned and not lab.host(row, "b").held


def test_a_host_whose_action_fails_stays_out_of_service_and_no_other_is_begun(lab: Lab) -> None:
    for name in "abc":
        make_machine(lab.session, name)
    failing = [{"plugin": "dummy", "type": "host", "metadata": {"fail": True, "hosts": ["b"]}}]
    row = make_session(lab.session, ["a", "b", "c"], actions=failing)
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_FAILED" and row.failed_in == "START_MAINTENANCE"
    assert row.reason.startswith("b: ")
    assert lab.hosts(row) == {"a": "done", "b": "failed", "c": "waiting"}
    assert machine(lab, "b").locked_by == machine(lab, "b").cordoned == f"maintenance {row.id}"
    assert not machine(lab, "c").locked and machine(lab, "c").cordoned is None
    assert [lab.host(row, name).held for name in "abc"] == [False, True, True]


# Paused and deleted


def test_a_paused_session_lets_what_runs_end_and_begins_nothing(lab: Lab) -> None:
    row = make_session(
        lab.session, ["a", "b"], actions=[{"plugin": "dummy", "type": "host", "metadata": {"seconds": 5}}]
    )
    lab.tick()
    assert lab.hosts(row) == {"a": "maintaining", "b": "waiting"}
    row.paused, row.due = True, lab.now()
    lab.live(10)
    assert [action.state for action in lab.actions(row)] == ["done"]
    assert lab.hosts(row) == {"a": "maintaining", "b": "waiting"} and row.due is None
    row.paused, row.due = False, lab.now()
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_DONE"


def test_a_deleted_session_ends_what_runs_gives_back_its_hosts_and_is_gone(lab: Lab) -> None:
    make_machine(lab.session, "a")
    row = make_session(
        lab.session, ["a", "b"], actions=[{"plugin": "dummy", "type": "host", "metadata": {"seconds": 5}}]
    )
    sid = row.id
    lab.tick()
    assert machine(lab, "a").locked_by == f"maintenance {sid}"
    row.deleted, row.due = lab.now(), lab.now()
    lab.tick()
    assert lab.session.get(MaintenanceSession, sid) is not None and machine(lab, "a").locked
    lab.live(6)
    lab.session.expunge_all()
    assert lab.session.get(MaintenanceSession, sid) is None
    assert (machine(lab, "a").locked, machine(lab, "a").cordoned) == (False, None)
    assert not lab.session.scalars(select(MaintenanceAction)).all()


def test_a_failed_session_that_is_deleted_gives_its_failed_host_back(lab: Lab) -> None:
    make_machine(lab.session, "a")
    row = make_session(lab.session, ["a"], actions=[{"plugin": "dummy", "type": "host", "metadata": {"fail": True}}])
    lab.until_ended(row)
    assert lab.hosts(row) == {"a": "failed"}
    row.deleted, row.due = lab.now(), lab.now()
    lab.tick()
    assert not machine(lab, "a").locked and cordons(lab) == set()


# The default workflow


def begin(lab: Lab, *hosts: str, **changes: Any) -> MaintenanceSession:
    hints = {"gate": "none", **changes.pop("hints", {})}
    return make_session(lab.session, hosts, workflow="default", hints=hints, **changes)


def test_a_session_whose_hosts_nobody_uses_is_done_at_once(lab: Lab) -> None:
    row = begin(lab, "a", "b", actions=DUMMY)
    lab.until_ended(row)
    assert row.state == "MAINTENANCE_DONE"
    assert lab.states(row) == ["START_MAINTENANCE", "MAINTENANCE_COMPLETE"]


def test_a_vm_in_use_is_replaced_by_a_ready_one_when_its_owner_agrees(lab: Lab) -> None:
    vm = make_vm(lab.session, "h1", "ada")
    ready = make_ready(lab.session, "h2")
    row = begin(lab, "h1")
    lab.live(3)
    assert (row.state, row.waits_for) == ("MAINTENANCE", "the answer of ada")
    lab.answer(row, "ada", "ACK_MAINTENANCE")
    lab.tick()
    assert row.state == "PREPARE_MAINTENANCE"
    assert row.waits_for == f"the answer of ada; h1 to be free of {vm.name} (ada)"
    lab.answer(row, "ada", "ACK_PREPARE_MAINTENANCE", **{vm.name: "MIGRATE"})
    lab.live(3)
    assert (row.state, row.waits_for) == ("MAINTENANCE_COMPLETE", "the answer of ada")
    assert (vm.state, ready.state, ready.owner) == (VMState.DESTROYED, VMState.RUNNING, "ada")
    (move,) = lab.moves(row)
    assert (move.state, move.replacement, move.how) == ("done", ready.name, "MIGRATE")
    lab.answer(row, "ada", "ACK_MAINTENANCE_COMPLETE")
    lab.until_ended(row)

    assert row.state == "MAINTENANCE_DONE"
    assert lab.notices(row) == [
        ("ada", "MAINTENANCE"),
        ("ada", "PREPARE_MAINTENANCE"),
        ("ada", "INSTANCE_ACTION_DONE"),
        ("root", "IN_MAINTENANCE"),
        ("root", "MAINTENANCE_COMPLETE"),
        ("ada", "MAINTENANCE_COMPLETE"),
    ]


def test_a_move_waits_for_a_vm_to_be_ready(lab: Lab) -> None:
    vm, ready = make_vm(lab.session, "h1"), make_ready(lab.session, "h2")
    row = begin(lab, "h1", state="PREPARE_MAINTENANCE")
    lab.tick()
    ready.state = VMState.RUNNING
    lab.answer(row, "ada", "ACK_PREPARE_MAINTENANCE")
    lab.live(2)
    assert row.state == "PREPARE_MAINTENANCE" and vm.state == VMState.RUNNING
    make_ready(lab.session, "h2")
    lab.live(2)
    assert vm.state == VMState.DESTROYED and [move.state for move in lab.moves(row)] == ["done"]


def test_a_move_of_what_its_owner_gives_back_is_over(lab: Lab) -> None:
    vm, ready = make_vm(lab.session, "h1"), make_ready(lab.session, "h2")
    row = begin(lab, "h1", state="PREPARE_MAINTENANCE")
    lab.tick()
    lab.answer(row, "ada", "ACK_PREPARE_MAINTENANCE")
    with db.transaction() as session:
        ready.state = VMState.RUNNING
        lab.session.flush()
        advancing.advance(session, row.id, lab.engine._workflow_of, MAINTENANCE_REPLIES)
    lab.session.expire_all()
    vm.state = VMState.COMPLETED
    lab.live(2)
    assert row.state != "PREPARE_MAINTENANCE"
    assert [(move.state, move.replacement) for move in lab.moves(row)] in ([("done", None)], [])


@pytest.mark.parametrize("state", ["MAINTENANCE", "PREPARE_MAINTENANCE"])
def test_a_nack_ends_the_session_and_its_host_is_in_service_again(lab: Lab, state: str) -> None:
    make_vm(lab.session, "h1")
    make_ready(lab.session, "h2")
    row = begin(lab, "h1", state=state)
    lab.tick()
    lab.answer(row, "ada", f"NACK_{state}")
    lab.tick()
    assert row.state == "MAINTENANCE_FAILED" and row.reason == f"ada does not agree to {state}: NACK_{state}"
    assert lab.hosts(row) == {"h1": "waiting"} and cordons(lab) == set()


def test_an_answer_before_the_question_counts(lab: Lab) -> None:
    make_vm(lab.session, "h1")
    make_ready(lab.session, "h2")
    row = begin(lab, "h1")
    lab.session.add(
        MaintenanceReply(session_id=row.id, project="ada", state="MAINTENANCE", round=0, answer="ACK_MAINTENANCE")
    )
    lab.tick()
    assert row.state == "PREPARE_MAINTENANCE"
    assert lab.notices(row)[0] == ("ada", "MAINTENANCE")


def test_without_an_answer_in_time_it_fails_or_waits_for_the_end_of_lifetimes_as_wanted(lab: Lab) -> None:
    vm = make_vm(lab.session, "h1")
    make_ready(lab.session, "h2")
    failing = begin(lab, "h1")
    lab.until_ended(failing)
    assert failing.reason == "ada has not answered to MAINTENANCE in time"

    lab.host(failing, "h1").held = False
    lab.session.flush()
    waiting = begin(lab, "h1", hints={"no_answer": "wait"})
    lab.live(100)
    assert (waiting.state, waiting.waits_for) == ("PREPARE_MAINTENANCE", f"h1 to be free of {vm.name} (ada)")
    assert waiting.waits_until == vm.expires
    vm.state = VMState.COMPLETED
    lab.until_ended(waiting)
    assert waiting.state == "MAINTENANCE_DONE"


# Cost


def test_a_look_costs_as_much_for_many_hosts_as_for_few(lab: Lab, statements: Any) -> None:
    costs = []
    for number in (2, 40):
        names = [f"{number}-{each}" for each in range(number)]
        for name in names:
            make_vm(lab.session, name, f"user-{name}")
            make_ready(lab.session, f"other-{name}")
        row = begin(lab, *names, state="PREPARE_MAINTENANCE", hints={"max_unavailable": 1})
        lab.live(2)
        assert row.waits_for
        lab.clock.advance(seconds=3)
        with statements() as sent:
            lab.engine.tick()
        row.due = None
        lab.session.flush()
        costs.append(len(sent))
    assert costs[0] == costs[1] <= 15


def test_a_round_with_nothing_to_do_is_one_read(lab: Lab, statements: Any) -> None:
    make_session(lab.session, ["a"], due=None, state="MAINTENANCE_FAILED")
    lab.session.flush()
    with statements() as sent:
        lab.engine.tick()
    assert len(sent) == 1

"""What workflows see of sessions."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import clock
from labctl.maintenance import view
from labctl.maintenance.models import MaintenanceAction, MaintenanceHost, MaintenanceMove, MaintenanceSession
from labctl.maintenance.states import HostState, InstanceAction, MoveState
from labctl.maintenance.workflow import Progress, View
from labctl.settings import MAINTENANCE_REPLIES
from labctl.vms.models import Cordon

from .factories import make_machine, make_ready, make_reply, make_session, make_vm


def seen(session: Session, row: MaintenanceSession) -> View:
    session.flush()
    return view.build(session, row, MAINTENANCE_REPLIES)


def test_a_view_is_what_the_rows_say(session: Session, stopped_clock: Any) -> None:
    row = make_session(session, ["a", "b"], state="SCALE_IN", hints={"max_unavailable": 2})
    stopped_clock.advance(seconds=5)
    found = seen(session, row)
    assert (found.state, found.entered, found.now) == ("SCALE_IN", row.entered, stopped_clock())
    assert (found.maintenance_at, found.metadata) == (row.maintenance_at, {"max_unavailable": 2})
    assert [(host.name, host.state, host.since) for host in found.hosts] == [
        ("a", HostState.WAITING, None),
        ("b", HostState.WAITING, None),
    ]
    assert found.reply_seconds == MAINTENANCE_REPLIES
    # Nothing was asked for.
    assert (found.downloads, found.pre, found.post, found.reason) == (Progress.DONE, Progress.DONE, Progress.DONE, "")


@pytest.mark.parametrize("state", list(HostState))
def test_a_host_is_out_of_service_since_it_was_begun(session: Session, stopped_clock: Any, state: HostState) -> None:
    row = make_session(session, ["a"])
    make_machine(session, "a", locked_by="ada")
    session.get_one(MaintenanceHost, (row.id, "a")).started = stopped_clock()
    session.get_one(MaintenanceHost, (row.id, "a")).state = state
    (host,) = seen(session, row).hosts
    in_service = state in (HostState.WAITING, HostState.DONE, HostState.SKIPPED)
    assert host.since == (None if in_service else stopped_clock())
    assert bool(host.instances) == (state in (HostState.WAITING, HostState.DRAINING))


def test_what_is_in_use_comes_with_what_can_become_of_it_and_how_far_its_move_is(
    session: Session, stopped_clock: Any
) -> None:
    row = make_session(session, ["h1"])
    for name, owner in (("vm-1", "ada"), ("vm-2", "ada"), ("vm-3", None)):
        make_vm(session, "h1", owner, name=name)
    about = {"session_id": row.id, "host": "h1", "project": "ada", "how": "MIGRATE", "begun": stopped_clock()}
    session.add(MaintenanceMove(instance="vm-2", state="failed", reason="no", **about))
    first, second, third = seen(session, row).hosts[0].instances
    assert (first.id, first.project, first.move) == ("vm-1", "ada", None)
    assert first.allowed == {InstanceAction.MIGRATE, InstanceAction.OWN_ACTION}
    assert first.until == stopped_clock() + timedelta(hours=12)
    assert (second.move, second.move_reason) == (MoveState.FAILED, "no")
    assert (third.project, third.allowed) == ("", frozenset())


@pytest.mark.parametrize(
    ("ready", "replaceable"),
    [
        ([], False),
        ([("h2", "debian")], True),
        ([("h1", "debian")], False),
        ([("h2", "centos")], False),
        ([("h1", "debian"), ("h2", "debian")], True),
    ],
)
def test_vms_are_replaceable_where_one_of_their_pool_is_ready_on_another_hypervisor(
    session: Session, ready: list[tuple[str, str]], replaceable: bool
) -> None:
    make_vm(session, "h1")
    for host, pool in ready:
        make_ready(session, host, pool=pool)
    (host,) = seen(session, make_session(session, ["h1"])).hosts
    assert host.replaceable is replaceable


@pytest.mark.parametrize(
    ("other", "remade"),
    [
        ({"state": "ready", "host": "h1"}, True),
        ({"state": "ready", "host": "h1", "pool": "centos"}, False),
        ({"state": "ready", "host": "h3"}, False),
        ({"state": "pending", "reason": "boots"}, True),
        ({"state": "requested"}, True),
        ({"state": "requested", "reason": "there is no room"}, False),
    ],
)
def test_vms_will_be_replaceable_where_some_are_made_or_would_be_made_anew(
    session: Session, other: dict[str, Any], remade: bool
) -> None:
    make_vm(session, "h1")
    make_vm(session, **{"host": None, "owner": None, **other})
    session.add(Cordon(host="h3", reason="test", since=clock.now()))
    (host,) = seen(session, make_session(session, ["h1"])).hosts
    assert (host.replaceable, host.remade) == (False, remade)


def test_every_pool_of_a_host_needs_one_and_what_cannot_be_moved_needs_none(session: Session) -> None:
    make_vm(session, "h1")
    make_vm(session, "h1", pool="centos")
    make_vm(session, "h2", None)
    make_machine(session, "h3", locked_by="ada")
    make_ready(session, "h4")
    hosts = seen(session, make_session(session, ["h1", "h2", "h3"])).hosts
    assert [host.replaceable for host in hosts] == [False, True, True]
    make_ready(session, "h4", pool="centos")
    assert [host.replaceable for host in seen(session, make_session(session, ["h1-2"])).hosts] == [True]


def test_replies(session: Session, stopped_clock: Any) -> None:
    row = make_session(session)
    make_reply(session, row.id, "ada", "MAINTENANCE", answer="ACK_MAINTENANCE")
    make_reply(session, row.id, "bob", "MAINTENANCE", answer="ACK_SCALE_IN")
    make_reply(session, row.id, "eve", "MAINTENANCE", round=2)
    asked = {"host": "h1", "answer": "ACK_PLANNED_MAINTENANCE", "instance_actions": {"vm": "MIGRATE", "x": "EAT"}}
    make_reply(session, row.id, "ada", "PLANNED_MAINTENANCE", **asked)
    make_reply(session, row.id, "ada", "SCALE_IN", round=0, asked=None, reply_by=None, answer="NACK_SCALE_IN")
    found = {key: (reply.agrees, reply.answer) for key, reply in seen(session, row).replies.items()}
    assert found == {
        ("ada", "MAINTENANCE", "", 1): (True, "ACK_MAINTENANCE"),
        ("bob", "MAINTENANCE", "", 1): (False, "ACK_SCALE_IN"),
        ("eve", "MAINTENANCE", "", 2): (None, ""),
        ("ada", "PLANNED_MAINTENANCE", "h1", 1): (True, "ACK_PLANNED_MAINTENANCE"),
        ("ada", "SCALE_IN", "", 0): (False, "NACK_SCALE_IN"),
    }
    said = seen(session, row).replies["ada", "PLANNED_MAINTENANCE", "h1", 1]
    assert said.instance_actions == {"vm": InstanceAction.MIGRATE}
    assert said.reply_by == stopped_clock() + timedelta(minutes=1)


def dummy(kind: str) -> dict[str, Any]:
    return {"plugin": "dummy", "type": kind, "metadata": {}}


@pytest.mark.parametrize(
    ("actions", "gate", "expected"),
    [
        ([], "none", (Progress.DONE, Progress.DONE, Progress.DONE)),
        ([], "ping", (Progress.DONE, Progress.DONE, Progress.NONE)),
        ([dummy("pre")], "none", (Progress.NONE, Progress.DONE, Progress.DONE)),
        ([dummy("host")], "none", (Progress.DONE, Progress.NONE, Progress.DONE)),
        ([dummy("check")], "none", (Progress.DONE, Progress.DONE, Progress.NONE)),
    ],
)
def test_what_nobody_wants_is_done_before_it_has_begun(
    session: Session, actions: Any, gate: str, expected: Any
) -> None:
    found = seen(session, make_session(session, ["a"], actions=actions, hints={"gate": gate}))
    assert (found.pre, found.hosts[0].actions, found.hosts[0].check) == expected


def test_why_an_action_failed_is_told(session: Session) -> None:
    row = make_session(session, ["a"], actions=[dummy("pre"), dummy("host")])
    for number, kind, host in ((0, "pre", ""), (1, "host", "a")):
        about = {"session_id": row.id, "number": number, "host": host, "attempt": 1, "plugin": "dummy", "type": kind}
        session.add(MaintenanceAction(**about, state="failed", reason=f"no {kind}"))
    found = seen(session, row)
    assert (found.pre, found.reason) == (Progress.FAILED, "dummy: no pre")
    assert (found.hosts[0].actions, found.hosts[0].reason) == (Progress.FAILED, "dummy: no host")


def test_a_view_is_built_in_as_many_statements_for_many_hosts_as_for_few(session: Session, statements: Any) -> None:
    costs = []
    for number in (2, 60):
        names = [f"{number}-{each}" for each in range(number)]
        for name in names:
            make_vm(session, name, f"user-{name}")
            make_ready(session, f"other-{name}")
        row = make_session(session, names, actions=[dummy("host")])
        for name in names:
            make_reply(session, row.id, f"user-{name}", "MAINTENANCE")
        session.refresh(row)
        with statements() as sent:
            found = view.build(session, row, MAINTENANCE_REPLIES)
        assert len(found.hosts) == number and all(host.instances and host.replaceable for host in found.hosts)
        costs.append(len(sent))
    assert costs[0] == costs[1] <= 10
    assert session.scalars(select(MaintenanceMove)).all() == []

"""What a session would do."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session

from labctl.errors import Invalid
from labctl.maintenance import known, plan
from labctl.maintenance.service import Wanted
from labctl.maintenance.workflows.default import DefaultWorkflow
from labctl.maintenance.workflows.fake import FakeWorkflow
from labctl.settings import MAINTENANCE_REPLIES

from .factories import make_inventory, make_machine, make_ready, make_session, make_vm


def plan_of(session: Session, *hosts: str, workflow: Any = None, **changes: Any) -> dict[str, Any]:
    values = {"workflow": "default", "maintenance_at": datetime(2030, 1, 2, tzinfo=UTC), "hosts": hosts, **changes}
    found = known.kinds_of(session, hosts) if hosts else known.all_hosts(session)
    kinds = {name: sorted(found[name]) for name in hosts or sorted(found) if name in found}
    return plan.plan(session, Wanted(**values), kinds, workflow or DefaultWorkflow(), MAINTENANCE_REPLIES)


@pytest.fixture
def lab(session: Session) -> Session:
    """Three hypervisors of which one is free, and two machines."""
    make_vm(session, "h1", "ada", name="vm-1")
    make_vm(session, "h1", None, name="vm-2")
    make_vm(session, "h2", "bob", name="vm-3")
    make_ready(session, "h2")
    make_ready(session, "h3")
    make_ready(session, "h3", pool="centos")
    make_machine(session, "m1", locked_by="ada")
    make_machine(session, "m2")
    make_inventory(session, "h1", "h2", "h3", "m1", "m2")
    return session


def test_a_plan_tells_the_order_with_the_free_hosts_first(lab: Session) -> None:
    found = plan_of(lab, "h1", "h2", "h3", "m1", "m2")
    assert [host["host"] for host in found["hosts"]] == ["h3", "m2", "h1", "h2", "m1"]
    assert found["hosts"][0]["kinds"] == ["hypervisor", "inventory"]
    assert [step["hosts"] for step in found["steps"]] == [["h3"], ["m2"], ["h1"], ["h2"], ["m1"]]
    two = plan_of(lab, "h1", "h2", "h3", "m1", "m2", metadata={"max_unavailable": 2})
    assert [step["hosts"] for step in two["steps"]] == [["h3", "m2"], ["h1", "h2"], ["m1"]]


def test_a_plan_tells_who_is_affected(lab: Session) -> None:
    found = plan_of(lab)
    assert found["projects"] == {"ada": {"h1": ["vm-1"], "m1": ["m1"]}, "bob": {"h2": ["vm-3"]}}
    ada, nobody = found["hosts"][2]["instances"]
    assert (ada["instance_id"], ada["project_id"], ada["allowed_actions"]) == ("vm-1", "ada", ["MIGRATE", "OWN_ACTION"])
    assert (nobody["project_id"], nobody["allowed_actions"]) == (None, [])


def test_a_plan_tells_what_is_left_at_each_step(lab: Session) -> None:
    steps = {step["hosts"][0]: step for step in plan_of(lab)["steps"]}
    assert steps["h3"]["pools"] == {"centos": {"ready": 0}, "debian": {"ready": 1}}
    assert steps["h1"]["pools"] == {"centos": {"ready": 1}, "debian": {"ready": 2}}
    assert steps["m2"]["machine_types"] == {"smithi": {"free": 0}}
    assert steps["m1"]["machine_types"] == steps["h1"]["machine_types"] == {"smithi": {"free": 1}}


def test_a_plan_tells_of_pools_of_which_nothing_is_left(lab: Session) -> None:
    make_vm(lab, "h1", "ada", pool="windows")
    assert [step["pools"]["windows"] for step in plan_of(lab, "h1")["steps"]] == [{"ready": 0}]


def test_a_plan_tells_what_stands_against_it(lab: Session) -> None:
    make_machine(lab, "alone")
    other = make_session(lab, ["h2"])
    assert plan_of(lab, "h1", "h2", "alone", "unheard-of")["conflicts"] == [
        {"host": "h2", "reason": "it is in another session", "session_id": other.id},
        {"host": "alone", "reason": "nobody can ask how it is: it is not in the inventory"},
        {"host": "unheard-of", "reason": "there is no such host"},
    ]
    assert plan_of(lab, "h1", "alone", asks_hosts=False)["conflicts"] == []
    with pytest.raises(Invalid, match="workflow: there is none"):
        plan_of(lab, "h1", mistakes=["workflow: there is none"])


@pytest.mark.parametrize(
    ("hosts", "state"),
    [
        (["h1", "h3"], "START_MAINTENANCE"),
        (["h1"], "PREPARE_MAINTENANCE"),
        (["m1"], "PREPARE_MAINTENANCE"),
        (["full"], "SCALE_IN"),
    ],
)
def test_a_plan_tells_the_state_that_would_come_first(lab: Session, hosts: list[str], state: str) -> None:
    make_vm(lab, "full", "eve", pool="rare")
    assert plan_of(lab, *hosts)["state"] == state
    assert plan_of(lab, *hosts, workflow=FakeWorkflow())["state"] == "SCALE_IN"


def test_a_plan_changes_nothing_and_costs_the_same_for_many_hosts(lab: Session, statements: Any) -> None:
    few, many = plan_statements(lab, statements, 2), plan_statements(lab, statements, 40)
    assert len(few) == len(many) <= 7
    assert not [statement for statement in many if "SELECT" not in statement.upper()[:10]]


def plan_statements(lab: Session, statements: Any, number: int) -> Any:
    for each in range(number):
        make_vm(lab, f"{number}-{each}")
    with statements() as sent:
        plan_of(lab, *(f"{number}-{each}" for each in range(number)))
    return sent

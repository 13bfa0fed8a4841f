"""Machines that are VMs on hosts of sessions: they are out of service whenever what they are on is."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl.machines.models import Machine

from .factories import make_machine, make_session
from .lab import Lab

SLOW = [{"plugin": "dummy", "type": "host", "metadata": {"seconds": 5}}]


@pytest.fixture
def lab(session: Session, stopped_clock: Any) -> Lab:
    return Lab(session, stopped_clock)


def machine(lab: Lab, name: str) -> Machine:
    return lab.session.scalars(select(Machine).where(Machine.name == name)).one()


@pytest.mark.parametrize("order", [["h", "v"], ["v", "h"]])
@pytest.mark.parametrize("most", [1, 2])
def test_a_machine_that_is_a_vm_on_a_host_is_out_of_service_with_it_in_its_own_session_too(
    lab: Lab, order: list[str], most: int
) -> None:
    make_machine(lab.session, "h")
    make_machine(lab.session, "v", vm_host="h", is_vm=True)
    row = make_session(lab.session, order, actions=SLOW, hints={"gate": "none", "max_unavailable": most})
    seen = set()
    for _ in range(60):
        lab.tick(seconds=0.5)
        states = lab.hosts(row)
        out = {name for name in "hv" if machine(lab, name).cordoned is not None}
        assert out >= {name for name in "hv" if states[name] in ("draining", "maintaining", "checking")}
        assert out != {"h"}
        seen.add(frozenset(out))
        if row.state == "MAINTENANCE_DONE":
            break
    assert row.state == "MAINTENANCE_DONE" and frozenset("hv") in seen
    assert {(machine(lab, name).cordoned, machine(lab, name).locked) for name in "hv"} == {(None, False)}


def test_a_machine_stays_out_of_service_with_its_host_when_another_session_gives_it_back(lab: Lab) -> None:
    make_machine(lab.session, "h")
    make_machine(lab.session, "v", vm_host="h", is_vm=True)
    mine = make_session(lab.session, ["v"], actions=SLOW)
    lab.live(3)
    long = [{"plugin": "dummy", "type": "host", "metadata": {"seconds": 20}}]
    below = make_session(lab.session, ["h"], actions=long)
    lab.until_ended(mine)
    assert lab.hosts(below) == {"h": "maintaining"}
    assert machine(lab, "v").cordoned == f"maintenance {below.id}"
    lab.until_ended(below)
    assert {(machine(lab, name).cordoned, machine(lab, name).locked) for name in "hv"} == {(None, False)}

"""Which hosts there are, and who uses them."""

from typing import Any

import pytest
from sqlalchemy.orm import Session

from labctl.machines import service as machines
from labctl.maintenance import known
from labctl.maintenance.models import MaintenanceHost
from labctl.maintenance.states import InstanceAction
from labctl.vms import cordon
from labctl.vms.states import VMState

from .factories import make_inventory, make_machine, make_ready, make_session, make_vm


def used(session: Session, *hosts: str) -> list[tuple[str, str, str]]:
    return [(one.host, one.id, one.project) for one in known.instances(session, hosts)]


def test_hosts_are_machines_hypervisors_and_the_inventory_under_one_name(session: Session) -> None:
    make_machine(session, "both")
    make_vm(session, "both")
    make_machine(session, "machine")
    make_vm(session, "hypervisor", state=VMState.READY)
    make_vm(session, "hypervisor")
    make_inventory(session, "both", "inventory")
    expected = {
        "both": {"machine", "hypervisor", "inventory"},
        "machine": {"machine"},
        "hypervisor": {"hypervisor"},
        "inventory": {"inventory"},
    }

    assert known.all_hosts(session) == expected
    assert known.kinds_of(session, [*expected, "unknown"]) == expected
    assert known.kinds_of(session, []) == {}


def test_machines_that_are_down_are_hosts_only_if_they_are_named_and_hypervisors_only_while_they_have_vms(
    session: Session,
) -> None:
    make_machine(session, "down", up=False)
    make_vm(session, "former", state=VMState.DESTROYED)
    make_vm(session, None)

    assert known.all_hosts(session) == {}
    assert known.kinds_of(session, ["down", "former"]) == {"down": {"machine"}}


@pytest.mark.parametrize("state", list(VMState))
def test_only_vms_that_run_are_in_use(session: Session, state: VMState) -> None:
    vm = make_vm(session, "h1", state=state)
    assert used(session, "h1", "h2") == ([("h1", vm.name, "ada")] if state == VMState.RUNNING else [])


def test_who_uses_hosts_by_host_and_name(session: Session) -> None:
    make_vm(session, "h1", "bob", name="vm-2")
    make_vm(session, "h1", None, name="vm-1")
    make_vm(session, "h3", name="vm-3")
    make_machine(session, "h1", locked_by="carol")
    make_machine(session, "h2")
    assert used(session, "h1", "h2") == [("h1", "h1", "carol"), ("h1", "vm-1", ""), ("h1", "vm-2", "bob")]

    machine, nobodys, bobs = known.instances(session, ["h1"])
    assert (machine.allowed, machine.pool, machine.until) == ({InstanceAction.OWN_ACTION}, None, None)
    assert (nobodys.allowed, nobodys.pool) == (frozenset(), "debian")
    assert bobs.allowed == {InstanceAction.OWN_ACTION, InstanceAction.MIGRATE}
    assert bobs.until is not None


def test_a_machine_that_a_session_has_locked_is_not_in_use(session: Session) -> None:
    make_machine(session, "h1")
    machines.cordon(session, "h1", "maintenance s1")
    assert machines.take(session, "h1")
    assert used(session, "h1") == []
    # Somebody who is called so is somebody.
    make_machine(session, "h2", locked_by="maintenance")
    machines.cordon(session, "h2", "maintenance s1")
    assert used(session, "h2") == [("h2", "h2", "maintenance")]


def test_a_machine_that_is_a_vm_is_in_use_on_its_host(session: Session) -> None:
    make_machine(session, "mira001")
    make_machine(session, "vpm001", vm_host="mira001", is_vm=True, locked_by="ada")
    make_machine(session, "vpm002", vm_host="mira001", is_vm=True)
    assert used(session, "mira001") == [("mira001", "vpm001", "ada")]
    assert known.guests(session, "mira001", None) == ["vpm001", "vpm002"]
    machines.cordon(session, "vpm001", "maintenance s1")
    assert known.guests(session, "mira001", None) == ["vpm002"]
    assert known.guests(session, "mira001", "maintenance s1") == ["vpm001"]
    row = make_session(session, ["vpm001"])
    assert known.guests(session, "mira001", "maintenance s1") == ["vpm001"]
    session.get_one(MaintenanceHost, (row.id, "vpm001")).cordoned = True
    session.flush()
    assert known.guests(session, "mira001", "maintenance s1") == []
    # And whether a machine's host is out of service.
    below = make_session(session, ["mira001"])
    assert known.out_below(session, "vpm001") is None
    session.get_one(MaintenanceHost, (below.id, "mira001")).cordoned = True
    session.flush()
    assert known.out_below(session, "vpm001") == below.id
    assert known.out_below(session, "mira001") is None


def test_what_is_ready_is_counted_by_pool_and_hypervisor_in_service(session: Session) -> None:
    for host in ("h1", "h1", "h2"):
        make_ready(session, host)
    make_ready(session, "h3")
    make_ready(session, "h1", pool="centos")
    make_vm(session, "h1")
    cordon.cordon(session, "h3", "maintenance s1")
    make_ready(session, "h3")
    assert known.ready(session) == {"debian": {"h1": 2, "h2": 1}, "centos": {"h1": 1}}


def test_free_machines_by_type(session: Session) -> None:
    make_machine(session, "a")
    make_machine(session, "b")
    make_machine(session, "c", locked_by="ada")
    make_machine(session, "d", up=False)
    make_machine(session, "e", machine_type="mira")
    make_machine(session, "f", cordoned="maintenance s1")
    assert known.free_machines(session) == {"smithi": 2, "mira": 1}
    assert known.free_among(session, ["a", "c", "e", "x"]) == {"a": "smithi", "e": "mira"}


def test_each_question_is_one_statement_whatever_the_number_of_hosts(session: Session, statements: Any) -> None:
    hosts = [f"h{number}" for number in range(50)]
    for host in hosts:
        make_vm(session, host)
    for ask in (
        lambda: known.instances(session, hosts),
        lambda: known.kinds_of(session, hosts),
        lambda: known.all_hosts(session),
        lambda: known.ready(session),
    ):
        with statements() as sent:
            ask()
        assert len(sent) == 1

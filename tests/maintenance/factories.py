"""Sessions as the API would have made them, and the lab around them, with sensible defaults."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import count
from typing import Any

from sqlalchemy.orm import Session

from labctl import clock
from labctl.machines.models import Machine
from labctl.maintenance.models import MaintenanceHost, MaintenanceReply, MaintenanceSession
from labctl.remote.models import RemoteHost
from labctl.vms.models import VM
from labctl.vms.states import VMState
from tests.vms.factories import make_vm as make_pool_vm

_numbers = count(1)


def make_session(session: Session, hosts: Sequence[str] = (), **changes: Any) -> MaintenanceSession:
    """Add a session that begins now, by the fake workflow, without a look at hosts."""
    now = clock.now()
    values: dict[str, Any] = {
        "id": f"00000000-0000-1000-8000-{next(_numbers):012}",
        "workflow": "fake",
        "state": "MAINTENANCE",
        "entered": now,
        "maintenance_at": now,
        "hints": {"gate": "none"},
        "actions": [],
        "created": now,
        "created_by": "root",
        "base_url": "http://lab/v1/maintenance",
        "due": now,
    }
    row = MaintenanceSession(**{**values, **changes})
    session.add(row)
    session.flush()
    for position, name in enumerate(hosts):
        session.add(MaintenanceHost(session_id=row.id, host=name, position=position))
    session.flush()
    return row


def make_machine(session: Session, name: str, **changes: Any) -> Machine:
    """Add a machine that is up and free; with ``locked_by``, it is locked."""
    values: dict[str, Any] = {"up": True, "machine_type": "smithi"}
    if changes.get("locked_by"):
        values |= {"locked": True, "locked_since": clock.now()}
    machine = Machine(name=name, **{**values, **changes})
    session.add(machine)
    session.flush()
    return machine


def make_vm(session: Session, host: str, owner: str | None = "ada", **changes: Any) -> VM:
    """Add a VM on a hypervisor that somebody has, for twelve hours."""
    return make_pool_vm(
        session, **{"host": host, "owner": owner, "pool": "debian", "state": VMState.RUNNING, **changes}
    )


def make_ready(session: Session, host: str, **changes: Any) -> VM:
    """Add a VM on a hypervisor that waits in its pool."""
    return make_vm(session, host, None, state=VMState.READY, **changes)


def make_inventory(session: Session, *names: str) -> None:
    """Add hosts to the inventory."""
    session.add_all([RemoteHost(name=name) for name in names])
    session.flush()


def make_reply(session: Session, sid: str, project: str, state: str, **changes: Any) -> MaintenanceReply:
    """Add a question that waits for its answer for a minute."""
    now = clock.now()
    values: Mapping[str, Any] = {"asked": now, "reply_by": now + timedelta(minutes=1)}
    row = MaintenanceReply(session_id=sid, project=project, state=state, **{**values, **changes})
    session.add(row)
    session.flush()
    return row

"""A lab with hosts, and requests as clients send them."""

from typing import Any

from sqlalchemy.orm import Session

from labctl import clock
from labctl.machines.models import Machine
from labctl.maintenance.models import MaintenanceReply
from labctl.remote.models import RemoteHost, RemoteInventory
from labctl.tokens import service as tokens
from labctl.vms.models import VM
from labctl.vms.states import VMState
from tests.vms.factories import make_vm

URLS = ("/v1/maintenance", "/api/maintenance")
#: As it stands in the documentation of the protocol, with what labctl has installed.
SESSION: dict[str, Any] = {
    "hosts": ["host1", "host2"],
    "state": "MAINTENANCE",
    "maintenance_at": "2018-02-28 06:06:03",
    "metadata": {"openstack_release": "Queens"},
    "workflow": "default",
}
ACTIONS = [
    {"plugin": "dummy", "type": "pre"},
    {"plugin": "command", "type": "host", "metadata": {"command": "apt-get upgrade"}},
    {"plugin": "check", "type": "check"},
    {"plugin": "dummy", "type": "post", "metadata": {"seconds": 1}},
]


def add_hosts(session: Session, *names: str) -> None:
    """Add machines that remote operations reach."""
    for name in names or ("host1", "host2", "host3"):
        session.add_all([Machine(name=name, up=True, machine_type="smithi"), RemoteHost(name=name)])
    if session.get(RemoteInventory, 1) is None:
        session.add(RemoteInventory(id=1, read=clock.now()))
    session.flush()


def running(session: Session, host: str, owner: str | None = "alice", **changes: Any) -> VM:
    """Add a VM that somebody has on a host."""
    return make_vm(session, state=VMState.RUNNING, host=host, owner=owner, **changes)


def credential(session: Session, name: str, **what: Any) -> dict[str, str]:
    """Make a user, and give what proves them."""
    tokens.add_user(session, name, **what)
    return {"X-Auth-Token": tokens.create_token(session, name)}


def ask(session: Session, sid: str, project: str, state: str, **changes: Any) -> MaintenanceReply:
    """Ask a project something, as the engine does."""
    reply = MaintenanceReply(session_id=sid, project=project, state=state, **{"asked": clock.now(), **changes})
    session.add(reply)
    session.flush()
    return reply

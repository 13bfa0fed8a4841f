"""Which hosts there are, by the one name that machines, hypervisors and the inventory share, and who uses them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, Text, and_, any_, bindparam, exists, func, literal, null, or_, select, union_all
from sqlalchemy.orm import Session

from labctl.db import Reader, table
from labctl.machines.models import Machine
from labctl.maintenance.models import MaintenanceHost
from labctl.maintenance.states import InstanceAction
from labctl.remote.models import RemoteHost
from labctl.vms.models import VM, Cordon
from labctl.vms.states import VMState, WorkKind

#: What each provider of VMs can do.
Capabilities = Mapping[str, frozenset[str]]
NOTHING: Capabilities = {}
MACHINE, HYPERVISOR, INVENTORY = "machine", "hypervisor", "inventory"

_machines = table(Machine)
_vms = table(VM)
_cordons = table(Cordon)
_remote = table(RemoteHost)
_hosts = table(MaintenanceHost)
_names = bindparam("these_names", type_=ARRAY(Text))

# Built once: putting a statement together costs as much as sending it.
_there = _vms.c.state != VMState.DESTROYED
_KINDS = union_all(
    select(_machines.c.name, literal(MACHINE).label("kind")).where(_machines.c.name == any_(_names)),
    select(_vms.c.host, literal(HYPERVISOR)).where(_vms.c.host == any_(_names), _there).distinct(),
    select(_remote.c.name, literal(INVENTORY)).where(_remote.c.name == any_(_names)),
)
_ALL = union_all(
    select(_machines.c.name, literal(MACHINE).label("kind")).where(_machines.c.up),
    select(_vms.c.host, literal(HYPERVISOR)).where(_vms.c.host.is_not(None), _there).distinct(),
    select(_remote.c.name, literal(INVENTORY)),
)
# Locked, but not by the session that has it.
_in_use = and_(_machines.c.locked, _machines.c.locked_by.is_distinct_from(_machines.c.cordoned))
_machine_of = {
    "id": _machines.c.name,
    "project": _machines.c.locked_by,
    "pool": literal(None, Text),
    "until": null(),
    "provider": null(),
}
_INSTANCES = union_all(
    select(
        _vms.c.host,
        _vms.c.name.label("id"),
        func.coalesce(_vms.c.owner, "").label("project"),
        _vms.c.pool,
        _vms.c.expires.label("until"),
        _vms.c.provider,
    ).where(_vms.c.host == any_(_names), _vms.c.state == VMState.RUNNING),
    select(_machines.c.name, *_machine_of.values()).where(_machines.c.name == any_(_names), _in_use),
    # Machines that are VMs themselves.
    select(_machines.c.vm_host, *_machine_of.values()).where(
        _machines.c.vm_host == any_(_names), _machines.c.vm_host != _machines.c.name, _in_use
    ),
)
_READY = (
    select(_vms.c.pool, func.coalesce(_vms.c.host, "").label("host"), func.count().label("number"))
    .where(
        _vms.c.state == VMState.READY,
        or_(_vms.c.host.is_(None), ~select(_cordons.c.host).where(_cordons.c.host == _vms.c.host).exists()),
    )
    .group_by(_vms.c.pool, _vms.c.host)
)
_HAS_READY = select(exists().where(_vms.c.host == bindparam("this_host"), _vms.c.state == VMState.READY))
# One that could not be made for want of room, or for anything else, has a reason.
_COMING = (
    select(_vms.c.pool)
    .where(
        _vms.c.request_id.is_(None),
        or_(_vms.c.state == VMState.PENDING, and_(_vms.c.state == VMState.REQUESTED, _vms.c.reason.is_(None))),
    )
    .distinct()
)
_free = and_(_machines.c.up, ~_machines.c.locked, _machines.c.cordoned.is_(None))
_FREE = (
    select(_machines.c.machine_type, func.count().label("number"))
    .where(_free, _machines.c.machine_type.is_not(None))
    .group_by(_machines.c.machine_type)
)
_FREE_THESE = select(_machines.c.name, _machines.c.machine_type).where(_free, _machines.c.name == any_(_names))
_out = select(_hosts.c.host).where(_hosts.c.host == _machines.c.name, _hosts.c.cordoned).exists()
_GUESTS = select(_machines.c.name).where(
    _machines.c.vm_host == bindparam("this_host"),
    _machines.c.vm_host != _machines.c.name,
    _machines.c.cordoned.is_not_distinct_from(bindparam("this_reason", type_=Text)),
    ~_out,
)
_BELOW = (
    select(_hosts.c.session_id)
    .join_from(_machines, _hosts, _hosts.c.host == _machines.c.vm_host)
    .where(_machines.c.name == bindparam("this_name"), _machines.c.vm_host != _machines.c.name, _hosts.c.cordoned)
    .limit(1)
)


@dataclass(frozen=True)
class Used:
    """Something in use on a host: a VM, or a machine that somebody has locked."""

    host: str
    id: str
    #: Whose it is; empty: nobody's.
    project: str
    #: The pool of a VM; None: it is a machine.
    pool: str | None
    until: datetime | None
    #: What its provider can do with it.
    can: frozenset[str]

    @property
    def replaced(self) -> bool:
        """Tell whether to move it is to give its owner another VM instead."""
        return bool(self.project) and self.pool is not None and WorkKind.MIGRATE not in self.can

    @property
    def allowed(self) -> frozenset[InstanceAction]:
        """Say what can become of it; what is nobody's is only waited for."""
        if not self.project:
            return frozenset()
        if self.pool is None:
            return frozenset((InstanceAction.OWN_ACTION,))
        live = {InstanceAction.LIVE_MIGRATE} if WorkKind.LIVE_MIGRATE in self.can else set()
        return frozenset((InstanceAction.MIGRATE, InstanceAction.OWN_ACTION, *live))


def all_hosts(reader: Reader) -> Mapping[str, frozenset[str]]:
    """Give all hosts that sessions find by themselves, and what each is: machines, if they are up, and all others."""
    return _by_name(reader.execute(_ALL).all())


def kinds_of(reader: Reader, names: Collection[str]) -> Mapping[str, frozenset[str]]:
    """Tell what these hosts are; those that nobody knows are left out."""
    return _by_name(reader.execute(_KINDS, {"these_names": list(names)}).all())


def _by_name(rows: Iterable[Sequence[str]]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for name, kind in rows:
        found[name] = found.get(name, frozenset()) | {kind}
    return found


def instances(reader: Reader, hosts: Collection[str], can: Capabilities = NOTHING) -> list[Used]:
    """List what is in use on hosts, by host and name."""
    rows = reader.execute(_INSTANCES, {"these_names": list(hosts)})
    used = (
        Used(row.host, row.id, row.project, row.pool, row.until, can.get(row.provider, frozenset())) for row in rows
    )
    return sorted(used, key=lambda used: (used.host, used.id))


def ready(reader: Reader) -> Mapping[str, Mapping[str, int]]:
    """Count the ready VMs of each pool by the hypervisors in service that they are on; empty: nobody knows where."""
    found: dict[str, dict[str, int]] = {}
    for row in reader.execute(_READY):
        found.setdefault(row.pool, {})[row.host] = row.number
    return found


def has_ready(reader: Reader, host: str) -> bool:
    """Tell whether a VM on a host is ready to be given out."""
    return bool(reader.execute(_HAS_READY, {"this_host": host}).scalar())


def coming(reader: Reader) -> frozenset[str]:
    """Name the pools of which VMs are being made."""
    return frozenset(reader.execute(_COMING).scalars())


def free_machines(reader: Reader) -> Mapping[str, int]:
    """Count the machines of each type that anybody could lock now."""
    return {row.machine_type: row.number for row in reader.execute(_FREE)}


def free_among(reader: Reader, hosts: Collection[str]) -> Mapping[str, str | None]:
    """Give those of the hosts that are machines which anybody could lock now, with their types."""
    return {row.name: row.machine_type for row in reader.execute(_FREE_THESE, {"these_names": list(hosts)})}


def guests(session: Session, host: str, reason: str | None) -> list[str]:
    """Name the machines that are VMs on a host and cordoned for that reason, None: not at all.

    Those that are out of service for a session's own sake are left out.
    """
    return sorted(session.execute(_GUESTS, {"this_host": host, "this_reason": reason}).scalars())


def out_below(session: Session, name: str) -> str | None:
    """Name the session that has the host out of service on which a machine is a VM."""
    sid: str | None = session.execute(_BELOW, {"this_name": name}).scalar()
    return sid

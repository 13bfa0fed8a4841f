"""What a session would do, told without doing any of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ARRAY, Text, any_, bindparam, select

from labctl import clock
from labctl.db import Reader, table
from labctl.errors import Invalid
from labctl.maintenance import known
from labctl.maintenance.models import MaintenanceHost
from labctl.maintenance.service import Wanted
from labctl.maintenance.states import FIRST, HostState, InstanceAction
from labctl.maintenance.workflow import Host, Instance, Progress, Reply, View, Workflow
from labctl.maintenance.workflows import hints

_hosts = table(MaintenanceHost)
_HELD = select(_hosts.c.host, _hosts.c.session_id).where(
    _hosts.c.held, _hosts.c.host == any_(bindparam("these_names", type_=ARRAY(Text)))
)


def plan(
    reader: Reader,
    wanted: Wanted,
    kinds: Mapping[str, Sequence[str]],
    workflow: Workflow,
    reply_seconds: Mapping[str, float],
    can: known.Capabilities = known.NOTHING,
) -> dict[str, Any]:
    """Tell in which order hosts would be maintained, who would be affected, what would be left, what stands against it.

    ``kinds``: what the hosts are, in the order of the session; those that nobody knows are left out. Raises
    :class:`Invalid` for a request that could not be made.
    """
    if wanted.mistakes:
        raise Invalid("; ".join(wanted.mistakes))
    used: dict[str, list[known.Used]] = {name: [] for name in kinds}
    for one in known.instances(reader, list(kinds), can):
        used[one.host].append(one)
    ready = known.ready(reader)
    made = ready.keys() | known.coming(reader)
    hosts = [_host(name, used[name], ready, made) for name in kinds]
    # Those that nobody uses come first.
    order = sorted(hosts, key=lambda host: bool(host.instances))
    most = hints.read(wanted.metadata).max_unavailable
    batches = [order[start : start + most] for start in range(0, len(order), most)]
    return {
        "state": _first_state(workflow, wanted, hosts, reply_seconds),
        "maintenance_at": _written(max(wanted.maintenance_at, clock.now())),
        "max_unavailable": most,
        "hosts": [_to_plain(host, kinds[host.name]) for host in order],
        "projects": _projects(order),
        "steps": _steps(
            reader, batches, {**{one.pool: {} for each in used.values() for one in each if one.pool}, **ready}
        ),
        "conflicts": _conflicts(reader, wanted, kinds),
    }


def _host(name: str, used: Sequence[known.Used], ready: Mapping[str, Mapping[str, int]], made: Collection[str]) -> Host:
    pools = {one.pool for one in used if one.pool is not None and one.replaced}
    return Host(
        name,
        HostState.WAITING,
        tuple(Instance(one.id, one.project, one.allowed, one.until, one.replaced) for one in used),
        replaceable=all(_elsewhere(ready.get(pool, {}), {name}) for pool in pools),
        remade=pools <= set(made),
    )


def _elsewhere(ready: Mapping[str, int], hosts: Iterable[str]) -> int:
    hosts = set(hosts)
    return sum(number for name, number in ready.items() if name not in hosts)


def _first_state(
    workflow: Workflow, wanted: Wanted, hosts: Sequence[Host], reply_seconds: Mapping[str, float]
) -> str | None:
    """Ask the workflow where it would go if its time had come and everybody agreed; None: it would go nowhere."""
    now = clock.now()
    projects = {one.project for host in hosts for one in host.instances if one.project}
    seen = View(
        state=FIRST,
        entered=now,
        now=now,
        maintenance_at=now,
        metadata=wanted.metadata,
        hosts=tuple(hosts),
        replies={(project, FIRST, "", 1): Reply(now, now, True) for project in projects},
        reply_seconds=reply_seconds,
        pre=Progress.DONE,
        post=Progress.DONE,
    )
    return workflow.steps[FIRST](seen).state


def _to_plain(host: Host, kinds: Sequence[str]) -> dict[str, Any]:
    return {
        "host": host.name,
        "kinds": list(kinds),
        "instances": [
            {
                "instance_id": one.id,
                "project_id": one.project or None,
                "allowed_actions": [str(action) for action in InstanceAction if action in one.allowed],
                "until": _written(one.until),
            }
            for one in host.instances
        ],
        "replaceable": host.replaceable,
    }


def _projects(hosts: Iterable[Host]) -> dict[str, dict[str, list[str]]]:
    """List what each project has, host by host."""
    found: dict[str, dict[str, list[str]]] = {}
    for host in hosts:
        for one in host.instances:
            if one.project:
                found.setdefault(one.project, {}).setdefault(host.name, []).append(one.id)
    return dict(sorted(found.items()))


def _steps(
    reader: Reader, batches: Sequence[Sequence[Host]], ready: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Tell what is left for everybody else while some hosts at a time are out of service."""
    free = known.free_machines(reader)
    types = known.free_among(reader, [host.name for batch in batches for host in batch])
    steps = []
    for batch in batches:
        names = [host.name for host in batch]
        out = [types[name] for name in names if name in types]
        steps.append(
            {
                "hosts": names,
                "pools": {pool: {"ready": _elsewhere(on, names)} for pool, on in sorted(ready.items())},
                "machine_types": {kind: {"free": number - out.count(kind)} for kind, number in sorted(free.items())},
            }
        )
    return steps


def _conflicts(reader: Reader, wanted: Wanted, kinds: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """List why the session could not begin, host by host."""
    names = list(dict.fromkeys([*wanted.hosts, *kinds]))
    held = {row.host: row.session_id for row in reader.execute(_HELD, {"these_names": names})}
    found = []
    for name in names:
        if name not in kinds:
            found.append({"host": name, "reason": "there is no such host"})
        elif wanted.asks_hosts and "inventory" not in kinds[name]:
            found.append({"host": name, "reason": "nobody can ask how it is: it is not in the inventory"})
        if name in held:
            found.append({"host": name, "reason": "it is in another session", "session_id": held[name]})
    return found


def _written(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")

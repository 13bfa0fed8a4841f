"""Views of sessions as tests write them: short, with sensible defaults."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from labctl.maintenance.states import FIRST, HostState, InstanceAction
from labctl.maintenance.workflow import Host, Instance, Progress, Reply, View

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECONDS = {
    "MAINTENANCE": 20.0,
    "SCALE_IN": 60.0,
    "PREPARE_MAINTENANCE": 60.0,
    "PLANNED_MAINTENANCE": 60.0,
    "MAINTENANCE_COMPLETE": 60.0,
}
#: What can become of a VM; of a machine that somebody has locked.
VM = frozenset((InstanceAction.MIGRATE, InstanceAction.OWN_ACTION))
MACHINE = frozenset((InstanceAction.OWN_ACTION,))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def vm(name: str, project: str = "ada", **changes: Any) -> Instance:
    """A VM that ends in an hour; one of nobody can only be waited for."""
    values = {"allowed": VM if project else frozenset(), "until": at(3600), **changes}
    return Instance(name, project, **values)


def machine(name: str, project: str = "ada") -> Instance:
    return Instance(name, project, MACHINE)


def host(name: str, state: str = "waiting", *instances: Instance, **changes: Any) -> Host:
    """A host; one that is out of service is so since ten seconds."""
    values: dict[str, Any] = {} if state in ("waiting", "skipped", "done") else {"since": at(-10)}
    return Host(name, HostState(state), instances, **{**values, **changes})


def reply(agrees: bool | None = None, /, asked: float | None = -5, by: float = 15, **changes: Any) -> Reply:
    """A reply to what was asked five seconds ago."""
    when = None if asked is None else at(asked)
    return Reply(when, None if asked is None else at(by), agrees, **changes)


def replies(state: str, /, host: str = "", round: int = 1, **by_project: Reply) -> dict[Any, Reply]:
    return {(project, state, host, round): reply for project, reply in by_project.items()}


def view(state: str = FIRST, *hosts: Host, metadata: Mapping[str, Any] = {}, **changes: Any) -> View:
    """A session that entered its state ten seconds ago, and whose time has come."""
    values: dict[str, Any] = {
        "entered": at(-10),
        "now": NOW,
        "maintenance_at": at(-10),
        "replies": {},
        "reply_seconds": SECONDS,
        "pre": Progress.DONE,
        "post": Progress.DONE,
    }
    return View(state=state, metadata=metadata, hosts=hosts, **{**values, **changes})

"""Reading sessions: all that is known of one in one statement, however many hosts it has."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, Text, bindparam, func, literal_column, select

from labctl.db import Reader, table
from labctl.errors import NotFound
from labctl.maintenance import known
from labctl.maintenance.models import (
    MaintenanceAction,
    MaintenanceDownload,
    MaintenanceHost,
    MaintenanceMove,
    MaintenanceReply,
    MaintenanceSession,
    MaintenanceStep,
)
from labctl.maintenance.states import HostState

#: What a session is called that does not exist, or no longer; clients know these words.
UNKNOWN = "Invalid session"
#: In these states projects are asked about the hosts that are being emptied, in others about all of them.
OF_ONE_HOST = frozenset(("PREPARE_MAINTENANCE", "PLANNED_MAINTENANCE"))

# Built once: putting a statement together costs as much as sending it.
_sessions = table(MaintenanceSession)
_hosts = table(MaintenanceHost)
_steps = table(MaintenanceStep)
_sid = bindparam("this_sid", type_=Text)
_of_sid = (_sessions.c.id == _sid, _sessions.c.deleted.is_(None))


def _list(rows: Any) -> Any:
    """Give the rows of a query as one value, a JSON list of objects."""
    rows = rows.subquery()
    return select(func.coalesce(func.json_agg(rows.table_valued(), type_=JSON), literal_column("'[]'::json")))


def _all(model: Any, *columns: str, order: Sequence[str]) -> Any:
    source = table(model)
    rows = select(*(source.c[name] for name in columns)).where(source.c.session_id == _sid)
    return _list(rows.order_by(*(source.c[name] for name in order))).scalar_subquery()


_newest_steps = (
    select(_steps.c.id, _steps.c.at, _steps.c.state, _steps.c.host, _steps.c.text)
    .where(_steps.c.session_id == _sid)
    .order_by(_steps.c.id.desc())
    .limit(bindparam("steps"))
    .subquery()
)
_ONE = select(
    *(column for column in _sessions.c if column.name not in ("actions", "due", "base_url", "deleted")),
    _all(
        MaintenanceHost,
        *("host", "state", "kinds", "cordoned", "reason", "attempt", "started", "finished"),
        order=("position", "host"),
    ).label("hosts"),
    _all(
        MaintenanceAction,
        *("host", "plugin", "type", "state", "reason", "attempt", "started", "deadline", "finished", "jobs"),
        order=("host", "attempt", "type", "plugin", "number"),
    ).label("all_actions"),
    _all(
        MaintenanceDownload,
        *("url", "sha256", "state", "reason", "path", "size", "finished"),
        order=("position",),
    ).label("downloads"),
    _all(
        MaintenanceReply,
        *("project", "state", "host", "round", "asked", "reply_by", "instances", "allowed_actions"),
        *("answer", "instance_actions", "answered", "answered_by"),
        order=("asked", "project", "state", "host", "round"),
    ).label("replies"),
    _all(
        MaintenanceMove,
        *("instance", "host", "project", "how", "state", "moved_to", "replacement", "reason", "begun", "finished"),
        order=("begun", "instance"),
    ).label("moves"),
    _list(select(_newest_steps).order_by(_newest_steps.c.id)).scalar_subquery().label("steps"),
).where(*_of_sid)
_LIST = (
    select(_sessions.c.id)
    .where(_sessions.c.deleted.is_(None))
    .order_by(_sessions.c.created.desc(), _sessions.c.id.desc())
    .limit(bindparam("count"))
    .offset(bindparam("skip"))
)
_draining = (
    select(_hosts.c.host)
    .where(_hosts.c.session_id == _sid, _hosts.c.state == HostState.DRAINING)
    .order_by(_hosts.c.position)
)
_HOSTS = select(
    _sessions.c.state,
    select(func.array_agg(_hosts.c.host)).where(_hosts.c.session_id == _sid).scalar_subquery().label("all"),
    func.array(_draining.scalar_subquery()).label("draining"),
).where(*_of_sid)


def sessions(session: Reader, count: int, skip: int) -> list[str]:
    """List the ids of sessions, the newest first."""
    return list(session.scalars(_LIST, {"count": count, "skip": skip}))


def one(session: Reader, sid: str, steps: int) -> Any:
    """Give all that is known of a session, with the last ``steps`` of its steps; raises :class:`NotFound`.

    What there are several of are lists of objects as JSON has them: their times are text.
    """
    found = session.execute(_ONE, {"this_sid": sid, "steps": steps}).first()
    if found is None:
        raise NotFound(UNKNOWN)
    return found


def affected(session: Reader, sid: str, project: str) -> list[str]:
    """List what a project uses on the hosts of a session, or on those that are being emptied, if some are.

    Raises :class:`NotFound`.
    """
    found = session.execute(_HOSTS, {"this_sid": sid}).first()
    if found is None:
        raise NotFound(UNKNOWN)
    hosts = found.draining if found.state in OF_ONE_HOST else found.all
    return [instance.id for instance in known.instances(session, hosts or []) if instance.project == project]

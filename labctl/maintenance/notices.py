"""What projects are told, where they want to be told it, and what they are asked: rows that tasks deliver."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from sqlalchemy import and_, case, delete, exists, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, aliased

from labctl import clock, lease, queue
from labctl.db import LABCTL, Actor, Reader, table
from labctl.errors import NotFound
from labctl.events.service import record
from labctl.maintenance.models import (
    MaintenanceNotice,
    MaintenanceReply,
    MaintenanceSession,
    MaintenanceStep,
    MaintenanceSubscription,
)
from labctl.maintenance.workflow import Notify

log = logging.getLogger(__name__)

#: Seconds after which a notice is sent again, the first time and at the most; and for how long at the least.
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
AT_LEAST = timedelta(minutes=5)
TASK = "maintenance.deliver"
#: What projects are told without being asked anything.
MOVED = "INSTANCE_ACTION_DONE"

_notices = table(MaintenanceNotice)
_replies = table(MaintenanceReply)
_sessions = table(MaintenanceSession)
_steps = table(MaintenanceStep)
_subscriptions = table(MaintenanceSubscription)


# Telling


def notify(session: Session, sid: str, wanted: Notify) -> None:
    """Ask a project to agree with a state, once; an answer that came before counts. The session's row is locked."""
    if not _ask(session, sid, wanted):
        return
    found = session.execute(_ABOUT.where(_sessions.c.id == sid)).one()
    here = f"{found.base_url}/{sid}/{quote(wanted.project, safe='')}"
    body = {
        "project_id": wanted.project,
        "instance_ids": here,
        "allowed_actions": [str(action) for action in wanted.allowed_actions],
        "state": wanted.state,
        "actions_at": _written(wanted.actions_at),
        "reply_at": _written(wanted.reply_by),
        "session_id": sid,
        "metadata": found.hints,
        "reply_url": here,
    }
    about = f" about {wanted.host}" if wanted.host else ""
    text = f"told {wanted.project} of {wanted.state}{about}, and asked for an answer by {_written(wanted.reply_by)}"
    _say(session, sid, found.state, wanted.host or None, text)
    told = {"project": wanted.project, "state": wanted.state, "host": wanted.host, "round": wanted.round}
    record(session, "maintenance.asked", f"maintenance/{sid}", **told, instances=list(wanted.instances))
    _put(session, sid, wanted.project, body, wanted.reply_by)


def tell_done(session: Session, sid: str, project: str, instance_ids: Sequence[str]) -> None:
    """Tell a project that something was done with some of its instances, as it has wanted; nothing is asked."""
    found = session.execute(_ABOUT.where(_sessions.c.id == sid)).one()
    body = {
        "project_id": project,
        "instance_ids": list(instance_ids),
        "allowed_actions": [],
        "state": MOVED,
        "actions_at": None,
        "reply_at": None,
        "session_id": sid,
        "metadata": found.hints,
        "reply_url": f"{found.base_url}/{sid}/{quote(project, safe='')}",
    }
    _put(session, sid, project, body, clock.now())


def host_state(session: Session, sid: str, host: str, state: str) -> None:
    """Tell whoever made a session that a host is in maintenance, or that this is complete."""
    creator = session.execute(_ABOUT.where(_sessions.c.id == sid)).one().created_by
    _put(session, sid, creator, {"project_id": creator, "host": host, "state": state, "session_id": sid}, clock.now())


_ABOUT = select(_sessions.c.state, _sessions.c.base_url, _sessions.c.hints, _sessions.c.created_by)


def _ask(session: Session, sid: str, wanted: Notify) -> bool:
    """Write down what is asked; gives whether it was not asked before."""
    same = and_(_replies.c.session_id == sid, _replies.c.project == wanted.project, _replies.c.state == wanted.state)
    rows = session.execute(select(_replies.c.host, _replies.c.round, _replies.c.asked).where(same)).all()
    if any((row.host, row.round) == (wanted.host, wanted.round) and row.asked is not None for row in rows):
        return False
    values = {
        "host": wanted.host,
        "round": wanted.round,
        "asked": clock.now(),
        "reply_by": wanted.reply_by,
        "instances": list(wanted.instances),
        "allowed_actions": [str(action) for action in wanted.allowed_actions],
    }
    early = next((row for row in rows if row.asked is None), None)
    if early is None:
        key = {"session_id": sid, "project": wanted.project, "state": wanted.state}
        session.execute(insert(_replies).values(**key, **values))
    else:
        this = and_(same, _replies.c.host == early.host, _replies.c.round == early.round)
        session.execute(update(_replies).where(this).values(values))
    return True


def _written(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _put(session: Session, sid: str, project: str, body: Mapping[str, Any], until: datetime) -> None:
    """Add a notice; where nobody wants to be told, it is only kept."""
    now = clock.now()
    subscribed = exists().where(_subscriptions.c.project == project)
    values = {
        "session_id": literal(sid, _notices.c.session_id.type),
        "project": literal(project, _notices.c.project.type),
        "body": literal(dict(body), _notices.c.body.type),
        "created": literal(now, _notices.c.created.type),
        "until": literal(max(until, now + AT_LEAST), _notices.c.until.type),
        "due": case((subscribed, literal(now, _notices.c.due.type))),
    }
    statement = insert(_notices).from_select([*values], select(*values.values()))
    added = session.execute(statement.returning(_notices.c.due)).scalar()
    if added is not None and not session.info.get("notices_deferred"):
        # One task takes all that there is.
        session.info["notices_deferred"] = True
        queue.defer(session, TASK)


def _say(session: Session, sid: str, state: str, host: str | None, text: str) -> None:
    session.execute(insert(_steps).values(session_id=sid, at=clock.now(), state=state, host=host, text=text))


# Where projects want to be told


def subscribe(session: Session, project: str, url: str, secret: str) -> None:
    """Tell a project from now on at a URL, which the caller has looked at; also what it was not yet told in vain."""
    values = {"url": url, "secret": secret, "changed": clock.now(), "changed_by": _actor(session).name}
    given = postgresql.insert(_subscriptions).values(project=project, **values)
    session.execute(given.on_conflict_do_update(index_elements=[_subscriptions.c.project], set_=values))
    open_ = and_(_notices.c.project == project, _notices.c.delivered.is_(None), _notices.c.until > clock.now())
    if session.execute(update(_notices).where(open_).values(due=clock.now()).returning(_notices.c.id)).all():
        queue.defer(session, TASK)
    # Some URLs are as good as a secret.
    record(session, "maintenance.subscribed", f"maintenance/subscriptions/{project}")


def unsubscribe(session: Session, project: str) -> None:
    """Tell a project nothing any more; raises :class:`NotFound` where it was not told anything."""
    gone = delete(_subscriptions).where(_subscriptions.c.project == project).returning(_subscriptions.c.project)
    if session.execute(gone).first() is None:
        raise NotFound(f"{project} has no subscription")
    session.execute(update(_notices).where(_notices.c.project == project, _notices.c.due.is_not(None)).values(due=None))
    record(session, "maintenance.unsubscribed", f"maintenance/subscriptions/{project}")


def subscription(reader: Reader, project: str) -> dict[str, Any]:
    """Tell where a project is told, and since when; never the secret. Raises :class:`NotFound`."""
    shown = (_subscriptions.c[name] for name in ("project", "url", "changed", "changed_by"))
    found = reader.execute(select(*shown).where(_subscriptions.c.project == project)).one_or_none()
    if found is None:
        raise NotFound(f"{project} has no subscription")
    return dict(found._mapping)


def _actor(session: Session) -> Actor:
    actor: Actor = session.info.get("actor", LABCTL)
    return actor


# What the task does


@dataclass(frozen=True)
class Held:
    """A notice that a worker has claimed."""

    holder: str
    lease_attempt: int
    id: int
    session_id: str
    project: str
    attempts: int
    until: datetime
    body: Mapping[str, Any] = field(repr=False, hash=False)
    url: str
    secret: str = field(repr=False, hash=False)

    @property
    def content(self) -> bytes:
        """Give what is sent: the same each time."""
        return json.dumps(self.body, ensure_ascii=False, sort_keys=True).encode()

    @property
    def delivery(self) -> str:
        """Name this notice, so that who gets it twice can tell."""
        return f"{self.session_id}/{self.id}"


def claim(session: Session, holder: str, number: int, seconds: float) -> Sequence[Held]:
    """Claim notices that are due: of each project one, the oldest, and none while another one is on its way to it."""
    now = clock.now()
    other = aliased(MaintenanceNotice)
    open_ = and_(other.project == _notices.c.project, other.due.is_not(None))
    before = exists().where(open_, or_(other.lease_until > now, and_(other.due <= now, other.id < _notices.c.id)))
    subscribed = exists().where(_subscriptions.c.project == _notices.c.project)
    pick = (
        select(_notices.c.id)
        .where(subscribed, _notices.c.due <= now)
        .where(or_(_notices.c.lease_until.is_(None), _notices.c.lease_until <= now), ~before)
        .order_by(_notices.c.attempts, _notices.c.due)
        .limit(number)
        .with_for_update(skip_locked=True)
        .cte("pick")
    )
    columns = ("lease_attempt", "id", "session_id", "project", "attempts", "until", "body")
    statement = (
        update(_notices)
        .where(_notices.c.id.in_(select(pick.c.id)), _subscriptions.c.project == _notices.c.project)
        .values(lease.claim(MaintenanceNotice, holder, seconds))
        .returning(*(_notices.c[name] for name in columns), _subscriptions.c.url, _subscriptions.c.secret)
    )
    return [Held(holder=holder, **row._mapping) for row in session.execute(statement)]


def delivered(session: Session, held: Held) -> None:
    """Note that a project was told."""
    values = {"attempts": held.attempts + 1, "delivered": clock.now(), "due": None, "error": None}
    if _change(session, held, values):
        told = {"project": held.project, "state": held.body["state"], "delivery": held.delivery}
        record(session, "maintenance.told", f"maintenance/{held.session_id}", **told)
        log.info("notice_delivered", extra={"session": held.session_id, **told})


def not_delivered(session: Session, held: Held, reason: str) -> None:
    """Note why a project could not be told: it is tried again later, until it is too late."""
    due = clock.now() + timedelta(seconds=min(RETRY_FIRST * 2 ** min(held.attempts, 30), RETRY_MOST))
    given_up = due >= held.until
    values = {"attempts": held.attempts + 1, "due": None if given_up else due, "error": reason}
    if not _change(session, held, values):
        return
    told = {"project": held.project, "state": held.body["state"], "delivery": held.delivery, "reason": reason}
    if given_up:
        record(session, "maintenance.not_told", f"maintenance/{held.session_id}", **told)
        log.warning("notice_given_up", extra={"session": held.session_id, **told})
    elif not held.attempts:
        log.info("notice_not_delivered", extra={"session": held.session_id, **told})


def let_go(session: Session, held: Held) -> None:
    """Give a claim back; this worker ends."""
    _change(session, held, {})


def _change(session: Session, held: Held, values: Mapping[str, Any]) -> bool:
    """Change a notice and end the claim, if that still holds."""
    mine = and_(_notices.c.id == held.id, lease.held(MaintenanceNotice, held.holder, held.lease_attempt))
    change = update(_notices).where(mine).values(**values, **lease.FREE)
    return session.execute(change.returning(_notices.c.id)).first() is not None

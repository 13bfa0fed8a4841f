"""The verbs of sessions: beginning and deleting them; and what projects say."""

import secrets
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Text, any_, bindparam, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.errors import Conflict, Exhausted, Invalid, NotFound
from labctl.events.service import record
from labctl.maintenance import known
from labctl.maintenance.models import (
    MaintenanceAction,
    MaintenanceDownload,
    MaintenanceHost,
    MaintenanceReply,
    MaintenanceSession,
    MaintenanceStep,
)
from labctl.maintenance.queries import UNKNOWN
from labctl.maintenance.states import DONE, FAILED, FIRST, ActionState, ActionType

#: How many names a message lists.
MOST_NAMED = 10
#: The round of an answer that came before it was asked for.
BEFORE = 0
#: What projects are told and need not answer; some clients do.
NEVER_ASKED = frozenset(("INSTANCE_ACTION_DONE", DONE, FAILED))

_sessions = table(MaintenanceSession)
_hosts = table(MaintenanceHost)
_actions = table(MaintenanceAction)
_replies = table(MaintenanceReply)
_downloads = table(MaintenanceDownload)
_steps = table(MaintenanceStep)
_names = bindparam("these_names", type_=ARRAY(Text))

# Built once: putting a statement together costs as much as sending it.
_HOLD = select(_sessions).where(_sessions.c.id == bindparam("this_sid"), _sessions.c.deleted.is_(None))
_HOLD = _HOLD.with_for_update(key_share=True)
_COUNT_GOING = (
    select(func.count())
    .select_from(_sessions)
    .where(_sessions.c.state.not_in((DONE, FAILED)), _sessions.c.deleted.is_(None))
)
# Hosts to be given back to service, or actions that go on.
_IN_HAND = select(
    or_(
        exists().where(_hosts.c.session_id == bindparam("this_sid"), _hosts.c.cordoned),
        exists().where(_actions.c.session_id == bindparam("this_sid"), _actions.c.state == ActionState.RUNNING),
    )
)
_HOLDERS = (
    select(_hosts.c.host, _hosts.c.session_id, _sessions.c.deleted)
    .join_from(_hosts, _sessions)
    .where(_hosts.c.held, _hosts.c.host == any_(_names), _hosts.c.session_id != bindparam("this_sid"))
    .order_by(_hosts.c.host)
)
# Those it was asked, the newest first.
_ASKED = (
    select(_replies)
    .where(
        _replies.c.session_id == bindparam("this_sid"),
        _replies.c.project == bindparam("this_project"),
        _replies.c.asked.is_not(None),
    )
    .order_by(_replies.c.asked.desc(), _replies.c.round.desc(), _replies.c.host)
)


@dataclass(frozen=True)
class Download:
    """A file that a session needs."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A session that is asked for."""

    workflow: str
    maintenance_at: datetime
    #: Empty: all there are.
    hosts: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    actions: Sequence[Mapping[str, Any]] = ()
    downloads: Sequence[Download] = ()
    #: Whether its hosts are asked how they are, through the inventory.
    asks_hosts: bool = True
    #: What is wrong, as far as it can be told without a look at hosts.
    mistakes: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """What a project says."""

    #: As it was sent.
    text: str
    #: What it is about; empty: it does not say.
    state: str
    instance_actions: Mapping[str, str] = field(default_factory=dict)


# Sessions


def create(session: Session, wanted: Wanted, *, most: int, base_url: str) -> str:
    """Begin a session and give its id; raises :class:`Invalid`, :class:`Exhausted` and :class:`Conflict`.

    ``base_url``: where projects ask and answer.
    """
    hosts, mistakes = look_at(session, wanted)
    if mistakes := [*wanted.mistakes, *mistakes, *_strangers(wanted.actions, hosts)]:
        raise Invalid("; ".join(mistakes))
    one_at_a_time(session)
    limit(session, most)
    sid = _new_id()
    refuse_held(session, list(hosts), sid)
    now, actor = clock.now(), session.info["actor"].name
    row = {
        "id": sid,
        "workflow": wanted.workflow,
        "state": FIRST,
        "entered": now,
        # What is over is now.
        "maintenance_at": max(wanted.maintenance_at, now),
        "hints": wanted.metadata,
        "actions": list(wanted.actions),
        "created": now,
        "created_by": actor,
        "base_url": base_url,
        "due": now,
    }
    session.execute(insert(_sessions).values(row))
    add_hosts(session, sid, hosts, 0)
    if wanted.downloads:
        files = [
            {"session_id": sid, "position": number, "url": each.url, "sha256": each.sha256}
            for number, each in enumerate(wanted.downloads)
        ]
        session.execute(insert(_downloads), files)
    note(session, sid, FIRST, f"begun by {actor}")
    record(
        session,
        "maintenance.created",
        subject(sid),
        workflow=wanted.workflow,
        maintenance_at=row["maintenance_at"].isoformat(),
        hosts=list(hosts),
        actions=[f"{action['type']}: {action['plugin']}" for action in wanted.actions],
        downloads=len(wanted.downloads),
    )
    return sid


def remove(session: Session, sid: str) -> None:
    """Delete a session: at once if no host is out of service and no action at work, else as soon as that is over.

    Nobody sees it any more from now on. Raises :class:`NotFound`.
    """
    row = hold(session, sid)
    if not session.scalar(_IN_HAND, {"this_sid": sid}):
        session.execute(delete(_sessions).where(_sessions.c.id == sid))
    else:
        now = clock.now()
        session.execute(update(_sessions).where(_sessions.c.id == sid).values(deleted=now, due=now))
        note(session, sid, row.state, f"deleted by {session.info['actor'].name}")
    record(session, "maintenance.deleted", subject(sid), state=row.state)


def one_at_a_time(session: Session) -> None:
    """Wait for others who begin or continue sessions: how many go on, and who has which host, is settled one by one."""
    session.execute(select(func.pg_advisory_xact_lock(int(Lock.MAINTENANCE), 0)))


def limit(session: Session, most: int) -> None:
    """Raise :class:`Exhausted` if as many sessions as may be go on."""
    if session.scalar(_COUNT_GOING) >= most:  # type: ignore[operator]
        raise Exhausted("Too many sessions")


def _new_id() -> str:
    """Make a UUID of version 1, as clients know them, that tells nothing of this machine."""
    node = secrets.randbits(48) | 1 << 40
    return str(uuid.uuid1(node, secrets.randbits(14)))


def hold(session: Session, sid: str) -> Any:
    """Hold a session's row, as the engine does while it advances one; raises :class:`NotFound`."""
    row = session.execute(_HOLD, {"this_sid": sid}).first()
    if row is None:
        raise NotFound(UNKNOWN)
    return row


def look_at(reader: Reader, wanted: Wanted) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Give the hosts of a session that is asked for, with what they are, in order, and what is wrong with them."""
    if wanted.hosts or any(line.startswith("hosts:") for line in wanted.mistakes):
        return kinds(reader, wanted.hosts, "hosts", wanted.asks_hosts)
    found: dict[str, Sequence[str]] = {name: sorted(of) for name, of in sorted(known.all_hosts(reader).items())}
    mistakes = [] if found else ["hosts: there are none to be found"]
    return found, [*mistakes, *_unasked(found, "hosts", wanted.asks_hosts)]


def kinds(
    reader: Reader, names: Sequence[str], field: str, asks_hosts: bool
) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Tell what hosts are that somebody names, in that order, and what is wrong with them."""
    found = known.kinds_of(reader, names) if names else {}
    of: dict[str, Sequence[str]] = {name: sorted(found[name]) for name in names if found.get(name)}
    unknown = [name for name in names if name not in of]
    mistakes = [f"{field}: there is no host {some(unknown)}"] if unknown else []
    return of, [*mistakes, *_unasked(of, field, asks_hosts)]


def _strangers(actions: Sequence[Mapping[str, Any]], hosts: Collection[str]) -> list[str]:
    """Say which actions for hosts name some that are not in the session: they would never run."""
    wrong = []
    for number, action in enumerate(actions):
        named = action["metadata"].get("hosts")
        if action["type"] in (ActionType.HOST, ActionType.CHECK) and isinstance(named, list):
            strangers = [name for name in named if name not in hosts]
            if strangers:
                wrong.append(f"actions.{number}.metadata.hosts: {some(strangers)} is not in the session")
    return wrong


def _unasked(kinds: Mapping[str, Sequence[str]], field: str, asks_hosts: bool) -> list[str]:
    """Say which hosts would never be found well."""
    silent = [name for name, of in kinds.items() if "inventory" not in of] if asks_hosts else []
    if not silent:
        return []
    return [
        f"{field}: nobody can ask how {some(silent)} would be: not in the inventory of remote hosts; give an action of"
        " type check, or metadata with gate: none"
    ]


def some(names: Sequence[str]) -> str:
    """Name a few of many."""
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def refuse_held(session: Session, names: Sequence[str], sid: str) -> None:
    """Raise :class:`Conflict` if another session has one of these hosts."""
    found = session.execute(_HOLDERS, {"these_names": list(names), "this_sid": sid}).all()
    if found:
        told = [
            f"{row.host} is in session {row.session_id}" + (", which is being deleted" if row.deleted else "")
            for row in found[:MOST_NAMED]
        ]
        more = f", and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise Conflict(f"{'; '.join(told)}{more}")


def add_hosts(session: Session, sid: str, kinds: Mapping[str, Sequence[str]], first: int) -> None:
    """Put hosts into a session, ``first`` is the place of the first in the order."""
    # In the order of their names: whoever else adds them waits, and nobody waits for each other.
    rows = [
        {"session_id": sid, "host": name, "position": number, "kinds": of}
        for number, (name, of) in enumerate(kinds.items(), start=first)
    ]
    session.execute(insert(_hosts), sorted(rows, key=lambda row: str(row["host"])))


def note(session: Session, sid: str, state: str, *texts: str) -> None:
    """Write down for people what happened."""
    rows = [{"session_id": sid, "at": clock.now(), "state": state, "text": text} for text in texts]
    session.execute(insert(_steps).values(rows))


def subject(sid: str) -> str:
    """Name a session for the log of events."""
    return f"maintenance/{sid}"


def purge(session: Session, before: datetime, batch: int) -> int:
    """Forget up to ``batch`` sessions that ended before that time; none with a host that it has out of service."""
    ended = func.coalesce(_sessions.c.finished, _sessions.c.entered)
    out = select(_hosts.c.host).where(_hosts.c.session_id == _sessions.c.id, _hosts.c.cordoned).exists()
    old = select(_sessions.c.id).where(_sessions.c.state.in_((DONE, FAILED)), ended < before, ~out).limit(batch)
    result = session.execute(delete(_sessions).where(_sessions.c.id.in_(old.with_for_update(skip_locked=True))))
    return int(result.rowcount)  # type: ignore[attr-defined]


# Projects


def reply(
    session: Session, sid: str, project: str, answer: Answer, states_of: Callable[[str], Collection[str]]
) -> None:
    """Take in what a project says: to what it was asked last, or else to what it will be asked.

    ``states_of`` gives the states of a workflow by its name. Saying the same again changes nothing. Raises
    :class:`NotFound` and :class:`Invalid`.
    """
    row = hold(session, sid)
    if answer.state in NEVER_ASKED or row.state == DONE:
        return
    states = states_of(row.workflow)
    clear = answer.state in states
    asked = session.execute(_ASKED, {"this_sid": sid, "this_project": project}).all()
    # What is neither yes nor no to something is an answer, too, to whatever was asked last.
    about = [each for each in asked if each.state == answer.state or not clear]
    question = next((each for each in about if each.answer is None), None)
    if question is None and not clear:
        raise Invalid(f"must be ACK_ or NACK_ and one of {', '.join(states)}", field="state")
    allowed_of = question or next(iter(about), None)
    if allowed_of is not None and allowed_of.allowed_actions:
        _check_actions(answer, allowed_of)
    if question is not None:
        place = {"state": question.state, "host": question.host, "round": question.round}
    elif not about:
        # It was not asked yet; when it is, this counts.
        place = {"state": answer.state, "host": "", "round": BEFORE}
    else:
        last = about[0]
        same = (last.answer, last.instance_actions) == (answer.text, dict(answer.instance_actions))
        if same or last.state != row.state:
            return
        # It has thought again, while it still matters.
        place = {"state": last.state, "host": last.host, "round": last.round}
    actor, now = session.info["actor"].name, clock.now()
    said = {
        "answer": answer.text,
        "instance_actions": dict(answer.instance_actions),
        "answered": now,
        "answered_by": actor,
    }
    statement = insert(_replies).values(session_id=sid, project=project, **place, **said)
    session.execute(statement.on_conflict_do_update(index_elements=_replies.primary_key.columns.keys(), set_=said))
    session.execute(update(_sessions).where(_sessions.c.id == sid, _sessions.c.due.is_not(None)).values(due=now))
    record(
        session,
        "maintenance.replied",
        subject(sid),
        project=project,
        state=answer.text,
        host=place["host"],
        instance_actions=dict(answer.instance_actions),
    )


def _check_actions(answer: Answer, asked: Any) -> None:
    instances, allowed = set(asked.instances), set(asked.allowed_actions)
    for instance, action in answer.instance_actions.items():
        field = f"instance_actions.{instance}"
        if instance not in instances:
            raise Invalid(f"is not asked for; asked for are: {some(asked.instances)}", field=field)
        if action not in allowed:
            raise Invalid(f"{action} is not possible; allowed: {', '.join(asked.allowed_actions)}", field=field)

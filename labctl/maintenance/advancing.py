"""What is done of what a workflow wants: one look at one session, in the one transaction that holds its row.

Nothing here waits for anything outside the database: jobs, notices and downloads are rows that others see to, so that a
process which is killed between two such transactions has left nothing half done.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Text, and_, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Reader, table
from labctl.errors import Conflict
from labctl.events.service import record_all
from labctl.machines import service as machines
from labctl.maintenance import acting, downloads, known, notices, view
from labctl.maintenance.models import MaintenanceHost, MaintenanceMove, MaintenanceSession, MaintenanceStep
from labctl.maintenance.states import (
    DONE,
    FAILED,
    FIRST,
    HOST_LIFE,
    ActionType,
    HostState,
    InstanceAction,
    MoveState,
)
from labctl.maintenance.workflow import (
    Drain,
    FailHost,
    Host,
    Move,
    Next,
    Notify,
    Progress,
    Return,
    Run,
    View,
    Want,
    Workflow,
)
from labctl.vms import cordon, work

log = logging.getLogger(__name__)

#: Seconds after which a session is looked at again: while something of it goes on, and while it only waits.
BUSY, IDLE = 1.0, 3.0
#: How much of a reason is kept.
LONGEST = 2000

_sessions = table(MaintenanceSession)
_hosts = table(MaintenanceHost)
_moves = table(MaintenanceMove)
_steps = table(MaintenanceStep)
_now = bindparam("this_now", type_=DateTime(timezone=True))
_sid = bindparam("this_sid", type_=Text)

# Built once: putting a statement together costs as much as sending it.
_DUE = select(_sessions.c.id).where(_sessions.c.due <= _now).order_by(_sessions.c.due).limit(bindparam("most"))
# Who finds that another one has it, or that it has been looked at meanwhile, leaves it alone.
_moving = select(_moves.c.instance).where(_moves.c.session_id == _sessions.c.id, _moves.c.state == MoveState.WAITING)
_HOLD = (
    select(_sessions, _moving.exists().label("moving"))
    .where(_sessions.c.id == _sid, _sessions.c.due <= _now)
    .with_for_update(skip_locked=True, key_share=True, of=_sessions)
)
_HOLD_ANY = select(_sessions).where(_sessions.c.id == _sid).with_for_update(key_share=True)
_CHANGE = update(_sessions).where(_sessions.c.id == _sid)
_CHANGE_HOST = update(_hosts).where(_hosts.c.session_id == _sid, _hosts.c.host == bindparam("this_host"))
_CORDONED = select(_hosts.c.host).where(_hosts.c.session_id == _sid, _hosts.c.cordoned).order_by(_hosts.c.host)
_STILL_WAITING = select(_hosts.c.host).where(_hosts.c.session_id == _sid, _hosts.c.state == HostState.WAITING)
_DRAINING = select(_hosts.c.host).where(_hosts.c.session_id == _sid, _hosts.c.state == HostState.DRAINING)
_MOVES = (
    select(_moves, _hosts.c.state.label("host_state"))
    .outerjoin_from(_moves, _hosts, (_hosts.c.session_id == _moves.c.session_id) & (_hosts.c.host == _moves.c.host))
    .where(_moves.c.session_id == _sid, _moves.c.state == MoveState.WAITING)
    .order_by(_moves.c.begun, _moves.c.instance)
)


def due(reader: Reader, most: int) -> Sequence[str]:
    """Name the sessions that are to be looked at now, those that wait longest first."""
    return reader.execute(_DUE, {"this_now": clock.now(), "most": most}).scalars().all()


def advance(
    session: Session,
    sid: str,
    workflow_of: Callable[[str], Workflow],
    reply_seconds: Mapping[str, float],
    can: known.Capabilities = known.NOTHING,
) -> bool:
    """Look at a session that is due, and take a step; tells whether it is to be looked at again at once.

    Whatever a workflow raises, its session has failed for it.
    """
    row = session.execute(_HOLD, {"this_sid": sid, "this_now": clock.now()}).first()
    if row is None:
        return False
    acting.advance(session, sid)
    one = Advancing(session, row)
    if row.deleted is not None:
        return one.forget()
    if row.paused or row.state in (DONE, FAILED):
        return one.rest()
    if row.moving:
        one.carry_moves_on()
    if row.state == FIRST and downloads.progress(session, sid)[0] == Progress.NONE:
        downloads.begin(session, sid)
    seen = view.build(session, row, reply_seconds, can)
    try:
        steps = workflow_of(row.workflow).steps
        what = steps[row.state](seen)
        if not isinstance(what, Next):
            raise TypeError(f"the step of {row.state} gave {what!r:.100}")
        if what.state is not None and what.state != DONE and what.state not in steps:
            raise ValueError(f"{what.state} is none of its states")
    except Exception as error:
        log.warning("workflow_broken", exc_info=True, extra={"session": sid, "workflow": row.workflow})
        what = Next(failed=f"the workflow {row.workflow} broke in {row.state}: {type(error).__name__}: {error}")
    return one.take(what, seen)


def fail(session: Session, sid: str, reason: str) -> None:
    """Let a session fail that cannot be advanced."""
    row = session.execute(_HOLD_ANY, {"this_sid": sid}).first()
    if row is not None and row.deleted is None and row.state not in (DONE, FAILED):
        one = Advancing(session, row)
        one.fail(reason)
        one.write()


def put_off(session: Session, sid: str, seconds: float) -> None:
    """Look at a session later."""
    session.execute(_CHANGE.values(due=clock.now() + timedelta(seconds=seconds)), {"this_sid": sid})


def take_out(session: Session, sid: str, host: str) -> None:
    """Take a host out of service: nobody gets anything on it any more, who has something keeps it."""
    reason = _reason(sid)
    # First, as wherever machines are locked after it.
    cordon.cordon(session, host, reason)
    for name in (host, *known.guests(session, host, None)):
        machines.cordon(session, name, reason)


def give_back(session: Session, sid: str, host: str) -> None:
    """Give a host back to service; one that is in service stays so. The rows of the session are the caller's."""
    below = known.out_below(session, host)
    if below is not None:
        # It comes back with the host that it is on.
        machines.cordon(session, host, _reason(below))
    for name in (*(() if below else (host,)), *known.guests(session, host, _reason(sid))):
        machines.uncordon(session, name)
    cordon.uncordon(session, host)


def _reason(sid: str) -> str:
    return f"maintenance {sid}"


class Advancing:
    """One look at a session, whose row is held."""

    def __init__(self, session: Session, row: Any) -> None:
        """Take the row."""
        self.session = session
        self.row = row
        self.sid: str = row.id
        self.now: datetime = clock.now()
        self.steps: list[dict[str, Any]] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    # What becomes of the session

    def take(self, what: Next, seen: View) -> bool:
        """Do what the workflow wants; tells whether the session is to be looked at again at once."""
        hosts = {host.name: host for host in seen.hosts}
        # One after the other, in the order they are wanted in.
        changed = [self.do(want, seen, hosts) for want in what.do]
        again = False
        if what.failed is not None:
            self.fail(what.failed)
        elif what.state == DONE:
            self.end()
        elif what.state is not None and what.state != self.row.state:
            self.enter(what.state)
            again = True
        else:
            again = any(changed)
            self.wait(what, seen, at_once=again)
        self.write()
        return again

    def enter(self, state: str) -> None:
        """Go into another state."""
        self.change(state=state, entered=self.now, waits_for=None, waits_until=None, due=self.now)
        self.tell("maintenance.state", f"{self.row.state} is over; {state} begins", state=state, before=self.row.state)

    def wait(self, what: Next, seen: View, *, at_once: bool) -> None:
        """Write down what is waited for, and when to look again."""
        busy = any(host.since is not None for host in seen.hosts) or Progress.RUNNING in (seen.pre, seen.post)
        look = self.now + timedelta(seconds=BUSY if busy else IDLE)
        due = self.now if at_once else min(look, max(what.until, self.now)) if what.until else look
        self.change(waits_for=what.waits_for[:LONGEST] or None, waits_until=what.until, due=due)

    def rest(self) -> bool:
        """Look again only while actions come to their end."""
        self.change(due=self.when_running())
        return False

    def when_running(self) -> datetime | None:
        """Say when to look again at a session that does not go on: only while an action is at work."""
        return self.now + timedelta(seconds=BUSY) if acting.running(self.session, self.sid) else None

    def fail(self, reason: str) -> None:
        """Stop; hosts whose actions have not begun are in service again, those that have failed are not."""
        reason = reason.replace("\0", "\N{REPLACEMENT CHARACTER}")[:LONGEST]
        for host in self._names(_DRAINING):
            give_back(self.session, self.sid, host)
            self.change_host(host, state=HostState.WAITING, cordoned=False, started=None)
            self.tell("maintenance.host", f"{host} is back in service; it was not begun", host, to=HostState.WAITING)
        self.take_moves_back(self.end_moves(self.session.execute(_MOVES, {"this_sid": self.sid}).all()))
        self.change(
            state=FAILED,
            failed_in=self.row.state,
            reason=reason,
            finished=self.now,
            waits_for=None,
            waits_until=None,
            due=self.when_running(),
        )
        self.tell("maintenance.failed", f"it failed in {self.row.state}: {reason}", state=self.row.state, reason=reason)
        log.warning("maintenance_failed", extra={"session": self.sid, "state": self.row.state, "reason": reason})

    def end(self) -> None:
        """Come to the end; all hosts are free for other sessions."""
        self.give_all_back()
        self.session.execute(update(_hosts).where(_hosts.c.session_id == self.sid).values(held=False))
        # What actions were given may be secret, and nobody needs it any more.
        actions = [{**action, "metadata": {}} for action in self.row.actions]
        self.change(state=DONE, finished=self.now, waits_for=None, waits_until=None, due=None, actions=actions)
        self.tell("maintenance.done", f"{self.row.state} is over, and with it the session")
        log.info("maintenance_done", extra={"session": self.sid})

    def forget(self) -> bool:
        """Give all hosts back and delete the session that somebody has deleted, once nothing of it goes on."""
        if acting.running(self.session, self.sid):
            return self.rest()
        self.give_all_back()
        self.take_moves_back(self.session.execute(_MOVES, {"this_sid": self.sid}).all())
        self.session.execute(delete(_sessions).where(_sessions.c.id == self.sid))
        self.events.append(("maintenance.forgotten", f"maintenance/{self.sid}", {"state": self.row.state}))
        self.write()
        return False

    def give_all_back(self) -> None:
        """Give those hosts back to service that are not."""
        for host in self._names(_CORDONED):
            give_back(self.session, self.sid, host)
            self.change_host(host, cordoned=False)
            self.events.append(("maintenance.host", f"maintenance/{self.sid}", {"host": host, "to": "in service"}))

    # What becomes of hosts and instances

    def carry_moves_on(self) -> None:
        """See how far providers are with VMs, and give others to those who get others, as far as there are any."""
        rows = self.end_moves(self.session.execute(_MOVES, {"this_sid": self.sid}).all())
        # Those whose hosts are in service again.
        self.take_moves_back([row for row in rows if row.host_state != HostState.DRAINING])
        rows = [row for row in rows if row.host_state == HostState.DRAINING]
        works = [row.work_id for row in rows if row.work_id is not None]
        migrations = work.migrations(self.session, works) if works else {}
        next_ones = self._names(_STILL_WAITING)
        for row in rows:
            migration = migrations.get(row.work_id)
            if migration is not None and migration.has_failed:
                self.change_move(row, state=MoveState.FAILED, reason=migration.reason, finished=self.now)
            elif migration is not None and migration.reason != row.reason:
                self.change_move(row, reason=migration.reason)
            elif (
                migration is None
                and (new := cordon.replace(self.session, row.instance, rather_not=next_ones)) is not None
            ):
                self.end_move(row, replacement=new)

    def end_moves(self, rows: Sequence[Any]) -> list[Any]:
        """Write down which VMs are not where they were any more; gives the others."""
        used = (
            {(one.host, one.id) for one in known.instances(self.session, {row.host for row in rows})} if rows else set()
        )
        gone = [row for row in rows if (row.host, row.instance) not in used]
        where = work.hosts_of(self.session, [row.instance for row in gone]) if gone else {}
        for row in gone:
            moved_to = where.get(row.instance)
            self.end_move(row, moved_to=moved_to, reason=None if moved_to else "nobody has it any more")
        return [row for row in rows if (row.host, row.instance) in used]

    def end_move(
        self, row: Any, *, moved_to: str | None = None, replacement: str | None = None, reason: str | None = None
    ) -> None:
        """Write down that a VM is not where it was any more, and tell its owner if that was for the session's sake."""
        values = {"moved_to": moved_to, "replacement": replacement, "reason": reason}
        self.change_move(row, state=MoveState.DONE, finished=self.now, **values)
        if replacement:
            text = f"{row.project} has {replacement} instead of {row.instance}"
        else:
            text = f"{row.instance} is on {moved_to}" if moved_to else f"{row.instance}: {reason}"
        if moved_to or replacement:
            notices.tell_done(self.session, self.sid, row.project, [row.instance])
        told = {"instance": row.instance, "project": row.project, "moved_to": moved_to, "replacement": replacement}
        self.tell("maintenance.moved", text, row.host, **told)

    def change_move(self, row: Any, **values: Any) -> None:
        """Change the row of a move."""
        self.session.execute(update(_moves).where(_this_move(row)).values(values))

    def take_moves_back(self, rows: Sequence[Any]) -> None:
        """Forget moves that have not come to their end; what a provider is just moving, it moves."""
        works = [row.work_id for row in rows if row.work_id is not None]
        if works:
            work.take_back(self.session, works, f"{_reason(self.sid)} does not need it any more")
        for row in rows:
            self.session.execute(delete(_moves).where(_this_move(row)))

    def do(self, want: Want, seen: View, hosts: Mapping[str, Host]) -> bool:
        """Do something that is wanted; tells whether it was not done or begun already."""
        match want:
            case Notify():
                before = seen.replies.get((want.project, want.state, want.host, want.round))
                if before is not None and before.asked is not None:
                    return False
                notices.notify(self.session, self.sid, want)
                return True
            case Move():
                return self.move(want, seen)
            case Drain(name):
                return self.drain(hosts[name])
            case Run(kind, ""):
                acting.begin(self.session, self.sid, kind)
                return {ActionType.PRE: seen.pre, ActionType.POST: seen.post}[kind] == Progress.NONE
            case Run(ActionType.HOST, name):
                return self.maintain(hosts[name])
            case Run(_, name):
                return self.check(hosts[name])
            case Return(name):
                return self.give_back(hosts[name])
            case FailHost(name, reason):
                return self.to(hosts[name], HostState.FAILED, f"{name} failed: {reason}", reason=reason[:LONGEST])

    def move(self, want: Move, seen: View) -> bool:
        """Have a VM moved."""
        found = [(host, one) for host in seen.hosts for one in host.instances if one.id == want.instance]
        if not found:
            return False
        host, instance = found[0]
        if instance.move == MoveState.WAITING or (instance.move, instance.move_how) == (MoveState.FAILED, want.how):
            return False
        work_id = None
        if not instance.replaced:
            live, next_ones = want.how == InstanceAction.LIVE_MIGRATE, self._names(_STILL_WAITING)
            work_id = work.ask_to_migrate(self.session, instance.id, host.name, live=live, rather_not=next_ones)
        this = {"session_id": self.sid, "instance": instance.id, "host": host.name}
        values = {"project": instance.project, "how": want.how, "state": MoveState.WAITING, "begun": self.now}
        values |= {"work_id": work_id, "moved_to": None, "replacement": None, "reason": None, "finished": None}
        # It may have been moved away from there before, in another way or in vain.
        add = postgresql.insert(_moves).values(this | values)
        self.session.execute(add.on_conflict_do_update(index_elements=list(this), set_=values))
        return True

    def drain(self, host: Host) -> bool:
        """Take a host out of service."""
        if host.state != HostState.WAITING:
            return False
        take_out(self.session, self.sid, host.name)
        text = f"{host.name} is out of service: nobody gets anything new on it"
        return self.to(host, HostState.DRAINING, text, cordoned=True, started=self.now)

    def maintain(self, host: Host) -> bool:
        """Begin the actions on a host, if nobody has anything on it any more."""
        if host.state == HostState.DRAINING:
            # Whatever has become ready meanwhile, or was just given out.
            cordon.cordon(self.session, host.name, _reason(self.sid))
            names = (host.name, *known.guests(self.session, host.name, _reason(self.sid)))
            taken = [machines.take(self.session, name) for name in names]
            # What is still ready is just being given out.
            given_out = known.instances(self.session, [host.name]) or known.has_ready(self.session, host.name)
            if not all(taken) or given_out or cordon.unsettled(self.session, [host.name]):
                return False
            notices.host_state(self.session, self.sid, host.name, "IN_MAINTENANCE")
            self.to(host, HostState.MAINTAINING, f"{host.name} is free; its maintenance begins")
        elif host.actions != Progress.NONE:
            return False
        acting.begin(self.session, self.sid, ActionType.HOST, host.name)
        return True

    def check(self, host: Host) -> bool:
        """Have a host asked how it is."""
        changed = host.state != HostState.CHECKING
        if changed:
            self.to(host, HostState.CHECKING, "")
        if host.check == Progress.NONE:
            acting.begin(self.session, self.sid, ActionType.CHECK, host.name)
            changed = True
        return changed

    def give_back(self, host: Host) -> bool:
        """Give a host back to service."""
        give_back(self.session, self.sid, host.name)
        notices.host_state(self.session, self.sid, host.name, "MAINTENANCE_COMPLETE")
        text = f"{host.name} is done, and back in service"
        return self.to(host, HostState.DONE, text, cordoned=False, held=False, finished=self.now)

    def to(self, host: Host, state: HostState, text: str, **changes: Any) -> bool:
        """Let a host go into another state."""
        if not HOST_LIFE.allows(host.state, state):
            raise Conflict(f"{host.name}: {host.state} cannot become {state}")
        self.change_host(host.name, state=state, **changes)
        told = {"host": host.name, "to": state}
        if text:
            self.tell("maintenance.host", text, **told)
        return True

    # Rows

    def change(self, **values: Any) -> None:
        """Change the session's row."""
        self.session.execute(_CHANGE.values(values), {"this_sid": self.sid})

    def change_host(self, host: str, **values: Any) -> None:
        """Change the row of a host."""
        self.session.execute(_CHANGE_HOST.values(values), {"this_sid": self.sid, "this_host": host})

    def tell(self, kind: str, text: str, host: str | None = None, **data: Any) -> None:
        """Have something written down, for people and for programs."""
        values = {"session_id": self.sid, "at": self.now, "state": self.row.state, "host": host, "text": text}
        self.steps.append(values)
        self.events.append((kind, f"maintenance/{self.sid}", {**data, **({"host": host} if host else {})}))

    def write(self) -> None:
        """Write down what there is to tell."""
        if self.steps:
            self.session.execute(insert(_steps).values(self.steps))
        if self.events:
            record_all(self.session, self.events)
        self.steps, self.events = [], []

    def _names(self, statement: Any) -> list[str]:
        return list(self.session.execute(statement, {"this_sid": self.sid}).scalars())


def _this_move(row: Any) -> ColumnElement[bool]:
    return and_(*(_moves.c[name] == getattr(row, name) for name in ("session_id", "instance", "host")))

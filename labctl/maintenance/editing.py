"""Changing a session that goes on, and continuing one that has failed: all that is asked for, or nothing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Text, any_, bindparam, delete, select, update
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import table
from labctl.errors import Conflict, Invalid
from labctl.events.service import record
from labctl.maintenance import acting, advancing, downloads, known, service
from labctl.maintenance.models import MaintenanceHost, MaintenanceMove, MaintenanceSession
from labctl.maintenance.states import DONE, FAILED, FIRST, HOST_LIFE, HostState, MoveState

_sessions = table(MaintenanceSession)
_hosts = table(MaintenanceHost)
_moves = table(MaintenanceMove)
_OVER = (HostState.DONE, HostState.SKIPPED)
_SKIPPABLE = {state for state in HostState if HOST_LIFE.allows(state, HostState.SKIPPED)} - {*_OVER}

_HOSTS = (
    select(_hosts.c.host, _hosts.c.state, _hosts.c.position)
    .where(_hosts.c.session_id == bindparam("this_sid"))
    .order_by(_hosts.c.host)
    .with_for_update()
)
_THESE = (
    _hosts.c.session_id == bindparam("this_sid"),
    _hosts.c.host == any_(bindparam("these_names", type_=ARRAY(Text))),
)


@dataclass(frozen=True)
class Edit:
    """A change of a session: what is empty or None stays as it is."""

    retry: Sequence[str] = ()
    skip: Sequence[str] = ()
    add_hosts: Sequence[str] = ()
    drop_hosts: Sequence[str] = ()
    maintenance_at: datetime | None = None
    paused: bool | None = None


@dataclass(frozen=True)
class Rules:
    """What the settings and the plugins say."""

    #: How many sessions may go on at once.
    most: int
    #: Tells of a session's row whether its hosts are asked how they are.
    asks_hosts: Callable[[Any], bool]


def edit(session: Session, sid: str, wanted: Edit, rules: Rules) -> None:
    """Change a session as wanted, all of it or nothing, and continue it if it has failed.

    Raises :class:`NotFound`, :class:`Invalid`, :class:`Conflict`, and :class:`Exhausted` if too many others go on.
    """
    service.one_at_a_time(session)
    row = service.hold(session, sid)
    if row.state == DONE:
        raise Conflict("the session is done")
    if wanted.retry and row.state != FAILED:
        raise Conflict("retry: the session has not failed")
    editing = _Editing(session, row, wanted)
    editing.add_hosts(rules)
    editing.drop_hosts()
    editing.skip()
    editing.move_time()
    editing.pause()
    if row.state == FAILED:
        editing.resume(rules.most)
    editing.finish()


class _Editing:
    """One change: what it has done so far."""

    def __init__(self, session: Session, row: Any, wanted: Edit) -> None:
        self.session = session
        self.row = row
        self.wanted = wanted
        self.now = clock.now()
        found = session.execute(_HOSTS, {"this_sid": row.id}).all()
        #: The states of the hosts.
        self.hosts = {host.host: HostState(host.state) for host in found}
        self.after = max((host.position for host in found), default=-1) + 1
        #: What is to be changed in the session's row, what is told to people, and what to programs.
        self.values: dict[str, Any] = {}
        self.texts: list[str] = []
        self.changes: dict[str, Any] = {}

    def add_hosts(self, rules: Rules) -> None:
        names = self.wanted.add_hosts
        if not names:
            return
        there = [name for name in names if name in self.hosts]
        if there:
            raise Conflict(f"add_hosts: {service.some(there)} is in the session already")
        if all(state in _OVER for state in self.hosts.values()):
            raise Conflict("add_hosts: all hosts of the session are done")
        kinds, mistakes = service.kinds(self.session, names, "add_hosts", rules.asks_hosts(self.row))
        if mistakes:
            raise Invalid("; ".join(mistakes))
        service.refuse_held(self.session, names, self.row.id)
        service.add_hosts(self.session, self.row.id, kinds, self.after)
        self.hosts |= dict.fromkeys(names, HostState.WAITING)
        self._did("added", add_hosts=names)

    def drop_hosts(self) -> None:
        names = self.wanted.drop_hosts
        self._check("drop_hosts", names, {HostState.WAITING})
        if not names:
            return
        if len(names) == len(self.hosts):
            raise Conflict("drop_hosts: a session needs a host")
        self.session.execute(delete(_hosts).where(*_THESE), self._these(names))
        for name in names:
            del self.hosts[name]
        self._did("dropped", drop_hosts=names)

    def skip(self) -> None:
        names = self.wanted.skip
        self._check(
            "skip", names, {state for state in HostState if HOST_LIFE.allows(state, HostState.SKIPPED)} - {*_OVER}
        )
        if not names:
            return
        over = {"state": HostState.SKIPPED, "held": False, "cordoned": False, "finished": self.now}
        self.session.execute(update(_hosts).where(*_THESE).values(over), self._these(names))
        for name in names:
            advancing.give_back(self.session, self.row.id, name)
        self.hosts |= dict.fromkeys(names, HostState.SKIPPED)
        self._did("skipped", skip=names)

    def move_time(self) -> None:
        wanted, planned = self.wanted.maintenance_at, self.row.maintenance_at
        if wanted is None or wanted == planned.replace(microsecond=0) or max(wanted, planned) <= self.now:
            # Who sends the whole body again does not mean to change what is over.
            return
        waiting = self.row.state == FIRST and planned > self.now
        if not waiting and self.row.failed_in != FIRST:
            raise Conflict("maintenance_at: the session has begun")
        self.values["maintenance_at"] = max(wanted, self.now)
        self.texts.append(f"maintenance_at moved to {wanted:%Y-%m-%d %H:%M:%S}")
        self.changes["maintenance_at"] = wanted.isoformat()

    def pause(self) -> None:
        paused = self.wanted.paused
        if paused is None or paused == self.row.paused:
            return
        self.values["paused"] = paused
        self.texts.append("paused" if paused else "goes on after a pause")
        self.changes["paused"] = paused

    def resume(self, most: int) -> None:
        """Let it go on in the state in which it failed, with what failed begun anew."""
        service.limit(self.session, most)
        failed = [name for name, state in self.hosts.items() if state == HostState.FAILED]
        self._check("retry", self.wanted.retry, {HostState.FAILED})
        left = [name for name in failed if name not in self.wanted.retry]
        if self.wanted.retry and left:
            raise Conflict(f"retry: {service.some(left)} has failed, too; retry or skip it as well")
        again = [name for name, state in self.hosts.items() if state not in _OVER]
        service.refuse_held(self.session, again, self.row.id)
        sid = self.row.id
        self.session.execute(update(_hosts).where(*_THESE).values(held=True), self._these(again))
        self._retry(failed)
        acting.again(self.session, sid)
        downloads.again(self.session, sid)
        stuck = delete(_moves).where(_moves.c.session_id == sid, _moves.c.state == MoveState.FAILED)
        self.session.execute(stuck)
        self.values |= {"state": self.row.failed_in or FIRST, "entered": self.now, "failed_in": None, "reason": None}
        self.values |= {"finished": None, "waits_for": None, "waits_until": None}
        self.texts.append("continued")
        self.changes["continued"] = self.values["state"]

    def _retry(self, names: Collection[str]) -> None:
        """Begin the actions of hosts that failed anew; where somebody is on one, that is waited for first."""
        if not names:
            return
        used = {instance.host for instance in known.instances(self.session, list(names))}
        free = {"state": HostState.MAINTAINING}
        in_use = {"state": HostState.DRAINING, "started": self.now}
        for state, which in ((free, [name for name in names if name not in used]), (in_use, sorted(used))):
            if which:
                anew = {"attempt": _hosts.c.attempt + 1, "reason": None, "finished": None}
                self.session.execute(update(_hosts).where(*_THESE).values({**state, **anew}), self._these(which))
        self._did("tried again", retry=names)

    def finish(self) -> None:
        if not self.texts:
            return
        change = update(_sessions).where(_sessions.c.id == self.row.id)
        self.session.execute(change.values(**self.values, due=self.now))
        state = self.values.get("state", self.row.state)
        actor = self.session.info["actor"].name
        service.note(self.session, self.row.id, state, *(f"{text}, by {actor}" for text in self.texts))
        record(self.session, "maintenance.edited", service.subject(self.row.id), **self.changes)

    def _check(self, field: str, names: Sequence[str], states: Collection[HostState]) -> None:
        """Refuse hosts that the session does not have, and those to which this cannot be done."""
        unknown = [name for name in names if name not in self.hosts]
        if unknown:
            raise Invalid(f"{service.some(unknown)} is not in the session", field=field)
        for name in names:
            if self.hosts[name] not in states:
                raise Conflict(f"{field}: {name} is {self.hosts[name]}; it must be {' or '.join(sorted(states))}")

    def _these(self, names: Collection[str]) -> Mapping[str, Any]:
        return {"this_sid": self.row.id, "these_names": list(names)}

    def _did(self, what: str, **change: Collection[str]) -> None:
        ((key, names),) = change.items()
        self.texts.append(f"{service.some(list(names))} {what}")
        self.changes[key] = list(names)

"""How actions go on: each is a row, asked for its next step when it may have one; what it wants done is a remote job.

All of this is done by who holds the session's row. An action's jobs are asked for with a key of their own, so that what
was begun by a process that did not live to say so is not begun twice.
"""

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from itertools import groupby
from typing import Any

from sqlalchemy import and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, aliased

from labctl import clock, plugins
from labctl.db import Reader, table
from labctl.errors import Conflict, LabError, NotFound, Unavailable
from labctl.events.service import record
from labctl.maintenance import downloads
from labctl.maintenance.action import Action, Done, Failed, Operate, Outcome, View, Wait
from labctl.maintenance.models import MaintenanceAction, MaintenanceHost, MaintenanceSession, MaintenanceStep
from labctl.maintenance.states import FAILED, ActionState, ActionType
from labctl.maintenance.workflow import Progress
from labctl.remote import running as running_jobs
from labctl.remote import service as remote
from labctl.remote.models import RemoteJob, RemoteOutput
from labctl.remote.states import LIFE, JobState, Operation

log = logging.getLogger(__name__)

GROUP = "labctl.actions"
#: The check that every host gets if the session has no action of that type.
CHECK_NUMBER, CHECK_PLUGIN = -1, "check"
#: Seconds after which a job is asked for again that was refused because another one has a host.
BUSY_PAUSE = 3.0
#: What an action has left at the least that was running when its session failed, once that is continued.
GRACE = timedelta(minutes=5)
#: How much of a reason is kept.
LONGEST = 2000
#: Actions of one host are never at work together; in this order, if they were ever begun together.
_ORDER = {kind: number for number, kind in enumerate(ActionType)}
_OPEN = (ActionState.WAITING, ActionState.RUNNING)

_actions = table(MaintenanceAction)
_hosts = table(MaintenanceHost)
_sessions = table(MaintenanceSession)
_steps = table(MaintenanceStep)
_jobs = table(RemoteJob)
_outputs = table(RemoteOutput)


# A host says which attempt at its actions counts; of those of the session itself each has its own.
_of_host = and_(_hosts.c.session_id == _actions.c.session_id, _hosts.c.host == _actions.c.host)
_newer = aliased(MaintenanceAction)
_is_newest = (
    ~select(_newer.number)
    .where(_newer.session_id == _actions.c.session_id, _newer.number == _actions.c.number)
    .where(_newer.host == _actions.c.host, _newer.attempt > _actions.c.attempt)
    .exists()
)


# What workflows want


def begin(session: Session, sid: str, type: ActionType, host: str = "") -> None:
    """Have the actions of a type run, for a host or, without one, once; those begun already are left alone."""
    now = clock.now()
    wanted = _wanted(session.execute(select(_sessions.c.actions).where(_sessions.c.id == sid)).scalar_one(), type)
    attempt = 1
    if host:
        of_host = and_(_hosts.c.session_id == sid, _hosts.c.host == host)
        attempt = session.execute(select(_hosts.c.attempt).where(of_host)).scalar_one()
        _end_earlier(session, sid, host, attempt)
    rows = [
        {"session_id": sid, "number": number, "host": host, "attempt": attempt, "plugin": plugin, "type": type}
        | {"state": ActionState.WAITING, "due": now}
        for number, plugin in wanted
    ]
    if rows:
        session.execute(postgresql.insert(_actions).values(rows).on_conflict_do_nothing())


def _wanted(actions: Sequence[Mapping[str, Any]], kind: ActionType) -> list[tuple[int, str]]:
    """Number and name the actions of a type, in the order in which they run."""
    found = [(number, action["plugin"]) for number, action in enumerate(actions) if action["type"] == kind]
    if not found and kind == ActionType.CHECK:
        return [(CHECK_NUMBER, CHECK_PLUGIN)]
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def _end_earlier(session: Session, sid: str, host: str, attempt: int) -> None:
    """End what is left of earlier attempts on a host."""
    earlier = and_(_actions.c.session_id == sid, _actions.c.host == host, _actions.c.attempt < attempt)
    session.execute(delete(_actions).where(earlier, _actions.c.state == ActionState.WAITING))
    values = {"state": ActionState.FAILED, "reason": "it was begun anew", "due": None, "finished": clock.now()}
    ended = update(_actions).where(earlier, _actions.c.state == ActionState.RUNNING).values(values)
    for jobs in session.execute(ended.returning(_actions.c.jobs)).scalars():
        _cancel(session, jobs)


def again(session: Session, sid: str) -> None:
    """Let what failed be done once more when the session is continued: of its own actions, not of those for hosts."""
    values = {
        **{name: _actions.c[name] for name in ("session_id", "number", "host", "plugin", "type")},
        "attempt": _actions.c.attempt + 1,
        "state": literal(ActionState.WAITING),
        "due": literal(clock.now()),
    }
    failed = select(*values.values()).where(
        _actions.c.session_id == sid, _actions.c.host == "", _actions.c.state == ActionState.FAILED, _is_newest
    )
    session.execute(insert(_actions).from_select([*values], failed))
    # Nobody has looked after the others meanwhile.
    running = and_(_actions.c.session_id == sid, _actions.c.state == ActionState.RUNNING)
    longer = func.greatest(_actions.c.deadline, clock.now() + GRACE)
    session.execute(update(_actions).where(running).values(deadline=longer))


def running(reader: Reader, sid: str) -> bool:
    """Tell whether an action is at work, not only waiting for its turn."""
    return bool(_present(reader, sid, (ActionState.RUNNING,)))


def progress(reader: Reader, sid: str) -> dict[tuple[ActionType, str], tuple[Progress, str]]:
    """Tell how far the actions are: those of each type for each host, and without one; why, if they failed."""
    actions = reader.execute(select(_sessions.c.actions).where(_sessions.c.id == sid)).scalar_one()
    hosts = reader.execute(select(_hosts.c.host).where(_hosts.c.session_id == sid)).scalars().all()
    rows: dict[tuple[ActionType, str], list[Any]] = {}
    for row in _present(reader, sid, tuple(ActionState)):
        rows.setdefault((ActionType(row.type), row.host), []).append(row)
    found = {}
    for kind in ActionType:
        none = Progress.NONE if _wanted(actions, kind) else Progress.DONE
        for host in hosts if kind in (ActionType.HOST, ActionType.CHECK) else ("",):
            found[kind, host] = _progress(rows.get((kind, host), []), none)
    return found


def _progress(rows: Sequence[Any], none: Progress) -> tuple[Progress, str]:
    if not rows:
        return none, ""
    for row in rows:
        if row.state == ActionState.FAILED:
            return Progress.FAILED, f"{row.plugin}: {row.reason}"
    for row in rows:
        if row.state in _OPEN:
            return Progress.RUNNING, f"{row.plugin}: {row.reason}" if row.reason else row.plugin
    return Progress.DONE, ""


def _present(reader: Reader, sid: str, states: Iterable[ActionState]) -> list[Any]:
    """Give the actions in some states, in their order; only those that count: of the present attempts."""
    statement = (
        select(_actions)
        .outerjoin_from(_actions, _hosts, _of_host)
        .where(_actions.c.session_id == sid, _actions.c.state.in_(tuple(states)))
        .where(or_(_actions.c.attempt == _hosts.c.attempt, and_(_actions.c.host == "", _is_newest)))
    )
    rows = reader.execute(statement).all()
    return sorted(rows, key=lambda row: (row.host, _ORDER[ActionType(row.type)], row.plugin, row.number))


# Going on


def advance(session: Session, sid: str) -> bool:
    """Let the actions of a session go on, those of different hosts beside each other; tells whether anything changed.

    The caller holds the session's row. While the session is paused, has failed, or was deleted, what runs goes on to
    its end, and nothing else is begun.
    """
    rows = _present(session, sid, (*_OPEN, ActionState.FAILED))
    if not any(row.state in _OPEN for row in rows):
        return False
    about = session.execute(_ABOUT.where(_sessions.c.id == sid)).one()
    stopped = about.paused or about.deleted is not None or about.state == FAILED
    queues = {host: list(some) for host, some in groupby(rows, key=lambda row: str(row.host))}
    heads = [some[0] for some in queues.values()]
    turn = _Turn(session, sid, about, heads)
    for some in queues.values():
        for row in some:
            if row.state == ActionState.FAILED or (row.state == ActionState.WAITING and stopped):
                break
            if not turn.take(row):
                break
    return turn.changed


_ABOUT = select(*(_sessions.c[name] for name in ("state", "paused", "deleted", "actions", "created_by")))


@dataclass(frozen=True)
class _Job:
    """What became of a job that an action has asked for; those that are no more are known by what was noted."""

    state: str
    error: str
    finished: datetime | None


def _jobs_of(session: Session, rows: Iterable[Any]) -> dict[str, _Job]:
    """Tell how far the last jobs of actions are, in one statement."""
    jids = [row.jobs[-1]["jid"] for row in rows if row.jobs and "ended" not in row.jobs[-1]]
    if not jids:
        return {}
    found = session.execute(
        select(_jobs.c.jid, _jobs.c.state, _jobs.c.error, _jobs.c.finished).where(_jobs.c.jid.in_(jids))
    )
    return {row.jid: _Job(row.state, row.error, row.finished) for row in found}


class _Turn:
    """One look at the actions of a session."""

    def __init__(self, session: Session, sid: str, about: Any, heads: Sequence[Any]) -> None:
        self.session = session
        self.sid = sid
        self.about = about
        self.heads = heads
        self.jobs = _jobs_of(session, heads)
        self.now = clock.now()
        self.changed = False

    def take(self, row: Any) -> bool:
        """Let an action go on as far as it can at the moment; tells whether it is done."""
        one = _One(self, row)
        if row.state == ActionState.WAITING:
            one.start()
        elif not one.look():
            return False
        self.changed = True
        return one.ask()

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """Give the hosts of the session, in their order."""
        named = select(_hosts.c.host).where(_hosts.c.session_id == self.sid).order_by(_hosts.c.position)
        return tuple(self.session.execute(named).scalars())

    @cached_property
    def downloads(self) -> Mapping[str, str]:
        """Give the paths of what was downloaded."""
        return downloads.paths(self.session, self.sid)

    @cached_property
    def outputs(self) -> Mapping[str, Mapping[str, Any]]:
        """Give the outputs of all that was wanted by the actions that do not wait for a job any more."""
        jids = [job["jid"] for row in self.heads if not self._waits(row) for job in row.jobs]
        return _outputs_of(self.session, jids)

    def _waits(self, row: Any) -> bool:
        job = self.jobs.get(row.jobs[-1]["jid"]) if row.jobs else None
        return job is not None and not LIFE.final(JobState(job.state))


class _One:
    """An action that goes on."""

    def __init__(self, turn: _Turn, row: Any) -> None:
        self.turn = turn
        self.row = row
        self.jobs: list[dict[str, Any]] = [dict(job) for job in row.jobs]
        self.started: datetime = row.started or turn.now
        self.deadline: datetime | None = row.deadline

    def start(self) -> None:
        """Begin; the deadline is that of the metadata, or else of its kind."""
        self._tell("maintenance.action_started", f"{self.row.type} action {self.row.plugin} began")

    def look(self) -> bool:
        """Tell whether it is to be asked for its next step: it does not wait for anything any more."""
        overdue = self.deadline is not None and self.turn.now >= self.deadline
        if self.jobs and "ended" not in self.jobs[-1]:
            last = self.jobs[-1]
            job = self.turn.jobs.get(last["jid"])
            if job is not None and not LIFE.final(JobState(job.state)):
                return overdue
            ended = job.finished if job is not None and job.finished is not None else self.turn.now
            ok = job is not None and job.state == JobState.DONE
            error = job.error if job is not None else "its job was deleted"
            last |= {"ok": ok, "error": error, "ended": ended.isoformat()}
            if error in (running_jobs.LOST, running_jobs.STOPPED):
                last["unfinished"] = True
            return True
        return overdue or self.row.due is None or bool(self.row.due <= self.turn.now)

    def ask(self) -> bool:
        """Ask for the next step and take it; tells whether the action is done."""
        overdue = self.deadline is not None and self.turn.now >= self.deadline
        waiting = bool(self.jobs) and "ended" not in self.jobs[-1]
        wanted = Wait(0) if waiting else self._next()
        if overdue and not isinstance(wanted, Done | Failed):
            _cancel(self.turn.session, self.jobs)
            seconds = (self.deadline - self.started).total_seconds() if self.deadline else 0
            wanted = Failed(f"timed out after {seconds:g} s")
        match wanted:
            case Operate():
                self._operate(wanted)
            case Wait():
                due = self.turn.now + timedelta(seconds=max(wanted.seconds, 0))
                self._write(due=min(due, self.deadline) if self.deadline else due, reason=wanted.what_for or None)
            case Done():
                self._write(state=ActionState.DONE, due=None, reason=None, finished=self.turn.now)
                self._tell("maintenance.action_done", f"{self.row.type} action {self.row.plugin} is done")
                return True
            case Failed():
                self._fail(wanted.reason)
        return False

    def _next(self) -> Operate | Wait | Done | Failed:
        """Ask the plugin; whatever it raises, the action has failed for it."""
        view = self._view()
        try:
            kind = _kind(self.row.plugin)
            number = self.row.number
            metadata = self.turn.about.actions[number].get("metadata") or {} if number != CHECK_NUMBER else {}
            action = kind(metadata)
            if self.deadline is None:
                self.deadline = self.started + timedelta(seconds=float(metadata.get("timeout") or kind.timeout))
            wanted: object = action.next(view)
        except Exception as error:
            log.warning("action_broken", exc_info=True, extra={"session": self.turn.sid, "plugin": self.row.plugin})
            return Failed(f"{type(error).__name__}: {error}".strip(": "))
        if isinstance(wanted, Operate | Wait | Done | Failed):
            return wanted
        return Failed(f"it wanted {wanted!r:.100}, which is no step")

    def _view(self) -> View:
        return View(
            host=self.row.host,
            hosts=self.turn.hosts,
            downloads=self.turn.downloads,
            started=self.started,
            now=self.turn.now,
            outcomes=tuple(self._outcomes()),
            attempt=self.row.attempt,
        )

    def _outcomes(self) -> Iterator[Outcome]:
        for job in self.jobs:
            ended = datetime.fromisoformat(job["ended"])
            outputs = self.turn.outputs.get(job["jid"], {})
            unfinished = job.get("unfinished", False)
            yield Outcome(job["step"], job["ok"], job["error"], outputs, ended, unfinished)

    def _operate(self, wanted: Operate) -> None:
        if any(job["step"] == wanted.step for job in self.jobs):
            self._fail(f"it wanted {wanted.step} twice")
            return
        left = max((self.deadline - self.turn.now).total_seconds(), 1) if self.deadline else Action.timeout
        row = self.row
        try:
            jid = remote.submit(
                self.turn.session,
                remote.Wanted(Operation(wanted.operation), list(wanted.hosts), dict(wanted.arguments)),
                asked_by=f"maintenance for {self.turn.about.created_by}",
                address=None,
                timeout=min(left, wanted.timeout or left),
                begin_within=left,
                key=f"maintenance/{self.turn.sid}/{row.number}/{row.host}/{row.attempt}/{wanted.step}",
            )
        except (Conflict, Unavailable) as error:
            # Another job has a host, or no worker has read the inventory yet: that passes.
            due = self.turn.now + timedelta(seconds=BUSY_PAUSE)
            self._write(due=min(due, self.deadline) if self.deadline else due, reason=error.message)
        except (LabError, ValueError) as error:
            self._fail(str(error))
        else:
            self.jobs.append({"step": wanted.step, "jid": jid})
            self._write(due=None, reason=None)

    def _fail(self, reason: str) -> None:
        # What a database cannot hold is nobody's fault here.
        reason = reason.replace("\0", "\N{REPLACEMENT CHARACTER}")[:LONGEST] or "it does not say why"
        self._write(state=ActionState.FAILED, due=None, reason=reason, finished=self.turn.now)
        text = f"{self.row.type} action {self.row.plugin} failed: {reason}"
        self._tell("maintenance.action_failed", text, reason=reason)

    def _write(self, **values: Any) -> None:
        row = self.row
        key = ("session_id", "number", "host", "attempt")
        this = and_(*(_actions.c[name] == getattr(row, name) for name in key))
        common = {"state": ActionState.RUNNING, "started": self.started, "deadline": self.deadline, "jobs": self.jobs}
        self.turn.session.execute(update(_actions).where(this).values({**common, **values}))

    def _tell(self, kind: str, text: str, **data: Any) -> None:
        row, turn = self.row, self.turn
        about = {"state": turn.about.state, "host": row.host or None}
        turn.session.execute(insert(_steps).values(session_id=turn.sid, at=turn.now, text=text, **about))
        told = {"plugin": row.plugin, "type": row.type, "number": row.number, "host": row.host, "attempt": row.attempt}
        record(turn.session, kind, f"maintenance/{turn.sid}", **told, **data)


def _outputs_of(session: Session, jids: Collection[str]) -> dict[str, dict[str, Any]]:
    """Give the last output of each host of jobs, in one statement."""
    outputs: dict[str, dict[str, Any]] = {}
    if jids:
        last = (
            select(_jobs.c.jid, _outputs.c.host, _outputs.c.chunk)
            .join_from(_jobs, _outputs, _outputs.c.job_id == _jobs.c.id)
            .where(_jobs.c.jid.in_(jids))
            .ext(postgresql.distinct_on(_jobs.c.jid, _outputs.c.host))
            .order_by(_jobs.c.jid, _outputs.c.host, _outputs.c.seq.desc())
        )
        for row in session.execute(last):
            outputs.setdefault(row.jid, {})[row.host] = json.loads(row.chunk)
    return outputs


@cache
def _kind(plugin: str) -> type[Action]:
    kind: type[Action] = plugins.load(GROUP, plugin)
    return kind


def _cancel(session: Session, jobs: Sequence[Mapping[str, Any]]) -> None:
    """End the job that an action still waits for."""
    if jobs and "ended" not in jobs[-1]:
        try:
            remote.cancel(session, jobs[-1]["jid"], "maintenance")
        except NotFound:
            return

"""What becomes of the files that sessions need: rows that tasks claim, fetch and write down."""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, case, insert, or_, select, update
from sqlalchemy.orm import Session

from labctl import clock, lease, queue
from labctl.db import Reader, table
from labctl.events.service import record
from labctl.maintenance import fetching
from labctl.maintenance.models import MaintenanceDownload, MaintenanceSession, MaintenanceStep
from labctl.maintenance.states import FAILED, ActionState
from labctl.maintenance.workflow import Progress

log = logging.getLogger(__name__)

#: How often one may fail for what may pass, and seconds after which it is tried again, the first time.
TRIES = 4
RETRY_FIRST = 2.0
TASK = "maintenance.download"

_downloads = table(MaintenanceDownload)
_sessions = table(MaintenanceSession)
_steps = table(MaintenanceStep)
#: What the files of a session are below; nothing else there is anybody's business.
_SESSION = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Held:
    """A download that a worker has claimed."""

    holder: str
    lease_attempt: int
    session_id: str
    position: int
    url: str
    sha256: str | None
    failures: int

    @property
    def place(self) -> str:
        """Name the directory that is this claim's alone, so that one that was given up for dead spoils nothing."""
        return f"{self.position}-{self.lease_attempt}"


def begin(session: Session, sid: str) -> None:
    """Have the files of a session fetched that nobody has begun to fetch; at once, if a worker has nothing to do."""
    fresh = and_(_downloads.c.session_id == sid, _downloads.c.state == ActionState.WAITING, _downloads.c.due.is_(None))
    begun = session.execute(update(_downloads).where(fresh).values(due=clock.now()).returning(_downloads.c.position))
    if begun.all():
        queue.defer(session, TASK)


def again(session: Session, sid: str) -> None:
    """Have files fetched once more that could not be, when the session is continued."""
    failed = and_(_downloads.c.session_id == sid, _downloads.c.state == ActionState.FAILED)
    fresh = {"state": ActionState.WAITING, "due": clock.now(), "failures": 0, "reason": None, "finished": None}
    begun = session.execute(update(_downloads).where(failed).values(fresh).returning(_downloads.c.position))
    if begun.all():
        queue.defer(session, TASK)


def progress(reader: Reader, sid: str) -> tuple[Progress, str]:
    """Tell how far the files of a session are, and why one could not be fetched."""
    rows = reader.execute(
        select(_downloads.c.state, _downloads.c.url, _downloads.c.reason, _downloads.c.due)
        .where(_downloads.c.session_id == sid)
        .order_by(_downloads.c.position)
    ).all()
    for row in rows:
        if row.state == ActionState.FAILED:
            return Progress.FAILED, f"{fetching.shown(row.url)} could not be downloaded: {row.reason}"
    if all(row.state == ActionState.DONE for row in rows):
        return Progress.DONE, ""
    if any(row.state == ActionState.WAITING and row.due is None for row in rows):
        return Progress.NONE, ""
    return Progress.RUNNING, ""


def paths(reader: Reader, sid: str) -> dict[str, str]:
    """Give the paths of the files that are there, by their URLs without the hash."""
    rows = reader.execute(
        select(_downloads.c.url, _downloads.c.path)
        .where(_downloads.c.session_id == sid, _downloads.c.state == ActionState.DONE)
        .order_by(_downloads.c.position)
    )
    return {row.url.partition("#")[0]: row.path for row in rows}


# What the task does


def claim(session: Session, holder: str, number: int, seconds: float) -> Sequence[Held]:
    """Claim files that are to be fetched, those that wait longest first; none of sessions that were deleted."""
    now = clock.now()
    pick = (
        select(_downloads.c.session_id, _downloads.c.position)
        .join_from(_downloads, _sessions)
        .where(_downloads.c.state.in_((ActionState.WAITING, ActionState.RUNNING)), _downloads.c.due <= now)
        .where(or_(_downloads.c.lease_until.is_(None), _downloads.c.lease_until <= now))
        .where(_sessions.c.deleted.is_(None), _sessions.c.state != FAILED)
        .order_by(_downloads.c.due)
        .limit(number)
        .with_for_update(of=_downloads, skip_locked=True)
        .cte("pick")
    )
    same = and_(_downloads.c.session_id == pick.c.session_id, _downloads.c.position == pick.c.position)
    statement = (
        update(_downloads)
        .where(same)
        .values(state=ActionState.RUNNING, **lease.claim(MaintenanceDownload, holder, seconds))
        .returning(*(_downloads.c[name] for name in Held.__dataclass_fields__ if name != "holder"))
    )
    return [Held(holder=holder, **row._mapping) for row in session.execute(statement)]


def renew(session: Session, held: Collection[Held], seconds: float) -> set[Held]:
    """Keep claims for so much longer; gives those that hold, and whose sessions still want the files."""
    until = clock.now() + timedelta(seconds=seconds)
    kept = set()
    wanted = and_(_sessions.c.id == _downloads.c.session_id, _sessions.c.deleted.is_(None), _sessions.c.state != FAILED)
    for one in sorted(held, key=lambda each: (each.session_id, each.position)):
        change = update(_downloads).where(_mine(one), wanted).values(lease_until=until)
        if session.execute(change.returning(_downloads.c.position)).first():
            kept.add(one)
    return kept


def done(session: Session, held: Held, path: str, size: int, sha256: str) -> None:
    """Note that a file is there."""
    state = _wake(session, held)
    values = {"state": ActionState.DONE, "path": path, "size": size, "reason": None, "finished": clock.now()}
    if _change(session, held, **values):
        _tell(session, held, state, f"downloaded {fetching.shown(held.url)} ({size} bytes)")
        told = {"url": fetching.shown(held.url), "size": size, "sha256": sha256}
        record(session, "maintenance.downloaded", f"maintenance/{held.session_id}", **told)


def failed(session: Session, held: Held, reason: str, *, passing: bool) -> None:
    """Note why a file is not there: it is tried again a little later, or the session cannot go on."""
    failures = held.failures + 1
    told = {"url": fetching.shown(held.url), "reason": reason}
    if passing and failures < TRIES:
        due = clock.now() + timedelta(seconds=RETRY_FIRST * 2**held.failures)
        _change(session, held, state=ActionState.WAITING, failures=failures, reason=reason, due=due)
        log.info("download_tried", extra={"session": held.session_id, **told})
        return
    state = _wake(session, held)
    values = {"state": ActionState.FAILED, "failures": failures, "reason": reason, "finished": clock.now()}
    if _change(session, held, **values):
        _tell(session, held, state, f"could not download {fetching.shown(held.url)}: {reason}")
        record(session, "maintenance.download_failed", f"maintenance/{held.session_id}", **told)
        log.warning("download_failed", extra={"session": held.session_id, **told})


def let_go(session: Session, held: Held) -> None:
    """Give a claim back, so that another worker goes on at once; this one ends."""
    _change(session, held, state=ActionState.WAITING)


def _mine(held: Held) -> Any:
    this = and_(_downloads.c.session_id == held.session_id, _downloads.c.position == held.position)
    return and_(this, lease.held(MaintenanceDownload, held.holder, held.lease_attempt))


def _change(session: Session, held: Held, **values: Any) -> bool:
    """Change a download and end the claim, if that still holds."""
    change = update(_downloads).where(_mine(held)).values(**values, **lease.FREE)
    return session.execute(change.returning(_downloads.c.position)).first() is not None


def _wake(session: Session, held: Held) -> str | None:
    """Have the engine look at the session at once; locks its row, before that of the download, as who deletes it does.

    Gives the session's state; None: it is no more.
    """
    change = update(_sessions).where(_sessions.c.id == held.session_id)
    soon = case((_sessions.c.due.is_not(None), clock.now()))
    return session.execute(change.values(due=soon).returning(_sessions.c.state)).scalar()


def _tell(session: Session, held: Held, state: str | None, text: str) -> None:
    session.execute(insert(_steps).values(session_id=held.session_id, at=clock.now(), state=state, text=text))


# Forgetting


def forgotten(reader: Reader, names: Collection[str]) -> set[str]:
    """Name those directories that were made for sessions which are known no more."""
    made = {name for name in names if _SESSION.fullmatch(name)}
    if not made:
        return made
    return made - set(reader.execute(select(_sessions.c.id).where(_sessions.c.id.in_(made))).scalars())

"""The engine of sessions: the thread of a worker that looks at those that are due, each in short transactions.

Any number of engines share the work: a session that another one holds is left to that one.
"""

import logging
import threading
from collections.abc import Callable, Mapping

from labctl import db
from labctl.errors import Unavailable
from labctl.maintenance import advancing, config, known
from labctl.maintenance.workflow import Workflow

log = logging.getLogger(__name__)

#: Seconds between looks for sessions that are due.
POLL = 0.4
#: How many are looked for at once, and how many steps one may take before it is the turn of the others.
BATCH, STEPS = 100, 50
#: Seconds between tries when the database is gone: at first, and at the most.
PAUSE_FIRST, PAUSE_MOST = 0.5, 10.0
#: Seconds after which a session is tried again that can neither be advanced nor fail.
BROKEN_PAUSE = 30.0


class Engine:
    """One engine; :meth:`start` and :meth:`stop` are for the process, :meth:`tick` is one round of its work."""

    def __init__(
        self,
        reply_seconds: Mapping[str, float],
        *,
        can: known.Capabilities = known.NOTHING,
        poll: float = POLL,
        workflow_of: Callable[[str], Workflow] = config.workflow,
    ) -> None:
        """``reply_seconds``: for how long projects may answer, by state."""
        self._reply_seconds = reply_seconds
        self._can = can
        self._poll = poll
        self._workflow_of = workflow_of
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance-engine", daemon=True)

    def start(self) -> None:
        """Work in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; does not wait for that."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = PAUSE_FIRST
        while not self._stopping.is_set():
            try:
                busy = self.tick()
                pause = PAUSE_FIRST
                if not busy:
                    self._stopping.wait(self._poll)
            except Exception as error:
                expected = isinstance(error, Unavailable)
                extra = {"reason": str(error), "again_in": pause}
                log.warning("maintenance_interrupted", extra=extra, exc_info=not expected)
                self._stopping.wait(pause)
                pause = min(pause * 2, PAUSE_MOST)
        log.info("maintenance_engine_stopped")

    def tick(self) -> bool:
        """Look at all sessions that are due; tells whether some had more to do than their turn allows."""
        with db.reading() as reader:
            due = advancing.due(reader, BATCH)
        busy = False
        for sid in due:
            for _ in range(STEPS):
                if self._stopping.is_set():
                    return False
                if not self._advance(sid):
                    break
            else:
                busy = True
        return busy

    def _advance(self, sid: str) -> bool:
        try:
            with db.transaction() as session:
                return advancing.advance(session, sid, self._workflow_of, self._reply_seconds, self._can)
        except Unavailable:
            raise
        except Exception as error:
            # Nothing of it was written; without this, it would be tried for ever.
            log.exception("maintenance_broken", extra={"session": sid})
            self._give_up(sid, f"labctl could not go on: {type(error).__name__}: {error}")
        return False

    def _give_up(self, sid: str, reason: str) -> None:
        try:
            with db.transaction() as session:
                advancing.put_off(session, sid, BROKEN_PAUSE)
                advancing.fail(session, sid, reason)
        except Unavailable:
            raise
        except Exception:
            log.exception("maintenance_broken", extra={"session": sid})
            with db.transaction() as session:
                advancing.put_off(session, sid, BROKEN_PAUSE)

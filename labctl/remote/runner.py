"""The runner: the thread of a worker that takes queued jobs and has each carried out in a thread of its own.

Any number of runners share the work by the leases of jobs. It looks for what is due by itself, and at once when it is
woken. What happens to a job between its claim and its end is told in :mod:`labctl.remote.carrying`.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Set

from labctl import db
from labctl.errors import Unavailable
from labctl.remote import running, tasks
from labctl.remote.carrying import CANCEL_PATIENCE, Carrying, Ending
from labctl.remote.executor import Executor, ExecutorError
from labctl.remote.states import SHORT, JobState
from labctl.remote.task import Task
from labctl.settings import SHORT_JOBS

log = logging.getLogger(__name__)

#: Seconds between looks for something to do.
POLL = 0.5
#: Seconds between tries when the database is gone: at first, and at the most.
PAUSE_FIRST, PAUSE_MOST = 0.5, 2.0
#: Seconds for which jobs may go on when the runner is told to stop; then they are cancelled.
PATIENCE = 20.0
#: Seconds from there until it ends in any case.
STOP_WITHIN = CANCEL_PATIENCE + 4
#: The part of a lease after which it is renewed: so much of it is left when the database goes away.
RENEW_AFTER = 1 / 6
#: Seconds between looks at the inventory, and between notes that it is as it was.
INVENTORY_EVERY, INVENTORY_STAMP = 3.0, 30.0

#: The hosts with their groups, or why they could not be read.
Read = tuple[Mapping[str, Set[str]] | None, str | None]


class Runner:
    """One runner; :meth:`start`, :meth:`stop` and :meth:`join` are for the process, :meth:`tick` is one round."""

    def __init__(
        self,
        executor: Executor,
        kinds: Mapping[str, type[Task]],
        *,
        most: int = 8,
        most_output: int = 1024 * 1024,
        lease: float = 30,
        poll: float = POLL,
        patience: float = PATIENCE,
    ) -> None:
        """``kinds``: the tasks by name; ``lease``: seconds after which a job counts as lost.

        ``most``: jobs at once, beside SHORT_JOBS that only take a moment: nobody waits for a ping until a deploy ends.
        """
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._executor = executor
        self._kinds = kinds
        self._most = most
        self._most_output = most_output
        self._lease = lease
        self._poll = poll
        self._patience = patience
        self._carrying: dict[int, Carrying] = {}
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote-runner", daemon=True)
        self._inventory_thread = threading.Thread(target=self._keep_inventory, name="remote-inventory", daemon=True)

    # Of the process

    def start(self) -> None:
        """Work in a thread."""
        tasks.wakes.append(self.wake)
        self._thread.start()
        self._inventory_thread.start()

    def wake(self) -> None:
        """Look for something to do at once; any thread may call this."""
        self._woken.set()

    def stop(self) -> None:
        """Take no more jobs, and end when those that go on have ended or were given enough time; does not wait."""
        self._stopping.set()
        self._woken.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    @property
    def busy(self) -> int:
        """How many jobs go on."""
        return len(self._carrying)

    def _run(self) -> None:
        log.info("runner_started", extra={"holder": self.holder})
        pause = PAUSE_FIRST
        while not self._stopping.is_set():
            try:
                self.tick()
                pause = PAUSE_FIRST
                self._woken.wait(self._poll)
            except Exception as error:
                self._complain(error, pause)
                # Not woken before: there is nothing to be done without a database.
                self._stopping.wait(pause)
                pause = min(pause * 2, PAUSE_MOST)
            self._woken.clear()
        self.close()
        log.info("runner_stopped")

    def _complain(self, error: Exception, pause: float) -> None:
        expected = isinstance(error, Unavailable)
        log.warning("runner_interrupted", extra={"reason": str(error), "again_in": pause}, exc_info=not expected)

    def close(self) -> None:
        """Give the jobs that go on their time, then cancel them; they end as failed."""
        self._stopping.set()
        if self.wake in tasks.wakes:
            tasks.wakes.remove(self.wake)
        cancel_at = time.monotonic() + self._patience
        while self._carrying and time.monotonic() < cancel_at + STOP_WITHIN:
            if time.monotonic() >= cancel_at:
                for one in self._carrying.values():
                    one.end(Ending(JobState.FAILED, running.STOPPED))
            try:
                self.tick()
            except Exception as error:
                self._complain(error, self._poll)
            if self._carrying:
                self._woken.wait(min(self._poll, max(0.05, cancel_at - time.monotonic())))
                self._woken.clear()
        try:
            self._executor.close()
        except Exception as error:
            log.warning("executor_not_closed", extra={"reason": str(error)})

    # A round

    def tick(self) -> None:
        """See to the jobs that go on, end those that nobody carries out any more, and begin others."""
        self._tend()
        if self._stopping.is_set():
            return
        with db.reading() as reader:
            due = running.due(reader)
        if due.lost or due.given_up:
            with db.transaction() as session:
                running.end_lost(session)
                running.give_up_queued(session)
        number, short = self._room()
        if (due.queued and number > 0) or (due.short and short > 0):
            self._begin(number, short)

    def _room(self) -> tuple[int, int]:
        """Count the free places: those for any job, and those for short ones alone, which these take first."""
        short = sum(one.taken.operation in SHORT for one in self._carrying.values())
        own = min(short, SHORT_JOBS)
        return self._most - (len(self._carrying) - own), SHORT_JOBS - own

    def _tend(self) -> None:
        for job, one in tuple(self._carrying.items()):
            one.look()
            if one.overdue and one.alive:
                one.give_up()
                del self._carrying[job]
            elif not one.alive:
                del self._carrying[job]
        if not self._carrying:
            return
        now = time.monotonic()
        soon = now + self._lease * (1 - RENEW_AFTER)
        ids = [job for job, one in self._carrying.items() if one.lease_until <= soon]
        if ids:
            others = self._carrying.keys() - set(ids)
            with db.transaction() as session:
                found = running.renew(session, self.holder, self._lease, ids, others)
        else:
            with db.reading() as reader:
                found = running.look(reader, self.holder, self._carrying.keys())
        for job, standing in found.items():
            one = self._carrying[job]
            if standing.renewed:
                one.lease_until = now + self._lease
            if standing.cancelled_by is not None:
                one.end(Ending(JobState.CANCELLED, f"cancelled by {standing.cancelled_by}"))
            # The lease of one that has just ended is free as well.
            if not standing.held and not one.finishing:
                one.lose("it is not held any more")

    def _begin(self, number: int, short: int) -> None:
        now = time.monotonic()
        with db.transaction() as session:
            claimed = running.claim(session, self.holder, number, self._lease, short)
        # After the commit: whatever happens from here on, the claim is there.
        for taken in claimed:
            one = Carrying(
                taken,
                self._executor,
                self._kinds,
                most_output=self._most_output,
                lease=self._lease,
                lease_until=now + self._lease,
                over=self.wake,
            )
            self._carrying[taken.id] = one
            log.info("remote_job_begun", extra={"jid": taken.jid, "operation": taken.operation})
            try:
                one.start()
            except RuntimeError:
                one.give_up()

    # The inventory

    def _keep_inventory(self) -> None:
        written: Read | None = None
        told: str | None = None
        stamp_at = 0.0
        while not self._stopping.is_set():
            read = self._read_inventory()
            if read != written or time.monotonic() >= stamp_at:
                try:
                    with db.transaction() as session:
                        changed = running.write_inventory(session, *read)
                    written, stamp_at = read, time.monotonic() + INVENTORY_STAMP
                    told = self._tell_of_inventory(read, told, changed)
                except Exception as error:
                    log.warning("inventory_not_written", extra={"reason": str(error)})
            self._stopping.wait(INVENTORY_EVERY)

    def _tell_of_inventory(self, read: Read, told: str | None, changed: bool) -> str | None:
        """Log what is new, and give the reason that was logged last; it is told once, not every few seconds."""
        hosts, reason = read
        if reason is not None and reason != told:
            log.warning("inventory_failed", extra={"reason": reason})
        elif hosts is not None and (changed or told is not None):
            log.info("inventory_read", extra={"hosts": len(hosts)})
        return reason

    def _read_inventory(self) -> Read:
        try:
            return {name: frozenset(groups) for name, groups in self._executor.hosts().items()}, None
        except ExecutorError as error:
            return None, str(error)
        except Exception as error:
            log.exception("inventory_failed")
            return None, f"got unexpected error, {type(error).__name__}: {error}"

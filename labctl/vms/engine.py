"""The engine: the thread of a worker that keeps pools full and has VMs looked at, worked on and destroyed.

It looks for what is due by itself, a few times a second, so that nobody has to notify it: a checkout costs nothing.
Any number of engines share the work by the leases of its rows. A provider is asked in threads, outside of transactions;
what it answers is written in a short one, which changes nothing if the lease was lost meanwhile.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from labctl import clock, db
from labctl.errors import Unavailable
from labctl.pools import Check
from labctl.vms import cordon, listing, on_demand, planning, upkeep, work
from labctl.vms.calls import Calls, Ended, Hung
from labctl.vms.config import Served
from labctl.vms.jobs import Destroy, DestroyOrphan, Job, Lane, List, Look, Make, Work
from labctl.vms.provider import Misconfigured, NoCapacity, Unreachable
from labctl.vms.standing import Standing, provider_answered, provider_failed, provider_is_gone, standings
from labctl.vms.states import VMState
from labctl.vms.upkeep import Held, Rules

log = logging.getLogger(__name__)

#: Seconds between looks for something to do.
POLL = 0.3
#: The part of its time that it may spend with that where it takes long, though it looks every so many seconds.
LOOKING_PART, SELDOM = 0.05, 0.7
#: Seconds between tries when the database is gone: at first, and at the most.
PAUSE_FIRST, PAUSE_MOST = 0.5, 10.0
#: Seconds for calls that go on when the engine is told to stop; they are made again by another one.
PATIENCE = 3.0
#: So many times as many VMs are looked at as are made at once: it costs a provider little, and may wait for the VM.
LOOKS = 4
#: What there may be to do, and the lane in which it is done; what needs no provider has none.
LANES: dict[str, Lane] = {
    VMState.PENDING: Lane.LOOK,
    VMState.REQUESTED: Lane.MAKE,
    VMState.READY: Lane.LOOK,
    VMState.COMPLETED: Lane.DESTROY,
    upkeep.ORPHAN: Lane.DESTROY,
    upkeep.WORK: Lane.WORK,
}


class Engine:
    """One engine; :meth:`start` and :meth:`stop` are for the process, :meth:`tick` is one round of its work."""

    def __init__(self, rules: Rules, providers: Mapping[str, Served], *, lease: float = 30, poll: float = POLL) -> None:
        """``lease``: seconds after which another engine goes on with what this one has left."""
        self.rules = rules
        self.providers = providers
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lease = lease
        self._poll = poll
        self._calls = Calls()
        self._unwritten: deque[Ended] = deque()
        #: For which pool a provider could not make a VM the last time.
        self._failed: dict[str, str] = {}
        self._unknown: set[str] = set()
        self._rested = self._renewed = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vm-engine", daemon=True)

    # Of the process

    def start(self) -> None:
        """Work in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; does not wait for that."""
        self._stopping.set()
        self._calls.wake()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = PAUSE_FIRST
        log.info("engine_started", extra={"holder": self.holder})
        while not self._stopping.is_set():
            try:
                self.tick(self._poll)
                pause = PAUSE_FIRST
            except Exception as error:
                expected = isinstance(error, Unavailable)
                log.warning(
                    "engine_interrupted", extra={"reason": str(error), "again_in": pause}, exc_info=not expected
                )
                self._stopping.wait(pause)
                pause = min(pause * 2, PAUSE_MOST)
        try:
            self.close(PATIENCE)
        except Exception as error:
            log.warning("engine_not_closed", extra={"reason": str(error)})
        log.info("engine_stopped")

    def close(self, patience: float) -> None:
        """Hear out the calls that end soon, and leave the others to other engines."""
        deadline = time.monotonic() + patience
        while len(self._calls) and (left := deadline - time.monotonic()) > 0:
            self._hear(left)
        with db.transaction() as session:
            upkeep.let_all_go(session, self.holder)

    # A round

    @property
    def busy(self) -> int:
        """How many calls go on."""
        return len(self._calls)

    def tick(self, wait: float = 0) -> None:
        """Write down what has ended, after waiting for that a while, and begin what is due."""
        self._hear(wait)
        self._renew()
        if self._stopping.is_set() or time.monotonic() < self._rested:
            return
        began = time.monotonic()
        with db.reading() as reader:
            state = standings(reader)
            due = upkeep.due(reader)
            plan = planning.decide(self.rules, planning.survey(reader, state))
        took = time.monotonic() - began
        # What was heard may be followed by more at once, but in a large lab not by counting all the time.
        if self._poll and took > self._poll * LOOKING_PART:
            self._rested = time.monotonic() + min(took / LOOKING_PART, SELDOM)
        if plan:
            with db.transaction() as session:
                planned = planning.carry_out(session, self.rules)
            if planned:
                with db.reading() as reader:
                    due = upkeep.due(reader)
        self._begin(due, state)
        self._begin_lists(state)

    def _hear(self, wait: float) -> None:
        self._unwritten.extend(self._calls.ended(wait))
        while self._unwritten:
            ended = self._unwritten[0]
            try:
                self._write(ended)
            except Unavailable:
                # It stays, and is written once there is a database again, if the lease lasts.
                raise
            except Exception:
                log.exception("engine_outcome_lost", extra={"job": type(ended.subject).__name__})
            self._unwritten.popleft()

    def _write(self, ended: Ended) -> None:
        job: Job = ended.subject
        error = ended.error
        with db.transaction() as session:
            if error is None:
                job.succeeded(session, self.rules, ended.result, ended.seconds)
            else:
                job.failed(session, self.rules, error)
            if error is None or isinstance(error, NoCapacity | Misconfigured):
                provider_answered(session, job.provider, probe=job.probe)
            elif self._is_the_providers(job, error):
                stuck = isinstance(error, Hung) and self._calls.is_stuck(job.provider)
                reason = upkeep.describe(error) if not stuck else "too many calls hang"
                provider_failed(session, job.provider, reason, probe=job.probe, now_open=stuck)
        if error is not None:
            extra = {"provider": job.provider, "job": type(job).__name__, "reason": upkeep.describe(error)}
            log.warning("provider_call_failed", extra=extra)

    def _is_the_providers(self, job: Job, error: Exception) -> bool:
        """Tell whether a failure counts against the provider; those of one pool in a row are that pool's own."""
        if isinstance(error, Unreachable):
            return False
        if not isinstance(job, Make) or isinstance(error, Hung):
            return True
        before, self._failed[job.provider] = self._failed.get(job.provider), job.vm.pool
        return before != job.vm.pool

    def _renew(self) -> None:
        """Keep the leases of the calls that go on."""
        if time.monotonic() < self._renewed + self._lease / 3:
            return
        self._renewed = time.monotonic()
        jobs = [*self._calls.subjects, *(ended.subject for ended in self._unwritten)]
        vms = [job.vm.id for job in jobs if isinstance(job, Make | Look | Destroy)]
        works = [job.work.id for job in jobs if isinstance(job, Work)]
        if vms or works:
            with db.transaction() as session:
                upkeep.renew(session, self.holder, self._lease, vms, works)

    def _begin(self, due: Iterable[tuple[str, str, int]], state: Mapping[str, Standing]) -> None:
        """Claim what is due as far as there is room, and ask the providers."""
        due = sorted(due, key=lambda one: list(LANES).index(one[1]) if one[1] in LANES else -1)
        for name, what, number in due:
            if what == VMState.RUNNING:
                with db.transaction() as session:
                    upkeep.watch_running(session, self.rules.warning)
            elif what == upkeep.REQUEST:
                with db.transaction() as session:
                    on_demand.finish(session)
            elif name not in self.providers:
                self._warn_of(name)
            elif not state.get(name, Standing()).open and (room := self._room(name, LANES[what])) > 0:
                self._begin_jobs(name, what, min(room, number))

    def _room(self, provider: str, lane: Lane) -> int:
        """Tell how many more calls of a kind may be begun."""
        if self._calls.is_stuck(provider):
            return 0
        most = self.providers[provider].handling.limit * (LOOKS if lane == Lane.LOOK else 1)
        return most - self._calls.number((provider, lane))

    def _warn_of(self, provider: str) -> None:
        """Say once that there are VMs of a provider that is not configured any more; they stay as they are."""
        if provider not in self._unknown:
            with db.transaction() as session:
                provider_is_gone(session, provider)
            self._unknown.add(provider)
            log.warning("provider_not_configured", extra={"provider": provider})

    def _begin_jobs(self, provider: str, what: str, number: int) -> None:
        jobs: list[Job] = []
        with db.transaction() as session:
            claim = (session, self.holder, provider)
            if what == upkeep.ORPHAN:
                orphans = listing.claim(*claim, number, self._lease)
                jobs += [DestroyOrphan(provider, orphan) for orphan in orphans]
            elif what == upkeep.WORK:
                work.drop(session, provider)
                upkeep.no_cordon_meanwhile(session)
                out_of_service = cordon.cordoned(session)
                jobs += [Work(provider, one, out_of_service) for one in work.claim(*claim, number, self._lease)]
            else:
                avoid: frozenset[str] = frozenset()
                if what == VMState.REQUESTED:
                    upkeep.no_cordon_meanwhile(session)
                    avoid = cordon.cordoned(session)
                for vm in upkeep.claim(*claim, VMState(what), number, self._lease):
                    ttl = self.rules.time_to_live(vm.pool)
                    if vm.state == VMState.READY and ttl and vm.ready and vm.ready + ttl <= clock.now():
                        upkeep.complete(session, vm, "it has been ready for too long")
                    else:
                        jobs.append(self._job(vm, avoid))
        # After the commit: whatever happens from here on, the claim is there.
        for job in jobs:
            self._call(job)

    def _job(self, vm: Held, avoid: frozenset[str]) -> Job:
        pool = self.rules.catalog.pools.get(vm.pool)
        if vm.state == VMState.REQUESTED:
            return Make(vm.provider, vm, dict(pool.options) if pool else {}, avoid)
        if vm.state == VMState.COMPLETED:
            return Destroy(vm.provider, vm)
        return Look(vm.provider, vm, pool.check if pool else Check())

    def _begin_lists(self, state: Mapping[str, Standing]) -> None:
        now = clock.now()
        for name, served in self.providers.items():
            interval = served.handling.list_interval
            if not state.get(name, Standing()).list_due(now, interval):
                continue
            if self._calls.number((name, Lane.LIST)) or self._calls.is_stuck(name):
                continue
            with db.transaction() as session:
                reading = listing.take_on(session, name, interval, served.handling.deadline)
            if reading is not None:
                self._call(List(name, reading))

    def _call(self, job: Job) -> None:
        served = self.providers[job.provider]

        def ask() -> Any:
            return job.call(served.provider)

        self._calls.start(job.provider, (job.provider, job.lane), ask, served.handling.deadline, job)

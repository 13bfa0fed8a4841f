"""One job that is carried out: a thread that has the executor do it, and writes down what comes of it.

What has come is written several times a second, each time in a short transaction of its own. While no database
answers it is kept and written later, as long as the lease lasts; a job whose lease is over is not this worker's any
more: its run is cancelled, and nothing is written.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from labctl import db, logs
from labctl.errors import Unavailable
from labctl.remote import chunks, running
from labctl.remote.executor import (
    TELL_WITHIN,
    TIMED_OUT,
    Executor,
    ExecutorError,
    Failed,
    Misconfigured,
    Order,
    Result,
    Run,
)
from labctl.remote.running import Piece, Taken
from labctl.remote.states import EXCLUSIVE, HostState, JobState, Operation
from labctl.remote.task import Task

log = logging.getLogger(__name__)

#: Seconds between two writes, and for which the first results after a pause wait for others.
WRITE_EVERY, WRITE_FIRST = 0.05, 0.01
#: Seconds for which results are waited for at a time: so late it is noticed that the lease or the time is over.
READ_WAIT = 0.25
#: Seconds between tries to write while no database answers.
PAUSE = 0.5
#: Seconds that a run may take to end once it is cancelled; then it is left to itself.
CANCEL_PATIENCE = 8.0
#: Bytes of output that wait for the database; with more, no more is read.
MOST_WAITING = 32 * 1024 * 1024
#: Results written in one transaction.
MOST_AT_ONCE = 2000
#: The longest error text that is kept of a job.
LONGEST_ERROR = 4000
NOTHING = "nothing came from this host"
NOT_BEGUN = "not begun"


class Over(BaseException):
    """The job is to end; no error, so that a task that catches errors lets it pass."""


@dataclass(frozen=True)
class Ending:
    """Why a job ends that would go on."""

    state: JobState
    error: str


class Carrying:
    """A job and its thread; what other threads may call is :meth:`end`, :meth:`lose`, :meth:`look`, :meth:`give_up`."""

    def __init__(
        self,
        taken: Taken,
        executor: Executor,
        tasks: Mapping[str, type[Task]],
        *,
        most_output: int,
        lease: float,
        lease_until: float,
        over: Callable[[], None],
    ) -> None:
        """``lease_until`` by the monotonic clock; ``over`` is called when the thread has ended."""
        self.taken = taken
        self.lease_until = lease_until
        self._lease = lease
        self._executor = executor
        self._tasks = tasks
        self._most_output = most_output
        self._over = over
        self._deadline = time.monotonic() + taken.timeout
        #: Whether some host has ended its command because the time was up.
        self._timed_out = False
        self._hosts = frozenset(taken.hosts)
        #: How it went on each host so far.
        self._states: dict[str, HostState] = {}
        #: The hosts that something was begun on: a task may stop before it comes to the others.
        self._reached: set[str] = set()
        self._begun = 0
        self._strange = 0
        # What waits to be written
        self._pieces: list[Piece] = []
        self._size = 0
        self._written = 0
        self._write_at = 0.0
        # What other threads have to say
        self._lock = threading.Lock()
        self._runs: list[Run] = []
        self._ending: Ending | None = None
        self._ended_at = 0.0
        self._told = threading.Event()
        self._lost = False
        self._finishing = False
        self._end_as = Ending(JobState.DONE, "")
        self._thread = threading.Thread(target=self._carry_out, name=f"job-{taken.jid}", daemon=True)

    # For other threads

    def start(self) -> None:
        """Carry it out."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Tell whether the thread has not ended."""
        return self._thread.is_alive()

    @property
    def finishing(self) -> bool:
        """Tell whether there is nothing more to be done but to write how it ended."""
        return self._finishing

    @property
    def ending(self) -> bool:
        """Tell whether it was told to end."""
        return self._ending is not None or self._lost

    @property
    def overdue(self) -> bool:
        """Tell whether it was told to end and has not done so in time: something hangs."""
        late = time.monotonic() > self._ended_at + CANCEL_PATIENCE + 2
        return self.ending and late and not self._finishing

    def end(self, ending: Ending) -> None:
        """Have it end; the first reason counts."""
        with self._lock:
            if self.ending:
                return
            self._ending, self._ended_at = ending, time.monotonic()
        self._cancel()

    def lose(self, reason: str) -> None:
        """Have it end without a word: it is not this worker's any more."""
        with self._lock:
            if self._lost:
                return
            self._lost, self._ended_at = True, time.monotonic()
        log.warning("remote_job_lost", extra={"jid": self.taken.jid, "reason": reason})
        self._cancel()

    def look(self) -> None:
        """End it if its lease or its time is over."""
        now = time.monotonic()
        if now >= self.lease_until:
            self.lose("its lease is over")
        elif now >= self._deadline + (TELL_WITHIN if self.taken.operation == Operation.EXECUTE else 0):
            self.end(Ending(JobState.FAILED, self._too_late))

    @property
    def _too_late(self) -> str:
        return f"timed out after {self.taken.timeout:g} s"

    def give_up(self) -> None:
        """Write its end for a thread that hangs; whatever that one still does, it writes nothing any more."""
        ending = self._ending or Ending(JobState.FAILED, "got unexpected error, it could not be begun")
        log.error("remote_job_hangs", extra={"jid": self.taken.jid, "reason": ending.error})
        if not self._lost:
            with db.transaction() as session:
                running.finish(session, self.taken, state=ending.state, error=ending.error)
            self._lost = True

    def _cancel(self) -> None:
        self._told.set()
        with self._lock:
            runs = tuple(self._runs)
        for run in runs:
            # In a thread: whatever it does, it does not hold up the one that found out.
            threading.Thread(target=_quietly, args=(run.cancel,), name="cancel-run", daemon=True).start()

    # The thread

    def _carry_out(self) -> None:
        logs.request_id.set(f"job-{self.taken.jid}")
        try:
            self._finish(self._results())
        except Exception:
            log.error("remote_job_thread_failed", extra={"jid": self.taken.jid, "traceback": self._trace()})
        finally:
            self._over()

    def _results(self) -> str:
        """Take in all results; gives the error, if it could not be carried out."""
        try:
            with closing(self._source()) as results:
                for result in results:
                    self._note(result)
                    self._tend()
        except Over:
            pass
        except ExecutorError as error:
            return f"got executor error, {error}"
        except Exception as error:
            log.error("remote_job_failed", extra={"jid": self.taken.jid, "traceback": self._trace()})
            return f"got unexpected error, {type(error).__name__}: {error}"
        finally:
            # A task may have left some of its operations to themselves.
            for run in tuple(self._runs):
                self._leave(run)
        return ""

    def _source(self) -> Generator[Result]:
        if self.taken.operation != Operation.TASK:
            taken = self.taken
            order = Order(taken.jid, taken.operation, taken.hosts, taken.arguments, taken.timeout, self._lease)
            yield from self._read(self._begin(order), order)
            return
        name = self.taken.arguments.get("taskname", "")
        task = self._tasks.get(name)
        if task is None:
            raise Misconfigured(f"this worker has no task {name}")
        yield from task(self.taken.arguments.get("taskopts") or {}).run(self.taken.hosts, _Operate(self))

    def _begin(self, order: Order) -> Run:
        self._check()
        run = self._executor.begin(order)
        self._begun += 1
        self._reached.update(order.hosts)
        with self._lock:
            self._runs.append(run)
        # If it was told to end just before, nobody has cancelled this one.
        if self.ending:
            run.cancel()
        return run

    def _read(self, run: Run, order: Order) -> Iterator[Result]:
        """Give the results of a run to its end, also when it is cancelled; then what it had still to say."""
        seen: set[str] = set()
        hosts = frozenset(order.hosts)
        try:
            while not run.ended:
                self._tend()
                if self.ending and time.monotonic() > self._ended_at + CANCEL_PATIENCE:
                    log.warning("remote_run_left", extra={"jid": self.taken.jid})
                    return
                for result in run.read(self._wait()):
                    if result.host not in hosts or (order.operation not in EXCLUSIVE and result.host in seen):
                        self._wonder(result)
                        continue
                    seen.add(result.host)
                    yield result
            if run.error and not self.ending:
                raise Failed(run.error)
        finally:
            self._leave(run)

    def _leave(self, run: Run) -> None:
        """Make sure that a run ends."""
        with self._lock:
            if run not in self._runs:
                return
            self._runs.remove(run)
        if not run.ended:
            run.cancel()
            until = time.monotonic() + (CANCEL_PATIENCE if not self.ending else 1)
            while not run.ended and time.monotonic() < until:
                run.read(READ_WAIT)
                self._tend()

    # For tasks

    def operate(self, operation: Operation, hosts: Sequence[str], arguments: Mapping[str, Any]) -> Iterator[Result]:
        """Carry out one operation of a task."""
        self._tend()
        if strange := [host for host in hosts if host not in self._hosts]:
            raise Failed(f"not a host of this task: {', '.join(strange)}")
        left = max(1.0, self._deadline - time.monotonic())
        order = Order(f"{self.taken.jid}-{self._begun + 1}", operation, tuple(hosts), arguments, left, self._lease)
        return self._rest(self._begin(order), order)

    def _rest(self, run: Run, order: Order) -> Iterator[Result]:
        yield from self._read(run, order)
        self._check()

    def wait(self, seconds: float) -> None:
        """Wait for a task."""
        until = time.monotonic() + seconds
        while True:
            self._tend()
            self._check()
            left = until - time.monotonic()
            if left <= 0:
                return
            self._told.wait(min(left, self._wait()))

    def _check(self) -> None:
        if self.ending:
            raise Over

    # Results

    def _note(self, result: Result) -> None:
        """Keep a result until it is written."""
        host, state = result.host, chunks.ENDS.get(result.status)
        single = self.taken.operation not in EXCLUSIVE
        if host not in self._hosts or (single and (state is None or host in self._states)):
            self._wonder(result)
            return
        self._reached.add(host)
        if self.taken.operation == Operation.EXECUTE and time.monotonic() >= self._deadline:
            self._timed_out = self._timed_out or result.values.get("rtc") == TIMED_OUT
        final = state if single or state in chunks.BAD else None
        if state is not None:
            self._states[host] = max(self._states.get(host, state), state, key=chunks.ORDER.index)
        self._add(result, final)

    def _add(self, result: Result, state: HostState | None) -> None:
        chunk = chunks.make(result.status, result.values, self._most_output)
        if not self._pieces:
            self._write_at = max(self._write_at, time.monotonic() + WRITE_FIRST)
        self._pieces.append(Piece(result.host, chunk, state))
        self._size += len(chunk)

    def _wonder(self, result: Result) -> None:
        """Drop a result that does not belong to the job."""
        self._strange += 1
        if self._strange == 1:
            log.warning("remote_result_strange", extra={"jid": self.taken.jid, "host": result.host[:200]})

    def _wait(self) -> float:
        """Give for how long results may be waited for."""
        if not self._pieces:
            return READ_WAIT
        return min(READ_WAIT, max(0.001, self._write_at - time.monotonic()))

    def _tend(self) -> None:
        """See whether it goes on, and write what is due."""
        self.look()
        while self._pieces and not self._lost and time.monotonic() >= self._write_at:
            self._write()
        while self._size > MOST_WAITING and not self._lost:
            self._told.wait(WRITE_EVERY)
            self.look()
            if time.monotonic() >= self._write_at:
                self._write()

    def _write(self) -> None:
        some = self._pieces[:MOST_AT_ONCE]
        try:
            with db.transaction() as session:
                held = running.write(session, self.taken, some, after=self._written)
        except Unavailable as error:
            self._write_at = time.monotonic() + PAUSE
            log.warning("remote_output_waits", extra={"jid": self.taken.jid, "reason": str(error)})
            return
        if not held:
            self.lose("somebody has ended it")
            return
        del self._pieces[: len(some)]
        self._written += len(some)
        self._size -= sum(len(piece.chunk) for piece in some)
        self._write_at = time.monotonic() + (0 if len(some) == MOST_AT_ONCE else WRITE_EVERY)

    # The end

    def _finish(self, error: str) -> None:
        """Write how it ended, once there is a database; nothing, if the lease is over before."""
        self._finishing = True
        error = self._scrub(error)[:LONGEST_ERROR]
        cut = self._ending.error if self._ending else error
        ended = {host: state for host, state in self._states.items() if not cut or self._has_ended(state)}
        for host in self.taken.hosts if self._begun else ():
            if host not in ended:
                reason = cut or (NOTHING if host in self._reached else NOT_BEGUN)
                self._add(chunks.nothing(self.taken.operation, host, reason), HostState.FAILED)
        failed = sum(state in chunks.BAD for state in ended.values()) + len(self.taken.hosts) - len(ended)
        if self._strange:
            log.warning("remote_results_dropped", extra={"jid": self.taken.jid, "count": self._strange})
        ending = self._ending or Ending(JobState.DONE, "")
        if not self._ending and error:
            ending = Ending(JobState.FAILED, error)
        elif not self._ending and failed:
            told = chunks.failed(self.taken.operation, failed, len(self.taken.hosts))
            ending = Ending(JobState.FAILED, self._too_late if self._timed_out else told)
        self._end_as = ending
        while not self._lost and not self._is_finished(ended):
            if time.monotonic() + PAUSE >= self.lease_until:
                self.lose("its lease is over")
            threading.Event().wait(PAUSE)

    def _is_finished(self, ended: Mapping[str, HostState]) -> bool:
        """Write the end; tells whether nothing more can be done for that."""
        state, error = self._end_as.state, self._end_as.error
        try:
            with db.transaction() as session:
                held = running.finish(
                    session, self.taken, self._pieces, state=state, error=error, hosts=ended, after=self._written
                )
        except Unavailable as reason:
            log.warning("remote_output_waits", extra={"jid": self.taken.jid, "reason": str(reason)})
            return False
        except Exception:
            if not self._pieces:
                raise
            # The job must end, whatever is wrong with what it said.
            log.error("remote_output_lost", extra={"jid": self.taken.jid, "traceback": self._trace()})
            self._pieces.clear()
            self._end_as = Ending(JobState.FAILED, "got unexpected error, its output could not be written")
            return False
        if not held:
            self.lose("somebody has ended it")
        return True

    def _has_ended(self, state: HostState) -> bool:
        """Tell whether a host had ended when the job was cut off: of a role, nobody knows unless it has failed."""
        return self.taken.operation not in EXCLUSIVE or state in chunks.BAD

    # Secrets

    def _trace(self) -> str:
        return self._scrub(traceback.format_exc())

    def _scrub(self, text: str) -> str:
        """Take out of a text what is masked in the job's arguments."""
        text = chunks.UNSPEAKABLE.sub(chunks.REPLACEMENT, text)
        for secret in sorted(set(_hidden(self.taken.arguments, self.taken.shown)), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


class _Operate:
    """What a task has operations carried out with."""

    def __init__(self, carrying: Carrying) -> None:
        self._carrying = carrying

    def __call__(self, operation: Operation, hosts: Sequence[str], **arguments: Any) -> Iterator[Result]:
        return self._carrying.operate(operation, hosts, arguments)

    def wait(self, seconds: float) -> None:
        self._carrying.wait(seconds)


#: Shorter secrets would tear holes into every text.
SHORTEST_SECRET = 3


def _hidden(given: Any, shown: Any) -> Iterator[str]:
    """List the texts among the values that are not shown as they were given."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from _hidden(value, shown.get(key) if isinstance(shown, Mapping) else None)
    elif isinstance(given, list | tuple):
        paired = shown if isinstance(shown, list | tuple) and len(shown) == len(given) else [None] * len(given)
        for value, other in zip(given, paired, strict=True):
            yield from _hidden(value, other)
    elif given != shown and not isinstance(given, bool) and len(str(given)) >= SHORTEST_SECRET:
        yield str(given)


def _quietly(function: Callable[[], None]) -> None:
    with suppress(Exception):
        function()

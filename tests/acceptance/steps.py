"""Kills a process at each of its steps, one after the other, and sees what the next ones make of what it has left.

For each step in turn, a process begins a scenario on an empty database and kills itself there; the next process begins
where that one has left off, in every third case is killed a few steps later too, and the last one sees the scenario
through and looks whether everything is as it should be. It is over when a first one gets through.

A process is forked from one that has loaded everything. Time is a number that the processes share.
"""

import gc
import itertools
import mmap
import os
import signal
import struct
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import event

from labctl import clock, db, queue

BEGINNING = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

_TIME = struct.Struct("d")
_LABEL = 64


class Shared:
    """What the processes share: the time, and at which step one of them has killed itself."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(_TIME.unpack_from(self._memory)[0], UTC)

    @time.setter
    def time(self, value: datetime) -> None:
        _TIME.pack_into(self._memory, 0, value.timestamp())

    @property
    def label(self) -> str:
        return self._memory[_LABEL : 2 * _LABEL].rstrip(b"\0").decode()

    @label.setter
    def label(self, value: str) -> None:
        self._memory[_LABEL : 2 * _LABEL] = value.encode()[:_LABEL].ljust(_LABEL, b"\0")


class Steps:
    """Counts the steps of this process, and kills it at the ``last``."""

    def __init__(self, shared: Shared, last: int | None) -> None:
        self._shared = shared
        self._last = last
        self._count = itertools.count(1)

    def __call__(self, label: str) -> None:
        if next(self._count) == self._last:
            self._shared.label = label
            os.kill(os.getpid(), signal.SIGKILL)


class Scenario(ABC):
    """What is played, again and again; whatever it is to remember is in the database."""

    def __init__(self, shared: Shared) -> None:
        clock.now = lambda: shared.time  # type: ignore[assignment]
        self.shared = shared

    def watch(self, step: Steps) -> None:
        """Make what happens in this process steps; the product knows nothing of it."""
        event.listen(db._write, "after_commit", lambda session: step("after a commit"))

    @abstractmethod
    def reset(self) -> None:
        """Begin anew."""

    @abstractmethod
    def play(self) -> None:
        """See the scenario through."""

    @abstractmethod
    def check(self) -> None:
        """Look whether everything is as it should be."""


def kill_at_each(url: str, make: Callable[[Shared], Scenario], killed: Callable[[Shared], None]) -> Counter[str]:
    """Kill at each step; gives what was killed how often. ``killed`` is called after each kill."""
    shared = Shared()
    _load(url, make, shared)
    counts: Counter[str] = Counter()
    for number in itertools.count(1):
        shared.time = BEGINNING
        if _run(make, shared, first=True, last=number):
            return counts
        label = shared.label
        counts[label] += 1
        killed(shared)
        if not _run(make, shared, last=None if number % 3 else number % 11 + 1):
            killed(shared)
            shared.label = f"{label}, step {number}, and then {shared.label}"
            _run(make, shared)
    raise AssertionError


def _load(url: str, make: Callable[[Shared], Scenario], shared: Shared) -> None:
    """Play once without a kill, so that the processes that are forked find every statement put together."""
    write = db.configure(url, pool_size=4)
    queue.configure(write)
    read = db._reads
    shared.time = BEGINNING
    scenario = make(shared)
    scenario.reset()
    scenario.play()
    scenario.check()
    # No two processes may use one connection.
    write.dispose()
    read.dispose()
    # Whoever counts references copies pages.
    gc.disable()
    gc.freeze()


def _run(make: Callable[[Shared], Scenario], shared: Shared, *, first: bool = False, last: int | None = None) -> bool:
    """Play in a process of its own, up to the step ``last``; tells whether it got through."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            scenario = make(shared)
            if first:
                scenario.reset()
            scenario.watch(Steps(shared, last))
            scenario.play()
            scenario.check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL:
        return False
    if ended:
        raise SystemExit(f"not as it should be after a kill {shared.label!r}")
    return True

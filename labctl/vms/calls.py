"""Calls of providers in threads, each with a deadline: one that hangs is given up, and does not hold up the others.

A thread cannot be killed. One that hangs is written off, and its place is given to another; as this could go on, a
provider that has too many of them gets no more calls until some come back.
"""

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: Threads of one provider that may be written off before it gets no more calls from this process.
MOST_LOST = 16
#: Seconds after which a written-off thread is not counted any more, so that there is another try even then.
FORGET_LOST = 3600.0


class Hung(Exception):
    """A call did not end within its time."""


@dataclass(eq=False)
class Call:
    """One call; ``lane`` is what it counts against, such as a provider and a kind of work."""

    provider: str
    lane: Hashable
    function: Callable[[], Any]
    deadline: float
    subject: Any
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Ended:
    """How a call ended: with a result or an error, after so many seconds."""

    subject: Any
    seconds: float
    result: Any = None
    error: Exception | None = None


class Calls:
    """The calls that go on; only the threads in here are other than the one that uses it."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[tuple[Call, Ended] | None] = queue.SimpleQueue()
        self._running: dict[Call, None] = {}
        self._lost: dict[Call, float] = {}
        self._lanes: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def subjects(self) -> list[Any]:
        """What the calls are about that go on."""
        return [call.subject for call in self._running]

    def number(self, lane: Hashable) -> int:
        """Count the calls of a lane that go on."""
        return self._lanes[lane]

    def start(self, provider: str, lane: Hashable, function: Callable[[], Any], deadline: float, subject: Any) -> None:
        """Call a function in a thread of its own; :meth:`ended` tells how it ended."""
        call = Call(provider, lane, function, deadline, subject)
        self._running[call] = None
        self._lanes[lane] += 1
        # A daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._run, args=(call,), name=f"call-{provider}", daemon=True).start()

    def wake(self) -> None:
        """End a wait in :meth:`ended`; any thread may do this."""
        self._ended.put(None)

    def ended(self, wait: float = 0) -> Iterator[Ended]:
        """Give the calls that have ended or whose time is over, after waiting up to ``wait`` seconds for one."""
        next_deadline = min((call.began + call.deadline for call in self._running), default=math.inf)
        wait = min(wait, max(0.0, next_deadline - time.monotonic()))
        try:
            item = self._ended.get(timeout=wait) if wait else self._ended.get_nowait()
            while True:
                if item is not None and self._forget(item[0]):
                    yield item[1]
                item = self._ended.get_nowait()
        except queue.Empty:
            pass
        now = time.monotonic()
        for call in [call for call in self._running if call.began + call.deadline <= now]:
            self._forget(call)
            self._lost[call] = now
            yield Ended(call.subject, call.deadline, error=Hung(f"no answer within {call.deadline:g} s"))

    def is_stuck(self, provider: str) -> bool:
        """Tell whether so many calls of a provider hang that it should get no more."""
        now = time.monotonic()
        recent = [call for call, since in self._lost.items() if since + FORGET_LOST > now]
        return sum(call.provider == provider for call in recent) >= MOST_LOST

    def _forget(self, call: Call) -> bool:
        """Count a call no longer; tells whether anybody still waits for it."""
        if call in self._running:
            del self._running[call]
            self._lanes[call.lane] -= 1
            return True
        self._lost.pop(call, None)
        return False

    def _run(self, call: Call) -> None:
        try:
            ended = Ended(call.subject, time.monotonic() - call.began, result=call.function())
        except Exception as error:
            ended = Ended(call.subject, time.monotonic() - call.began, error=error)
        self._ended.put((call, ended))

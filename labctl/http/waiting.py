"""Requests that wait for news: a limit on how many, a limit on how long, and no database connection held meanwhile."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from labctl.errors import Invalid, Unavailable
from labctl.http import body
from labctl.http.resource import Request
from labctl.settings import Settings

Found = TypeVar("Found")

#: How often one waiting request looks again, in seconds.
INTERVAL = 0.2
#: How often it does so although a glance has shown nothing new.
AT_LEAST = 2.0
#: How many of them look at the same time; the others wait for their turn.
LOOKING = 4
#: The part of its time that a waiting request may spend with looking.
SHARE = 0.1


class Glance:
    """A cheap question whose answer changes when there may be news; it is asked once for all who wait."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        """Take the question."""
        self.ask = ask
        self.lock = threading.Lock()
        self.asked = float("-inf")
        self.answer: Any = None

    def __call__(self) -> Any:
        """Give an answer that is not older than half an interval."""
        with self.lock:
            if time.monotonic() - self.asked > INTERVAL / 2:
                self.answer = self.ask()
                self.asked = time.monotonic()
            return self.answer


class Waiting:
    """The waiting requests of one process; each of them holds a thread."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits ``max_wait`` and ``max_waiters``."""
        self.longest = settings.max_wait
        self.places = threading.BoundedSemaphore(settings.max_waiters) if settings.max_waiters else None
        self.looking = threading.BoundedSemaphore(LOOKING)

    def until(self, find: Callable[[], Found], request: Request, glance: Glance | None = None) -> Found:
        """Answer what ``find`` gives as soon as it is not empty, or when the request's ``wait=SECONDS`` are over.

        With a glance, ``find`` is called again when that changes, and every :data:`AT_LEAST` seconds. Raises
        :class:`Invalid` for a bad ``wait``, :class:`Unavailable` when too many wait already.
        """
        began = time.monotonic()
        deadline = began + self._seconds(request)
        seen = glance() if glance and deadline > began else None
        found = find()
        if found or time.monotonic() >= deadline:
            return found
        if self.places is None or not self.places.acquire(blocking=False):
            raise Unavailable("too many requests are waiting; come back, or ask without wait", retry_after=2)
        try:
            looked = time.monotonic()
            rested = looked + (looked - began) / SHARE
            while not found and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(INTERVAL, left))
                now = glance() if glance else None
                at_least = looked + AT_LEAST if glance and now == seen else looked
                # The last look is at the deadline: what came before it is found.
                if time.monotonic() < min(max(at_least, rested), deadline):
                    continue
                with self.looking:
                    looked = time.monotonic()
                    seen, found = now, find()
                    rested = time.monotonic() + (time.monotonic() - looked) / SHARE
            return found
        finally:
            self.places.release()

    def _seconds(self, request: Request) -> float:
        value = body.text(request, "wait")
        if value is None:
            return 0.0
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise Invalid("must be a number of seconds, 0 or more", field="wait")
        return min(seconds, self.longest)

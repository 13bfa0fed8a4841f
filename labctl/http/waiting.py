"""Requests that wait for news: a limit on how many, a limit on how long, and no database connection held meanwhile."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from labctl.errors import Invalid, Unavailable
from labctl.http import body
from labctl.http.resource import Request
from labctl.settings import Settings

Found = TypeVar("Found")

#: How often one waiting request looks again, in seconds.
INTERVAL = 0.2


class Waiting:
    """The waiting requests of one kind in one process; each of them holds a thread."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits ``max_wait`` and ``max_waiters``."""
        self.longest = settings.max_wait
        self.places = threading.BoundedSemaphore(settings.max_waiters) if settings.max_waiters else None

    def until(self, find: Callable[[], Found], request: Request) -> Found:
        """Answer what ``find`` gives as soon as it is not empty, or when the request's ``wait=SECONDS`` are over.

        Raises :class:`Invalid` for a bad ``wait``, :class:`Unavailable` when too many wait already.
        """
        deadline = time.monotonic() + self._seconds(request)
        found = find()
        if found or time.monotonic() >= deadline:
            return found
        if self.places is None or not self.places.acquire(blocking=False):
            raise Unavailable("too many requests are waiting; come back, or ask without wait", retry_after=2)
        try:
            while not found and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(INTERVAL, left))
                found = find()
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

"""Asking storage nodes over HTTPS whether they are well: one, many at once, or some after others until one is."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import httpx

from labctl import __version__, asking

log = logging.getLogger(__name__)

#: How many nodes are asked at the same time.
AT_ONCE = 64
#: The part of the timeout after which more nodes are asked than those that do not answer.
IMPATIENCE = 1 / 8
#: The part of the timeout for which a node must have been silent to count as failed when its answer is not needed.
SILENCE = 1 / 2
#: Seconds for which calling off what goes on may take; it takes none.
_GRACE = 0.2


@dataclass(frozen=True)
class Search:
    """Which node was the first to say that it is well, and what is wrong with those that failed."""

    healthy: str | None
    failed: dict[str, str]


def check(hosts: Sequence[str], timeout: float, *, verify: bool) -> dict[str, str | None]:
    """Ask nodes, all at once, whether they are well, and give what is wrong with each: None if it is well.

    It takes ``timeout`` seconds at the most (and as many for every further :data:`AT_ONCE` nodes), whatever they do.
    """
    troubles: dict[str, str | None] = {}
    for start in range(0, len(hosts), AT_ONCE):
        with _Checks(verify) as checks:
            checks.start(hosts[start : start + AT_ONCE])
            checks.wait(timeout)
            troubles |= {**checks.silent(0), **checks.troubles()}
    return troubles


def search(claim: Callable[[int], Sequence[str]], timeout: float, *, verify: bool) -> Search:
    """Find a node that is well: one is asked, and while there is no answer more and more, until one says so.

    ``claim`` gives up to so many nodes that were not asked yet, the one that should be taken first of all at the
    head. It takes ``timeout`` seconds at the most, and what ``claim`` takes, however many nodes are silent.
    """
    deadline = time.monotonic() + timeout
    count, more = 1, True
    with _Checks(verify) as checks:
        while True:
            hosts: Sequence[str] = ()
            if more and (room := AT_ONCE - checks.unanswered()):
                hosts = claim(min(count, room))
                more, count = bool(hosts), 2 * count
                checks.start(hosts)
            left = deadline - time.monotonic()
            # Who was asked last is waited for: those before have had their time, but their answers count, too.
            checks.wait_for_one(hosts, min(timeout * IMPATIENCE, left) if more else left)
            healthy = next((host for host, trouble in checks.troubles().items() if trouble is None), None)
            if healthy or time.monotonic() >= deadline or not (more or checks.unanswered()):
                failed = {host: trouble for host, trouble in checks.troubles().items() if trouble is not None}
                return Search(healthy, {**failed, **checks.silent(timeout * SILENCE)})


def log_failed(troubles: Mapping[str, str | None]) -> None:
    """Write a line for each node that has failed."""
    for host, trouble in troubles.items():
        if trouble is not None:
            log.info("node_check_failed", extra={"host": host, "reason": trouble})


class _Checks:
    """Checks that go on at the same time, in an event loop of their own, which runs while they are waited for.

    Not by ``asyncio.run``: at its end that waits for the threads that resolve names, however long they take.
    """

    def __init__(self, verify: bool) -> None:
        self._loop = asking.Loop()
        # A thread for each name: six that cannot be resolved would hold up all others.
        self._loop.set_default_executor(ThreadPoolExecutor(AT_ONCE, "resolve"))
        self._client = httpx.AsyncClient(
            verify=trusted(verify),
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - who waits has a time for everything together
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"User-Agent": f"labctl/{__version__}", "Accept": "*/*"},
        )
        self._tasks: dict[str, asyncio.Task[str | None]] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> "_Checks":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._loop.run_until_complete(self._call_off())
        finally:
            self._loop.close()

    def start(self, hosts: Iterable[str]) -> None:
        """Ask some more nodes, as soon as anybody waits."""
        for host in hosts:
            self._tasks[host] = self._loop.create_task(_ask(self._client, host))
            self._started[host] = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait until all have answered."""
        if self._tasks:
            self._loop.run_until_complete(asyncio.wait(self._tasks.values(), timeout=max(seconds, 0)))

    def wait_for_one(self, hosts: Collection[str], seconds: float) -> None:
        """Wait until one is well, or all ``hosts`` (all that there are, if those are none) have failed."""
        self._loop.run_until_complete(self._wait_for_one(hosts or self._tasks.keys(), time.monotonic() + seconds))

    async def _wait_for_one(self, hosts: Iterable[str], deadline: float) -> None:
        left = 1.0
        while left > 0 and not all(self._tasks[host].done() for host in hosts):
            left = deadline - time.monotonic()
            unanswered = [task for task in self._tasks.values() if not task.done()]
            await asyncio.wait(unanswered, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if None in self.troubles().values():
                return

    def unanswered(self) -> int:
        """Count those that have not answered yet."""
        return sum(not task.done() for task in self._tasks.values())

    def troubles(self) -> dict[str, str | None]:
        """Give what is wrong with each that has answered, or None."""
        return {host: task.result() for host, task in self._tasks.items() if task.done()}

    def silent(self, seconds: float) -> dict[str, str]:
        """Name those that have not answered for so long."""
        ages = {host: time.monotonic() - self._started[host] for host, task in self._tasks.items() if not task.done()}
        return {host: f"no answer within {age:.1f} s" for host, age in ages.items() if age >= seconds}

    async def _call_off(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_GRACE)
        await self._client.aclose()
        for connection in self._loop.connections:
            connection.close()
        # The loop closes the sockets in its next round.
        await asyncio.sleep(0)


async def _ask(client: httpx.AsyncClient, host: str) -> str | None:
    """Say what is wrong with a node, None if its answer is a 2xx, whatever its body."""
    try:
        async with client.stream("GET", f"https://{host}/health/") as answer:
            return None if answer.is_success else f"it answered {answer.status_code}"
    except Exception as error:
        cause = asking.innermost(error)
        return f"{type(cause).__name__}: {cause}".strip(": ")[:300]


@cache
def trusted(verify: bool) -> ssl.SSLContext:
    """Make what decides whose certificates are good: the CAs of this machine, or everybody's without ``verify``."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

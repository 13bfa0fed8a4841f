"""What sessions want of other hosts, and forgetting what is over.

What there is to fetch, or to tell, is seen to by one task, which goes on as long as there is anything; a worker runs
one of each kind at a time, so that they leave its places to other tasks.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, Generic, TypeVar
from uuid import uuid4

from labctl import purging, queue
from labctl.db import reading, transaction
from labctl.maintenance import downloads, fetching, notices, service
from labctl.queue import task
from labctl.settings import Settings

log = logging.getLogger(__name__)

#: How many files one worker fetches, and how many projects it tells something, at the same time.
FILES, PROJECTS = 4, 32
#: Seconds between looks at whether there is more, while there is something.
PULSE = 0.25
#: Seconds after which another worker tells a project again what this one has begun to tell: it was killed. No project
#: has less than twice that to answer, unless ``maintenance_replies`` says so.
TELLING = 2 * fetching.TELLING
BATCH = 100

_fetching = Lock()
_telling = Lock()
Held = TypeVar("Held", downloads.Held, notices.Held)


@dataclass(frozen=True)
class _Kind(Generic[Held]):
    """What is done by threads; the sessions are those of short transactions."""

    at_once: int
    claim: Callable[[Any, int], Sequence[Held]]
    #: In a thread; the event says that nobody wants it any more.
    do: Callable[[Held, Event], Any]
    write: Callable[[Any, Held, "Future[Any]"], None]
    #: Seconds between renewals, and what is still wanted then.
    renew_after: float
    renew: Callable[[Any, Iterable[Held]], set[Held]]


@task("maintenance.download", cron="* * * * * */5")
def download(settings: Settings) -> None:
    """Fetch the files that sessions need; those, too, that another worker has begun and left."""
    holder, seconds = str(uuid4()), float(settings.worker_stalled_after)
    home = Path(settings.home).absolute() / "maintenance"

    def fetch(held: downloads.Held, unwanted: Event) -> fetching.File:
        directory = home / held.session_id / held.place
        for old in directory.parent.glob(f"{held.position}-*"):
            shutil.rmtree(old, ignore_errors=True)
        return fetching.download(
            held.url,
            directory,
            limit=settings.maintenance_download_limit,
            sha256=held.sha256,
            private=settings.maintenance_private_urls,
            unwanted=unwanted,
        )

    _carry_out(
        _fetching,
        _Kind(
            at_once=FILES,
            claim=lambda session, number: downloads.claim(session, holder, number, seconds),
            do=fetch,
            write=_fetched,
            renew_after=seconds / 3,
            renew=lambda session, held: downloads.renew(session, set(held), seconds),
        ),
    )


def _fetched(session: Any, held: downloads.Held, future: "Future[fetching.File]") -> None:
    match future.exception():
        case None:
            file = future.result()
            downloads.done(session, held, str(file.path), file.size, file.sha256)
        case fetching.Unwanted():
            downloads.let_go(session, held)
        case fetching.Failed() as error:
            downloads.failed(session, held, str(error), passing=error.passing)
        case error:
            log.error(
                "download_broken", exc_info=error, extra={"session": held.session_id, "url": fetching.shown(held.url)}
            )
            downloads.failed(session, held, f"{type(error).__name__}: {error}", passing=False)


@task("maintenance.deliver", cron="* * * * * */2")
def deliver(settings: Settings) -> None:
    """Tell projects what they are to be told."""
    holder = str(uuid4())

    def tell(held: notices.Held, unwanted: Event) -> None:
        fetching.send(
            held.url,
            held.content,
            held.secret,
            held.delivery,
            private=settings.maintenance_private_urls,
            seconds=fetching.TELLING,
            unwanted=unwanted,
        )

    _carry_out(
        _telling,
        _Kind(
            at_once=PROJECTS,
            claim=lambda session, number: notices.claim(session, holder, number, TELLING),
            do=tell,
            write=_told,
            renew_after=TELLING,
            renew=lambda session, held: set(held),
        ),
    )


def _told(session: Any, held: notices.Held, future: "Future[None]") -> None:
    match future.exception():
        case None:
            notices.delivered(session, held)
        case fetching.Unwanted():
            notices.let_go(session, held)
        case fetching.Failed() as error:
            notices.not_delivered(session, held, str(error))
        case error:
            # Its text might hold what was sent.
            notices.not_delivered(session, held, type(error).__name__)


def _carry_out(alone: Lock, kind: _Kind[Held]) -> None:
    """Have everything done that there is to do, and that comes meanwhile, unless this process does so already."""
    if not alone.acquire(blocking=False):
        return
    threads = ThreadPoolExecutor(kind.at_once)
    going: dict[Future[Any], tuple[Held, Event]] = {}
    renewed = time.monotonic()
    try:
        while True:
            if queue.stopping.is_set():
                _give_up(going.values())
            elif len(going) < kind.at_once:
                with transaction() as session:
                    claimed = kind.claim(session, kind.at_once - len(going))
                for held in claimed:
                    unwanted = Event()
                    going[threads.submit(kind.do, held, unwanted)] = held, unwanted
            if not going:
                return
            ended, _ = wait(going, timeout=PULSE, return_when=FIRST_COMPLETED)
            if ended:
                with transaction() as session:
                    for future in ended:
                        kind.write(session, going[future][0], future)
                for future in ended:
                    del going[future]
            if time.monotonic() - renewed >= kind.renew_after:
                renewed = time.monotonic()
                _renew(kind, going.values())
    finally:
        # What goes on if the database is gone; its claims run out.
        _give_up(going.values())
        threads.shutdown(wait=False)
        alone.release()


def _give_up(going: Iterable[tuple[Any, Event]]) -> None:
    for _, unwanted in going:
        unwanted.set()


def _renew(kind: _Kind[Held], going: Iterable[tuple[Held, Event]]) -> None:
    going = list(going)
    with transaction() as session:
        kept = kind.renew(session, [held for held, _ in going])
    _give_up((held, unwanted) for held, unwanted in going if held not in kept)


@task("maintenance.tidy", cron="* * * * *")
def tidy(settings: Settings) -> None:
    """Remove the files of sessions that are known no more."""
    home = Path(settings.home).absolute() / "maintenance"
    names = [entry.name for entry in home.iterdir() if entry.is_dir()] if home.is_dir() else []
    with reading() as reader:
        gone = downloads.forgotten(reader, names)
    for name in gone:
        shutil.rmtree(home / name, ignore_errors=True)
        log.info("downloads_removed", extra={"session": name})


@task("maintenance.purge", cron="*/10 * * * *")
def purge(settings: Settings) -> None:
    """Forget sessions that ended more than ``maintenance_keep_days`` ago."""
    purging.purge("maintenance", settings.maintenance_keep_days, service.purge, batch=BATCH)

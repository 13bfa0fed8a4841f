"""Who waits for output: one thread of each web process looks for news of all jobs that are followed, and hands it on.

A follower first reads what there is from the database, page by page, and joins the others of its job when it is where
they are. One that takes its output too slowly is left behind, and reads from the database again: what waits for it in
memory is bounded, and nobody waits for it. Nobody holds a connection while a client is sent something.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labctl.db import reading
from labctl.errors import LabError, Unavailable
from labctl.http import render, streams
from labctl.remote import queries, wire
from labctl.remote.queries import Standing

log = logging.getLogger(__name__)

#: How often the thread looks for news, in seconds.
INTERVAL = 0.05
#: How long it rests when the database cannot be asked.
REST = 1.0
#: After how long without news something is sent all the same, which finds out whether the client is still there.
HEARTBEAT = 5.0
#: How much may wait for one follower, in bytes.
MOST_WAITING = 512 * 1024
#: How much is read of one job at once.
PAGE_BYTES = 256 * 1024
PAGE_PIECES = 2000
#: How many followers read from the database at the same time; the others wait for their turn.
READERS = 4
#: Pieces that are sent one by one; more at once, by a client that is behind, are sent as one.
ONE_BY_ONE = 16

Form = Callable[["Piece"], bytes]


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of output."""

    seq: int
    host: str
    chunk: str


def as_json(piece: Piece) -> bytes:
    """Write ``{HOST: chunk}``."""
    return b"{%s:%s}" % (render.dumps(piece.host), piece.chunk.encode())


def as_event(piece: Piece) -> bytes:
    """Write a server-sent event."""
    data = b'{"host":%s,"chunk":%s}' % (render.dumps(piece.host), piece.chunk.encode())
    return b"id: %d\nevent: output\ndata: %s\n\n" % (piece.seq, data)


def end_as_event(standing: Standing | None, last: int) -> bytes:
    """Write the server-sent event of the end; its id says that there is nothing to come back for."""
    return b"id: %d-end\nevent: end\ndata: %s\n\n" % (last, render.dumps(wire.end_to_wire(standing)))


def grouped(pieces: Sequence[Any]) -> Any:
    """Write ``{HOST: [chunk, ...]}``, in order of arrival."""
    by_host: dict[str, list[str]] = {}
    for piece in pieces:
        by_host.setdefault(piece.host, []).append(piece.chunk)
    parts = (f"{render.dumps(host).decode()}:[{','.join(chunks)}]" for host, chunks in by_host.items())
    return render.raw(f"{{{','.join(parts)}}}")


class Batch:
    """Output of a job that came at once; it is written once in each form, however many follow."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        """Take rows of ``seq``, ``host`` and ``chunk``, one number after the other."""
        self.pieces = [Piece(row.seq, row.host, row.chunk) for row in pieces]
        self.first, self.last = self.pieces[0].seq, self.pieces[-1].seq
        self.size = sum(len(piece.chunk) for piece in self.pieces)
        self.written: dict[Form, list[bytes]] = {}

    def after(self, seen: int, form: Form) -> list[bytes]:
        """Write what comes after a number."""
        written = self.written.get(form)
        if written is None:
            written = self.written[form] = [form(piece) for piece in self.pieces]
        return written[max(0, seen + 1 - self.first) :]


class Ended:
    """There will be no more output; ``standing`` is None where the job has been deleted."""

    def __init__(self, standing: Standing | None) -> None:
        """Note how it ended."""
        self.standing = standing


class Follower:
    """One who follows a job; all methods are called by one thread, but for those that the hub calls."""

    def __init__(self, hub: "Hub", job: int, seen: int = 0, *, output: bool = True) -> None:
        """Follow the job with a row's id after the output with a number, or only wait for its end."""
        self.hub = hub
        self.job = job
        self.seen = seen
        self.output = output
        self.news = threading.Event()
        #: Guarded by the hub's lock, as what comes after it.
        self.waiting: deque[Batch] = deque()
        self.size = 0
        self.ended: Ended | None = None
        self.joined = False

    # Called by the hub, which holds its lock

    def take(self, batch: Batch) -> bool:
        """Take output, or tell that there is too much of it already."""
        if self.waiting and self.size + batch.size > MOST_WAITING:
            self.leave_behind()
            return False
        self.waiting.append(batch)
        self.size += batch.size
        self.news.set()
        return True

    def leave_behind(self) -> None:
        """Have it read from the database."""
        self.joined = False
        self.ended = None
        self.waiting.clear()
        self.size = 0
        self.news.set()

    def end(self, ended: Ended) -> None:
        """Tell that there is no more."""
        self.ended = ended
        self.joined = False
        self.news.set()

    # Called by whoever follows

    def next(self, patience: float) -> Batch | Ended | None:
        """Give output that was not given yet, or the end after all of it; None if neither came in time."""
        deadline = time.monotonic() + patience
        while True:
            found = self._taken() or self._read()
            if isinstance(found, Batch):
                if found.last <= self.seen:
                    continue
                return found
            left = deadline - time.monotonic()
            if found is not None or left <= 0 or self.hub.ending():
                return found
            self.news.wait(left)

    def _taken(self) -> Batch | Ended | None:
        with self.hub.lock:
            self.news.clear()
            if self.waiting:
                batch = self.waiting.popleft()
                self.size -= batch.size
                return batch
            return self.ended

    def _read(self) -> Batch | Ended | None:
        """Read from the database until there is nothing more, then join the others."""
        while not self.joined:
            with self.hub.readers, reading() as session:
                standing = queries.standings(session, [self.job]).get(self.job)
                if self.output and standing is not None and standing.last_seq > self.seen:
                    span = {self.job: (self.seen, standing.last_seq)}
                    rows = queries.outputs(session, span, pieces=PAGE_PIECES, most_bytes=PAGE_BYTES)[self.job]
                    if rows:
                        return Batch(rows)
            if standing is None or standing.ended:
                return Ended(standing)
            self.hub.join(self)
        return None

    def leave(self) -> None:
        """Follow no more."""
        self.hub.leave(self)


class Topic:
    """A job that is followed."""

    def __init__(self) -> None:
        """Begin without followers."""
        self.followers: set[Follower] = set()
        #: The number of the last output that was handed on; None while nobody wants any.
        self.position: int | None = None


class Hub:
    """All who follow jobs in one process."""

    def __init__(self, most: int) -> None:
        """Take how many there may be."""
        self.places = threading.BoundedSemaphore(most) if most else None
        self.readers = threading.BoundedSemaphore(READERS)
        self.lock = threading.Lock()
        self.topics: dict[int, Topic] = {}
        self.thread: threading.Thread | None = None
        self.ending = streams.ending

    def take_place(self) -> Callable[[], None]:
        """Let one more follow, and give what is to be called at its end; raises :class:`Unavailable`."""
        places = self.places
        if places is None or not places.acquire(blocking=False):
            raise Unavailable("too many requests follow jobs or wait for their end; come back later", retry_after=2)
        left = threading.Lock()

        def leave() -> None:
            # Whatever calls it twice, it is one place.
            if left.acquire(blocking=False):
                places.release()

        return leave

    def join(self, follower: Follower) -> None:
        """Let a follower have what comes, if it is not behind what was handed on; else it has to read on."""
        with self.lock:
            topic = self.topics.setdefault(follower.job, Topic())
            if follower.output:
                if topic.position is None:
                    topic.position = follower.seen
                if follower.seen < topic.position:
                    return
            topic.followers.add(follower)
            follower.joined = True
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="remote-follow", daemon=True)
                self.thread.start()

    def leave(self, follower: Follower) -> None:
        """Let a follower have nothing more."""
        with self.lock:
            follower.leave_behind()
            self._drop(follower)

    def _drop(self, follower: Follower) -> None:
        topic = self.topics.get(follower.job)
        if topic is None:
            return
        topic.followers.discard(follower)
        if not topic.followers:
            del self.topics[follower.job]
        elif not any(each.output for each in topic.followers):
            topic.position = None

    def _run(self) -> None:
        """Look for news until nobody follows any more."""
        trouble = False
        while True:
            with self.lock:
                if self.ending():
                    for follower in [each for topic in self.topics.values() for each in topic.followers]:
                        self._drop(follower)
                        follower.leave_behind()
                if not self.topics:
                    self.thread = None
                    return
                seen = {job: topic.position for job, topic in self.topics.items()}
            try:
                more = self._look(seen)
                trouble = False
            except LabError as error:
                more = False
                if not trouble:
                    log.warning("remote_follow_interrupted", extra={"reason": error.message})
                trouble = True
            except Exception:
                log.exception("remote_follow_failed")
                more, trouble = False, True
            if not more:
                time.sleep(REST if trouble else INTERVAL)

    def _look(self, seen: Mapping[int, int | None]) -> bool:
        """Look for news of all jobs once, and tell whether there is more than could be read."""
        with reading() as session:
            standings = queries.standings(session, list(seen))
            spans = {
                job: (after, standings[job].last_seq)
                for job, after in seen.items()
                if after is not None and job in standings and standings[job].last_seq > after
            }
            found = queries.outputs(session, spans, pieces=PAGE_PIECES, most_bytes=PAGE_BYTES)
        batches = {job: Batch(rows) for job, rows in found.items() if rows}
        with self.lock:
            more = [self._hand_on(job, standings.get(job), batches.get(job)) for job in seen]
        return any(more)

    def _hand_on(self, job: int, standing: Standing | None, batch: Batch | None) -> bool:
        """Hand news of a job on, and tell whether there is more."""
        topic = self.topics.get(job)
        if topic is None:
            return False
        if batch is not None and topic.position is not None and topic.position < batch.last:
            # Those who have joined meanwhile are not behind what was asked for.
            if topic.position + 1 < batch.first:
                return True
            topic.position = batch.last
            for follower in [each for each in topic.followers if each.output]:
                if not follower.take(batch):
                    self._drop(follower)
        ended = standing is None or standing.ended
        for follower in list(topic.followers):
            if ended and not (follower.output and standing and (topic.position or 0) < standing.last_seq):
                self._drop(follower)
                follower.end(Ended(standing))
        return topic.position is not None and standing is not None and topic.position < standing.last_seq


class Stream(Iterator[bytes]):
    """What is sent to one follower; it is closed when the client leaves."""

    def __init__(
        self,
        follower: Follower,
        leave: Callable[[], None],
        form: Form,
        *,
        first: bytes,
        beat: bytes,
        last: Callable[[Ended], bytes] | None = None,
    ) -> None:
        """Take who follows, what gives its place back, what is sent first, when there is no news, and last."""
        self.follower = follower
        self.give_place_back = leave
        self.form = form
        self.ready = deque([first] if first else [])
        self.beat = beat
        self.last = last
        self.over = False

    def __next__(self) -> bytes:
        """Give what is to be sent next."""
        while not self.ready:
            if self.over:
                self.close()
                raise StopIteration
            self._look()
        return self.ready.popleft()

    def _look(self) -> None:
        try:
            news = self.follower.next(HEARTBEAT)
        except LabError as error:
            # The head of the answer has been sent; the client can go on from where it is.
            log.warning("remote_stream_broken", extra={"reason": error.message})
            raise streams.broken() from error
        match news:
            case Batch():
                parts = news.after(self.follower.seen, self.form)
                self.follower.seen = news.last
                self.ready.extend(parts if len(parts) <= ONE_BY_ONE else [b"".join(parts)])
            case Ended():
                self.over = True
                if self.last is not None:
                    self.ready.append(self.last(news))
            case None:
                if self.follower.hub.ending():
                    raise streams.broken()
                self.ready.append(self.beat)

    def close(self) -> None:
        """Follow no more; the server calls this, whatever happened."""
        self.over = True
        self.ready.clear()
        self.follower.leave()
        self.give_place_back()


def wait_for_end(hub: Hub, job: int, seconds: float) -> bool:
    """Wait until a job has ended; tells whether it has."""
    follower = Follower(hub, job, output=False)
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0 and not hub.ending():
            if follower.next(left) is not None:
                return True
        return False
    finally:
        follower.leave()

"""Following jobs: nothing is lost, nothing comes twice, and it ends with the job."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from webtest import TestApp

from labctl import app as application
from labctl.db import transaction
from labctl.errors import Unavailable
from labctl.http import streams
from labctl.http.resource import Request
from labctl.remote import follow, queries, service
from labctl.remote.follow import Ended, Follower, Hub, Stream
from labctl.remote.running import Taken
from labctl.remote.service import Wanted
from labctl.remote.states import JobState, Operation
from labctl.settings import Settings
from tests.acceptance.lab import until

from .web import add_hosts, add_user, claim, finish, piece, stream_of, write

#: Seconds for what takes a moment on a quiet machine.
PATIENCE = 20


@pytest.fixture
def alice(committed_app: TestApp) -> TestApp:
    """The application over a database where transactions really commit, asked by somebody who may."""
    with transaction() as session:
        add_hosts(session)
        committed_app.extra_environ["HTTP_X_AUTH_TOKEN"] = add_user(session)["X-AUTH-TOKEN"]
    return committed_app


@pytest.fixture
def hub(alice: TestApp) -> Iterator[Hub]:
    """A hub beside that of the application, whose thread ends with the test."""
    hub = Hub(16)
    yield hub
    for follower in [each for topic in list(hub.topics.values()) for each in topic.followers]:
        follower.leave()
    until(lambda: hub.thread is None, "the hub's thread has ended")


def begin(*hosts: str, operation: Operation = Operation.PING) -> Taken:
    """Have a job that goes on."""
    with transaction() as session:
        wanted = Wanted(operation, hosts or ("web1",))
        service.submit(session, wanted, asked_by="alice", address=None, timeout=60)
    return claim()


class Client:
    """Somebody who reads a streamed answer part by part."""

    def __init__(self, app: TestApp, url: str, **headers: str) -> None:
        given = {"X-Auth-Token": app.extra_environ["HTTP_X_AUTH_TOKEN"], **headers}
        self.status, self.headers, self.parts = Request.blank(url, headers=given).call_application(app.app)
        self.got = b""

    def read(self) -> bytes:
        """Read the next part that is no heartbeat."""
        for part in self.parts:
            if part.strip():
                self.got += part
                return part
        return b""

    def rest(self) -> bytes:
        while self.read():
            pass
        return self.got

    def close(self) -> None:
        self.parts.close()


def names(values: list[Any]) -> list[str]:
    """Give the names of the chunks of a stream, less its first object."""
    return [chunk["name"] for value in values[1:] for chunk in value.values()]


# Following with JSON


def test_a_stream_begins_with_the_job_goes_on_with_each_chunk_and_ends_with_the_job(alice: TestApp) -> None:
    taken = begin("web1", "db1")
    write(taken, piece("web1", None, name="0"))
    client = Client(alice, f"/jobs/{taken.jid}?outputs=1&follow=1")
    assert client.status == "200 OK"
    assert dict(client.headers)["Content-Type"] == "application/json"
    first = json.loads(client.read())
    assert (first["jid"], first["state"], first["next"]) == (taken.jid, 1, 1)
    assert first["return_data"] == {"web1": [{"status": 5, "name": "0"}]}

    write(taken, piece("db1", None, name="1"), piece("web1", None, name="2"))
    # A part for each, as it comes.
    assert json.loads(client.read()) == {"db1": {"status": 5, "name": "1"}}
    assert json.loads(client.read()) == {"web1": {"status": 5, "name": "2"}}
    finish(taken, piece("web1", name="3"))
    assert json.loads(client.read()) == {"web1": {"status": 5, "name": "3"}}
    assert client.read() == b""


def test_without_outputs_all_chunks_come_in_the_stream(alice: TestApp) -> None:
    taken = begin()
    write(taken, piece("web1", None, name="0"))
    client = Client(alice, f"/jobs/{taken.jid}?follow=1")
    client.read()
    finish(taken, piece("web1", name="1"))
    values = stream_of(client.rest().decode())
    assert values[0]["return_data"] == {}
    assert names(values) == ["0", "1"]


def test_a_follower_that_comes_back_goes_on_after_what_it_has(alice: TestApp) -> None:
    taken = begin()
    write(taken, *[piece("web1", None, name=str(number)) for number in range(5)])
    client = Client(alice, f"/api/remote/jobs/{taken.jid}?outputs=1&follow=1&after=3")
    first = json.loads(client.read())
    assert first["return_data"] == {"web1": [{"status": 5, "name": "3"}, {"status": 5, "name": "4"}]}
    client.close()
    client = Client(alice, f"/api/remote/jobs/{taken.jid}?follow=1&after=4")
    finish(taken, piece("web1", name="5"))
    assert names(stream_of(client.rest().decode())) == ["4", "5"]


def test_the_end_of_another_job_ends_nothing(alice: TestApp) -> None:
    one, other = begin(), begin()
    clients = [Client(alice, f"/jobs/{taken.jid}?follow=1") for taken in (one, other)]
    for client in clients:
        client.read()
    finish(other)
    assert clients[1].read() == b""
    write(one, piece("web1", None, name="0"))
    assert json.loads(clients[0].read())["web1"]["name"] == "0"
    finish(one)
    assert clients[0].read() == b""


def test_a_queued_job_is_followed_from_its_beginning_to_its_end(alice: TestApp) -> None:
    with transaction() as session:
        jid = service.submit(session, Wanted(Operation.PING, ["web1"]), asked_by="a", address=None, timeout=9)
    client = Client(alice, f"/jobs/{jid}?outputs=1&follow=1")
    assert json.loads(client.read())["status"] == "queued"
    alice.post(f"/jobs/{jid}/cancel")
    assert client.read() == b""


def test_output_that_came_before_the_end_is_streamed_when_it_is_more_than_one_answer_has(
    alice: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labctl.remote.controllers.MOST_BYTES", 100)
    taken = begin()
    finish(taken, *[piece("web1", name=f"{number:050}") for number in range(10)])
    values = stream_of(Client(alice, f"/jobs/{taken.jid}?outputs=1&follow=1").rest().decode())
    assert values[0]["more"]
    told = [chunk["name"] for chunk in values[0]["return_data"]["web1"]]
    assert [int(name) for name in told + names(values)] == list(range(10))


def test_what_is_deleted_while_it_is_followed_ends(alice: TestApp, hub: Hub) -> None:
    taken = begin()
    follower = Follower(hub, taken.id)
    assert follower.next(0) is None
    with transaction() as session:
        session.execute(text("DELETE FROM remote_jobs"))
    found = follower.next(PATIENCE)
    assert isinstance(found, Ended) and found.standing is None
    follower.leave()


# Server-sent events


def events(data: bytes) -> list[dict[str, str]]:
    found = []
    for block in data.decode().split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        if lines:
            found.append({name: value for name, _, value in lines})
    return found


def test_events_for_browsers_have_numbers_and_tell_the_end(alice: TestApp) -> None:
    taken = begin()
    write(taken, piece("web1", None, name="a\nb"))
    client = Client(alice, f"/jobs/{taken.jid}/events")
    headers = dict(client.headers)
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["X-Accel-Buffering"] == "no"
    finish(taken, piece("web1", name="c"), state=JobState.FAILED, error="it\nfailed")
    found = events(client.rest())
    assert [(each["id"], each["event"]) for each in found] == [("1", "output"), ("2", "output"), ("2-end", "end")]
    assert json.loads(found[0]["data"]) == {"host": "web1", "chunk": {"status": 5, "name": "a\nb"}}
    assert json.loads(found[2]["data"]) == {"state": 2, "status": "failed", "error": "it\nfailed"}


@pytest.mark.parametrize("how", ["after", "header"])
def test_events_go_on_after_the_last_that_the_browser_has(alice: TestApp, how: str) -> None:
    taken = begin()
    finish(taken, *[piece("web1", name=str(number)) for number in range(3)])
    if how == "after":
        client = Client(alice, f"/jobs/{taken.jid}/events?after=2")
    else:
        client = Client(alice, f"/jobs/{taken.jid}/events", **{"Last-Event-ID": "2"})
    assert [each["id"] for each in events(client.rest())] == ["3", "3-end"]


def test_a_browser_that_was_told_the_end_is_told_to_stay_away(alice: TestApp) -> None:
    taken = begin()
    finish(taken)
    assert alice.get(f"/jobs/{taken.jid}/events", headers={"Last-Event-ID": "0-end"}, status=204).body == b""


# Places and heartbeats


def test_an_idle_stream_has_heartbeats_that_are_white_space(alice: TestApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "HEARTBEAT", 0.01)
    taken = begin()
    plain, browser = Client(alice, f"/jobs/{taken.jid}?follow=1"), Client(alice, f"/jobs/{taken.jid}/events")
    plain.read()
    assert [next(plain.parts) for _ in range(3)] == [b"\n"] * 3
    assert [next(browser.parts) for _ in range(3)] == [b": \n\n"] * 3
    plain.close()
    browser.close()


def test_more_followers_than_there_are_places_are_told_to_come_back(alice: TestApp, settings: Settings) -> None:
    app = TestApp(application.make_app(Settings(database_url=settings.database_url, remote_max_followers=2)))
    app.extra_environ = alice.extra_environ
    taken = begin()
    first = Client(app, f"/jobs/{taken.jid}?follow=1")
    second = Client(app, f"/jobs/{taken.jid}/events")
    for url in (f"/jobs/{taken.jid}?follow=1", f"/jobs/{taken.jid}/events", "/ping?target=web1"):
        answer = app.get(url, status=503)
        assert answer.headers["Retry-After"] == "2"
        assert "too many requests follow" in answer.json["message"]
    # Everything else is answered.
    assert app.get("/jobs").json == [taken.jid]
    assert app.get(f"/jobs/{taken.jid}?outputs=1").json["jid"] == taken.jid
    # Even one that has not read anything, or is closed twice, gives its place back, once.
    first.close()
    first.close()
    third = Client(app, f"/jobs/{taken.jid}?follow=1")
    third.read()
    app.get(f"/jobs/{taken.jid}?follow=1", status=503)
    finish(taken)
    assert third.rest() and second.rest()
    for _ in range(3):
        app.get(f"/jobs/{taken.jid}/events", status=200)


def test_head_takes_no_place_for_long(alice: TestApp) -> None:
    taken = begin()
    for _ in range(70):
        assert alice.head(f"/jobs/{taken.jid}?outputs=1&follow=1").status_int == 200


def test_the_thread_ends_when_nobody_follows_and_comes_back(hub: Hub) -> None:
    taken = begin()
    for _ in range(2):
        assert hub.thread is None
        follower = Follower(hub, taken.id)
        assert follower.next(0) is None
        assert hub.thread is not None
        follower.leave()
        until(lambda: hub.thread is None, "the hub's thread has ended")
        assert hub.topics == {}


def test_no_connection_is_held_while_somebody_follows(alice: TestApp, committed: Engine) -> None:
    taken = begin()
    held: list[int] = []
    event.listen(committed, "checkout", lambda *_: held.append(1))
    event.listen(committed, "checkin", lambda *_: held.pop())
    client = Client(alice, f"/jobs/{taken.jid}?follow=1")
    client.read()
    until(lambda: not held, "no connection is in use")
    write(taken, piece("web1", None, name="0"))
    client.read()
    until(lambda: not held, "no connection is in use")
    client.close()


def test_a_stream_is_broken_off_when_the_process_ends(alice: TestApp, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = begin()
    client = Client(alice, f"/jobs/{taken.jid}?follow=1")
    client.read()
    monkeypatch.setattr(streams, "_ending", lambda: True)
    with pytest.raises(ConnectionResetError):
        client.read()
    client.close()


# Many, slow, and those that come late


def put(hub: Hub, taken: Taken, seen: int = 0) -> Stream:
    return Stream(Follower(hub, taken.id, seen), hub.take_place(), follow.as_json, first=b"", beat=b"")


def collected(stream: Stream) -> list[int]:
    return [int(name) for name in names([{}, *stream_of(b"".join(stream).decode())])]


def test_one_thread_reads_for_all(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = begin()
    streams = [put(hub, taken) for _ in range(8)]
    for stream in streams:
        assert stream.follower.next(0) is None
    read: list[int] = []
    real = queries.outputs

    def outputs(session: Any, spans: Any, **limits: Any) -> Any:
        read.extend(spans)
        return real(session, spans, **limits)

    monkeypatch.setattr(queries, "outputs", outputs)
    write(taken, piece("web1", None, name="0"))
    for stream in streams:
        assert next(stream) == b'{"web1":{"status": 5, "name": "0"}}'
    assert read == [taken.id]
    finish(taken)
    for stream in streams:
        assert list(stream) == []


def test_many_that_come_at_different_times_all_get_everything_once_and_in_order(
    hub: Hub, at_once: Callable[[list[Callable[[], Any]]], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PAGE_BYTES", 2000)
    total = 600
    taken = begin()
    written = threading.Semaphore(0)

    def work() -> None:
        number = 0
        while number < total:
            some = [piece("web1", None, name=str(number + more)) for more in range(min(7, total - number))]
            write(taken, *some)
            number += len(some)
            written.release()
        finish(taken)

    def read(place: int) -> list[int]:
        for _ in range(place * 4):
            written.acquire(timeout=PATIENCE)
            written.release()
        return collected(put(hub, taken, seen=place))

    results = at_once([work, *[lambda place=place: read(place) for place in range(12)]])[1:]
    for place, numbers in enumerate(results):
        assert numbers == list(range(place, total))


def test_one_that_is_slow_is_left_behind_and_reads_from_the_database(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "MOST_WAITING", 2000)
    taken = begin()
    slow, fast = put(hub, taken), put(hub, taken)
    for stream in (slow, fast):
        assert stream.follower.next(0) is None
    largest = 0
    for number in range(200):
        write(taken, piece("web1", None, name=str(number), pad="x" * 100))
        # Whoever does not read has not more than this in memory, and holds up nobody.
        assert json.loads(next(fast))["web1"]["name"] == str(number)
        largest = max(largest, slow.follower.size)
    assert 0 < largest <= 2000
    assert not slow.follower.joined
    finish(taken)
    assert collected(slow) == list(range(200))
    assert list(fast) == []


def test_a_client_that_is_behind_gets_many_chunks_as_one_part(hub: Hub) -> None:
    taken = begin()
    finish(taken, *[piece("web1", name=str(number)) for number in range(1000)])
    parts = list(put(hub, taken))
    assert len(parts) == 1
    assert len(stream_of(parts[0].decode())) == 1000


def test_what_was_written_is_there_a_moment_later(hub: Hub) -> None:
    taken = begin()
    stream = put(hub, taken)
    assert stream.follower.next(0) is None
    took = []
    for number in range(40):
        began = time.monotonic()
        write(taken, piece("web1", None, name=str(number)))
        next(stream)
        took.append(time.monotonic() - began)
    assert sorted(took)[20] < 0.25
    stream.close()


def test_trouble_with_the_database_passes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "REST", 0.01)
    taken = begin()
    stream = put(hub, taken)
    assert stream.follower.next(0) is None
    asked = threading.Event()
    real = Hub._look

    def fail(self: Hub, seen: Any) -> bool:
        if asked.is_set():
            return real(self, seen)
        asked.set()
        raise Unavailable("the database cannot be reached at the moment")

    monkeypatch.setattr(Hub, "_look", fail)
    assert asked.wait(PATIENCE)
    finish(taken, piece("web1", name="0"))
    assert collected(stream) == [0]


# Waiting for the end


def answering(app: TestApp, url: str, work: Callable[[], Any]) -> Any:
    """Ask, let somebody work, and give the answer."""
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(app.get(url, expect_errors=True)))
    asking.start()
    try:
        until(lambda: app.get("/jobs?state=queued").json, "the job waits")
        work()
    finally:
        asking.join(PATIENCE)
    return answers[0]


def done(*pieces: Any, state: JobState = JobState.DONE, error: str = "") -> Callable[[], None]:
    return lambda: finish(claim(), *pieces, state=state, error=error)


def test_a_get_answers_the_chunk_of_each_host_when_its_job_has_ended(alice: TestApp) -> None:
    chunk = {"rtc": 1, "stdout": "", "stderr": "no"}
    pieces = (piece("db1", **chunk), piece("web1", **chunk))
    failed = done(*pieces, state=JobState.FAILED, error="2 of 2 remote host(s) got execute errors")
    answer = answering(alice, "/execute?target=web1,db1&cmd=false", failed)
    assert answer.status_int == 200
    assert answer.json == {"web1": {"status": 5, **chunk}, "db1": {"status": 5, **chunk}}


def test_a_get_says_why_nothing_came_from_a_host(alice: TestApp) -> None:
    lost = done(piece("web1"), state=JobState.FAILED, error="timed out after 60 s")
    answer = answering(alice, "/ping?target=web", lost)
    assert answer.json == {"web1": {"status": 5}, "web2": {"status": 3, "message": "timed out after 60 s"}}


def test_a_get_whose_job_the_executor_could_not_do_says_so(alice: TestApp) -> None:
    broken = done(state=JobState.FAILED, error="got executor error, there is no inventory <x>")
    answer = answering(alice, "/ping?target=web1", broken)
    assert answer.status_int == 503
    assert answer.json == {"message": "got executor error, there is no inventory &lt;x&gt;"}


def test_a_get_ends_with_its_wait_and_its_job_goes_on(alice: TestApp) -> None:
    began = time.monotonic()
    answer = alice.get("/ping?target=web1&wait=0.3", status=202)
    assert 0.3 <= time.monotonic() - began < PATIENCE
    assert alice.get(f"/jobs/{answer.json['jid']}").json["status"] == "queued"


def test_the_setting_is_the_longest_wait(alice: TestApp, settings: Settings) -> None:
    app = TestApp(application.make_app(Settings(database_url=settings.database_url, remote_wait=0.2)))
    app.extra_environ = alice.extra_environ
    for query in ("", "&wait=1000"):
        assert (
            app.get(f"/ping?target=web1{query}", status=202)
            .json["message"]
            .startswith("it has not ended within 0.2 s and goes on; ask at ")
        )


def test_a_wait_ends_when_the_process_does(alice: TestApp, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = begin()
    monkeypatch.setattr(hub, "ending", lambda: True)
    assert follow.wait_for_end(hub, taken.id, PATIENCE) is False

"""Many who want the same hosts at once, and many who follow while others write."""

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError
from webtest import TestApp

from labctl import clock
from labctl.db import reading, transaction
from labctl.errors import Conflict, LabError
from labctl.events.models import Event
from labctl.http.resource import Request
from labctl.remote import running, service
from labctl.remote.models import RemoteJob, RemoteJobHost
from labctl.remote.service import Wanted
from labctl.remote.states import JobState, Operation
from tests.remote.factories import ARGUMENTS
from tests.remote.web import add_hosts, add_user, claim, finish, piece, stream_of, write

THREADS = 16
NAMES = [f"host{number:02}" for number in range(24)]
AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]


@pytest.fixture
def alice(committed_app: TestApp) -> TestApp:
    with transaction() as session:
        add_hosts(session, {name: ["all-of-them"] for name in NAMES})
        committed_app.extra_environ["HTTP_X_AUTH_TOKEN"] = add_user(session)["X-AUTH-TOKEN"]
    return committed_app


def deploy(*hosts: str, key: str | None = None) -> str | LabError:
    try:
        with transaction() as session:
            wanted = Wanted(Operation.DEPLOY, hosts, ARGUMENTS[Operation.DEPLOY])
            return service.submit(session, wanted, asked_by="a", address=None, timeout=60, key=key)
    except LabError as error:
        return error


def held() -> dict[str, str]:
    """Give what holds each host."""
    with reading() as session:
        query = select(RemoteJobHost.host, RemoteJob.jid).join(RemoteJob, RemoteJob.id == RemoteJobHost.job_id)
        rows = session.execute(query.where(RemoteJobHost.held)).all()
    assert len({row.host for row in rows}) == len(rows)
    return {row.host: row.jid for row in rows}


@pytest.mark.parametrize("attempt", range(6))
def test_of_many_who_deploy_on_hosts_that_overlap_those_win_that_do_not(
    alice: TestApp, at_once: AtOnce, attempt: int
) -> None:
    chance = random.Random(attempt)
    wanted = [chance.sample(NAMES, chance.randint(1, 6)) for _ in range(THREADS)]

    def post(hosts: list[str]) -> Any:
        return alice.post_json("/deploy", {"targets": hosts, "role": "nginx"}, expect_errors=True)

    answers = at_once([lambda hosts=hosts: post(hosts) for hosts in wanted])
    assert {answer.status_int for answer in answers} <= {201, 409}
    expected: dict[str, str] = {}
    for hosts, answer in zip(wanted, answers, strict=True):
        if answer.status_int == 201:
            assert not expected.keys() & set(hosts)
            expected |= dict.fromkeys(hosts, answer.json["jid"])
    assert held() == expected
    for hosts, answer in zip(wanted, answers, strict=True):
        if answer.status_int == 409:
            # Whoever lost could not have won, and is told by whom each host is held.
            busy = sorted(set(hosts) & expected.keys())
            assert busy
            told = answer.json["message"].removeprefix("operate conflict: ").split("; ")
            assert set(told) <= {f"{host} is busy with deploy {expected[host]} of alice" for host in busy}
    with reading() as session:
        assert len(session.execute(select(RemoteJob.id)).all()) == len(set(expected.values()))


def test_all_win_who_want_different_hosts(alice: TestApp, at_once: AtOnce) -> None:
    results = at_once([lambda name=name: deploy(name) for name in NAMES[:THREADS]])
    assert held() == dict(zip(NAMES, results, strict=False))


def test_of_many_who_want_all_hosts_one_wins(alice: TestApp, at_once: AtOnce) -> None:
    results = at_once([lambda: deploy("all-of-them")] * THREADS)
    assert [type(result) for result in results].count(Conflict) == THREADS - 1
    assert len(held()) == len(NAMES)


def test_what_a_dead_worker_held_goes_to_one_of_many(alice: TestApp, at_once: AtOnce) -> None:
    for round_ in range(4):
        for hosts in (NAMES[:6], NAMES[6:12]):
            assert isinstance(deploy(*hosts), str)
            claim()
        with transaction() as session:
            session.execute(update(RemoteJob).values(lease_until=clock.now() - timedelta(seconds=1)))
        chance = random.Random(round_)
        wanted = [chance.sample(NAMES[:12], 3) for _ in range(THREADS)]
        results = at_once([lambda hosts=hosts: deploy(*hosts) for hosts in wanted])
        winners = [hosts for hosts, result in zip(wanted, results, strict=True) if isinstance(result, str)]
        assert winners
        assert {type(result) for result in results} <= {str, Conflict}
        assert sorted(held()) == sorted(host for hosts in winners for host in hosts)
        with transaction() as session:
            assert (
                session.scalars(select(RemoteJob.error).where(RemoteJob.state == "failed")).all() == [running.LOST] * 2
            )
            session.execute(text("TRUNCATE remote_jobs CASCADE"))


def test_hosts_go_from_hand_to_hand_while_jobs_end(alice: TestApp, at_once: AtOnce) -> None:
    lock = threading.Lock()

    def work(number: int) -> int:
        chance, won = random.Random(number), 0
        for _ in range(12):
            jid = deploy(*chance.sample(NAMES, 4))
            assert isinstance(jid, str | Conflict)
            if isinstance(jid, str):
                won += 1
                if chance.random() < 0.5:
                    with transaction() as session:
                        service.cancel(session, jid, "somebody")
                else:
                    # There is one worker, which takes the oldest.
                    with lock:
                        with transaction() as session:
                            taken = running.claim(session, "worker", 1, 30)
                        for each in taken:
                            finish(each)
        return won

    results = at_once([lambda number=number: work(number) for number in range(8)])
    assert all(results)
    with transaction() as session:
        for jid in session.scalars(select(RemoteJob.jid).where(RemoteJob.state == JobState.QUEUED)):
            service.cancel(session, jid, "somebody")
    assert held() == {}


def test_many_who_ask_with_one_key_get_one_job(alice: TestApp, at_once: AtOnce) -> None:
    for key in ("first", "second", "third"):
        with transaction() as session:
            session.execute(update(RemoteJobHost).values(held=False))
        results = at_once([lambda key=key: deploy("all-of-them", key=key)] * THREADS)
        assert len(set(results)) == 1
        assert isinstance(results[0], str)
        with reading() as session:
            subject = Event.subject == f"remote/{results[0]}"
            assert len(session.execute(select(Event.seq).where(subject, Event.kind == "remote.job_added")).all()) == 1


def test_of_many_who_cancel_or_delete_a_job_nobody_is_told_nonsense(alice: TestApp, at_once: AtOnce) -> None:
    for _ in range(4):
        jid = deploy("host01")
        assert isinstance(jid, str)

        def ask(number: int, jid: str = jid) -> int:
            if number % 2:
                return int(alice.post(f"/jobs/{jid}/cancel", expect_errors=True).status_int)
            return int(alice.delete(f"/jobs/{jid}", expect_errors=True).status_int)

        results = at_once([lambda number=number: ask(number) for number in range(THREADS)])
        cancelled, deleted = set(results[1::2]), results[::2]
        assert cancelled <= {202, 404}
        assert set(deleted) <= {204, 400, 404}
        assert deleted.count(204) <= 1
        assert held() == {}


def test_the_index_alone_keeps_two_from_one_host(alice: TestApp) -> None:
    deploy("host01")
    with reading() as session:
        job = session.execute(select(RemoteJob.id)).scalar_one()
    twice = RemoteJobHost(job_id=job, position=9, host="host01", operation="deploy", held=True)

    def add() -> None:
        with transaction() as session:
            session.add(twice)

    with pytest.raises(IntegrityError, match="uq_remote_job_hosts_held"):
        add()


@pytest.mark.parametrize("form", ["follow", "events"])
def test_whoever_follows_while_others_write_loses_nothing_and_gets_nothing_twice(
    alice: TestApp, at_once: AtOnce, form: str
) -> None:
    total, jobs = 300, []
    for _ in range(3):
        alice.post_json("/ping", {"targets": NAMES})
        jobs.append(claim())
    progress = threading.Semaphore(0)

    def work(taken: Any) -> None:
        chance, number = random.Random(taken.id), 0
        while number < total:
            some = min(chance.randint(1, 9), total - number)
            write(taken, *[piece(NAMES[n % 24], None, n=n) for n in range(number, number + some)])
            number += some
            progress.release()
        finish(taken)

    def read(place: int) -> list[int]:
        for _ in range(place * 7):
            progress.acquire(timeout=20)
            progress.release()
        taken = jobs[place % 3]
        url = f"/jobs/{taken.jid}?outputs=1&follow=1" if form == "follow" else f"/jobs/{taken.jid}/events"
        headers = {"X-Auth-Token": alice.extra_environ["HTTP_X_AUTH_TOKEN"]}
        status, _, parts = Request.blank(url, headers=headers).call_application(alice.app)
        assert status == "200 OK"
        data = b"".join(parts).decode()
        if form == "events":
            return [int(line[4:]) - 1 for line in data.splitlines() if line.startswith("id: ") and "-end" not in line]
        values = stream_of(data)
        # Grouped by host: in the order of arrival for each.
        told = [[chunk["n"] for chunk in chunks] for chunks in values[0]["return_data"].values()]
        assert all(numbers == sorted(numbers) for numbers in told)
        first = sorted(n for numbers in told for n in numbers)
        assert first == list(range(values[0]["next"]))
        return first + [chunk["n"] for value in values[1:] for chunk in value.values()]

    results = at_once([*[lambda taken=taken: work(taken) for taken in jobs], *[lambda n=n: read(n) for n in range(12)]])
    for numbers in results[3:]:
        assert numbers == list(range(total))

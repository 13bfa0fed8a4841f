import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from webtest import TestApp

from labctl import app as application
from labctl import clock
from labctl.db import reading, transaction
from labctl.errors import NotFound
from labctl.events.models import Event
from labctl.nodes import health, service, tasks
from labctl.settings import ANONYMOUS, Settings
from tests.nodes.servers import Storage, make_certificate, running

THREADS = 16
RETRIES = 3
AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]
pytestmark = pytest.mark.usefixtures("committed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def storage(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    health.trusted.cache_clear()
    with running(certificate) as server:
        yield server
    health.trusted.cache_clear()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # So long that nobody loses patience on a busy machine.
    return replace(settings, anonymous={**ANONYMOUS, "nodes": "write"}, health_check_timeout=60)


def add(*hosts: str) -> None:
    with transaction() as session:
        for host in hosts:
            service.register(session, host, None, clock.now())


def next_host(app: TestApp) -> str | None:
    answer = app.get("/api/nodes/next/", status=(200, 404))
    return answer.text.removeprefix("https://").removesuffix("/") if answer.status_int == 200 else None


def nodes() -> dict[str, tuple[bool, int]]:
    with reading() as session:
        return {node["host"]: (node["healthy"], node["down_count"]) for node in service.listed(session)}


def claims() -> int:
    with reading() as session:
        query = text("SELECT count(*) FROM storage_nodes WHERE claimed_until IS NOT NULL")
        return session.execute(query).scalar_one()


def until_somebody_waits(session: Any) -> None:
    """Go on when another transaction waits for this one."""
    deadline = time.monotonic() + 30
    while not session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("attempt", range(3))
def test_many_who_ask_at_once_get_a_node_each_while_there_are_enough(
    at_once: AtOnce, committed_app: TestApp, storage: Storage, attempt: int
) -> None:
    add(*storage.hosts(range(1, 21)))
    for _ in range(3):
        given = at_once([lambda: next_host(committed_app)] * THREADS)
        assert None not in given
        assert len(set(given)) == THREADS
    assert claims() == 0


def test_the_rotation_goes_round_whoever_asks(at_once: AtOnce, committed_app: TestApp, storage: Storage) -> None:
    hosts = storage.hosts(range(1, 9))
    add(*hosts)
    for _ in range(4):
        first = at_once([lambda: next_host(committed_app)] * 4)
        second = at_once([lambda: next_host(committed_app)] * 4)
        assert sorted([*first, *second]) == sorted(hosts)


def test_many_who_ask_at_once_share_few_nodes_evenly(at_once: AtOnce, committed_app: TestApp, storage: Storage) -> None:
    hosts = storage.hosts(range(1, 5), "slow")
    add(*hosts)

    def open_when_all_wait() -> None:
        deadline = time.monotonic() + 30
        while sum(storage.asked.values()) < THREADS and time.monotonic() < deadline:
            storage.gate.wait(0.01)
        storage.gate.set()

    *given, _ = at_once([*[lambda: next_host(committed_app)] * THREADS, open_when_all_wait])
    assert Counter(given) == dict.fromkeys(hosts, 4)
    assert claims() == 0


def test_of_many_who_find_a_node_down_at_once_each_gets_another(
    at_once: AtOnce, committed_app: TestApp, storage: Storage
) -> None:
    down, well = storage.hosts(range(1, 5), "failing"), storage.hosts(range(10, 13))
    add(*down, *well)
    for _ in range(4):
        given = at_once([lambda: next_host(committed_app)] * THREADS)
        assert set(given) <= set(well)
    found = nodes()
    assert {found[host] for host in down} <= {(True, 1), (True, 2), (False, 3)}
    assert {found[host] for host in well} == {(True, 0)}
    assert claims() == 0
    with reading() as session:
        out = session.scalars(select(Event.subject).where(Event.kind == "node.unhealthy")).all()
    assert sorted(out) == sorted(f"nodes/{host}" for host in down if not found[host][0])


def test_many_who_claim_give_back_look_register_and_remove_do_not_wait_for_each_other(
    at_once: AtOnce, committed: Engine
) -> None:
    hosts = [f"node{number:02}" for number in range(12)]
    add(*hosts)

    def ask() -> None:
        for attempt in range(20):
            turn = service.Turn(60)
            for count in (1, 2, 4):
                with transaction() as session:
                    service.claim(session, turn, count)
            tried = list(turn.claimed)
            failed = dict.fromkeys(tried[attempt % 3 :: 3], "down")
            taken = next((host for host in reversed(tried) if host not in failed), None)
            with transaction() as session:
                service.end(session, turn, taken, failed, RETRIES)

    def look(backwards: bool) -> None:
        for _ in range(20):
            with reading() as session:
                listed = service.listed(session)[:: -1 if backwards else 1]
            with transaction() as session:
                service.note(session, listed, {node["host"]: None for node in listed}, RETRIES)

    def come_and_go(host: str) -> None:
        for attempt in range(20):
            with transaction() as session:
                service.register(session, host, "down" if attempt % 2 else None, clock.now())
            if attempt % 5 == 4:
                try:
                    with transaction() as session:
                        service.remove(session, host)
                except NotFound:
                    pass
        add(host)

    work = [*[ask] * 8, lambda: look(False), lambda: look(True)]
    # A deadlock, or a wait of too long, raises.
    at_once([*work, *(lambda h=h: come_and_go(h) for h in (hosts[0], hosts[0], hosts[5], "node99"))])
    assert nodes().keys() == {*hosts, "node99"}
    assert claims() == 0


def test_a_claim_waits_for_the_one_before_and_takes_what_that_leaves(at_once: AtOnce) -> None:
    add("a", "b")
    claimed = threading.Event()
    turns = [service.Turn(60), service.Turn(60)]

    def first() -> list[str]:
        with transaction() as session:
            hosts = service.claim(session, turns[0], 1)
            claimed.set()
            until_somebody_waits(session)
            return hosts

    def second() -> list[str]:
        claimed.wait(30)
        with transaction() as session:
            return service.claim(session, turns[1], 1)

    assert at_once([first, second]) == [["a"], ["b"]]


@pytest.mark.parametrize("how", ["out", "away"])
def test_a_node_that_goes_while_it_is_claimed_leaves_its_place_to_others(at_once: AtOnce, how: str) -> None:
    add("a", "b", "c")
    # So that only b is free.
    with transaction() as session:
        service.claim(session, service.Turn(60), 1)
    with transaction() as session:
        service.register(session, "c", "down", clock.now())
    changed = threading.Event()
    turn = service.Turn(60)

    def go() -> None:
        with transaction() as session:
            if how == "out":
                service.register(session, "b", "down", clock.now())
            else:
                service.remove(session, "b")
            changed.set()
            until_somebody_waits(session)

    def claim() -> list[str] | None:
        changed.wait(30)
        with transaction() as session:
            return service.claim(session, turn, 2)

    assert at_once([go, claim]) == [None, None]
    assert turn.claimed == {}
    # Now that b has gone, and a is claimed, a is shared.
    assert claim() == ["a"]


@pytest.mark.parametrize("attempt", range(3))
def test_who_asks_while_the_only_free_node_goes_out_shares_another(
    at_once: AtOnce, committed_app: TestApp, storage: Storage, attempt: int
) -> None:
    well, *down = storage.hosts(range(1, 8))
    storage.hosts(range(2, 8), "failing")
    add(well, *down)
    # The one that is well is always claimed by somebody, and the others go out one after the other.
    given = at_once([lambda: [next_host(committed_app) for _ in range(6)]] * THREADS)
    assert {host for each in given for host in each} == {well}
    assert {nodes()[host][0] for host in down} == {False}


def test_one_of_many_adds_a_node_and_says_so(at_once: AtOnce, committed_app: TestApp, storage: Storage) -> None:
    host = storage.host(1)
    answers = at_once([lambda: committed_app.post(f"/api/nodes/{host}/").json] * THREADS)
    assert answers == [{}] * THREADS
    assert nodes() == {host: (True, 0)}
    with reading() as session:
        assert session.scalars(select(Event.kind).where(Event.subject == f"nodes/{host}")).all() == ["node.added"]


def test_looks_of_several_workers_at_once_count_once(
    at_once: AtOnce, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = storage.host(1)
    add(host)
    storage.host(1, "failing")

    class Never:
        """A worker's own lock keeps nobody out in another worker."""

        def acquire(self, blocking: bool) -> bool:
            return True

        def release(self) -> None:
            pass

    monkeypatch.setattr(tasks, "_looking", Never())
    barrier = threading.Barrier(4)
    ask = health.check

    def ask_together(*arguments: Any, **options: Any) -> Any:
        # All have read the list by now.
        barrier.wait(30)
        return ask(*arguments, **options)

    monkeypatch.setattr(health, "check", ask_together)
    at_once([lambda: tasks.check.function(settings)] * 4)
    assert nodes() == {host: (True, 1)}


def test_asking_goes_on_while_nodes_die_and_come_back(at_once: AtOnce, settings: Settings, storage: Storage) -> None:
    app = TestApp(application.make_app(settings))
    hosts = storage.hosts(range(1, 7))
    add(*hosts)
    ended = threading.Event()

    def ask() -> list[str | None]:
        given = []
        while not ended.is_set():
            given.append(next_host(app))
        return given

    def kill_and_revive() -> None:
        try:
            for number in (1, 2, 3, 4):
                storage.host(number, "failing")
                for _ in range(3):
                    tasks.check.function(settings)
                assert nodes()[hosts[number - 1]][0] is False
                storage.host(number)
                tasks.check.function(settings)
                assert nodes()[hosts[number - 1]] == (True, 0)
        finally:
            ended.set()

    *given, _ = at_once([*[ask] * 6, kill_and_revive])
    assert all(given)
    assert {host for each in given for host in each} == set(hosts)
    assert nodes() == dict.fromkeys(hosts, (True, 0))
    assert claims() == 0

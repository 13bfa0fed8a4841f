"""The engine in real workers: pools fill, and whatever is killed or stopped, nothing leaks and nobody loses a VM."""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import pytest

from .conftest import remove
from .lab import Up, alive, another_worker, until

POOLS = {"debian": 6, "centos": 4}
#: Everything that may happen does, quickly.
PROVIDER = {
    "plugin": "fake",
    "clone_seconds": [0.02, 0.2],
    "boot_seconds": [0.1, 0.4],
    "failure_rate": 0.05,
    "forget_rate": 0.05,
    "list_interval": 1,
    "deadline": 1,
}
#: Seconds after which another engine goes on with what one has left.
LEASE = 5


class VMLab:
    """One labctl up with its pools, more workers beside it, and the world of its provider."""

    def __init__(self, home: Path) -> None:
        self.environ = {
            "LABCTL_POOLS": orjson.dumps([{"name": name, "size": size} for name, size in POOLS.items()]).decode(),
            "LABCTL_PROVIDERS": orjson.dumps({"fake": PROVIDER}).decode(),
            "LABCTL_WORKER_STALLED_AFTER": str(LEASE),
        }
        self.up = Up(home, **self.environ)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.directory = home / "provider-fake"

    def wait_until_ready(self) -> "VMLab":
        self.up.wait_until_ready()
        self.connect()
        return self

    def connect(self) -> None:
        self.connection = psycopg2.connect((self.up.home / "database.url").read_text().strip())
        self.connection.autocommit = True

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        if hasattr(self, "connection"):
            self.connection.close()
        self.up.close()

    def start_worker(self) -> "subprocess.Popen[bytes]":
        worker = another_worker(self.up.home, self.environ)
        self.workers.append(worker)
        return worker

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def take(self, pool: str) -> str | None:
        """Check a VM out, as the API does."""
        found = self.sql(
            "UPDATE vms SET state = 'running', checkout = now(), lifetime = 12, expires = now() + interval '12 h',"
            " due = now() + interval '11 h', owner = 'ada', lease_holder = NULL, lease_until = NULL WHERE id ="
            " (SELECT id FROM vms WHERE pool = %s AND state = 'ready' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"
            " RETURNING name",
            pool,
        )
        return found[0][0] if found else None

    def give_back(self, name: str) -> None:
        self.sql("UPDATE vms SET state = 'completed', completed = now(), due = now() WHERE name = %s", name)

    def count(self, pool: str, *states: str) -> int:
        ((number,),) = self.sql("SELECT count(*) FROM vms WHERE pool = %s AND state = ANY(%s)", pool, list(states))
        return int(number)

    def is_full(self) -> bool:
        """Tell whether every pool has what it should, and nothing is going on."""
        states = dict(self.sql("SELECT state, count(*) FROM vms WHERE state <> 'destroyed' GROUP BY state"))
        full = all(self.count(pool, "ready") == size for pool, size in POOLS.items())
        return full and not states.keys() & {"requested", "pending", "completed"}

    def is_at_work(self, pid: int) -> bool:
        """Tell whether the engine in a process has claimed anything."""
        return bool(self.sql("SELECT 1 FROM vms WHERE lease_holder LIKE %s", f"%:{pid}:%"))

    @property
    def known(self) -> set[str]:
        return {name for (name,) in self.sql("SELECT name FROM vms WHERE state <> 'destroyed'")}

    @property
    def world(self) -> set[str]:
        return {file.stem for file in self.directory.glob("vms/*.json")}

    @contextmanager
    def faults(self, **options: Any) -> Iterator[None]:
        """Have the provider do wrong for a while."""
        file = self.directory / "faults.json"
        new = file.with_name("faults.new")
        new.write_bytes(orjson.dumps(options))
        new.replace(file)
        try:
            yield
        finally:
            file.unlink()

    def state(self, table: str, column: str, key: str, wanted: str) -> Any:
        found = self.sql(f"SELECT {wanted} FROM {table} WHERE {column} = %s", key)
        return found[0][0] if found else None


@pytest.fixture(scope="module")
def lab() -> Iterator[VMLab]:
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    lab = VMLab(directory / "home")
    try:
        yield lab.wait_until_ready()
    finally:
        lab.close()
        remove(directory)


def test_pools_fill_and_the_place_of_a_vm_that_is_taken_is_filled_within_a_second(lab: VMLab) -> None:
    until(lab.is_full, "the pools are full")
    taken = lab.take("debian")
    assert taken is not None
    began = time.monotonic()
    until(lambda: lab.count("debian", "requested", "pending", "ready") == POOLS["debian"], "another one is on its way")
    assert time.monotonic() - began < 1
    lab.give_back(taken)
    until(lambda: lab.is_full() and lab.world == lab.known, "the pool is full again, the VM that was taken is gone")


def test_a_template_that_fails_blocks_its_pool_until_it_is_mended(lab: VMLab) -> None:
    until(lab.is_full, "the pools are full")
    with lab.faults(broken=["debian"]):
        taken = [lab.take("debian") for _ in range(POOLS["debian"])]
        until(lambda: lab.state("pool_states", "pool", "debian", "blocked_until"), "the pool is blocked")
        assert "debian" in lab.state("pool_states", "pool", "debian", "reason")
        assert lab.count("centos", "ready") == POOLS["centos"]
    for name in taken:
        assert name is not None
        lab.give_back(name)
    until(lab.is_full, "the pool fills again")
    assert lab.state("pool_states", "pool", "debian", "blocked_until") is None


def test_a_provider_that_hangs_is_left_alone_until_it_answers_again(lab: VMLab) -> None:
    until(lab.is_full, "the pools are full")
    with lab.faults(hang_rate=1, hang_seconds=3):
        taken = [lab.take(pool) for pool in POOLS for _ in range(3)]
        until(lambda: lab.state("provider_states", "provider", "fake", "open_until"), "the breaker opens")
        assert lab.state("provider_states", "provider", "fake", "reason") == "no answer within 1 s"
    until(lambda: lab.state("provider_states", "provider", "fake", "failures") == 0, "the breaker closes")
    for name in taken:
        assert name is not None
        lab.give_back(name)
    until(lambda: lab.is_full() and lab.world == lab.known, "everything is as it should be")


def test_the_engine_goes_on_when_the_database_was_killed(lab: VMLab) -> None:
    until(lab.is_full, "the pools are full")
    assert [lab.take("debian") for _ in range(3)]
    until(lambda: not lab.is_full(), "the engine has begun")
    killed = lab.up.database
    os.kill(killed, signal.SIGKILL)
    until(lambda: not alive(killed) and lab.up.find("/postgres", "-D") and lab.up.healthy(), "another database answers")
    lab.connect()
    until(lambda: lab.is_full() and lab.world == lab.known, "everything is as it should be")


class Users:
    """Takes VMs and gives some of them back, so that there is always something to do."""

    def __init__(self, lab: VMLab, chance: random.Random) -> None:
        self.lab = lab
        self.chance = chance
        self.held: list[str] = []
        self.given_back: set[str] = set()

    def act(self) -> None:
        for pool in POOLS:
            if (name := self.lab.take(pool)) is not None:
                self.held.append(name)
        while len(self.held) > 4:
            name = self.held.pop(self.chance.randrange(len(self.held)))
            self.lab.give_back(name)
            self.given_back.add(name)


def test_workers_that_are_killed_and_stopped_at_any_moment_leave_no_vm_too_many_or_too_few(lab: VMLab) -> None:
    chance = random.Random(4)
    users = Users(lab, chance)
    until(lab.is_full, "the pools are full")
    stopped = lab.up.worker
    victims = [lab.start_worker() for _ in range(2)]
    users.act()
    until(lambda: lab.is_at_work(stopped), "the engine that is to be stopped has begun something")
    os.kill(stopped, signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        for number in range(12):
            victim = victims[number % 2]

            def is_at_work(pid: int = victim.pid) -> bool:
                users.act()
                return lab.is_at_work(pid)

            until(is_at_work, "the engine that is to be killed has begun something")
            moment = time.monotonic() + chance.uniform(0, 0.3)
            until(lambda moment=moment: time.monotonic() >= moment, "the moment has come")
            victim.kill()
            victim.wait()
            victims[number % 2] = lab.start_worker()
        until(lambda: time.monotonic() - stopped_at > LEASE + 1, "the leases of the stopped worker have run out")
    finally:
        os.kill(stopped, signal.SIGCONT)
    until(lambda: lab.is_full() and lab.world == lab.known, "every pool is full, and nothing leaks")

    rows = dict(lab.sql("SELECT name, state FROM vms"))
    assert {rows[name] for name in users.held} == {"running"} and set(users.held) <= lab.world
    assert {rows[name] for name in users.given_back} == {"destroyed"} and not users.given_back & lab.world
    assert len(users.given_back) > 10 and alive(stopped)
    for worker in victims:
        worker.terminate()
        assert worker.wait(10) == 0

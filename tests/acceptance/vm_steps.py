"""Kills an engine at each of its steps, one after the other: ``python -m tests.acceptance.vm_steps URL DIRECTORY``.

A step is the moment after each commit and after each file that the provider writes or removes: a kill anywhere else
leaves what the step before it has left, as what a process remembers and has not committed is gone. For each step in
turn, a process begins a scenario on an empty database and kills itself there; the next process begins where that one
has left off, in every third case is killed a few steps later too, and the last one sees the scenario through and looks
whether everything is as it should be. It is over when a first one gets through.

A process is forked from one that has loaded everything. Time is a number that the processes share: whatever takes time
is over at once. Calls are made one after the other, so that the steps are the same each time.
"""

import gc
import itertools
import json
import logging
import mmap
import os
import shutil
import signal
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import event, text

from labctl import clock, db
from labctl.pools import Pool
from labctl.settings import Settings
from labctl.vms import calls, config, cordon, on_demand, service
from labctl.vms import checkout as giving
from labctl.vms import work as migrations
from labctl.vms.engine import Engine
from labctl.vms.on_demand import Limits
from labctl.vms.providers import fake
from labctl.vms.service import Caller, Change, Host, Terms

#: Seconds after which another engine goes on with what one has left; less than a process may use in its rounds.
LEASE = 30
#: Rounds, of a second each, in which the scenario must be over.
ROUNDS = 200
SIZE = 2
POOLS = [Pool(name="debian", size=SIZE), Pool(name="centos", size=0)]
BEGINNING = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
#: A VM that the provider has and nobody knows.
STRAY = "stray"
#: Who gives their VM back, or has it taken away when its time is over.
LEAVERS = ("bob", "dora")

_TIME = struct.Struct("d")
_LABEL = 64


class Shared:
    """What the processes share: the time, and at which step one of them has killed itself."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(_TIME.unpack_from(self._memory)[0], UTC)

    @time.setter
    def time(self, value: datetime) -> None:
        _TIME.pack_into(self._memory, 0, value.timestamp())

    @property
    def label(self) -> str:
        return self._memory[_LABEL : 2 * _LABEL].rstrip(b"\0").decode()

    @label.setter
    def label(self, value: str) -> None:
        self._memory[_LABEL : 2 * _LABEL] = value.encode().ljust(_LABEL, b"\0")


class AtOnce:
    """In the place of a thread: does what it is for when it is started."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        self._target = target
        self._args = args

    def start(self) -> None:
        self._target(*self._args)


class Steps:
    """Counts the steps of this process, and kills it at the ``last``."""

    def __init__(self, shared: Shared, last: int | None) -> None:
        self._shared = shared
        self._last = last
        self._count = itertools.count(1)

    def __call__(self, label: str) -> None:
        if next(self._count) == self._last:
            self._shared.label = label
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Make what happens in this process steps; the product knows nothing of it."""
        event.listen(db._write, "after_commit", lambda session: self("after a commit"))
        write, destroy = fake._replace, fake.FakeProvider.destroy

        def replace(path: Path, content: Any) -> None:
            write(path, content)
            self("after a file")

        def remove(provider: fake.FakeProvider, name: str) -> None:
            destroy(provider, name)
            self("after a removal")

        fake._replace = replace  # type: ignore[assignment]
        fake.FakeProvider.destroy = remove  # type: ignore[method-assign]
        calls.threading = SimpleNamespace(Thread=AtOnce)  # type: ignore[assignment]


class Scenario:
    """Users who take VMs of a small lab, beside its engine; what they have done is read from the database."""

    def __init__(self, directory: Path, shared: Shared) -> None:
        clock.now = lambda: shared.time  # type: ignore[assignment]
        self.shared = shared
        self.directory = directory
        provider = {
            "plugin": "fake",
            "directory": str(directory),
            "boot_seconds": [1, 1],
            "list_interval": 5,
            "deadline": 60,
            "hosts": ["one", "two"],
            "migrates": "live",
        }
        settings = Settings(pools=POOLS, providers={"fake": provider})
        self.rules = config.rules(settings)
        self.engine = Engine(self.rules, config.providers(settings), lease=LEASE, poll=0)

    def reset(self) -> None:
        """Empty the database and the world, but for a stray VM."""
        with db.transaction() as session:
            for table in ("vm_work", "vms", "vm_requests", "vm_orphans", "vm_cordons", "pool_days", "events"):
                session.execute(text(f"DELETE FROM {table}"))
            for table in ("pool_states", "provider_states"):
                session.execute(text(f"DELETE FROM {table}"))
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "vms").mkdir(parents=True)
        stray = {"template": "debian", "host": "one", "boots_at": 0, "disks": {}, "snapshots": []}
        (self.directory / "vms" / f"{STRAY}.json").write_bytes(orjson.dumps(stray))

    def play(self) -> None:
        """See the scenario through."""
        for _ in range(ROUNDS):
            if self.act():
                return
            self.shared.time += timedelta(seconds=1)
            self.engine.tick()
            while self.engine.busy:
                self.engine.tick(10)
        raise AssertionError(f"not over after {ROUNDS} rounds: {self.rows('SELECT * FROM vms')}")

    def rows(self, statement: str) -> list[Any]:
        with db.reading() as reader:
            return [dict(row._mapping) for row in reader.execute(text(statement))]

    def act(self) -> bool:
        """Do what the users would do now; tells whether there is nothing left to do."""
        vms = self.rows("SELECT name, owner, state, host, lifetime, snapshots FROM vms ORDER BY id")
        of = {vm["owner"]: vm for vm in vms if vm["owner"]}
        ready = sum(vm["state"] == "ready" for vm in vms)
        for owner in ("ada", "bob"):
            if owner not in of and (ready == SIZE or (ready and "ada" in of)):
                self.take(owner)
                return False
        if "bob" not in of:
            return False
        request = self.rows("SELECT state FROM vm_requests")
        if not request:
            with db.transaction() as session:
                asked = self.rules.catalog.asked({"centos": 1})
                on_demand.ask(session, self.rules.catalog, asked, Caller("dora"), Limits(10, 60))
        if of["bob"]["state"] == "running":
            with db.transaction() as session:
                service.release(session, Host(of["bob"]["name"]), Caller("bob"))
        if not self.ada_is_served(of["ada"]):
            return False
        if "dora" in of and of["dora"]["state"] == "running" and request[0]["state"] == "ready":
            # Ada's VM has a longer life.
            self.shared.time += timedelta(hours=13)
        gone = all(owner in of and of[owner]["state"] == "destroyed" for owner in LEAVERS)
        others = {vm["state"] for vm in vms} - {"ready", "running", "destroyed"}
        return gone and ready == SIZE and not others and STRAY not in self.world() and not self.orphans()

    def take(self, owner: str) -> None:
        with db.transaction() as session:
            giving.checkout(session, self.rules.catalog.asked({"debian": 1}), Caller(owner), Terms(12))

    def ada_is_served(self, vm: Any) -> bool:
        """Ask for whatever ada wants of her VM and has not asked for yet; tells whether she has all of it."""
        host, ada = Host(vm["name"]), Caller("ada")
        work = {row["kind"]: row["state"] for row in self.rows("SELECT kind, state FROM vm_work")}
        ask: Callable[..., Any] | None = None
        if vm["lifetime"] != 100:
            ask = partial(service.change, wanted=Change(lifetime=100), warning=0)
        elif "disk" not in work:
            ask = partial(service.add_disk, gigabytes=5)
        elif "snapshot" not in work:
            ask = service.snapshot
        elif "revert" not in work and vm["snapshots"]:
            ask = partial(service.revert, name=vm["snapshots"][0])
        if ask is not None:
            with db.transaction() as session:
                ask(session, host, ada)
        elif "live_migrate" not in work:
            with db.transaction() as session:
                cordon.cordon(session, vm["host"], "upkeep")
                migrations.ask_to_migrate(session, vm["name"], vm["host"], live=True)
        return len(work) == 4 and set(work.values()) == {"done"}

    def world(self) -> dict[str, Any]:
        return {file.stem: orjson.loads(file.read_bytes()) for file in self.directory.glob("vms/*.json")}

    def orphans(self) -> list[Any]:
        return self.rows("SELECT name FROM vm_orphans")

    def check(self) -> None:
        """Look whether everything is as it should be."""
        vms = self.rows("SELECT name, pool, owner, state, host, ready, disks, snapshots, lease_holder FROM vms")
        of = {owner: [vm for vm in vms if vm["owner"] == owner] for owner in ("ada", *LEAVERS)}
        there = {vm["name"] for vm in vms if vm["state"] != "destroyed"}
        world = self.world()
        assert world.keys() == there, ("leaked or lost", world.keys() ^ there)
        states = Counter(vm["state"] for vm in vms)
        assert (states["ready"], states["running"]) == (SIZE, 1) and len(there) == SIZE + 1, ("too many or few", vms)
        assert {owner: len(held) for owner, held in of.items()} == dict.fromkeys(of, 1), ("given twice", vms)
        (ada,) = of["ada"]
        assert ada["state"] == "running" and ada["disks"] == [5] and len(ada["snapshots"]) == 1, ada
        has = world[ada["name"]]
        assert has["disks"] == {"1": 5} and has["snapshots"] == ada["snapshots"] == [has["reverted_to"]], has
        (moved,) = self.rows("SELECT argument FROM vm_work WHERE kind = 'live_migrate'")
        assert ada["host"] == has["host"] != moved["argument"], ("not moved", ada, has, moved)
        assert all(vm["lease_holder"] is None for vm in vms), ("held by somebody", vms)
        twice = self.rows(
            "SELECT kind, subject, count(*) FROM events WHERE subject LIKE 'vms/%' GROUP BY 1, 2 HAVING count(*) > 1"
        )
        assert not twice, ("twice", twice)
        (days,) = self.rows("SELECT sum(clones) clones, sum(boots) boots, sum(checkouts) gone FROM pool_days")
        # One that boots on a hypervisor which goes out of service does not become ready.
        booted = sum(vm["ready"] is not None for vm in vms)
        assert days == {"clones": len(vms), "boots": booted, "gone": len(LEAVERS)}, (days, vms)
        assert not self.rows("SELECT 1 FROM pool_states WHERE failures > 0"), "a kill counts as a failure"


def run(directory: Path, shared: Shared, *, first: bool = False, last: int | None = None) -> bool:
    """Play in a process of its own, up to the step ``last``; tells whether it got through."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            scenario = Scenario(directory, shared)
            if first:
                scenario.reset()
            Steps(shared, last).watch()
            scenario.play()
            scenario.check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL:
        # When the next one comes, what this one has claimed is free.
        shared.time += timedelta(seconds=LEASE + 1)
        return False
    if ended:
        raise SystemExit(f"not as it should be after a kill {shared.label!r}")
    return True


def load(url: str, scenario: Scenario) -> None:
    """Play once without a kill, so that the processes that are forked find every statement put together."""
    logging.disable(logging.CRITICAL)
    write = db.configure(url, pool_size=4)
    read = db._reads
    scenario.shared.time = BEGINNING
    scenario.reset()
    scenario.play()
    scenario.check()
    # No two processes may use one connection.
    write.dispose()
    read.dispose()
    # Whoever counts references copies pages.
    gc.disable()
    gc.freeze()


def main() -> None:
    """Kill at each step; print what was killed when."""
    url, directory = sys.argv[1], Path(sys.argv[2])
    shared = Shared()
    load(url, Scenario(directory, shared))
    killed: Counter[str] = Counter()
    for number in itertools.count(1):
        shared.time = BEGINNING
        if run(directory, shared, first=True, last=number):
            break
        killed[shared.label] += 1
        label = shared.label
        if not run(directory, shared, last=None if number % 3 else number % 11 + 1):
            shared.label = f"{label}, step {number}, and then {shared.label}"[:_LABEL]
            run(directory, shared)
    print(json.dumps(killed))


if __name__ == "__main__":
    main()

"""Kills an engine at each of its steps, one after the other: ``python -m tests.acceptance.vm_steps URL DIRECTORY``.

A step is the moment after each commit and after each file that the provider writes or removes: a kill anywhere else
leaves what the step before it has left, as what a process remembers and has not committed is gone. The rest is in
``steps.py``.

Whatever takes time is over at once. Calls are made one after the other, so that the steps are the same each time.
"""

import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import text

from labctl import db
from labctl.pools import Pool
from labctl.settings import Settings
from labctl.vms import calls, config, cordon, on_demand, service
from labctl.vms import checkout as giving
from labctl.vms import work as migrations
from labctl.vms.engine import Engine
from labctl.vms.on_demand import Limits
from labctl.vms.providers import fake
from labctl.vms.service import Caller, Change, Host, Terms

from .steps import Scenario, Shared, Steps, kill_at_each

#: Seconds after which another engine goes on with what one has left; less than a process may use in its rounds.
LEASE = 30
#: Rounds, of a second each, in which the scenario must be over.
ROUNDS = 200
SIZE = 2
POOLS = [Pool(name="debian", size=SIZE), Pool(name="centos", size=0)]
#: A VM that the provider has and nobody knows.
STRAY = "stray"
#: Who gives their VM back, or has it taken away when its time is over.
LEAVERS = ("bob", "dora")


class AtOnce:
    """In the place of a thread: does what it is for when it is started."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        self._target = target
        self._args = args

    def start(self) -> None:
        self._target(*self._args)


class VMs(Scenario):
    """Users who take VMs of a small lab, beside its engine; what they have done is read from the database."""

    def __init__(self, directory: Path, shared: Shared) -> None:
        super().__init__(shared)
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

    def watch(self, step: Steps) -> None:
        super().watch(step)
        write, destroy = fake._replace, fake.FakeProvider.destroy

        def replace(path: Path, content: Any) -> None:
            write(path, content)
            step("after a file")

        def remove(provider: fake.FakeProvider, name: str) -> None:
            destroy(provider, name)
            step("after a removal")

        fake._replace = replace  # type: ignore[assignment]
        fake.FakeProvider.destroy = remove  # type: ignore[method-assign]
        calls.threading = SimpleNamespace(Thread=AtOnce)  # type: ignore[assignment]

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


def let_go(shared: Shared) -> None:
    """When the next one comes, what the killed one has claimed is free."""
    shared.time += timedelta(seconds=LEASE + 1)


def main() -> None:
    """Kill at each step; print what was killed when."""
    url, directory = sys.argv[1], Path(sys.argv[2])
    logging.disable(logging.CRITICAL)
    print(json.dumps(kill_at_each(url, lambda shared: VMs(directory, shared), let_go)))


if __name__ == "__main__":
    main()

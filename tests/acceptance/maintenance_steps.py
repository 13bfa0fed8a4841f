"""Kills the engine of sessions at each commit: ``python -m tests.acceptance.maintenance_steps URL``.

A step is the moment after each commit: a kill anywhere else leaves what the commit before has left. The rest is in
``steps.py``.
"""

import json
import sys
from collections import Counter
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg2
from sqlalchemy import text

from labctl import clock, db
from labctl.db import Actor
from labctl.machines import service as machines
from labctl.maintenance import config, service
from labctl.maintenance.engine import Engine
from labctl.maintenance.service import Answer, Wanted
from labctl.settings import MAINTENANCE_REPLIES
from tests.maintenance.factories import make_machine, make_ready, make_vm

from .steps import Scenario, Shared, kill_at_each

#: Rounds, of a second each, in which the session must be over.
ROUNDS = 300
TABLES = ("maintenance_sessions", "maintenance_subscriptions", "vms", "vm_cordons", "pool_days", "machines", "events")
HOSTS = ("h1", "m1", "m2")
KINDS = ("pre", "host", "check", "post")
ACTIONS = [{"plugin": "dummy", "type": kind, "metadata": {"seconds": 1}} for kind in KINDS]
ADMIN = Actor("root")
WAY = [*["START_MAINTENANCE", "PLANNED_MAINTENANCE"] * 2, "START_MAINTENANCE", "MAINTENANCE_COMPLETE"]


class Walk(Scenario):
    """A session over a hypervisor with somebody's VM, a machine that is free, and one that somebody has."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.engine = Engine(MAINTENANCE_REPLIES, poll=0)

    def reset(self) -> None:
        """Begin anew."""
        with db.transaction(ADMIN) as session:
            for table in TABLES:
                session.execute(text(f"DELETE FROM {table}"))
            session.execute(text("DELETE FROM procrastinate_jobs"))
            make_vm(session, "h1", "ada", name="hers")
            make_ready(session, "h1", name="nobodys")
            make_ready(session, "h2", name="spare")
            make_machine(session, "m1")
            make_machine(session, "m2", locked_by="bob")
            wanted = Wanted("default", clock.now(), HOSTS, actions=ACTIONS, asks_hosts=False)
            service.create(session, wanted, most=3, base_url="http://lab/v1/maintenance")
            session.execute(
                text("INSERT INTO maintenance_subscriptions VALUES ('ada', 'http://ada', 's', now(), 'ada')")
            )

    def play(self) -> None:
        """See the session through."""
        for _ in range(ROUNDS):
            (row,) = self.rows("SELECT id, state, reason FROM maintenance_sessions")
            if row["state"] == "MAINTENANCE_DONE":
                return
            assert row["state"] != "MAINTENANCE_FAILED", row["reason"]
            self.act(row["id"])
            self.shared.time += timedelta(seconds=1)
            self.engine.tick()
            with db.transaction() as session:
                # Nobody looks after VMs here.
                session.execute(text("UPDATE vms SET state = 'destroyed' WHERE state = 'completed'"))
        raise AssertionError(f"not over after {ROUNDS} rounds: {self.rows('SELECT * FROM maintenance_sessions')}")

    def act(self, sid: str) -> None:
        """Let the projects answer, and bob give his machine back once he was asked to."""
        asked = self.rows("SELECT * FROM maintenance_replies WHERE asked IS NOT NULL AND answer IS NULL")
        for question in asked:
            with db.transaction(Actor(question["project"])) as session:
                answer = Answer(f"ACK_{question['state']}", question["state"])
                service.reply(session, sid, question["project"], answer, lambda name: config.workflow(name).steps)
        agreed = self.rows("SELECT 1 FROM maintenance_replies WHERE host = 'm2' AND answer IS NOT NULL")
        if agreed and self.rows("SELECT 1 FROM machines WHERE name = 'm2' AND locked_by = 'bob'"):
            with db.transaction(Actor("bob")) as session:
                machines.change_lock(session, "m2", {"locked": False, "locked_by": "bob"})

    def rows(self, statement: str) -> list[Any]:
        with db.reading() as reader:
            return [dict(row._mapping) for row in reader.execute(text(statement))]

    def check(self) -> None:
        """Look whether everything is as it should be."""
        hosts = self.rows("SELECT host, state, held, cordoned, attempt FROM maintenance_hosts ORDER BY position")
        fine = {"state": "done", "held": False, "cordoned": False, "attempt": 1}
        assert hosts == [{"host": name, **fine} for name in HOSTS], hosts
        ran = self.rows("SELECT type, host, attempt, state FROM maintenance_actions")
        wanted = {("pre", ""), ("post", ""), *((kind, host) for kind in ("host", "check") for host in HOSTS)}
        assert len(ran) == len(wanted) and {(row["type"], row["host"]) for row in ran} == wanted, ran
        assert {(row["state"], row["attempt"]) for row in ran} == {("done", 1)}, ran
        owners = {row["name"]: (row["owner"], row["state"]) for row in self.rows("SELECT * FROM vms")}
        expected = {"hers": ("ada", "destroyed"), "nobodys": (None, "destroyed"), "spare": ("ada", "running")}
        assert owners == expected, owners
        assert not self.rows("SELECT 1 FROM machines WHERE locked OR cordoned IS NOT NULL"), "out of service"
        assert not self.rows("SELECT 1 FROM vm_cordons"), "out of service"
        asked = self.rows("SELECT project, state, host, max(round) FROM maintenance_replies GROUP BY 1, 2, 3")
        told = self.rows("SELECT project, body->>'state' AS state FROM maintenance_notices WHERE project <> 'root'")
        assert all(row["max"] == 1 for row in asked), ("asked twice", asked)
        assert len(told) == len(asked) + 1, ("told twice", told)
        # It goes to and fro between two states, once for each host that is in use.
        changes = self.rows("SELECT data->>'state' AS state FROM events WHERE kind = 'maintenance.state' ORDER BY seq")
        assert [row["state"] for row in changes] == WAY, changes
        for table in (
            "SELECT kind, subject, data FROM events WHERE kind <> 'maintenance.state'",
            "SELECT host, text FROM maintenance_steps WHERE text NOT LIKE '% is over; %'",
        ):
            counts = Counter(json.dumps(row, sort_keys=True) for row in self.rows(table))
            twice = {row: number for row, number in counts.items() if number > 1}
            assert not twice, ("twice", twice)
        tasks = self.rows("SELECT task_name, count(*) FROM procrastinate_jobs GROUP BY 1")
        assert {row["task_name"] for row in tasks} <= {"maintenance.deliver"}, tasks


def main() -> None:
    """Kill at each commit; print what was killed when, and in which states."""
    url = sys.argv[1]
    states: Counter[str] = Counter()

    def note(shared: Shared) -> None:
        states[state(url)] += 1

    killed = kill_at_each(url, Walk, note)
    print(json.dumps({"killed": killed, "states": states}))


def state(url: str) -> str:
    """Tell the state of the session, over a connection that no other process inherits."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT state FROM maintenance_sessions")
        ((found,),) = cursor.fetchall()
        return str(found)


if __name__ == "__main__":
    main()

"""Many sessions at once, with nothing in common to their engines but the database."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import Engine as Database
from sqlalchemy import text

from labctl import db
from labctl.machines.models import Machine

from .factories import make_session

ROOT = Path(__file__).resolve().parents[2]
SESSIONS, HOSTS, ENGINES = 50, 20, 3
ACTIONS = [{"plugin": "dummy", "type": kind, "metadata": {}} for kind in ("pre", "host", "post")]
#: On a machine where nothing else goes on it takes a tenth of that.
PATIENCE = 300


def test_fifty_sessions_of_twenty_hosts_finish_with_several_engines(committed: Database, database_url: str) -> None:
    with db.transaction() as session:
        for number in range(SESSIONS):
            hosts = [f"{number}-{each}" for each in range(HOSTS)]
            # Every other one is a machine, the others nobody knows any more.
            session.add_all([Machine(name=name, up=True) for name in hosts[::2]])
            session.flush()
            make_session(session, hosts, actions=ACTIONS, hints={"gate": "none", "max_unavailable": 1 + number % 3})
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.maintenance.run_engine", database_url]
    engines = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(ENGINES)
    ]
    counts: Counter[str] = Counter()
    try:
        for engine in engines:
            said, wrong = engine.communicate(timeout=PATIENCE)
            assert engine.returncode == 0, wrong
            counts.update(json.loads(said))
    finally:
        for engine in engines:
            engine.kill()
            engine.communicate()
    took = time.monotonic() - began

    def rows(statement: str) -> list[tuple[object, ...]]:
        with db.reading() as reader:
            return [tuple(row) for row in reader.execute(text(statement))]

    assert rows("SELECT state, count(*) FROM maintenance_sessions GROUP BY 1") == [("MAINTENANCE_DONE", SESSIONS)]
    assert rows("SELECT state, count(*) FROM maintenance_hosts GROUP BY 1") == [("done", SESSIONS * HOSTS)]
    once = "SELECT type, state, attempt, count(*) FROM maintenance_actions GROUP BY 1, 2, 3 ORDER BY 1"
    assert rows(once) == [
        ("host", "done", 1, SESSIONS * HOSTS),
        ("post", "done", 1, SESSIONS),
        ("pre", "done", 1, SESSIONS),
    ]
    twice = "SELECT kind, subject, data, count(*) FROM events WHERE kind LIKE 'maintenance.%' GROUP BY 1, 2, 3"
    assert not rows(f"SELECT * FROM ({twice}) x WHERE count > 1")
    assert not rows("SELECT name FROM machines WHERE locked OR cordoned IS NOT NULL")
    assert not rows("SELECT host FROM vm_cordons")
    assert counts["statements"] / counts["looks"] < 30
    print(f"{took:.1f} s, {dict(counts)}, {counts['statements'] / counts['looks']:.1f} statements a look")

"""Measure checkouts and /status against the yardstick: ``python benchmarks/bench_vms.py --ready 50000``.

Makes 200 pools with READY ready VMs in all; see benchmarks/harness.py. No engine runs: what is given out is made ready
again by this process every few milliseconds, so that there are always about as many. Prints for each case the requests
per second, p50, p99, SQL statements, and the ratio to its yardstick.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from benchmarks.harness import Case, database, load, measure
from labctl import db

POOLS = 200
LOAD = """
INSERT INTO vms (name, pool, template, provider, state, domain, requested, cloned, clone_seconds, ready, boot_seconds, due)
SELECT 'v' || substr(md5(n::text), 1, 14), 'pool-' || n % :pools, 'template', 'fake', 'ready', 'example.com',
    now() - interval '1 hour', now(), 1.5, now() - n * interval '1 millisecond', 20, now() + interval '1 hour'
FROM generate_series(1, :ready) n
"""
# What a user has, beside.
LOAD_RUNNING = """
INSERT INTO vms (name, pool, template, provider, state, domain, requested, ready, checkout, lifetime, expires, due)
SELECT 'r' || substr(md5(n::text), 1, 14), 'pool-' || n % :pools, 'template', 'fake', 'running', 'example.com',
    now() - interval '2 hours', now() - interval '1 hour', now(), 12, now() + interval '11 hours', now() + interval '11 hours'
FROM generate_series(1, :ready / 5) n
"""
LOAD_DAYS = """
INSERT INTO pool_days (day, pool, clones, clone_total, clone_min, clone_max, boots, boot_total, boot_min, boot_max)
SELECT (now() AT TIME ZONE 'UTC')::date, 'pool-' || n, 100, 150, 1, 2, 100, 2000, 10, 30 FROM generate_series(0, :pools - 1) n
"""
AGAIN = """
UPDATE vms SET state = 'ready', ready = now(), checkout = NULL, lifetime = NULL, expires = NULL, due = now() + interval '1 hour'
WHERE id IN (SELECT id FROM vms WHERE state = 'running' AND expires > now() + interval '11.5 hours' FOR UPDATE SKIP LOCKED)
"""


def cases() -> list[Case]:
    """List what is measured."""
    prelude = (
        "math.randomseed(os.time() + tonumber(tostring({}):sub(8), 16) % 100000)\n"
        f"local function pool() return 'pool-' .. math.random(0, {POOLS - 1}) end\n"
        "local json = {['Content-Type'] = 'application/json'}\n"
    )

    def post(body: str) -> str:
        return prelude + f"function request() return wrk.format('POST', '/api/v1/vm', json, {body}) end"

    one = """'{"' .. pool() .. '": "1"}'"""
    same = """'{"pool-7": "1"}'"""
    many = """'{"pool-' .. math.random(0, 99) .. '": "3", "pool-' .. math.random(100, 199) .. '": "2"}'"""
    sample = ("POST", "/api/v1/vm", json.dumps({"pool-1": "1"}))
    status = prelude + "function request() return wrk.format('GET', '/api/v1/status') end"
    return [
        Case("checkout of 1, one client", post(one), sample, read=False, clients=1),
        Case("checkout of 1", post(one), sample, read=False),
        Case("checkout of 1, all of one pool", post(same), sample, read=False),
        Case(
            "checkout of 3 + 2", post(many), ("POST", "/api/v1/vm", json.dumps({"pool-1": 3, "pool-2": 2})), read=False
        ),
        Case("GET /status, one client", status, ("GET", "/api/v1/status", None), clients=1),
        Case("GET /status", status, ("GET", "/api/v1/status", None)),
    ]


@contextmanager
def refilled(url: str) -> Iterator[None]:
    """Make VMs ready again that were given out, as an engine would in the end."""
    engine = db.make_engine(url)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            with engine.begin() as connection:
                connection.execute(text(AGAIN))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        engine.dispose()


def loaded(ready: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Give the statements that fill the database."""
    for statement in (LOAD, LOAD_RUNNING, LOAD_DAYS):
        yield statement, {"ready": ready, "pools": POOLS}


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ready", type=int, default=50_000, help="how many VMs are ready (default: 50000)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each case is measured (default: 5)")
    parser.add_argument("--only", default="", help="measure only the cases whose names contain this")
    given = parser.parse_args()
    pools = [{"name": f"pool-{number}", "size": given.ready // POOLS} for number in range(POOLS)]
    with database() as url:
        load(url, loaded(given.ready))
        with refilled(url):
            settings = {"pools": json.dumps(pools)}
            measure(url, [case for case in cases() if given.only in case.name], given.seconds, settings)


if __name__ == "__main__":
    main()

"""Measure checkouts and /status against the yardstick: ``python -m benchmarks.bench_vms``.

Does so for each of its labs: one of 2 pools with 100 ready VMs, one of 200 pools with 50,000; see
benchmarks/harness.py. No engine runs: what is given out is made ready again by this process every few milliseconds, so
that there are always about as many. Prints for each case the requests per second, p50, p99, SQL statements, and the
ratio to its yardstick.

The status is measured twice: as it is in a lab, and right after tens of thousands of checkouts, before PostgreSQL's
autovacuum, which comes by every ten seconds, has seen all of them.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2

from benchmarks.harness import Case, database, load, measure

#: How many VMs are ready, in how many pools.
LABS = {100: 2, 50_000: 200}
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


def cases(pools: int) -> list[Case]:
    """List what is measured in a lab with some pools."""
    prelude = (
        "math.randomseed(os.time() + tonumber(tostring({}):sub(8), 16) % 100000)\n"
        f"local function pool() return 'pool-' .. math.random(0, {pools - 1}) end\n"
        "local json = {['Content-Type'] = 'application/json'}\n"
    )

    def post(body: str) -> str:
        return prelude + f"function request() return wrk.format('POST', '/api/v1/vm', json, {body}) end"

    # In the small lab many clients would now and then, rightly, be told that nothing is ready.
    is_small = pools < 10
    one = """'{"' .. pool() .. '": "1"}'"""
    same = """'{"pool-1": "1"}'"""
    half = pools // 2
    many = f"""'{{"pool-' .. math.random(0, {half - 1}) .. '": "3", "pool-' .. math.random({half}, {pools - 1}) .. '": "2"}}'"""
    sample = ("POST", "/api/v1/vm", json.dumps({"pool-1": "1"}))
    status = prelude + "function request() return wrk.format('GET', '/api/v1/status') end"
    several = ("POST", "/api/v1/vm", json.dumps({"pool-0": 3, "pool-1": 2}))
    get = ("GET", "/api/v1/status", None)
    return [
        Case("GET /status, one client", status, get, clients=1),
        Case("GET /status", status, get),
        Case("checkout of 1, one client", post(one), sample, read=False, clients=1),
        Case("checkout of 1", post(one), sample, read=False),
        *([] if is_small else [Case("checkout of 1, all of one pool", post(same), sample, read=False)]),
        *([] if is_small else [Case("checkout of 3 + 2", post(many), several, read=False)]),
        Case("checkout of 3 + 2, two clients", post(many), several, read=False, clients=2),
        Case("GET /status right after, one client", status, get, clients=1),
    ]


@contextmanager
def refilled(url: str) -> Iterator[None]:
    """Make VMs ready again that were given out, as an engine would in the end."""
    stop = threading.Event()
    # Not by way of SQLAlchemy, where statements are counted.
    connection = psycopg2.connect(url)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SET synchronous_commit = off")

    def work() -> None:
        while not stop.wait(0.002):
            cursor.execute(AGAIN)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        connection.close()


def loaded(ready: int, pools: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Give the statements that fill the database."""
    for statement in (LOAD, LOAD_RUNNING, LOAD_DAYS):
        yield statement, {"ready": ready, "pools": pools}


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ready", type=int, help="measure only the lab with so many ready VMs", choices=LABS)
    parser.add_argument("--seconds", type=float, default=5, help="how long each case is measured (default: 5)")
    parser.add_argument("--only", default="", help="measure only the cases whose names contain this")
    given = parser.parse_args()
    for ready, number in LABS.items():
        if given.ready in (None, ready):
            print(f"\n{ready} ready VMs in {number} pools", flush=True)
            measure_lab(ready, number, given.seconds, given.only)


def measure_lab(ready: int, number: int, seconds: float, only: str) -> None:
    """Measure one lab, in a database of its own."""
    pools = [{"name": f"pool-{n}", "size": ready // number} for n in range(number)]
    with database() as url:
        load(url, loaded(ready, number))
        with refilled(url):
            measure(url, [case for case in cases(number) if only in case.name], seconds, {"pools": json.dumps(pools)})


if __name__ == "__main__":
    main()

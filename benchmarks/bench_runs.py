"""Measure runs, jobs and machines against the yardstick: ``python benchmarks/bench_runs.py --runs 2000``.

Needs wrk (Debian's package). Starts a PostgreSQL of its own with everything that protects data switched on, loads
RUNS x 100 jobs of 3.7 kB, starts gunicorn as it is deployed, once with labctl and once with the yardstick, and prints
for each main read and write the requests per second, p50, p99, SQL statements, and the ratio to its yardstick.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from sqlalchemy import Engine, event, text
from webtest import TestApp

from labctl import app as application
from labctl import db, migrations, queue
from labctl.runs import documents
from labctl.settings import Settings
from labctl.up import postgres

HERE = Path(__file__).parent
JOB = json.loads((HERE / "job.json").read_text())
JOBS = 100
CLIENTS = 16
NAME = "teuthology-2026-01-02_03:04:05-rados-main-distro-default-smithi-{}"

LOAD_RUNS = """
INSERT INTO runs (name, path, user_name, suite, branch, machine_type, sha1, flavor, priority, posted, scheduled, started,
    updated, pass, fail, running)
SELECT format(:name, n), format(:name, n), 'user' || n % 50, (ARRAY['rados', 'rbd', 'fs', 'rgw', 'smoke'])[n % 5 + 1],
    CASE WHEN n % 5 = 0 THEN 'main' ELSE 'wip-' || n % 400 END, (ARRAY['smithi', 'mira', 'gibba'])[n % 3 + 1],
    md5((n / 10)::text) || 'deadbeef', 'default', 100, now() - (:runs - n) * interval '10 minutes',
    now() - (:runs - n) * interval '10 minutes', now(), now(), 70, 29, 1
FROM generate_series(1, :runs) n
"""
LOAD_JOBS = """
INSERT INTO jobs (run_id, job_id, status, queue, priority, user_name, posted, started, updated, document)
SELECT r.id, (r.id * 100 + n)::text, s.status, 'smithi', 100, r.user_name, r.posted, r.posted, r.updated,
    replace(replace(replace(:document, '@JOB@', (r.id * 100 + n)::text), '@RUN@', r.name), '"running"', '"' || s.status || '"')
FROM runs r, generate_series(1, :jobs) n,
    LATERAL (SELECT CASE WHEN n <= 70 THEN 'pass' WHEN n <= 99 THEN 'fail' ELSE 'running' END AS status) s
WHERE r.id BETWEEN :first AND :last
"""
LOAD_MACHINES = """
INSERT INTO machines (name, up, machine_type, os_type, os_version, arch)
SELECT 'smithi' || lpad(n::text, 3, '0') || '.front.example.com', true, 'smithi', 'ubuntu', '22.04', 'x86_64'
FROM generate_series(1, 500) n
"""


@dataclass
class Case:
    """One line of the table: what wrk sends, as Lua, and the yardstick: an answer's key or None for a write."""

    name: str
    lua: str
    sample: tuple[str, str, str | None] | None
    read: bool = True


@dataclass
class Result:
    """What wrk measured."""

    rate: float
    p50: str
    p99: str
    errors: int


def cases(runs: int) -> list[Case]:
    """List what is measured."""
    body = json.dumps({**JOB, "job_id": "1"}).replace("\\", "\\\\").replace("'", "\\'")
    prelude = (
        f"math.randomseed(os.time() + tonumber(tostring({{}}):sub(8), 16) % 100000)\n"
        f"local function run(n) return '{NAME.format('')}' .. n end\n"
        f"local body = '{body}'\nlocal json = {{['Content-Type'] = 'application/json'}}\n"
        f"local count = 0\nlocal me = nil\nlocal threads = 0\n"
        f"function setup(thread) thread:set('id', threads); threads = threads + 1 end\n"
    )

    def get(path: str) -> str:
        return prelude + f"function request() return wrk.format('GET', {path}) end"

    def send(method: str, path: str, payload: str = "body") -> str:
        return prelude + (
            f"function request() count = count + 1; return wrk.format('{method}', {path}, json, {payload}) end"
        )

    some, job = f"run(math.random({runs}))", f"math.random({runs})"
    path_of_job = (
        f"(function() local n = {job}; return '/runs/' .. run(n) .. '/jobs/' .. (n * 100 + math.random(99)) end)()"
    )
    one, first = NAME.format(runs), NAME.format(1)
    deep = f"/runs/?count=25&after={int(time.time() - runs * 300) * 1_000_000}-{runs // 2}"
    return [
        Case("GET /runs/?count=100", get("'/runs/?count=100'"), ("GET", "/runs/?count=100", None)),
        Case("GET /runs/?count=25", get("'/runs/?count=25'"), ("GET", "/runs/?count=25", None)),
        Case("GET /runs/?count=25, half-way by cursor", get(f"'{deep}'"), ("GET", deep, None)),
        Case("GET /runs/branch/main/?count=25", get("'/runs/branch/main/?count=25'"), ("GET", "/runs/branch/main/?count=25", None)),
        Case("GET /runs/NAME/ (100 full jobs)", get(f"'/runs/' .. {some} .. '/'"), ("GET", f"/runs/{one}/", None)),
        Case("GET /runs/NAME/jobs/?fields=job_id,status", get(f"'/runs/' .. {some} .. '/jobs/?fields=job_id,status'"), ("GET", f"/runs/{one}/jobs/?fields=job_id,status", None)),
        Case("GET one job", get(path_of_job), ("GET", f"/runs/{one}/jobs/{runs * 100 + 1}", None)),
        Case("GET /nodes/ (500 machines)", get("'/nodes/'"), ("GET", "/nodes/", None)),
        Case("PUT jobs, spread over all runs", send("PUT", path_of_job), ("PUT", f"/runs/{first}/jobs/101", json.dumps(JOB)), read=False),
        Case("PUT jobs of one run", send("PUT", f"'/runs/{one}/jobs/' .. ({runs * 100} + math.random(99))"), None, read=False),
        Case("POST jobs, spread over all runs", send("POST", f"'/runs/' .. {some} .. '/jobs/'", "(body:gsub('\"job_id\": \"1\"', '\"job_id\": \"s' .. id .. '-' .. count .. '\"', 1))"), ("POST", f"/runs/{first}/jobs/", json.dumps({**JOB, "job_id": "sample"})), read=False),
        Case("POST jobs to one run", send("POST", f"'/runs/{one}/jobs/'", "(body:gsub('\"job_id\": \"1\"', '\"job_id\": \"o' .. id .. '-' .. count .. '\"', 1))"), None, read=False),
        Case("PUT lock or unlock of a machine", prelude + "function request() count = count + 1; local n = string.format('smithi%03d.front.example.com', id * 10 + 1); return wrk.format('PUT', '/nodes/' .. n .. '/lock/', json, '{\"name\": \"' .. n .. '\", \"locked\": ' .. ((count + (id == 0 and 1 or 0)) % 2 == 1 and 'true' or 'false') .. ', \"locked_by\": \"me@here\"}') end", ("PUT", "/nodes/smithi400.front.example.com/lock/", json.dumps({"locked": True, "locked_by": "me@here"})), read=False),
    ]  # fmt: skip


def load(url: str, runs: int) -> None:
    """Fill the database, in transactions of 200 runs."""
    engine = db.make_engine(url)
    content = {**documents.EMPTY, **{key: value for key, value in JOB.items() if key in documents.KEYS}}
    content["timestamp"] = "2026-01-02 03:04:05"
    document = json.dumps(content | dict.fromkeys(("posted", "started", "updated"), "2026-01-02 03:04:05.123456"))
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(LOAD_RUNS), {"name": NAME.format("%s"), "runs": runs})
        connection.execute(text(LOAD_MACHINES))
        connection.execute(text("CREATE TABLE benchmark_answers (key text PRIMARY KEY, body text)"))
        connection.execute(text("CREATE TABLE benchmark_rows (id int PRIMARY KEY, n int) WITH (fillfactor = 70)"))
        connection.execute(text("INSERT INTO benchmark_rows SELECT n, 0 FROM generate_series(1, 100000) n"))
    for first in range(1, runs + 1, 200):
        with engine.begin() as connection:
            values = {"document": document, "jobs": JOBS, "first": first, "last": first + 199}
            connection.execute(text(LOAD_JOBS), values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def sample(url: str, measured: list[Case]) -> dict[str, int]:
    """Send each request once inside this process: keep reads' answers for the yardstick, count SQL statements."""
    engine = db.configure(url, pool_size=4)
    queue.configure(engine)
    app = TestApp(application.make_app(Settings(database_url=url)))
    counts: dict[str, int] = {}
    sent: list[str] = []
    event.listen(Engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    for case in measured:
        if case.sample is None:
            continue
        method, path, body = case.sample
        sent.clear()
        answer = app.request(path, method=method, body=(body or "").encode())
        counts[case.name] = len(sent)
        if case.read:
            with db.transaction() as session:
                values = {"key": case.name, "body": answer.text}
                session.execute(text("INSERT INTO benchmark_answers VALUES (:key, :body)"), values)
    engine.dispose()
    return counts


@contextmanager
def serving(app: str, url: str, port: int) -> Iterator[int]:
    """Run gunicorn as it is deployed; gives its pid."""
    environ = {**os.environ, "LABCTL_DATABASE_URL": url, "LABCTL_PORT": str(port), "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "gunicorn", "-c", "python:labctl.gunicorn_config", app]
    with open("/dev/null", "wb") as nowhere:
        server = subprocess.Popen(command, env=environ, cwd=HERE.parent, stderr=nowhere)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
                break
            except OSError as error:
                if getattr(error, "code", None) == 404:
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield server.pid
    finally:
        server.terminate()
        server.wait()


def wrk(port: int, lua: str, seconds: float) -> Result:
    """Send a case's requests from 16 clients."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(lua)
        script.flush()
        command = [
            "wrk",
            f"-t{CLIENTS}",
            f"-c{CLIENTS}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "-s",
            script.name,
        ]
        output = subprocess.run(
            [*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
        ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p50, p99 = (re.search(rf"^ +{part}% +(\S+)$", output, re.MULTILINE) for part in (50, 99))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    assert rate and p50 and p99, output
    return Result(float(rate[1]), p50[1], p99[1], int(bad[1]) if bad else 0)


def memory_of_workers(master: int) -> list[float]:
    """Give the resident memory of gunicorn's workers in MiB."""
    pids = subprocess.run(["pgrep", "-P", str(master)], capture_output=True, text=True, check=True).stdout.split()  # noqa: S607
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return [int(found[1]) / 1024 for status in statuses if (found := re.search(r"VmRSS:\s+(\d+)", status))]


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="runs of 100 jobs (default: 2000)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each case is measured (default: 5)")
    parser.add_argument("--only", default="", help="measure only the cases whose names contain this")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: Debian has it in the package wrk")
    memory = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
    with tempfile.TemporaryDirectory() as home, postgres.running(Path(home) / "home", memory) as url:
        measure(url, given.runs, given.seconds, given.only)


def measure(url: str, runs: int, seconds: float, only: str) -> None:
    """Print the table for a loaded database."""
    began = time.monotonic()
    migrations.upgrade(url)
    load(url, runs)
    print(
        f"{runs} runs x {JOBS} jobs loaded in {time.monotonic() - began:.0f} s; {CLIENTS} clients, {seconds:g} s each\n"
    )
    measured = [case for case in cases(runs) if only in case.name]
    counts = sample(url, measured)
    write = "function request() return wrk.format('GET', '/write/' .. math.random(100000)) end"
    with serving("labctl.wsgi:app", url, 8090) as master, serving("benchmarks.yardstick:app", url, 8091):
        print(f"{'':44} {'req/s':>7} {'p50':>9} {'p99':>9} {'SQL':>4} {'yardstick':>9} {'p99':>9} {'ratio':>6}")
        for case in measured:
            key = (
                case.name.replace("'", "\\'")
                .replace("/", "%2F")
                .replace("?", "%3F")
                .replace(" ", "%20")
                .replace(",", "%2C")
            )
            lua = (
                f"function request() return wrk.format('GET', '/read?key={key.replace('&', '%26')}') end"
                if case.read
                else write
            )
            best = wrk(8091, lua, seconds / 2)
            got = wrk(8090, case.lua, seconds)
            again = wrk(8091, lua, seconds / 2)
            yardstick = (best.rate + again.rate) / 2
            ratio = got.rate / yardstick
            errors = f"  {got.errors} errors" if got.errors else ""
            print(
                f"{case.name:44} {got.rate:7.0f} {got.p50:>9} {got.p99:>9} {counts.get(case.name, '')!s:>4} "
                f"{yardstick:9.0f} {again.p99:>9} {ratio:6.2f}{errors}",
                flush=True,
            )
        memory = ", ".join(f"{size:.0f} MiB" for size in memory_of_workers(master))
        print(f"\nresident memory of the web workers afterwards: {memory}")


if __name__ == "__main__":
    main()

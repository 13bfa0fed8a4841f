"""Measure runs, jobs and machines against the yardstick: ``python benchmarks/bench_runs.py --runs 2000``.

Loads RUNS x 100 jobs of 3.7 kB; see benchmarks/harness.py. Prints for each main read and write the requests per
second, p50, p99, SQL statements, and the ratio to its yardstick.
"""

import argparse
import json
import time
from collections.abc import Iterator

from benchmarks.harness import HERE, Case, database, load, measure
from labctl.runs import documents

JOB = json.loads((HERE / "job.json").read_text())
JOBS = 100
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


def loaded(runs: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Give the statements that fill the database; jobs come 200 runs at a time."""
    content = {**documents.EMPTY, **{key: value for key, value in JOB.items() if key in documents.KEYS}}
    content["timestamp"] = "2026-01-02 03:04:05"
    document = json.dumps(content | dict.fromkeys(("posted", "started", "updated"), "2026-01-02 03:04:05.123456"))
    yield LOAD_RUNS, {"name": NAME.format("%s"), "runs": runs}
    yield LOAD_MACHINES, {}
    for first in range(1, runs + 1, 200):
        yield LOAD_JOBS, {"document": document, "jobs": JOBS, "first": first, "last": first + 199}


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="runs of 100 jobs (default: 2000)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each case is measured (default: 5)")
    parser.add_argument("--only", default="", help="measure only the cases whose names contain this")
    given = parser.parse_args()
    with database() as url:
        load(url, loaded(given.runs))
        measure(url, [case for case in cases(given.runs) if given.only in case.name], given.seconds, {})


if __name__ == "__main__":
    main()

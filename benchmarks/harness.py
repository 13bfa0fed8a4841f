"""What the benchmarks share: a PostgreSQL of their own, gunicorn as it is deployed, wrk, and the table they print.

Needs wrk (Debian's package). Everything that protects data is switched on. A yardstick (benchmarks/yardstick.py) runs
beside labctl: bare handlers over one SQL statement; each case is measured between two halves of its yardstick.
"""

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
from urllib.parse import quote
from urllib.request import urlopen

from sqlalchemy import Engine, event, text
from webtest import TestApp

from labctl import app as application
from labctl import db, migrations, queue
from labctl.settings import load as load_settings
from labctl.up import postgres

HERE = Path(__file__).parent
CLIENTS = 16


@dataclass
class Case:
    """One line of the table: what wrk sends, as Lua, and the yardstick: an answer's key or None for a write."""

    name: str
    lua: str
    sample: tuple[str, str, str | None] | None
    read: bool = True
    clients: int = CLIENTS


@dataclass
class Result:
    """What wrk measured."""

    rate: float
    p50: str
    p99: str
    errors: int


def as_environ(settings: dict[str, str]) -> dict[str, str]:
    """Write settings as they are given by environment."""
    return {f"LABCTL_{name.upper()}": value for name, value in settings.items()}


def sample(url: str, measured: list[Case], settings: dict[str, str]) -> dict[str, int]:
    """Send each request once inside this process: keep reads' answers for the yardstick, count SQL statements."""
    engine = db.configure(url, pool_size=4)
    queue.configure(engine)
    environ = {"LABCTL_DATABASE_URL": url, **as_environ(settings)}
    app = TestApp(application.make_app(load_settings(environ)))
    counts: dict[str, int] = {}
    sent: list[str] = []
    event.listen(Engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    for case in measured:
        if case.sample is None:
            continue
        method, path, body = case.sample
        sent.clear()
        app.authorization = ("Basic", (settings["api_user"], settings["api_key"])) if "api_key" in settings else None
        answer = app.request(path, method=method, body=(body or "").encode())
        counts[case.name] = len(sent)
        if case.read:
            with db.transaction() as session:
                values = {"key": case.name, "body": answer.text}
                session.execute(text("INSERT INTO benchmark_answers VALUES (:key, :body)"), values)
    engine.dispose()
    return counts


@contextmanager
def serving(app: str, url: str, port: int, settings: dict[str, str]) -> Iterator[int]:
    """Run gunicorn as it is deployed; gives its pid."""
    own = {f"LABCTL_{name.upper()}": value for name, value in settings.items()}
    environ = {
        **os.environ,
        **own,
        "LABCTL_DATABASE_URL": url,
        "LABCTL_PORT": str(port),
        "PYTHONPATH": str(HERE.parent),
    }
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


def wrk(port: int, lua: str, seconds: float, clients: int = CLIENTS) -> Result:
    """Send a case's requests from some clients at once."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(lua)
        script.flush()
        command = [
            "wrk",
            f"-t{clients}",
            f"-c{clients}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "--timeout=30s",
            "-s",
            script.name,
        ]
        output = subprocess.run(
            [*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
        ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p50, p99 = (re.search(rf"^ +{part}% +(\S+) *$", output, re.MULTILINE) for part in (50, 99))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    assert rate and p50 and p99, output
    return Result(float(rate[1]), p50[1], p99[1], int(bad[1]) if bad else 0)


def memory_of_workers(master: int) -> list[float]:
    """Give the resident memory of gunicorn's workers in MiB."""
    pids = subprocess.run(["pgrep", "-P", str(master)], capture_output=True, text=True, check=True).stdout.split()  # noqa: S607
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return [int(found[1]) / 1024 for status in statuses if (found := re.search(r"VmRSS:\s+(\d+)", status))]


@contextmanager
def database() -> Iterator[str]:
    """Start a PostgreSQL and bring its schema up to date; gives its URL."""
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: Debian has it in the package wrk")
    memory = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
    with tempfile.TemporaryDirectory() as home, postgres.running(Path(home) / "home", memory) as url:
        migrations.upgrade(url)
        yield url


def load(url: str, statements: Iterator[tuple[str, dict[str, object]]]) -> None:
    """Fill the database, each statement in a transaction of its own, and make what the yardstick needs."""
    began = time.monotonic()
    engine = db.make_engine(url)
    for statement, values in statements:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(statement), values)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE benchmark_answers (key text PRIMARY KEY, body text)"))
        connection.execute(text("CREATE TABLE benchmark_rows (id int PRIMARY KEY, n int) WITH (fillfactor = 70)"))
        connection.execute(text("INSERT INTO benchmark_rows SELECT n, 0 FROM generate_series(1, 100000) n"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
    print(f"loaded in {time.monotonic() - began:.0f} s\n", flush=True)


def measure(url: str, cases: list[Case], seconds: float, settings: dict[str, str]) -> None:
    """Print the table for a loaded database; ``settings`` are labctl's, beside those of a deployment."""
    counts = sample(url, cases, settings)
    write = "function request() return wrk.format('GET', '/write/' .. math.random(100000)) end"
    with serving("labctl.wsgi:app", url, 8090, settings) as master, serving("benchmarks.yardstick:app", url, 8091, {}):
        print(f"{'':44} {'req/s':>7} {'p50':>9} {'p99':>9} {'SQL':>4} {'yardstick':>9} {'p99':>9} {'ratio':>6}")
        for case in cases:
            key = quote(case.name, safe="")
            lua = f"function request() return wrk.format('GET', '/read?key={key}') end" if case.read else write
            best = wrk(8091, lua, seconds / 2, case.clients)
            got = wrk(8090, case.lua, seconds, case.clients)
            again = wrk(8091, lua, seconds / 2, case.clients)
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

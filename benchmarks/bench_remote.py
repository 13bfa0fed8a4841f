"""Measure operations on hosts, over HTTP as they are deployed: ``python benchmarks/bench_remote.py``.

``pings``: GET /ping of one host over a local connection, and of 1, 10 and 50 hosts over ssh where there is an sshd,
against the executor alone in the same run: what labctl itself costs.
``events``: one job with 1,000 pieces of output a second; how many reach the database in a second, and what is left of
the requests a second that wrk gets otherwise.
``followers``: 50 followers of 5 jobs; the same, and how long a piece takes from the executor to a follower.

The last two use an executor of their own, which stamps each piece with its time. See benchmarks/harness.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks import bench_runs
from benchmarks.harness import HERE, as_environ, database, load, serving, wrk
from labctl import db
from labctl.remote.executor import Order
from labctl.remote.executors.ansible import AnsibleExecutor
from labctl.remote.states import Operation
from labctl.tokens import service as tokens

PORT = 8090
RUNS = 200
#: Pieces of output a second of each job that is followed.
FOLLOWED_RATE = 10
READS = {
    "GET /runs/?count=25": "/runs/?count=25",
    "GET /nodes/ (500 machines)": "/nodes/",
}
STAMPING = '''
"""An executor that gives results at an even rate, each with the time at which it was due."""

import time

from labctl.remote.executor import Executor, Result, Run
from labctl.remote.states import Status


class Stamping(Executor):
    def __init__(self, options, home):
        self.names = [f"host-{number}" for number in range(options["hosts"])]

    def check(self):
        return []

    def hosts(self):
        return {name: {"all-hosts"} for name in self.names}

    def begin(self, order):
        given = order.arguments["extra_vars"]
        return Stamped(order.hosts, float(given["rate"]), float(given["seconds"]))


class Stamped(Run):
    error = None

    def __init__(self, hosts, rate, seconds):
        self.hosts, self.rate, self.total = hosts, rate, int(rate * seconds)
        self.began, self.said, self.stopped = time.time(), 0, False

    @property
    def ended(self):
        return self.stopped or self.said == self.total

    def cancel(self):
        self.stopped = True

    def read(self, wait):
        until = self.began + (self.said + 1) / self.rate
        time.sleep(max(0, min(wait, until - time.time())))
        due = min(int((time.time() - self.began) * self.rate), self.total)
        found = [self.result(number) for number in range(self.said, due)]
        self.said = due
        return found

    def result(self, number):
        stamp = repr(self.began + (number + 1) / self.rate)
        last = number >= self.total - len(self.hosts)
        values = {"name": "step", "return_data": stamp}
        return Result(self.hosts[number % len(self.hosts)], Status.CHANGED if last else Status.OK, values)
'''


class Client:
    """Requests with the credential of an admin, each over a connection of its own: some take longer than one lasts."""

    def __init__(self, secret: str) -> None:
        """Connect when it is used."""
        self.connection = HTTPConnection("127.0.0.1", PORT, timeout=120)
        self.headers = {"X-AUTH-TOKEN": secret}

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON and give the answer's."""
        self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        said = answer.read()
        self.connection.close()
        assert answer.status in (200, 201), (path, answer.status, said)
        return json.loads(said)


@contextmanager
def running(url: str, settings: dict[str, str]) -> Iterator[Client]:
    """Run gunicorn and a worker as they are deployed, until a worker has read the inventory."""
    engine = db.configure(url)
    with db.transaction() as session:
        session.execute(text("TRUNCATE remote_jobs, remote_hosts, remote_inventory, users CASCADE"))
        tokens.add_user(session, "bench", admin=True)
        secret = tokens.create_token(session, "bench")
    environ = {**os.environ, **as_environ(settings), "LABCTL_DATABASE_URL": url, "PYTHONPATH": str(HERE.parent)}
    environ |= {"LABCTL_POOLS": "[]", "LABCTL_LOG_LEVEL": "WARNING"}
    worker = subprocess.Popen([sys.executable, "-m", "labctl.cli.main", "worker"], env=environ, cwd=HERE.parent)
    try:
        with serving("labctl.wsgi:app", url, PORT, {**settings, "pools": "[]"}):
            deadline = time.monotonic() + 30
            while True:
                with db.transaction() as session:
                    if session.execute(text("SELECT count(*) FROM remote_hosts")).scalar():
                        break
                assert time.monotonic() < deadline, "the inventory is not read"
                time.sleep(0.1)
            yield Client(secret)
    finally:
        worker.terminate()
        worker.wait()
        engine.dispose()


# What labctl costs


def inventory(directory: Path, sshd: Any) -> None:
    """Write an inventory of names for this machine."""
    python = f"ansible_python_interpreter={sys.executable}"
    lines = [f"localhost ansible_connection=local {python}"]
    if sshd is not None:
        arguments = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={directory}/known -o IdentitiesOnly=yes"
        common = f"ansible_host=127.0.0.1 ansible_port={sshd.port} ansible_user={sshd.user} {python}"
        for number in range(50):
            key = f"ansible_ssh_private_key_file={sshd.key} ansible_ssh_common_args='{arguments}'"
            lines.append(f"ssh-{number:02d} {common} {key}")
        for count in (1, 10, 50):
            lines += [f"[hosts{count}]", *(f"ssh-{number:02d}" for number in range(count))]
    (directory / "inventory").write_text("\n".join(lines) + "\n")
    (directory / "playbooks").mkdir()
    (directory / "playbooks" / "_deploy.yml").write_text("[]\n")


def times(repeats: int, *calls: Callable[[], None]) -> list[float]:
    """Give the median seconds of each call, all of them in turns, after one of each that does not count."""
    took: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, found in zip(calls, took, strict=True):
            began = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in took]


def pings(url: str, repeats: int) -> None:
    """Compare GET /ping with the executor alone."""
    with ExitStack() as ending:
        directory = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        sshd = ending.enter_context(an_sshd(directory))
        inventory(directory, sshd)
        options = {"workdir": str(directory), "concurrency": 20}
        alone = AnsibleExecutor(options, directory / "home")
        ending.callback(alone.close)
        settings = {"executor": json.dumps({"plugin": "ansible", **options}), "home": str(directory / "labctl")}
        client = ending.enter_context(running(url, settings))
        groups = alone.hosts()

        def by_itself(hosts: tuple[str, ...]) -> None:
            run = alone.begin(Order("bench", Operation.PING, hosts))
            found = []
            while not run.ended:
                found += run.read(1)
            assert [result.status for result in found] == [1] * len(hosts), (run.error, found)

        print(f"{'ping':24} {'labctl':>9} {'executor':>9} {'more':>7} {'ratio':>6}")
        for target in ("localhost", "hosts1", "hosts10", "hosts50"):
            hosts = tuple(name for name, of in groups.items() if name == target or target in of)
            if hosts:
                path = f"/ping?target={target}"
                ours, its = times(
                    repeats if len(hosts) < 50 else max(3, repeats // 4),
                    lambda: client.send("GET", path),  # noqa: B023 - called within the loop
                    lambda: by_itself(hosts),  # noqa: B023
                )
                more = f"{(ours - its) * 1000:4.0f} ms"
                print(f"{target:24} {ours:7.2f} s {its:7.2f} s {more:>7} {ours / its:6.2f}", flush=True)


@contextmanager
def an_sshd(directory: Path) -> Iterator[Any]:
    """Run the tests' own sshd, if there can be one."""
    from tests import sshd

    if reason := sshd.missing():
        print(f"nothing over ssh: {reason}")
        yield None
        return
    server = sshd.Sshd(directory / "sshd")
    try:
        yield server.start()
    finally:
        server.close()


# What much output costs


@contextmanager
def stamping(url: str, hosts: int) -> Iterator[Client]:
    """Run labctl with the executor that stamps its results."""
    with tempfile.TemporaryDirectory() as directory:
        plugins = Path(directory) / "plugins"
        plugins.mkdir()
        (plugins / "stamping.py").write_text(STAMPING)
        executor = {"plugin": "stamping", "hosts": hosts}
        settings = {"executor": json.dumps(executor), "remote_plugins": str(plugins), "home": directory}
        with running(url, settings) as client:
            yield client


def deploy(client: Client, hosts: list[int], rate: float, seconds: float) -> str:
    """Begin a job that gives so many results a second."""
    body = {"targets": [f"host-{number}" for number in hosts], "role": "bench"}
    return str(client.send("POST", "/deploy", {**body, "extra_vars": {"rate": rate, "seconds": seconds}})["jid"])


def reads(seconds: float) -> list[float]:
    """Give the requests a second of each read."""
    return [
        wrk(PORT, f"function request() return wrk.format('GET', '{path}') end", seconds).rate for path in READS.values()
    ]


def compare(before: list[float], during: list[float], after: list[float]) -> None:
    """Print what is left of the requests a second."""
    for name, first, middle, last in zip(READS, before, during, after, strict=True):
        usual = (first + last) / 2
        print(f"  {name:40} {middle:7.0f} req/s, otherwise {usual:7.0f}: {middle / usual:.2f}", flush=True)


def events(url: str, seconds: float, rate: float) -> None:
    """Count what reaches the database, with requests going on and without."""
    with stamping(url, 10) as client:
        before = reads(seconds)
        quiet = deploy(client, list(range(5)), rate, seconds)
        print(f"one job, {rate:.0f} pieces of output a second")
        print(f"  {'reach the database, alone':40} {arriving(client, quiet, seconds):7.0f} a second")
        busy = deploy(client, list(range(5, 10)), rate, 2 * seconds + 5)
        found: list[float] = []
        counter = threading.Thread(
            target=lambda: found.append(arriving(Client(client.headers["X-AUTH-TOKEN"]), busy, 2 * seconds))
        )
        counter.start()
        during = reads(seconds)
        counter.join()
        print(f"  {'reach the database, while wrk reads':40} {found[0]:7.0f} a second")
        compare(before, during, reads(seconds))


def arriving(client: Client, jid: str, seconds: float) -> float:
    """Give how many pieces of a job's output reach the database in a second."""

    def last() -> int:
        with db.transaction() as session:
            return int(
                session.execute(text("SELECT last_seq FROM remote_jobs WHERE jid = :jid"), {"jid": jid}).scalar() or 0
            )

    while not last():
        time.sleep(0.05)
    began, first = time.perf_counter(), last()
    time.sleep(seconds * 0.8)
    return (last() - first) / (time.perf_counter() - began)


def followers(url: str, seconds: float, number: int, jobs: int) -> None:
    """Follow jobs while others read."""
    with stamping(url, 10) as client:
        before = reads(seconds)
        whole = 2 * seconds + 5
        jids = [deploy(client, [2 * job, 2 * job + 1], FOLLOWED_RATE, whole) for job in range(jobs)]
        late: list[float] = []
        counts: list[int] = []
        threads = [
            threading.Thread(target=follow, args=(client.headers["X-AUTH-TOKEN"], jids[each % jobs], late, counts))
            for each in range(number)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1)
        during = reads(seconds)
        for thread in threads:
            thread.join()
        print(f"{number} followers of {jobs} jobs with {FOLLOWED_RATE} pieces a second each")
        compare(before, during, reads(seconds))
        late.sort()
        p50, p99 = (late[int(len(late) * part)] * 1000 for part in (0.5, 0.99))
        print(f"  from the executor to a follower: p50 {p50:.0f} ms, p99 {p99:.0f} ms, {len(late)} pieces")
        print(f"  each follower got {min(counts)} to {max(counts)} of {int(FOLLOWED_RATE * whole)}")


def follow(secret: str, jid: str, late: list[float], counts: list[int]) -> None:
    """Follow a job to its end, and note how late each piece came."""
    client = Client(secret)
    client.connection.request("GET", f"/jobs/{jid}?outputs=1&follow=1", headers=client.headers)
    answer = client.connection.getresponse()
    assert answer.status == 200, answer.read()
    decoder, said, count, first = json.JSONDecoder(), "", 0, True
    while part := answer.read1(65536):
        now = time.time()
        said += part.decode()
        while said:
            try:
                value, end = decoder.raw_decode(said)
            except ValueError:
                break
            said = said[end:].lstrip()
            pieces = value["return_data"] if first else value
            for chunks in pieces.values():
                chunk = chunks if isinstance(chunks, list) else [chunks]
                stamps = [float(each["return_data"]) for each in chunk if each["status"]]
                count += len(stamps)
                if not first:
                    late.extend(now - stamp for stamp in stamps)
            first = False
    counts.append(count)


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["pings", "events", "followers"])
    parser.add_argument("--repeats", type=int, default=20, help="pings of each kind (default: 20)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each read is measured (default: 5)")
    parser.add_argument("--rate", type=float, default=1000, help="pieces of output a second of one job (default: 1000)")
    given = parser.parse_args()
    with database() as url:
        load(url, bench_runs.loaded(RUNS))
        for part in given.parts:
            if part == "pings":
                pings(url, given.repeats)
            elif part == "events":
                events(url, given.seconds, given.rate)
            else:
                followers(url, given.seconds, 50, 5)
            print()


if __name__ == "__main__":
    main()

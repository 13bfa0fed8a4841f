"""Operations on hosts with real processes: whatever is killed or stopped, a job ends, and is carried out once."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import pytest
import requests

from .conftest import remove
from .lab import PATIENCE, Up, alive, another_worker, until

#: Seconds after which a worker that is not heard of counts as lost; a database that was killed is back before.
LEASE = 12
#: Alpha answers at once; a deploy takes its time.
EXECUTOR = {
    "plugin": "fake",
    "hosts": ["alpha", "beta", "gamma"],
    "seconds": {"deploy": 600},
    "steps": 6000,
    "unreachable": ["alpha"],
}
LOST = "the worker that carried this out was lost"


class RemoteLab:
    """One labctl up with an executor that is not real, and more workers beside it."""

    def __init__(self, home: Path) -> None:
        self.environ = {
            "LABCTL_EXECUTOR": orjson.dumps(EXECUTOR).decode(),
            "LABCTL_WORKER_STALLED_AFTER": str(LEASE),
        }
        self.up = Up(home, **self.environ)
        self.workers: list[subprocess.Popen[bytes]] = []

    def wait_until_ready(self) -> "RemoteLab":
        self.up.wait_until_ready()
        self.headers = {"X-AUTH-TOKEN": (self.up.home / "admin.token").read_text().strip()}
        until(lambda: self.ask("GET", "/target").status_code == 200, "the inventory was read")
        return self

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        self.up.close()

    def start_worker(self) -> "subprocess.Popen[bytes]":
        worker = another_worker(self.up.home, self.environ)
        self.workers.append(worker)
        return worker

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return requests.request(method, self.up.url + path, headers=self.headers, timeout=PATIENCE, **arguments)

    def post(self, operation: str, *targets: str, **body: Any) -> str:
        answer = self.ask("POST", f"/{operation}", json={"targets": list(targets or EXECUTOR["hosts"]), **body})
        assert answer.status_code == 201, answer.text
        return answer.json()["jid"]

    def deploy(self, *targets: str) -> str:
        """Begin a deploy; gives its jid when there is output."""
        jid = self.post("deploy", *targets, role="web")
        until(lambda: self.output(jid) > 10, "the deploy goes on")
        return jid

    def job(self, jid: str) -> dict[str, Any]:
        return self.ask("GET", f"/jobs/{jid}?outputs=1").json()

    def output(self, jid: str) -> int:
        """Count the pieces of a job's output; none while nothing answers."""
        with suppress(requests.RequestException, KeyError, AttributeError, ValueError):
            return sum(map(len, self.job(jid)["return_data"].values()))
        return 0

    def goes_on(self, jid: str) -> None:
        """Wait until there is more output than now."""
        before = self.output(jid)
        until(lambda: self.output(jid) > before, f"there is more output of {jid}")

    def ended(self, jid: str, patience: float = PATIENCE) -> dict[str, Any]:
        until(lambda: self.job(jid)["state"] != 1, f"{jid} has ended", patience)
        return self.job(jid)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect((self.up.home / "database.url").read_text().strip())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

    def hosts(self, jid: str) -> dict[str, str]:
        return dict(
            self.sql(
                "SELECT h.host, h.state FROM remote_job_hosts h JOIN remote_jobs j ON j.id = h.job_id WHERE jid = %s",
                jid,
            )
        )

    def holder(self, jid: str) -> int:
        """Give the process id of the worker that has a job."""
        ((holder,),) = self.sql("SELECT lease_holder FROM remote_jobs WHERE jid = %s", jid)
        return int(holder.split(":")[-2])


@pytest.fixture(scope="module")
def lab() -> Iterator[RemoteLab]:
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    lab = RemoteLab(directory / "home")
    try:
        yield lab.wait_until_ready()
    finally:
        lab.close()
        remove(directory)


@pytest.fixture(autouse=True)
def quiet(lab: RemoteLab) -> Iterator[None]:
    """After each test one worker is left, and no job."""
    yield
    for worker in lab.workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    lab.workers.clear()
    until(lab.up.healthy, "labctl is well")
    for jid in lab.ask("GET", "/jobs").json():
        lab.ask("POST", f"/jobs/{jid}/cancel")
        lab.ended(jid)


def test_a_worker_that_is_killed_in_a_deploy_leaves_a_failed_job_with_its_output_and_free_hosts(
    lab: RemoteLab,
) -> None:
    jid = lab.deploy()
    refused = lab.ask("POST", "/deploy", json={"targets": ["beta"], "role": "other"})
    os.kill(lab.up.worker, signal.SIGKILL)
    job = lab.ended(jid, LEASE + 5)

    assert refused.status_code == 409 and jid in refused.json()["message"]
    assert (job["state"], job["error"]) == (2, LOST)
    assert lab.hosts(jid) == {"alpha": "unreachable", "beta": "failed", "gamma": "failed"}
    assert lab.output(jid) > 10
    lab.goes_on(lab.deploy())


def test_hosts_of_a_killed_worker_are_free_after_the_lease_although_no_worker_runs(lab: RemoteLab) -> None:
    worker = lab.start_worker()
    jid = run_on(lab, worker.pid)
    # Whoever is left could end it; it stands still as well.
    os.kill(lab.up.worker, signal.SIGSTOP)
    try:
        os.kill(worker.pid, signal.SIGKILL)
        accepted = until(lambda: submitted(lab), "a new deploy on the same hosts is accepted", LEASE + 5)
        assert lab.job(jid)["error"] == LOST
        assert lab.job(accepted)["state"] == 1
    finally:
        os.kill(lab.up.worker, signal.SIGCONT)


def submitted(lab: RemoteLab) -> str | None:
    answer = lab.ask("POST", "/deploy", json={"targets": ["beta", "gamma"], "role": "web"})
    assert answer.status_code in (201, 409), answer.text
    return answer.json().get("jid")


def run_on(lab: RemoteLab, pid: int) -> str:
    """Have a deploy carried out by the worker with a process id; there are two."""
    while True:
        jid = lab.deploy("beta", "gamma")
        if lab.holder(jid) == pid:
            return jid
        lab.ask("POST", f"/jobs/{jid}/cancel")
        lab.ended(jid)


def test_a_worker_that_comes_back_after_its_lease_writes_nothing_and_cancels_its_run(lab: RemoteLab) -> None:
    worker = lab.start_worker()
    jid = run_on(lab, worker.pid)
    os.kill(worker.pid, signal.SIGSTOP)
    job = lab.ended(jid, LEASE + 5)
    before = lab.output(jid)
    os.kill(worker.pid, signal.SIGCONT)
    # It does the next one, which it would not with threads that hang.
    again = run_on(lab, worker.pid)

    assert job["error"] == LOST and lab.job(jid)["error"] == LOST
    assert lab.output(jid) == before
    assert lab.job(again)["state"] == 1


def test_a_worker_that_stands_still_for_less_than_its_lease_goes_on(lab: RemoteLab) -> None:
    jid = lab.deploy("beta")
    worker = lab.up.worker
    os.kill(worker, signal.SIGSTOP)
    until(seconds_pass(1), "a second has passed")
    os.kill(worker, signal.SIGCONT)
    lab.goes_on(jid)

    assert lab.job(jid)["state"] == 1 and lab.holder(jid) == worker


def seconds_pass(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def test_output_is_written_on_after_the_database_was_killed(lab: RemoteLab) -> None:
    jid = lab.deploy("beta")
    before = lab.up.database
    os.kill(before, signal.SIGKILL)
    until(lambda: not alive(before), "the database is gone")
    until(lab.up.healthy, "the database is back")
    lab.goes_on(jid)
    rows = lab.sql("SELECT o.seq FROM remote_outputs o JOIN remote_jobs j ON j.id = job_id WHERE jid = %s", jid)

    assert lab.job(jid)["state"] == 1
    assert sorted(seq for (seq,) in rows) == list(range(1, len(rows) + 1))
    # Each step of the host comes twice, as an announcement and as a result, and in its order.
    steps = [chunk["name"].split()[3] for chunk in lab.job(jid)["return_data"]["beta"]]
    assert steps == [str(number // 2 + 1) for number in range(len(steps))]


def test_two_workers_carry_out_each_job_once(lab: RemoteLab) -> None:
    worker = lab.start_worker()
    other = lab.up.worker
    run_on(lab, worker.pid)
    jids = [lab.post("execute", "beta", "gamma", cmd="echo hello; sleep 0.1") for _ in range(40)]
    jobs = [lab.ended(jid) for jid in jids]

    assert {job["state"] for job in jobs} == {0}
    assert all([len(chunks) for chunks in job["return_data"].values()] == [1, 1] for job in jobs)
    attempts = lab.sql("SELECT DISTINCT lease_attempt FROM remote_jobs WHERE jid = ANY(%s)", jids)
    assert attempts == [(1,)]
    workers = lab.sql(
        "SELECT DISTINCT data->>'worker' FROM events WHERE kind = 'remote.job_started' AND subject = ANY(%s)",
        [f"remote/{jid}" for jid in jids],
    )
    assert {int(name.split(":")[-2]) for (name,) in workers} <= {worker.pid, other}


def test_a_job_is_cancelled_by_whoever_carries_it_out(lab: RemoteLab) -> None:
    jid = lab.post("execute", "beta", cmd="sleep 600")
    until(lambda: lab.sql("SELECT 1 FROM remote_jobs WHERE jid = %s AND state = 'running'", jid), "it has begun")
    lab.ask("POST", f"/jobs/{jid}/cancel")
    job = lab.ended(jid, 5)

    assert (job["state"], job["error"]) == (2, "cancelled by admin")


def test_a_worker_that_is_told_to_stop_ends_its_jobs(lab: RemoteLab) -> None:
    worker = lab.start_worker()
    jid = run_on(lab, worker.pid)
    worker.terminate()
    job = lab.ended(jid, 40)

    assert (job["state"], job["error"]) == (2, "the worker was stopped")
    assert worker.wait(10) == 0


def test_a_worker_with_a_mistake_in_the_setting_says_so_and_ends(lab: RemoteLab) -> None:
    environ = {**os.environ, **lab.environ, "LABCTL_HOME": str(lab.up.home), "LABCTL_EXECUTOR": '{"plugin": "salt"}'}
    done = subprocess.run(
        [sys.executable, "-m", "labctl.cli.main", "worker"], env=environ, capture_output=True, text=True, timeout=60
    )

    assert done.returncode != 0 and "executor.plugin: there is no labctl.executors plugin 'salt'" in done.stderr

"""Whatever is killed, at whatever moment: what was answered with 200 is there afterwards."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import requests

from labctl.cli.main import cli

from .lab import Up, until

RUN = "scott-2026-01-02_03:04:05-rados-main-distro-default-smithi"
JOBS = f"/runs/{RUN}/jobs/"


class Client(threading.Thread):
    """Reports jobs, one queued and then running, and notes what labctl has confirmed."""

    def __init__(self, up: Up, name: str) -> None:
        super().__init__(name=name)
        self.up = up
        self.confirmed: dict[str, str] = {}
        self.answers = 0
        self.unexpected: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            job = f"{self.name}-{number}"
            if self._send("POST", JOBS, {"job_id": job, "status": "queued"}):
                self.confirmed[job] = "queued"
                if self._send("PUT", f"{JOBS}{job}/", {"status": "running"}):
                    self.confirmed[job] = "running"
            number += 1

    def _send(self, method: str, path: str, body: dict[str, str]) -> bool:
        try:
            answer = requests.request(method, self.up.url + path, json=body, timeout=20)
        except requests.RequestException:
            self.stopping.wait(0.02)
            return False
        if answer.status_code not in (200, 503):
            self.unexpected.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        self.answers += 1
        return answer.status_code == 200


@contextmanager
def load(up: Up) -> Iterator[list[Client]]:
    clients = [Client(up, f"client{number}") for number in range(4)]
    for client in clients:
        client.start()
    try:
        until(lambda: all(len(client.confirmed) > 3 for client in clients), "the clients are at work")
        yield clients
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join()


def check_nothing_is_lost(up: Up, clients: list[Client]) -> None:
    run = up.get(f"/runs/{RUN}/").json()
    found = {job["job_id"]: job["status"] for job in run["jobs"]}
    for client in clients:
        assert not client.unexpected
        for job, status in client.confirmed.items():
            assert job in found, f"{job} was confirmed and is gone"
            assert found[job] == "running" or found[job] == status, f"{job} was confirmed as {status}"
    # What was cut off before its answer may be there or not, but the run's counts fit its jobs.
    for status in ("queued", "running"):
        assert run["results"][status] == sum(state == status for state in found.values())
    assert run["results"]["total"] == len(found)


@pytest.mark.parametrize("victim", ["web process", "gunicorn", "worker", "postgres"])
def test_kill_of_one_process_under_load_loses_nothing_confirmed(
    start: Callable[..., Up], home: object, victim: str
) -> None:
    up = start(home).wait_until_ready()
    with load(up) as clients:
        pid = {
            "web process": lambda: up.web_processes[0],
            "gunicorn": lambda: up.master,
            "worker": lambda: up.worker,
            "postgres": lambda: up.database,
        }[victim]()
        os.kill(pid, signal.SIGKILL)
        seen = [client.answers for client in clients]
        until(
            lambda: up.healthy() and all(client.answers > was + 5 for client, was in zip(clients, seen, strict=True)),
            f"all clients are served again after the kill of the {victim}",
        )
    check_nothing_is_lost(up, clients)


def test_kill_of_labctl_up_under_load_loses_nothing_confirmed(start: Callable[..., Up], home: object) -> None:
    up = start(home).wait_until_ready()
    with load(up) as clients:
        os.kill(up.pid, signal.SIGKILL)
    again = start(home).wait_until_ready()
    check_nothing_is_lost(again, clients)


def test_demo_fills_a_running_labctl_and_may_be_repeated(lab: Up) -> None:
    from click.testing import CliRunner

    for _ in range(2):
        result = CliRunner().invoke(cli, ["demo", "--url", lab.url, "--runs", "5", "--until", "2026-01-02"])
        assert result.exit_code == 0, result.output
    runs = lab.get("/runs/?count=1000").json()
    assert len(runs) == 5
    assert sum(run["jobs_count"] for run in runs) > 20
    assert {machine["machine_type"] for machine in lab.get("/nodes/").json()} == {"smithi", "mira", "gibba"}

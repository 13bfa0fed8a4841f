"""Maintenance sessions with real processes: the worker is killed in every state, and the session comes to its end."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import pytest
import requests

from .conftest import remove
from .lab import PATIENCE, Up, alive, until

HYPERVISORS = ["hv1", "hv2"]
HOSTS = ["hv1", "localhost", "alias"]
POOLS = [{"name": "debian", "size": 3}]
PROVIDER = {"plugin": "fake", "hosts": HYPERVISORS, "boot_seconds": [0.1, 0.2], "list_interval": 5}
EXECUTOR = {"plugin": "fake", "hosts": [*HYPERVISORS, "localhost", "alias"]}
#: Once each before and after, twice for each host.
ACTIONS = [
    {"plugin": "command", "type": "pre", "metadata": {"command": "echo pre"}},
    {"plugin": "command", "type": "host", "metadata": {"command": "echo host"}},
    {"plugin": "dummy", "type": "host", "metadata": {"seconds": 2}},
    {"plugin": "dummy", "type": "post", "metadata": {"seconds": 2}},
]
#: Two minutes, whatever else goes on.
LONG = 120
ENDED = ("MAINTENANCE_DONE", "MAINTENANCE_FAILED")


class MaintenanceLab:
    """One labctl up with an executor and hypervisors that are not real."""

    def __init__(self, home: Path) -> None:
        self.up = Up(
            home,
            LABCTL_POOLS=orjson.dumps(POOLS).decode(),
            LABCTL_PROVIDERS=orjson.dumps({"fake": PROVIDER}).decode(),
            LABCTL_EXECUTOR=orjson.dumps(EXECUTOR).decode(),
            LABCTL_WORKER_STALLED_AFTER="5",
            LABCTL_MAINTENANCE_REPLIES=orjson.dumps(
                {"MAINTENANCE": LONG, "PLANNED_MAINTENANCE": LONG, "MAINTENANCE_COMPLETE": LONG}
            ).decode(),
        )
        self.killed: list[str] = []

    def wait_until_ready(self) -> "MaintenanceLab":
        self.up.wait_until_ready()
        self.headers = {"X-AUTH-TOKEN": (self.up.home / "admin.token").read_text().strip()}
        self.connection = psycopg2.connect((self.up.home / "database.url").read_text().strip())
        self.connection.autocommit = True
        until(lambda: self.ask("GET", "/target").status_code == 200, "the inventory was read")
        until(lambda: len(self.sql("SELECT 1 FROM vms WHERE state = 'ready'")) == 3, "the pool is full")
        return self

    def close(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()
        self.up.close()

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return requests.request(method, self.up.url + path, headers=self.headers, timeout=PATIENCE, **arguments)

    def begin(self, **changes: Any) -> str:
        body = {"hosts": HOSTS, "state": "MAINTENANCE", "maintenance_at": "2020-01-01 00:00:00", "metadata": {}}
        answer = self.ask("POST", "/v1/maintenance", json={**body, "actions": ACTIONS, **changes})
        assert answer.status_code == 200, answer.text
        return answer.json()["session_id"]

    def state(self, sid: str) -> str:
        with suppress(requests.RequestException):
            answer = self.ask("GET", f"/v1/maintenance/{sid}")
            if answer.status_code == 200:
                return answer.json()["state"]
        return ""

    def kill_between_jobs(self, sid: str) -> bool:
        """Kill the worker unless it has a job of remote in hand, which cannot go on without it."""
        worker = self.up.worker
        os.kill(worker, signal.SIGSTOP)
        (state,) = self.sql("SELECT state FROM maintenance_sessions WHERE id = %s", sid)[0]
        if state in (*self.killed, *ENDED) or self.sql("SELECT 1 FROM remote_jobs WHERE state = 'running'"):
            os.kill(worker, signal.SIGCONT)
            return False
        self.kill(worker)
        self.killed.append(state)
        return True

    def kill(self, worker: int) -> None:
        os.kill(worker, signal.SIGKILL)
        until(lambda: not alive(worker) and self.up.find("labctl.cli.main", "worker"), "there is another worker")

    def agree(self, sid: str) -> None:
        """Answer for the projects what they are asked."""
        asked = "SELECT project, state FROM maintenance_replies WHERE asked IS NOT NULL AND answer IS NULL"
        for project, state in self.sql(f"{asked} AND session_id = %s", sid):
            self.ask("PUT", f"/v1/maintenance/{sid}/{project}", json={"state": f"ACK_{state}"})

    def see_through(self, sid: str, *, agree: bool = False) -> dict[str, Any]:
        """Kill the worker in each state as soon as the session is in it, until it has ended."""
        deadline = time.monotonic() + 4 * LONG
        while (state := self.state(sid)) not in ENDED:
            assert time.monotonic() < deadline, self.ask("GET", f"/v1/maintenance/{sid}").text
            killed = state and state not in self.killed and self.kill_between_jobs(sid)
            # Only then, so that it does not pass through a state before that was seen.
            if agree and not killed and state in self.killed:
                self.agree(sid)
        return self.ask("GET", f"/v1/maintenance/{sid}").json()

    def check_actions(self, sid: str, hosts: list[str]) -> None:
        """Look whether each action was carried out once for each host."""
        rows = self.sql("SELECT number, host, attempt, state FROM maintenance_actions WHERE session_id = %s", sid)
        check = -1
        once = {(0, ""), (3, ""), *((number, host) for number in (check, 1, 2) for host in hosts)}
        assert sorted((number, host) for number, host, *_ in rows) == sorted(once)
        assert {(attempt, state) for *_, attempt, state in rows} == {(1, "done")}
        commands = "SELECT 1 FROM remote_jobs WHERE operation = 'execute' AND key LIKE %s"
        assert len(self.sql(commands, f"maintenance/{sid}/%")) == 1 + len(hosts)

    def check_service(self) -> None:
        """Look whether everything is in service."""
        assert not self.sql("SELECT 1 FROM vm_cordons")
        assert not self.sql("SELECT 1 FROM maintenance_hosts WHERE held OR cordoned")


@pytest.fixture
def lab() -> Iterator[MaintenanceLab]:
    """Each test has its own: the pause before a worker is started again doubles with every kill."""
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    lab = MaintenanceLab(directory / "home")
    try:
        yield lab.wait_until_ready()
    finally:
        lab.close()
        remove(directory)


def test_a_session_whose_worker_is_killed_in_every_state_does_everything_once(lab: MaintenanceLab) -> None:
    sid = lab.begin(workflow="fake", metadata={"seconds": 2})
    found = lab.see_through(sid)

    assert found["state"] == "MAINTENANCE_DONE", found
    assert lab.killed == [
        "MAINTENANCE",
        "SCALE_IN",
        "PREPARE_MAINTENANCE",
        "START_MAINTENANCE",
        "PLANNED_MAINTENANCE",
        "MAINTENANCE_COMPLETE",
    ]
    lab.check_actions(sid, HOSTS)
    lab.check_service()


def test_so_does_one_that_has_to_move_somebodys_vm(lab: MaintenanceLab) -> None:
    until(lambda: lab.sql("SELECT 1 FROM vms WHERE state = 'ready'"), "a VM is ready")
    ((vm, host),) = lab.sql(
        "UPDATE vms SET state = 'running', checkout = now(), lifetime = 12, expires = now() + interval '12 h',"
        " due = now() + interval '11 h', owner = 'ada', tags = %s, lease_holder = NULL, lease_until = NULL"
        " WHERE id = (SELECT id FROM vms WHERE state = 'ready' LIMIT 1 FOR UPDATE) RETURNING name, host",
        '{"a": "b"}',
    )
    hosts = [host, "localhost", "alias"]
    sid = lab.begin(workflow="default", hosts=hosts)
    found = lab.see_through(sid, agree=True)

    assert found["state"] == "MAINTENANCE_DONE", found
    assert lab.killed == ["MAINTENANCE", "START_MAINTENANCE", "PLANNED_MAINTENANCE", "MAINTENANCE_COMPLETE"]
    lab.check_actions(sid, hosts)
    lab.check_service()
    hers = lab.sql("SELECT name, host, tags FROM vms WHERE owner = 'ada' AND state = 'running'")
    (other,) = {*HYPERVISORS} - {host}
    assert [(host, tags) for _, host, tags in hers] == [(other, {"a": "b"})] and hers[0][0] != vm


def test_a_command_that_its_worker_did_not_live_to_see_end_fails_the_session_which_can_be_continued(
    lab: MaintenanceLab,
) -> None:
    actions = [{"plugin": "command", "type": "host", "metadata": {"command": "sleep 4", "hosts": ["alias"]}}]
    sid = lab.begin(workflow="default", hosts=["alias", "localhost"], actions=actions)
    at_work = "SELECT 1 FROM remote_jobs WHERE state = 'running' AND key LIKE %s"
    until(lambda: lab.sql(at_work, f"maintenance/{sid}/0/alias/%"), "the command runs")
    lab.kill(lab.up.worker)
    until(lambda: lab.state(sid) == "MAINTENANCE_FAILED", "the session has failed", LONG)
    found = lab.ask("GET", f"/v1/maintenance/{sid}").json()
    # Nobody knows what was done there; so nothing is done again by itself.
    assert "the worker that carried this out was lost" in found["reason"]
    assert lab.sql("SELECT 1 FROM maintenance_hosts WHERE host = 'alias' AND state = 'failed' AND cordoned")

    assert lab.ask("PUT", f"/v1/maintenance/{sid}", json={}).status_code == 200
    until(lambda: lab.state(sid) == "MAINTENANCE_DONE", "the session is done", LONG)
    lab.check_service()

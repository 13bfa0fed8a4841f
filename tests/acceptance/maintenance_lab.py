"""A running labctl with hypervisors and hosts that are not real, and what tests of maintenance do with it."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import requests

from .conftest import remove
from .lab import PATIENCE, Up, alive, until

HYPERVISORS = ["hv1", "hv2"]
HOSTS = ["hv1", "localhost", "alias"]
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
#: Seconds that projects have to answer.
REPLIES = dict.fromkeys(
    ("MAINTENANCE", "SCALE_IN", "PREPARE_MAINTENANCE", "PLANNED_MAINTENANCE", "MAINTENANCE_COMPLETE"), LONG
)
ENDED = ("MAINTENANCE_DONE", "MAINTENANCE_FAILED")


class MaintenanceLab:
    """One labctl up with an executor and hypervisors that are not real."""

    def __init__(
        self,
        home: Path,
        *,
        vms: int = 3,
        provider: Mapping[str, Any] | None = None,
        executor: Mapping[str, Any] | None = None,
        replies: Mapping[str, float] | None = None,
        **environ: str,
    ) -> None:
        """``vms``: the size of the only pool; the others say what is different from what is above."""
        self.vms = vms
        self.up = Up(
            home,
            LABCTL_POOLS=orjson.dumps([{"name": "debian", "size": vms}]).decode(),
            LABCTL_PROVIDERS=orjson.dumps({"fake": {**PROVIDER, **(provider or {})}}).decode(),
            LABCTL_EXECUTOR=orjson.dumps({**EXECUTOR, **(executor or {})}).decode(),
            LABCTL_WORKER_STALLED_AFTER="5",
            LABCTL_MAINTENANCE_REPLIES=orjson.dumps({**REPLIES, **(replies or {})}).decode(),
            **environ,
        )
        self.killed: list[str] = []

    def wait_until_ready(self) -> "MaintenanceLab":
        self.up.wait_until_ready()
        self.headers = {"X-AUTH-TOKEN": (self.up.home / "admin.token").read_text().strip()}
        self.connection = psycopg2.connect((self.up.home / "database.url").read_text().strip())
        self.connection.autocommit = True
        until(lambda: self.ask("GET", "/target").status_code == 200, "the inventory was read")
        until(lambda: len(self.sql("SELECT 1 FROM vms WHERE state = 'ready'")) == self.vms, "the pool is full")
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

    # VMs and sessions

    def give(self, owner: str, host: str | None = None) -> tuple[str, str]:
        """Give somebody a ready VM, on that hypervisor or on any; gives its name and its hypervisor."""
        until(lambda: self.sql("SELECT 1 FROM vms WHERE state = 'ready'"), "a VM is ready")
        ((name, host),) = self.sql(
            "UPDATE vms SET state = 'running', checkout = now(), lifetime = 12, expires = now() + interval '12 h',"
            " due = now() + interval '11 h', owner = %s, tags = %s, lease_holder = NULL, lease_until = NULL"
            " WHERE id = (SELECT id FROM vms WHERE state = 'ready' AND host = coalesce(%s, host) LIMIT 1 FOR UPDATE)"
            " RETURNING name, host",
            owner,
            orjson.dumps({"of": owner}).decode(),
            host,
        )
        return name, host

    def owned(self) -> list[tuple[str, str, dict[str, str]]]:
        """List the VMs that somebody has: whose, where, and with which tags."""
        return self.sql("SELECT owner, host, tags FROM vms WHERE owner IS NOT NULL AND state = 'running' ORDER BY 1, 2")

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

    def agree(self, sid: str) -> None:
        """Answer for the projects what they are asked."""
        asked = "SELECT project, state FROM maintenance_replies WHERE asked IS NOT NULL AND answer IS NULL"
        for project, state in self.sql(f"{asked} AND session_id = %s", sid):
            self.ask("PUT", f"/v1/maintenance/{sid}/{project}", json={"state": f"ACK_{state}"})

    def agree_until_ended(self, sid: str) -> dict[str, Any]:
        def ended() -> bool:
            self.agree(sid)
            return self.state(sid) in ENDED

        until(ended, "the session has ended", LONG)
        return self.ask("GET", f"/v1/maintenance/{sid}").json()

    # Kills

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

    def kill(self, worker: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Kill the worker, do something while there is none, and wait for the next one."""
        os.kill(worker, signal.SIGKILL)
        meanwhile()
        until(lambda: not alive(worker) and self.up.find("labctl.cli.main", "worker"), "there is another worker")

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

    # What is left

    def check_actions(self, sid: str, hosts: list[str]) -> None:
        """Look whether each of the actions was carried out once for each host."""
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


@contextmanager
def running(**options: Any) -> Iterator[MaintenanceLab]:
    """Run one; afterwards nothing of it is left."""
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    lab = MaintenanceLab(directory / "home", **options)
    try:
        yield lab.wait_until_ready()
    finally:
        lab.close()
        remove(directory)

"""A runner with an executor that does as it is told, over a database where transactions really commit."""

import select
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import select as sql
from sqlalchemy import text, update

from labctl import clock, db
from labctl.events.models import Event
from labctl.remote.executor import Executor
from labctl.remote.executors.fake import FakeExecutor
from labctl.remote.models import RemoteJob, RemoteJobHost, RemoteOutput
from labctl.remote.runner import Runner
from labctl.remote.states import LIFE, JobState, Operation
from labctl.remote.task import Task
from labctl.remote.task_plugins.rolling_restart import RollingRestart

from .factories import make_job

T = TypeVar("T")
HOSTS = ["alpha", "beta", "gamma"]


def until(condition: Callable[[], T], what: str, patience: float = 30) -> T:
    """Wait until the condition holds and give its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"within {patience} s this did not happen: {what}"
        select.select([], [], [], 0.01)
    return value


class RemoteLab:
    """Runners, and what becomes of jobs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.tasks: dict[str, type[Task]] = {"rolling_restart": RollingRestart}
        self.runners: list[Runner] = []

    def start(self, executor: Executor | None = None, **options: Any) -> Runner:
        """Start a runner; ``options`` of the fake, or of the runner where it knows them."""
        own = {name: options.pop(name) for name in ("lease", "most", "most_output", "patience") if name in options}
        executor = executor or FakeExecutor({"hosts": HOSTS, **options}, self.home)
        runner = Runner(executor, self.tasks, poll=0.02, **{"patience": 0.0, **own})
        self.runners.append(runner)
        runner.start()
        return runner

    def faults(self, **options: Any) -> None:
        """Let the executor be another from now on."""
        (self.home / "faults.json").write_bytes(orjson.dumps(options))

    def close(self) -> None:
        for runner in self.runners:
            runner.stop()
        for runner in self.runners:
            runner.join(40)
            assert not runner._thread.is_alive()

    # Jobs

    def queue(
        self,
        operation: Operation = Operation.PING,
        hosts: Sequence[str] = HOSTS,
        arguments: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        with db.transaction() as session:
            return make_job(session, operation, hosts, arguments, **changes).jid

    def job(self, jid: str) -> RemoteJob:
        with db.transaction() as session:
            return session.scalars(sql(RemoteJob).where(RemoteJob.jid == jid)).one()

    def ended(self, jid: str, patience: float = 30) -> RemoteJob:
        """Wait until a job has ended."""
        until(lambda: LIFE.final(JobState(self.job(jid).state)), f"{jid} has ended", patience)
        return self.job(jid)

    def carry_out(self, *arguments: Any, **options: Any) -> RemoteJob:
        """Have a job carried out to its end."""
        return self.ended(self.queue(*arguments, **options))

    def is_running(self, jid: str) -> RemoteJob:
        until(lambda: self.job(jid).state == JobState.RUNNING, f"{jid} has begun")
        return self.job(jid)

    def cancel(self, jid: str, by: str = "operator") -> None:
        with db.transaction() as session:
            values = {"cancelled": clock.now(), "cancelled_by": by}
            session.execute(update(RemoteJob).where(RemoteJob.jid == jid).values(values))

    def hosts(self, job: RemoteJob) -> dict[str, str]:
        with db.transaction() as session:
            found = session.scalars(sql(RemoteJobHost).where(RemoteJobHost.job_id == job.id))
            return {host.host: host.state for host in found}

    def held(self) -> list[str]:
        with db.transaction() as session:
            return list(session.scalars(sql(RemoteJobHost.host).where(RemoteJobHost.held)))

    def output(self, job: RemoteJob, host: str | None = None) -> list[dict[str, Any]]:
        """Give the chunks of a host, or all; they are numbered without a gap."""
        with db.transaction() as session:
            query = sql(RemoteOutput).where(RemoteOutput.job_id == job.id).order_by(RemoteOutput.seq)
            rows = session.scalars(query).all()
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return [orjson.loads(row.chunk) for row in rows if host in (None, row.host)]

    def events(self, job: RemoteJob) -> list[Event]:
        with db.transaction() as session:
            query = sql(Event).where(Event.subject == f"remote/{job.jid}").order_by(Event.seq)
            return list(session.scalars(query))

    def break_connections(self) -> None:
        """End all other connections to the database, as a restart does."""
        with db.transaction() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )

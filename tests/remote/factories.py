"""Jobs as requests make them."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy.orm import Session

from labctl import clock
from labctl.remote.models import RemoteJob, RemoteJobHost
from labctl.remote.states import EXCLUSIVE, Operation

#: What each operation is asked to do where a test does not say.
ARGUMENTS: dict[Operation, dict[str, Any]] = {
    Operation.PING: {},
    Operation.FACTER: {},
    Operation.SERVICE: {"name": "nginx", "start": True, "restart": False, "graceful": False},
    Operation.EXECUTE: {"command": "echo hello"},
    Operation.DEPLOY: {"role": "web", "partial": None, "extra_vars": {}},
    Operation.TASK: {"taskname": "rolling_restart", "tasktype": "rolling", "taskopts": {"service": "nginx"}},
}


def make_job(
    session: Session,
    operation: Operation = Operation.PING,
    hosts: Sequence[str] = ("alpha", "beta"),
    arguments: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RemoteJob:
    """Queue a job."""
    now = clock.now()
    given = {**ARGUMENTS[operation], **(arguments or {})}
    values = {
        "jid": str(uuid4()),
        "operation": operation,
        "arguments": given,
        "unmasked": given,
        "asked_by": "jdoe",
        "created": now,
        "begin_by": now + timedelta(seconds=600),
        "timeout": 60.0,
        **changes,
    }
    job = RemoteJob(**values)
    session.add(job)
    session.flush()
    for position, host in enumerate(hosts):
        held = operation in EXCLUSIVE
        session.add(RemoteJobHost(job_id=job.id, position=position, host=host, operation=operation, held=held))
    session.flush()
    return job

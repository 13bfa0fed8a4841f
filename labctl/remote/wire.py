"""Jobs on hosts, and requests for them, as EXEd's clients know them."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from labctl.errors import Invalid
from labctl.remote.queries import JobFilter, Standing
from labctl.remote.states import JobState, Operation
from labctl.remote.task import Task

#: How a job's state is told (Job state enums): done, running, failure.
STATES: Mapping[JobState, int] = {
    JobState.QUEUED: 1,
    JobState.RUNNING: 1,
    JobState.DONE: 0,
    JobState.FAILED: 2,
    JobState.CANCELLED: 2,
}
NO_TARGETS = "no target(s) given"
BAD_SERVICE = "bad service name or state"
BAD_ROLE = "role should be string types"
BAD_PARTIAL = "partial should be string list or omitted"
BAD_VARS = "extra vars should be an json object or omitted"
#: What a service shall be: whether it runs, and whether it is restarted for that.
SERVICE = {0: (True, False), 1: (False, False), 2: (True, True)}

MOST_TEXT = 1000
#: Linux takes no longer argument of a program.
MOST_COMMAND = 100_000

_TRUE = frozenset(("1", "true", "yes"))
_FALSE = frozenset(("0", "false", "no", ""))


# Answers


def job_to_wire(job: Any, return_data: Any = None) -> dict[str, Any]:
    """Shape a job: the documented keys, and behind them labctl's own."""
    return {
        "state": STATES[job.state],
        "error": job.error,
        "startat": _epoch(job.created),
        "operate": job.operation,
        "operate_args": job.arguments,
        "return_data": {} if return_data is None else return_data,
        "targets": job.hosts,
        "taskid": job.jid,
        "jid": job.jid,
        "status": job.state,
        "asked_by": job.asked_by,
        "address": job.address,
        "started": _epoch(job.started),
        "finished": _epoch(job.finished),
        "timeout": job.timeout,
        "cancelled_by": job.cancelled_by,
        "hosts": dict(zip(job.hosts, job.host_states, strict=True)),
        "last_seq": job.last_seq,
    }


def _epoch(time: datetime | None) -> int | None:
    return None if time is None else math.floor(time.timestamp())


def end_to_wire(end: Standing | None) -> dict[str, Any]:
    """Shape the end of a job; None: it has been deleted."""
    if end is None:
        return {"state": None, "status": "deleted", "error": ""}
    return {"state": STATES[end.state], "status": end.state, "error": end.error}


# Requests


def flag(value: Any, name: str) -> bool:
    """Read whether something is wanted: 1, true or yes in any letter case, or 0, false or no; missing: no."""
    if value is None or isinstance(value, bool):
        return bool(value)
    word = str(value).lower() if isinstance(value, str | int) else None
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise Invalid("must be one of 1, true, yes, 0, false, no", field=name)


def targets_from_wire(data: Mapping[str, Any]) -> list[str]:
    """Read the hosts of a request."""
    lists = [given for given in (data.get("target"), data.get("targets")) if given]
    if not lists or not all(isinstance(given, list) for given in lists):
        raise Invalid(NO_TARGETS)
    given = [target for targets in lists for target in targets]
    if not all(isinstance(target, str) and 0 < len(target) <= MOST_TEXT for target in given):
        raise Invalid(f"{NO_TARGETS}: each of the targets must be text of 1 to {MOST_TEXT} characters")
    return given


def targets_from_query(given: Sequence[str]) -> list[str]:
    """Read the hosts of a query out of all values of its parameters; some may be empty."""
    targets = [target for target in given if target]
    if not targets:
        raise Invalid(NO_TARGETS)
    return targets


def timeout_from_wire(value: Any, longest: float) -> float:
    """Read how long an operation may take, in seconds; missing: as long as is allowed."""
    if value is None:
        return longest
    try:
        seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    if not 0 < seconds <= longest:
        raise Invalid(f"must be a number of seconds above 0, {longest:g} at most", field="timeout")
    return seconds


def arguments_from_wire(operation: Operation, data: Mapping[str, Any]) -> dict[str, Any]:
    """Read what an operation that is no task needs to know; :func:`labctl.remote.executor.mistakes` says the rest."""
    match operation:
        case Operation.SERVICE:
            return _service(data)
        case Operation.EXECUTE:
            return _execute(data)
        case Operation.DEPLOY:
            return _deploy(data)
    return {}


def _service(data: Mapping[str, Any]) -> dict[str, Any]:
    name, state = data.get("name"), data.get("state")
    if not isinstance(name, str) or not name.strip() or type(state) is not int or state not in SERVICE:
        raise Invalid(BAD_SERVICE)
    start, restart = SERVICE[state]
    name = name.strip().lower()
    return {"name": name, "start": start, "restart": restart, "graceful": flag(data.get("graceful"), "graceful")}


def service_state(text: str | None) -> int | None:
    """Read the state of a service out of a query; None if it is none."""
    return int(text) if text in {str(state) for state in SERVICE} else None


def _execute(data: Mapping[str, Any]) -> dict[str, Any]:
    command = data.get("cmd")
    if not isinstance(command, str) or not command.strip():
        raise Invalid("cmd should be string types")
    if len(command.encode()) > MOST_COMMAND:
        raise Invalid(f"must have {MOST_COMMAND} bytes at most", field="cmd")
    return {"command": command}


def _deploy(data: Mapping[str, Any]) -> dict[str, Any]:
    role, partial, variables = data.get("role"), data.get("partial"), data.get("extra_vars")
    if not isinstance(role, str) or not role:
        raise Invalid(BAD_ROLE)
    tags = isinstance(partial, list) and partial and all(isinstance(tag, str) and tag for tag in partial)
    if partial is not None and not tags:
        raise Invalid(BAD_PARTIAL)
    if variables is None:
        variables = {}
    if not isinstance(variables, dict):
        raise Invalid(BAD_VARS)
    return {"role": role, "extra_vars": variables, "partial": partial}


def tasks_to_wire(tasks: Mapping[str, type[Task]]) -> list[dict[str, str]]:
    """List the tasks there are."""
    return [{"name": name, "type": tasks[name].type} for name in sorted(tasks)]


def task_from_wire(data: Mapping[str, Any], tasks: Mapping[str, type[Task]]) -> dict[str, Any]:
    """Read which task is wanted, and have the task say whether its options are right."""
    name, kind, options = data.get("taskname"), data.get("tasktype"), data.get("taskopts")
    if not isinstance(name, str) or name not in tasks:
        raise Invalid(f"there is no such task; there are: {', '.join(sorted(tasks)) or 'none'}", field="taskname")
    if kind is not None and kind != tasks[name].type:
        raise Invalid(f"{name} is of the type {tasks[name].type}", field="tasktype")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise Invalid("should be an json object or omitted", field="taskopts")
    try:
        tasks[name](options)
    except ValueError as error:
        raise Invalid("; ".join(str(error).splitlines()) or "not valid", field="taskopts") from error
    return {"taskname": name, "tasktype": tasks[name].type, "taskopts": options}


def filter_from_query(state: str | None, operation: str | None, host: str | None) -> JobFilter:
    """Read which jobs are wanted; a state is a word, or a number of the protocol."""
    states: Sequence[JobState] = ()
    if state is not None:
        states = [each for each in JobState if state in (each.value, str(STATES[each]))]
        if not states:
            raise Invalid(f"must be 0, 1, 2 or one of {', '.join(JobState)}", field="state")
    if operation is not None and operation not in {*Operation}:
        raise Invalid(f"must be one of {', '.join(Operation)}", field="operate")
    return JobFilter(tuple(states), operation, host)

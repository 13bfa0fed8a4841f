"""Sessions, and what is said about them, as clients know them."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from labctl.errors import Invalid
from labctl.maintenance import fetching
from labctl.maintenance.action import Action
from labctl.maintenance.editing import Edit
from labctl.maintenance.service import Answer, Download, Wanted
from labctl.maintenance.states import ActionType, HostState, InstanceAction
from labctl.maintenance.workflow import Workflow

MOST_HOSTS = 10_000
MOST_ACTIONS = 100
MOST_DOWNLOADS = 100
MOST_TEXT = 255
MOST_URL = 2000
LEAST_SECRET = 16

_TIME = "%Y-%m-%d %H:%M:%S"
_A_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
_REQUIRED = ("hosts", "state", "maintenance_at", "workflow", "metadata")
_KNOWN = (*_REQUIRED, "download", "actions")
_KNOWN_OF_ACTIONS = ("plugin", "type", "metadata")
EDITS = ("retry", "skip", "add_hosts", "drop_hosts", "maintenance_at", "paused")
#: What may be in a change and says nothing there: clients may send the session's body again.
_IDLE = frozenset(("session_id", *_KNOWN)) - frozenset(EDITS)
_TURNS = {kind: number for number, kind in enumerate(ActionType)}
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Plugins:
    """How plugins are found by their names; both raise :class:`Invalid` that says what is wrong."""

    workflow: Callable[[str], Workflow]
    action: Callable[[str, Mapping[str, Any]], Action]


# A session that is asked for


def wanted_from_wire(data: Mapping[str, Any], plugins: Plugins) -> Wanted:
    """Read a request for a session; all that is wrong with it is in its ``mistakes``, by the names of the fields."""
    wrong = [f"{name}: is required" for name in _REQUIRED if name not in data]
    wrong += _strange(data, _KNOWN)
    if not isinstance(data.get("state", ""), str):
        wrong.append("state: must be text")
    metadata = data.get("metadata", {})
    if not isinstance(metadata, dict):
        wrong.append("metadata: must be an object")
        metadata = {}
    hosts = _names(data.get("hosts", []), "hosts", wrong)
    maintenance_at = _time(data["maintenance_at"], "maintenance_at", wrong) if "maintenance_at" in data else None
    actions = _actions(data.get("actions", []), plugins, wrong)
    name, workflow = data.get("workflow", ""), None
    if not isinstance(name, str):
        wrong.append("workflow: must be the name of a workflow")
    elif "workflow" in data:
        try:
            workflow = plugins.workflow(name)
        except Invalid as error:
            wrong.append(f"workflow: {error.message}")
    if workflow is not None:
        wrong += [f"metadata.{line}" for line in workflow.check(metadata)]
    return Wanted(
        workflow=str(name),
        maintenance_at=maintenance_at or _NEVER,
        hosts=hosts,
        metadata=metadata,
        actions=actions,
        downloads=_downloads(data.get("download", []), wrong),
        # Without knowing the workflow, nothing is said of that.
        asks_hosts=workflow is not None and asks_hosts(workflow, metadata, actions),
        mistakes=tuple(wrong),
    )


def asks_hosts(workflow: Workflow, metadata: Mapping[str, Any], actions: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a session asks hosts of the inventory how they are, so that all of its hosts have to be in there."""
    own_check = any(action["type"] == ActionType.CHECK for action in actions)
    return workflow.checks_hosts and not own_check and metadata.get("gate") != "none"


def _strange(data: Mapping[str, Any], known: Sequence[str], where: str = "") -> list[str]:
    return [
        f"{where}{_cut(key)}: there is no such field; known: {', '.join(known)}" for key in data if key not in known
    ]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


def _names(value: Any, field: str, wrong: list[str]) -> tuple[str, ...]:
    """Read distinct names of hosts."""
    if not isinstance(value, list) or not all(isinstance(name, str) and 0 < len(name) <= MOST_TEXT for name in value):
        wrong.append(f"{field}: must be a list of names of hosts")
        return ()
    if twice := sorted({name for name in value if value.count(name) > 1} if len(set(value)) < len(value) else ()):
        wrong.append(f"{field}: named more than once: {', '.join(twice[:10])}")
    if len(value) > MOST_HOSTS:
        wrong.append(f"{field}: must be no more than {MOST_HOSTS}")
        return ()
    return tuple(dict.fromkeys(value))


def _time(value: Any, field: str, wrong: list[str]) -> datetime | None:
    if isinstance(value, str) and _A_TIME.fullmatch(value):
        try:
            return datetime.strptime(value, _TIME).replace(tzinfo=UTC)
        except ValueError:
            pass
    wrong.append(f"{field}: must be a time, YYYY-MM-DD HH:MM:SS, in UTC")
    return None


def _actions(value: Any, plugins: Plugins, wrong: list[str]) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or len(value) > MOST_ACTIONS:
        wrong.append(f"actions: must be a list of objects, {MOST_ACTIONS} at the most")
        return ()
    read = [_action(action, f"actions.{number}", plugins, wrong) for number, action in enumerate(value)]
    return tuple(action for action in read if action is not None)


def _action(value: Any, where: str, plugins: Plugins, wrong: list[str]) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        wrong.append(f"{where}: must be an object")
        return None
    wrong += _strange(value, _KNOWN_OF_ACTIONS, f"{where}.")
    name, kind, metadata = value.get("plugin"), value.get("type"), value.get("metadata") or {}
    if kind not in list(ActionType):
        wrong.append(f"{where}.type: must be one of {', '.join(ActionType)}")
        kind = None
    if not isinstance(metadata, dict):
        wrong.append(f"{where}.metadata: must be an object")
        metadata = None
    if not isinstance(name, str):
        wrong.append(f"{where}.plugin: must be the name of an action")
        return None
    try:
        action = plugins.action(name, metadata or {}) if metadata is not None else None
    except Invalid as error:
        field = "metadata" if isinstance(error.__cause__, ValueError) else "plugin"
        wrong += [f"{where}.{field}: {line}" for line in error.message.splitlines()]
        return None
    if action is not None and kind is not None and kind not in action.types:
        wrong.append(f"{where}.type: {name} may only be {', '.join(sorted(action.types))}")
    return {"plugin": name, "type": kind, "metadata": metadata} if kind is not None else None


def _downloads(value: Any, wrong: list[str]) -> tuple[Download, ...]:
    if not isinstance(value, list) or len(value) > MOST_DOWNLOADS:
        wrong.append(f"download: must be a list of URLs, {MOST_DOWNLOADS} at the most")
        return ()
    read: dict[str, Download] = {}
    for number, text in enumerate(value):
        field = f"download.{number}"
        try:
            one = Download(*_url(text))
        except ValueError as error:
            wrong.append(f"{field}: {error}")
            continue
        if one.url in read:
            wrong.append(f"{field}: is there twice")
        read[one.url] = one
    return tuple(read.values())


def _url(value: Any) -> tuple[str, str | None]:
    """Read a URL of the web, and the checksum behind it; raises ValueError."""
    if not isinstance(value, str) or len(value) > MOST_URL:
        raise ValueError(f"must be a URL of {MOST_URL} characters at the most")
    return fetching.split(value)


# What is said about one that there is


def edit_from_wire(data: Mapping[str, Any]) -> Edit:
    """Read what is to be changed; raises :class:`Invalid` that names every field that is wrong."""
    wrong = _strange({key: value for key, value in data.items() if key not in _IDLE}, EDITS)
    paused = data.get("paused")
    if "paused" in data and not isinstance(paused, bool):
        wrong.append("paused: must be true or false")
        paused = None
    hosts = {}
    for field in ("retry", "skip"):
        given = data.get(field, [])
        hosts[field] = _names([given] if isinstance(given, str) else given, field, wrong)
    for field in ("add_hosts", "drop_hosts"):
        hosts[field] = _names(data.get(field, []), field, wrong)
    maintenance_at = _time(data["maintenance_at"], "maintenance_at", wrong) if "maintenance_at" in data else None
    named = [name for names in hosts.values() for name in names]
    if len(named) > len(set(named)):
        wrong.append("retry, skip, add_hosts, drop_hosts: a host may be in one of them only")
    if wrong:
        raise Invalid("; ".join(wrong))
    return Edit(maintenance_at=maintenance_at, paused=paused, **hosts)


def answer_from_wire(data: Mapping[str, Any]) -> Answer:
    """Read what a project says; raises :class:`Invalid`. What clients send beside that is theirs."""
    text = data.get("state")
    if not isinstance(text, str) or not 0 < len(text) <= MOST_TEXT:
        raise Invalid("must be ACK_ or NACK_ and the state that it is about", field="state")
    actions = data.get("instance_actions") or {}
    if not isinstance(actions, dict):
        raise Invalid("must be an object from instances to actions", field="instance_actions")
    wrong = [instance for instance, action in actions.items() if action not in list(InstanceAction)]
    if wrong:
        raise Invalid(f"must be one of {', '.join(InstanceAction)}", field=f"instance_actions.{_cut(wrong[0])}")
    word, _, state = text.partition("_")
    return Answer(text, state if word in ("ACK", "NACK") else "", actions)


def subscription_from_wire(data: Mapping[str, Any]) -> tuple[str, str]:
    """Read where a project wants to be told, and the secret that notices are signed with.

    Raises :class:`Invalid` that names every field that is wrong.
    """
    wrong = _strange(data, ("url", "secret"))
    try:
        _url(data.get("url"))
        if "#" in data["url"]:
            wrong.append("url: must hold no #")
    except ValueError as error:
        wrong.append(f"url: {error}")
    secret = data.get("secret")
    if not isinstance(secret, str) or not LEAST_SECRET <= len(secret) <= MOST_TEXT:
        wrong.append(f"secret: must be text of {LEAST_SECRET} to {MOST_TEXT} characters")
    if wrong:
        raise Invalid("; ".join(wrong))
    return str(data["url"]), str(secret)


# Answers


def time_to_wire(time: datetime | str | None) -> str | None:
    """Write a time as ``YYYY-MM-DD HH:MM:SS`` in UTC; text is a time as JSON of the database has it."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return None if time is None else time.astimezone(UTC).strftime(_TIME)


def sessions_to_wire(ids: Sequence[str]) -> dict[str, Any]:
    """Shape the list of sessions: one key is that of the documentation, the other that of the code there was."""
    return {"session_id": ids, "sessions": ids}


def session_to_wire(found: Any, jobs_url: str) -> dict[str, Any]:
    """Shape all that is known of a session; ``jobs_url`` is where jobs on hosts can be asked for."""
    actions, steps = defaultdict(list), defaultdict(list)
    for action in sorted(found.all_actions, key=_turn):
        actions[action["host"]].append(_action_to_wire(action, jobs_url))
    for step in found.steps:
        steps[step["host"] or ""].append(_step_to_wire(step))
    counts = dict.fromkeys(HostState, 0)
    for host in found.hosts:
        counts[host["state"]] += 1
    return {
        "session_id": found.id,
        "state": found.state,
        "since": time_to_wire(found.entered),
        "reason": found.reason,
        "failed_in": found.failed_in,
        "paused": found.paused,
        "waits_for": found.waits_for,
        "until": time_to_wire(found.waits_until),
        "workflow": found.workflow,
        "maintenance_at": time_to_wire(found.maintenance_at),
        "metadata": found.hints,
        "created": time_to_wire(found.created),
        "created_by": found.created_by,
        "finished": time_to_wire(found.finished),
        "progress": {"hosts": len(found.hosts), **counts},
        "hosts": [_host_to_wire(each, actions[each["host"]], steps[each["host"]]) for each in found.hosts],
        "actions": actions[""],
        "download": [_download_to_wire(each) for each in found.downloads],
        "replies": [_with_times(each, "asked", "reply_by", "answered") for each in found.replies],
        "moves": [_with_times(each, "begun", "finished") for each in found.moves],
        "steps": steps[""],
    }


def _host_to_wire(host: Mapping[str, Any], actions: Sequence[Any], steps: Sequence[Any]) -> dict[str, Any]:
    return {
        "host": host["host"],
        "state": host["state"],
        "kinds": host["kinds"],
        "out_of_service": host["cordoned"],
        "reason": host["reason"],
        "attempt": host["attempt"],
        "started": time_to_wire(host["started"]),
        "finished": time_to_wire(host["finished"]),
        "actions": actions,
        "steps": steps,
    }


def _turn(action: Mapping[str, Any]) -> tuple[int, int, int]:
    """Sort actions as they run: those of a host all again with each attempt, those of the session one by one."""
    attempt = action["attempt"]
    return attempt if action["host"] else 0, _TURNS[ActionType(action["type"])], attempt


def _action_to_wire(action: Mapping[str, Any], jobs_url: str) -> dict[str, Any]:
    jobs = [
        {**job, **({"ended": time_to_wire(job["ended"])} if "ended" in job else {}), "href": f"{jobs_url}/{job['jid']}"}
        for job in action["jobs"]
    ]
    shown = {key: action[key] for key in ("plugin", "type", "state", "reason", "attempt")}
    times = {key: time_to_wire(action[key]) for key in ("started", "deadline", "finished")}
    return {**shown, **times, "jobs": jobs}


def _download_to_wire(download: Mapping[str, Any]) -> dict[str, Any]:
    return _with_times({**download, "url": fetching.shown(download["url"])}, "finished")


def _with_times(row: Mapping[str, Any], *times: str) -> dict[str, Any]:
    return {**row, **{key: time_to_wire(row[key]) for key in times}}


def _step_to_wire(step: Mapping[str, Any]) -> dict[str, Any]:
    return {"at": time_to_wire(step["at"]), "state": step["state"], "text": step["text"]}


def subscription_to_wire(found: Mapping[str, Any]) -> dict[str, Any]:
    """Shape where a project is told."""
    return _with_times(found, "changed")

"""VMs, and requests for them, as vmpooler's clients know them."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labctl.errors import Invalid, NotFound
from labctl.vms.catalog import Asked
from labctl.vms.on_demand import MOST, Request
from labctl.vms.service import Change, Host
from labctl.vms.states import RequestState, VMState

#: The largest disk, in GB.
MOST_GIGABYTES = 4096
#: The longest lifetime where no limit is set, in hours: ten years.
MOST_HOURS = 87_600
MOST_TEXT = 1000

_NUMBER = re.compile(r"[0-9]{1,9}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: How a VM's state is told; clients know no others.
_STATES = {
    VMState.REQUESTED: "pending",
    VMState.PENDING: "pending",
    VMState.READY: "ready",
    VMState.RUNNING: "running",
    VMState.COMPLETED: "running",
    VMState.DESTROYED: "destroyed",
}


@dataclass(frozen=True)
class Version:
    """What the versions of the protocol differ in."""

    name: str
    #: Whether host names are told with their domains; if not, the domain is told beside them.
    full_names: bool = False


V1 = Version("v1")
V2 = Version("v2", full_names=True)
V3 = Version("v3", full_names=True)


def host_from_wire(segment: str) -> Host:
    """Read a host name, with its domain or without."""
    name, _, domain = segment.lower().partition(".")
    return Host(name, domain)


def full_name(name: str, domain: str) -> str:
    """Write a host name with its domain, if it has one."""
    return f"{name}.{domain}" if domain else name


def whole(value: Any, least: int, most: int) -> int | None:
    """Read a whole number that may come as text; None if it is none, or too small or large."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None


# Asking for VMs


def counts_from_wire(data: Mapping[str, Any]) -> dict[str, int]:
    """Read how many VMs of what are wanted; raises :class:`Invalid`."""
    counts = {}
    for name, value in data.items():
        count = whole(value, 0, MOST)
        if count is None:
            raise Invalid(f"must be a whole number from 0 to {MOST}", field=_cut(name))
        counts[name] = count
    if not counts:
        raise Invalid('must name pools, such as {"POOL": "1"}', field="body")
    if sum(counts.values()) > MOST:
        raise Invalid(f"must ask for no more than {MOST} VMs", field="body")
    return counts


def counts_from_path(segment: str) -> dict[str, int]:
    """Read ``A+B+B``: one VM for each time a name stands there."""
    counts: dict[str, int] = {}
    for name in segment.split("+"):
        counts[name] = counts.get(name, 0) + 1
    return counts_from_wire(counts)


def no_pools(names: Sequence[str]) -> str:
    """Say that names that are asked for are no pool's."""
    return f"there is no pool {', '.join(_cut(name) for name in names[:10])}"


def given_to_wire(given: Mapping[str, Sequence[Any]], domain: str, version: Version) -> dict[str, Any]:
    """Shape VMs that were given out, by the names they were asked for: one as text, several as a list."""
    hosts, domain = _hosts(given, domain, version)
    answer: dict[str, Any] = {"ok": True}
    for name, found in hosts.items():
        answer[name] = {"hostname": found[0] if len(found) == 1 else found}
    return {**answer, "domain": domain} if domain else answer


def _hosts(given: Mapping[str, Sequence[Any]], domain: str, version: Version) -> tuple[dict[str, list[str]], str]:
    """Write the host names of VMs, and the domain to be told beside them; ``domain`` if there are none.

    One domain stands for all of them; where they have several, each is told with its own.
    """
    domains = {vm.domain for vms in given.values() for vm in vms} or {domain}
    full = version.full_names or len(domains) > 1
    hosts = {name: [full_name(vm.name, vm.domain) if full else vm.name for vm in vms] for name, vms in given.items()}
    return hosts, "" if full else domains.pop()


# One VM


def vm_to_wire(vm: Any, now: datetime, lifetime: int, version: Version) -> dict[str, Any]:
    """Shape a VM; ``lifetime`` is what one gets that nobody has yet."""
    shown: dict[str, Any] = {"template": vm.pool, "lifetime": vm.lifetime or lifetime}
    if vm.checkout:
        shown["running"] = _hours((vm.destroyed or now) - vm.checkout)
        if not vm.destroyed and vm.expires:
            shown["remaining"] = max(0.0, _hours(vm.expires - now))
            shown["start_time"], shown["end_time"] = _time(vm.checkout), _time(vm.expires)
    shown["state"] = _STATES[VMState(vm.state)]
    shown["ip"] = vm.ip or ""
    if vm.host:
        shown["host"] = vm.host
    if vm.tags:
        shown["tags"] = vm.tags
    if vm.snapshots:
        shown["snapshots"] = vm.snapshots
    if vm.disks:
        shown["disk"] = [disk_to_wire(size) for size in vm.disks]
    # These two are labctl's own.
    if vm.failed:
        shown["failed"] = vm.failed
    if vm.reason:
        shown["reason"] = vm.reason
    if version.full_names:
        shown["fqdn"] = full_name(vm.name, vm.domain)
    elif vm.domain:
        shown["domain"] = vm.domain
    return {"ok": True, vm.name: shown}


def _hours(duration: Any) -> float:
    return round(duration.total_seconds() / 3600, 2)


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")


def disk_to_wire(gigabytes: int) -> str:
    """Write the size of a disk."""
    return f"+{gigabytes}gb"


def gigabytes_from_wire(segment: str, version: Version) -> int:
    """Read the size of a disk; raises what the versions have for one that is none."""
    gigabytes = whole(segment, 1, MOST_GIGABYTES)
    if gigabytes is None:
        message = f"must be a whole number from 1 to {MOST_GIGABYTES}"
        raise Invalid(message, field="size") if version == V3 else NotFound(f"size: {message}")
    return gigabytes


@dataclass(frozen=True)
class Rules:
    """What users may set: the tags there are (None: any), what is kept of their values, and lifetimes below what."""

    tags: Collection[str] | None = None
    filters: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    #: Hours; 0: no limit.
    lifetime: int = 0


def change_from_wire(data: Mapping[str, Any], rules: Rules) -> tuple[Change, list[str]]:
    """Read what is to change in a VM, and what is wrong with it, in the words that clients show."""
    wrong: list[str] = []
    lifetime = None
    tags: dict[str, str] = {}
    for key, value in data.items():
        if key == "lifetime":
            lifetime = _lifetime(value, rules.lifetime or MOST_HOURS, wrong)
        elif key == "tags":
            tags = _tags(value, rules, wrong)
        else:
            wrong.append(f"Unknown argument {_cut(key)}.")
    return Change(lifetime, tags), wrong


def _lifetime(value: Any, limit: int, wrong: list[str]) -> int | None:
    hours = whole(value, 1, 10**9)
    if hours is None:
        wrong.append(f"You provided a lifetime ({_cut(value)}) but you must provide a positive number.")
    elif hours >= limit:
        wrong.append(f"You provided a lifetime ({hours}) that exceeds the configured maximum of {limit}.")
    return hours


def _tags(value: Any, rules: Rules, wrong: list[str]) -> dict[str, str]:
    if not isinstance(value, dict):
        wrong.append(f"You provided tags ({_cut(value)}) as something other than a hash.")
        return {}
    if rules.tags is not None and (unknown := [tag for tag in value if tag not in rules.tags]):
        wrong.append(f"You provided unsupported tags ({_cut(', '.join(unknown))}).")
    tags = {}
    for tag, given in value.items():
        if isinstance(given, dict | list) or len(str(given)) > MOST_TEXT or not 1 <= len(tag) <= MOST_TEXT:
            wrong.append(f"You provided a tag ({_cut(tag)}) that is not text of 1 to {MOST_TEXT} characters.")
        elif given is not None and (text := _kept(rules.filters.get(tag), _text(given))):
            tags[tag] = text
    return tags


def _text(value: Any) -> str:
    """Give a text as it is, and everything else as a client writes it in JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kept(pattern: re.Pattern[str] | None, text: str) -> str:
    """Give what a filter captures of a value; all of it where the filter does not fit."""
    match = pattern.search(text) if pattern else None
    return "".join(part or "" for part in match.groups()) if match and match.groups() else text


def _cut(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


# Requests for VMs that are yet to be made


def request_from_wire(data: Mapping[str, Any]) -> tuple[dict[str, int], str]:
    """Read how many VMs of what are to be made, and the id that the client has chosen, empty if it has not."""
    given = data.get("request_id", "")
    if given != "" and not (isinstance(given, str) and _REQUEST_ID.fullmatch(given)):
        raise Invalid("must be 1 to 128 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'", field="request_id")
    return counts_from_wire({name: value for name, value in data.items() if name != "request_id"}), given


def request_to_wire(request: Request, domain: str, version: Version) -> tuple[int, dict[str, Any]]:
    """Shape a request, with the status it is answered with: 202 while its VMs are being made."""
    answer: dict[str, Any] = {"ok": True, "request_id": request.id, "ready": request.state == RequestState.READY}
    if request.state == RequestState.WAITING:
        for name, asked in request.wanted.items():
            there = len(request.vms[name])
            answer[name] = {"ready": str(there), "pending": str(max(0, _total(asked) - there))}
        return 202, answer
    if request.state == RequestState.READY:
        hosts, domain = _hosts(request.vms, domain, version)
        answer |= {name: {"hostname": found} for name, found in hosts.items()}
        return 200, {**answer, "domain": domain} if domain else answer
    return 200, {**answer, "message": request.message}


def _total(asked: Sequence[Asked]) -> int:
    return sum(each.count for each in asked)

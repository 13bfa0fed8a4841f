"""Machines as paddles' clients know them: nodes."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from labctl import times
from labctl.machines.service import Wanted

#: The keys of a node, in their order.
NODE_KEYS = (
    "name",
    "description",
    "up",
    "machine_type",
    "is_vm",
    "vm_host",
    "os_type",
    "os_version",
    "arch",
    "locked",
    "locked_since",
    "locked_by",
    "mac_address",
    "ssh_pub_key",
)
#: What the answer to locking and unlocking holds.
LOCK_KEYS = ("name", "locked", "locked_by", "machine_type", "is_vm")
#: The largest number of machines that one request may lock.
MOST = 10_000


def _time_from_wire(value: Any) -> Any:
    """Read ``YYYY-MM-DD HH:MM:SS[.ffffff]`` in UTC."""
    for form in ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S"):
        try:
            return None if value is None else datetime.strptime(value, form).replace(tzinfo=UTC)
        except (TypeError, ValueError):
            pass
    raise PydanticCustomError("time", "must be a time, YYYY-MM-DD HH:MM:SS, in UTC")


def _whole(value: Any) -> Any:
    """Take 2.0 for 2: some clients calculate what they ask for."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Short = Annotated[str, Field(max_length=255)]
Time = Annotated[datetime | None, BeforeValidator(_time_from_wire)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST), BeforeValidator(_whole)]


class Input(BaseModel):
    """What all inputs have in common: a number may stand for a string, and unknown keys are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    def sent(self) -> dict[str, Any]:
        """Give the keys that were sent; the others are to stay as they are."""
        return self.model_dump(exclude_unset=True)


class LockInput(Input):
    """A request to lock or unlock one machine."""

    locked: StrictBool
    locked_by: Short | None = None
    description: str | None = None


class MachineInput(Input):
    """What a client may say about a machine."""

    arch: Short | None = None
    description: str | None = None
    is_vm: StrictBool = False
    locked: StrictBool = False
    locked_by: Short | None = None
    locked_since: Time = None
    mac_address: Short | None = None
    machine_type: Annotated[Short, Field(pattern=r"^[^|]*$")] | None = None
    os_type: Short | None = None
    os_version: Short | None = None
    ssh_pub_key: str | None = None
    up: StrictBool = False
    vm_host: Short | None = None


class NewMachineInput(MachineInput):
    """A machine to be added."""

    name: Short


class LockManyInput(Input):
    """A request for any machines of a type; teuthology's messages for what is missing."""

    count: Count
    locked_by: Annotated[Short, Field(min_length=1)]
    machine_type: Short
    description: str | None
    os_type: Short | None = None
    os_version: Short | None = None
    arch: Short | None = None

    @model_validator(mode="before")
    @classmethod
    def _explain(cls, data: dict[str, Any]) -> dict[str, Any]:
        missing = [key for key in ("count", "locked_by", "machine_type", "description") if key not in data]
        if missing:
            raise PydanticCustomError("missing", "must pass these fields: {names}", {"names": ", ".join(missing)})
        count = data["count"]
        if isinstance(count, int | float) and not isinstance(count, bool) and count < 1:
            raise PydanticCustomError("count", "cannot lock less than 1 node")
        machine_type = data["machine_type"]
        if isinstance(machine_type, str | None) and not types_from_wire(machine_type):
            raise PydanticCustomError("machine_type", "must specify machine_type")
        return data


class UnlockManyInput(Input):
    """A request to unlock machines by name; nothing else may be in it."""

    model_config = ConfigDict(extra="forbid")

    names: Annotated[list[StrictStr], Field(min_length=1)]
    locked_by: Annotated[Short, Field(min_length=1)]


def types_from_wire(value: str | None) -> list[str] | None:
    """Read ``a|b``, either of several machine types; None if there is none in it."""
    return [name for name in (value or "").split("|") if name] or None


def wanted_from_wire(given: LockManyInput) -> Wanted:
    """Turn a validated request into what the service understands."""
    return Wanted(
        count=given.count,
        machine_types=types_from_wire(given.machine_type) or [],
        locked_by=given.locked_by,
        description=given.description,
        os_type=given.os_type or None,
        os_version=given.os_version or None,
        arch=given.arch or None,
    )


def node_to_wire(machine: Mapping[Any, Any]) -> dict[str, Any]:
    """Shape a machine."""
    node = {key: machine[key] for key in NODE_KEYS}
    node["locked_since"] = times.to_wire(machine["locked_since"])
    return node


def lock_to_wire(machine: Mapping[Any, Any]) -> dict[str, Any]:
    """Shape the answer to locking and unlocking."""
    return {key: machine[key] for key in LOCK_KEYS}


def job_stats_to_wire(counts: list[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    """Shape counts of (machine, status, jobs) as objects in objects, the machine with the fewest jobs first."""
    stats: dict[str, dict[str, int]] = {}
    for name, status, count in sorted(counts):
        stats.setdefault(name, {})[status] = count
    return dict(sorted(stats.items(), key=lambda item: sum(item[1].values())))

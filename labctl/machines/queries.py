"""Reading machines: lists come as JSON text that is passed through, never as objects."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select

from labctl.db import Reader, table
from labctl.machines.models import Machine

_machines = table(Machine)
#: What a node on the wire is made of.
NODE = (
    *(_machines.c[column] for column in ("name", "description", "up", "machine_type", "is_vm", "vm_host", "os_type")),
    *(_machines.c[column] for column in ("os_version", "arch", "locked", "locked_since", "locked_by")),
    *(_machines.c[column] for column in ("mac_address", "ssh_pub_key")),
)

# Built once: putting a statement together costs as much as sending it.
_ONE = select(_machines.c.document).where(_machines.c.name == bindparam("name"))
_types = select(func.min(_machines.c.machine_type).label("value")).cte("types", recursive=True)
_following = select(func.min(_machines.c.machine_type)).where(_machines.c.machine_type > _types.c.value)
_types = _types.union_all(select(_following.scalar_subquery()).where(_types.c.value.is_not(None)))
_TYPES = select(_types.c.value).where(_types.c.value.is_not(None))


def machines(session: Reader, chosen: Mapping[Any, Any], count: int | None = None) -> Sequence[str]:
    """List the documents of machines by name.

    ``chosen`` maps columns to the value, or the list of values, that they must have.
    """
    query = select(_machines.c.document).order_by(_machines.c.name).limit(count)
    for name, value in chosen.items():
        column = _machines.c[name]
        query = query.where(column.in_(value) if isinstance(value, list) else column == value)
    return session.scalars(query).all()


def machine(session: Reader, name: str) -> str | None:
    """Give the document of one machine, None if there is none of that name."""
    document: str | None = session.scalar(_ONE, {"name": name})
    return document


def machine_types(session: Reader) -> list[str]:
    """List the types that occur, sorted; it costs as much as there are types, however many machines."""
    return sorted(session.scalars(_TYPES))

"""The verbs of machines: adding, changing, removing; locking and unlocking them, one or many.

Rows are locked FOR NO KEY UPDATE: a report of a job that ran on a machine, which refers to its row, goes on meanwhile.
"""

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import ARRAY, Integer, Text, any_, bindparam, case, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.errors import Conflict, Exhausted, Forbidden, Invalid, NotFound, Unavailable
from labctl.events.service import record, record_all
from labctl.machines.models import Machine
from labctl.machines.queries import NODE

#: For how long :func:`lock_many` tries to get machines that are free, but held by others at that moment, in seconds.
PATIENCE = 1.0

#: No machine could be found under these words, which mean something else in a URL.
RESERVED = frozenset(("lock_many", "unlock_many", "machine_types", "job_stats", ".", ".."))
#: What anybody may change at any time.
_PLAIN = frozenset(
    ("description", "up", "machine_type", "is_vm", "os_type", "os_version", "arch", "mac_address", "ssh_pub_key")
)

# Built once: putting a statement together costs as much as sending it.
_machines = table(Machine)
_names = bindparam("names", type_=ARRAY(Text))
_HOLD = select(_machines).where(_machines.c.name == bindparam("name")).with_for_update(key_share=True)
_FIND = select(_machines.c.id).where(_machines.c.name == bindparam("name"))
_FIND_HOST = _FIND.with_for_update(read=True, key_share=True)
_CHANGE = update(_machines).where(_machines.c.id == bindparam("machine"))
_ADD = insert(_machines).on_conflict_do_nothing(index_elements=["name"]).returning(_machines.c.id)
_CORDON = (
    update(_machines)
    .where(_machines.c.name == bindparam("this_name"), _machines.c.cordoned.is_distinct_from(bindparam("new_reason")))
    .values(
        cordoned=bindparam("new_reason"),
        # What was taken for the old reason is for the new one from now on.
        locked_by=case(
            (_machines.c.locked_by == _machines.c.cordoned, bindparam("new_reason")), else_=_machines.c.locked_by
        ),
    )
    .returning(_machines.c.id)
)
_TAKE_CORDONED = (
    update(_machines)
    .where(_machines.c.name == bindparam("this_name"), ~_machines.c.locked, _machines.c.cordoned.is_not(None))
    .values(
        locked=True,
        locked_by=_machines.c.cordoned,
        locked_since=bindparam("new_since"),
    )
    .returning(_machines.c.cordoned, _machines.c.description)
)
_REMOVE = delete(_machines).where(_machines.c.name == bindparam("name"), ~_machines.c.locked).returning(_machines.c.id)

_FIND_ALL = (
    select(_machines.c.name, _machines.c.id)
    .where(_machines.c.name == any_(_names))
    .order_by(_machines.c.id)
    .with_for_update(read=True, key_share=True)
)
_ADD_ALL = (
    insert(_machines)
    .from_select(["name", "machine_type"], select(func.unnest(_names), bindparam("of_type", type_=Text)))
    .on_conflict_do_nothing(index_elements=["name"])
    .returning(_machines.c.name, _machines.c.id)
)

_HOLD_ALL = (
    select(_machines).where(_machines.c.name == any_(_names)).order_by(_machines.c.id).with_for_update(key_share=True)
)
_UNLOCK_ALL = (
    update(_machines)
    .where(_machines.c.id == any_(bindparam("machines", type_=ARRAY(Integer))))
    .values(locked=False, locked_by=None, locked_since=None)
)


def _as_wanted(column: str) -> Any:
    wanted = bindparam(f"wanted_{column}", type_=Text)
    return or_(wanted.is_(None), _machines.c[column] == wanted)


_free = (
    _machines.c.up,
    ~_machines.c.locked,
    _machines.c.cordoned.is_(None),
    _machines.c.machine_type == any_(bindparam("wanted_machine_types", type_=ARRAY(Text))),
    *(_as_wanted(name) for name in ("os_type", "os_version", "arch")),
)
_COUNT_FREE = select(func.count()).where(*_free)
_count = bindparam("wanted_count", type_=Integer)
_picked = (
    select(_machines.c.id)
    .where(*_free)
    .order_by(_machines.c.id)
    .limit(_count)
    .with_for_update(skip_locked=True, key_share=True)
    .cte("picked")
)
_LOCK_FREE = (
    update(_machines)
    .where(
        _machines.c.id == _picked.c.id,
        select(func.count()).select_from(_picked).scalar_subquery() == _count,
    )
    .values(
        locked=True,
        locked_by=bindparam("wanted_locked_by"),
        locked_since=bindparam("now"),
        description=bindparam("wanted_description"),
    )
    .returning(*NODE)
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which machines :func:`lock_many` is to find, and for whom and what; None: whichever."""

    count: int
    machine_types: Sequence[str]
    locked_by: str
    description: str | None
    os_type: str | None = None
    os_version: str | None = None
    arch: str | None = None


# Who tries again does so alone, or two who want nearly everything would take it from each other for ever.
_BE_ALONE = select(func.pg_try_advisory_xact_lock(int(Lock.LOCK_MANY), 0))


class _TooFew(Exception):
    """Undoes an attempt of :func:`lock_many`."""


def find(session: Reader, name: str) -> int:
    """Give a machine's id; raises :class:`NotFound`."""
    found: int | None = session.execute(_FIND, {"name": name}).scalar()
    if found is None:
        raise NotFound("node not found")
    return found


def add(session: Session, name: str, given: Mapping[Any, Any]) -> None:
    """Add a machine, which may come locked; raises :class:`Invalid`, or :class:`Conflict` for a name that is taken."""
    _check_name(name)
    values = {"name": name, **{key: value for key, value in given.items() if key in _PLAIN}}
    if given.get("locked"):
        if not given.get("locked_by"):
            raise Invalid("Cannot lock without specifying locked_by")
        # It may come out of another lab's list, locked for long.
        since = given.get("locked_since") or clock.now()
        values |= {"locked": True, "locked_by": given["locked_by"], "locked_since": since}
    for key in ("locked_by", "locked_since"):
        if given.get(key) and not given.get("locked"):
            raise Invalid("must be null for a machine that is not locked", field=key)
    if given.get("vm_host") is not None:
        _check_host(session.execute(_FIND_HOST, {"name": given["vm_host"]}).scalar())
        values["vm_host"] = given["vm_host"]
    if session.execute(_ADD, values).scalar() is None:
        raise Conflict(f"Node with name {name} already exists")
    record(session, "machine.added", f"machines/{name}", **_reason(values))


def change(session: Session, name: str, given: Mapping[Any, Any]) -> None:
    """Change what is given and nothing else; locks change by their rules only.

    Raises :class:`NotFound`, :class:`Invalid` or :class:`Forbidden`.
    """
    # The host before its VM, as who removes the host does.
    vm_host = given.get("vm_host")
    host = None if vm_host is None else session.execute(_FIND_HOST, {"name": vm_host}).scalar()
    machine = _hold(session, name, "attempted to update a non-existent node")
    values = {key: value for key, value in given.items() if key in _PLAIN}
    if "vm_host" in given:
        values["vm_host"] = vm_host
        if vm_host is not None:
            _check_host(host, machine["id"])
    lock = _lock_change(machine, given)
    values = {key: value for key, value in values.items() if key not in lock and value != machine[key]}
    if not lock and not values:
        return
    session.execute(_CHANGE, {"machine": machine["id"], **lock, **values})
    happened = [_lock_event(name, lock, given["locked_by"])] if lock else []
    if values:
        changed = {key: given[key] for key in values}
        happened.append(("machine.updated", f"machines/{name}", changed))
    record_all(session, happened)


def remove(session: Session, name: str) -> None:
    """Remove a machine; raises :class:`NotFound`, or :class:`Forbidden` if it is locked."""
    if session.execute(_REMOVE, {"name": name}).first() is None:
        if session.execute(_FIND, {"name": name}).first() is None:
            raise NotFound("attempted to delete a non-existent node")
        raise Forbidden("Cannot delete a locked node")
    record(session, "machine.removed", f"machines/{name}")


def change_lock(session: Session, name: str, wanted: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Lock or unlock a machine as ``wanted`` says (``locked``, ``locked_by``, perhaps ``description``), and give it.

    A lock takes the description with it if there is one in ``wanted``, even null: a description that an earlier lock
    left would look like the reason of this one. Raises :class:`NotFound`, :class:`Invalid` or :class:`Forbidden`.
    """
    machine = _hold(session, name, "node not found")
    lock = _lock_rules(machine, wanted)
    if not lock:
        return machine
    session.execute(_CHANGE, {"machine": machine["id"], **lock})
    kind, subject, data = _lock_event(name, lock, wanted["locked_by"])
    record(session, kind, subject, **data)
    return {**machine, **lock}


def lock_many(session: Session, wanted: Wanted) -> Sequence[Mapping[Any, Any]]:
    """Lock machines that are up and not locked, as many as are wanted or none, and give them by name.

    Machines that somebody else holds at that moment are passed over, so that nobody waits for anybody; where that
    leaves too few, what was taken is given back and tried again for a while. Raises :class:`Exhausted` when too few
    are free, :class:`Unavailable` when enough are free and somebody holds them all the while.
    """
    values = {f"wanted_{name}": value for name, value in asdict(wanted).items()}
    deadline = time.monotonic() + PATIENCE
    machines = _take(session, values)
    while not machines:
        free = session.execute(_COUNT_FREE, values).scalar_one()
        if free < wanted.count:
            raise Exhausted(f"only {free} nodes available")
        if time.monotonic() > deadline:
            raise Unavailable("others are locking these machines at the moment", retry_after=1)
        time.sleep(random.uniform(0.002, 0.02))  # noqa: S311
        machines = _take(session, values, alone=True)
    record_all(session, [_lock_event(machine["name"], machine, wanted.locked_by) for machine in machines])
    return machines


def _take(session: Session, values: Mapping[Any, Any], *, alone: bool = False) -> Sequence[Mapping[Any, Any]]:
    with suppress(_TooFew), session.begin_nested():
        if alone and not session.execute(_BE_ALONE).scalar():
            raise _TooFew
        machines = session.execute(_LOCK_FREE, {**values, "now": clock.now()}).mappings().all()
        if len(machines) == values["wanted_count"]:
            return sorted(machines, key=itemgetter("name"))
        # Whatever was picked is held until the savepoint is undone, and so is the right to be alone.
        raise _TooFew
    return []


def unlock_many(session: Session, names: Sequence[str], locked_by: str) -> Sequence[Mapping[Any, Any]]:
    """Unlock machines, all or none, and give them by name; raises :class:`Invalid` or :class:`Forbidden`."""
    # In the order of their ids, so that two of these never hold what the other needs.
    machines = session.execute(_HOLD_ALL, {"names": list(set(names))}).mappings().all()
    if len(machines) < len(set(names)):
        raise Invalid("Could not find all nodes!")
    wanted = {"locked": False, "locked_by": locked_by}
    unlocked = [{**machine, **_lock_rules(machine, wanted)} for machine in machines]
    session.execute(_UNLOCK_ALL, {"machines": [machine["id"] for machine in machines]})
    record_all(session, [_lock_event(machine["name"], machine, locked_by) for machine in unlocked])
    return sorted(unlocked, key=itemgetter("name"))


def cordon(session: Session, name: str, reason: str) -> bool:
    """See to it that nobody can lock a machine any more, whose lock stays; tells whether there is such a machine."""
    if session.execute(_CORDON, {"this_name": name, "new_reason": reason}).first() is not None:
        record(session, "machine.cordoned", f"machines/{name}", reason=reason)
        return True
    return session.execute(_FIND, {"name": name}).first() is not None


def take(session: Session, name: str) -> bool:
    """Lock a cordoned machine in the name of the reason; tells whether that is so now, which it is not while in use."""
    taken = session.execute(_TAKE_CORDONED, {"this_name": name, "new_since": clock.now()}).first()
    if taken is not None:
        record(session, "machine.locked", f"machines/{name}", locked_by=taken.cordoned, description=taken.description)
        return True
    found = session.execute(_HOLD, {"name": name}).mappings().first()
    return found is None or found["locked_by"] == found["cordoned"]


def uncordon(session: Session, name: str) -> None:
    """Let a machine be locked again, and unlock it if :func:`take` has locked it."""
    machine = session.execute(_HOLD, {"name": name}).mappings().first()
    if machine is None or machine["cordoned"] is None:
        return
    mine = machine["locked_by"] == machine["cordoned"]
    free = {"locked": False, "locked_by": None, "locked_since": None} if mine else {}
    session.execute(_CHANGE, {"machine": machine["id"], "cordoned": None, **free})
    if mine:
        record(session, "machine.unlocked", f"machines/{name}", **_reason(machine))
    record(session, "machine.uncordoned", f"machines/{name}", reason=machine["cordoned"])


def ensure(session: Session, names: Sequence[str], machine_type: str | None) -> list[int]:
    """Give the ids of machines, adding those that are not known: not up, so that nobody is given them.

    They cannot be removed before the end of the transaction. Raises :class:`Invalid` for what cannot be a name.
    """
    wanted = sorted(set(names))
    known = _ids(session, wanted)
    if unknown := [name for name in wanted if name not in known]:
        for name in unknown:
            _check_name(name)
        # By name, so that two of these never wait for each other.
        added = session.execute(_ADD_ALL, {"names": unknown, "of_type": machine_type or None}).all()
        known |= {row.name: row.id for row in added}
        if added:
            record_all(session, [("machine.added", f"machines/{row.name}", {}) for row in added])
        if len(added) < len(unknown):
            # Somebody else has just added them.
            known |= _ids(session, unknown)
    return sorted(known.values())


def _ids(session: Session, names: list[str]) -> dict[str, int]:
    return {row.name: row.id for row in session.execute(_FIND_ALL, {"names": names})}


def _hold(session: Session, name: str, missing: str) -> Mapping[Any, Any]:
    machine = session.execute(_HOLD, {"name": name}).mappings().first()
    if machine is None:
        raise NotFound(missing)
    return machine


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= 255 or not name.isprintable() or name in RESERVED:
        words = ", ".join(sorted(RESERVED))
        raise Invalid(f"must be 1 to 255 printable characters, and none of the words {words}", field="name")


def _check_host(host: int | None, machine: int | None = None) -> None:
    if host is None or host == machine:
        raise Invalid("must be the name of another machine", field="vm_host")


def _lock_change(machine: Mapping[Any, Any], given: Mapping[Any, Any]) -> dict[str, Any]:
    """Give what a change of a machine does to its lock; who writes back the lock that they read changes nothing."""
    differs = [key for key in ("locked_by", "locked_since") if key in given and given[key] != machine[key]]
    if "locked" not in given:
        if differs:
            raise Forbidden(f"Cannot change {differs[0]} without locking or unlocking")
        return {}
    same = given["locked"] == machine["locked"] and not differs
    if same and given.keys() >= ({"locked_by", "locked_since"} if machine["locked"] else {"locked_by"}):
        return {}
    return _lock_rules(machine, given)


def _lock_rules(machine: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> dict[str, Any]:
    """Give what locking or unlocking changes in a machine; raises :class:`Invalid` or :class:`Forbidden`."""
    verb = "lock" if wanted["locked"] else "unlock"
    by, description = wanted.get("locked_by"), wanted.get("description")
    if not by:
        raise Invalid(f"Cannot {verb} without specifying locked_by")
    if wanted["locked"]:
        if not machine["locked"]:
            if machine["cordoned"] is not None:
                raise Forbidden(f"Cannot lock - it is out of service: {machine['cordoned']}")
            why = wanted.get("description", machine["description"])
            return {"locked": True, "locked_by": by, "locked_since": clock.now(), "description": why}
        if description is not None and (by, description) == (machine["locked_by"], machine["description"]):
            return {}
        raise Forbidden("Cannot lock an already-locked node")
    if not machine["locked"]:
        raise Forbidden("Cannot unlock an already-unlocked node")
    if by != machine["locked_by"]:
        raise Forbidden("Cannot unlock - locked_by values must match")
    if description is not None and description != machine["description"]:
        raise Forbidden("Cannot unlock - description values must match")
    return {"locked": False, "locked_by": None, "locked_since": None, "description": machine["description"]}


def _lock_event(name: str, lock: Mapping[Any, Any], by: str) -> tuple[str, str, dict[str, Any]]:
    kind = "machine.locked" if lock["locked"] else "machine.unlocked"
    return kind, f"machines/{name}", _reason({**lock, "locked_by": by})


def _reason(machine: Mapping[Any, Any]) -> dict[str, Any]:
    return {"locked_by": machine.get("locked_by"), "description": machine.get("description")}

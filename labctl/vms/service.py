"""The verbs of VMs that somebody has: extending and tagging them, giving them back, disks, snapshots, reverting.

Whoever changes a VM holds its row, and nothing else that anybody waits for while holding a VM; counters of tags are
changed in the order of their names.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import table
from labctl.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from labctl.events.service import as_part, part_values
from labctl.vms.models import VM, TagDay, VMWork
from labctl.vms.names import new_snapshot
from labctl.vms.states import VMState, WorkKind, WorkState

#: How much may wait to be done to one VM.
MOST_WORK = 16
#: How many tags one VM may have.
MOST_TAGS = 100


@dataclass(frozen=True)
class Caller:
    """Who asks for something; ``name`` is None for somebody without a credential."""

    name: str | None = None
    admin: bool = False
    token_id: int | None = None
    address: str = "-"


@dataclass(frozen=True)
class Terms:
    """For how many hours a VM is given out, and how many hours before the end its user is warned (0: not)."""

    lifetime: int
    warning: float = 0


@dataclass(frozen=True)
class Host:
    """A VM as a client names it: by its short name, perhaps with its domain."""

    name: str
    domain: str = ""


@dataclass(frozen=True)
class Change:
    """What is to change in a running VM: its lifetime from the checkout, in hours, and tags that are added."""

    lifetime: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


# Built once: putting a statement together costs as much as sending it.
_vms = table(VM)
_work = table(VMWork)
_tag_days = table(TagDay)


def is_host() -> ColumnElement[bool]:
    """Give the condition that a VM is the :class:`Host` in the parameters ``name`` and ``domain``."""
    domain = bindparam("domain", type_=Text)
    return (_vms.c.name == bindparam("name", type_=Text)) & or_(domain == "", func.lower(_vms.c.domain) == domain)


_waiting = (
    select(func.count()).where(_work.c.vm_id == _vms.c.id, _work.c.state == WorkState.WAITING).correlate(_vms)
).scalar_subquery()
_HOLD = (
    select(
        *(_vms.c[name] for name in ("id", "name", "owner", "checkout", "lifetime", "tags", "snapshots")),
        _waiting.label("waiting"),
    )
    .where(is_host(), _vms.c.state == VMState.RUNNING)
    .with_for_update(of=_vms, key_share=True)
)
_this = _vms.c.id == bindparam("this", type_=_vms.c.id.type)
_CHANGE = (
    update(_vms)
    .where(_this)
    .values(
        tags=_vms.c.tags.op("||")(bindparam("new_tags", type_=JSONB)),
        **{
            name: bindparam(f"new_{name}", type_=_vms.c[name].type) for name in ("lifetime", "expires", "due", "warned")
        },
    )
    .add_cte(as_part())
)
_TAG = (
    update(_vms).where(_this).values(tags=_vms.c.tags.op("||")(bindparam("new_tags", type_=JSONB))).add_cte(as_part())
)
_RELEASE = (
    update(_vms)
    .where(_this)
    .values(
        state=literal_column(f"'{VMState.COMPLETED}'"),
        completed=bindparam("now"),
        due=bindparam("now"),
        reason="released",
        failures=0,
        lease_holder=null(),
        lease_until=null(),
    )
    .add_cte(as_part())
)
_ADD_WORK = (
    insert(_work)
    .values(
        vm_id=bindparam("this"),
        kind=bindparam("kind"),
        argument=bindparam("argument"),
        created=bindparam("now"),
        due=bindparam("now"),
        lease_attempt=literal_column("0"),
    )
    .add_cte(as_part())
)
_counted = (
    func.unnest(bindparam("tags", type_=ARRAY(Text)), bindparam("values", type_=ARRAY(Text)))
    .table_valued("tag", "value", name="counted")
    .render_derived()
)
_COUNT_TAGS = upsert(_tag_days).from_select(
    ["day", "tag", "value", "count"],
    select(
        bindparam("day", type_=_tag_days.c.day.type), _counted.c.tag, _counted.c.value, literal_column("1", Integer)
    ),
)
_COUNT_TAGS = _COUNT_TAGS.on_conflict_do_update(
    index_elements=["day", "tag", "value"], set_={"count": _tag_days.c.count + 1}
)


def due_of(now: datetime, expires: datetime, warning: float) -> datetime:
    """Say when the engine should look at a running VM: to warn its user, if that lies ahead, or at its end."""
    warn = expires - timedelta(hours=warning)
    return max(now, warn if now < warn else expires)


@contextmanager
def token_may_be_gone() -> Iterator[None]:
    """Refuse what refers to a token that was revoked after the request had been let in, the only reference there is."""
    try:
        yield
    except IntegrityError as error:
        raise Unauthenticated("the token is not valid") from error


def change(session: Session, host: Host, caller: Caller, wanted: Change, warning: float) -> None:
    """Change a running VM as :class:`Change` says.

    Raises :class:`NotFound`; :class:`Unauthenticated` or :class:`Forbidden` if it belongs to somebody else.
    """
    vm = _hold(session, host, caller)
    new = {tag: value for tag, value in wanted.tags.items() if vm.tags.get(tag) != value}
    if len(vm.tags.keys() | new.keys()) > MOST_TAGS:
        raise Invalid(f"a VM may have {MOST_TAGS} tags", field="tags")
    values: dict[str, Any] = {"this": vm.id, "new_tags": new}
    if wanted.lifetime is not None:
        now = clock.now()
        expires = vm.checkout + timedelta(hours=wanted.lifetime)
        values |= {
            "new_lifetime": wanted.lifetime,
            "new_expires": expires,
            "new_due": due_of(now, expires, warning),
            "new_warned": None,
        }
        part = part_values(session, "vm.changed", f"vms/{vm.name}", lifetime=wanted.lifetime, tags=new)
        session.execute(_CHANGE, values | part)
    elif new:
        session.execute(_TAG, values | part_values(session, "vm.changed", f"vms/{vm.name}", tags=new))
    if new:
        tags = sorted(new.items())
        session.execute(
            _COUNT_TAGS,
            {
                "day": clock.now().date(),
                "tags": [tag for tag, _ in tags],
                "values": [value for _, value in tags],
            },
        )


def release(session: Session, host: Host, caller: Caller) -> None:
    """Give a running VM back, which the engine then destroys; raises as :func:`change`."""
    vm = _hold(session, host, caller)
    part = part_values(session, "vm.completed", f"vms/{vm.name}", reason="released")
    session.execute(_RELEASE, {"this": vm.id, "now": clock.now(), **part})


def add_disk(session: Session, host: Host, caller: Caller, gigabytes: int) -> None:
    """Have a disk added to a running VM; raises as :func:`change`, and :class:`Conflict`."""
    _add_work(session, _hold(session, host, caller), WorkKind.DISK, str(gigabytes))


def snapshot(session: Session, host: Host, caller: Caller) -> str:
    """Have a snapshot made of a running VM, and give its name; raises as :func:`add_disk`."""
    name = new_snapshot()
    _add_work(session, _hold(session, host, caller), WorkKind.SNAPSHOT, name)
    return name


def revert(session: Session, host: Host, caller: Caller, name: str) -> None:
    """Have a running VM set back to a snapshot that is finished; raises as :func:`add_disk`."""
    vm = _hold(session, host, caller)
    if name not in vm.snapshots:
        raise NotFound(f"{vm.name} has no finished snapshot {name}")
    _add_work(session, vm, WorkKind.REVERT, name)


def _hold(session: Session, host: Host, caller: Caller) -> Any:
    vm = session.execute(_HOLD, {"name": host.name, "domain": host.domain}).first()
    if vm is None:
        raise NotFound(f"there is no running VM {host.name}")
    check_owner(f"VM {vm.name}", vm.owner, caller)
    return vm


def check_owner(what: str, owner: str | None, caller: Caller) -> None:
    """Let a thing with an owner be changed by them and by admins only; one without, by everybody."""
    if owner is None or caller.admin or owner == caller.name:
        return
    if caller.name is None:
        raise Unauthenticated(f"{what} was taken with a credential, and needs one to be changed")
    raise Forbidden(f"{what} belongs to another user")


def _add_work(session: Session, vm: Any, kind: WorkKind, argument: str) -> None:
    if vm.waiting >= MOST_WORK:
        raise Conflict(f"{vm.waiting} things wait already to be done to {vm.name}")
    part = part_values(session, f"vm.{kind}_asked", f"vms/{vm.name}", **{kind.value: argument})
    values = {"this": vm.id, "kind": kind, "argument": argument, "now": clock.now()}
    session.execute(_ADD_WORK, values | part)

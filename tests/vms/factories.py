"""VMs as an engine would have made them, with sensible defaults."""

from datetime import timedelta
from itertools import count
from typing import Any

from sqlalchemy.orm import Session

from labctl import clock
from labctl.pools import Pool
from labctl.settings import Settings
from labctl.tokens import service as tokens
from labctl.vms.models import VM, PoolDay
from labctl.vms.states import VMState

_numbers = count(1)

#: The pools of the recorded exchanges.
POOLS = [
    Pool(name="debian-7-i386", alias=["debian-7-32", "debian-7-any"], size=3),
    Pool(name="debian-7-x86_64", alias=["debian-7-64", "debian-7-amd64", "debian-7-any"], size=3),
    Pool(name="centos-9-x86_64", size=0),
]


def make_settings(settings: Settings, **changes: Any) -> Settings:
    """Give settings with the pools above and a domain."""
    values = {"database_url": settings.database_url, "pools": POOLS, "vm_domain": "example.com"}
    return Settings(**{**values, **changes})


def make_vm(session: Session, **changes: Any) -> VM:
    """Add a VM, ready in the first pool; a running one was taken now, for twelve hours, without a credential."""
    now = clock.now()
    number = next(_numbers)
    pool = changes.get("pool", "debian-7-i386")
    values: dict[str, Any] = {
        "name": f"vm-{number}",
        "pool": pool,
        "template": pool,
        "provider": "fake",
        "state": VMState.READY,
        "domain": "example.com",
        "requested": now - timedelta(minutes=2),
        "due": now + timedelta(minutes=15),
    }
    state = changes.get("state", VMState.READY)
    if state != VMState.REQUESTED:
        values |= {"cloned": now - timedelta(minutes=1), "clone_seconds": 1.0}
    if state not in (VMState.REQUESTED, VMState.PENDING):
        values |= {"ready": now, "boot_seconds": 60.0}
    if state in (VMState.RUNNING, VMState.COMPLETED, VMState.DESTROYED):
        values |= {"checkout": now, "lifetime": 12, "expires": now + timedelta(hours=12), "address": "127.0.0.1"}
    if state in (VMState.COMPLETED, VMState.DESTROYED):
        values["completed"] = now
    if state == VMState.DESTROYED:
        values["destroyed"] = now
    vm = VM(**{**values, **changes})
    session.add(vm)
    session.flush()
    return vm


def make_ready(session: Session, *, i386: int = 0, x86_64: int = 0) -> list[str]:
    """Add so many ready VMs to the first two pools; gives their names."""
    pools = ["debian-7-i386"] * i386 + ["debian-7-x86_64"] * x86_64
    return [make_vm(session, pool=pool).name for pool in pools]


def make_token(session: Session, user: str = "jdoe", *, admin: bool = False) -> dict[str, str]:
    """Add a user with a token; gives the header to send it with."""
    if user not in {known.name for known in tokens.list_users(session)}:
        tokens.add_user(session, user, admin=admin, rights=["vms"])
    return {"X-AUTH-TOKEN": tokens.create_token(session, user)}


def make_day(session: Session, day: Any, pool: str = "debian-7-i386", **changes: Any) -> PoolDay:
    """Add what happened in a pool on a day."""
    values = {
        "clones": 2,
        "clone_total": 3.0,
        "clone_min": 1.0,
        "clone_max": 2.0,
        "boots": 1,
        "boot_total": 60.0,
        "boot_min": 60.0,
        "boot_max": 60.0,
    }
    row = PoolDay(day=day, pool=pool, **{**values, **changes})
    session.add(row)
    session.flush()
    return row

"""Hypervisors that are out of service, and VMs that take the place of others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from labctl import clock, db
from labctl.pools import Pool
from labctl.vms import cordon, upkeep
from labctl.vms.catalog import Catalog
from labctl.vms.models import VM
from labctl.vms.provider import Found
from labctl.vms.states import VMState
from labctl.vms.upkeep import Rules
from tests.vms.factories import make_vm
from tests.vms.lab import Lab

POOL = "debian-7-i386"


@pytest.fixture
def lab(session: Session, tmp_path: Path, stopped_clock: Any) -> Lab:
    return Lab(session, tmp_path / "fake", stopped_clock, [Pool(name=POOL, size=4)], hosts=["one", "two"]).filled()


def ready_on(session: Session) -> list[str | None]:
    return sorted(session.scalars(select(VM.host).where(VM.state == VMState.READY)))


def test_vms_are_made_on_the_emptiest_hypervisor(lab: Lab, session: Session) -> None:
    assert ready_on(session) == ["one", "one", "two", "two"]


def test_a_hypervisor_out_of_service_loses_what_nobody_has_and_the_pool_is_filled_elsewhere(
    lab: Lab, session: Session
) -> None:
    cordon.cordon(session, "one", "upkeep")
    for _ in range(4):
        lab.settle(seconds=2)

    assert ready_on(session) == ["two"] * 4


def test_a_hypervisor_back_in_service_gets_vms_again(lab: Lab, session: Session) -> None:
    cordon.cordon(session, "one", "upkeep")
    for _ in range(4):
        lab.settle(seconds=2)
    cordon.uncordon(session, "one")
    cordon.cordon(session, "two", "upkeep")
    for _ in range(4):
        lab.settle(seconds=2)

    assert ready_on(session) == ["one"] * 4


def test_a_vm_that_becomes_ready_on_a_hypervisor_out_of_service_is_not_given_out(
    session: Session, tmp_path: Path, stopped_clock: Any
) -> None:
    lab = Lab(session, tmp_path / "fake", stopped_clock, [Pool(name=POOL, size=1)], hosts=["one"], boot_seconds=(5, 5))
    lab.settle()
    cordon.cordon(session, "one", "upkeep")
    for _ in range(4):
        lab.settle(seconds=5)

    assert ready_on(session) == []


def test_what_somebody_has_on_a_hypervisor_out_of_service_stays(session: Session) -> None:
    theirs = make_vm(session, host="one", state=VMState.RUNNING, owner="alice")
    cordon.cordon(session, "one", "upkeep")

    session.refresh(theirs)
    assert theirs.state == VMState.RUNNING


def test_an_owner_gets_another_vm_with_the_tags_and_the_rest_of_the_lifetime(
    session: Session, stopped_clock: Any
) -> None:
    old = make_vm(session, host="one", state=VMState.RUNNING, owner="alice", tags={"job": "1501"}, lifetime=4)
    new = make_vm(session, host="two")
    stopped_clock.advance(hours=1)

    assert cordon.replace(session, old.name) == new.name

    session.refresh(old)
    session.refresh(new)
    assert (new.state, new.owner, new.tags, new.expires) == (VMState.RUNNING, "alice", {"job": "1501"}, old.expires)
    assert (old.state, old.reason) == (VMState.COMPLETED, f"replaced by {new.name}")


@pytest.mark.parametrize(
    "other",
    [{"host": "one"}, {"host": "two", "pool": "another"}, {"host": "three"}, {"host": "two", "state": VMState.PENDING}],
    ids=["same host", "another pool", "out of service", "not ready"],
)
def test_a_vm_is_not_replaced_by_one_that_does_not_fit(session: Session, other: dict[str, Any]) -> None:
    old = make_vm(session, host="one", state=VMState.RUNNING, owner="alice")
    make_vm(session, **other)
    cordon.cordon(session, "three", "upkeep")

    assert cordon.replace(session, old.name) is None

    session.refresh(old)
    assert old.state == VMState.RUNNING


def test_a_vm_is_rather_not_replaced_by_one_that_has_to_go_next(session: Session) -> None:
    old = make_vm(session, host="one", state=VMState.RUNNING, owner="alice")
    make_vm(session, host="two")
    later = make_vm(session, host="three")

    assert cordon.replace(session, old.name, rather_not=["two"]) == later.name
    assert cordon.replace(session, later.name, rather_not=["one", "two", "three"]) is not None


def test_no_vm_becomes_ready_on_a_hypervisor_while_that_goes_out_of_service(committed: Engine) -> None:
    with db.transaction() as session:
        vm = make_vm(session, host="one", state=VMState.PENDING, due=clock.now())
    found, rules = Found(True, host="one"), Rules(Catalog([]), {})
    claimed = {"holder": "me", "provider": vm.provider, "state": VMState.PENDING, "number": 1, "seconds": 30}
    with db.transaction() as session:
        (held,) = upkeep.claim(session, **claimed)

    with ThreadPoolExecutor(1) as threads, db.transaction() as session:
        upkeep.is_ready(session, rules, held, found)
        session.flush()

        def drain() -> None:
            with db.transaction() as other:
                cordon.cordon(other, "one", "upkeep")

        drained = threads.submit(drain)
        # It waits for what has found the hypervisor in service.
        while not is_waited_for(session):
            assert not drained.done()
        session.commit()
        drained.result(10)

    with db.reading() as reader:
        (state,) = reader.execute(select(VM.state)).scalars()
    assert state == VMState.COMPLETED


def is_waited_for(session: Session) -> bool:
    return bool(session.execute(text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")).first())

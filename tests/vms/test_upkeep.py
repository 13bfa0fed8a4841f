"""The short transactions of the engine: who may do what, and what is counted."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from labctl import db
from labctl.db import Lock
from labctl.errors import Conflict
from labctl.pools import Pool
from labctl.vms import listing, planning, standing, upkeep, work
from labctl.vms.catalog import Catalog
from labctl.vms.models import VM, PoolDay, PoolState, ProviderState, VMRequest, VMWork
from labctl.vms.provider import Found
from labctl.vms.states import VMState
from labctl.vms.upkeep import Held, Rules

from .factories import make_vm

RULES = Rules(Catalog([Pool(name="debian", size=3)]), {"fake": 10})
ME, OTHER = "here:1:a", "there:2:b"


def claim(session: Session, state: VMState, holder: str = ME, number: int = 10, provider: str = "fake") -> list[Held]:
    found = list(upkeep.claim(session, holder, provider, state, number, 30))
    session.expire_all()
    return found


def due(session: Session, clock: Any, state: VMState, **changes: Any) -> VM:
    return make_vm(session, **{"pool": "debian", "state": state, "due": clock(), **changes})


# Claims


def test_what_waits_longest_is_claimed_first_and_by_one(session: Session, stopped_clock: Any) -> None:
    late = due(session, stopped_clock, VMState.REQUESTED)
    early = due(session, stopped_clock, VMState.REQUESTED, due=stopped_clock() - timedelta(seconds=1))
    due(session, stopped_clock, VMState.REQUESTED, due=stopped_clock() + timedelta(seconds=1))
    due(session, stopped_clock, VMState.REQUESTED, provider="another")
    due(session, stopped_clock, VMState.PENDING)

    assert [vm.id for vm in claim(session, VMState.REQUESTED, number=1)] == [early.id]
    assert [vm.id for vm in claim(session, VMState.REQUESTED, OTHER)] == [late.id]
    assert claim(session, VMState.REQUESTED) == []


def test_a_claim_that_has_run_out_is_anybodys(session: Session, stopped_clock: Any) -> None:
    due(session, stopped_clock, VMState.REQUESTED)
    (mine,) = claim(session, VMState.REQUESTED)
    stopped_clock.advance(seconds=30)
    (its,) = claim(session, VMState.REQUESTED, OTHER)

    assert its.lease_attempt == mine.lease_attempt + 1
    upkeep.made(session, mine, 1)
    session.expire_all()
    vm = session.get_one(VM, mine.id)
    assert (vm.state, vm.lease_holder) == (VMState.REQUESTED, OTHER)
    upkeep.made(session, its, 1)
    session.expire_all()
    assert vm.state == VMState.PENDING and vm.lease_holder is None


def test_a_claim_is_kept_by_renewing_it_but_not_when_it_is_over(session: Session, stopped_clock: Any) -> None:
    due(session, stopped_clock, VMState.REQUESTED)
    (mine,) = claim(session, VMState.REQUESTED)
    stopped_clock.advance(seconds=20)
    upkeep.renew(session, ME, 30, [mine.id], [])
    stopped_clock.advance(seconds=20)
    assert claim(session, VMState.REQUESTED, OTHER) == []
    stopped_clock.advance(seconds=20)
    upkeep.renew(session, ME, 30, [mine.id], [])

    assert len(claim(session, VMState.REQUESTED, OTHER)) == 1


def test_a_vm_is_not_destroyed_while_something_is_done_to_it(session: Session, stopped_clock: Any) -> None:
    vm = due(session, stopped_clock, VMState.RUNNING)
    session.add(VMWork(vm_id=vm.id, kind="disk", argument="1", created=stopped_clock(), due=stopped_clock()))
    session.flush()
    assert len(work.claim(session, ME, "fake", 10, 30)) == 1
    vm.state = VMState.COMPLETED
    session.flush()
    assert claim(session, VMState.COMPLETED) == []
    stopped_clock.advance(seconds=31)

    assert [one.id for one in claim(session, VMState.COMPLETED)] == [vm.id]


def test_of_a_vms_work_only_the_first_piece_is_claimed(session: Session, stopped_clock: Any) -> None:
    vm = due(session, stopped_clock, VMState.RUNNING)
    later = stopped_clock() + timedelta(seconds=5)
    for when in (later, stopped_clock()):
        session.add(VMWork(vm_id=vm.id, kind="disk", argument="1", created=stopped_clock(), due=when))
        session.flush()

    assert work.claim(session, ME, "fake", 10, 30) == []
    stopped_clock.advance(seconds=5)
    assert len(work.claim(session, ME, "fake", 10, 30)) == 1
    assert work.claim(session, OTHER, "fake", 10, 30) == []


# Outcomes


def test_a_vm_that_was_taken_while_it_was_looked_at_stays_its_users(session: Session, stopped_clock: Any) -> None:
    vm = due(session, stopped_clock, VMState.READY)
    (held,) = claim(session, VMState.READY)
    vm.state, vm.due = VMState.RUNNING, stopped_clock() + timedelta(hours=1)
    session.flush()
    upkeep.complete(session, held, "unwell")
    session.expire_all()

    assert (vm.state, vm.reason, vm.lease_holder) == (VMState.RUNNING, None, None)
    assert vm.due == stopped_clock() + timedelta(hours=1)


def test_a_running_vm_is_completed_at_its_end_and_not_before(session: Session, stopped_clock: Any) -> None:
    early = due(session, stopped_clock, VMState.RUNNING)
    over = due(session, stopped_clock, VMState.RUNNING, expires=stopped_clock())
    upkeep.watch_running(session, 1)
    session.expire_all()

    assert (early.state, early.warned) == (VMState.RUNNING, None)
    assert early.due == early.expires - timedelta(hours=1)
    assert (over.state, over.reason) == (VMState.COMPLETED, "its lifetime is over")


def test_no_vm_makes_a_move_that_is_not_in_its_life(session: Session, stopped_clock: Any) -> None:
    due(session, stopped_clock, VMState.COMPLETED)
    (held,) = claim(session, VMState.COMPLETED)
    with pytest.raises(Conflict):
        upkeep.made(session, held, 1)


def test_clones_and_boots_are_counted_with_their_times(session: Session, stopped_clock: Any) -> None:
    for seconds in (2.0, 1.0, 4.0):
        due(session, stopped_clock, VMState.REQUESTED)
        (held,) = claim(session, VMState.REQUESTED)
        upkeep.made(session, held, seconds)
    for held in claim(session, VMState.PENDING):
        upkeep.is_ready(session, RULES, held, Found(True, ("10.0.0.1",), "host1"))

    day = session.get_one(PoolDay, (stopped_clock().date(), "debian"))
    assert (day.clones, day.clone_total, day.clone_min, day.clone_max) == (3, 7.0, 1.0, 4.0)
    assert (day.boots, day.boot_total) == (3, 360.0)
    assert session.get_one(PoolState, "debian").last_boot == stopped_clock()


def test_destroyed_vms_are_counted_on_the_day_they_were_taken_if_they_were(
    session: Session, stopped_clock: Any
) -> None:
    taken = stopped_clock()
    due(session, stopped_clock, VMState.COMPLETED)
    due(session, stopped_clock, VMState.COMPLETED, checkout=None)
    stopped_clock.advance(days=2)
    for held in claim(session, VMState.COMPLETED):
        upkeep.destroyed(session, held)

    days = session.scalars(select(PoolDay)).all()
    assert [(day.day, day.checkouts) for day in days] == [(taken.date(), 1)]


# Pools and providers


def test_pauses_of_a_pool_double_and_vms_that_were_on_their_way_do_not_count(
    session: Session, stopped_clock: Any
) -> None:
    def fail() -> PoolState:
        standing.pool_failed(session, "debian", "broken")
        return session.get_one(PoolState, "debian", populate_existing=True)

    assert fail().blocked_until is None and fail().blocked_until is None
    pauses = []
    for _ in range(9):
        state = fail()
        assert state.blocked_until is not None
        assert fail().blocked_until == state.blocked_until
        pauses.append((state.blocked_until - stopped_clock()).total_seconds())
        stopped_clock.time = state.blocked_until
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]

    standing.pool_succeeded(session, "debian")
    assert state.failures == 0 and state.blocked_until is None and state.reason is None


def test_a_pool_that_was_blocked_gets_one_vm_at_first(session: Session, stopped_clock: Any) -> None:
    session.add(PoolState(pool="debian", failures=3, blocked_until=stopped_clock() + timedelta(seconds=10)))
    session.flush()
    assert not planning.carry_out(session, RULES)
    stopped_clock.advance(seconds=10)
    assert planning.carry_out(session, RULES)
    assert not planning.carry_out(session, RULES)

    assert session.scalar(select(func.count()).select_from(VM)) == 1


def test_a_provider_that_is_left_alone_is_asked_for_its_list_by_one_engine(
    session: Session, stopped_clock: Any
) -> None:
    for _ in range(standing.PROVIDER_PATIENCE):
        standing.provider_failed(session, "fake", "down")
    assert standing.standings(session)["fake"].open
    assert not planning.carry_out(session, RULES)
    assert listing.take_on(session, "fake", 30, 10) is None
    stopped_clock.advance(seconds=5)
    probe = listing.take_on(session, "fake", 30, 10)
    assert probe is not None and probe.probe
    assert listing.take_on(session, "fake", 30, 10) is None
    standing.provider_answered(session, "fake")
    assert standing.standings(session)["fake"].open
    standing.provider_answered(session, "fake", probe=True)

    assert not session.get_one(ProviderState, "fake", populate_existing=True).failures


# Plans


def test_nobody_plans_while_another_engine_does(committed: Engine) -> None:
    with committed.connect() as other, other.begin():
        other.execute(text(f"SELECT pg_advisory_xact_lock({int(Lock.ENGINE)}, 0)"))
        with db.transaction() as session:
            assert not planning.carry_out(session, RULES)
    with db.transaction() as session:
        assert planning.carry_out(session, RULES)


def test_engines_that_plan_at_once_request_no_vm_too_many(
    committed: Engine, at_once: Callable[[list[Callable[[], Any]]], list[Any]]
) -> None:
    def plan() -> None:
        for _ in range(5):
            with db.transaction() as session:
                planning.carry_out(session, RULES)

    at_once([plan] * 8)
    with db.reading() as reader:
        assert reader.execute(select(func.count()).select_from(VM)).scalar() == 3


def test_engines_that_claim_at_once_get_different_vms(
    committed: Engine, at_once: Callable[[list[Callable[[], Any]]], list[Any]]
) -> None:
    rules = Rules(Catalog([Pool(name="debian", size=40)]), {"fake": 40})
    with db.transaction() as session:
        planning.carry_out(session, rules)

    def take(holder: str) -> list[int]:
        with db.transaction() as session:
            return [vm.id for vm in upkeep.claim(session, holder, "fake", VMState.REQUESTED, 10, 30)]

    taken = at_once([lambda number=number: take(f"engine{number}") for number in range(8)])
    assert sorted(identity for some in taken for identity in some) == sorted({i for some in taken for i in some})


# Forgetting


def test_vms_are_forgotten_some_time_after_they_were_destroyed(session: Session, stopped_clock: Any) -> None:
    session.add(
        VMRequest(id="r", state="ready", wanted={}, created=stopped_clock(), deadline=stopped_clock(),
                  finished=stopped_clock())
    )  # fmt: skip
    session.flush()
    for _ in range(3):
        due(session, stopped_clock, VMState.DESTROYED, request_id="r")
    kept = due(session, stopped_clock, VMState.COMPLETED)
    stopped_clock.advance(days=1)
    young = due(session, stopped_clock, VMState.DESTROYED)
    before = stopped_clock() - timedelta(hours=12)

    assert upkeep.purge_requests(session, before, 10) == 0
    assert [upkeep.purge(session, before, 2) for _ in range(3)] == [2, 1, 0]
    assert upkeep.purge_requests(session, before, 10) == 1
    assert set(session.scalars(select(VM.id))) == {kept.id, young.id}

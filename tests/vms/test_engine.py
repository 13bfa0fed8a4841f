"""Rounds of the engine, with a provider that does as it is told."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import plugins, worker
from labctl.pools import Check, Pool
from labctl.settings import Settings, SettingsError
from labctl.vms import config, on_demand, overrides, queries, service, upkeep
from labctl.vms.catalog import Asked, Catalog
from labctl.vms.models import VM, Orphan, PoolDay, VMRequest, VMWork
from labctl.vms.provider import Misconfigured
from labctl.vms.providers.fake import FakeProvider
from labctl.vms.states import RequestState, VMState, WorkKind, WorkState

from .lab import Lab

DEBIAN, CENTOS = Pool(name="debian", size=3), Pool(name="centos", size=2)
MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(session: Session, tmp_path: Path, stopped_clock: Any) -> MakeLab:
    def make(*pools: Pool, **options: Any) -> Lab:
        return Lab(session, tmp_path / "world", stopped_clock, list(pools or (DEBIAN, CENTOS)), **options)

    return make


# Filling


def test_empty_pools_are_filled_with_vms_that_boot(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.settle()
    assert lab.counts() == {"pending": 5}
    lab.settle(seconds=1)

    assert lab.counts("debian") == {"ready": 3} and lab.counts("centos") == {"ready": 2}
    assert lab.world == {vm.name for vm in lab.vms()}
    assert {vm.host for vm in lab.vms()} == {"fake"}
    assert lab.pool("debian").last_boot == lab.clock()
    day = lab.session.get_one(PoolDay, (lab.clock().date(), "debian"))
    assert (day.clones, day.boots, day.boot_min, day.boot_max, day.boot_total) == (3, 3, 1.0, 1.0, 3.0)
    assert len(lab.events("vm.ready")) == 5


def test_a_full_pool_stays_as_it_is(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    before = [vm.name for vm in lab.ready()]
    lab.live(100)

    assert [vm.name for vm in lab.vms()] == before


def test_a_round_with_nothing_to_do_costs_four_reads(make_lab: MakeLab, statements: Any) -> None:
    lab = make_lab().filled()
    with statements() as sent:
        lab.engine.tick()

    assert len(sent) == 4 and all(statement.startswith("SELECT") for statement in sent)


def test_the_vm_that_was_taken_is_replaced_at_once(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    taken = lab.take(lab.ready("debian")[0])
    lab.settle()
    assert lab.counts("debian") == {"running": 1, "ready": 2, "pending": 1}
    lab.settle(seconds=1)

    assert lab.counts("debian") == {"running": 1, "ready": 3}
    assert taken.name in lab.world


def test_no_more_vms_are_made_at_once_than_a_pool_wants_and_a_provider_can(make_lab: MakeLab) -> None:
    pools = [Pool(name="a", size=20, clone_target=2), Pool(name="b", size=20), Pool(name="c", size=1)]
    lab = make_lab(*pools, handling={"limit": 7})
    lab.clock.advance(seconds=0)
    lab.engine.tick()
    counts = {name: len(lab.vms(VMState.REQUESTED, pool=name)) for name in "abc"}

    assert counts == {"a": 2, "b": 4, "c": 1}
    while lab.engine.busy:
        lab.engine.tick(10)


def test_a_vm_is_ready_when_the_check_of_its_pool_says_so(make_lab: MakeLab, free_port: int) -> None:
    pool = Pool(name="debian", size=1, check=Check(kind="tcp", port=free_port))
    lab = make_lab(pool, address="127.0.0.1").filled()
    (vm,) = lab.vms(VMState.PENDING)

    assert vm.reason == f"port {free_port} of 127.0.0.1: Connection refused"


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_smaller_pool_loses_its_oldest_ready_vms(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    kept = lab.ready("debian")[2].name
    overrides.change(lab.session, "size", [DEBIAN], {"debian": 1})
    lab.settle()
    lab.settle()

    assert [vm.name for vm in lab.ready("debian")] == [kept]
    assert len(lab.world) == 3
    assert lab.events("vm.completed")[0].data["reason"] == "its pool is smaller now"


def test_another_template_in_the_configuration_replaces_ready_vms_and_leaves_running_ones(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    taken = lab.take(lab.ready("debian")[0])
    lab.pools = [Pool(name="debian", template="debian-13", size=3), CENTOS]
    lab.change()
    lab.live(10)

    assert {vm.template for vm in lab.ready("debian")} == {"debian-13"} and len(lab.ready("debian")) == 3
    assert taken.state == VMState.RUNNING and len(lab.world) == 6


def test_vms_of_a_pool_that_is_not_configured_any_more_go_but_for_the_running_ones(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    taken = lab.take(lab.ready("debian")[0])
    lab.pools = [CENTOS]
    lab.change()
    lab.filled()

    assert lab.counts("debian") == {"running": 1} and taken.name in lab.world
    assert lab.counts("centos") == {"ready": 2}


# Ready


def test_a_ready_vm_that_is_unwell_twice_is_replaced(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=1), handling={"list_interval": 1e9}).filled()
    (vm,) = lab.ready()
    lab.provider.destroy(vm.name)
    lab.settle(minutes=15)
    assert vm.state == VMState.READY and vm.reason == "vanished"
    lab.settle(seconds=10)
    lab.settle()

    assert vm.state == VMState.DESTROYED and vm.reason == "vanished"
    assert len(lab.vms(VMState.PENDING)) == 1


def test_a_ready_vm_is_replaced_when_its_time_is_over(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=1, ready_ttl=60)).filled()
    (vm,) = lab.ready()
    lab.settle(minutes=59)
    assert vm.state == VMState.READY
    lab.settle(minutes=1)
    lab.settle()

    assert vm.state == VMState.DESTROYED and vm.reason == "it has been ready for too long"


# Running


def test_the_end_of_a_lifetime_is_announced_once_and_then_comes(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0], hours=3)
    vm.due = lab.clock()
    lab.settle()
    assert vm.due == vm.expires - timedelta(hours=1)
    lab.settle(hours=2)
    lab.settle(minutes=30)
    assert [event.subject for event in lab.events("vm.expiring")] == [f"vms/{vm.name}"]
    assert vm.state == VMState.RUNNING and vm.warned is not None
    lab.settle(minutes=30)
    lab.settle()

    assert vm.state == VMState.DESTROYED and vm.reason == "its lifetime is over"
    assert vm.name not in lab.world
    assert lab.session.get_one(PoolDay, (vm.checkout.date(), "debian")).checkouts == 1


def test_a_longer_lifetime_comes_before_the_end_that_was_planned(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0], hours=1)
    service.change(lab.session, service.Host(vm.name), service.Caller("ada"), service.Change(lifetime=5), 1)
    lab.session.expire_all()
    lab.settle(hours=2)

    assert vm.state == VMState.RUNNING
    assert vm.due == vm.expires - timedelta(hours=1)


def test_a_running_vm_that_vanishes_is_marked_and_nothing_else(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0])
    lab.provider.destroy(vm.name)
    lab.live(120)

    assert vm.state == VMState.RUNNING and vm.missing >= 2
    assert [event.subject for event in lab.events("vm.vanished")] == [f"vms/{vm.name}"]


# Lists


def test_what_nobody_knows_is_destroyed_when_it_was_listed_twice(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    (lab.directory / "vms" / "stray.json").write_bytes((next(lab.directory.glob("vms/*.json"))).read_bytes())
    lab.settle(seconds=30)
    assert "stray" in lab.world and lab.session.get_one(Orphan, ("fake", "stray")).sightings == 1
    lab.settle(seconds=30)
    lab.settle()

    assert "stray" not in lab.world and len(lab.world) == 5
    assert not lab.session.scalars(select(Orphan)).all()


def test_an_orphan_that_has_a_row_again_is_none(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.ready("debian")[0]
    lab.session.add(Orphan(provider="fake", name=vm.name, first_seen=lab.clock(), sightings=5))
    lab.session.flush()
    lab.settle()
    assert vm.name in lab.world
    lab.settle(seconds=30)

    assert not lab.session.scalars(select(Orphan)).all()


def test_a_destroyed_vm_that_is_still_listed_is_destroyed_again(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0])
    kept = (lab.directory / "vms" / f"{vm.name}.json").read_bytes()
    service.release(lab.session, service.Host(vm.name), service.Caller("ada"))
    lab.settle()
    lab.filled()
    (lab.directory / "vms" / f"{vm.name}.json").write_bytes(kept)
    lab.live(65)

    assert lab.world == {vm.name for vm in lab.ready()}


def test_a_vm_that_two_lists_leave_out_is_replaced_and_one_that_is_forgotten_once_is_not(make_lab: MakeLab) -> None:
    lab = make_lab(rules={"check_interval": 1e6}).filled()
    before = {vm.name for vm in lab.ready()}
    lab.faults(forget_rate=1)
    lab.live(200)
    assert {vm.name for vm in lab.vms()} == before

    lab.faults()
    gone = lab.ready("debian")[0]
    lab.provider.destroy(gone.name)
    lab.live(100)
    assert gone.state == VMState.DESTROYED and gone.reason == "vanished"
    assert lab.counts() == {"ready": 5}


def test_a_list_that_took_so_long_that_another_was_begun_says_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(rules={"check_interval": 1e6}).filled()
    lab.settle(seconds=30)
    from labctl.vms import listing

    late = listing.take_on(lab.session, "fake", 0, 10)
    lab.settle(seconds=30)
    assert late is not None
    for _ in range(3):
        listing.compare(lab.session, late, ["stray"])
    lab.session.expire_all()

    assert not any(vm.missing for vm in lab.vms())
    assert not lab.session.scalars(select(Orphan)).all()


# What goes wrong


def test_a_template_that_fails_blocks_its_pool_with_growing_pauses_until_it_is_mended(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.faults(broken=["debian"])
    lab.live(30)
    state = lab.pool("debian")
    assert state.failures >= 3 and state.blocked_until is not None
    assert "debian" in (state.reason or "") and "as it was told" in (state.reason or "")
    assert lab.counts("centos") == {"ready": 2}
    assert lab.counts("debian") == {} and lab.world == {vm.name for vm in lab.ready("centos")}
    made = len(lab.vms(pool="debian"))
    lab.live(120)
    assert len(lab.vms(pool="debian")) - made <= 4
    assert len(lab.events("pool.blocked")) == 1 and not lab.events("provider.open")

    lab.faults()
    lab.live(700)
    assert lab.counts("debian") == {"ready": 3}
    state = lab.pool("debian")
    assert (state.failures, state.blocked_until, state.reason) == (0, None, None)
    assert len(lab.events("pool.unblocked")) == 1


def test_a_provider_that_makes_nothing_for_any_pool_is_left_alone(make_lab: MakeLab) -> None:
    lab = make_lab(*(Pool(name=name, size=1) for name in "abcde"))
    lab.faults(failure_rate=1)
    lab.settle()
    # Its list is a success; where that comes between the failures, those of the next tries must tell.
    for _ in range(10):
        if lab.standing().open_until is None:
            lab.live(1)
    assert lab.standing().open_until is not None
    lab.faults()
    lab.live(30)

    assert lab.counts() == {"ready": 5} and lab.standing().failures == 0


def test_a_template_that_is_not_there_blocks_its_pool_at_once_and_another_one_mends_it(make_lab: MakeLab) -> None:
    lab = make_lab(DEBIAN, unknown=["debian"])
    lab.settle()
    state = lab.pool("debian")
    assert state.reason == "there is no template debian"
    assert state.blocked_until == lab.clock() + timedelta(minutes=10)
    overrides.change(lab.session, "template", [DEBIAN], {"debian": "debian-12"})
    lab.filled()

    assert {vm.template for vm in lab.ready()} == {"debian-12"}


def test_no_room_is_no_failure(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=3), capacity=2).filled()
    lab.live(60)
    (waiting,) = lab.vms(VMState.REQUESTED)
    assert (waiting.failures, waiting.reason) == (0, "there is room for 2 VMs")
    lab.faults(capacity=3)
    lab.live(8)

    assert lab.counts() == {"ready": 3}
    assert lab.pool("debian").failures == 0


def test_a_vm_that_does_not_become_ready_in_time_is_given_up(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=1, timeout=2), boot_seconds=(1e6, 1e6))
    lab.live(140)

    first = lab.vms()[0]
    assert first.state == VMState.DESTROYED and first.reason == "not ready after 2.0 minutes: it does not run"
    assert lab.session.get_one(PoolDay, (lab.clock().date(), "debian")).failures == 1


def test_a_provider_that_hangs_is_left_alone_and_asked_again_by_itself(make_lab: MakeLab) -> None:
    lab = make_lab(handling={"deadline": 0.05})
    lab.faults(hang_rate=1, hang_seconds=0.3)
    lab.settle()
    state = lab.standing()
    assert state.open_until == lab.clock() + timedelta(seconds=5) and state.reason == "no answer within 0.05 s"
    before = len(lab.vms())
    lab.settle(seconds=1)
    assert len(lab.vms()) == before
    assert len(lab.events("provider.open")) == 1
    lab.settle(seconds=5)
    assert lab.standing().open_until == lab.clock() + timedelta(seconds=10)

    lab.faults()
    lab.change(handling={"deadline": 10})
    lab.live(60)
    assert lab.standing().open_until is None and lab.standing().failures == 0
    assert lab.counts() == {"ready": 5}
    assert len(lab.events("provider.closed")) == 1


def test_destroying_is_tried_until_it_works(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0])
    service.release(lab.session, service.Host(vm.name), service.Caller("ada"))
    with monkeypatch.context() as patch:
        patch.setattr(lab.provider, "destroy", lambda name: 1 / 0)
        lab.live(10)
        assert vm.state == VMState.COMPLETED and vm.failures >= 3 and vm.reason == "released"
    lab.live(60)

    assert vm.state == VMState.DESTROYED and vm.name not in lab.world


def test_an_engine_that_comes_back_too_late_changes_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=1))
    stopped = lab.engine
    stopped.tick()
    lab.clock.advance(seconds=31)
    lab.engine = lab.another()
    lab.filled()
    (vm,) = lab.ready()
    lab.take(vm)
    before = (vm.state, vm.lease_attempt, vm.cloned)
    while stopped.busy:
        stopped.tick(10)
    lab.session.expire_all()

    assert (vm.state, vm.lease_attempt, vm.cloned) == before
    assert vm.name in lab.world


def test_an_engine_that_ends_leaves_its_work_to_others_at_once(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=1), clone_seconds=(0.2, 0.2))
    lab.engine.tick()
    assert lab.vms(VMState.REQUESTED)[0].lease_holder == lab.engine.holder
    lab.engine.close(0)
    lab.session.expire_all()

    until = lab.vms(VMState.REQUESTED)[0].lease_until
    assert until is not None and until <= lab.clock()


# Work on running VMs


def ask(lab: Lab, vm: VM, kind: WorkKind, argument: str) -> VMWork:
    work = VMWork(vm_id=vm.id, kind=kind, argument=argument, created=lab.clock(), due=lab.clock())
    lab.session.add(work)
    lab.session.flush()
    return work


def test_disks_and_snapshots_are_made_in_order_and_noted(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0])
    asked = [ask(lab, vm, WorkKind.DISK, "8"), ask(lab, vm, WorkKind.DISK, "4"), ask(lab, vm, WorkKind.SNAPSHOT, "s1")]
    asked.append(ask(lab, vm, WorkKind.REVERT, "s1"))
    lab.settle()

    assert [work.state for work in asked] == [WorkState.DONE] * 4
    assert (vm.disks, vm.snapshots) == ([8, 4], ["s1"])
    kinds = ("vm.disk_done", "vm.snapshot_done", "vm.revert_done")
    assert [event.kind for event in lab.events(*kinds)] == ["vm.disk_done", *kinds]


def test_what_cannot_be_done_has_failed_with_a_reason(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0])
    revert = ask(lab, vm, WorkKind.REVERT, "none")
    lab.settle()
    assert (revert.state, revert.reason) == (WorkState.FAILED, "the snapshot none is not finished")
    monkeypatch.setattr(lab.provider, "capabilities", frozenset())
    disk = ask(lab, vm, WorkKind.DISK, "8")
    lab.settle()

    assert (disk.state, disk.reason) == (WorkState.FAILED, "the provider fake cannot do this: disk")
    assert vm.disks == []


def test_what_was_to_be_done_to_a_vm_that_is_given_back_is_given_up(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    vm = lab.take(lab.ready("debian")[0])
    work = ask(lab, vm, WorkKind.DISK, "8")
    service.release(lab.session, service.Host(vm.name), service.Caller("ada"))
    lab.settle()

    assert (work.state, work.reason) == (WorkState.FAILED, "the VM does not run any more")


# On demand


def request(lab: Lab, count: int = 2) -> str:
    catalog = Catalog(lab.pools)
    caller = service.Caller("ada", address="10.0.0.1")
    limits = on_demand.Limits(10, 15)
    return on_demand.ask(lab.session, catalog, [Asked("debian", ("debian",), count)], caller, limits, "")


def test_vms_on_demand_are_made_beyond_the_pool_and_given_to_who_asked(make_lab: MakeLab) -> None:
    lab = make_lab(rules={"lifetime": 7}).filled()
    identity = request(lab)
    lab.settle()
    lab.settle(seconds=1)
    lab.settle()

    assert lab.counts("debian") == {"ready": 3, "running": 2}
    given = lab.vms(VMState.RUNNING)
    assert {(vm.owner, vm.address, vm.lifetime) for vm in given} == {("ada", "10.0.0.1", 7)}
    assert {vm.expires for vm in given} == {lab.clock() + timedelta(hours=7)}
    assert lab.session.get_one(VMRequest, identity).state == RequestState.READY


def test_a_vm_on_demand_that_cannot_be_made_is_replaced_until_the_time_is_over(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=0))
    lab.faults(broken=["debian"])
    identity = request(lab, 1)
    lab.live(15)
    assert len(lab.vms()) > 1
    lab.settle(minutes=15)
    lab.settle()
    assert lab.session.get_one(VMRequest, identity).state == RequestState.FAILED
    lab.live(20)
    number = len(lab.vms())
    lab.live(100)

    assert lab.counts() == {} and lab.world == set() and len(lab.vms()) == number


def test_a_request_that_was_taken_back_gets_nothing_more(make_lab: MakeLab) -> None:
    lab = make_lab(Pool(name="debian", size=0))
    identity = request(lab, 1)
    lab.settle()
    on_demand.take_back(lab.session, identity, service.Caller("ada"))
    lab.settle(seconds=1)
    lab.settle()

    assert lab.counts() == {} and lab.world == set()


# Configuration


def test_every_mistake_in_pools_and_providers_is_named() -> None:
    settings = Settings(
        pools=[
            Pool(name="a", provider="nobody"),
            Pool(name="b", alias=["a"], provider="fake"),
            Pool(name="b", provider="fake"),
        ],
        providers={
            "fake": {"plugin": "fake", "limit": 0, "failure_rate": 3},
            "other": {"plugin": "unheard-of"},
            "third": {},
        },
        vm_tag_filters={"user": "("},
    )
    mistakes = config.check(settings)

    there = ", ".join(plugins.installed(config.GROUP))
    assert mistakes == [
        "providers.fake.limit: Input should be greater than or equal to 1",
        "providers.fake.failure_rate: Input should be less than or equal to 1",
        f"providers.other.plugin: there is no labctl.vm_providers plugin 'unheard-of'; installed: {there}",
        "providers.third.plugin: Field required",
        "pools: there are 2 called b",
        "pools.a.provider: there is no provider 'nobody'; there are: fake, other, third",
        "vm_tag_filters.user: missing ), unterminated subpattern at position 0",
    ]


class Picky(FakeProvider):
    """A provider that knows which options a pool may have."""

    def check_options(self, options: Mapping[str, Any]) -> None:
        if strange := sorted(options.keys() - {"memory_mb"}):
            raise Misconfigured("\n".join(f"{name}: there is no such option" for name in strange))


def test_options_of_a_pool_that_its_provider_refuses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "load", lambda group, name: Picky)
    pools = [
        Pool(name="a", options={"memory_mb": 1}),
        Pool(name="b", options={"memory_mb": 1, "disk": 2, "memroy": 3}),
    ]

    assert config.check(Settings(pools=pools)) == [
        "pools.b.options.disk: there is no such option",
        "pools.b.options.memroy: there is no such option",
    ]


def test_providers_are_made_once_and_every_mistake_is_told_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(FakeProvider):
        def __init__(self, name: str, options: Mapping[str, Any]) -> None:
            made.append(name)
            super().__init__(name, options)

    monkeypatch.setattr(plugins, "load", lambda group, name: Counted)
    assert config.providers(Settings()).keys() == {"fake"} and made == ["fake"]
    with pytest.raises(Misconfigured, match=r"^pools.a.provider: there is no provider 'nobody'"):
        config.providers(Settings(pools=[Pool(name="a", provider="nobody")]))


def test_vms_of_a_provider_that_is_not_configured_any_more_are_told_of_until_it_is_back(make_lab: MakeLab) -> None:
    lab = make_lab().filled()
    ready = [vm.name for vm in lab.ready()]
    served = lab.engine.providers
    lab.engine.providers = {}
    lab.settle(minutes=16)
    assert queries.open_providers(lab.session) == {"fake": "it is not configured any more: its VMs stay as they are"}
    assert [vm.name for vm in lab.ready()] == ready

    lab.engine.providers = served
    lab.live(40)
    assert queries.open_providers(lab.session) == {} and [vm.name for vm in lab.ready()] == ready


def test_a_worker_does_not_start_with_mistakes_in_its_pools() -> None:
    with pytest.raises(SettingsError, match=r"^pools.a.provider: there is no provider 'nobody'; there are: fake$"):
        worker.run(Settings(pools=[Pool(name="a", provider="nobody")]))


def test_the_settings_as_they_are_by_default_have_no_mistakes() -> None:
    assert config.check(Settings()) == []
    assert upkeep.Rules.timeout == 15 and config.rules(Settings()).limits == {"fake": 10}

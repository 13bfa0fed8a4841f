from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl.errors import Conflict, Exhausted, Forbidden, Invalid, NotFound
from labctl.events.models import Event
from labctl.machines import queries, service, wire
from labctl.machines.models import Machine
from labctl.machines.service import Wanted
from tests.machines import reference

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def add(session: Session, *names: str, **given: Any) -> None:
    for name in names:
        service.add(session, name, {"up": True, "machine_type": "smithi", **given})


def lock(session: Session, name: str, by: str = "a@b", **given: Any) -> Any:
    return service.change_lock(session, name, {"locked": True, "locked_by": by, **given})


def unlock(session: Session, name: str, by: str = "a@b", **given: Any) -> Any:
    return service.change_lock(session, name, {"locked": False, "locked_by": by, **given})


def lock_many(session: Session, count: int, **changes: Any) -> list[str]:
    wanted = {"machine_types": ["smithi"], "locked_by": "a@b", "description": "why", **changes}
    return [machine["name"] for machine in service.lock_many(session, Wanted(count=count, **wanted))]


def state(session: Session, name: str) -> tuple[Any, ...]:
    columns = (Machine.locked, Machine.locked_by, Machine.locked_since, Machine.description)
    return tuple(session.execute(select(*columns).where(Machine.name == name)).one())


def events(session: Session) -> list[tuple[str, str, dict[str, Any]]]:
    return [(event.kind, event.subject, event.data) for event in session.scalars(select(Event).order_by(Event.seq))]


def locked_names(session: Session) -> list[str]:
    return [machine["name"] for machine in reference.machines(session, {"locked": True})]


# Adding


def test_a_new_machine_is_down_and_no_vm_unless_said_otherwise(session: Session) -> None:
    service.add(session, "one", {})
    machine = reference.machine(session, "one")
    assert machine is not None
    assert (machine["up"], machine["is_vm"], machine["locked"], machine["machine_type"]) == (False, False, False, None)
    assert events(session) == [("machine.added", "machines/one", {"locked_by": None, "description": None})]


def test_a_name_that_is_taken_is_a_conflict_and_changes_nothing(session: Session) -> None:
    add(session, "one", os_type="ubuntu")
    with pytest.raises(Conflict, match=r"^Node with name one already exists$"):
        add(session, "one", os_type="centos")
    machine = reference.machine(session, "one")
    assert machine is not None
    assert machine["os_type"] == "ubuntu"
    assert len(events(session)) == 1


@pytest.mark.parametrize("name", ["", "a\nb", "tab\t", "x" * 256, "\x7f"])
def test_a_name_that_is_no_name_is_refused(session: Session, name: str) -> None:
    with pytest.raises(Invalid) as raised:
        service.add(session, name, {})
    assert raised.value.field == "name"


def test_a_machine_may_come_locked(session: Session, stopped_clock: Any) -> None:
    add(session, "now", locked=True, locked_by="a@b", description="why")
    add(session, "before", locked=True, locked_by="a@b", locked_since=datetime(2025, 1, 1, tzinfo=UTC))
    assert state(session, "now") == (True, "a@b", SINCE, "why")
    assert state(session, "before") == (True, "a@b", datetime(2025, 1, 1, tzinfo=UTC), None)


@pytest.mark.parametrize("locked_by", [None, ""])
def test_a_machine_does_not_come_locked_by_nobody(session: Session, locked_by: str | None) -> None:
    with pytest.raises(Invalid, match=r"^Cannot lock without specifying locked_by$"):
        add(session, "one", locked=True, locked_by=locked_by)


@pytest.mark.parametrize("given", [{"locked_by": "a@b"}, {"locked": False, "locked_since": SINCE}])
def test_a_machine_that_comes_unlocked_has_nobody_who_locked_it(session: Session, given: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as raised:
        add(session, "one", **given)
    assert raised.value.field in given


def test_a_vm_names_its_host(session: Session) -> None:
    add(session, "host")
    add(session, "guest", is_vm=True, vm_host="host")
    guest = reference.machine(session, "guest")
    assert guest is not None
    assert guest["vm_host"] == "host"


def test_a_host_that_nobody_knows_is_refused(session: Session) -> None:
    add(session, "one")
    for attempt in (lambda: add(session, "two", vm_host="nobody"), lambda: change(session, "one", vm_host="nobody")):
        with pytest.raises(Invalid) as raised:
            attempt()
        assert raised.value.field == "vm_host"


# Changing


def change(session: Session, name: str, **given: Any) -> None:
    service.change(session, name, given)


def test_a_change_changes_what_is_given_and_nothing_else(session: Session) -> None:
    add(session, "one", os_type="ubuntu", os_version="22.04")
    before = reference.machine(session, "one")
    change(session, "one", os_version="24.04", up=False)
    after = reference.machine(session, "one")
    assert before is not None
    assert after is not None
    assert dict(after) == {**before, "os_version": "24.04", "up": False}
    assert events(session)[1:] == [("machine.updated", "machines/one", {"os_version": "24.04", "up": False})]


def test_a_change_that_repeats_what_is_so_leaves_no_event(session: Session) -> None:
    add(session, "one", os_type="ubuntu")
    change(session, "one", os_type="ubuntu", up=True, vm_host=None)
    change(session, "one")
    assert len(events(session)) == 1


def test_a_change_of_an_unknown_machine_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound, match=r"^attempted to update a non-existent node$"):
        change(session, "nobody", up=True, vm_host="nobody either")


def test_a_vm_moves_to_another_host_and_off_it(session: Session) -> None:
    add(session, "host", "guest")
    hosts = []
    for vm_host in ("host", None):
        change(session, "guest", vm_host=vm_host)
        guest = reference.machine(session, "guest")
        assert guest is not None
        hosts.append(guest["vm_host"])
    assert hosts == ["host", None]
    assert [data for _, _, data in events(session)[2:]] == [{"vm_host": "host"}, {"vm_host": None}]


def test_a_machine_is_not_its_own_host(session: Session) -> None:
    add(session, "one")
    with pytest.raises(Invalid) as raised:
        change(session, "one", vm_host="one")
    assert raised.value.field == "vm_host"


def test_a_change_locks_and_unlocks_by_the_rules(session: Session, stopped_clock: Any) -> None:
    add(session, "one")
    change(session, "one", locked=True, locked_by="a@b", description="why", arch="arm64")
    assert state(session, "one") == (True, "a@b", SINCE, "why")
    with pytest.raises(Forbidden, match=r"^Cannot lock an already-locked node$"):
        change(session, "one", locked=True, locked_by="c@d", arch="x86_64")
    with pytest.raises(Forbidden, match=r"^Cannot unlock - locked_by values must match$"):
        change(session, "one", locked=False, locked_by="c@d", arch="x86_64")
    change(session, "one", locked=False, locked_by="a@b", locked_since=None, description=None)
    assert state(session, "one") == (False, None, None, "why")
    machine = reference.machine(session, "one")
    assert machine is not None
    assert machine["arch"] == "arm64"
    assert events(session)[1:] == [
        ("machine.locked", "machines/one", {"locked_by": "a@b", "description": "why"}),
        ("machine.updated", "machines/one", {"arch": "arm64"}),
        ("machine.unlocked", "machines/one", {"locked_by": "a@b", "description": "why"}),
    ]


@pytest.mark.parametrize("locked", [True, False])
def test_a_change_that_writes_back_the_lock_that_was_read_is_accepted(session: Session, locked: bool) -> None:
    add(session, "one", **({"locked": True, "locked_by": "a@b"} if locked else {}))
    read = reference.machine(session, "one")
    service.change(session, "one", wire.MachineInput.model_validate({**read, "arch": "arm64"}).sent())
    assert reference.machine(session, "one") == {**read, "arch": "arm64"}


def test_a_change_may_say_that_an_unlocked_machine_is_locked_by_nobody(session: Session) -> None:
    add(session, "one")
    change(session, "one", locked=False, locked_by=None, up=False)
    assert reference.machines(session, {"up": True}) == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"locked": False}, Invalid),
        ({"locked": False, "locked_by": "a@b"}, Forbidden),
        ({"locked": False, "locked_by": None, "locked_since": SINCE}, Invalid),
        ({"locked": True}, Invalid),
        ({"locked_by": "a@b"}, Forbidden),
        ({"locked_since": SINCE}, Forbidden),
    ],
)
def test_a_change_does_not_get_round_the_rules_of_an_unlocked_machine(
    session: Session, given: dict[str, Any], error: type[Exception]
) -> None:
    add(session, "one")
    with pytest.raises(error):
        change(session, "one", up=False, **given)
    assert state(session, "one") == (False, None, None, None)
    assert len(reference.machines(session, {"up": True})) == 1


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"locked": False}, Invalid),
        ({"locked": False, "locked_by": None, "locked_since": None}, Invalid),
        ({"locked": True, "locked_by": "a@b"}, Forbidden),
        ({"locked": True, "locked_by": "a@b", "description": "other"}, Forbidden),
        ({"locked_by": None}, Forbidden),
        ({"locked_by": "c@d"}, Forbidden),
        ({"locked_since": None}, Forbidden),
    ],
)
def test_a_change_does_not_get_round_the_rules_of_a_locked_machine(
    session: Session, given: dict[str, Any], error: type[Exception]
) -> None:
    add(session, "one", locked=True, locked_by="a@b", locked_since=SINCE, description="why")
    with pytest.raises(error):
        change(session, "one", up=False, **given)
    assert state(session, "one") == (True, "a@b", SINCE, "why")
    assert len(reference.machines(session, {"up": True})) == 1


def test_the_holder_of_a_lock_may_be_named_in_a_change(session: Session) -> None:
    add(session, "one", locked=True, locked_by="a@b", locked_since=SINCE)
    change(session, "one", locked_by="a@b", locked_since=SINCE, description="why")
    assert state(session, "one") == (True, "a@b", SINCE, "why")


# Removing


def test_a_machine_is_removed(session: Session) -> None:
    add(session, "one", "two")
    service.remove(session, "one")
    assert [machine["name"] for machine in reference.machines(session, {})] == ["two"]
    assert events(session)[-1] == ("machine.removed", "machines/one", {})


def test_a_locked_machine_is_not_removed(session: Session) -> None:
    add(session, "one", locked=True, locked_by="a@b")
    with pytest.raises(Forbidden, match=r"^Cannot delete a locked node$"):
        service.remove(session, "one")
    assert reference.machine(session, "one") is not None


def test_an_unknown_machine_is_not_removed(session: Session) -> None:
    with pytest.raises(NotFound, match=r"^attempted to delete a non-existent node$"):
        service.remove(session, "nobody")


def test_vms_outlive_their_host(session: Session) -> None:
    add(session, "host")
    add(session, "guest", vm_host="host")
    service.remove(session, "host")
    guest = reference.machine(session, "guest")
    assert guest is not None
    assert guest["vm_host"] is None


# Locking and unlocking one


def test_a_lock_says_who_why_and_since_when(session: Session, stopped_clock: Any) -> None:
    add(session, "one", up=False)
    locked = lock(session, "one", description="why")
    assert (locked["locked"], locked["locked_by"]) == (True, "a@b")
    assert state(session, "one") == (True, "a@b", SINCE, "why")
    assert events(session)[1:] == [("machine.locked", "machines/one", {"locked_by": "a@b", "description": "why"})]


def test_unlocking_keeps_the_description(session: Session) -> None:
    add(session, "one")
    lock(session, "one", description="why")
    unlocked = unlock(session, "one", description=None)
    assert (unlocked["locked"], unlocked["locked_by"]) == (False, None)
    assert state(session, "one") == (False, None, None, "why")
    assert events(session)[-1] == ("machine.unlocked", "machines/one", {"locked_by": "a@b", "description": "why"})


def test_a_lock_without_description_keeps_the_old_one(session: Session) -> None:
    add(session, "one", description="old")
    lock(session, "one")
    assert state(session, "one")[3] == "old"


def test_a_lock_with_an_empty_description_does_not_inherit_the_reason_of_an_earlier_lock(session: Session) -> None:
    add(session, "one", description="/a/somebody's-run/77")
    lock(session, "one", description=None)
    assert state(session, "one")[3] is None


def test_a_locked_machine_is_not_locked_again(session: Session) -> None:
    add(session, "one", locked=True, locked_by="a@b", locked_since=SINCE, description="why")
    for by, description in (("c@d", "why"), ("a@b", "other"), ("a@b", None)):
        with pytest.raises(Forbidden, match=r"^Cannot lock an already-locked node$"):
            lock(session, "one", by, description=description)
    assert state(session, "one") == (True, "a@b", SINCE, "why")


def test_without_a_description_even_the_same_person_does_not_lock_twice(session: Session) -> None:
    add(session, "one")
    lock(session, "one", description=None)
    with pytest.raises(Forbidden):
        lock(session, "one", description=None)


def test_locking_again_for_the_same_person_and_reason_changes_nothing(session: Session) -> None:
    add(session, "one", locked=True, locked_by="a@b", locked_since=SINCE, description="why")
    assert lock(session, "one", description="why")["locked"] is True
    assert state(session, "one") == (True, "a@b", SINCE, "why")
    assert len(events(session)) == 1


@pytest.mark.parametrize(
    ("by", "description", "message"),
    [
        ("c@d", None, "Cannot unlock - locked_by values must match"),
        ("a@b", "other", "Cannot unlock - description values must match"),
        ("a@b", "", "Cannot unlock - description values must match"),
    ],
)
def test_who_did_not_lock_a_machine_does_not_unlock_it(
    session: Session, by: str, description: str | None, message: str
) -> None:
    add(session, "one", locked=True, locked_by="a@b", locked_since=SINCE, description="why")
    with pytest.raises(Forbidden, match=rf"^{message}$"):
        unlock(session, "one", by, description=description)
    assert state(session, "one") == (True, "a@b", SINCE, "why")


def test_unlocking_may_name_the_description(session: Session) -> None:
    add(session, "one", locked=True, locked_by="a@b", description="why")
    unlock(session, "one", description="why")
    assert state(session, "one") == (False, None, None, "why")


def test_an_unlocked_machine_is_not_unlocked(session: Session) -> None:
    add(session, "one")
    with pytest.raises(Forbidden, match=r"^Cannot unlock an already-unlocked node$"):
        unlock(session, "one")


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("by", [{}, {"locked_by": None}, {"locked_by": ""}])
def test_a_lock_is_somebodys(session: Session, locked: bool, by: dict[str, Any]) -> None:
    add(session, "one")
    verb = "lock" if locked else "unlock"
    with pytest.raises(Invalid, match=rf"^Cannot {verb} without specifying locked_by$"):
        service.change_lock(session, "one", {"locked": locked, **by})


def test_an_unknown_machine_is_not_locked(session: Session) -> None:
    with pytest.raises(NotFound, match=r"^node not found$"):
        lock(session, "nobody")


# Locking many


def test_lock_many_gives_free_machines_and_says_so_in_one_event_each(session: Session, stopped_clock: Any) -> None:
    add(session, "b", "a", "c")
    assert lock_many(session, 2) == ["a", "b"]
    assert state(session, "a") == state(session, "b") == (True, "a@b", SINCE, "why")
    assert state(session, "c") == (False, None, None, None)
    told = {"locked_by": "a@b", "description": "why"}
    assert events(session)[3:] == [
        ("machine.locked", "machines/a", told),
        ("machine.locked", "machines/b", told),
    ]


def test_lock_many_passes_over_what_is_down_locked_or_of_another_type(session: Session) -> None:
    add(session, "down", up=False)
    add(session, "locked", locked=True, locked_by="a@b", description="why")
    add(session, "other", machine_type="mira")
    add(session, "good")
    assert lock_many(session, 1) == ["good"]
    with pytest.raises(Exhausted, match=r"^only 0 nodes available$"):
        lock_many(session, 1)


def test_lock_many_takes_all_or_nothing(session: Session) -> None:
    add(session, "one", "two")
    with pytest.raises(Exhausted, match=r"^only 2 nodes available$"):
        lock_many(session, 3)
    assert locked_names(session) == []
    assert len(events(session)) == 2


def test_lock_many_takes_machines_of_several_types(session: Session) -> None:
    add(session, "one")
    add(session, "two", machine_type="mira")
    add(session, "three", machine_type="vps")
    assert lock_many(session, 2, machine_types=["smithi", "mira"]) == ["one", "two"]


@pytest.mark.parametrize("key", ["os_type", "os_version", "arch"])
def test_lock_many_takes_only_what_runs_the_system_that_is_wanted(session: Session, key: str) -> None:
    add(session, "bare")
    add(session, "wrong", **{key: "this"})
    add(session, "right", **{key: "that"})
    assert lock_many(session, 1, **{key: "that"}) == ["right"]
    with pytest.raises(Exhausted, match=r"^only 0 nodes available$"):
        lock_many(session, 1, **{key: "that"})


def test_lock_many_replaces_the_description_of_an_earlier_lock(session: Session) -> None:
    add(session, "one", description="old")
    lock_many(session, 1, description=None)
    assert state(session, "one")[3] is None


# Unlocking many


def test_unlock_many_unlocks_all_and_keeps_the_descriptions(session: Session) -> None:
    add(session, "b", "a", "c", locked=True, locked_by="a@b", description="why")
    unlocked = service.unlock_many(session, ["b", "a", "b"], "a@b")
    assert [(machine["name"], machine["locked"], machine["locked_by"]) for machine in unlocked] == [
        ("a", False, None),
        ("b", False, None),
    ]
    assert state(session, "a") == state(session, "b") == (False, None, None, "why")
    assert locked_names(session) == ["c"]
    assert [(kind, subject) for kind, subject, _ in events(session)[3:]] == [
        ("machine.unlocked", "machines/b"),
        ("machine.unlocked", "machines/a"),
    ]


def test_unlock_many_unlocks_nothing_if_one_is_somebody_elses(session: Session) -> None:
    add(session, "mine", locked=True, locked_by="a@b")
    add(session, "theirs", locked=True, locked_by="c@d")
    with pytest.raises(Forbidden, match=r"^Cannot unlock - locked_by values must match$"):
        service.unlock_many(session, ["mine", "theirs"], "a@b")
    assert locked_names(session) == ["mine", "theirs"]


def test_unlock_many_unlocks_nothing_if_one_is_not_locked(session: Session) -> None:
    add(session, "mine", locked=True, locked_by="a@b")
    add(session, "free")
    with pytest.raises(Forbidden, match=r"^Cannot unlock an already-unlocked node$"):
        service.unlock_many(session, ["mine", "free"], "a@b")
    assert locked_names(session) == ["mine"]


def test_unlock_many_unlocks_nothing_if_one_is_unknown(session: Session) -> None:
    add(session, "mine", locked=True, locked_by="a@b")
    with pytest.raises(Invalid, match=r"^Could not find all nodes!$"):
        service.unlock_many(session, ["mine", "nobody"], "a@b")
    assert locked_names(session) == ["mine"]


# Machines that jobs name


def test_ensure_adds_what_is_not_known_and_gives_the_ids_of_all(session: Session) -> None:
    add(session, "known")
    ids = service.ensure(session, ["new", "known", "new"], "mira")
    rows = session.execute(select(Machine.name, Machine.up, Machine.locked, Machine.machine_type).order_by(Machine.id))
    assert [tuple(row) for row in rows] == [("known", True, False, "smithi"), ("new", False, False, "mira")]
    assert ids == list(session.scalars(select(Machine.id).order_by(Machine.id)))
    assert events(session)[1:] == [("machine.added", "machines/new", {})]


def test_ensure_gives_nobody_a_machine_that_it_added(session: Session) -> None:
    service.ensure(session, ["new"], "smithi")
    with pytest.raises(Exhausted):
        lock_many(session, 1)


@pytest.mark.parametrize("machine_type", [None, ""])
def test_ensure_does_without_a_type(session: Session, machine_type: str | None) -> None:
    service.ensure(session, ["new"], machine_type)
    assert queries.machine_types(session) == []


def test_ensure_refuses_what_cannot_be_a_name(session: Session) -> None:
    with pytest.raises(Invalid):
        service.ensure(session, ["good", "x" * 256], None)
    assert reference.machines(session, {}) == []


def test_ensure_of_nothing_gives_nothing(session: Session) -> None:
    assert service.ensure(session, [], None) == []


# What it costs


def test_a_lock_costs_three_statements_and_lock_many_two(session: Session, statements: Callable[[], Any]) -> None:
    add(session, "one", "two", "three")
    costs = []
    for act in (
        lambda: lock(session, "one"),
        lambda: unlock(session, "one"),
        lambda: lock_many(session, 3),
        lambda: service.unlock_many(session, ["one", "two"], "a@b"),
        lambda: service.change(session, "one", {"up": False, "vm_host": "two", "locked": True, "locked_by": "a@b"}),
        lambda: service.ensure(session, ["one", "two"], None),
        lambda: queries.machine_types(session),
        lambda: queries.machines(session, {"up": True, "machine_type": ["smithi"]}),
    ):
        with statements() as sent:
            act()
        costs.append(len(sent))
    assert costs == [3, 3, 2, 3, 4, 1, 1, 1]


@pytest.mark.parametrize("name", ["lock_many", "unlock_many", "machine_types", "job_stats", ".", ".."])
def test_a_machine_cannot_have_a_name_whose_url_is_something_else(session: Session, name: str) -> None:
    for attempt in (lambda: add(session, name), lambda: service.ensure(session, ["one", name], None)):
        with pytest.raises(Invalid) as raised:
            attempt()
        assert raised.value.field == "name"

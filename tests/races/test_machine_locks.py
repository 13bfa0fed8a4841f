import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from webtest import TestApp

from labctl.db import reading, transaction
from labctl.errors import Exhausted, Forbidden, LabError, NotFound, Unavailable
from labctl.events.models import Event
from labctl.machines import service
from labctl.machines.models import Machine
from labctl.machines.service import Wanted
from tests.machines import reference

THREADS = 16
AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]
pytestmark = pytest.mark.usefixtures("committed")


def add(count: int, **given: Any) -> list[str]:
    names = [f"m{number:03}" for number in range(count)]
    with transaction() as session:
        for name in names:
            service.add(session, name, {"up": True, "machine_type": "smithi", **given})
    return names


def lock_many(count: int, by: str = "a@b") -> list[str] | LabError:
    """Give the names of the machines that were locked, or the error."""
    try:
        with transaction() as session:
            machines = service.lock_many(
                session, Wanted(count=count, machine_types=["smithi"], locked_by=by, description=by)
            )
            return [machine["name"] for machine in machines]
    except LabError as error:
        return error


def unlock_many(names: list[str], by: str = "a@b") -> LabError | None:
    try:
        with transaction() as session:
            service.unlock_many(session, names, by)
    except LabError as error:
        return error
    return None


def change_lock(name: str, locked: bool, by: str) -> LabError | None:
    try:
        with transaction() as session:
            service.change_lock(session, name, {"locked": locked, "locked_by": by})
    except LabError as error:
        return error
    return None


def locked_by() -> dict[str, str]:
    with reading() as session:
        return {machine["name"]: machine["locked_by"] for machine in reference.machines(session, {"locked": True})}


def remove(name: str) -> LabError | None:
    try:
        with transaction() as session:
            service.remove(session, name)
    except LabError as error:
        return error
    return None


def impatient(session: Any) -> None:
    """Let a session that waits for a row give up soon."""
    session.execute(text("SET LOCAL lock_timeout = '50ms'"))


def until_somebody_waits(session: Any) -> None:
    """Go on when another transaction waits for this one."""
    deadline = time.monotonic() + 30
    while not session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
        assert time.monotonic() < deadline


def remove_at_once(name: str) -> LabError | None:
    """Remove a machine, or give up soon."""
    try:
        with transaction() as session:
            impatient(session)
            service.remove(session, name)
    except LabError as error:
        return error
    return None


@pytest.mark.parametrize("attempt", range(8))
def test_many_who_lock_at_once_get_all_they_want_while_there_is_enough(at_once: AtOnce, attempt: int) -> None:
    counts = [1 + (number + attempt) % 5 for number in range(THREADS)]
    names = add(sum(counts))
    results = at_once([lambda n=n, c=c: lock_many(c, f"user{n}") for n, c in enumerate(counts)])
    assert [result for result in results if isinstance(result, LabError)] == []
    assert [len(result) for result in results] == counts
    given = {name: f"user{number}" for number, result in enumerate(results) for name in result}
    assert sorted(given) == names
    assert locked_by() == given
    with reading() as session:
        assert session.scalar(select(func.count()).where(Event.kind == "machine.locked")) == len(names)


@pytest.mark.parametrize("attempt", range(8))
def test_many_who_lock_more_than_there_is_get_all_or_nothing(at_once: AtOnce, attempt: int) -> None:
    counts = [1 + (number + attempt) % 7 for number in range(THREADS)]
    names = add(sum(counts) // 2)
    results = at_once([lambda n=n, c=c: lock_many(c, f"user{n}") for n, c in enumerate(counts)])
    given = [name for result in results if isinstance(result, list) for name in result]
    assert len(given) == len(set(given))
    assert sorted(locked_by()) == sorted(given)
    left = len(names) - len(given)
    for count, result in zip(counts, results, strict=True):
        if isinstance(result, list):
            assert len(result) == count
        else:
            # Whoever got nothing wanted more than there was then, and there was no less than there is now.
            assert isinstance(result, Exhausted)
            assert left <= int(result.message.split()[1]) < count


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_who_want_everything_one_gets_it(at_once: AtOnce, attempt: int) -> None:
    names = add(400)
    results = at_once([lambda n=n: lock_many(400, f"user{n}") for n in range(10)])
    assert [result for result in results if isinstance(result, list)] == [names]
    assert [result.message for result in results if isinstance(result, LabError)] == ["only 0 nodes available"] * 9


def test_machines_go_round_without_being_lost_or_given_twice(at_once: AtOnce) -> None:
    names = add(THREADS * 2)
    holders: dict[str, str] = {}

    def borrow(by: str) -> None:
        for count in (1, 2, 3, 2, 1) * 4:
            taken = lock_many(count, by)
            if isinstance(taken, Exhausted):
                continue
            assert isinstance(taken, list)
            for name in taken:
                assert holders.setdefault(name, by) == by
            for name in taken:
                del holders[name]
            assert unlock_many(taken[::-1], by) is None

    at_once([lambda n=n: borrow(f"user{n}") for n in range(THREADS)])
    assert locked_by() == {}
    assert isinstance(lock_many(len(names)), list)


def test_one_of_many_locks_a_machine_and_one_unlocks_it(at_once: AtOnce) -> None:
    add(1)
    for _ in range(5):
        results = at_once([lambda n=n: change_lock("m000", True, f"user{n}") for n in range(THREADS)])
        winner = results.index(None)
        assert [type(result) for result in results].count(Forbidden) == THREADS - 1
        assert locked_by() == {"m000": f"user{winner}"}
        results = at_once([lambda: change_lock("m000", False, f"user{winner}")] * THREADS)  # noqa: B023
        assert [type(result) for result in results].count(Forbidden) == THREADS - 1
        assert locked_by() == {}


def test_a_lock_by_name_and_lock_many_do_not_give_a_machine_twice(at_once: AtOnce) -> None:
    names = add(8)
    results = at_once(
        [*(lambda n=n: change_lock(n, True, "byname") for n in names), *[lambda: lock_many(1, "many")] * 8]
    )
    by_name = sum(result is None for result in results[:8])
    many = sum(isinstance(result, list) for result in results[8:])
    assert by_name + many == 8
    assert sorted(locked_by().values()) == ["byname"] * by_name + ["many"] * many


@pytest.mark.parametrize("attempt", range(5))
def test_unlock_many_in_opposite_orders_has_one_winner_and_no_deadlock(at_once: AtOnce, attempt: int) -> None:
    names = add(60, locked=True, locked_by="a@b")
    orders = [names, names[::-1], names[30:] + names[:30], names[1::2] + names[::2]] * 4
    results = at_once([lambda order=order: unlock_many(order) for order in orders])
    assert results.count(None) == 1
    assert [type(result) for result in results].count(Forbidden) == len(orders) - 1
    assert locked_by() == {}


def test_unlock_many_waits_without_holding_what_another_may_get_first(at_once: AtOnce) -> None:
    names = add(6, locked=True, locked_by="a@b")
    waiting = threading.Event()

    def hold_the_first() -> None:
        with transaction() as session:
            session.execute(select(Machine.id).where(Machine.name == names[0]).with_for_update())
            waiting.set()
            until_somebody_waits(session)
            rest = select(Machine.id).where(Machine.name != names[0])
            assert len(session.execute(rest.with_for_update(nowait=True)).all()) == 5

    def unlock_all() -> LabError | None:
        waiting.wait()
        return unlock_many(names[::-1])

    assert at_once([hold_the_first, unlock_all]) == [None, None]


def test_unlock_many_of_overlapping_machines_unlocks_each_once(at_once: AtOnce) -> None:
    names = add(30, locked=True, locked_by="a@b")
    parts = [names[:20], names[:9:-1], names[5:25]]
    results = at_once([lambda part=part: unlock_many(part) for part in parts])
    done = [part for part, result in zip(parts, results, strict=True) if result is None]
    assert len(done) == 1
    assert sorted(locked_by()) == sorted(set(names) - set(done[0]))


def test_lock_many_passes_over_a_machine_that_somebody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    add(2)
    monkeypatch.setattr(service, "PATIENCE", 0.0)
    with transaction() as holder:
        service.change_lock(holder, "m000", {"locked": True, "locked_by": "c@d"})
        error = lock_many(2)
        assert isinstance(error, Unavailable)
        assert lock_many(1) == ["m001"]
    assert locked_by() == {"m000": "c@d", "m001": "a@b"}


def test_lock_many_that_found_too_few_holds_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    add(3)
    others: list[Any] = []
    with transaction() as holder:
        service.change_lock(holder, "m000", {"locked": True, "locked_by": "c@d"})
        # In the middle of the first attempt that is repeated, somebody else takes what is left.
        monkeypatch.setattr("labctl.machines.service.time.sleep", lambda seconds: others.append(lock_many(2, "e@f")))
        error = lock_many(3)
    assert others == [["m001", "m002"]]
    assert isinstance(error, Exhausted)
    assert error.message == "only 1 nodes available"


def test_lock_many_gets_what_is_let_go_a_moment_later(committed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    names = add(2)
    with committed.connect() as holder:
        holder.execute(select(Machine.id).where(Machine.name == "m000").with_for_update())
        monkeypatch.setattr("labctl.machines.service.time.sleep", lambda seconds: holder.rollback())
        assert lock_many(2) == names


def test_a_job_on_a_machine_and_its_lock_do_not_wait_for_each_other() -> None:
    add(2)
    with transaction() as locking, transaction() as reporting:
        service.change_lock(locking, "m000", {"locked": True, "locked_by": "c@d"})
        impatient(reporting)
        assert len(service.ensure(reporting, ["m000", "m001"], None)) == 2
        assert lock_many(1) == ["m001"]


def test_machines_that_several_jobs_name_are_added_once(at_once: AtOnce) -> None:
    names = [f"n{number}" for number in range(40)]
    orders = [names, names[::-1], names[20:] + names[:20], names[::2] + names[1::2]] * 4

    def ensure(order: list[str]) -> list[int]:
        with transaction() as session:
            return service.ensure(session, order, "smithi")

    results = at_once([lambda order=order: ensure(order) for order in orders])
    with reading() as session:
        assert session.scalar(select(func.count(Machine.id))) == 40
        assert session.scalar(select(func.count()).where(Event.kind == "machine.added")) == 40
        ids = list(session.scalars(select(Machine.id).order_by(Machine.id)))
    assert results == [ids] * len(orders)


def test_machines_are_added_by_name_so_that_two_jobs_do_not_wait_for_each_other(at_once: AtOnce) -> None:
    waiting = threading.Event()

    def add_first_and_last() -> None:
        with transaction() as session:
            service.add(session, "a", {})
            waiting.set()
            until_somebody_waits(session)
            impatient(session)
            service.add(session, "z", {})

    def ensure() -> int:
        waiting.wait()
        with transaction() as session:
            return len(service.ensure(session, ["z", "a"], None))

    assert at_once([add_first_and_last, ensure]) == [None, 2]


def test_a_machine_that_a_job_names_is_not_removed_before_the_job_is_there() -> None:
    add(1)
    with transaction() as reporting:
        service.ensure(reporting, ["m000"], None)
        assert isinstance(remove_at_once("m000"), Unavailable)
    assert remove_at_once("m000") is None


def test_a_host_is_not_removed_while_a_vm_is_given_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    add(2)
    hold, removed = service._hold, []

    def hold_late(*args: Any) -> Any:
        # Between looking for the host and naming it in the machine's row.
        removed.append(remove_at_once("m000"))
        return hold(*args)

    monkeypatch.setattr(service, "_hold", hold_late)
    with transaction() as session:
        service.change(session, "m001", {"vm_host": "m000"})
    assert [type(error) for error in removed] == [Unavailable]
    with reading() as session:
        guest = reference.machine(session, "m001")
    assert guest is not None
    assert guest["vm_host"] == "m000"


def test_one_of_many_adds_and_one_removes_a_machine(at_once: AtOnce, committed_app: TestApp) -> None:
    answers = at_once([lambda: committed_app.post_json("/nodes/", {"name": "one"}, status="*").status_int] * THREADS)
    assert sorted(answers) == [200] + [400] * (THREADS - 1)

    results = at_once([lambda: remove("one")] * THREADS)
    assert results.count(None) == 1
    assert [type(result) for result in results].count(NotFound) == THREADS - 1

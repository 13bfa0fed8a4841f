"""Sessions that many clients, and the engine, want to change at once; and answers that meet their questions."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from labctl import clock, db
from labctl.db import Actor, transaction
from labctl.errors import Conflict, Exhausted
from labctl.machines.models import Machine
from labctl.maintenance import config, editing, notices, service
from labctl.maintenance.editing import Edit
from labctl.maintenance.engine import Engine
from labctl.maintenance.models import MaintenanceAction, MaintenanceHost, MaintenanceReply, MaintenanceSession
from labctl.maintenance.service import Answer, Wanted
from labctl.maintenance.states import DONE, FAILED, FIRST
from labctl.maintenance.workflow import Notify
from labctl.settings import MAINTENANCE_REPLIES

from .asking import add_hosts

pytestmark = pytest.mark.usefixtures("committed")
AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]
DOCTOR = Actor("doctor")
RULES = editing.Rules(most=3, asks_hosts=lambda row: True)
THREADS = 8


@pytest.fixture(autouse=True)
def hosts(committed: Any) -> list[str]:
    names = [f"host{number}" for number in range(THREADS)]
    with transaction(DOCTOR) as session:
        add_hosts(session, *names)
    return names


def begin(*hosts: str, most: int = 100) -> str | type[Exception]:
    """Begin a session; gives its id, or the kind of its refusal."""
    wanted = Wanted("default", clock.now(), hosts)
    try:
        with transaction(DOCTOR) as session:
            return service.create(session, wanted, most=most, base_url="http://here/v1/maintenance")
    except (Conflict, Exhausted) as error:
        return type(error)


def held() -> Counter[str]:
    with transaction() as session:
        return Counter(session.scalars(select(MaintenanceHost.host).where(MaintenanceHost.held)))


def change(sid: Any, wanted: Edit) -> Any:
    try:
        with transaction(DOCTOR) as session:
            editing.edit(session, sid, wanted, RULES)
    except (Conflict, Exhausted) as error:
        return type(error)
    return sid


def fail(*sids: Any) -> None:
    """Let sessions fail, as the engine does."""
    values = {"state": FAILED, "failed_in": "SCALE_IN", "reason": "no", "due": None}
    with transaction() as session:
        session.execute(update(MaintenanceSession).where(MaintenanceSession.id.in_(sids)).values(values))
        session.execute(update(MaintenanceHost).where(MaintenanceHost.session_id.in_(sids)).values(held=False))


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_who_want_the_same_hosts_at_once_one_gets_them(at_once: AtOnce, hosts: list[str], attempt: int) -> None:
    # In all orders, and each with a host that nobody else wants.
    wanted = [[*hosts[number:], *hosts[:number]] for number in range(THREADS)]
    given = at_once([lambda names=names: begin(*names) for names in wanted])  # type: ignore[misc]

    assert Counter(each for each in given if not isinstance(each, str)) == {Conflict: THREADS - 1}
    assert held() == dict.fromkeys(hosts, 1)


@pytest.mark.parametrize("attempt", range(3))
def test_no_more_sessions_than_may_are_begun_at_once(at_once: AtOnce, hosts: list[str], attempt: int) -> None:
    given = at_once([lambda name=name: begin(name, most=3) for name in hosts])  # type: ignore[misc]

    assert Counter(each for each in given if not isinstance(each, str)) == {Exhausted: THREADS - 3}
    assert sum(held().values()) == 3


def test_of_many_who_begin_continue_and_add_at_once_one_gets_a_host(at_once: AtOnce, hosts: list[str]) -> None:
    failed = [begin("host0")]
    fail(*failed)
    failed.append(begin("host0"))
    fail(*failed)
    other = begin("host1")

    given = at_once(
        [
            lambda: begin("host0"),
            lambda: begin("host2", "host0"),
            lambda: change(failed[0], Edit()),
            lambda: change(failed[1], Edit()),
            lambda: change(other, Edit(add_hosts=["host0"])),
        ]
    )
    assert len([each for each in given if isinstance(each, str)]) == 1
    assert held()["host0"] == 1


def test_no_more_sessions_than_may_are_continued_at_once(at_once: AtOnce, hosts: list[str]) -> None:
    sids = [begin(name) for name in hosts]
    fail(*sids)

    given = at_once([lambda sid=sid: change(sid, Edit()) for sid in sids])  # type: ignore[misc]
    assert Counter(each for each in given if not isinstance(each, str)) == {Exhausted: THREADS - 3}


def test_the_database_itself_keeps_a_host_out_of_a_second_session() -> None:
    first, second = begin("host0"), begin("host1")

    with pytest.raises(IntegrityError, match="uq_maintenance_hosts_held"), transaction() as session:
        session.execute(update(MaintenanceHost).values(host="host0").where(MaintenanceHost.session_id == second))
    assert isinstance(first, str)


def test_changes_at_once_are_made_one_after_the_other(at_once: AtOnce, hosts: list[str]) -> None:
    sid = begin("host0")

    at_once([lambda name=name: change(sid, Edit(add_hosts=[name])) for name in hosts[1:]])  # type: ignore[misc]
    with transaction() as session:
        rows = session.execute(select(MaintenanceHost.position, MaintenanceHost.host)).all()
    assert sorted(row.position for row in rows) == list(range(THREADS))


def answer(sid: Any, text: str) -> None:
    with transaction(Actor("alice")) as session:
        said = Answer(text, text.partition("_")[2])
        service.reply(session, sid, "alice", said, lambda name: config.workflow(name).steps)


def ask(sid: Any, state: str = "SCALE_IN", **changes: Any) -> None:
    with transaction() as session:
        session.execute(select(MaintenanceSession).where(MaintenanceSession.id == sid).with_for_update())
        reply_by = clock.now() + timedelta(minutes=1)
        notices.notify(session, sid, Notify("alice", state, (), reply_by, **changes))


def replies() -> list[tuple[Any, ...]]:
    with transaction() as session:
        rows = session.scalars(select(MaintenanceReply).order_by(MaintenanceReply.asked)).all()
        return [(row.state, row.host, row.round, row.asked is not None, row.answer) for row in rows]


def test_an_answer_that_comes_before_its_question_counts() -> None:
    sid = begin("host0")
    answer(sid, "ACK_SCALE_IN")
    answer(sid, "ACK_PLANNED_MAINTENANCE")

    ask(sid)
    ask(sid, "PLANNED_MAINTENANCE", host="host0")
    assert replies() == [
        ("SCALE_IN", "", 1, True, "ACK_SCALE_IN"),
        ("PLANNED_MAINTENANCE", "host0", 1, True, "ACK_PLANNED_MAINTENANCE"),
    ]
    # And for nothing that is asked later.
    ask(sid, "PLANNED_MAINTENANCE", host="host1")
    assert replies()[-1] == ("PLANNED_MAINTENANCE", "host1", 1, True, None)


@pytest.mark.parametrize("attempt", range(5))
def test_an_answer_and_its_question_at_once_meet(at_once: AtOnce, attempt: int) -> None:
    sid = begin("host0")

    at_once([lambda: ask(sid), lambda: answer(sid, "ACK_SCALE_IN")])
    assert replies() == [("SCALE_IN", "", 1, True, "ACK_SCALE_IN")]


def test_an_answer_that_comes_twice_at_once_is_one(at_once: AtOnce) -> None:
    sid = begin("host0")
    ask(sid)

    at_once([lambda: answer(sid, "ACK_SCALE_IN")] * THREADS)
    assert replies() == [("SCALE_IN", "", 1, True, "ACK_SCALE_IN")]


def test_a_session_is_deleted_once(at_once: AtOnce) -> None:
    sid = begin("host0")

    def remove() -> str:
        try:
            with transaction(DOCTOR) as session:
                service.remove(session, str(sid))
        except db.Unavailable:
            raise
        except Exception as error:
            return str(error)
        return "deleted"

    assert Counter(at_once([remove] * 4)) == {"deleted": 1, "Invalid session": 3}


# With the engine


def run(sid: str, until: Callable[[Any], bool]) -> list[str]:
    """Let the engine work until the session's row is as wanted; gives the states it was in."""
    engine = Engine(MAINTENANCE_REPLIES)
    states = []
    for _ in range(200):
        with transaction() as session:
            # As if the time had passed that it wants to wait.
            due = update(MaintenanceSession).where(MaintenanceSession.due.is_not(None)).values(due=clock.now())
            session.execute(due)
        engine.tick()
        with transaction() as session:
            row = session.get(MaintenanceSession, sid)
            states.append(row.state if row else "")
            if until(row):
                return list(dict.fromkeys(states))
    raise AssertionError(f"it went through {states}")


def ended(row: Any) -> bool:
    return row is None or row.state in (DONE, FAILED)


def one_of(kind: str, fail: Any = 1, **metadata: Any) -> str:
    """Begin a session over two hosts with an action that fails once."""
    action = {"plugin": "dummy", "type": kind, "metadata": {"fail": fail, **metadata}}
    wanted = Wanted("default", clock.now(), ("host0", "host1"), {"gate": "none"}, [action])
    with transaction(DOCTOR) as session:
        return service.create(session, wanted, most=3, base_url="http://here/v1/maintenance")


def machines() -> dict[str, tuple[bool, str | None]]:
    with transaction() as session:
        found = session.scalars(select(Machine).where(Machine.name.in_(("host0", "host1")))).all()
        return {machine.name: (machine.locked, machine.cordoned) for machine in found}


FREE = {"host0": (False, None), "host1": (False, None)}


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("pre", "MAINTENANCE"),
        ("host", "START_MAINTENANCE"),
        ("check", "START_MAINTENANCE"),
        ("post", "MAINTENANCE_COMPLETE"),
    ],
)
def test_a_session_that_failed_goes_on_to_its_end_when_it_is_continued(kind: str, state: str) -> None:
    sid = one_of(kind)
    run(sid, ended)
    with transaction() as session:
        row = session.get_one(MaintenanceSession, sid)
        assert (row.state, row.failed_in) == (FAILED, state), row.reason
        failed = session.scalars(select(MaintenanceHost.host).where(MaintenanceHost.state == "failed")).all()
    assert failed == (["host0"] if state == "START_MAINTENANCE" else [])
    assert {name: cordoned is not None for name, (_, cordoned) in machines().items()} == {
        "host0": bool(failed),
        "host1": False,
    }

    # What is done on the second host fails once as well.
    for _ in range(2 if failed else 1):
        assert change(sid, Edit()) == sid
        assert run(sid, ended)[0] in (state, DONE, FAILED)
    with transaction() as session:
        assert session.get_one(MaintenanceSession, sid).state == DONE
    assert machines() == FREE
    assert not held()


def test_a_host_that_fails_again_and_again_is_skipped() -> None:
    sid = one_of("host", fail=True, hosts=["host0"])
    for _ in range(2):
        run(sid, ended)
        assert change(sid, Edit(retry=["host0"])) == sid
    run(sid, ended)

    assert change(sid, Edit(skip=["host0"])) == sid
    assert machines() == FREE
    run(sid, ended)
    with transaction() as session:
        assert session.get_one(MaintenanceSession, sid).state == DONE


@pytest.mark.parametrize("failed", [True, False])
def test_a_session_that_is_deleted_leaves_its_hosts_in_service(failed: bool) -> None:
    sid = one_of("host", fail=True) if failed else one_of("host", fail=False, seconds=1000)
    run(sid, ended if failed else lambda row: machines() != FREE)
    with transaction(DOCTOR) as session:
        service.remove(session, sid)
    if not failed:
        with transaction() as session:
            session.execute(update(MaintenanceAction).values(state="done"))

    run(sid, lambda row: row is None)
    assert machines() == FREE
    assert isinstance(begin("host0", "host1"), str)


def test_a_session_that_is_paused_stays_where_it_is_until_it_goes_on() -> None:
    sid = one_of("host", fail=False)
    assert change(sid, Edit(paused=True)) == sid
    engine = Engine(MAINTENANCE_REPLIES)
    for _ in range(5):
        engine.tick()
    assert machines() == FREE
    with transaction() as session:
        assert session.get_one(MaintenanceSession, sid).state == FIRST

    assert change(sid, Edit(paused=False)) == sid
    assert run(sid, ended)[-1] == DONE


# Forgetting


def test_sessions_that_ended_long_ago_are_forgotten_unless_a_host_is_out_of_service() -> None:
    now = clock.now()
    kept, done, failed, broken, late = (begin(f"host{number}") for number in range(5))
    old = {"finished": now - timedelta(days=2)}
    with transaction() as session:
        for sid, values in (
            (done, {"state": DONE, **old}),
            (failed, {"state": FAILED, **old}),
            (broken, {"state": FAILED, **old}),
            (late, {"state": DONE, "finished": now}),
        ):
            session.execute(update(MaintenanceSession).where(MaintenanceSession.id == sid).values(values))
        session.execute(update(MaintenanceHost).where(MaintenanceHost.session_id == broken).values(cordoned=True))

    before = now - timedelta(days=1)
    counts = []
    for _ in range(3):
        with transaction() as session:
            counts.append(service.purge(session, before, 1))
    assert counts == [1, 1, 0]
    with transaction() as session:
        assert set(session.scalars(select(MaintenanceSession.id))) == {kept, broken, late}

"""Asking for operations on hosts, ending them before their time, and forgetting them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Actor, transaction
from labctl.errors import Conflict, Invalid, NotFound, Unavailable
from labctl.events.models import Event
from labctl.remote import queries, running, service
from labctl.remote.models import RemoteInventory, RemoteJob, RemoteJobHost, RemoteOutput
from labctl.remote.service import MASK, Wanted, masked
from labctl.remote.states import EXCLUSIVE, JobState, Operation

from .factories import ARGUMENTS
from .web import HOSTS, add_hosts, carry_out, claim, finish, piece

SHARED = sorted(set(Operation) - EXCLUSIVE)


@pytest.fixture(autouse=True)
def inventory(session: Session) -> None:
    add_hosts(session)


def submit(*targets: str, operation: Operation = Operation.PING, by: str = "alice", **changes: Any) -> str:
    arguments = changes.pop("arguments", ARGUMENTS[operation])
    values: dict[str, Any] = {"asked_by": by, "address": "10.0.0.1", "timeout": 60, **changes}
    with transaction(Actor(by)) as session:
        return service.submit(session, Wanted(operation, targets, arguments), **values)


def cancel(jid: str, by: str = "bob") -> None:
    with transaction(Actor(by)) as session:
        service.cancel(session, jid, by)


def delete(jid: str) -> None:
    with transaction() as session:
        service.delete(session, jid)


def job(session: Session, jid: str) -> Any:
    return queries.job(session, jid)


def row(session: Session, jid: str) -> RemoteJob:
    session.expire_all()
    return session.scalars(select(RemoteJob).where(RemoteJob.jid == jid)).one()


def events(session: Session, jid: str) -> list[tuple[str, str, dict[str, Any]]]:
    found = session.scalars(select(Event).where(Event.subject == f"remote/{jid}").order_by(Event.seq))
    return [(event.kind, event.actor, event.data) for event in found]


def wakes(session: Session) -> int:
    return session.execute(text("SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'remote.wake'")).scalar_one()


# What is added


def test_a_job_waits_with_all_that_was_asked_and_a_worker_is_woken(session: Session) -> None:
    before = clock.now()
    jid = submit("web2", "db1", timeout=7.5, begin_within=30)

    found = job(session, jid)
    assert (found.state, found.operation, found.error, found.last_seq) == ("queued", "ping", "", 0)
    assert (found.asked_by, found.address, found.timeout) == ("alice", "10.0.0.1", 7.5)
    assert found.hosts == ["web2", "db1"]
    assert found.host_states == ["waiting", "waiting"]
    assert before <= found.created <= clock.now()
    assert row(session, jid).begin_by == found.created + timedelta(seconds=30)
    data = {"operation": "ping", "hosts": 2, "arguments": {}, "address": "10.0.0.1"}
    assert events(session, jid) == [("remote.job_added", "alice", data)]
    assert wakes(session) == 1


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_is_named_as_it_is_whatever_characters_it_has(session: Session, name: str) -> None:
    assert job(session, submit(name)).hosts == [name]


def test_patterns_and_groups_stand_for_hosts_each_of_which_is_taken_once(session: Session) -> None:
    jid = submit("web2", "web,db", "*", "web1", "!web:*")
    assert job(session, jid).hosts == ["web2", "db1", "web1", "[x]", "fe80::1"]


def test_targets_that_mean_no_host_are_all_named_and_nothing_is_added(session: Session) -> None:
    with pytest.raises(NotFound, match=r"^no hosts match that target: nosuch, \*\.example$"):
        submit("web1", "nosuch", "*.example", "db1")
    assert session.scalars(select(RemoteJob)).all() == []
    assert wakes(session) == 0


def test_of_many_targets_that_mean_no_host_some_are_named() -> None:
    with pytest.raises(NotFound, match=r"no hosts match that target: n0, .*n19 and 30 more$"):
        submit(*[f"n{number}" for number in range(50)])


def test_nothing_is_added_before_the_inventory_was_read(session: Session) -> None:
    session.execute(text("DELETE FROM remote_inventory"))
    with pytest.raises(Unavailable, match="the inventory has not been read yet; is a worker running"):
        submit("web1")


def test_an_inventory_that_could_never_be_read_says_why(session: Session) -> None:
    session.execute(text("DELETE FROM remote_hosts"))
    session.execute(update(RemoteInventory).values(error="there is no file /etc/hosts.ini"))
    with pytest.raises(Unavailable, match=r"^the inventory cannot be read: there is no file /etc/hosts\.ini$"):
        submit("web1")


def test_hosts_stay_usable_when_the_inventory_can_be_read_no_more(session: Session) -> None:
    session.execute(update(RemoteInventory).values(error="it is broken"))
    assert job(session, submit("web")).hosts == ["web1", "web2"]


def test_there_may_be_so_many_hosts_and_no_more(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_HOSTS", 3)
    assert submit("web1", "web2", "db1")
    with pytest.raises(Invalid, match="must be 1 to 3 hosts"):
        submit("*")


def test_a_key_makes_asking_twice_asking_once(session: Session) -> None:
    first = submit("web1", operation=Operation.DEPLOY, key="session 1 step 2")
    # Even when its hosts are not there any more.
    assert submit("nosuch", operation=Operation.DEPLOY, key="session 1 step 2") == first
    assert submit("web1", key="session 1 step 3") != first
    assert len(session.scalars(select(RemoteJob)).all()) == 2
    assert len(events(session, first)) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"role": "../etc", "partial": None, "extra_vars": {}}, "role: '../etc' is no name of a role"),
        ({"role": "r", "partial": ["a,b"], "extra_vars": {}}, "partial: 'a,b' is no tag"),
        ({"role": "r", "partial": None, "extra_vars": {"ansible_host": "x"}}, "extra_vars: ansible_host cannot be set"),
    ],
)
def test_arguments_that_no_executor_takes_are_refused(session: Session, arguments: Any, problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        submit("web1", operation=Operation.DEPLOY, arguments=arguments)
    assert session.scalars(select(RemoteJob)).all() == []


# Secrets


def test_what_is_secret_is_shown_nowhere_and_given_to_the_worker(session: Session) -> None:
    secret = {
        "role": "nginx",
        "partial": None,
        "extra_vars": {"server_name": "hunter2", "nested": {"a": ["hunter2"]}},
    }
    jid = submit("web1", operation=Operation.DEPLOY, arguments=secret)

    shown = {"role": "nginx", "partial": None, "extra_vars": {"server_name": MASK, "nested": MASK}}
    assert job(session, jid).arguments == shown
    assert "hunter2" not in str(events(session, jid))
    taken = claim()
    assert taken.arguments == secret
    assert taken.shown == shown
    finish(taken, piece("web1"))
    assert row(session, jid).unmasked is None
    everything = "".join(session.execute(text("SELECT remote_jobs::text FROM remote_jobs")).scalars())
    assert "hunter2" not in everything + str(events(session, jid))


@pytest.mark.parametrize(
    "key",
    [
        *("password", "Passwd", "db_password", "PASSWORD", "passphrase", "pass", "secret", "client-secret", "token"),
        *("api_token", "key", "apiKey", "ssh_key", "credentials", "aws_credential", "authorization", "private", "pwd"),
    ],
)
@pytest.mark.parametrize("value", ["x", 1, ["x"], {"user": "x"}, {"deep": [{"deeper": "x"}]}, True])
def test_values_under_keys_that_name_secrets_are_masked_at_any_depth(key: str, value: Any) -> None:
    shown = masked({"taskopts": [{"a": {key: value}}], "name": "x"})
    assert shown["name"] == "x"
    inner = shown["taskopts"][0]["a"][key]
    assert str(inner).replace("deeper", "").count("x") == 0
    assert MASK in str(inner)


def test_what_is_not_secret_is_shown_as_it_is() -> None:
    plain = {
        "role": "r",
        "partial": ["a"],
        "bypass": 1,
        "passes": 2,
        "compass": 3,
        "extra_vars": None,
        "password": None,
    }
    assert masked(plain) == plain


# Conflicts


@pytest.mark.parametrize("operation", sorted(EXCLUSIVE))
def test_a_host_is_held_from_the_request_to_the_end_and_the_error_says_by_whom(
    session: Session, operation: Operation
) -> None:
    first = submit("web1", "db1", operation=operation)
    second = submit("web2", operation=operation, by="bob")
    expected = (
        f"^operate conflict: db1 is busy with {operation} {first} of alice; "
        f"web2 is busy with {operation} {second} of bob$"
    )
    with pytest.raises(Conflict, match=expected):
        submit("db1", "fe80::1", "web2", operation=operation, by="carol")
    # All or nothing: what was free is free.
    third = submit("fe80::1", operation=operation)
    carry_out(piece("web1"), piece("db1"))
    assert submit("db1", "web1", operation=operation)
    assert job(session, third).state == "queued"


def test_other_operations_never_conflict(session: Session) -> None:
    submit("web1", operation=Operation.DEPLOY)
    submit("web1", operation=Operation.TASK)
    for operation in SHARED:
        assert submit("web1", operation=operation) != submit("web1", operation=operation)


def test_what_a_dead_worker_held_is_free_although_no_other_worker_runs(session: Session, stopped_clock: Any) -> None:
    lost = submit("web1", "db1", operation=Operation.DEPLOY)
    claim()
    stopped_clock.advance(seconds=29)
    with pytest.raises(Conflict):
        submit("web1", operation=Operation.DEPLOY)
    stopped_clock.advance(seconds=2)
    assert submit("web1", operation=Operation.DEPLOY)
    assert (job(session, lost).state, job(session, lost).error) == ("failed", running.LOST)


def test_a_conflict_leaves_the_callers_transaction_as_it_was(session: Session) -> None:
    submit("web1", operation=Operation.DEPLOY)
    wanted = Wanted(Operation.DEPLOY, ["db1", "web1"], ARGUMENTS[Operation.DEPLOY])
    with transaction() as own:
        own.execute(update(RemoteInventory).values(error="noted"))
        with pytest.raises(Conflict):
            service.submit(own, wanted, asked_by="a", address=None, timeout=1)
    assert session.execute(select(RemoteInventory.error)).scalar_one() == "noted"
    assert len(session.scalars(select(RemoteJob)).all()) == 1
    assert submit("db1", operation=Operation.DEPLOY)


# Ending


def test_a_queued_job_that_is_cancelled_ends_at_once_and_holds_nothing(session: Session) -> None:
    jid = submit("web1", operation=Operation.DEPLOY, arguments={"role": "r", "partial": None, "extra_vars": {"a": "x"}})
    cancel(jid)

    found = job(session, jid)
    assert (found.state, found.error, found.cancelled_by) == ("cancelled", "cancelled by bob", "bob")
    assert found.finished is not None
    assert found.host_states == ["failed"]
    assert row(session, jid).unmasked is None
    assert [kind for kind, *_ in events(session, jid)] == [
        "remote.job_added",
        "remote.job_cancel_asked",
        "remote.job_ended",
    ]
    assert submit("web1", operation=Operation.DEPLOY)


def test_a_running_job_that_is_cancelled_is_left_to_its_worker_which_is_woken(session: Session) -> None:
    jid = submit("web1", operation=Operation.DEPLOY)
    taken = claim()
    cancel(jid)
    cancel(jid, by="carol")

    found = job(session, jid)
    assert (found.state, found.cancelled_by, found.finished) == ("running", "bob", None)
    assert wakes(session) == 2
    with transaction() as own:
        assert running.renew(own, "worker", 30, [taken.id])[taken.id].cancelled_by == "bob"
    with pytest.raises(Conflict):
        submit("web1", operation=Operation.DEPLOY)


def test_a_job_that_has_ended_is_not_changed_by_cancelling_it(session: Session) -> None:
    jid = submit("web1")
    carry_out(piece("web1"))
    before = job(session, jid)
    cancel(jid)
    assert job(session, jid) == before


def test_a_job_whose_worker_was_lost_has_ended_when_it_is_cancelled_or_deleted(
    session: Session, stopped_clock: Any
) -> None:
    first, second = submit("web1"), submit("web1")
    claim()
    claim()
    stopped_clock.advance(seconds=31)
    cancel(first)
    assert (job(session, first).state, job(session, first).cancelled_by) == ("failed", None)
    delete(second)


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_has_not_ended_cannot_be_deleted(session: Session, begun: bool) -> None:
    jid = submit("web1")
    if begun:
        claim()
    with pytest.raises(Invalid, match=f"^cannot delete a running job, jid {jid}$"):
        delete(jid)
    assert job(session, jid)


def test_a_job_that_has_ended_is_deleted_with_all_that_belongs_to_it(session: Session) -> None:
    jid, other = submit("web1"), submit("web1")
    carry_out(piece("web1"))
    delete(jid)

    with pytest.raises(NotFound, match=f"^no such jid {jid}$"):
        job(session, jid)
    assert events(session, jid)[-1][0] == "remote.job_deleted"
    assert session.scalars(select(RemoteOutput)).all() == []
    assert len(session.scalars(select(RemoteJobHost)).all()) == 1
    assert job(session, other).state == JobState.QUEUED


@pytest.mark.parametrize("verb", [cancel, delete])
def test_what_is_done_to_an_unknown_job_is_refused(verb: Callable[[str], None]) -> None:
    with pytest.raises(NotFound, match=r"^no such jid nosuch$"):
        verb("nosuch")

"""What a runner writes: claims, output, ends, and that nobody writes what is not theirs any more."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labctl import db
from labctl.events.models import Event
from labctl.remote import running
from labctl.remote.models import RemoteHost, RemoteInventory, RemoteJob, RemoteJobHost, RemoteOutput
from labctl.remote.running import Piece, Taken
from labctl.remote.states import HostState, JobState, Operation

from .factories import make_job

LEASE = 30.0


def take(session: Session, holder: str = "worker-1", number: int = 10) -> list[Taken]:
    return running.claim(session, holder, number, LEASE)


def hosts(session: Session, job: RemoteJob) -> dict[str, tuple[str, bool]]:
    query = select(RemoteJobHost).where(RemoteJobHost.job_id == job.id).order_by(RemoteJobHost.position)
    session.expire_all()
    return {host.host: (host.state, host.held) for host in session.scalars(query)}


def output(session: Session, job: RemoteJob) -> list[tuple[int, str, str]]:
    query = select(RemoteOutput).where(RemoteOutput.job_id == job.id).order_by(RemoteOutput.seq)
    return [(one.seq, one.host, one.chunk) for one in session.scalars(query)]


def fresh(session: Session, job: RemoteJob) -> RemoteJob:
    session.expire_all()
    return session.get_one(RemoteJob, job.id)


# Claims


def test_the_oldest_jobs_are_claimed_with_what_is_to_be_done(session: Session, stopped_clock: Any) -> None:
    hidden = {"role": "web", "partial": ["a"], "extra_vars": {"password": "hunter2"}}
    shown = {**hidden, "extra_vars": {"password": "***"}}
    first = make_job(session, Operation.DEPLOY, ["b", "a"], arguments=None, unmasked=hidden, timeout=90)
    first.arguments = shown
    session.flush()
    make_job(session)
    make_job(session)
    taken = take(session, number=2)

    assert len(taken) == 2 and len(take(session)) == 1 and take(session) == []
    assert (taken[0].jid, taken[0].operation, taken[0].hosts) == (first.jid, "deploy", ("b", "a"))
    assert (taken[0].arguments, taken[0].shown) == (hidden, shown)
    assert "hunter2" not in repr(taken[0])
    job = fresh(session, first)
    assert (job.state, job.started) == ("running", stopped_clock())
    assert job.deadline == stopped_clock() + timedelta(seconds=90)
    assert job.lease_until == stopped_clock() + timedelta(seconds=LEASE)
    events = session.scalars(select(Event).where(Event.kind == "remote.job_started").order_by(Event.seq)).all()
    assert events[0].subject == f"remote/{first.jid}" and len(events) == 3
    assert "hunter2" not in str([event.data for event in events])


def test_short_jobs_are_claimed_apart_from_the_others_and_then_the_oldest_of_all(session: Session) -> None:
    wanted = (Operation.EXECUTE, Operation.PING, Operation.DEPLOY, Operation.FACTER, Operation.PING)
    jobs = [make_job(session, operation, [f"host{n}"]).jid for n, operation in enumerate(wanted)]
    assert running.due(session).short

    def claimed(number: int, short: int) -> list[str]:
        return [one.jid for one in running.claim(session, "worker-1", number, LEASE, short)]

    assert claimed(0, 0) == []
    assert claimed(0, 1) == [jobs[1]]
    assert claimed(1, 1) == [jobs[0], jobs[3]]
    assert claimed(2, 0) == [jobs[2], jobs[4]]
    assert running.due(session) == running.Due(queued=False, short=False, lost=False, given_up=False)


def test_long_jobs_that_wait_are_not_short(session: Session) -> None:
    make_job(session, Operation.EXECUTE)
    due = running.due(session)

    assert (due.queued, due.short) == (True, False)
    assert running.claim(session, "worker-1", 0, LEASE, 2) == []


def test_two_workers_never_get_one_job(committed: Engine, at_once: Callable[..., list[Any]]) -> None:
    with db.transaction() as session:
        for _ in range(40):
            make_job(session)

    def work(holder: str) -> list[str]:
        found: list[str] = []
        while True:
            with db.transaction() as session:
                taken = take(session, holder, 3)
            if not taken:
                return found
            found += [one.jid for one in taken]

    got = at_once([lambda holder=f"worker-{n}": work(holder) for n in range(4)])
    jids = [jid for some in got for jid in some]
    assert len(jids) == len(set(jids)) == 40


def test_what_waited_too_long_is_not_begun_but_given_up(session: Session, stopped_clock: Any) -> None:
    job = make_job(session, Operation.DEPLOY, begin_by=stopped_clock() + timedelta(seconds=20))
    assert running.give_up_queued(session) == 0
    stopped_clock.advance(seconds=21)

    assert running.due(session) == running.Due(queued=False, short=False, lost=False, given_up=True)
    assert take(session) == [] and running.give_up_queued(session) == 1
    job = fresh(session, job)
    assert (job.state, job.error) == ("failed", "no worker began it within 20 s")
    assert job.unmasked is None and job.finished == stopped_clock()
    assert hosts(session, job) == {"alpha": ("failed", False), "beta": ("failed", False)}


# Output


def test_output_is_numbered_and_hosts_that_have_ended_say_so(session: Session) -> None:
    job = make_job(session)
    (taken,) = take(session)
    assert running.write(session, taken, [Piece("alpha", '{"status":1}', HostState.OK)])
    assert running.write(session, taken, [Piece("beta", '{"status":0}'), Piece("beta", '{"status":3}')])

    assert [(seq, host) for seq, host, _ in output(session, job)] == [(1, "alpha"), (2, "beta"), (3, "beta")]
    assert hosts(session, job) == {"alpha": ("ok", False), "beta": ("waiting", False)}
    assert fresh(session, job).last_seq == 3


def test_output_that_may_have_been_written_is_written_once(session: Session) -> None:
    job = make_job(session)
    (taken,) = take(session)
    pieces = [Piece("alpha", "1", HostState.OK), Piece("beta", "2")]
    assert running.write(session, taken, pieces, after=0)
    assert running.write(session, taken, [*pieces, Piece("beta", "3", HostState.OK)], after=0)

    assert output(session, job) == [(1, "alpha", "1"), (2, "beta", "2"), (3, "beta", "3")]
    assert fresh(session, job).last_seq == 3


def test_the_end_frees_the_hosts_forgets_what_is_secret_and_tells_how_many_hosts_ended_how(
    session: Session, stopped_clock: Any
) -> None:
    job = make_job(session, Operation.DEPLOY, ["a", "b", "c"])
    (taken,) = take(session)
    running.write(session, taken, [Piece("a", '{"status":3}', HostState.FAILED)])
    stopped_clock.advance(seconds=5)
    last = [Piece("b", '{"status":5}')]
    assert running.finish(session, taken, last, state=JobState.FAILED, error="2 of 3", hosts={"b": HostState.CHANGED})

    ended = fresh(session, job)
    assert (ended.state, ended.error, ended.unmasked) == ("failed", "2 of 3", None)
    assert (ended.lease_holder, ended.lease_until, ended.last_seq) == (None, None, 2)
    assert hosts(session, job) == {"a": ("failed", False), "b": ("changed", False), "c": ("failed", False)}
    event = session.scalars(select(Event).where(Event.kind == "remote.job_ended")).one()
    assert event.data["hosts"] == {"failed": 2, "changed": 1}
    assert (event.data["state"], event.data["seconds"]) == ("failed", 5)


def test_a_second_deploy_can_hold_the_hosts_as_soon_as_the_first_has_ended(session: Session) -> None:
    make_job(session, Operation.DEPLOY)
    (taken,) = take(session)
    with pytest.raises(IntegrityError), session.begin_nested():
        make_job(session, Operation.DEPLOY, ["beta", "gamma"])
    running.finish(session, taken, state=JobState.DONE)

    make_job(session, Operation.DEPLOY, ["beta", "gamma"])


def test_who_lost_the_lease_writes_nothing_and_ends_nothing(session: Session, stopped_clock: Any) -> None:
    job = make_job(session)
    (taken,) = take(session)
    stopped_clock.advance(seconds=LEASE)

    assert not running.write(session, taken, [Piece("alpha", "{}", HostState.OK)])
    assert not running.finish(session, taken, [Piece("alpha", "{}", HostState.OK)], state=JobState.DONE)
    assert running.end_lost(session) == 1
    assert not running.write(session, taken, [Piece("alpha", "{}", HostState.OK)])
    assert output(session, job) == []
    assert fresh(session, job).error == "the worker that carried this out was lost"


# Leases


def test_a_renewed_lease_lasts_and_one_that_is_over_is_not_renewed(session: Session, stopped_clock: Any) -> None:
    job = make_job(session)
    (taken,) = take(session)
    stopped_clock.advance(seconds=LEASE - 1)
    assert running.renew(session, "worker-1", LEASE, [job.id])[job.id] == running.Standing(held=True, renewed=True)
    stopped_clock.advance(seconds=LEASE - 1)
    assert running.write(session, taken, []) and running.end_lost(session) == 0
    stopped_clock.advance(seconds=1)

    assert running.renew(session, "worker-1", LEASE, [job.id])[job.id] == running.Standing(held=False)
    assert running.end_lost(session) == 1


def test_nobody_renews_anothers_lease(session: Session) -> None:
    job = make_job(session)
    take(session)

    assert not running.renew(session, "worker-2", LEASE, [job.id])[job.id].held
    assert running.look(session, "worker-1", [job.id])[job.id].held


def test_the_holder_is_told_who_wants_its_job_to_end_and_that_it_is_gone(session: Session, stopped_clock: Any) -> None:
    job = make_job(session)
    take(session)
    fresh(session, job).cancelled = stopped_clock()
    job.cancelled_by = "operator"
    session.flush()

    found = running.renew(session, "worker-1", LEASE, [job.id], [job.id + 1])
    assert found[job.id].cancelled_by == "operator"
    assert found[job.id + 1] == running.Standing(held=False)


def test_the_jobs_of_a_lost_worker_fail_and_hosts_that_had_ended_keep_how(session: Session, stopped_clock: Any) -> None:
    job = make_job(session, Operation.EXECUTE, ["a", "b"])
    (taken,) = take(session)
    running.write(session, taken, [Piece("a", '{"status":5}', HostState.CHANGED)])
    other = make_job(session)
    stopped_clock.advance(seconds=LEASE / 2)
    take(session, "worker-2")
    stopped_clock.advance(seconds=LEASE / 2)

    assert running.due(session).lost
    assert running.end_lost(session) == 1
    assert not running.due(session).lost
    assert fresh(session, job).state == "failed" and fresh(session, other).state == "running"
    assert hosts(session, job) == {"a": ("changed", False), "b": ("failed", False)}
    assert len(output(session, job)) == 1


def test_to_look_for_lost_jobs_costs_one_statement_while_there_is_none(session: Session, statements: Any) -> None:
    make_job(session)
    take(session)
    with statements() as sent:
        running.end_lost(session)

    assert len(sent) == 1


# Forgetting


def test_jobs_that_ended_long_ago_are_forgotten_with_their_output(session: Session, stopped_clock: Any) -> None:
    for _ in range(3):
        make_job(session)
    running_job = make_job(session)
    taken = take(session)
    for one in taken[:3]:
        running.finish(session, one, [Piece("alpha", "{}")], state=JobState.DONE)
    stopped_clock.advance(days=2)
    before = stopped_clock() - timedelta(days=1)

    assert [running.purge(session, before, 2) for _ in range(3)] == [2, 1, 0]
    assert session.scalars(select(RemoteJob.id)).all() == [running_job.id]
    assert session.scalars(select(RemoteOutput)).all() == []


# The inventory


def inventory(session: Session) -> dict[str, list[str]]:
    session.expire_all()
    return {host.name: host.groups for host in session.scalars(select(RemoteHost).order_by(RemoteHost.name))}


def test_the_inventory_is_kept_as_it_was_read_last(session: Session, stopped_clock: Any) -> None:
    assert running.write_inventory(session, {"b": {"web", "all"}, "a": set()})
    assert inventory(session) == {"a": [], "b": ["all", "web"]}
    stopped_clock.advance(seconds=5)
    assert not running.write_inventory(session, {"b": {"web", "all"}, "a": set()})
    assert session.get_one(RemoteInventory, 1).read == stopped_clock()
    assert running.write_inventory(session, {"b": {"db"}, "c:1": {"x"}})

    assert inventory(session) == {"b": ["db"], "c:1": ["x"]}


def test_an_inventory_that_cannot_be_read_leaves_the_hosts_and_says_why(session: Session) -> None:
    running.write_inventory(session, {"a": set()})
    running.write_inventory(session, None, "hosts.ini: no such file")

    assert inventory(session) == {"a": []}
    assert session.get_one(RemoteInventory, 1).error == "hosts.ini: no such file"
    running.write_inventory(session, {"a": set()})
    session.expire_all()
    assert session.get_one(RemoteInventory, 1).error is None

"""A row is somebody's for a while; whoever lost it can no longer change it."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from labctl import db, lease
from labctl.runs.models import Job, Run

SECONDS = 60


@pytest.fixture
def row(session: Session, stopped_clock: Any) -> Session:
    """One row that is nobody's, and another that must never change."""
    add(session, stopped_clock())
    return session


def add(session: Session, now: Any) -> None:
    run = session.execute(
        insert(Run).values(name="run", path="run", posted=now, scheduled=now).returning(Run.id)
    ).scalar_one()
    times = {"posted": now, "updated": now}
    rows = [
        {"id": number, "run_id": run, "job_id": str(number), "status": "queued", "document": "{}", **times}
        for number in (1, 2)
    ]
    session.execute(insert(Job), rows)


def claim(session: Session, holder: str, seconds: float = SECONDS) -> int:
    """Claim the row and give the number of the attempt."""
    statement = update(Job).where(Job.id == 1).values(lease.claim(Job, holder, seconds))
    return session.execute(statement.returning(Job.lease_attempt)).scalar_one()


def holds(session: Session, holder: str, attempt: int) -> bool:
    """Tell whether a change under this claim would change the row."""
    changed = session.execute(
        update(Job).where(Job.id == 1, lease.held(Job, holder, attempt)).values(queue=holder).returning(Job.id)
    ).all()
    return len(changed) == 1


def test_a_row_that_was_never_claimed_is_held_by_nobody(row: Session) -> None:
    for attempt in (0, 1):
        assert not holds(row, "a", attempt)
        assert not holds(row, "", attempt)


def test_a_claim_holds_until_its_end_and_no_longer(row: Session, stopped_clock: Any) -> None:
    attempt = claim(row, "a")
    assert holds(row, "a", attempt)
    stopped_clock.advance(seconds=SECONDS - 0.001)
    assert holds(row, "a", attempt)
    stopped_clock.advance(seconds=0.001)
    assert not holds(row, "a", attempt)


def test_a_claim_is_its_holder_s_and_its_attempt_s_alone(row: Session) -> None:
    attempt = claim(row, "a")
    assert not holds(row, "b", attempt)
    assert not holds(row, "a", attempt - 1)
    assert not holds(row, "a", attempt + 1)


def test_a_later_claim_of_the_same_holder_ends_the_earlier_one(row: Session) -> None:
    first, second = claim(row, "a"), claim(row, "a")
    assert second > first
    assert not holds(row, "a", first)
    assert holds(row, "a", second)


def test_a_freed_row_is_held_by_nobody_and_old_claims_never_fit_again(row: Session) -> None:
    first = claim(row, "a")
    row.execute(update(Job).where(Job.id == 1).values(lease.FREE))
    assert not holds(row, "a", first)
    second = claim(row, "a")
    assert second > first
    assert not holds(row, "a", first)


def test_a_claim_touches_no_other_row(row: Session) -> None:
    claim(row, "a")
    other = row.execute(select(Job.lease_holder, Job.lease_until, Job.lease_attempt).where(Job.id == 2)).one()
    assert tuple(other) == (None, None, 0)


def test_of_many_claims_at_once_the_last_one_holds_and_every_one_has_its_own_number(
    committed: Engine, stopped_clock: Any, at_once: Callable[..., list[Any]]
) -> None:
    with db.transaction() as session:
        add(session, stopped_clock())

    def act(holder: str) -> int:
        with db.transaction() as session:
            return claim(session, holder)

    attempts = at_once([lambda number=number: act(str(number)) for number in range(8)])
    assert sorted(attempts) == list(range(1, 9))
    with db.transaction() as session:
        holding = [number for number, attempt in enumerate(attempts) if holds(session, str(number), attempt)]
    assert holding == [attempts.index(8)]

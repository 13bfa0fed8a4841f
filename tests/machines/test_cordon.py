"""Machines that are out of service: free ones stay free of users, and who has one may give it back."""

from typing import Any

import pytest
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.errors import Exhausted, Forbidden
from labctl.machines import service
from labctl.machines.service import Wanted

WHY = "session 1"


def lock(session: Session, name: str, by: str, locked: bool = True) -> Any:
    return service.change_lock(session, name, {"locked": locked, "locked_by": by})


@pytest.fixture(autouse=True)
def machines(session: Session) -> None:
    for name in ("one", "two"):
        service.add(session, name, {"up": True, "machine_type": "smithi"})


def test_a_machine_out_of_service_cannot_be_locked_by_name(session: Session, app: TestApp) -> None:
    service.cordon(session, "one", WHY)
    session.commit()

    answer = app.put_json("/nodes/one/lock", {"locked": True, "locked_by": "alice"}, status=403)

    assert answer.json == {"message": "Cannot lock - it is out of service: session 1"}


def test_a_machine_out_of_service_is_not_among_many(session: Session) -> None:
    service.cordon(session, "one", WHY)

    with pytest.raises(Exhausted, match="only 1 nodes available"):
        service.lock_many(session, Wanted(count=2, machine_types=["smithi"], locked_by="alice", description=None))
    taken = service.lock_many(session, Wanted(count=1, machine_types=["smithi"], locked_by="alice", description=None))
    assert [machine["name"] for machine in taken] == ["two"]


def test_a_free_machine_is_taken_for_upkeep_and_given_back(session: Session) -> None:
    service.cordon(session, "one", WHY)

    assert service.take(session, "one")
    assert service.take(session, "one")
    with pytest.raises(Forbidden):
        lock(session, "one", "alice")

    service.uncordon(session, "one")
    lock(session, "one", "alice")


def test_a_machine_in_use_is_taken_once_its_user_has_given_it_back(session: Session) -> None:
    lock(session, "one", "alice")
    service.cordon(session, "one", WHY)

    assert not service.take(session, "one")
    lock(session, "one", "alice", locked=False)
    with pytest.raises(Forbidden):
        lock(session, "one", "bob")
    assert service.take(session, "one")


def test_back_in_service_a_machine_stays_its_users(session: Session) -> None:
    lock(session, "one", "alice")
    service.cordon(session, "one", WHY)
    service.uncordon(session, "one")

    with pytest.raises(Forbidden, match="already-locked"):
        lock(session, "one", "bob")


def test_only_a_machine_that_is_there_can_be_taken_out_of_service(session: Session) -> None:
    assert service.cordon(session, "one", WHY)
    assert service.cordon(session, "one", WHY)
    assert not service.cordon(session, "nowhere", WHY)
